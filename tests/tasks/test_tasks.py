"""Create, read, change and delete tasks over HTTP, as the contract specifies."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.api import etag

pytestmark = [pytest.mark.pooled, pytest.mark.divided]


def new_revision_and_time(response, task):
    """Return the fields that the server sets at every change, and check that they are later."""
    assert response.json["revision"] > task["revision"]
    assert response.json["updated_at"] > task["updated_at"]
    return {name: response.json[name] for name in ("revision", "updated_at")}


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
        "created_at": response.json["updated_at"],
        "updated_at": response.json["updated_at"],
        "revision": 1,
    }
    assert uuid.UUID(response.json["id"]).version == 7
    assert response.json["created_at"].endswith("Z")
    assert before - timedelta(seconds=5) < datetime.fromisoformat(response.json["created_at"])
    assert response.headers["Location"] == f"{tasks_url}/{response.json['id']}"
    assert response.headers["ETag"] == etag(1)


def test_task_needs_only_a_title(client, tasks_url):
    response = client.post(tasks_url, json={"title": "Buy oat milk"})

    assert response.status_code == 201
    assert response.json["description"] is None
    assert response.json["completed"] is False


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
    assert response.json == task | changes | new_revision_and_time(response, task)
    assert client.get(task.url).json == response.json


@pytest.mark.parametrize("changes", [{}, {"title": "Buy oat milk"}, {"completed": False}])
def test_patch_without_a_change_keeps_the_revision(client, task, changes):
    response = client.patch(task.url, json=changes)

    assert response.status_code == 200
    assert response.json == task


def test_put_without_description_removes_it(client, task):
    response = client.put(task.url, json={"title": "Buy oats"})

    assert response.status_code == 200
    assert response.json == task | {
        "title": "Buy oats",
        "description": None,
    } | new_revision_and_time(response, task)


def test_put_without_completed_keeps_it(client, task):
    client.patch(f"{task.url}/complete")

    without_completed = client.put(task.url, json={"title": "Buy oats"})
    with_completed = client.put(task.url, json={"title": "Buy oats", "completed": False})

    assert without_completed.json["completed"] is True
    assert with_completed.json["completed"] is False


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


def test_deleted_task_is_not_found_by_any_route(client, task, tasks_url):
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
        client.delete(task.url),
    ):
        assert response.status_code == 404
        assert response.json["detail"] == "It does not exist, or it is not yours."


def test_task_of_another_user_is_not_found(client, task):
    url_of_other_user = f"/api/{uuid.uuid4()}/tasks/{task['id']}"

    responses = [
        client.get(url_of_other_user),
        client.put(url_of_other_user, json={"title": "Mine"}),
        client.patch(url_of_other_user, json={"title": "Mine"}),
        client.patch(f"{url_of_other_user}/complete"),
        client.delete(url_of_other_user),
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
