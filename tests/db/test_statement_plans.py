"""Query plans of every statement, as the application runs it, for a user with 10,000 tasks.

`test_plans.py` has the costs of pages among more than a million tasks.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.plans import explain_statement, steps
from tests.support.postgresql import migrate
from tests.support.samples import sample_row
from tests.support.statements import WITHOUT_OWNER, named_statements, statements
from todo_api.app import RESOURCES
from todo_api.lists.fields import LIST
from todo_api.resources.changes import changes_statement
from todo_api.resources.items import new_values
from todo_api.resources.pages import list_statement
from todo_api.resources.statements import ConditionalChange
from todo_api.resources.time_zones import Day
from todo_api.tasks import labels
from todo_api.tasks.fields import TASK

if TYPE_CHECKING:
    from todo_api.db.statement import Statement

USER = uuid.UUID(int=1)
TASKS = 10_000  # of USER; 3,333 other users have 27 tasks each
LIMIT = 50
INSERT_TASKS = """
    INSERT INTO tasks (user_id, id, title, completed, priority, labels, label_keys, due_date,
                       due_time, start_date, metadata, due_sort, position, created_at, updated_at,
                       revision)
    SELECT CASE WHEN number % 10 = 0 THEN '00000000-0000-0000-0000-000000000001'
                ELSE md5((number % 3333)::text)::uuid END,
           md5(number::text)::uuid, 'Task ' || md5(number::text), number % 30 = 0,
           (ARRAY['none', 'low', 'medium', 'high'])[number % 4 + 1],
           ARRAY['errand', 'label ' || number / 10 % 30],
           ARRAY['errand', 'label ' || number / 10 % 30],
           due_date, due_time, CASE WHEN number % 7 = 0 THEN date '2019-01-01' + number % 365 END,
           jsonb_build_object('number', number::text),
           coalesce(due_date + coalesce(due_time, '23:59:59.999999'), '9999-12-31'),
           order_key_of(timestamptz '2026-01-01' + make_interval(secs => number)),
           timestamptz '2026-01-01' + make_interval(secs => number), clock_timestamp(), number
    FROM (SELECT number,
                 CASE WHEN number % 50 > 0 THEN
                     date '2026-01-01' + number / 10 % 700 END AS due_date,
                 CASE WHEN number % 50 > 10 THEN time '09:30' END AS due_time
          FROM generate_series(1, 100000) AS number) AS numbers
"""
# Of the tasks of USER, 100 have 10 subtasks each.
PLACE_SUBTASKS = """
    UPDATE tasks SET parent_id = md5((revision / 1000 * 1000 + 10)::text)::uuid
    WHERE revision % 100 = 0
"""
PARENT = uuid.UUID(hashlib.md5(b"5010", usedforsecurity=False).hexdigest())
SUBTASKS = 10
INSERT_LISTS = """
    INSERT INTO lists (user_id, id, name, position, created_at, updated_at, revision)
    SELECT CASE WHEN number % 50 = 0 THEN '00000000-0000-0000-0000-000000000001'
                ELSE md5((number % 3333)::text)::uuid END,
           md5(number::text)::uuid, 'List ' || md5(number::text),
           order_key_of(timestamptz '2026-01-01' + make_interval(secs => number)),
           timestamptz '2026-01-01' + make_interval(secs => number), clock_timestamp(), number
    FROM generate_series(1, 20000) AS number
"""
INSERT_OTHERS = """
    INSERT INTO users (id, revision) SELECT user_id, max(revision) FROM tasks GROUP BY user_id;
    INSERT INTO idempotency_keys (user_id, key, fingerprint, status, headers, body, revision)
    SELECT id, 'a key', decode(md5('') || md5(''), 'hex'), 201, '{}', '{}', revision FROM users
