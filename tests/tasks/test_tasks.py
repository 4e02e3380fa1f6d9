"""Create, read, change and delete tasks over HTTP, as the contract specifies."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.api import etag

NOT_FOUND = "Check the path: the resource does not exist, or it belongs to another user."

pytestmark = [pytest.mark.pooled, pytest.mark.partitioned]


def new_revision_and_time(response, task):
    """Return the fields that the server sets at every change, and check that they are later."""
    assert response.json["revision"] > task["revision"]
    assert response.json["updated_at"] > task["updated_at"]
    return {name: response.json[name] for name in ("revision", "updated_at")}


def completion_time(response):
    """Return the time of completion that the server sets with this change."""
    is_completed = response.json["completed"]
    return {"completed_at": response.json["updated_at"] if is_completed else None}


def test_new_task_has_the_sent_fields_and_the_server_fields(client, tasks_url, user_id):
    before = datetime.now(UTC)

    response = client.post(
        tasks_url, json={"title": "Buy oat milk", "description": "Two litres", "completed": True}
    )

    assert response.status_code == 201
    assert response.json == {
        "id": response.json["id"],
        "user_id": user_id,
        "title": "Buy oat milk",
        "description": "Two litres",
        "completed": True,
        "completed_at": response.json["created_at"],
        "priority": "none",
        "labels": [],
        "due_date": None,
        "due_time": None,
        "time_zone": None,
        "due_at": None,
        "start_date": None,
        "list_id": None,
        "parent_id": None,
        "position": response.json["position"],
        "metadata": {},
        "created_at": response.json["updated_at"],
        "updated_at": response.json["updated_at"],
        "revision": response.json["revision"],
    }
    assert uuid.UUID(response.json["id"]).version == 7
    assert response.json["created_at"].endswith("Z")
    assert before - timedelta(seconds=5) < datetime.fromisoformat(response.json["created_at"])
    assert response.headers["Location"] == f"{tasks_url}/{response.json['id']}"
    assert response.headers["ETag"] == etag(response.json["revision"])


def test_task_needs_only_a_title(client, tasks_url):
    response = client.post(tasks_url, json={"title": "Buy oat milk"})

    assert response.status_code == 201
    assert response.json["description"] is None
    assert response.json["completed"] is False
    assert response.json["completed_at"] is None
    assert response.json["priority"] == "none"
    assert response.json["labels"] == []
    assert response.json["metadata"] == {}


def test_location_of_a_new_task_returns_it(client, tasks_url):
    created = client.post(tasks_url, json={"title": "Buy oat milk"})

    response = client.get(created.headers["Location"])

    assert response.status_code == 200
    assert response.json == created.json
    assert response.headers["ETag"] == created.headers["ETag"]


def test_user_without_tasks_has_an_empty_list(client, tasks_url):
    response = client.get(tasks_url)

    assert response.status_code == 200
    assert response.json == []


@pytest.mark.parametrize(
    "changes",
    [
        {"completed": True},
        {"title": "Buy oats"},
        {"description": None},
        {"title": "Buy oats", "description": "One bag", "completed": True},
    ],
)
@pytest.mark.parametrize("media_type", ["application/json", "application/merge-patch+json"])
def test_patch_keeps_the_other_fields(client, task, changes, media_type):
    response = client.patch(task.url, json=changes, content_type=media_type)

    assert response.status_code == 200
    assert response.json == (
        task | changes | completion_time(response) | new_revision_and_time(response, task)
    )
    assert client.get(task.url).json == response.json


@pytest.mark.parametrize("changes", [{}, {"title": "Buy oat milk"}, {"completed": False}])
def test_patch_without_a_change_keeps_the_revision(client, task, changes):
    response = client.patch(task.url, json=changes)

    assert response.status_code == 200
    assert response.json == task


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"description": None},
        {"completed": False},
        {"description": "One bag", "completed": False},
    ],
)
def test_put_keeps_the_fields_that_it_does_not_name(client, task, changes):
    completed = client.patch(f"{task.url}/complete").json

    response = client.put(task.url, json={"title": "Buy oats"} | changes)

    assert response.status_code == 200
    cleared = {} if response.json["completed"] else {"completed_at": None}
    assert response.json == (
        completed
        | {"title": "Buy oats"}
        | changes
        | cleared
        | new_revision_and_time(response, completed)
    )
    assert client.get(task.url).json == response.json


def test_put_needs_a_title(client, task):
    response = client.put(task.url, json={"description": "One bag"})

    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == ["/title"]
    assert client.get(task.url).json == task


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_task_can_be_changed_and_sent_back_with_every_member(client, task, method):
    response = client.open(task.url, method=method, json=task | {"title": "Buy oats"})

    assert response.status_code == 200
    assert response.json == task | {"title": "Buy oats"} | new_revision_and_time(response, task)


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("name", ["created_at", "updated_at"])
@pytest.mark.parametrize("value", ["2001-01-01T00:00:00Z", "never", None, 7, {}])
def test_times_in_a_body_are_ignored(client, task, method, name, value):
    response = client.open(task.url, method=method, json={"title": "Buy oats", name: value})

    assert response.status_code == 200
    assert response.json == task | {"title": "Buy oats"} | new_revision_and_time(response, task)


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("names", [["id"], ["user_id"], ["id", "user_id"]])
def test_ids_in_a_body_must_be_those_of_the_path(client, task, method, names):
    other_ids = {name: str(uuid.uuid4()) for name in names}

    response = client.open(task.url, method=method, json=task | {"title": "Buy oats"} | other_ids)

    assert response.status_code == 422
    assert response.json["errors"] == [
        {"pointer": f"/{name}", "detail": "Must be the id in the path."} for name in names
    ]
    assert client.get(task.url).json == task


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("value", [None, 7, "", "x", "0" * 32, ["x"]])
@pytest.mark.parametrize("name", ["id", "user_id"])
def test_invalid_id_in_a_body_is_refused(client, task, method, name, value):
    response = client.open(task.url, method=method, json={"title": "Buy oats", name: value})

    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == [f"/{name}"]
    assert client.get(task.url).json == task


@pytest.mark.parametrize(
    "task_id",
    [
        "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21",
        "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
    ],
)
def test_client_may_make_the_id_of_a_task(client, tasks_url, user_id, task_id):
    response = client.post(tasks_url, json={"id": task_id, "title": "Buy oat milk"})

    assert response.status_code == 201
    assert (response.json["id"], response.json["user_id"]) == (task_id, user_id)
    assert response.headers["Location"] == f"{tasks_url}/{task_id}"
    assert client.get(response.headers["Location"]).json == response.json


def test_creation_with_an_id_can_be_sent_again(client, tasks_url):
    body = {"id": str(uuid.uuid4()), "title": " Buy oat milk ", "completed": True}
    first = client.post(tasks_url, json=body)

    repeated = client.post(tasks_url, json=body | {"description": None, "title": "Buy oat milk"})

    assert first.status_code == repeated.status_code == 201
    assert repeated.json == first.json
    for name in ("Location", "ETag"):
        assert repeated.headers[name] == first.headers[name]
    assert client.get(tasks_url).json == [first.json]


@pytest.mark.parametrize(
    "changes", [{"title": "Buy oats"}, {"description": "One bag"}, {"completed": True}]
)
def test_id_of_a_task_with_other_values_is_a_conflict(client, task, tasks_url, changes):
    body = {name: task[name] for name in ("id", "title", "description")}

    response = client.post(tasks_url, json=body | changes)

    assert response.status_code == 409
    assert response.json["type"] == "/problems/already-exists"
    assert client.get(tasks_url).json == [task]


def test_id_of_a_task_in_the_trash_is_a_conflict(client, task, tasks_url, user_id):
    body = {name: task[name] for name in ("id", "title", "description", "completed")}
    client.delete(task.url)
    trash = client.get(f"/api/{user_id}/trash").json

    response = client.post(tasks_url, json=body)

    assert response.status_code == 409
    assert response.json["type"] == "/problems/in-trash"
    assert client.get(tasks_url).json == []
    assert client.get(f"/api/{user_id}/trash").json == trash


def test_two_users_may_make_the_same_id(client, task):
    others_url = f"/api/{uuid.uuid4()}/tasks"

    response = client.post(others_url, json={"id": task["id"], "title": "Of another user"})

    assert response.status_code == 201
    assert client.get(others_url).json == [response.json]
    assert client.get(task.url).json == task


@pytest.mark.parametrize("has_same_values", [False, True])
def test_concurrent_creations_with_one_id_create_one_task(app, tasks_url, has_same_values):
    task_id = str(uuid.uuid4())

    def create(number):
        title = "Buy oat milk" if has_same_values else str(number)
        return app.test_client().post(tasks_url, json={"id": task_id, "title": title})

    with ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(create, range(8)))

    created = [response.json for response in responses if response.status_code == 201]
    assert app.test_client().get(tasks_url).json == created[:1]
    if has_same_values:
        assert created == created[:1] * 8
    else:
        assert sorted(response.status_code for response in responses) == [201] + [409] * 7


@pytest.mark.parametrize("name", ["user_id", "created_at", "updated_at", "revision"])
def test_read_only_member_of_a_post_is_refused(client, task, tasks_url, name):
    response = client.post(tasks_url, json={"title": "Buy oats", name: task[name]})

    assert response.status_code == 422
    assert response.json["errors"] == [{"pointer": f"/{name}", "detail": "Is read-only."}]
    assert client.get(tasks_url).json == [task]


def test_whole_task_in_a_post_is_refused_for_every_read_only_member(client, task, tasks_url):
    response = client.post(tasks_url, json=task)

    assert response.status_code == 422
    assert sorted(error["pointer"] for error in response.json["errors"]) == [
        "/created_at",
        "/due_at",
        "/position",
        "/revision",
        "/updated_at",
        "/user_id",
    ]
    assert {error["detail"] for error in response.json["errors"]} == {"Is read-only."}


@pytest.mark.parametrize("task_id", [None, 7, "", "x", "0" * 32, "urn:uuid:{0}"])
def test_invalid_id_in_a_post_is_refused(client, tasks_url, task_id):
    value = task_id.format(uuid.uuid4()) if isinstance(task_id, str) else task_id

    response = client.post(tasks_url, json={"id": value, "title": "Buy oats"})

    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == ["/id"]
    assert client.get(tasks_url).json == []


@pytest.mark.parametrize(
    ("body", "completed"),
    [(None, True), ({}, True), ({"completed": True}, True), ({"completed": False}, False)],
)
def test_complete_sets_completed_and_never_toggles_it(client, task, body, completed):
    first = client.patch(f"{task.url}/complete", json=body)
    second = client.patch(f"{task.url}/complete", json=body)

    assert first.status_code == second.status_code == 200
    assert first.json["completed"] is second.json["completed"] is completed
    assert second.json == first.json


def test_complete_accepts_an_empty_chunked_body(client, task):
    response = client.patch(
        f"{task.url}/complete",
        environ_overrides={"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True},
        content_type="application/json",
    )

    assert response.status_code == 200
    assert response.json["completed"] is True


def test_deleted_task_is_found_by_no_route_but_delete_and_restore(client, task, tasks_url):
    deleted = client.delete(task.url)

    assert deleted.status_code == 204
    assert deleted.data == b""
    assert client.get(tasks_url).json == []
    for response in (
        client.get(task.url),
        client.put(task.url, json={"title": "Back?"}),
        client.patch(task.url, json={"title": "Back?"}),
        client.patch(task.url, json={}),
        client.patch(f"{task.url}/complete"),
    ):
        assert response.status_code == 404
        assert response.json["detail"] == NOT_FOUND


def test_deletion_can_be_sent_again_while_the_task_is_in_the_trash(client, task, user_id):
    first = client.delete(task.url)
    trash = client.get(f"/api/{user_id}/trash").json

    repeated = client.delete(task.url)

    assert (first.status_code, repeated.status_code, repeated.data) == (204, 204, b"")
    assert client.get(f"/api/{user_id}/trash").json == trash

    client.delete(f"/api/{user_id}/trash")
    assert client.delete(task.url).status_code == 404


def test_trash_is_emptied_while_clients_delete_and_restore(app, client, tasks_url, user_id):
    """A restored task stays, and a removed one cannot be restored; no request fails."""
    finished = threading.Event()

    def write(number):
        writer, statuses, restored = app.test_client(), set(), []
        for step in range(25):
            created = writer.post(tasks_url, json={"title": f"{number} {step}"})
            url = created.headers["Location"]
            deleted = writer.delete(url)
            restore = writer.post(f"{url}/restore")
            statuses |= {created.status_code, deleted.status_code, restore.status_code}
            if restore.status_code == 200:
                restored.append(restore.json)
        return statuses, restored

    def empty_trash():
        emptier, statuses = app.test_client(), set()
        while not finished.is_set():
            statuses.add(emptier.delete(f"/api/{user_id}/trash").status_code)
        return statuses

    with ThreadPoolExecutor(5) as threads:
        emptying = threads.submit(empty_trash)
        results = [threads.submit(write, number) for number in range(4)]
        try:
            results = [result.result(timeout=60) for result in results]
        finally:
            finished.set()
        emptied = emptying.result(timeout=10)

    restored = sorted(task["id"] for _, tasks in results for task in tasks)
    assert emptied == {204}
    assert set.union(*(statuses for statuses, _ in results)) <= {200, 201, 204, 404}
    assert sorted(task["id"] for task in client.get(f"{tasks_url}?limit=200").json) == restored
    client.delete(f"/api/{user_id}/trash")
    assert client.get(f"/api/{user_id}/trash").json == []


def test_restored_task_has_its_former_values(client, task, tasks_url):
    client.delete(task.url)

    response = client.post(f"{task.url}/restore")

    assert response.status_code == 200
    assert response.json == task | new_revision_and_time(response, task)
    assert response.headers["ETag"] == etag(response.json["revision"])
    assert client.get(tasks_url).json == [response.json]


def test_task_of_another_user_is_not_found(client, task):
    url_of_other_user = f"/api/{uuid.uuid4()}/tasks/{task['id']}"

    responses = [
        client.get(url_of_other_user),
        client.put(url_of_other_user, json={"title": "Mine"}),
        client.patch(url_of_other_user, json={"title": "Mine"}),
        client.patch(f"{url_of_other_user}/complete"),
        client.delete(url_of_other_user),
        client.post(f"{url_of_other_user}/restore"),
    ]

    assert {response.status_code for response in responses} == {404}
    assert client.get(task.url).json == task


def test_task_id_may_be_in_upper_case(client, task):
    assert client.get(task.url.replace(task["id"], task["id"].upper())).json == task


def test_reads_and_failed_writes_create_no_user(client, tasks_url, user_id, connection):
    client.get(tasks_url)
    client.get(f"{tasks_url}/{uuid.uuid4()}")
    client.delete(f"{tasks_url}/{uuid.uuid4()}")
    client.patch(f"{tasks_url}/{uuid.uuid4()}/complete")
    client.post(tasks_url, json={"title": ""})

    assert connection.execute("SELECT 1 FROM users WHERE id = %s", (user_id,)).fetchall() == []


def test_cached_responses_must_be_revalidated(client, task, tasks_url):
    for response in (client.get(task.url), client.get(tasks_url)):
        assert response.headers["Cache-Control"] == "private, no-cache"
        assert "Authorization" in response.headers["Vary"]
