"""Quotas: a request that would exceed a limit changes nothing, and the counters are exact."""

from __future__ import annotations

import random
import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.support.api import etag
from tests.support.postgresql import backdate_deletion, migrate
from todo_api.commands.purge import purge
from todo_api.commands.renewal import renew_revisions

SEED = 15
STEPS = 2_000
TABLES = ["tasks", "lists"]
LIMITS = ["tasks", "tasks_with_trash", "lists", "lists_with_trash", "bytes"]
COUNT_LISTS = 500
COUNT_CHILDREN = 500
REQUEST_RENEWAL = """
    UPDATE database_state SET renewal_position = '00000000-0000-0000-0000-000000000000'
"""
READ_COUNTERS = "SELECT tasks, trashed_tasks, lists, trashed_lists, bytes FROM users WHERE id = %s"
COUNT_ROWS = """
    SELECT
        count(*) FILTER (WHERE kind = 'task' AND deleted_at IS NULL),
        count(*) FILTER (WHERE kind = 'task' AND deleted_at IS NOT NULL),
        count(*) FILTER (WHERE kind = 'list' AND deleted_at IS NULL),
        count(*) FILTER (WHERE kind = 'list' AND deleted_at IS NOT NULL),
        coalesce(sum(octet_length(json)), 0)
    FROM (
        SELECT 'task' AS kind, deleted_at, json FROM tasks WHERE user_id = %(id)s
        UNION ALL
        SELECT 'list', deleted_at, json FROM lists WHERE user_id = %(id)s
    ) AS owned
"""
READ_ROWS = """
    SELECT to_jsonb(users) FROM users WHERE id = %(id)s
    UNION ALL SELECT to_jsonb(tasks) FROM tasks WHERE user_id = %(id)s
    UNION ALL SELECT to_jsonb(lists) FROM lists WHERE user_id = %(id)s
    ORDER BY 1
"""


@pytest.fixture
def url(user_id):
    return f"/api/{user_id}"


@pytest.fixture
def read_rows(connection, user_id):
    """Return a function that reads all rows of the user."""
    return lambda: connection.execute(READ_ROWS, {"id": user_id}).fetchall()


@pytest.fixture
def assert_counted(connection, user_id):
    """Return a function that checks that the counters equal the numbers of the rows."""

    def check() -> None:
        stored = connection.execute(READ_COUNTERS, (user_id,)).fetchone()
        counted = connection.execute(COUNT_ROWS, {"id": user_id}).fetchone()
        assert (stored or (0, 0, 0, 0, 0)) == counted

    return check


def create(client, url, **values):
    response = client.post(url, json=values)
    assert response.status_code == 201, response.text
    return response.json


def create_many(connection, user_id, statement):
    """Insert rows by hand, without a limit, and count them."""
    with connection.transaction():
        connection.execute("SELECT set_config('todo.user_id', %s, true)", (user_id,))
        connection.execute(statement, {"user_id": user_id})


def assert_quota(response, limit, used):
    """Check the whole body of a 409."""
    assert response.status_code == 409, response.text
    assert response.json == {
        "type": "/problems/quota",
        "title": "Conflict",
        "status": 409,
        "detail": "Delete something first: the limit is reached.",
        "instance": response.headers["X-Request-Id"],
        "limit": limit,
        "used": used,
    }


def used(client, url):
    limits = client.get(url).json["limits"]
    return {name: limit["used"] for name, limit in limits.items()}


def test_user_shows_limits_and_use(make_app, url, user_id, connection):
    client = make_app(MAX_TASKS="7", MAX_BYTES="5000").test_client()
    never_seen = client.get(url).json
    in_list = create(client, f"{url}/lists", name="Groceries")
    create(client, f"{url}/tasks", title="Buy oat milk", list_id=in_list["id"])
    deleted = create(client, f"{url}/tasks", title="Bake")
    assert client.delete(f"{url}/tasks/{deleted['id']}").status_code == 204

    limits = client.get(url).json["limits"]

    (counted,) = connection.execute(COUNT_ROWS, {"id": user_id})
    expected = {
        "tasks": {"limit": 7, "used": 1},
        "tasks_with_trash": {"limit": 14, "used": 2},
        "lists": {"limit": 500, "used": 1},
        "lists_with_trash": {"limit": 1000, "used": 1},
        "bytes": {"limit": 5000, "used": counted[-1]},
    }
    assert limits == expected
    assert counted[-1] > 0
    assert never_seen == {
        "user_id": user_id,
        "revision": 0,
        "created_at": None,
        "time_zone": "UTC",
        "limits": {name: limit | {"used": 0} for name, limit in expected.items()},
    }


