"""A log of all committed changes of tasks, written by a trigger that only these runs have."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psycopg import Connection

# The function runs as its owner, a superuser: the API's role has no right to the log.
CREATE_LOG = """
    CREATE TABLE change_log (user_id uuid NOT NULL, task_id uuid NOT NULL);
    CREATE FUNCTION log_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            INSERT INTO public.change_log VALUES (NEW.user_id, NEW.id);
            RETURN NULL;
        END
    $$;
    CREATE TRIGGER log_change AFTER INSERT OR UPDATE ON tasks
        FOR EACH ROW EXECUTE FUNCTION log_change();
"""


def create_change_log(connection: Connection[tuple[Any, ...]]) -> None:
    """Log each change of a task from now on. The connection is a superuser's."""
    connection.execute(CREATE_LOG)


def count_changes(connection: Connection[tuple[Any, ...]]) -> Counter[str]:
    """Return the number of changes by task id."""
    rows = connection.execute("SELECT task_id::text, count(*) FROM change_log GROUP BY task_id")
    return Counter(dict(rows.fetchall()))