"""


@pytest.fixture(scope="module")
def connection(new_database):
    url = new_database("statement_plans")
    migrate(url)
    with psycopg.connect(url, autocommit=True) as superuser:
        superuser.execute("SET session_replication_role = replica")
        superuser.execute(INSERT_TASKS)
        superuser.execute(PLACE_SUBTASKS)
        superuser.execute(INSERT_LISTS)
        superuser.execute("UPDATE tasks SET deleted_at = clock_timestamp() WHERE title > 'Task fd'")
        superuser.execute(INSERT_OTHERS)
        superuser.execute("RESET session_replication_role")
        superuser.execute("VACUUM ANALYZE")
        yield superuser


@pytest.fixture(scope="module")
def values(connection) -> dict[str, Any]:
    """Values of all parameters: of a task in the middle, and of filters that some tasks pass."""
    task_id, created_at, due_sort, position, revision, title = connection.execute(
        "SELECT id, created_at, due_sort, position, revision, title FROM tasks"
        " WHERE user_id = %s AND deleted_at IS NULL AND completed AND due_time IS NOT NULL"
        " ORDER BY due_sort, id OFFSET 800 LIMIT 1",
        (USER,),
    ).fetchone()
    row = sample_row(TASK, 4)
    members = {name: TASK.stored_fields[name].deserialize(row[name]) for name in row}
    list_row = sample_row(LIST, 4)
    list_members = {name: LIST.stored_fields[name].deserialize(list_row[name]) for name in list_row}
    stored = {f"stored_{name}": None for column in TASK.computed for name in column.sources}
    moment = datetime(2026, 11, 21, 12, tzinfo=UTC)
    return {
        "owner": USER,
        "id": task_id,
        "attempt": uuid.uuid4(),
        "elapsed": None,
        "match": None,
        "none_match": [],
        "client_revisions": [],
        "rows": LIMIT + 1,
        "after_id": task_id,
        "after_label": "label 15",
        "after_deleted_at": moment,
        "revision": revision,
        "full_sync_start": 0,
        "time_zone": "Europe/Berlin",
        "key": "a",
        "fingerprint": bytes(32),
        "status": 201,
        "location": "/",
        "label": "errand",
        "label_key": "errand",
        "to_label": "shop",
        "to_key": "shop",
        "side": None,
        "anchor": None,
        "list_is_sent": False,
        "parent_is_sent": False,
        "new_list_id": None,
        "new_parent_id": None,
        **stored,
        **new_values(TASK, members),
        **new_values(LIST, list_members),
        **Day(moment, "Europe/Berlin").parameters(),
        "expected_zone": None,
        "filters": {
            "completed": True,
            "priority": ["high"],
            "label": ["errand", "label 7"],
            "label_any": ["label 7", "label 8"],
            "due": ["today", "overdue"],
            "started": True,
            "archived": True,
            "list_id": [uuid.UUID(int=0)],
            "parent_id": [uuid.UUID(int=0)],
            "q": "%ab%",
            **dict.fromkeys(("due_after", "due_before"), date(2026, 11, 21)),
            **{
                f"{member}_{end}": created_at
                for member in ("created", "updated", "completed")
                for end in ("after", "before")
            },
        },
        "singles": {"list_id": uuid.UUID(int=0), "parent_id": PARENT},
        # The value at which a page begins, by sort key.
        "positions": {
            **dict.fromkeys(("created_at", "updated_at", "completed_at"), created_at),
            "due": due_sort,
            "title": title,
            "name": "Groceries",
            "position": position,
            "priority": 1,
        },
    }


# The entries of `values` that have values of several parameters.
GROUPS = ("filters", "singles", "positions")


@pytest.fixture(scope="module")
def explain(connection, values):
    """Return a function that runs a statement as the application does, and returns its plan."""

    def run(statement: Statement, name: str = "", **changes: Any) -> dict[str, Any]:
        arguments = {name: values[name] for name in values if name not in GROUPS}
        if name.startswith(("list ", "count ")):
            arguments |= values["filters"]
            for single in re.findall(r"'(\w+)='", name):
                arguments[single] = values["singles"][single]
            sort = name.split(" ")[-2].removeprefix("-")
            arguments["after_value"] = values["positions"].get(sort)
        return explain_statement(connection, statement, arguments | changes)

    return run


@pytest.fixture
def vacuumed(connection):
    """Remove the rows of changes that other tests have rolled back."""
    connection.execute("VACUUM tasks, lists")


def scans_of(plan: dict[str, Any], *tables: str) -> list[dict[str, Any]]:
    """Return the nodes that read one of the tables."""
    return [
        step
        for step in steps(plan)
        if step.get("Relation Name") in tables and "Scan" in step["Node Type"]
    ]


def scans_of_tasks(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the nodes that read the table of tasks."""
    return scans_of(plan, "tasks")