def test_task_beyond_the_limit_changes_nothing(make_app, url, read_rows, assert_counted):
    client = make_app(MAX_TASKS="3").test_client()
    for _ in range(3):
        create(client, f"{url}/tasks", title="Bake")
    before = read_rows()

    plain = client.post(f"{url}/tasks", json={"title": "One more"})
    with_id = client.post(f"{url}/tasks", json={"title": "One more", "id": str(uuid.uuid4())})
    with_key = client.post(
        f"{url}/tasks", json={"title": "One more"}, headers={"Idempotency-Key": "one-more"}
    )

    for response in (plain, with_id, with_key):
        assert_quota(response, 3, 3)
    assert read_rows() == before
    assert_counted()


def test_refused_task_can_be_created_with_the_same_key_when_there_is_room(make_app, url):
    client = make_app(MAX_TASKS="1").test_client()
    first = create(client, f"{url}/tasks", title="First")
    request = {"json": {"title": "Second"}, "headers": {"Idempotency-Key": "second"}}
    assert_quota(client.post(f"{url}/tasks", **request), 1, 1)
    assert client.delete(f"{url}/tasks/{first['id']}").status_code == 204

    response = client.post(f"{url}/tasks", **request)

    assert response.status_code == 201
    assert "Idempotent-Replayed" not in response.headers


def test_repeated_creation_at_the_limit_is_a_success(make_app, url):
    client = make_app(MAX_TASKS="1").test_client()
    body = {"title": "Bake", "id": str(uuid.uuid4())}
    first = client.post(f"{url}/tasks", json=body)

    second = client.post(f"{url}/tasks", json=body)

    assert (second.status_code, second.json) == (201, first.json)


def test_tasks_with_the_trash_have_twice_the_limit(make_app, url, read_rows, assert_counted):
    client = make_app(MAX_TASKS="2").test_client()
    for _ in range(3):
        task = create(client, f"{url}/tasks", title="Bake")
        assert client.delete(f"{url}/tasks/{task['id']}").status_code == 204
    create(client, f"{url}/tasks", title="The fourth")
    before = read_rows()

    refused = client.post(f"{url}/tasks", json={"title": "The fifth"})

    assert_quota(refused, 4, 4)
    assert read_rows() == before
    assert client.delete(f"{url}/trash").status_code == 204
    create(client, f"{url}/tasks", title="The fifth")
    assert_counted()


def test_restore_beyond_the_limit_changes_nothing(make_app, url, read_rows, assert_counted):
    client = make_app(MAX_TASKS="2").test_client()
    parent = create(client, f"{url}/tasks", title="Parent")
    create(client, f"{url}/tasks", title="Child", parent_id=parent["id"])
    task_url = f"{url}/tasks/{parent['id']}"
    assert client.delete(task_url).status_code == 204
    create(client, f"{url}/tasks", title="Another")
    before = read_rows()

    response = client.post(f"{task_url}/restore")

    assert_quota(response, 2, 2)
    assert read_rows() == before
    assert_counted()


def test_restore_of_a_list_beyond_the_limit_changes_nothing(
    make_app, url, read_rows, assert_counted
):
    client = make_app(MAX_TASKS="3").test_client()
    in_list = create(client, f"{url}/lists", name="Groceries")["id"]
    for _ in range(2):
        create(client, f"{url}/tasks", title="Bake", list_id=in_list)
    assert client.delete(f"{url}/lists/{in_list}").json == {"tasks": 2}
    for _ in range(2):
        create(client, f"{url}/tasks", title="Another")
    before = read_rows()

    response = client.post(f"{url}/lists/{in_list}/restore")

    assert_quota(response, 3, 2)
    assert read_rows() == before
    assert_counted()


