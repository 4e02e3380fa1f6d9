"""Preconditions (RFC 9110, section 13): ETags, If-Match, If-None-Match, a revision in the body."""

import threading
import time
import uuid

import pytest

from tests.support.api import OTHER_TAGS, etag
from todo_api.app import create_app

pytestmark = pytest.mark.pooled

CHANGES = [
    ("PUT", "", {"title": "Changed"}),
    ("PATCH", "", {"title": "Changed"}),
    ("PATCH", "/complete", None),
    ("DELETE", "", None),
]
# Requests for a state that the task has already.
REPETITIONS = [
    ("PUT", "", {"title": "Buy oat milk"}),
    ("PUT", "", {"title": "Buy oat milk", "description": "Two litres", "completed": False}),
    ("PATCH", "", {"title": " Buy oat milk "}),
    ("PATCH", "", {}),
    ("PATCH", "/complete", {"completed": False}),
    ("POST", "/restore", None),
]
WRITES = CHANGES + REPETITIONS


def send_write(client, task, method, path, body, **headers):
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.open(task.url + path, method=method, json=body, headers=fields)


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
@pytest.mark.parametrize("tags", ["{0}", '"x", {0}', f"{{0}},{etag(99)}", "*", ' , {0} ,, "y"'])
def test_write_with_the_current_etag_succeeds(client, task, method, path, body, tags):
    response = send_write(client, task, method, path, body, If_Match=tags.format(task.etag))

    assert response.status_code in (200, 204)


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
@pytest.mark.parametrize("tags", [etag(99), "W/{1}", '""', *OTHER_TAGS])
def test_change_with_another_etag_is_refused(client, task, method, path, body, tags):
    response = send_write(
        client, task, method, path, body, If_Match=tags.format(task["revision"], task.etag)
    )

    assert response.status_code == 412
    assert response.json["type"] == "/problems/precondition-failed"
    assert response.json["current"] == task
    assert response.headers["ETag"] == task.etag
    assert client.get(task.url).json == task


@pytest.mark.parametrize(("method", "path", "body"), REPETITIONS)
@pytest.mark.parametrize("tags", [etag(99), "W/{1}"])
def test_request_for_the_state_of_the_task_succeeds_with_another_etag(
    client, task, method, path, body, tags
):
    """RFC 9110, section 13.1.1, allows this: the first response of a repeated request was lost."""
    response = send_write(
        client, task, method, path, body, If_Match=tags.format(task["revision"], task.etag)
    )

    assert (response.status_code, response.json) == (200, task)
    assert response.headers["ETag"] == task.etag
    assert client.get(task.url).json == task


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
def test_change_can_be_sent_again_with_the_same_if_match(client, task, method, path, body):
    first = send_write(client, task, method, path, body, If_Match=task.etag)

    repeated = send_write(client, task, method, path, body, If_Match=task.etag)

    assert first.status_code in (200, 204)
    assert (repeated.status_code, repeated.data) == (first.status_code, first.data)
    assert repeated.headers.get("ETag") == first.headers.get("ETag")


def test_restore_can_be_sent_again_with_the_same_if_match(client, task, user_id):
    client.delete(task.url)
    (entry,) = client.get(f"/api/{user_id}/trash").json
    if_match = {"If-Match": etag(entry["value"]["revision"])}

    first = client.post(f"{task.url}/restore", headers=if_match)
    repeated = client.post(f"{task.url}/restore", headers=if_match)

    assert first.status_code == repeated.status_code == 200
    assert repeated.json == first.json
    assert first.headers["ETag"] == repeated.headers["ETag"] == etag(first.json["revision"])


