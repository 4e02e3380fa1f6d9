"""Safe editing: ETags, If-Match and If-None-Match, as RFC 9110 (section 13) has them."""

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


def write(client, task, method, path, body, **headers):
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.open(task.url + path, method=method, json=body, headers=fields)


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
@pytest.mark.parametrize("tags", ["{0}", '"x", {0}', f"{{0}},{etag(99)}", "*", ' , {0} ,, "y"'])
def test_a_write_that_names_the_version_is_done(client, task, method, path, body, tags):
    answer = write(client, task, method, path, body, If_Match=tags.format(task.etag))

    assert answer.status_code in (200, 204)


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
@pytest.mark.parametrize("tags", [etag(99), "W/{1}", '""', *OTHER_TAGS])
def test_a_write_that_names_another_version_is_refused(client, task, method, path, body, tags):
    answer = write(
        client, task, method, path, body, If_Match=tags.format(task["revision"], task.etag)
    )

    assert answer.status_code == 412
    assert answer.json["type"] == "/problems/precondition-failed"
    assert answer.json["current"] == task
    assert answer.headers["ETag"] == task.etag
    assert client.get(task.url).json == task


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_a_write_may_name_the_versions_it_does_not_mean(client, task, method, path, body):
    refused = write(client, task, method, path, body, If_None_Match=f"W/{task.etag}")
    done = write(client, task, method, path, body, If_None_Match=etag(99))

    assert refused.status_code == 412
    assert done.status_code in (200, 204)


@pytest.mark.parametrize(("method", "path", "body"), WRITES[1:])
def test_a_write_that_wants_nothing_there_is_refused(client, task, method, path, body):
    answer = write(client, task, method, path, body, If_None_Match="*")

    assert answer.status_code == 412
    assert client.get(task.url).json == task


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
@pytest.mark.parametrize("tags", ["*", etag(1)])
def test_a_condition_on_nothing_is_not_found(client, tasks_url, method, path, body, tags):
    answer = client.open(
        f"{tasks_url}/{uuid.uuid4()}{path}", method=method, json=body, headers={"If-Match": tags}
    )

    assert answer.status_code == 404


@pytest.mark.parametrize(
    "tags",
    ["", etag(7)[1:-1], etag(7)[:-1], f"{etag(7)} {etag(8)}", "*, *", 'w/"1"', '"a"b"', "W/1"],
)
@pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
def test_a_malformed_field_is_named(client, task, name, tags):
    for method in ("PATCH", "GET") if name == "If-None-Match" else ("PATCH",):
        answer = client.open(
            task.url,
            method=method,
            json={} if method == "PATCH" else None,
            headers={name: tags},
        )

        assert answer.status_code == 400
        assert [error["header"] for error in answer.json["errors"]] == [name]


@pytest.mark.parametrize("tags", ["{0}", "W/{0}", "*", '"x", {0}'])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_known_task_is_not_sent_again(client, task, method, tags):
    fields = {"If-None-Match": tags.format(task.etag)}

    answer = client.open(task.url, method=method, headers=fields)

    assert answer.status_code == 304
    assert answer.data == b""
    assert answer.headers["ETag"] == task.etag
    assert answer.headers["Cache-Control"] == "private, no-cache"
    assert "Content-Type" not in answer.headers


def test_a_changed_task_is_sent(client, task):
    changed = client.patch(task.url, json={"title": "Changed"})

    answer = client.get(task.url, headers={"If-None-Match": task.etag})

    assert (answer.status_code, answer.json) == (200, changed.json)


@pytest.mark.parametrize(
    "query", ["", "?limit=1", "?completed=false", "?deleted=true", "?sort=title&q=milk"]
)
def test_an_unchanged_list_is_not_sent_again(client, make_task, tasks_url, query):
    make_task()
    first = client.get(tasks_url + query)
    known = {"If-None-Match": first.headers["ETag"]}

    again = client.get(tasks_url + query, headers=known)
    other = client.get(f"{tasks_url}?limit=7", headers=known)
    make_task()
    changed = client.get(tasks_url + query, headers=known)

    assert again.status_code == 304
    assert again.headers["ETag"] == first.headers["ETag"]
    assert other.status_code == changed.status_code == 200
    assert changed.headers["ETag"] != first.headers["ETag"]


def test_an_empty_list_has_an_etag_too(client, tasks_url, make_task):
    first = client.get(tasks_url)
    known = {"If-None-Match": first.headers["ETag"]}

    assert client.get(tasks_url, headers=known).status_code == 304
    make_task()
    assert client.get(tasks_url, headers=known).status_code == 200


