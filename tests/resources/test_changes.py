"""Sync and the trash: a client that applies all changes has the same tasks as the server."""

import threading
import time
import uuid

import pytest

from tests.support.api import Device, etag
from tests.support.postgresql import backdate_deletion
from todo_api.commands.purge import purge


@pytest.fixture
def changes_url(user_id):
    return f"/api/{user_id}/changes"


def get_tasks_by_id(client, tasks_url):
    """Return the tasks of the list by id; the list has only one page."""
    response = client.get(f"{tasks_url}?limit=200")
    assert "Link" not in response.headers
    return {task["id"]: task for task in response.json}


@pytest.mark.parametrize("limit", [1, 2, 200])
def test_device_has_the_servers_tasks_after_every_kind_of_change(
    client, make_task, tasks_url, changes_url, limit
):
    device = Device(client, changes_url, limit)
    tasks = [make_task(title=str(number)) for number in range(5)]
    client.delete(tasks[0].url)
    assert device.sync() == get_tasks_by_id(client, tasks_url)

    client.patch(tasks[1].url, json={"title": "Changed"})
    client.delete(tasks[2].url)
    client.delete(tasks[3].url)
    client.post(f"{tasks[3].url}/restore")
    client.post(f"{tasks[0].url}/restore")
    make_task(title="New")

    assert device.sync() == get_tasks_by_id(client, tasks_url)
    assert device.restarts == 0


def test_full_sync_contains_only_live_tasks(client, make_task, changes_url):
    live, deleted = make_task(), make_task()
    client.delete(deleted.url)

    response = client.get(f"{changes_url}?since=0")

    assert response.json["changes"] == [live | {"deleted": False}]
    assert response.json["more"] is False


def test_tombstone_has_id_revision_and_time_of_deletion(client, task, changes_url):
    since = client.get(f"{changes_url}?since=0").json["next"]
    client.delete(task.url)

    (change,) = client.get(changes_url, query_string={"since": since}).json["changes"]

    assert change == {
        "id": task["id"],
        "revision": task["revision"] + 1,
        "deleted": True,
        "deleted_at": change["deleted_at"],
    }


def test_revision_is_a_valid_sync_token(client, make_task, changes_url):
    first, second = make_task(), make_task()

    response = client.get(f"{changes_url}?since={first['revision']}")

    assert [change["id"] for change in response.json["changes"]] == [second["id"]]


def test_user_without_tasks_has_no_changes(client, changes_url):
    response = client.get(f"{changes_url}?since=0")

    assert response.json["changes"] == []
    repeated = client.get(changes_url, query_string={"since": response.json["next"]})
    assert (repeated.status_code, repeated.json["changes"]) == (200, [])


@pytest.mark.parametrize("since", ["", "-1", "1.5", "x", "AAAA", "W10", "9" * 19, "x" * 201, None])
def test_invalid_sync_token_is_refused(client, changes_url, since):
    response = client.get(changes_url, query_string={} if since is None else {"since": since})

    assert response.status_code == 422
    assert {error["parameter"] for error in response.json["errors"]} == {"since"}


def test_revision_above_the_owners_latest_is_gone(client, task, changes_url):
    response = client.get(f"{changes_url}?since={task['revision'] + 1}")

    assert response.status_code == 410
    assert response.json["type"] == "/problems/gone"


def test_unchanged_page_of_changes_gets_304(client, make_task, changes_url):
    make_task()
    first = client.get(f"{changes_url}?since=0")

    repeated = client.get(
        f"{changes_url}?since=0", headers={"If-None-Match": first.headers["ETag"]}
    )

    assert repeated.status_code == 304


def test_device_without_a_purged_tombstone_restarts_its_sync(
    client, make_task, changes_url, tasks_url, connection, database_url
):
    tasks = [make_task() for _ in range(3)]
    up_to_date, outdated = Device(client, changes_url), Device(client, changes_url)
    outdated.sync()
    client.delete(tasks[0].url)
    up_to_date.sync()
    backdate_deletion(connection, tasks[0], 31)
    purge(database_url)
    client.patch(tasks[1].url, json={"title": "Changed"})

    assert up_to_date.sync() == outdated.sync() == get_tasks_by_id(client, tasks_url)
    assert (up_to_date.restarts, outdated.restarts) == (0, 1)


def test_interrupted_full_sync_restarts_only_at_its_end_after_a_purge(
    client, make_task, changes_url, tasks_url, connection, database_url
):
    """A task of the first page is deleted and purged: the device restarts after the last page."""
    tasks = [make_task() for _ in range(5)]
    device = Device(client, changes_url, limit=2)
    assert device.sync_page()
    client.delete(tasks[0].url)
    backdate_deletion(connection, tasks[0], 31)
    purge(database_url)

    for _ in range(2):
        assert device.sync_page()
        assert device.restarts == 0, "a full sync that has begun gets no 410 before its end"

    assert device.sync() == get_tasks_by_id(client, tasks_url)
    assert device.restarts == 1


