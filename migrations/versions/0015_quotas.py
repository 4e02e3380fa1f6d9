"""Quotas: count the rows and bytes of each user, and refuse what exceeds a limit."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

COLUMNS = ("tasks", "trashed_tasks", "lists", "trashed_lists", "bytes")

# Adds to the owner's numbers. The limits are settings of the transaction; without them, as in psql,
# there are none. A request that makes a number smaller is never refused.
CHANGE_USAGE = """
    CREATE FUNCTION change_usage(
        items text, owner uuid, more_live bigint, more_trashed bigint, more_bytes bigint
    ) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        max_tasks CONSTANT bigint := nullif(current_setting('todo.max_tasks', true), '');
        max_bytes CONSTANT bigint := nullif(current_setting('todo.max_bytes', true), '');
        live bigint;
        trashed bigint;
        all_bytes bigint;
        max_live bigint;
    BEGIN
        IF items = 'tasks' THEN
            max_live := max_tasks;
            UPDATE users SET
                tasks = tasks + more_live, trashed_tasks = trashed_tasks + more_trashed,
                bytes = bytes + more_bytes
            WHERE id = owner RETURNING tasks, trashed_tasks, bytes INTO live, trashed, all_bytes;
        ELSE
            max_live := CASE WHEN max_tasks IS NOT NULL THEN 500 END;
            UPDATE users SET
                lists = lists + more_live, trashed_lists = trashed_lists + more_trashed,
                bytes = bytes + more_bytes
            WHERE id = owner RETURNING lists, trashed_lists, bytes INTO live, trashed, all_bytes;
        END IF;
        IF more_live > 0 AND live > max_live THEN
            PERFORM raise_quota(items, 'quota', max_live, live - more_live);
        END IF;
        IF more_live + more_trashed > 0 AND live + trashed > 2 * max_live THEN
            PERFORM raise_quota(
                items, 'quota_with_trash', 2 * max_live, live + trashed - more_live - more_trashed
            );
        END IF;
        IF more_bytes > 0 AND all_bytes > max_bytes THEN
            PERFORM raise_quota(items, 'quota_bytes', max_bytes, all_bytes - more_bytes);
        END IF;
    END
    $$
"""

# After each statement: what its new rows have more than its old rows.
COUNT_ROWS = """
    CREATE FUNCTION count_rows() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            PERFORM change_usage(
                TG_TABLE_NAME, user_id, count(*) FILTER (WHERE deleted_at IS NULL),
                count(*) FILTER (WHERE deleted_at IS NOT NULL), coalesce(sum(octet_length(json)), 0)
            ) FROM new_rows GROUP BY user_id;
        ELSIF TG_OP = 'DELETE' THEN
            PERFORM change_usage(
                TG_TABLE_NAME, user_id, -count(*) FILTER (WHERE deleted_at IS NULL),
                -count(*) FILTER (WHERE deleted_at IS NOT NULL),
                -coalesce(sum(octet_length(json)), 0)
            ) FROM old_rows GROUP BY user_id;
        ELSE
            PERFORM change_usage(TG_TABLE_NAME, user_id, more_live, more_trashed, more_bytes)
            FROM (
                SELECT user_id,
                    coalesce(sum(sign) FILTER (WHERE deleted_at IS NULL), 0) AS more_live,
                    coalesce(sum(sign) FILTER (WHERE deleted_at IS NOT NULL), 0) AS more_trashed,
                    coalesce(sum(sign * octet_length(json)), 0) AS more_bytes
                FROM (
                    SELECT user_id, deleted_at, json, 1 AS sign FROM new_rows
                    UNION ALL
                    SELECT user_id, deleted_at, json, -1 FROM old_rows
                ) AS changed_rows
                GROUP BY user_id
            ) AS sums
            WHERE (more_live, more_trashed, more_bytes) IS DISTINCT FROM (0, 0, 0);
        END IF;
        RETURN NULL;
    END
    $$
"""

# Counts all rows of an owner. The caller holds the lock on the owner's row.
COUNT_ALL_ROWS = """
    CREATE FUNCTION count_all_rows(owner uuid) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE users SET (tasks, trashed_tasks, lists, trashed_lists, bytes) = (
            SELECT
                count(*) FILTER (WHERE is_task AND deleted_at IS NULL),
                count(*) FILTER (WHERE is_task AND deleted_at IS NOT NULL),
                count(*) FILTER (WHERE NOT is_task AND deleted_at IS NULL),
                count(*) FILTER (WHERE NOT is_task AND deleted_at IS NOT NULL),
                coalesce(sum(octet_length(json)), 0)
            FROM (
                SELECT true AS is_task, deleted_at, json FROM tasks WHERE user_id = owner
                UNION ALL
                SELECT false, deleted_at, json FROM lists WHERE user_id = owner
            ) AS owned
        )
        WHERE id = owner;
    END
    $$
"""

FUNCTIONS = (CHANGE_USAGE, COUNT_ROWS, COUNT_ALL_ROWS)

TRANSITION_TABLES = {
    "INSERT": "NEW TABLE AS new_rows",
    "UPDATE": "OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "DELETE": "OLD TABLE AS old_rows",
}


def upgrade() -> None:
    for name in COLUMNS:
        op.add_column(
            "users", sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False)
        )
    for function in FUNCTIONS:
        op.execute(function)
    for table in ("tasks", "lists"):
        for operation, transition_tables in TRANSITION_TABLES.items():
            op.execute(f"""
                CREATE TRIGGER count_rows_on_{operation.lower()} AFTER {operation} ON {table}
                REFERENCING {transition_tables}
                FOR EACH STATEMENT EXECUTE FUNCTION count_rows()
            """)
    # The purge counts, too.
    op.execute(f"GRANT UPDATE ({', '.join(COLUMNS)}) ON users TO todo_maintenance")
    # The rows that exist are counted by the renewal, owner by owner.
    op.execute(
        "UPDATE database_state SET renewal_position = '00000000-0000-0000-0000-000000000000'"
    )


def downgrade() -> None:
    op.execute(f"REVOKE UPDATE ({', '.join(COLUMNS)}) ON users FROM todo_maintenance")
    for table in ("tasks", "lists"):
        for operation in TRANSITION_TABLES:
            op.execute(f"DROP TRIGGER count_rows_on_{operation.lower()} ON {table}")
    for function in reversed(FUNCTIONS):
        name = function.split("(")[0].split()[-1]
        op.execute(f"DROP FUNCTION {name}")
    for name in COLUMNS:
        op.drop_column("users", name)