def rows_read(scan: dict[str, Any]) -> int:
    """Return how many rows the node has read, also those that its filter removed."""
    rows = scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0)
    return round(rows * scan["Actual Loops"])


def all_statements() -> list[Any]:
    """Return all statements, but of those with a single filter only the newest pages."""
    return [
        pytest.param(name, statement, id=name)
        for name, statement in statements()
        if statement not in WITHOUT_OWNER
        and not re.fullmatch(r"list \w+ \('\w+=?',\) (?!-created_at ).*", name)
    ]


def test_user_has_ten_thousand_tasks_among_others(connection):
    counts = connection.execute(
        "SELECT count(*) FILTER (WHERE user_id = %(user)s), count(DISTINCT user_id),"
        " count(*) FILTER (WHERE user_id = %(user)s AND deleted_at IS NOT NULL) > 50,"
        " count(*) FILTER (WHERE user_id = %(user)s AND due_date IS NOT NULL) > 7000 FROM tasks",
        {"user": USER},
    ).fetchone()

    assert counts == (TASKS, 3_334, True, True)


def test_values_have_every_filter_and_sort_key(values):
    filters = {name for resource in RESOURCES for name in resource.filters}
    sort_keys = {name for resource in RESOURCES for name in resource.sort_keys}

    assert filters == set(values["filters"]), "Add it to `values` in this file."
    assert sort_keys == set(values["positions"]), "Add it to `values` in this file."


@pytest.mark.parametrize(("name", "statement"), all_statements())
def test_statement_reads_only_the_owners_rows_by_an_index(explain, name, statement):
    plan = explain(statement, name)

    for step in steps(plan):
        if step["Node Type"] == "Seq Scan":
            assert step["Relation Name"] == "database_state", name
        if "Index Cond" in step:
            column = "id" if step.get("Relation Name") == "users" else "user_id"
            assert re.match(rf"\(*{column} = ", step["Index Cond"]), (name, step["Index Cond"])
    for scan in scans_of_tasks(plan):
        assert rows_read(scan) <= TASKS, name


def node_types(plan: dict[str, Any]) -> set[str]:
    return {step["Node Type"] for step in steps(plan)}


def buffers(plan: dict[str, Any]) -> int:
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


# Without the locks and changes of the tasks below it, which read the index of `parent_id`.
ON_ONE_TASK = [
    *(
        (
            name,
            value._replace(locks=(), follow_ups=())
            if isinstance(value, ConditionalChange)
            else value,
        )
        for name, value in vars(TASK.statements).items()
    ),
    *(
        (
            f"update_{'_'.join(names)}",
            TASK.statements.update(names)._replace(locks=(), follow_ups=()),
        )
        for names in (*((name,) for name in TASK.writable_names), TASK.writable_names)
    ),
    ("add_label", labels.ADD),
    ("remove_label", labels.REMOVE),
]

ON_SEVERAL_TASKS = (
    *("task.lock_all", "task.lock_trash", "task.empty_trash", "task.renumber"),
    "task.count_of_attempt",  # runs only if the connection was lost during a rename
)


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        pytest.param(name, statement, id=name)
        for name, statement in named_statements("task", dict(ON_ONE_TASK))
        if name not in ON_SEVERAL_TASKS and not name.startswith("task._")
    ],
)
def test_one_task_is_read_and_changed_by_its_primary_key(explain, name, statement):
    plan = explain(statement, name)

    for scan in scans_of_tasks(plan):
        assert scan["Node Type"] in ("Index Scan", "Index Only Scan")
        assert scan["Index Name"] == "pk_tasks"
        assert re.search(r"\(user_id = .* AND \(id = ", scan["Index Cond"])
        assert rows_read(scan) <= 1


