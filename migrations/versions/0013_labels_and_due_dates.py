"""Add completed_at, labels, due dates, time zones and metadata."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# As in the function `take_revision`: the revision is the microsecond of the change, or the previous
# one plus 1. With the first change, `purged_revision` makes the sync tokens of an erased user with the
# same id invalid.
TAKE_REVISION_OF_USER = """
    CREATE FUNCTION take_revision_of_user() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.revision := greatest(
            OLD.revision + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
        );
        IF OLD.revision = 0 THEN
            NEW.purged_revision := NEW.revision - 1;
        END IF;
        RETURN NEW;
    END
    $$
"""


def upgrade() -> None:
    op.add_column("tasks", sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "tasks",
        sa.Column("labels", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
    )
    op.add_column("tasks", sa.Column("due_date", sa.Date(), nullable=True))
    op.add_column("tasks", sa.Column("due_time", postgresql.TIME(precision=0), nullable=True))
    op.add_column("tasks", sa.Column("time_zone", sa.Text(), nullable=True))
    op.add_column("tasks", sa.Column("due_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("tasks", sa.Column("start_date", sa.Date(), nullable=True))
    op.add_column(
        "tasks",
        sa.Column(
            "metadata", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False
        ),
    )
    op.add_column(
        "tasks",
        sa.Column("label_keys", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
    )
    op.add_column(
        "tasks",
        sa.Column(
            "due_sort",
            sa.DateTime(),
            server_default=sa.text("'9999-12-31 00:00:00'"),
            nullable=False,
        ),
    )
    op.create_index(
        op.f("ix_tasks_user_id_completed_due_sort_id"),
        "tasks",
        ["user_id", "completed", "due_sort", "id"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.add_column("users", sa.Column("time_zone", sa.Text(), server_default="UTC", nullable=False))
    op.execute(TAKE_REVISION_OF_USER)
    op.execute("""
        CREATE TRIGGER take_revision_on_time_zone BEFORE UPDATE ON users
        FOR EACH ROW WHEN (OLD.time_zone IS DISTINCT FROM NEW.time_zone)
        EXECUTE FUNCTION take_revision_of_user()
    """)
    op.execute(
        """
        GRANT INSERT (completed_at, labels, due_date, due_time, time_zone, due_at, start_date,
                metadata, label_keys),
            UPDATE (completed_at, labels, due_date, due_time, time_zone, due_at, start_date,
                metadata, label_keys)
        ON tasks TO todo_app
        """
    )
    op.execute(r"""
    CREATE OR REPLACE FUNCTION write_tasks_row() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        broken_rule text;
    BEGIN
        NEW.completed_at := CASE WHEN NEW.completed THEN coalesce(NEW.completed_at, CASE WHEN OLD.completed THEN OLD.updated_at END, NEW.updated_at) END;
        NEW.due_sort := coalesce(NEW.due_date + coalesce(NEW.due_time, '23:59:59.999999'), '9999-12-31 00:00:00');
        broken_rule := CASE
            WHEN NOT (NEW.revision > 0) THEN 'ck_tasks_revision_positive'
            WHEN NOT (char_length(NEW.title) BETWEEN 1 AND 255) THEN 'ck_tasks_title_length'
            WHEN NOT (NEW.title = btrim(NEW.title, U&'\0009\000A\000B\000C\000D\001C\001D\001E\001F\0020\0085\00A0\1680\2000\2001\2002\2003\2004\2005\2006\2007\2008\2009\200A\2028\2029\202F\205F\3000')) THEN 'ck_tasks_title_stripped'
            WHEN NOT (char_length(NEW.description) <= 10000) THEN 'ck_tasks_description_length'
            WHEN NOT (NEW.priority IN ('none', 'low', 'medium', 'high')) THEN 'ck_tasks_priority_known'
            WHEN NOT (cardinality(NEW.labels) <= 20) THEN 'ck_tasks_labels_count'
            WHEN NOT (NEW.due_date BETWEEN '1970-01-01' AND '9999-12-30') THEN 'ck_tasks_due_date_range'
            WHEN NOT (NEW.start_date BETWEEN '1970-01-01' AND '9999-12-30') THEN 'ck_tasks_start_date_range'
            WHEN NOT (jsonb_array_length(jsonb_path_query_array(NEW.metadata, '$.*')) <= 20) THEN 'ck_tasks_metadata_keys'
            WHEN NOT (NEW.due_time IS NULL OR NEW.due_date IS NOT NULL) THEN 'ck_tasks_due_time_needs_due_date'
            WHEN NOT (NEW.time_zone IS NULL OR NEW.due_time IS NOT NULL) THEN 'ck_tasks_time_zone_needs_due_time'
            WHEN NOT (NEW.start_date <= NEW.due_date) THEN 'ck_tasks_start_date_not_after_due_date'
        END;
        IF broken_rule IS NOT NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = '23514', CONSTRAINT = broken_rule, TABLE = TG_TABLE_NAME,
                MESSAGE = 'a row violates the rule ' || broken_rule;
        END IF;
        NEW.json := '{"id":' || to_json(NEW.id)
            || ',"user_id":' || to_json(NEW.user_id)
            || ',"title":' || to_json(NEW.title)
            || ',"description":' || coalesce(to_json(NEW.description)::text, 'null')
            || ',"completed":' || to_json(NEW.completed)
            || ',"completed_at":' || coalesce(to_json(to_char(timezone('UTC', NEW.completed_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text, 'null')
            || ',"priority":' || to_json(NEW.priority)
            || ',"labels":' || to_json(NEW.labels)
            || ',"due_date":' || coalesce(to_json(NEW.due_date)::text, 'null')
            || ',"due_time":' || coalesce(to_json(NEW.due_time)::text, 'null')
            || ',"time_zone":' || coalesce(to_json(NEW.time_zone)::text, 'null')
            || ',"due_at":' || coalesce(to_json(to_char(timezone('UTC', NEW.due_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text, 'null')
            || ',"start_date":' || coalesce(to_json(NEW.start_date)::text, 'null')
            || ',"metadata":' || to_json(NEW.metadata)
            || ',"created_at":' || to_json(to_char(timezone('UTC', NEW.created_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"updated_at":' || to_json(to_char(timezone('UTC', NEW.updated_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"revision":' || to_json(NEW.revision)
            || '}';
        RETURN NEW;
    END
    $$
    """)
    op.execute(r"""
    CREATE OR REPLACE FUNCTION tasks_json(owner uuid, item_id uuid) RETURNS text
    LANGUAGE plpgsql STABLE AS $$
    BEGIN
        RETURN (
            SELECT '{"id":' || to_json(item.id)
            || ',"user_id":' || to_json(item.user_id)
            || ',"title":' || to_json(item.title)
            || ',"description":' || coalesce(to_json(item.description)::text, 'null')
            || ',"completed":' || to_json(item.completed)
            || ',"completed_at":' || coalesce(to_json(to_char(timezone('UTC', item.completed_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text, 'null')
            || ',"priority":' || to_json(item.priority)
            || ',"labels":' || to_json(item.labels)
            || ',"due_date":' || coalesce(to_json(item.due_date)::text, 'null')
            || ',"due_time":' || coalesce(to_json(item.due_time)::text, 'null')
            || ',"time_zone":' || coalesce(to_json(item.time_zone)::text, 'null')
            || ',"due_at":' || coalesce(to_json(to_char(timezone('UTC', item.due_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text, 'null')
            || ',"start_date":' || coalesce(to_json(item.start_date)::text, 'null')
            || ',"metadata":' || to_json(item.metadata)
            || ',"created_at":' || to_json(to_char(timezone('UTC', item.created_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"updated_at":' || to_json(to_char(timezone('UTC', item.updated_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"revision":' || to_json(item.revision)
            || '}'
            FROM tasks AS item WHERE item.user_id = owner AND item.id = item_id
        );
    END
    $$
    """)
    op.execute(
        "UPDATE database_state SET renewal_position = '00000000-0000-0000-0000-000000000000'"
    )


def downgrade() -> None:
    op.execute("DROP FUNCTION tasks_json(uuid, uuid)")
    op.execute("DROP TRIGGER take_revision_on_time_zone ON users")
    op.execute("DROP FUNCTION take_revision_of_user()")
    op.drop_column("users", "time_zone")
    op.drop_index(
        op.f("ix_tasks_user_id_completed_due_sort_id"),
        table_name="tasks",
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_column("tasks", "due_sort")
    op.drop_column("tasks", "label_keys")
    op.drop_column("tasks", "metadata")
    op.drop_column("tasks", "start_date")
    op.drop_column("tasks", "due_at")
    op.drop_column("tasks", "time_zone")
    op.drop_column("tasks", "due_time")
    op.drop_column("tasks", "due_date")
    op.drop_column("tasks", "labels")
    op.drop_column("tasks", "completed_at")
    op.execute(r"""CREATE OR REPLACE FUNCTION public.write_tasks_row()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
    DECLARE
        broken_rule text;
    BEGIN
        broken_rule := CASE
            WHEN NOT (NEW.revision > 0) THEN 'ck_tasks_revision_positive'
            WHEN NOT (char_length(NEW.title) BETWEEN 1 AND 255) THEN 'ck_tasks_title_length'
            WHEN NOT (NEW.title = btrim(NEW.title, U&'\0009\000A\000B\000C\000D\001C\001D\001E\001F\0020\0085\00A0\1680\2000\2001\2002\2003\2004\2005\2006\2007\2008\2009\200A\2028\2029\202F\205F\3000')) THEN 'ck_tasks_title_stripped'
            WHEN NOT (char_length(NEW.description) <= 10000) THEN 'ck_tasks_description_length'
            WHEN NOT (NEW.priority IN ('none', 'low', 'medium', 'high')) THEN 'ck_tasks_priority_known'
        END;
        IF broken_rule IS NOT NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = '23514', CONSTRAINT = broken_rule, TABLE = TG_TABLE_NAME,
                MESSAGE = 'a row violates the rule ' || broken_rule;
        END IF;
        NEW.json := '{"id":' || to_json(NEW.id)
            || ',"user_id":' || to_json(NEW.user_id)
            || ',"title":' || to_json(NEW.title)
            || ',"description":' || coalesce(to_json(NEW.description)::text, 'null')
            || ',"completed":' || to_json(NEW.completed)
            || ',"priority":' || to_json(NEW.priority)
            || ',"created_at":' || to_json(to_char(timezone('UTC', NEW.created_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"updated_at":' || to_json(to_char(timezone('UTC', NEW.updated_at),
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
            || ',"revision":' || to_json(NEW.revision)
            || '}';
        RETURN NEW;
    END
    $function$
    """)
    op.execute(
        "UPDATE database_state SET renewal_position = '00000000-0000-0000-0000-000000000000'"
    )