@pytest.mark.parametrize("tags", [etag(99), "W/{1}", "{0}"])
def test_restore_with_another_etag_is_refused(client, task, user_id, tags):
    client.delete(task.url)
    (entry,) = client.get(f"/api/{user_id}/trash").json
    current = entry["value"]
    if_match = {"If-Match": tags.format(task.etag, etag(current["revision"]))}

    refused = client.post(f"{task.url}/restore", headers=if_match)

    assert refused.status_code == 412
    assert refused.json["current"] == current
    assert client.get(f"/api/{user_id}/trash").json == [entry]


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_revision_in_the_body_is_a_precondition(client, task, method):
    changed = client.open(task.url, method=method, json=task | {"title": "First"})
    refused = client.open(task.url, method=method, json=task | {"title": "Second"})
    repeated = client.open(task.url, method=method, json=task | {"title": "First"})

    assert changed.status_code == 200
    assert changed.json["revision"] > task["revision"]
    assert refused.status_code == 412
    assert refused.json["current"] == changed.json
    assert refused.headers["ETag"] == changed.headers["ETag"]
    assert (repeated.status_code, repeated.json) == (200, changed.json)
    assert client.get(task.url).json == changed.json


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize(
    ("revision", "if_match"), [(0, 1), (1, 0), (1, 1)], ids=["header", "body", "both"]
)
def test_revision_in_the_body_and_if_match_must_both_hold(client, task, method, revision, if_match):
    """The numbers are differences from the revision of the task."""
    current = task["revision"]

    refused = client.open(
        task.url,
        method=method,
        json={"title": "Changed", "revision": current + revision},
        headers={"If-Match": etag(current + if_match)},
    )
    accepted = client.open(
        task.url,
        method=method,
        json={"title": "Changed", "revision": current},
        headers={"If-Match": f"{etag(current + 1)}, {etag(current)}"},
    )

    assert (refused.status_code, refused.json["current"]) == (412, task)
    assert (accepted.status_code, accepted.json["title"]) == (200, "Changed")


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize(("difference", "status"), [(0, 200), (1, 412)])
def test_revision_with_a_zero_fraction_is_an_integer(client, task, method, difference, status):
    revision = float(task["revision"] + difference)

    response = client.open(task.url, method=method, json={"title": "Changed", "revision": revision})

    assert response.status_code == status


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("revision", [0, -1, 1.5, 1e300, "1", True, None, 2**63])
def test_invalid_revision_in_the_body_is_refused(client, task, method, revision):
    response = client.open(task.url, method=method, json={"title": "Changed", "revision": revision})

    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == ["/revision"]
    assert client.get(task.url).json == task


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_if_none_match_refuses_a_write_to_the_named_etag_only(client, task, method, path, body):
    refused = send_write(client, task, method, path, body, If_None_Match=f"W/{task.etag}")
    accepted = send_write(client, task, method, path, body, If_None_Match=etag(99))

    assert refused.status_code == 412
    assert accepted.status_code in (200, 204)


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_if_none_match_star_refuses_a_write_to_an_existing_task(client, task, method, path, body):
    """RFC 9110, section 13.1.2, allows no success, even if the task is as requested."""
    response = send_write(client, task, method, path, body, If_None_Match="*")

    assert response.status_code == 412
    assert response.json["current"] == task
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
    "query", ["", "?limit=1", "?completed=false", "?completed=true", "?sort=title&q=milk"]
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


def test_put_with_if_none_match_star_creates_no_task(client, tasks_url, user_id, connection):
    url = f"{tasks_url}/{uuid.uuid4()}"

    response = client.put(url, json={"title": "Named"}, headers={"If-None-Match": "*"})

    assert response.status_code == 404
    assert client.get(tasks_url).json == []
    assert connection.execute("SELECT 1 FROM users WHERE id = %s", (user_id,)).fetchall() == []


def test_put_with_if_none_match_star_does_not_change_an_existing_task(
    client, task, connection, user_id
):
    response = client.put(task.url, json={"title": "Again"}, headers={"If-None-Match": "*"})

    assert response.status_code == 412
    assert response.json["current"] == task
    (row,) = connection.execute("SELECT revision FROM users WHERE id = %s", (user_id,))
    assert row == (task["revision"],), "a request without a change takes no revision"


@pytest.mark.parametrize("tags", ["*", "{0}", etag(99)])
def test_repeated_deletion_succeeds_with_if_none_match(client, task, user_id, tags):
    """A task in the trash has no representation that the header could name."""
    client.delete(task.url)
    (entry,) = client.get(f"/api/{user_id}/trash").json
    if_none_match = {"If-None-Match": tags.format(etag(entry["value"]["revision"]))}

    response = client.delete(task.url, headers=if_none_match)

    assert response.status_code == 204
    assert client.get(f"/api/{user_id}/trash").json == [entry]