def test_bytes_beyond_the_limit_change_nothing(make_app, url, read_rows, assert_counted):
    limit = 3000
    client = make_app(MAX_BYTES=str(limit)).test_client()
    task = create(client, f"{url}/tasks", title="Bake", description="x" * 1500)
    in_list = create(client, f"{url}/lists", name="Groceries")
    before, in_use = read_rows(), used(client, url)["bytes"]
    large = {"description": "x" * (limit - 200)}

    responses = [
        client.post(f"{url}/tasks", json={"title": "Bake"} | large),
        client.patch(f"{url}/tasks/{task['id']}", json=large),
        client.put(f"{url}/tasks/{task['id']}", json={"title": "Bake"} | large),
        client.post(f"{url}/lists", json={"name": "List", "metadata": metadata_of(1500)}),
        client.patch(f"{url}/lists/{in_list['id']}", json={"metadata": metadata_of(1500)}),
    ]

    for response in responses:
        assert_quota(response, limit, in_use)
    assert read_rows() == before
    assert_counted()


def metadata_of(size):
    return {f"key {number}": "x" * 150 for number in range(size // 150)}


def test_bytes_up_to_the_limit_are_accepted(make_app, url):
    """The counter grows by one byte for each character, so the last byte fits, and no more."""
    app = make_app(MAX_BYTES="2000")
    client = app.test_client()
    task = create(client, f"{url}/tasks", title="Bake", description="x")
    task_url, room = f"{url}/tasks/{task['id']}", 2000 - used(client, url)["bytes"]

    exact = client.patch(task_url, json={"description": "x" * (room + 1)})
    one_more = client.patch(task_url, json={"description": "x" * (room + 2)})

    assert exact.status_code == 200
    assert used(client, url)["bytes"] == 2000
    assert_quota(one_more, 2000, 2000)


def test_list_beyond_500_changes_nothing(
    client, url, user_id, connection, read_rows, assert_counted
):
    create(client, f"{url}/lists", name="First")
    create_many(
        connection,
        user_id,
        "INSERT INTO lists (user_id, id, name)"
        f" SELECT %(user_id)s, gen_random_uuid(), 'L' FROM generate_series(1, {COUNT_LISTS - 2})",
    )
    last = create(client, f"{url}/lists", name="Last")
    before = read_rows()

    refused = client.post(f"{url}/lists", json={"name": "One more"})

    assert_quota(refused, COUNT_LISTS, COUNT_LISTS)
    assert read_rows() == before
    assert_counted()
    assert client.delete(f"{url}/lists/{last['id']}").json == {"tasks": 0}
    create(client, f"{url}/lists", name="Instead")
    assert_quota(client.post(f"{url}/lists/{last['id']}/restore"), COUNT_LISTS, COUNT_LISTS)
    assert_counted()


def test_subtask_beyond_500_changes_nothing(
    client, url, user_id, connection, read_rows, assert_counted
):
    parent = create(client, f"{url}/tasks", title="Parent")["id"]
    child = create(client, f"{url}/tasks", title="Child", parent_id=parent)
    create_many(
        connection,
        user_id,
        "INSERT INTO tasks (user_id, id, title, parent_id)"
        f" SELECT %(user_id)s, gen_random_uuid(), 'Child', '{parent}'"
        f" FROM generate_series(1, {COUNT_CHILDREN - 1})",
    )
    other = create(client, f"{url}/tasks", title="Other")["id"]
    before = read_rows()

    responses = [
        client.post(f"{url}/tasks", json={"title": "One more", "parent_id": parent}),
        client.patch(f"{url}/tasks/{other}", json={"parent_id": parent}),
        client.post(f"{url}/tasks/{other}/move", json={"parent_id": parent}),
    ]

    for response in responses:
        assert_quota(response, COUNT_CHILDREN, COUNT_CHILDREN)
    assert read_rows() == before
    assert client.delete(f"{url}/tasks/{child['id']}").status_code == 204
    assert client.post(f"{url}/tasks/{other}/move", json={"parent_id": parent}).status_code == 200
    # A restored task has no parent if its parent has no room for it.
    restored = client.post(f"{url}/tasks/{child['id']}/restore")
    assert (restored.status_code, restored.json["parent_id"]) == (200, None)
    assert_counted()


def test_children_can_change_when_there_are_500(client, url, user_id, connection):
    parent = create(client, f"{url}/tasks", title="Parent")["id"]
    child = create(client, f"{url}/tasks", title="Child", parent_id=parent)
    create_many(
        connection,
        user_id,
        "INSERT INTO tasks (user_id, id, title, parent_id)"
        f" SELECT %(user_id)s, gen_random_uuid(), 'Child', '{parent}'"
        f" FROM generate_series(1, {COUNT_CHILDREN - 1})",
    )
    child_url = f"{url}/tasks/{child['id']}"

    statuses = [
        client.patch(child_url, json={"title": "Other", "parent_id": parent}).status_code,
        client.post(f"{child_url}/move", json={"after": None}).status_code,
        client.patch(child_url, json={"parent_id": None}).status_code,
    ]

    assert statuses == [200, 200, 200]


@pytest.fixture
def beyond(shared_app, url):
    """A client whose user exceeds the limits, and the ids of the user's tasks and lists."""
    rich = shared_app().test_client()
    in_list = create(rich, f"{url}/lists", name="Groceries")["id"]
    parent = create(rich, f"{url}/tasks", title="Parent", list_id=in_list, description="Long")
    child = create(rich, f"{url}/tasks", title="Child", parent_id=parent["id"])
    for _ in range(3):
        deleted = create(rich, f"{url}/tasks", title="Deleted")
        assert rich.delete(f"{url}/tasks/{deleted['id']}").status_code == 204
    poor = shared_app(MAX_TASKS="1", MAX_BYTES="100").test_client()
    return poor, {"list": in_list, "parent": parent["id"], "child": child["id"]}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PATCH", "/tasks/{parent}", {"description": None}, 200),
        ("PATCH", "/tasks/{parent}", {"title": "P"}, 200),
        ("PATCH", "/tasks/{child}", {"title": "Chill"}, 200),
        ("PATCH", "/tasks/{child}", {"parent_id": None}, 200),
        ("POST", "/tasks/{parent}/move", {"list_id": None}, 200),
        ("PATCH", "/lists/{list}", {"name": "G"}, 200),
        ("DELETE", "/tasks/{child}", None, 204),
        ("DELETE", "/tasks/{parent}", None, 204),
        ("DELETE", "/lists/{list}", None, 200),
        ("DELETE", "/lists/{list}?tasks=inbox", None, 200),
        ("DELETE", "/trash", None, 204),
        ("DELETE", "", None, 204),
    ],
)
def test_request_that_makes_a_number_smaller_is_accepted_beyond_the_limits(
    beyond, url, assert_counted, method, path, body, status
):
    client, ids = beyond

    response = client.open(url + path.format(**ids), method=method, json=body)

    assert response.status_code == status, response.text
    assert_counted()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/tasks", {"title": "Bake"}),
        ("PATCH", "/tasks/{parent}", {"title": "A longer title than before"}),
        ("PATCH", "/tasks/{child}/complete", None),
        ("POST", "/lists", {"name": "Errands"}),
    ],
)
def test_request_that_makes_a_number_larger_is_refused_beyond_the_limits(
    beyond, url, read_rows, method, path, body
):
    client, ids = beyond
    before = read_rows()

    response = client.open(url + path.format(**ids), method=method, json=body)

    assert (response.status_code, response.json["type"]) == (409, "/problems/quota")
    assert response.json["used"] > response.json["limit"] > 0
    assert read_rows() == before


