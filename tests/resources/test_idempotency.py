"""A create that is sent again creates nothing: it gets the first one's answer."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from todo_api.commands.purge import purge

OF_ITS_OWN = {"X-Request-Id", "Idempotent-Replayed"}


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


def headers(answer):
    return {name: value for name, value in answer.headers if name not in OF_ITS_OWN}


def assert_replayed(again, first):
    assert again.status_code == first.status_code == 201
    assert again.data == first.data
    assert headers(again) == headers(first)
    assert again.headers["Idempotent-Replayed"] == "true"


def test_the_first_request_of_a_key_is_as_without_one(client, create, tasks_url, key):
    answer = create(key, description="Two litres")

    assert answer.status_code == 201
    assert "Idempotent-Replayed" not in answer.headers
    assert client.get(answer.headers["Location"]).json == answer.json
    assert client.get(tasks_url).json == [answer.json]


def test_a_repeated_request_gets_the_first_ones_answer(client, create, tasks_url, key):
    first = create(key)

    again = create(key)

    assert_replayed(again, first)
    assert client.get(tasks_url).json == [first.json]


def test_a_response_that_the_version_before_stored_is_replayed(create, connection, key):
    """It stored neither status nor headers, but the task's id and revision."""
    first = create(key)
    connection.execute(
        "UPDATE idempotency_keys SET status = NULL, headers = NULL WHERE key = %s", (key,)
    )

    assert_replayed(create(key), first)


def test_the_answer_is_the_first_ones_whatever_has_become_of_the_task(client, create, key):
    first = create(key)
    client.patch(first.headers["Location"], json={"title": "Buy oats"})
    client.delete(first.headers["Location"])

    assert_replayed(create(key), first)


def test_a_body_is_the_same_in_any_spelling(client, tasks_url, create, key):
    first = create(key, description=None)

    again = client.post(
        tasks_url,
        data=' {"description": null,\n "title": "Buy \\u006fat milk"}',
        headers={"Idempotency-Key": key, "Content-Type": "application/json"},
    )

    assert_replayed(again, first)


@pytest.mark.parametrize(
    "body", [{"title": "Buy oats"}, {"completed": True}, {"description": None}]
)
def test_a_key_is_good_for_one_request_only(client, create, tasks_url, key, body):
    first = create(key)

    other = create(key, **body)

    assert other.status_code == 422
    assert other.json["type"] == "/problems/key-reused"
    assert [fault["header"] for fault in other.json["errors"]] == ["Idempotency-Key"]
    assert client.get(tasks_url).json == [first.json]
    assert_replayed(create(key), first)


def test_a_key_is_its_users_own(client, create, key):
    first = create(key)
    neighbour = f"/api/{uuid.uuid4()}/tasks"

    theirs = create(key, url=neighbour)

    assert theirs.status_code == 201
    assert "Idempotent-Replayed" not in theirs.headers
    assert theirs.json["id"] != first.json["id"]
    assert client.get(neighbour).json == [theirs.json]


def test_what_was_refused_is_not_kept(create, client, tasks_url, key):
    refused = create(key, title="")

    created = create(key)

    assert refused.status_code == 422
    assert created.status_code == 201
    assert "Idempotent-Replayed" not in created.headers
    assert client.get(tasks_url).json == [created.json]


@pytest.mark.parametrize(
    ("sent", "same"),
    [
        ("k", '"k"'),
        ('"a-key"', "a-key"),
        (r'"with \"quotes\" and \\"'.replace(" ", "_"), r'with_"quotes"_and_' + "\\"),
        ("x" * 255, '"' + "x" * 255 + '"'),
        ("!#$%&'()*+,-./:;<=>?@[]^_`{|}~", "!#$%&'()*+,-./:;<=>?@[]^_`{|}~"),
    ],
)
def test_a_key_is_the_same_with_quotes_and_without(create, sent, same):
    first = create(sent)

    assert_replayed(create(same), first)


@pytest.mark.parametrize(
    "given",
    ["", '""', "x" * 256, '"' + "x" * 256 + '"', '"open', '"a"b', "a key", "ключ", "a\tb", '"\\x"'],
)
def test_what_is_no_key_is_refused(client, tasks_url, given):
    answer = client.post(
        tasks_url,
        json={"title": "Buy oat milk"},
        environ_overrides={"HTTP_IDEMPOTENCY_KEY": given.encode().decode("latin-1")},
    )

    assert answer.status_code == 400
    assert [fault["header"] for fault in answer.json["errors"]] == ["Idempotency-Key"]
    assert client.get(tasks_url).json == []


def test_of_a_race_all_get_the_winners_answer(app, tasks_url, key):
    def send(_):
        return app.test_client().post(
            tasks_url, json={"title": "Buy oat milk"}, headers={"Idempotency-Key": key}
        )

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(send, range(16)))

    first = [answer for answer in answers if "Idempotent-Replayed" not in answer.headers]
    assert len(first) == 1
    for answer in answers:
        if answer is not first[0]:
            assert_replayed(answer, first[0])
    assert app.test_client().get(tasks_url).json == [first[0].json]


def test_a_replay_takes_no_number(create, make_task, key):
    create(key)
    create(key)

    assert make_task()["revision"] == 2


def test_keys_go_with_their_user(client, create, user_id, connection, key):
    create(key)

    client.delete(f"/api/{user_id}")

    assert keys_of(connection, user_id) == []
    assert "Idempotent-Replayed" not in create(key).headers


def test_a_purge_removes_keys_of_a_day_and_no_others(
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
    assert keys_of(connection, user_id) == ["young"]
    assert "Idempotent-Replayed" not in create(key).headers


def keys_of(connection: psycopg.Connection, user_id: str) -> list[str]:
    found = connection.execute("SELECT key FROM idempotency_keys WHERE user_id = %s", (user_id,))
    return [key for (key,) in found]
