"""Idempotency keys: a repeated POST creates nothing and gets the first response again."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from todo_api.commands.purge import purge

VARYING_HEADERS = {"X-Request-Id", "Idempotent-Replayed"}


@pytest.fixture
def key() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def create(client, tasks_url):
    def send(key: str, url: str = tasks_url, **body):
        return client.post(
            url, json={"title": "Buy oat milk"} | body, headers={"Idempotency-Key": key}
        )

    return send


def stable_headers(response):
    return {name: value for name, value in response.headers if name not in VARYING_HEADERS}


def assert_replayed(repeated, first):
    assert repeated.status_code == first.status_code == 201
    assert repeated.data == first.data
    assert stable_headers(repeated) == stable_headers(first)
    assert repeated.headers["Idempotent-Replayed"] == "true"


def test_first_request_with_a_key_creates_a_task(client, create, tasks_url, key):
    response = create(key, description="Two litres")

    assert response.status_code == 201
    assert "Idempotent-Replayed" not in response.headers
    assert client.get(response.headers["Location"]).json == response.json
    assert client.get(tasks_url).json == [response.json]


def test_repeated_request_gets_the_first_response(client, create, tasks_url, key):
    first = create(key)

    repeated = create(key)

    assert_replayed(repeated, first)
    assert client.get(tasks_url).json == [first.json]


def test_response_stored_by_the_previous_version_is_replayed(create, connection, key):
    """That version stored an ETag with a prefix; the ETag of a replay is made from the revision."""
    first = create(key)
    connection.execute(
        "UPDATE idempotency_keys SET headers ="
        " json_build_object('Location', headers ->> 'Location', 'ETag', '\"7.1\"')"
        " WHERE key = %s",
        (key,),
    )

    assert_replayed(create(key), first)


def test_first_response_is_replayed_after_the_task_is_changed_and_deleted(client, create, key):
    first = create(key)
    client.patch(first.headers["Location"], json={"title": "Buy oats"})
    client.delete(first.headers["Location"])

    assert_replayed(create(key), first)


def test_same_json_in_another_spelling_is_the_same_request(client, tasks_url, create, key):
    first = create(key, description=None)

    repeated = client.post(
        tasks_url,
        data=' {"description": null,\n "title": "Buy \\u006fat milk"}',
        headers={"Idempotency-Key": key, "Content-Type": "application/json"},
    )

    assert_replayed(repeated, first)


@pytest.mark.parametrize(
    "body", [{"title": "Buy oats"}, {"completed": True}, {"description": None}]
)
def test_key_of_another_request_is_refused(client, create, tasks_url, key, body):
    first = create(key)

    reused = create(key, **body)

    assert reused.status_code == 422
    assert reused.json["type"] == "/problems/key-reused"
    assert [error["header"] for error in reused.json["errors"]] == ["Idempotency-Key"]
    assert client.get(tasks_url).json == [first.json]
    assert_replayed(create(key), first)


def test_same_key_and_body_with_another_id_is_another_request(client, create, tasks_url, key):
    first = create(key, id=str(uuid.uuid4()))

    reused = create(key, id=str(uuid.uuid4()))

    assert reused.status_code == 422
    assert reused.json["type"] == "/problems/key-reused"
    assert client.get(tasks_url).json == [first.json]


def test_creation_with_an_id_and_a_key_is_replayed(client, create, tasks_url, key):
    task_id = str(uuid.uuid4())

    first = create(key, id=task_id)
    client.patch(f"{tasks_url}/{task_id}", json={"title": "Buy oats"})
    repeated = create(key, id=task_id)

    assert first.json["id"] == task_id
    assert first.headers["Location"] == f"{tasks_url}/{task_id}"
    assert_replayed(repeated, first)


def test_key_keeps_the_response_to_a_creation_that_was_made_without_it(
    client, create, tasks_url, key
):
    body = {"id": str(uuid.uuid4()), "title": "Buy oat milk"}
    without_key = client.post(tasks_url, json=body)

    first = create(key, **body)
    client.patch(first.headers["Location"], json={"title": "Buy oats"})
    repeated = create(key, **body)

    assert (first.status_code, first.json) == (201, without_key.json)
    assert first.headers["ETag"] == without_key.headers["ETag"]
    assert "Idempotent-Replayed" not in first.headers
    assert_replayed(repeated, first)


@pytest.mark.parametrize("is_deleted", [False, True])
def test_key_keeps_no_conflict(client, create, tasks_url, connection, user_id, key, is_deleted):
    task_id = str(uuid.uuid4())
    existing = client.post(tasks_url, json={"id": task_id, "title": "Buy oats"}).json
    if is_deleted:
        client.delete(f"{tasks_url}/{task_id}")

    refused = create(key, id=task_id)
    created = create(key)

    assert refused.status_code == 409
    problem = "/problems/in-trash" if is_deleted else "/problems/already-exists"
    assert refused.json["type"] == problem
    assert created.status_code == 201
    assert "Idempotent-Replayed" not in created.headers
    assert list_keys(connection, user_id) == [key]
    assert client.get(tasks_url).json == [created.json, *([] if is_deleted else [existing])]


def test_two_users_may_use_the_same_key(client, create, key):
    first = create(key)
    other_users_url = f"/api/{uuid.uuid4()}/tasks"

    other_response = create(key, url=other_users_url)

    assert other_response.status_code == 201
    assert "Idempotent-Replayed" not in other_response.headers
    assert other_response.json["id"] != first.json["id"]
    assert client.get(other_users_url).json == [other_response.json]


def test_error_response_is_not_stored(create, client, tasks_url, key):
    invalid = create(key, title="")

    created = create(key)

    assert invalid.status_code == 422
    assert created.status_code == 201
    assert "Idempotent-Replayed" not in created.headers
    assert client.get(tasks_url).json == [created.json]


@pytest.mark.parametrize(
    ("first_spelling", "second_spelling"),
    [
        ("k", '"k"'),
        ('"a-key"', "a-key"),
        (r'"with \"quotes\" and \\"'.replace(" ", "_"), r'with_"quotes"_and_' + "\\"),
        ("x" * 255, '"' + "x" * 255 + '"'),
        ("!#$%&'()*+,-./:;<=>?@[]^_`{|}~", "!#$%&'()*+,-./:;<=>?@[]^_`{|}~"),
    ],
)
def test_key_with_quotes_equals_the_key_without_them(create, first_spelling, second_spelling):
    first = create(first_spelling)

    assert_replayed(create(second_spelling), first)


@pytest.mark.parametrize(
    "invalid_key",
    ["", '""', "x" * 256, '"' + "x" * 256 + '"', '"open', '"a"b', "a key", "ключ", "a\tb", '"\\x"'],
)
def test_invalid_key_is_refused(client, tasks_url, invalid_key):
    response = client.post(
        tasks_url,
        json={"title": "Buy oat milk"},
        environ_overrides={"HTTP_IDEMPOTENCY_KEY": invalid_key.encode().decode("latin-1")},
    )

    assert response.status_code == 400
    assert [error["header"] for error in response.json["errors"]] == ["Idempotency-Key"]
    assert client.get(tasks_url).json == []


def test_concurrent_requests_with_one_key_create_one_task(app, tasks_url, key):
    def send(_):
        return app.test_client().post(
            tasks_url, json={"title": "Buy oat milk"}, headers={"Idempotency-Key": key}
        )

    with ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(send, range(16)))

    first = [response for response in responses if "Idempotent-Replayed" not in response.headers]
    assert len(first) == 1
    for response in responses:
        if response is not first[0]:
            assert_replayed(response, first[0])
    assert app.test_client().get(tasks_url).json == [first[0].json]


def test_concurrent_requests_with_one_id_and_different_keys_create_one_task(
    app, tasks_url, connection, user_id
):
    body = {"id": str(uuid.uuid4()), "title": "Buy oat milk"}

    def send(number):
        headers = {"Idempotency-Key": f"key-{number}"}
        return app.test_client().post(tasks_url, json=body, headers=headers)

    with ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(send, range(8)))

    assert {response.status_code for response in responses} == {201}
    assert {response.data for response in responses} == {responses[0].data}
    assert not any("Idempotent-Replayed" in response.headers for response in responses)
    assert app.test_client().get(tasks_url).json == [responses[0].json]
    assert sorted(list_keys(connection, user_id)) == [f"key-{number}" for number in range(8)]


def test_replay_takes_no_revision(create, connection, user_id, key):
    first = create(key)
    create(key)

    (row,) = connection.execute("SELECT revision FROM users WHERE id = %s", (user_id,))
    assert row == (first.json["revision"],)


def test_erasing_a_user_removes_their_keys(client, create, user_id, connection, key):
    create(key)

    client.delete(f"/api/{user_id}")

    assert list_keys(connection, user_id) == []
    assert "Idempotent-Replayed" not in create(key).headers


def test_purge_removes_only_keys_older_than_24_hours(
    create, user_id, connection, database_url, key
):
    create(key)
    create("young")
    for name, age in ((key, "24 hours 1 second"), ("young", "23 hours 59 minutes")):
        connection.execute(
            "UPDATE idempotency_keys SET created_at = clock_timestamp() - %s::interval"
            " WHERE user_id = %s AND key = %s",
            (age, user_id, name),
        )

    _, keys = purge(database_url)

    assert keys >= 1
    assert list_keys(connection, user_id) == ["young"]
    assert "Idempotent-Replayed" not in create(key).headers


def list_keys(connection: psycopg.Connection, user_id: str) -> list[str]:
    rows = connection.execute("SELECT key FROM idempotency_keys WHERE user_id = %s", (user_id,))
    return [key for (key,) in rows]