def test_of_100_simultaneous_clients_exactly_those_with_room_succeed(
    make_app, url, connection, user_id, assert_counted
):
    """50 places are left. A busy server may respond with 503; the request is then sent again."""
    app = make_app(MAX_TASKS="60", WEB_THREADS="16")
    for _ in range(10):
        create(app.test_client(), f"{url}/tasks", title="Before")

    def create_one(number):
        client, body = app.test_client(), {"title": f"{number}", "id": str(uuid.uuid4())}
        for _ in range(200):
            response = client.post(f"{url}/tasks", json=body)
            if response.status_code != 503:
                return response
        return response

    with ThreadPoolExecutor(100) as threads:
        responses = list(threads.map(create_one, range(100)))

    refused = [response for response in responses if response.status_code != 201]
    assert len(refused) == 50
    for response in refused:
        assert_quota(response, 60, 60)
    assert connection.execute(READ_COUNTERS, (user_id,)).fetchone()[0] == 60
    assert_counted()


def test_counters_equal_the_rows_after_each_of_many_random_requests(
    client, url, user_id, connection, database_url, assert_counted, count
):
    choose = random.Random(SEED)
    successes = set()
    copy = Copy()

    for _ in range(count(STEPS, 300)):
        action = choose.choice(ACTIONS)
        if action == "purge":
            purge_trash(connection, database_url, user_id)
        else:
            method, path, body = copy.request(action, choose)
            response = client.open(url + path, method=method, json=body)
            assert response.status_code < 500, (method, path, body, response.text)
            if response.status_code >= 300:
                continue
            if action in ("create a list", "create a task"):
                copy.ids["lists" if action == "create a list" else "tasks"].append(
                    response.json["id"]
                )
        successes.add(action)
        assert_counted()

    assert successes == set(ACTIONS)
    assert client.delete(url).status_code == 204
    assert_counted()
    assert used(client, url) == dict.fromkeys(LIMITS, 0)


