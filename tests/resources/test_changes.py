"""Delta sync and the trash: a client that applies changes holds what the server holds."""

import threading
import time
import uuid

import pytest

from tests.support.api import Device, etag
from tests.support.postgresql import age
from todo_api.commands.purge import purge


@pytest.fixture
def changes_url(user_id):
    return f"/api/{user_id}/changes"


def held(client, tasks_url):
    """What the server holds: the list, all its pages."""
    answer = client.get(f"{tasks_url}?limit=200")
    assert "Link" not in answer.headers
    return {task["id"]: task for task in answer.json}


@pytest.mark.parametrize("limit", [1, 2, 200])
def test_a_device_follows_every_kind_of_change(client, make_task, tasks_url, changes_url, limit):
    device = Device(client, changes_url, limit)
    tasks = [make_task(title=str(number)) for number in range(5)]
    client.delete(tasks[0].url)
    assert device.sync() == held(client, tasks_url)

    client.patch(tasks[1].url, json={"title": "Changed"})
    client.delete(tasks[2].url)
    client.delete(tasks[3].url)
    client.post(f"{tasks[3].url}/restore")
    client.post(f"{tasks[0].url}/restore")
    make_task(title="New")

    assert device.sync() == held(client, tasks_url)
    assert device.restarts == 0


def test_a_full_sync_tells_of_live_tasks_only(client, make_task, changes_url):
    live, deleted = make_task(), make_task()
    client.delete(deleted.url)

    answer = client.get(f"{changes_url}?since=0")

    assert answer.json["changes"] == [live | {"deleted": False}]
    assert answer.json["more"] is False


def test_a_deletion_is_told_by_id_alone(client, task, changes_url):
    since = client.get(f"{changes_url}?since=0").json["next"]
    client.delete(task.url)

    (change,) = client.get(changes_url, query_string={"since": since}).json["changes"]

    assert change == {
        "id": task["id"],
        "revision": task["revision"] + 1,
        "deleted": True,
        "deleted_at": change["deleted_at"],
    }


def test_a_revision_will_do_as_since(client, make_task, changes_url):
    first, second = make_task(), make_task()

    answer = client.get(f"{changes_url}?since={first['revision']}")

    assert [change["id"] for change in answer.json["changes"]] == [second["id"]]


def test_nobody_has_no_changes(client, changes_url):
    answer = client.get(f"{changes_url}?since=0")

    assert answer.json["changes"] == []
    again = client.get(changes_url, query_string={"since": answer.json["next"]})
    assert (again.status_code, again.json["changes"]) == (200, [])


@pytest.mark.parametrize("since", ["", "-1", "1.5", "x", "AAAA", "W10", "9" * 19, "x" * 201, None])
def test_a_since_that_we_did_not_make_is_refused(client, changes_url, since):
    answer = client.get(changes_url, query_string={} if since is None else {"since": since})

    assert answer.status_code == 422
    assert {error["parameter"] for error in answer.json["errors"]} == {"since"}


def test_above_what_there_is_is_gone(client, task, changes_url):
    answer = client.get(f"{changes_url}?since={task['revision'] + 1}")

    assert answer.status_code == 410
    assert answer.json["type"] == "/problems/gone"


def test_unchanged_changes_are_not_sent_again(client, make_task, changes_url):
    make_task()
    first = client.get(f"{changes_url}?since=0")

    again = client.get(f"{changes_url}?since=0", headers={"If-None-Match": first.headers["ETag"]})

    assert again.status_code == 304


def test_who_missed_what_was_purged_starts_anew(
    client, make_task, changes_url, tasks_url, connection, database_url
):
    tasks = [make_task() for _ in range(3)]
    informed, late = Device(client, changes_url), Device(client, changes_url)
    late.sync()
    client.delete(tasks[0].url)
    informed.sync()
    age(connection, tasks[0], 31)
    purge(database_url)
    client.patch(tasks[1].url, json={"title": "Changed"})

    assert informed.sync() == late.sync() == held(client, tasks_url)
    assert (informed.restarts, late.restarts) == (0, 1)


def test_a_full_sync_that_stopped_half_way_goes_on_through_a_purge(
    client, make_task, changes_url, tasks_url, connection, database_url
):
    """What it had of the first page was deleted and purged: it learns so in the end."""
    tasks = [make_task() for _ in range(5)]
    device = Device(client, changes_url, limit=2)
    assert device.page()
    client.delete(tasks[0].url)
    age(connection, tasks[0], 31)
    purge(database_url)

    for _ in range(2):
        assert device.page()
        assert device.restarts == 0, "the later pages of a full sync are never 410"

    assert device.sync() == held(client, tasks_url)
    assert device.restarts == 1


def test_a_full_sync_that_stopped_half_way_hears_of_deletions(
    client, make_task, changes_url, tasks_url
):
    tasks = [make_task() for _ in range(5)]
    device = Device(client, changes_url, limit=2)
    assert device.page()
    client.delete(tasks[0].url)
    client.delete(tasks[4].url)

    assert device.sync() == held(client, tasks_url)
    assert device.restarts == 0


