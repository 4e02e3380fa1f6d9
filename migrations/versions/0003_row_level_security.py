"""Row-level security, and the role of all requests."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

OWNER_COLUMN = {"users": "id", "tasks": "user_id"}


def upgrade() -> None:
    # All databases of a cluster share its roles. The migration of another database may have created
    # the role, or create it at the same time. A downgrade does not drop it for the same reason.
    op.execute("""
        DO $$
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'todo_app') THEN
                CREATE ROLE todo_app NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE;
            END IF;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL;
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'There is no role todo_app, and % may not create it.', current_user
                -- The hint names todo_maintenance, too, which a later migration needs.
                USING HINT = format(
                    'Run this SQL as a role that may create roles: '
                    'CREATE ROLE todo_app NOLOGIN; GRANT todo_app TO %1$I; '
                    'CREATE ROLE todo_maintenance NOLOGIN; GRANT todo_maintenance TO %1$I;',
                    current_user);
        END
        $$
    """)
    op.execute("""
        DO $$
        BEGIN
            IF EXISTS (SELECT FROM pg_roles
                       WHERE rolname = 'todo_app' AND (rolsuper OR rolbypassrls)) THEN
                RAISE EXCEPTION 'The role todo_app must not bypass row-level security.'
                USING HINT = 'ALTER ROLE todo_app NOSUPERUSER NOBYPASSRLS;';
            END IF;
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO todo_app', current_schema());
        END
        $$
    """)
    op.execute("GRANT SELECT, INSERT, UPDATE ON users, tasks TO todo_app")
    op.execute("GRANT DELETE ON users TO todo_app")
    op.execute("GRANT SELECT ON alembic_version TO todo_app")
    # The setting is NULL before the first transaction that sets it, and '' after it. In both cases
    # there is no user, and no row is visible.
    for table, column in OWNER_COLUMN.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"""
            CREATE POLICY owner ON {table}
            USING ({column} = nullif(current_setting('todo.user_id', true), '')::uuid)
            WITH CHECK ({column} = nullif(current_setting('todo.user_id', true), '')::uuid)
        """)


def downgrade() -> None:
    for table in OWNER_COLUMN:
        op.execute(f"DROP POLICY owner ON {table}")
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    op.execute("REVOKE ALL ON users, tasks, alembic_version FROM todo_app")
    op.execute("""
        DO $$
        BEGIN
            EXECUTE format('REVOKE USAGE ON SCHEMA %I FROM todo_app', current_schema());
        END
        $$
    """)