def test_put_to_a_task_in_the_trash_is_not_found(client, task):
    client.delete(task.url)

    responses = [
        client.put(task.url, json={"title": "Again"}, headers=headers)
        for headers in ({}, {"If-None-Match": "*"}, {"If-Match": task.etag}, {"If-Match": "*"})
    ]

    assert {response.status_code for response in responses} == {404}


@pytest.mark.parametrize(
    "tags", ['"a"' + " ," * 1900 + "x", " \t" * 1900 + "x", ',"a"' * 900 + "x", '"a"' + "," * 4000]
)
def test_long_malformed_header_is_refused_within_a_second(client, task, tags):
    """A regular expression that backtracks would take very long for these values."""
    started = time.monotonic()

    response = client.patch(task.url, json={}, headers={"If-Match": tags})

    assert response.status_code == 400
    assert time.monotonic() - started < 1


def test_if_match_and_if_none_match_must_both_hold(client, task):
    refused = [
        client.put(task.url, json={"title": "Changed"}, headers=headers)
        for headers in (
            {"If-Match": task.etag, "If-None-Match": "*"},
            {"If-Match": task.etag, "If-None-Match": task.etag},
            {"If-Match": etag(99), "If-None-Match": etag(98)},
        )
    ]
    accepted = client.put(
        task.url,
        json={"title": "Changed"},
        headers={"If-Match": task.etag, "If-None-Match": etag(98)},
    )

    assert [response.status_code for response in refused] == [412, 412, 412]
    assert accepted.status_code == 200


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_setting_makes_a_precondition_required(make_settings, task, method, path, body):
    app = create_app(make_settings(REQUIRE_IF_MATCH="true"))
    client = app.test_client()

    try:
        without_precondition = send_write(client, task, method, path, body)
        with_if_none_match = send_write(client, task, method, path, body, If_None_Match=etag(99))
        with_if_match = send_write(client, task, method, path, body, If_Match=task.etag)
    finally:
        app.services.pool.close()

    assert without_precondition.status_code == 428
    assert without_precondition.json["type"] == "/problems/precondition-required"
    assert with_if_none_match.status_code == 428
    assert with_if_match.status_code in (200, 204)


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_revision_in_the_body_is_the_required_precondition(make_app, task, method):
    client = make_app(REQUIRE_IF_MATCH="true").test_client()

    without_precondition = client.open(task.url, method=method, json={"title": "Changed"})
    response = client.open(task.url, method=method, json=task | {"title": "Changed"})

    assert without_precondition.status_code == 428
    assert (response.status_code, response.json["title"]) == (200, "Changed")


def test_concurrent_writers_with_if_match_lose_no_update(app, client, task, count):
    """Eight clients append lines; after a 412 they continue with `current` of the response."""
    rounds = count(10_000) // 8
    faults = []
    refused = []
    revisions = []

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
                    revisions.append(current["revision"])
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
    assert len(set(revisions)) == 8 * rounds
    assert final["revision"] == max(revisions) > task["revision"]
    last = final["description"].split()[-200:]
    assert len(last) == len(set(last))


def test_concurrent_writes_without_a_precondition_are_not_mixed(app, client, task):
    """Eight clients write title and description; both always come from the same request."""
    revisions = []

    def overwrite(name):
        writer_client = app.test_client()
        for number in range(25):
            response = writer_client.put(
                task.url, json={"title": f"{name}{number}", "description": f"{name}{number}"}
            )
            revisions.append(response.json["revision"])

    writers = [threading.Thread(target=overwrite, args=(name,)) for name in "abcdefgh"]
    for writer in writers:
        writer.start()
    observed = [client.get(task.url).json for _ in range(100)]
    for writer in writers:
        writer.join(60)

    assert all(body["title"] == body["description"] for body in observed if body != task)
    assert len(set(revisions)) == 200
    assert client.get(task.url).json["revision"] == max(revisions) > task["revision"]
