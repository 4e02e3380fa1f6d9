"""GET and PATCH of a user: the time zone in which the user's days begin."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.support.api import Device
from tests.support.locks import wait_for_sessions
from todo_api.commands.token import make_token

pytestmark = [pytest.mark.pooled, pytest.mark.partitioned]

INVALID_ZONE = "Must be the IANA name of a time zone, like Europe/Berlin."
INVALID_ZONES = ["europe/berlin", "CET+1", "localtime", "Factory", "posixrules", "Europe", ""]
INVALID_ZONES += ["../etc/passwd", "/Europe/Berlin", "Europe/Berlin ", "Europe/Berlin/", "+01:00"]
INVALID_ZONES += ["x" * 65, "tzdata.zi", "right/UTC", "posix/UTC"]


@pytest.fixture
def user_url(user_id: str) -> str:
    return f"/api/{user_id}"


@pytest.fixture
def has_row(connection, user_id: str):
    """Return a function that tells whether the user has a row."""

    def read() -> bool:
        found = connection.execute("SELECT FROM users WHERE id = %s", (user_id,))
        return found.fetchone() is not None

    return read


@pytest.fixture
def unseen(user_id: str):
    """The state of a user who has never changed anything."""
    return {
        "user_id": user_id,
        "revision": 0,
        "created_at": None,
        "time_zone": "UTC",
        "limits": {
            "tasks": {"limit": 10_000, "used": 0},
            "tasks_with_trash": {"limit": 20_000, "used": 0},
            "lists": {"limit": 500, "used": 0},
            "lists_with_trash": {"limit": 1_000, "used": 0},
            "bytes": {"limit": 256 * 2**20, "used": 0},
        },
    }


def test_user_who_was_never_seen_has_no_row(client, user_url, unseen, has_row):
    response = client.get(user_url)

    assert (response.status_code, response.json) == (200, unseen)
    assert response.headers["Cache-Control"] == "no-store"
    assert "ETag" not in response.headers
    assert not has_row()


@pytest.mark.parametrize("changes", [{}, {"time_zone": "UTC"}, {"time_zone": None}])
def test_patch_that_changes_nothing_creates_no_row(client, user_url, unseen, has_row, changes):
    response = client.patch(user_url, json=changes)

    assert (response.status_code, response.json) == (200, unseen)
    assert not has_row()


def test_user_has_the_revision_of_the_last_change(client, user_url, user_id, make_task):
    first = make_task()
    before = client.get(user_url).json

    second = make_task()
    after = client.get(user_url).json

    assert before == {
        "user_id": user_id,
        "revision": first["revision"],
        "created_at": before["created_at"],
        "time_zone": "UTC",
        "limits": before["limits"],
    }
    assert before["created_at"] <= first["created_at"]
    assert after == {**before, "revision": second["revision"], "limits": after["limits"]}


@pytest.mark.parametrize("media_type", ["application/json", "application/merge-patch+json"])
def test_patch_sets_the_zone_of_a_new_user(client, user_url, has_row, media_type):
    response = client.patch(
        user_url, data='{"time_zone": "Asia/Kathmandu"}', content_type=media_type
    )

    assert response.status_code == 200
    assert response.json["time_zone"] == "Asia/Kathmandu"
    assert response.json["revision"] > 0
    assert response.json["created_at"] is not None
    assert client.get(user_url).json == response.json
    assert has_row()


def test_change_of_the_zone_takes_a_revision_and_the_same_zone_takes_none(
    client, user_url, make_task
):
    task = make_task()

    first = client.patch(user_url, json={"time_zone": "Europe/Berlin"}).json
    again = client.patch(user_url, json={"time_zone": "Europe/Berlin"}).json
    empty = client.patch(user_url, json={}).json
    reset = client.patch(user_url, json={"time_zone": None}).json

    assert first["revision"] > task["revision"]
    assert first["time_zone"] == "Europe/Berlin"
    assert again == empty == first
    assert reset["revision"] > first["revision"]
    assert reset == {**first, "revision": reset["revision"], "time_zone": "UTC"}
    assert client.get(task.url).json == task


@pytest.mark.parametrize("path", ["tasks", "tasks?due=today", "tasks/count", "changes?since=0"])
def test_change_of_the_zone_changes_the_etag_of_lists(client, user_url, make_task, path):
    make_task()
    url = f"{user_url}/{path}"
    etag = client.get(url).headers["ETag"]

    client.patch(user_url, json={"time_zone": "UTC"})
    unchanged = client.get(url, headers={"If-None-Match": etag})
    client.patch(user_url, json={"time_zone": "Europe/Berlin"})
    changed = client.get(url, headers={"If-None-Match": etag})

    assert (unchanged.status_code, changed.status_code) == (304, 200)
    assert changed.headers["ETag"] != etag


def test_sync_continues_after_a_change_of_the_zone(client, user_url, make_task):
    """The zone is no entry of /changes, but takes a revision of the same sequence."""
    device = Device(client, f"{user_url}/changes")
    client.patch(user_url, json={"time_zone": "Europe/Berlin"})
    task = make_task()
    synced = dict(device.sync())

    client.patch(user_url, json={"time_zone": "Asia/Tokyo"})
    unchanged = dict(device.sync())
    later = make_task()
    device.sync()

    assert synced == unchanged == {task["id"]: task}
    assert device.tasks == {task["id"]: task, later["id"]: later}
    assert device.restarts == 0


@pytest.mark.parametrize("zone", INVALID_ZONES)
def test_invalid_zone_is_refused(client, user_url, unseen, zone):
    response = client.patch(user_url, json={"time_zone": zone})

    assert response.status_code == 422
    assert response.json["errors"] == [{"pointer": "/time_zone", "detail": INVALID_ZONE}]
    assert client.get(user_url).json == unseen


@pytest.mark.parametrize("zone", [1, True, ["UTC"], {"name": "UTC"}, "UTC\x00", "\ud800"])
def test_zone_that_is_no_valid_text_is_refused(client, user_url, unseen, zone):
    response = client.patch(user_url, json={"time_zone": zone})

    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == ["/time_zone"]
    assert client.get(user_url).json == unseen


@pytest.mark.parametrize("member", ["zone", "limits", "name"])
def test_unknown_member_is_refused(client, user_url, unseen, member):
    response = client.patch(user_url, json={"time_zone": "Europe/Berlin", member: "x"})

    assert response.status_code == 422
    assert response.json["errors"] == [{"pointer": f"/{member}", "detail": "Unknown field."}]
    assert client.get(user_url).json == unseen


def test_zone_belongs_to_one_user(client, user_url, make_task):
    make_task()
    client.patch(user_url, json={"time_zone": "Europe/Berlin"})
    other_url = f"/api/{uuid.uuid4()}"

    other = client.patch(other_url, json={"time_zone": "Asia/Tokyo"}).json

    assert client.get(user_url).json["time_zone"] == "Europe/Berlin"
    assert client.get(other_url).json == other
    assert other["time_zone"] == "Asia/Tokyo"


@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_other_users_path_is_not_found(make_app, connection, method):
    """The response is the same whether the other user exists or not."""
    secret = "a-secret-of-the-tests-that-is-long-enough"
    app = make_app(AUTH_MODE="jwt", JWT_SECRET=secret)
    client = app.test_client()
    owner, victim, unknown = (str(uuid.uuid4()) for _ in range(3))

    def send(user: str, token: str | None, **options):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return client.open(f"/api/{user}", method=method, headers=headers, **options)

    body = {"json": {"time_zone": "Asia/Tokyo"}} if method == "PATCH" else {}
    connection.execute("INSERT INTO users (id, time_zone) VALUES (%s, 'Europe/Berlin')", (victim,))
    token = make_token(app.services.settings, owner)

    own = send(owner, token, **body)
    refused = [send(user, token, **body) for user in (victim, unknown)]
    without_token = send(owner, None, **body)

    assert own.status_code == 200
    assert [response.status_code for response in refused] == [404, 404]
    problems = [{**response.json, "instance": None} for response in refused]
    assert problems[0] == problems[1]
    assert without_token.status_code == 401
    assert connection.execute(
        "SELECT time_zone FROM users WHERE id = ANY(%s::uuid[])", ([victim, unknown],)
    ).fetchall() == [("Europe/Berlin",)]


def test_erased_user_has_the_default_zone_and_newer_revisions(client, user_url, unseen, make_task):
    make_task()
    before = client.patch(user_url, json={"time_zone": "Europe/Berlin"}).json
    token = client.get(f"{user_url}/changes?since=0").json["next"]

    client.delete(user_url)
    erased = client.get(user_url).json
    after = client.patch(user_url, json={"time_zone": "Europe/Berlin"}).json
    outdated = client.get(f"{user_url}/changes", query_string={"since": token})
    full = client.get(f"{user_url}/changes?since=0")

    assert erased == unseen
    assert after["revision"] > before["revision"]
    assert outdated.status_code == 410
    assert (full.status_code, full.json["changes"]) == (200, [])


def test_restored_task_leaves_the_zone(client, user_url, make_task):
    task = make_task()
    zone = client.patch(user_url, json={"time_zone": "Europe/Berlin"}).json
    client.delete(task.url)

    restored = client.post(f"{task.url}/restore").json

    assert client.get(user_url).json == {**zone, "revision": restored["revision"]}


def test_simultaneous_first_changes_of_a_user_create_one_row(
    make_app, database_url, user_id, user_url
):
    """Both requests wait for another one that creates the user's row."""
    clients = [make_app().test_client() for _ in range(2)]
    zones = ["Europe/Berlin", "Asia/Tokyo"]

    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(2) as threads:
        holder.execute("INSERT INTO users (id) VALUES (%s)", (user_id,))
        waiting = [
            threads.submit(client.patch, user_url, json={"time_zone": zone})
            for client, zone in zip(clients, zones, strict=True)
        ]
        wait_for_sessions(database_url, lambda: 2)
        holder.commit()
        responses = [each.result(timeout=10) for each in waiting]

    assert [response.status_code for response in responses] == [200, 200]
    assert [response.json["time_zone"] for response in responses] == zones
    last = max((response.json for response in responses), key=lambda user: user["revision"])
    assert clients[0].get(user_url).json == last
    assert len({response.json["revision"] for response in responses}) == 2
