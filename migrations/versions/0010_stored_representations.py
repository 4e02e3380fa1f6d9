"""Stored representations: a trigger writes the JSON of each row, and reads send it as it is."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# After take_revision, in the order of the triggers' names. An update that changes nothing takes no
# revision, and renders nothing.
TRIGGERS = (
    """
    CREATE TRIGGER write_json_on_insert BEFORE INSERT ON tasks
    FOR EACH ROW EXECUTE FUNCTION write_tasks_json()
    """,
    """
    CREATE TRIGGER write_json_on_update BEFORE UPDATE ON tasks
    FOR EACH ROW WHEN (OLD.revision IS DISTINCT FROM NEW.revision)
    EXECUTE FUNCTION write_tasks_json()
    """,
)


def upgrade() -> None:
    op.add_column("tasks", sa.Column("json", sa.Text(), nullable=True))
    op.execute("""
    CREATE OR REPLACE FUNCTION write_tasks_json() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.json := '{"id":' || to_json(NEW.id)
            || ',"user_id":' || to_json(NEW.user_id)
            || ',"title":' || to_json(NEW.title)
            || ',"description":' || coalesce(to_json(NEW.description)::text, 'null')
            || ',"completed":' || to_json(NEW.completed)
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
    for trigger in TRIGGERS:
        op.execute(trigger)
    # The rows that exist are rendered after this migration, owner by owner.
    op.execute(
        "UPDATE database_state SET renewal_position = '00000000-0000-0000-0000-000000000000'"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER write_json_on_update ON tasks")
    op.execute("DROP TRIGGER write_json_on_insert ON tasks")
    op.execute("DROP FUNCTION write_tasks_json()")
    op.drop_column("tasks", "json")
