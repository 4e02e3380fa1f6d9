"""Query plans among 1.1 million tasks: the cost of a page does not depend on its position."""

from __future__ import annotations

import uuid
from typing import Any, NamedTuple

import psycopg
import pytest

from tests.support.api import NEW_TASK
from tests.support.plans import explain_statement, steps
from tests.support.postgresql import migrate
from todo_api.resources.changes import changes_statement
from todo_api.resources.items import new_values
from todo_api.resources.pages import Position, list_statement
from todo_api.resources.trash import trash_statement
from todo_api.tasks.fields import TASK

pytestmark = pytest.mark.slow

# 10,000 light users have 100 tasks each, and one heavy user has 100,000. In each of 100 turns,
# every light user gets one task and the heavy user 1,000, so that their tasks alternate.
HEAVY_USER = uuid.UUID(int=1)
INSERT_TASKS = """
    INSERT INTO tasks (user_id, id, title, completed, revision, created_at, json)
    SELECT CASE WHEN number % 11 = 0 THEN '00000000-0000-0000-0000-000000000001'
                ELSE md5(number::text)::uuid END,
           md5(turn || ' ' || number)::uuid, 'Task ' || number, (turn + number / 11) % 3 = 0, turn,
           timestamptz '2026-01-01' + make_interval(secs => turn * 11000 + number), '{}'
    FROM generate_series(1, 100) AS turn, generate_series(1, 11000) AS number
"""
LIGHT_USER = "SELECT user_id FROM tasks WHERE user_id <> %s LIMIT 1"
POSITIONS = """
    SELECT created_at, id FROM tasks WHERE user_id = %s AND NOT completed
    ORDER BY created_at DESC, id DESC
"""
INDEXES = """
    SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), conname,
           pg_get_constraintdef(pg_constraint.oid)
    FROM pg_index LEFT JOIN pg_constraint ON conindid = indexrelid
    WHERE indrelid = 'tasks'::regclass
"""


@pytest.fixture(scope="module")
def connection(new_database):
    url = new_database("plans")
    migrate(url)
    with psycopg.connect(url, autocommit=True) as superuser:
        insert_tasks(superuser)
        yield superuser


def insert_tasks(connection):
    """Insert the tasks without triggers and indexes, and then build the indexes: 3 times faster."""
    indexes = connection.execute(INDEXES).fetchall()
    for name, _, constraint, _ in indexes:
        connection.execute(
            f"ALTER TABLE tasks DROP CONSTRAINT {constraint}"
            if constraint
            else f"DROP INDEX {name}"
        )
    connection.execute("SET session_replication_role = replica")
    connection.execute(INSERT_TASKS)
    connection.execute("INSERT INTO users (id) SELECT DISTINCT user_id FROM tasks")
    connection.execute("RESET session_replication_role")
    for _, index, constraint, definition in indexes:
        connection.execute(
            f"ALTER TABLE tasks ADD CONSTRAINT {constraint} {definition}" if constraint else index
        )
    connection.execute("VACUUM ANALYZE tasks, users")


class User(NamedTuple):
    """A user, and the list positions of the user's open tasks, newest first."""

    id: uuid.UUID
    positions: list[Position]

    def parameters(self, place: float, limit: int = 100) -> dict[str, Any]:
        """Return the statements' parameters at a place in the list, from 0 (start) to 1 (end)."""
        position = self.positions[int(len(self.positions) * place)]
        return {
            "owner": self.id,
            "id": position.id,
            **new_values(TASK, NEW_TASK),
            "match": None,
            "none_match": [],
            "rows": limit + 1,
            "completed": False,
            "client_revisions": [],
            "attempt": uuid.uuid4(),
            "elapsed": None,
            "after_value": position.value,
            "after_id": position.id,
        }


@pytest.fixture(scope="module")
def users(connection):
    """One of the light users, and the heavy user."""
    (light_user,) = connection.execute(LIGHT_USER, (HEAVY_USER,)).fetchone()
    return {
        name: User(
            user_id,
            [Position(*row) for row in connection.execute(POSITIONS, (user_id,)).fetchall()],
        )
        for name, user_id in [("light", light_user), ("heavy", HEAVY_USER)]
    }


@pytest.fixture(params=["force_custom_plan", "force_generic_plan"])
def explain(connection, request):
    """Run a statement as the application does, and return its plan."""
    return lambda statement, parameters: explain_statement(
        connection, statement, parameters, request.param
    )


def node_types(plan):
    return [step["Node Type"] for step in steps(plan)]


def scan_of_tasks(plan):
    """Return the node that reads the table, or the index of a bitmap scan."""
    scans = [
        step
        for step in steps(plan)
        if "tasks" in step.get("Relation Name", step.get("Index Name", ""))
    ]
    return scans[-1]


def buffers(plan):
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


def test_database_has_more_than_a_million_tasks(connection):
    counts = connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE of_user = 100) FROM"
        " (SELECT count(*) AS of_user FROM tasks GROUP BY user_id) AS counted"
    ).fetchone()

    assert counts == (10_001, 10_000)


