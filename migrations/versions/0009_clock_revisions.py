"""Revisions that never repeat: a hybrid logical clock, and the database's epoch."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# The number of a change is the microsecond of its moment, or the owner's latest number plus 1 if
# that is greater. So no number returns after an erasure or after a restore from a backup.
# All rows that a transaction changes share one number: the first of them takes it, under the lock
# on the owner's row, and leaves it in a setting that ends with the transaction.
# A new owner has missed all purges before its first change: the sync tokens of a user who was
# erased are older than that. The insert may wait for another one, and for the erasure of its row,
# so the number is taken after it. A renewal (todo_api/commands/renewal.py) is no change by a user.
TAKE_REVISION = """
    CREATE OR REPLACE FUNCTION take_revision() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        taken text := current_setting('todo.revision', true);
        is_new boolean := false;
    BEGIN
        IF taken <> '' AND split_part(taken, ' ', 1) = NEW.user_id::text THEN
            NEW.revision := split_part(taken, ' ', 2)::bigint;
        ELSE
            LOOP
                UPDATE users SET revision = greatest(
                    revision + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
                )
                WHERE id = NEW.user_id RETURNING revision INTO NEW.revision;
                EXIT WHEN FOUND;
                INSERT INTO users (id) VALUES (NEW.user_id) ON CONFLICT (id) DO NOTHING;
                is_new := FOUND;
            END LOOP;
            IF is_new THEN
                UPDATE users SET purged_revision = revision - 1 WHERE id = NEW.user_id;
            END IF;
            PERFORM set_config('todo.revision', NEW.user_id || ' ' || NEW.revision, true);
        END IF;
        IF current_setting('todo.renewal', true) = 'on' THEN
            RETURN NEW;
        END IF;
        NEW.updated_at := clock_timestamp();
        IF TG_OP = 'INSERT' THEN
            NEW.created_at := NEW.updated_at;
        END IF;
        NEW.attempt := nullif(current_setting('todo.attempt', true), '')::uuid;
        RETURN NEW;
    END
    $$
"""

# As in 0006.
COUNT_REVISIONS = """
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


def upgrade() -> None:
    op.create_table(
        "database_state",
        sa.Column("is_current", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("epoch", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("renewal_position", sa.Uuid(), nullable=True),
        sa.CheckConstraint("is_current", name=op.f("ck_database_state_one_row")),
        sa.PrimaryKeyConstraint("is_current", name=op.f("pk_database_state")),
    )
    # The rows that exist are numbered anew after this migration, owner by owner.
    op.execute(
        "INSERT INTO database_state (renewal_position)"
        " VALUES ('00000000-0000-0000-0000-000000000000')"
    )
    op.execute("GRANT SELECT (epoch) ON database_state TO todo_app")
    op.execute("GRANT SELECT, UPDATE (epoch) ON database_state TO todo_maintenance")

    # A page of changes may end between two rows of one revision. Writes wait for this index.
    op.create_index("ix_tasks_user_id_revision_id", "tasks", ["user_id", "revision", "id"])
    op.drop_index("ix_tasks_user_id_revision", "tasks")
    op.execute(TAKE_REVISION)

    # The purge locks the rows that it removes, which needs the privilege to update a column.
    op.execute("GRANT UPDATE (attempt) ON tasks TO todo_maintenance")
    op.execute("GRANT UPDATE (task_id) ON idempotency_keys TO todo_maintenance")

    # Requests empty the trash, and can remove nothing else.
    op.execute("GRANT DELETE ON tasks TO todo_app")
    op.execute("""
        CREATE POLICY trash ON tasks AS RESTRICTIVE FOR DELETE TO todo_app
        USING (deleted_at IS NOT NULL)
    """)


def downgrade() -> None:
    op.execute("DROP POLICY trash ON tasks")
    op.execute("REVOKE DELETE ON tasks FROM todo_app")
    op.execute("REVOKE UPDATE (task_id) ON idempotency_keys FROM todo_maintenance")
    op.execute("REVOKE UPDATE (attempt) ON tasks FROM todo_maintenance")
    op.execute(COUNT_REVISIONS)
    op.create_index("ix_tasks_user_id_revision", "tasks", ["user_id", "revision"])
    op.drop_index("ix_tasks_user_id_revision_id", "tasks")
    op.drop_table("database_state")
