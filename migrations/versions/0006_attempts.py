"""The attempt that last changed a task, so that a retry detects whether it was applied."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


# The function of migration 0002, with one line more: it stores the attempt.
STAMPING = """
        CREATE OR REPLACE FUNCTION take_revision() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO users AS owner (id, revision) VALUES (NEW.user_id, 1)
            ON CONFLICT (id) DO UPDATE SET revision = owner.revision + 1
            RETURNING owner.revision INTO NEW.revision;
            NEW.updated_at := clock_timestamp();
            IF TG_OP = 'INSERT' THEN
                NEW.created_at := NEW.updated_at;
            END IF;
            NEW.attempt := nullif(current_setting('todo.attempt', true), '')::uuid;
            RETURN NEW;
        END
        $$
"""

STAMP = "            NEW.attempt := nullif(current_setting('todo.attempt', true), '')::uuid;\n"


def upgrade() -> None:
    # Nullable: manual changes have no attempt, nor do changes by the previous version.
    op.add_column("tasks", sa.Column("attempt", sa.Uuid()))
    op.execute(STAMPING)


def downgrade() -> None:
    op.execute(STAMPING.replace(STAMP, ""))
    op.drop_column("tasks", "attempt")
