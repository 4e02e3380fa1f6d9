"""A user's tasks over HTTP: the journeys that the contract promises."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.api import etag

pytestmark = [pytest.mark.pooled, pytest.mark.divided]


def newer(answer, task):
    """The fields that the server moves with every change."""
    assert answer.json["revision"] > task["revision"]
    assert answer.json["updated_at"] > task["updated_at"]
    return {name: answer.json[name] for name in ("revision", "updated_at")}


def test_a_new_task_has_what_was_sent_and_what_the_server_sets(client, tasks_url, user_id):
    before = datetime.now(UTC)

    answer = client.post(
        tasks_url, json={"title": "Buy oat milk", "description": "Two litres", "completed": True}
    )

    assert answer.status_code == 201
    assert answer.json == {
        "id": answer.json["id"],
        "user_id": user_id,
        "title": "Buy oat milk",
        "description": "Two litres",
        "completed": True,
        "created_at": answer.json["updated_at"],
        "updated_at": answer.json["updated_at"],
        "revision": 1,
    }
    assert uuid.UUID(answer.json["id"]).version == 7
    assert answer.json["created_at"].endswith("Z")
    assert before - timedelta(seconds=5) < datetime.fromisoformat(answer.json["created_at"])
    assert answer.headers["Location"] == f"{tasks_url}/{answer.json['id']}"
    assert answer.headers["ETag"] == etag(1)


def test_a_title_is_enough(client, tasks_url):
    answer = client.post(tasks_url, json={"title": "Buy oat milk"})

    assert answer.status_code == 201
    assert answer.json["description"] is None
    assert answer.json["completed"] is False


def test_the_location_of_a_new_task_answers_with_it(client, tasks_url):
    created = client.post(tasks_url, json={"title": "Buy oat milk"})

    answer = client.get(created.headers["Location"])

    assert answer.status_code == 200
    assert answer.json == created.json
    assert answer.headers["ETag"] == created.headers["ETag"]


def test_a_user_who_has_nothing_has_an_empty_list(client, tasks_url):
    answer = client.get(tasks_url)

    assert answer.status_code == 200
    assert answer.json == []


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
def test_a_patch_keeps_the_other_fields(client, task, changes, media_type):
    answer = client.patch(task.url, json=changes, content_type=media_type)

    assert answer.status_code == 200
    assert answer.json == task | changes | newer(answer, task)
    assert client.get(task.url).json == answer.json


@pytest.mark.parametrize("changes", [{}, {"title": "Buy oat milk"}, {"completed": False}])
def test_a_patch_that_changes_nothing_keeps_the_revision(client, task, changes):
    answer = client.patch(task.url, json=changes)

    assert answer.status_code == 200
    assert answer.json == task


def test_a_put_without_a_description_removes_it(client, task):
    answer = client.put(task.url, json={"title": "Buy oats"})

    assert answer.status_code == 200
    assert answer.json == task | {"title": "Buy oats", "description": None} | newer(answer, task)


def test_a_put_keeps_completed_unless_it_is_given(client, task):
    client.patch(f"{task.url}/complete")

    kept = client.put(task.url, json={"title": "Buy oats"})
    given = client.put(task.url, json={"title": "Buy oats", "completed": False})

    assert kept.json["completed"] is True
    assert given.json["completed"] is False


@pytest.mark.parametrize(
    ("body", "completed"),
    [(None, True), ({}, True), ({"completed": True}, True), ({"completed": False}, False)],
)
def test_completing_sets_and_never_toggles(client, task, body, completed):
    first = client.patch(f"{task.url}/complete", json=body)
    second = client.patch(f"{task.url}/complete", json=body)

    assert first.status_code == second.status_code == 200
    assert first.json["completed"] is second.json["completed"] is completed
    assert second.json == first.json


def test_completing_with_an_empty_body_of_unknown_length_is_completing(client, task):
    answer = client.patch(
        f"{task.url}/complete",
        environ_overrides={"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True},
        content_type="application/json",
    )

    assert answer.status_code == 200
    assert answer.json["completed"] is True


def test_a_deleted_task_is_gone_from_every_route(client, task, tasks_url):
    deleted = client.delete(task.url)

    assert deleted.status_code == 204
    assert deleted.data == b""
    assert client.get(tasks_url).json == []
    for again in (
        client.get(task.url),
        client.put(task.url, json={"title": "Back?"}),
        client.patch(task.url, json={"title": "Back?"}),
        client.patch(task.url, json={}),
        client.patch(f"{task.url}/complete"),
        client.delete(task.url),
    ):
        assert again.status_code == 404
        assert again.json["detail"] == (
            "Check the path: the resource does not exist, or it belongs to another user."
        )


def test_another_users_task_is_not_found(client, task):
    others = f"/api/{uuid.uuid4()}/tasks/{task['id']}"

    answers = [
        client.get(others),
        client.put(others, json={"title": "Mine"}),
        client.patch(others, json={"title": "Mine"}),
        client.patch(f"{others}/complete"),
        client.delete(others),
    ]

    assert {answer.status_code for answer in answers} == {404}
    assert client.get(task.url).json == task


def test_ids_are_read_in_either_case(client, task):
    assert client.get(task.url.replace(task["id"], task["id"].upper())).json == task


def test_reads_and_refusals_create_no_user(client, tasks_url, user_id, connection):
    client.get(tasks_url)
    client.get(f"{tasks_url}/{uuid.uuid4()}")
    client.delete(f"{tasks_url}/{uuid.uuid4()}")
    client.patch(f"{tasks_url}/{uuid.uuid4()}/complete")
    client.post(tasks_url, json={"title": ""})

    assert connection.execute("SELECT 1 FROM users WHERE id = %s", (user_id,)).fetchall() == []


def test_what_a_client_may_keep_it_must_revalidate(client, task, tasks_url):
    for answer in (client.get(task.url), client.get(tasks_url)):
        assert answer.headers["Cache-Control"] == "private, no-cache"
        assert "Authorization" in answer.headers["Vary"]
