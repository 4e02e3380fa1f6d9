"""Preconditions (RFC 9110, section 13): ETags, If-Match and If-None-Match."""

import threading
import time
import uuid

import pytest

from tests.support.api import OTHER_TAGS, etag
from todo_api.app import create_app

pytestmark = pytest.mark.pooled

WRITES = [
    ("PUT", "", {"title": "Changed"}),
    ("PATCH", "", {"title": "Changed"}),
    ("PATCH", "", {}),
    ("PATCH", "/complete", {"completed": False}),
    ("PATCH", "/complete", None),
    ("DELETE", "", None),
]


def send_write(client, task, method, path, body, **headers):
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.open(task.url + path, method=method, json=body, headers=fields)


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
@pytest.mark.parametrize("tags", ["{0}", '"x", {0}', f"{{0}},{etag(99)}", "*", ' , {0} ,, "y"'])
def test_write_with_the_current_etag_succeeds(client, task, method, path, body, tags):
    response = send_write(client, task, method, path, body, If_Match=tags.format(task.etag))

    assert response.status_code in (200, 204)


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
@pytest.mark.parametrize("tags", [etag(99), "W/{1}", '""', *OTHER_TAGS])
def test_write_with_another_etag_is_refused(client, task, method, path, body, tags):
    response = send_write(
        client, task, method, path, body, If_Match=tags.format(task["revision"], task.etag)
    )

    assert response.status_code == 412
    assert response.json["type"] == "/problems/precondition-failed"
    assert response.json["current"] == task
    assert response.headers["ETag"] == task.etag
    assert client.get(task.url).json == task


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_if_none_match_refuses_a_write_to_the_named_etag_only(client, task, method, path, body):
    refused = send_write(client, task, method, path, body, If_None_Match=f"W/{task.etag}")
    accepted = send_write(client, task, method, path, body, If_None_Match=etag(99))

    assert refused.status_code == 412
    assert accepted.status_code in (200, 204)


@pytest.mark.parametrize(("method", "path", "body"), WRITES[1:])
def test_if_none_match_star_refuses_a_write_to_an_existing_task(client, task, method, path, body):
    response = send_write(client, task, method, path, body, If_None_Match="*")

    assert response.status_code == 412
    assert client.get(task.url).json == task


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
@pytest.mark.parametrize("tags", ["*", etag(1)])
def test_write_with_if_match_to_a_missing_task_is_not_found(
    client, tasks_url, method, path, body, tags
):
    response = client.open(
        f"{tasks_url}/{uuid.uuid4()}{path}", method=method, json=body, headers={"If-Match": tags}
    )

    assert response.status_code == 404


@pytest.mark.parametrize(
    "tags",
    ["", etag(7)[1:-1], etag(7)[:-1], f"{etag(7)} {etag(8)}", "*, *", 'w/"1"', '"a"b"', "W/1"],
)
@pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
def test_error_names_the_malformed_header(client, task, name, tags):
    for method in ("PATCH", "GET") if name == "If-None-Match" else ("PATCH",):
        response = client.open(
            task.url,
            method=method,
            json={} if method == "PATCH" else None,
            headers={name: tags},
        )

        assert response.status_code == 400
        assert [error["header"] for error in response.json["errors"]] == [name]


@pytest.mark.parametrize("tags", ["{0}", "W/{0}", "*", '"x", {0}'])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_unchanged_task_gets_304(client, task, method, tags):
    fields = {"If-None-Match": tags.format(task.etag)}

    response = client.open(task.url, method=method, headers=fields)

    assert response.status_code == 304
    assert response.data == b""
    assert response.headers["ETag"] == task.etag
    assert response.headers["Cache-Control"] == "private, no-cache"
    assert "Content-Type" not in response.headers


def test_changed_task_is_sent_again(client, task):
    changed = client.patch(task.url, json={"title": "Changed"})

    response = client.get(task.url, headers={"If-None-Match": task.etag})

    assert (response.status_code, response.json) == (200, changed.json)


@pytest.mark.parametrize(
    "query", ["", "?limit=1", "?completed=false", "?deleted=true", "?sort=title&q=milk"]
)
def test_unchanged_list_gets_304(client, make_task, tasks_url, query):
    make_task()
    first = client.get(tasks_url + query)
    if_none_match = {"If-None-Match": first.headers["ETag"]}

    repeated = client.get(tasks_url + query, headers=if_none_match)
    other_query = client.get(f"{tasks_url}?limit=7", headers=if_none_match)
    make_task()
    changed = client.get(tasks_url + query, headers=if_none_match)

    assert repeated.status_code == 304
    assert repeated.headers["ETag"] == first.headers["ETag"]
    assert other_query.status_code == changed.status_code == 200
    assert changed.headers["ETag"] != first.headers["ETag"]


def test_empty_list_has_an_etag(client, tasks_url, make_task):
    first = client.get(tasks_url)
    if_none_match = {"If-None-Match": first.headers["ETag"]}

    assert client.get(tasks_url, headers=if_none_match).status_code == 304
    make_task()
    assert client.get(tasks_url, headers=if_none_match).status_code == 200