@pytest.mark.parametrize("afterwards", [0, 1, 3, 10])
def test_a_server_that_was_restored_from_a_backup_is_noticed(
    client, make_task, changes_url, tasks_url, connection, user_id, afterwards
):
    """Whether it has gone on for less or for longer than what the device has seen."""
    made = [make_task() for _ in range(3)]
    backup = [
        connection.execute(f"SELECT * FROM {table} WHERE {column} = %s", (user_id,)).fetchall()
        for table, column in (("users", "id"), ("tasks", "user_id"))
    ]
    device = Device(client, changes_url)
    client.delete(made[0].url)
    client.patch(made[1].url, json={"title": "Lost with the crash"})
    lost = make_task(title="Lost with the crash")
    device.sync()

    connection.execute("SET session_replication_role = replica")
    connection.execute("DELETE FROM tasks WHERE user_id = %s", (user_id,))
    connection.execute("DELETE FROM users WHERE id = %s", (user_id,))
    for table, rows in zip(("users", "tasks"), backup, strict=True):
        for row in rows:
            places = ", ".join(["%s"] * len(row))
            connection.execute(f"INSERT INTO {table} VALUES ({places})", row)
    connection.execute("RESET session_replication_role")
    for number in range(afterwards):
        make_task(title=f"After the restore {number}")

    assert device.sync() == held(client, tasks_url)
    assert lost["id"] not in device.tasks
    assert device.restarts == 1


def test_who_was_erased_and_began_anew_is_noticed(
    client, make_task, changes_url, tasks_url, user_id
):
    device = Device(client, changes_url)
    for _ in range(3):
        make_task()
    device.sync()
    client.delete(f"/api/{user_id}")
    for _ in range(4):
        make_task()

    assert device.sync() == held(client, tasks_url)
    assert device.restarts == 1


def test_the_trash_has_what_was_deleted_and_when_it_goes(client, make_task, tasks_url):
    kept, deleted = make_task(), make_task()
    client.delete(deleted.url)

    (shown,) = client.get(f"{tasks_url}?deleted=true").json

    assert shown == deleted | {
        name: shown[name] for name in ("deleted_at", "purge_at", "updated_at", "revision")
    }
    assert shown["purge_at"] > shown["deleted_at"]
    assert client.get(tasks_url).json == [kept]


def test_a_restored_task_is_back(client, task, tasks_url):
    client.delete(task.url)

    answer = client.post(f"{task.url}/restore")

    assert answer.status_code == 200
    assert answer.json == client.get(task.url).json
    assert answer.json["revision"] == task["revision"] + 2
    assert client.get(f"{tasks_url}?deleted=true").json == []


def test_a_task_that_is_not_in_the_trash_cannot_be_restored(client, task, tasks_url):
    live = client.post(f"{task.url}/restore")
    never = client.post(f"{tasks_url}/{uuid.uuid4()}/restore")

    assert (live.status_code, live.json["type"]) == (409, "/problems/not-in-trash")
    assert never.status_code == 404


def test_a_restore_heeds_if_match(client, task):
    client.delete(task.url)

    refused = client.post(f"{task.url}/restore", headers={"If-Match": etag(99)})
    done = client.post(f"{task.url}/restore", headers={"If-Match": refused.headers["ETag"]})

    assert (refused.status_code, done.status_code) == (412, 200)


def test_nothing_is_missed_while_eight_writers_commit(app, client, tasks_url, changes_url, count):
    """A follower asks all the while; it sees each number once, in order, and none is left out."""
    rounds = count(100_000) // 8
    seen = []
    writing = threading.Event()
    writing.set()

    def write():
        mine = app.test_client()
        task = mine.post(tasks_url, json={"title": "Counted"}).json
        url = f"{tasks_url}/{task['id']}"
        for number in range(rounds - 1):
            mine.patch(url, json={"title": f"Counted {number}"})

    def follow():
        since = "0"
        while True:
            last = not writing.is_set()
            answer = client.get(changes_url, query_string={"since": since, "limit": 200})
            seen.extend(change["revision"] for change in answer.json["changes"])
            since = answer.json["next"]
            if last and not answer.json["more"]:
                return
            time.sleep(0.001)

    follower = threading.Thread(target=follow)
    writers = [threading.Thread(target=write) for _ in range(8)]
    for thread in (follower, *writers):
        thread.start()
    for writer in writers:
        writer.join(500)
    writing.clear()
    follower.join(60)

    assert seen == sorted(set(seen)), "in order, and none twice"
    assert seen[-1] == 8 * rounds
    # A task is told of as it is: what the follower did not see was overtaken by a later change.
    final = {task["revision"] for task in client.get(tasks_url).json}
    assert len(final) == 8
    assert final <= set(seen)