def test_interrupted_full_sync_gets_later_deletions(client, make_task, changes_url, tasks_url):
    tasks = [make_task() for _ in range(5)]
    device = Device(client, changes_url, limit=2)
    assert device.sync_page()
    client.delete(tasks[0].url)
    client.delete(tasks[4].url)

    assert device.sync() == get_tasks_by_id(client, tasks_url)
    assert device.restarts == 0


@pytest.mark.parametrize("tasks_after_restore", [0, 1, 3, 10])
def test_device_restarts_its_sync_after_a_restore_from_a_backup(
    client, make_task, changes_url, tasks_url, connection, user_id, tasks_after_restore
):
    """After the restore, the server makes fewer or more changes than the device has received."""
    tasks = [make_task() for _ in range(3)]
    backup = [
        connection.execute(f"SELECT * FROM {table} WHERE {column} = %s", (user_id,)).fetchall()
        for table, column in (("users", "id"), ("tasks", "user_id"))
    ]
    device = Device(client, changes_url)
    client.delete(tasks[0].url)
    client.patch(tasks[1].url, json={"title": "Not in the backup"})
    task_not_in_backup = make_task(title="Not in the backup")
    device.sync()

    connection.execute("SET session_replication_role = replica")
    connection.execute("DELETE FROM tasks WHERE user_id = %s", (user_id,))
    connection.execute("DELETE FROM users WHERE id = %s", (user_id,))
    for table, rows in zip(("users", "tasks"), backup, strict=True):
        for row in rows:
            placeholders = ", ".join(["%s"] * len(row))
            connection.execute(f"INSERT INTO {table} VALUES ({placeholders})", row)
    connection.execute("RESET session_replication_role")
    for number in range(tasks_after_restore):
        make_task(title=f"After the restore {number}")

    assert device.sync() == get_tasks_by_id(client, tasks_url)
    assert task_not_in_backup["id"] not in device.tasks
    assert device.restarts == 1


def test_device_restarts_its_sync_after_its_user_was_erased(
    client, make_task, changes_url, tasks_url, user_id
):
    device = Device(client, changes_url)
    for _ in range(3):
        make_task()
    device.sync()
    client.delete(f"/api/{user_id}")
    for _ in range(4):
        make_task()

    assert device.sync() == get_tasks_by_id(client, tasks_url)
    assert device.restarts == 1


def test_trash_lists_deleted_tasks_with_their_purge_time(client, make_task, tasks_url):
    live, deleted = make_task(), make_task()
    client.delete(deleted.url)

    (entry,) = client.get(f"{tasks_url}?deleted=true").json

    assert entry == deleted | {
        name: entry[name] for name in ("deleted_at", "purge_at", "updated_at", "revision")
    }
    assert entry["purge_at"] > entry["deleted_at"]
    assert client.get(tasks_url).json == [live]


def test_restored_task_is_live_again(client, task, tasks_url):
    client.delete(task.url)

    response = client.post(f"{task.url}/restore")

    assert response.status_code == 200
    assert response.json == client.get(task.url).json
    assert response.json["revision"] == task["revision"] + 2
    assert client.get(f"{tasks_url}?deleted=true").json == []


def test_restore_of_a_task_outside_the_trash_is_refused(client, task, tasks_url):
    live = client.post(f"{task.url}/restore")
    unknown = client.post(f"{tasks_url}/{uuid.uuid4()}/restore")

    assert (live.status_code, live.json["type"]) == (409, "/problems/not-in-trash")
    assert unknown.status_code == 404


def test_restore_checks_if_match(client, task):
    client.delete(task.url)

    refused = client.post(f"{task.url}/restore", headers={"If-Match": etag(99)})
    restored = client.post(f"{task.url}/restore", headers={"If-Match": refused.headers["ETag"]})

    assert (refused.status_code, restored.status_code) == (412, 200)


def test_poller_misses_no_change_while_eight_writers_commit(
    app, client, tasks_url, changes_url, count
):
    """A client that polls meanwhile gets revisions in order, each at most once."""
    rounds = count(100_000) // 8
    revisions = []
    writing = threading.Event()
    writing.set()

    def write():
        writer_client = app.test_client()
        task = writer_client.post(tasks_url, json={"title": "Counted"}).json
        url = f"{tasks_url}/{task['id']}"
        for number in range(rounds - 1):
            writer_client.patch(url, json={"title": f"Counted {number}"})

    def poll():
        since = "0"
        while True:
            last = not writing.is_set()
            response = client.get(changes_url, query_string={"since": since, "limit": 200})
            revisions.extend(change["revision"] for change in response.json["changes"])
            since = response.json["next"]
            if last and not response.json["more"]:
                return
            time.sleep(0.001)

    poller = threading.Thread(target=poll)
    writers = [threading.Thread(target=write) for _ in range(8)]
    for thread in (poller, *writers):
        thread.start()
    for writer in writers:
        writer.join(500)
    writing.clear()
    poller.join(60)

    assert revisions == sorted(set(revisions)), "revisions are in order, each once"
    assert revisions[-1] == 8 * rounds
    # A page has the latest change of each task: the poller may miss only replaced revisions.
    final = {task["revision"] for task in client.get(tasks_url).json}
    assert len(final) == 8
    assert final <= set(revisions)