def test_put_with_if_none_match_star_creates_a_task(client, tasks_url):
    url = f"{tasks_url}/{uuid.uuid4()}"

    response = client.put(
        url, json={"title": "Named", "completed": True}, headers={"If-None-Match": "*"}
    )

    assert response.status_code == 201
    assert response.headers["Location"] == url
    assert response.headers["ETag"] == etag(1)
    assert response.json["title"] == "Named"
    assert response.json["completed"] is True
    assert response.json["description"] is None
    assert client.get(url).json == response.json


def test_put_with_if_none_match_star_does_not_change_an_existing_task(
    client, task, connection, user_id
):
    response = client.put(task.url, json={"title": "Again"}, headers={"If-None-Match": "*"})

    assert response.status_code == 412
    assert response.json["current"] == task
    (row,) = connection.execute("SELECT revision FROM users WHERE id = %s", (user_id,))
    assert row == (task["revision"],), "a request without a change takes no revision"


def test_put_with_the_id_of_a_task_in_the_trash_names_the_restore_url(client, task):
    client.delete(task.url)

    response = client.put(task.url, json={"title": "Again"}, headers={"If-None-Match": "*"})

    assert response.status_code == 409
    assert response.json["type"] == "/problems/in-trash"
    assert f"{task.url}/restore" in response.json["detail"]


@pytest.mark.parametrize(
    "tags", ['"a"' + " ," * 1900 + "x", " \t" * 1900 + "x", ',"a"' * 900 + "x", '"a"' + "," * 4000]
)
def test_long_malformed_header_is_refused_within_a_second(client, task, tags):
    """A regular expression that backtracks would take very long for these values."""
    started = time.monotonic()

    response = client.patch(task.url, json={}, headers={"If-Match": tags})

    assert response.status_code == 400
    assert time.monotonic() - started < 1


def test_put_with_both_preconditions_is_refused(client, task):
    response = client.put(
        task.url, json={"title": "x"}, headers={"If-None-Match": "*", "If-Match": task.etag}
    )

    assert response.status_code == 400


def test_one_of_eight_concurrent_puts_creates_the_task(app, tasks_url):
    url = f"{tasks_url}/{uuid.uuid4()}"
    ready = threading.Barrier(8)
    statuses = []

    def create(number):
        ready.wait(10)
        response = app.test_client().put(
            url, json={"title": str(number)}, headers={"If-None-Match": "*"}
        )
        statuses.append(response.status_code)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert sorted(statuses) == [201] + [412] * 7


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_setting_makes_a_precondition_required(make_settings, task, method, path, body):
    app = create_app(make_settings(REQUIRE_IF_MATCH="true"))
    client = app.test_client()

    try:
        without_precondition = send_write(client, task, method, path, body)
        created = client.put(
            f"{task.url[:-12]}{uuid.uuid4().hex[:12]}",
            json={"title": "New"},
            headers={"If-None-Match": "*"},
        )
        with_if_match = send_write(client, task, method, path, body, If_Match=task.etag)
    finally:
        app.services.pool.close()

    assert without_precondition.status_code == 428
    assert without_precondition.json["type"] == "/problems/precondition-required"
    assert created.status_code == 201
    assert with_if_match.status_code in (200, 204)


def test_concurrent_writers_with_if_match_lose_no_update(app, client, task, count):
    """Eight clients append lines; after a 412 they continue with `current` of the response."""
    rounds = count(10_000) // 8
    faults = []
    refused = []

    def edit(name):
        writer_client = app.test_client()
        current = task
        for number in range(rounds):
            while True:
                line = f"{name}.{number} "
                text = ((current["description"] or "") + line)[-9000:]
                response = writer_client.patch(
                    task.url,
                    json={"description": text},
                    headers={"If-Match": etag(current["revision"])},
                )
                if response.status_code == 200:
                    current = response.json
                    break
                if response.status_code != 412 or (
                    response.json["current"]["revision"] <= current["revision"]
                ):
                    faults.append(response.json)
                    return
                refused.append(1)
                current = response.json["current"]

    writers = [threading.Thread(target=edit, args=(name,)) for name in "abcdefgh"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(300)

    assert faults == []
    assert refused, "no write was refused: the writers did not run concurrently"
    final = client.get(task.url).json
    assert final["revision"] == task["revision"] + 8 * rounds
    last = final["description"].split()[-200:]
    assert len(last) == len(set(last))


def test_concurrent_writes_without_a_precondition_are_not_mixed(app, client, task):
    """Eight clients write title and description; both always come from the same request."""

    def overwrite(name):
        writer_client = app.test_client()
        for number in range(25):
            writer_client.put(
                task.url, json={"title": f"{name}{number}", "description": f"{name}{number}"}
            )

    writers = [threading.Thread(target=overwrite, args=(name,)) for name in "abcdefgh"]
    for writer in writers:
        writer.start()
    observed = [client.get(task.url).json for _ in range(100)]
    for writer in writers:
        writer.join(60)

    assert all(body["title"] == body["description"] for body in observed if body != task)
    assert client.get(task.url).json["revision"] == task["revision"] + 200
