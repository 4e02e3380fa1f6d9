"""How PostgreSQL runs our statements among a million tasks: a page costs the same anywhere."""

from __future__ import annotations

import uuid
from typing import Any, NamedTuple

import psycopg
import pytest

from tests.support.plans import explain_statement, steps
from tests.support.postgresql import migrate
from todo_api.resources.pages import Position, list_statement
from todo_api.tasks.fields import TASK

pytestmark = pytest.mark.slow

# 10,000 users with 100 tasks each and one with 100,000, theirs strewn among the others' as time
# does it: a turn is one task of each and 1,000 of the one, and there are 100 turns.
HEAVY_USER = uuid.UUID(int=1)
FILL = """
    INSERT INTO tasks (user_id, id, title, completed, revision, created_at)
    SELECT CASE WHEN number % 11 = 0 THEN '00000000-0000-0000-0000-000000000001'
                ELSE md5(number::text)::uuid END,
           md5(turn || ' ' || number)::uuid, 'Task ' || number, (turn + number / 11) % 3 = 0, turn,
           timestamptz '2026-01-01' + make_interval(secs => turn * 11000 + number)
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
    with psycopg.connect(url, autocommit=True) as opened:
        fill(opened)
        yield opened


def fill(connection):
    """Make the tasks without triggers, and the indexes after them: a third of the time."""
    indexes = connection.execute(INDEXES).fetchall()
    for name, _, constraint, _ in indexes:
        connection.execute(
            f"ALTER TABLE tasks DROP CONSTRAINT {constraint}"
            if constraint
            else f"DROP INDEX {name}"
        )
    connection.execute("SET session_replication_role = replica")
    connection.execute(FILL)
    connection.execute("INSERT INTO users (id) SELECT DISTINCT user_id FROM tasks")
    connection.execute("RESET session_replication_role")
    for _, index, constraint, definition in indexes:
        connection.execute(
            f"ALTER TABLE tasks ADD CONSTRAINT {constraint} {definition}" if constraint else index
        )
    connection.execute("VACUUM ANALYZE tasks, users")


class User(NamedTuple):
    """A user, and where their open tasks are in the list, newest first."""

    id: uuid.UUID
    positions: list[Position]

    def parameters(self, place: float, limit: int = 100) -> dict[str, Any]:
        """What our statements take, at a place between the list's begin, 0, and end, 1."""
        at = self.positions[int(len(self.positions) * place)]
        return {
            "owner": self.id,
            "id": at.id,
            "new_title": "Changed",
            "match": None,
            "none_match": [],
            "rows": limit + 1,
            "completed": False,
            "known": [],
            "attempt": uuid.uuid4(),
            "elapsed": None,
            "after_value": at.value,
            "after_id": at.id,
        }


@pytest.fixture(scope="module")
def users(connection):
    """One user of the many, and the one who has 100,000 tasks."""
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
    """Run the statement as the application does, and tell how PostgreSQL did it."""
    return lambda statement, parameters: explain_statement(
        connection, statement, parameters, request.param
    )


def kinds(plan):
    return [step["Node Type"] for step in steps(plan)]


def scan_of_tasks(plan):
    """The node that reads the table, or the index of a bitmap."""
    found = [
        step
        for step in steps(plan)
        if "tasks" in step.get("Relation Name", step.get("Index Name", ""))
    ]
    return found[-1]


def buffers(plan):
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


def test_there_are_a_million_tasks(connection):
    counts = connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE of_user = 100) FROM"
        " (SELECT count(*) AS of_user FROM tasks GROUP BY user_id) AS counted"
    ).fetchone()

    assert counts == (10_001, 10_000)


@pytest.mark.parametrize(("after", "place"), [(False, 0), (True, 0), (True, 0.5), (True, 0.9)])
@pytest.mark.parametrize("completed", [False, True])
@pytest.mark.parametrize(("user", "limit"), [("light", 5), ("heavy", 100), ("heavy", 200)])
def test_a_page_is_read_off_an_index(explain, users, user, limit, completed, after, place):
    parameters = users[user].parameters(place, limit)

    plan = explain(
        list_statement(TASK, ("completed",) if completed else (), after=after), parameters
    )

    # The owner's row, by its key, and the page: "Result" looks once whether the client knows the
    # owner's revision, and whether the setting is this user, which is the policy's condition.
    assert set(kinds(plan)) <= {
        *("Append", "CTE Scan", "Subquery Scan", "Limit", "Result", "Index Scan"),
    }
    scan = scan_of_tasks(plan)
    assert "Filter" not in scan
    assert ("created_at" in scan["Index Cond"]) is after
    assert ("completed" in scan["Index Cond"]) is completed
    assert plan["Actual Rows"] == 1 + limit + 1  # the owner, the page, and one that tells of more


@pytest.mark.parametrize("completed", [False, True])
def test_a_deep_page_costs_what_the_first_does(explain, users, completed):
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
def test_a_page_with_room_for_all_of_a_users_tasks_reads_no_others(
    explain, users, completed, after
):
    plan = explain(
        list_statement(TASK, ("completed",) if completed else (), after=after),
        users["light"].parameters(0.1),
    )

    # Who knows that the user has no more than a page may take them all and sort them.
    assert not {"Seq Scan", "Index Only Scan"} & set(kinds(plan))
    scan = scan_of_tasks(plan)
    assert "user_id" in scan["Index Cond"]
    assert scan["Actual Rows"] <= 100
    assert buffers(plan) < 120


@pytest.mark.parametrize(
    ("statement", "above"),
    [
        (TASK.statements.find, ["Result"]),
        (TASK.statements.delete(conditional=True), ["ModifyTable", "Result"]),
        (TASK.statements.update(("title",), conditional=True), ["ModifyTable", "Result"]),
    ],
    ids=["find", "delete", "update"],
)
@pytest.mark.parametrize("user", ["light", "heavy"])
def test_one_task_is_found_by_its_key(explain, users, user, statement, above):
    plan = explain(statement, users[user].parameters(0.5))

    assert kinds(plan) == [*above, "Index Scan"]
    *_, scan = steps(plan)
    assert scan["Index Name"] == "pk_tasks"
    assert scan["Actual Rows"] == 1
    assert scan["Rows Removed by Filter"] == 0
    assert buffers(scan) < 10
