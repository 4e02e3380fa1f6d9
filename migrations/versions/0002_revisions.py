"""The trigger that numbers an owner's changes."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The upsert locks the owner's row until the end of the transaction, so revisions become visible
    # in order. clock_timestamp() is the time after the wait for that lock, now() the time before.
    op.execute("""
        CREATE FUNCTION take_revision() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO users AS owner (id, revision) VALUES (NEW.user_id, 1)
            ON CONFLICT (id) DO UPDATE SET revision = owner.revision + 1
            RETURNING owner.revision INTO NEW.revision;
            NEW.updated_at := clock_timestamp();
            IF TG_OP = 'INSERT' THEN
                NEW.created_at := NEW.updated_at;
            END IF;
            RETURN NEW;
        END
        $$
    """)
    op.execute("""
        CREATE TRIGGER take_revision_on_insert BEFORE INSERT ON tasks
        FOR EACH ROW EXECUTE FUNCTION take_revision()
    """)
    op.execute("""
        CREATE TRIGGER take_revision_on_update BEFORE UPDATE ON tasks
        FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION take_revision()
    """)


def downgrade() -> None:
    op.execute("DROP TRIGGER take_revision_on_update ON tasks")
    op.execute("DROP TRIGGER take_revision_on_insert ON tasks")
    op.execute("DROP FUNCTION take_revision()")