def test_a_put_that_wants_nothing_there_creates(client, tasks_url):
    url = f"{tasks_url}/{uuid.uuid4()}"

    answer = client.put(
        url, json={"title": "Named", "completed": True}, headers={"If-None-Match": "*"}
    )

    assert answer.status_code == 201
    assert answer.headers["Location"] == url
    assert answer.headers["ETag"] == etag(1)
    assert answer.json["title"] == "Named"
    assert answer.json["completed"] is True
    assert answer.json["description"] is None
    assert client.get(url).json == answer.json


def test_a_put_that_wants_nothing_there_changes_nothing_that_is(client, task, connection, user_id):
    answer = client.put(task.url, json={"title": "Again"}, headers={"If-None-Match": "*"})

    assert answer.status_code == 412
    assert answer.json["current"] == task
    (row,) = connection.execute("SELECT revision FROM users WHERE id = %s", (user_id,))
    assert row == (task["revision"],), "what changes nothing takes no number"


def test_a_put_that_finds_its_id_in_the_trash_names_restore(client, task):
    client.delete(task.url)

    answer = client.put(task.url, json={"title": "Again"}, headers={"If-None-Match": "*"})

    assert answer.status_code == 409
    assert answer.json["type"] == "/problems/in-trash"
    assert f"{task.url}/restore" in answer.json["detail"]


@pytest.mark.parametrize(
    "tags", ['"a"' + " ," * 1900 + "x", " \t" * 1900 + "x", ',"a"' * 900 + "x", '"a"' + "," * 4000]
)
def test_a_long_malformed_field_is_refused_at_once(client, task, tags):
    """A pattern that can match in two ways takes for ever to find that neither will do."""
    started = time.monotonic()

    answer = client.patch(task.url, json={}, headers={"If-Match": tags})

    assert answer.status_code == 400
    assert time.monotonic() - started < 1


def test_a_put_may_not_want_both(client, task):
    answer = client.put(
        task.url, json={"title": "x"}, headers={"If-None-Match": "*", "If-Match": task.etag}
    )

    assert answer.status_code == 400


def test_of_racing_creators_of_one_id_one_wins(app, tasks_url):
    url = f"{tasks_url}/{uuid.uuid4()}"
    ready = threading.Barrier(8)
    statuses = []

    def create(number):
        ready.wait(10)
        answer = app.test_client().put(
            url, json={"title": str(number)}, headers={"If-None-Match": "*"}
        )
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert sorted(statuses) == [201] + [412] * 7


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_a_server_can_require_a_condition(make_settings, task, method, path, body):
    app = create_app(make_settings(REQUIRE_IF_MATCH="true"))
    client = app.test_client()

    try:
        without = write(client, task, method, path, body)
        named = client.put(
            f"{task.url[:-12]}{uuid.uuid4().hex[:12]}",
            json={"title": "New"},
            headers={"If-None-Match": "*"},
        )
        with_one = write(client, task, method, path, body, If_Match=task.etag)
    finally:
        app.services.pool.close()

    assert without.status_code == 428
    assert without.json["type"] == "/problems/precondition-required"
    assert named.status_code == 201
    assert with_one.status_code in (200, 204)


def test_no_update_is_lost_among_racing_writers(app, client, task, count):
    """Eight clients add a line each time, and go on from `current` where they are refused."""
    rounds = count(10_000) // 8
    faults = []
    refused = []

    def edit(name):
        mine = app.test_client()
        current = task
        for number in range(rounds):
            while True:
                line = f"{name}.{number} "
                text = ((current["description"] or "") + line)[-9000:]
                answer = mine.patch(
                    task.url,
                    json={"description": text},
                    headers={"If-Match": etag(current["revision"])},
                )
                if answer.status_code == 200:
                    current = answer.json
                    break
                if answer.status_code != 412 or (
                    answer.json["current"]["revision"] <= current["revision"]
                ):
                    faults.append(answer.json)
                    return
                refused.append(1)
                current = answer.json["current"]

    writers = [threading.Thread(target=edit, args=(name,)) for name in "abcdefgh"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(300)

    assert faults == []
    assert refused, "they raced"
    final = client.get(task.url).json
    assert final["revision"] == task["revision"] + 8 * rounds
    last = final["description"].split()[-200:]
    assert len(last) == len(set(last))


def test_without_a_condition_the_last_write_wins_whole(app, client, task):
    """Eight clients write title and description together; no task is of two writers."""

    def overwrite(name):
        mine = app.test_client()
        for number in range(25):
            mine.put(task.url, json={"title": f"{name}{number}", "description": f"{name}{number}"})

    writers = [threading.Thread(target=overwrite, args=(name,)) for name in "abcdefgh"]
    for writer in writers:
        writer.start()
    seen = [client.get(task.url).json for _ in range(100)]
    for writer in writers:
        writer.join(60)

    assert all(shown["title"] == shown["description"] for shown in seen if shown != task)
    assert client.get(task.url).json["revision"] == task["revision"] + 200