@pytest.mark.parametrize(("after", "place"), [(False, 0), (True, 0), (True, 0.5), (True, 0.9)])
@pytest.mark.parametrize("completed", [False, True])
@pytest.mark.parametrize(("user", "limit"), [("light", 5), ("heavy", 100), ("heavy", 200)])
def test_page_is_read_from_an_index(explain, users, user, limit, completed, after, place):
    parameters = users[user].parameters(place, limit)

    plan = explain(
        list_statement(TASK, ("completed",) if completed else (), after=after), parameters
    )

    # The plan reads the owner's row by its key, and the page. "Result" checks once whether the
    # client knows the owner's revision, and whether the setting names the owner (the policy).
    assert set(node_types(plan)) <= {
        *("Append", "CTE Scan", "Subquery Scan", "Limit", "Result", "Index Scan"),
    }
    scan = scan_of_tasks(plan)
    assert "Filter" not in scan
    assert ("created_at" in scan["Index Cond"]) is after
    assert ("completed" in scan["Index Cond"]) is completed
    # The rows are the owner, the page, and one row that shows that more exist.
    assert plan["Actual Rows"] == 1 + limit + 1


@pytest.mark.parametrize("completed", [False, True])
def test_deep_page_costs_as_much_as_the_first(explain, users, completed):
    first, deep = (
        explain(
            list_statement(TASK, ("completed",) if completed else (), after=after),
            users["heavy"].parameters(0.9),
        )
        for after in (False, True)
    )

    assert first["Actual Rows"] == deep["Actual Rows"] == 1 + 101
    assert buffers(deep) <= 1.5 * buffers(first)
    assert buffers(first) < 120


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("completed", [False, True])
def test_page_that_holds_all_tasks_of_the_owner_reads_no_others(explain, users, completed, after):
    plan = explain(
        list_statement(TASK, ("completed",) if completed else (), after=after),
        users["light"].parameters(0.1),
    )

    # The planner may read and sort all tasks of the owner, because they fit on one page.
    assert not {"Seq Scan", "Index Only Scan"} & set(node_types(plan))
    scan = scan_of_tasks(plan)
    assert "user_id" in scan["Index Cond"]
    assert scan["Actual Rows"] <= 100
    assert buffers(plan) < 120


@pytest.mark.parametrize(
    ("statement", "above"),
    [
        (TASK.statements.find, ["Result"]),
        (TASK.statements.delete.change, ["ModifyTable", "Result"]),
        (TASK.statements.delete.find_outcome, ["Result"]),
        (TASK.statements.update(("title",)).change, ["ModifyTable", "Result"]),
        (TASK.statements.update(("title",)).find_outcome, ["Result"]),
        (TASK.statements.insert.find_outcome, ["Result"]),
    ],
    ids=["find", "delete", "delete-outcome", "update", "update-outcome", "insert-outcome"],
)
@pytest.mark.parametrize("user", ["light", "heavy"])
def test_task_is_read_by_its_primary_key(explain, users, user, statement, above):
    plan = explain(statement, users[user].parameters(0.5))

    assert node_types(plan) == [*above, "Index Scan"]
    *_, scan = steps(plan)
    assert scan["Index Name"] == "pk_tasks"
    assert scan["Actual Rows"] == 1
    # A statement whose conditions are all in the index has no filter.
    assert scan.get("Rows Removed by Filter", 0) == 0
    assert buffers(scan) < 10


@pytest.mark.parametrize("user", ["light", "heavy"])
@pytest.mark.parametrize("place", [0, 0.5, 0.9])
def test_page_of_changes_is_read_from_an_index(explain, users, user, place):
    """The heavy user has 1,000 tasks of each revision, so most pages end within a revision."""
    revision = round(place * 100)
    parameters = users[user].parameters(place, limit=5) | {
        "revision": revision,
        "after_id": uuid.UUID(int=2**127),
        "full_sync_start": 0,
    }

    plan = explain(changes_statement((TASK,)), parameters)

    scan = scan_of_tasks(plan)
    assert scan["Index Name"] == "ix_tasks_user_id_revision_id"
    assert "revision" in scan["Index Cond"]
    assert scan["Actual Rows"] == 6
    assert plan["Actual Rows"] == 1 + 6
    assert "Sort" not in node_types(plan)
    assert buffers(scan) < 30


@pytest.mark.parametrize("user", ["light", "heavy"])
@pytest.mark.parametrize("after", [False, True])
def test_page_of_the_trash_is_read_from_an_index(explain, users, user, after):
    parameters = users[user].parameters(0.5) | {"after_deleted_at": "2026-01-01T00:00:00Z"}

    plan = explain(trash_statement((TASK,), after=after), parameters)

    scan = scan_of_tasks(plan)
    assert scan["Index Name"] == "ix_tasks_user_id_deleted_at"
    assert ("deleted_at" in scan["Index Cond"]) is after
    assert buffers(scan) < 10