class Copy:
    """The ids of the user's tasks and lists, also of purged ones, and requests on them."""

    def __init__(self) -> None:
        self.ids = {"tasks": [str(uuid.uuid4())], "lists": [str(uuid.uuid4())]}

    def request(self, action, choose):
        """Return method, path and body of a random request."""
        # The latest tasks and lists, of which some are in the trash.
        task, other = (choose.choice(self.ids["tasks"][-15:]) for _ in range(2))
        in_list = choose.choice(self.ids["lists"][-4:])
        place = choose.choice([{}, {"list_id": in_list}, {"parent_id": other}])
        text = choose.choice(["x", "Ünïcode \U0001f43b", "x" * 300])
        return {
            "create a task": ("POST", "/tasks", {"title": "Bake", "description": text} | place),
            "create a list": ("POST", "/lists", {"name": "Groceries"}),
            "patch a task": ("PATCH", f"/tasks/{task}", {"description": text} | place),
            "patch a list": ("PATCH", f"/lists/{in_list}", {"metadata": {"a": text[:9]}}),
            "complete": ("PATCH", f"/tasks/{task}/complete", {"subtasks": True}),
            "add a label": ("PUT", f"/tasks/{task}/labels/errand", None),
            "rename a label": ("POST", "/labels/rename", {"from": "errand", "to": None}),
            "move a task": ("POST", f"/tasks/{task}/move", {"after": None} | place),
            "move a list": ("POST", f"/lists/{in_list}/move", {"after": None}),
            "delete a task": ("DELETE", f"/tasks/{task}", None),
            "restore a task": ("POST", f"/tasks/{task}/restore", None),
            "delete a list": ("DELETE", f"/lists/{in_list}", None),
            "delete a list to the inbox": ("DELETE", f"/lists/{in_list}?tasks=inbox", None),
            "restore a list": ("POST", f"/lists/{in_list}/restore", None),
            "empty the trash": ("DELETE", "/trash", None),
        }[action]


# Creation and restore are more frequent, so that there is something to change.
ACTIONS = [
    *["create a task"] * 5,
    *["create a list"] * 2,
    *["restore a task", "restore a list"] * 2,
    *["patch a task", "patch a list", "complete", "add a label", "rename a label"],
    *["move a task", "move a list", "delete a task", "delete a list"],
    *["delete a list to the inbox", "empty the trash", "purge"],
]


