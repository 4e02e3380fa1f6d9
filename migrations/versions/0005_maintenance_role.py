"""The role of the purge: it has access to all users, but only to old rows of the trash."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # As todo_app: all databases of a cluster share its roles, so a downgrade does not drop them.
    op.execute("""
        DO $$
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'todo_maintenance') THEN
                CREATE ROLE todo_maintenance
                NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE;
            END IF;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL;
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION
                    'There is no role todo_maintenance, and % may not create it.', current_user
                USING HINT = format(
                    'Run this SQL as a role that may create roles: '
                    'CREATE ROLE todo_maintenance NOLOGIN; GRANT todo_maintenance TO %I;',
                    current_user);
        END
        $$
    """)
    op.execute("""
        DO $$
        BEGIN
            IF EXISTS (SELECT FROM pg_roles
                       WHERE rolname = 'todo_maintenance' AND (rolsuper OR rolbypassrls)) THEN
                RAISE EXCEPTION 'The role todo_maintenance must not bypass row-level security.'
                USING HINT = 'ALTER ROLE todo_maintenance NOSUPERUSER NOBYPASSRLS;';
            END IF;
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO todo_maintenance', current_schema());
        END
        $$
    """)
    op.execute(
        "GRANT SELECT (user_id, id, revision, deleted_at), DELETE ON tasks TO todo_maintenance"
    )
    op.execute("GRANT SELECT, UPDATE (revision, purged_revision) ON users TO todo_maintenance")
    op.execute("""
        CREATE POLICY maintenance ON tasks TO todo_maintenance
        USING (deleted_at < clock_timestamp() - interval '30 days')
    """)
    op.execute("CREATE POLICY maintenance ON users TO todo_maintenance USING (true)")


def downgrade() -> None:
    op.execute("DROP POLICY maintenance ON users")
    op.execute("DROP POLICY maintenance ON tasks")
    op.execute("REVOKE ALL ON users, tasks FROM todo_maintenance")
    op.execute("""
        DO $$
        BEGIN
            EXECUTE format('REVOKE USAGE ON SCHEMA %I FROM todo_maintenance', current_schema());
        END
        $$
    """)
