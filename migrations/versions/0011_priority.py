"""Add the priority of tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("priority", sa.Text(), server_default="none", nullable=False))
    op.create_check_constraint(
        op.f("ck_tasks_priority_known"), "tasks", "priority IN ('none', 'low', 'medium', 'high')"
    )
    op.execute("""
    CREATE OR REPLACE FUNCTION write_tasks_json() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
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
    $$
    """)
    op.execute(
        "UPDATE database_state SET renewal_position = '00000000-0000-0000-0000-000000000000'"
    )


def downgrade() -> None:
    op.drop_column("tasks", "priority")
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
    op.execute(
        "UPDATE database_state SET renewal_position = '00000000-0000-0000-0000-000000000000'"
    )