def purge_trash(connection, database_url, user_id):
    """Purge all rows of the user's trash but one."""
    connection.execute("SET session_replication_role = replica")
    for table in TABLES:
        connection.execute(
            f"UPDATE {table} SET deleted_at = clock_timestamp() - interval '31 days'"
            f" WHERE user_id = %(id)s AND deleted_at IS NOT NULL AND id > ("
            f" SELECT min(id::text)::uuid FROM {table}"
            " WHERE user_id = %(id)s AND deleted_at IS NOT NULL)",
            {"id": user_id},
        )
    connection.execute("RESET session_replication_role")
    purge(database_url)


def test_purge_of_one_task_makes_room(make_app, url, connection, database_url, assert_counted):
    client = make_app(MAX_TASKS="1").test_client()
    for _ in range(2):
        task = create(client, f"{url}/tasks", title="Bake")
        assert client.delete(f"{url}/tasks/{task['id']}").status_code == 204
    assert_quota(client.post(f"{url}/tasks", json={"title": "Third"}), 2, 2)
    backdate_deletion(connection, task, 31)

    purge(database_url)

    assert used(client, url)["tasks_with_trash"] == 1
    create(client, f"{url}/tasks", title="Third")
    assert_counted()


def test_every_operation_that_can_exceed_a_quota_documents_the_409(client):
    """The routes that write tasks or lists, except those that only make a number smaller."""
    paths = client.get("/openapi.json").json["paths"]
    writes = {
        operation["operationId"]: operation
        for path, operations in paths.items()
        for method, operation in operations.items()
        if method in ("post", "put", "patch") and path != "/api/{user_id}"
    }

    undocumented = {name for name, each in writes.items() if "409" not in each["responses"]}

    assert undocumented == set()
    assert {"createTask", "patchList", "addLabelToTask", "restoreTask"} <= writes.keys()


@pytest.fixture
def database_before(new_database):
    """The URL of a database of the version before the quotas, with rows of three users."""
    database = new_database("quotas")
    migrate(database, "0014")
    users = [str(uuid.uuid4()) for _ in range(3)]
    with psycopg.connect(database, autocommit=True) as connection:
        for number, user_id in enumerate(users, 1):
            create_many(
                connection,
                user_id,
                "INSERT INTO tasks (user_id, id, title) SELECT %(user_id)s, gen_random_uuid(),"
                f" 'Bake' FROM generate_series(1, {4 * number})",
            )
            create_many(
                connection,
                user_id,
                "INSERT INTO lists (user_id, id, name)"
                " VALUES (%(user_id)s, gen_random_uuid(), 'Groceries')",
            )
            connection.execute(
                "UPDATE tasks SET deleted_at = clock_timestamp() WHERE id ="
                " (SELECT min(id::text)::uuid FROM tasks WHERE user_id = %s)",
                (user_id,),
            )
    return database, users


def test_migration_counts_the_rows_of_the_version_before(database_before):
    database, users = database_before

    migrate(database)

    with psycopg.connect(database, autocommit=True) as connection:
        for number, user_id in enumerate(users, 1):
            stored = connection.execute(READ_COUNTERS, (user_id,)).fetchone()
            assert stored == connection.execute(COUNT_ROWS, {"id": user_id}).fetchone()
            assert stored[:4] == (4 * number - 1, 1, 1, 0)


def test_renewal_corrects_counters_that_began_at_zero(
    make_app, url, user_id, connection, database_url, assert_counted
):
    """Between the migration and the renewal, the counters have only what has changed since."""
    client = make_app().test_client()
    tasks = [create(client, f"{url}/tasks", title="Bake") for _ in range(3)]
    connection.execute(
        "UPDATE users SET tasks = 0, trashed_tasks = 0, bytes = 0 WHERE id = %s", (user_id,)
    )
    task = tasks[0]
    headers = {"If-Match": etag(task["revision"])}
    assert client.delete(f"{url}/tasks/{task['id']}", headers=headers).status_code == 204
    before = used(client, url)
    connection.execute(REQUEST_RENEWAL)

    renew_revisions(database_url, TABLES)

    assert before == dict.fromkeys(LIMITS, 0)
    assert_counted()