INDEXED_LISTS = [
    ((), "created_at"),
    (("completed",), "created_at"),
    (("completed",), "due"),
    (("list_id=",), "position"),
]
INDEX_COLUMNS = {
    (("list_id=",), "position"): "place_position_id",
    ((), "created_at"): "created_at_id",
    (("completed",), "created_at"): "completed_created_at_id",
    (("completed",), "due"): "completed_due_sort_id",
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("prefix", ["", "-"])
@pytest.mark.parametrize(("filters", "sort"), INDEXED_LISTS)
def test_page_reads_its_rows_in_the_order_of_an_index(explain, filters, sort, prefix, after):
    statement = list_statement(TASK, filters, prefix + sort, after=after)

    plan = explain(statement, f"list {filters} {sort} {after}")

    assert node_types(plan) <= {
        *("Append", "CTE Scan", "Subquery Scan", "Limit", "Result", "Index Scan"),
    }
    (scan,) = scans_of_tasks(plan)
    assert scan["Index Name"] == f"ix_tasks_user_id_{INDEX_COLUMNS[filters, sort]}"
    assert rows_read(scan) == LIMIT + 1
    assert plan["Actual Rows"] == 1 + LIMIT + 1


@pytest.mark.parametrize("prefix", ["", "-"])
@pytest.mark.parametrize(("filters", "sort"), INDEXED_LISTS)
@pytest.mark.usefixtures("vacuumed")
def test_deep_page_costs_as_much_as_the_first_page(connection, explain, filters, sort, prefix):
    key = TASK.sort_keys[sort].expression.name
    condition = "AND completed" if "completed" in filters else ""
    position, task_id = connection.execute(
        f"SELECT {key}, id FROM tasks WHERE user_id = %s AND deleted_at IS NULL {condition}"
        f" ORDER BY {key}, id OFFSET %s LIMIT 1",
        (USER, 2_500 if condition else 9_000),
    ).fetchone()
    first, deep = (
        list_statement(TASK, filters, prefix + sort, after=after) for after in (False, True)
    )

    first_plan = explain(first, f"list {filters} {sort} False")
    deep_plan = explain(deep, f"list {filters} {sort} True", after_value=position, after_id=task_id)

    assert first_plan["Actual Rows"] == deep_plan["Actual Rows"] == 1 + LIMIT + 1
    assert buffers(deep_plan) <= 1.5 * buffers(first_plan)


@pytest.mark.parametrize("sort", ["position", "-position", "-created_at"])
def test_page_of_subtasks_reads_only_these(explain, sort):
    plan = explain(list_statement(TASK, ("parent_id=",), sort), f"list 'parent_id=' {sort} False")

    (scan,) = scans_of_tasks(plan)
    indexes = {step["Index Name"] for step in steps(plan) if "Index Name" in step}
    assert "ix_tasks_user_id_parent_id" in indexes
    assert rows_read(scan) <= SUBTASKS
    assert plan["Actual Rows"] > 1


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        pytest.param(name, statement, id=name)
        for name, statement in statements()
        if "client_revisions" in statement.names
    ],
)
def test_polling_of_an_unchanged_list_reads_no_task(connection, explain, name, statement):
    (revision,) = connection.execute("SELECT revision FROM users WHERE id = %s", (USER,)).fetchone()

    plan = explain(statement, name, client_revisions=[revision])

    scans = scans_of(plan, "tasks", "lists")
    assert scans
    assert all(scan["Actual Loops"] == 0 for scan in scans), name
    assert buffers(plan) < 10


@pytest.mark.parametrize("place", [0, 50_000, 90_000])
def test_page_of_changes_reads_its_rows_in_the_order_of_an_index(explain, place):
    plan = explain(changes_statement(RESOURCES), revision=place)

    (scan,) = scans_of_tasks(plan)
    assert (scan["Node Type"], scan["Index Name"]) == (
        "Index Scan",
        "ix_tasks_user_id_revision_id",
    )
    assert "Sort" not in node_types(plan)
    scans = [scan, *scans_of(plan, "lists")]
    assert all(rows_read(each) <= LIMIT + 1 for each in scans)
    assert sum(rows_read(each) for each in scans) >= LIMIT + 1


@pytest.mark.usefixtures("vacuumed")
def test_sync_without_news_reads_no_task(connection, explain):
    (revision,) = connection.execute("SELECT revision FROM users WHERE id = %s", (USER,)).fetchone()

    plan = explain(
        changes_statement(RESOURCES), revision=revision, after_id=uuid.UUID(int=2**128 - 1)
    )

    assert [rows_read(scan) for scan in scans_of_tasks(plan)] == [0]
    assert buffers(plan) < 20
