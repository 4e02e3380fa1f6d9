"""Sync and the trash: a client that applies all changes has the same tasks as the server."""

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support.api import Device, etag, next_url, pages
from tests.support.locks import wait_for_sessions
from tests.support.postgresql import backdate_deletion
from todo_api.commands.purge import purge
from todo_api.commands.restored import set_new_epoch


@pytest.fixture
def changes_url(user_id):
    return f"/api/{user_id}/changes"


@pytest.fixture
def trash_url(user_id):
    return f"/api/{user_id}/trash"


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


@pytest.mark.parametrize("limit", [1, 2, 3, 200])
def test_list_and_task_with_one_id_are_both_in_the_changes(client, user_id, changes_url, limit):
    url, ids = f"/api/{user_id}", [str(uuid.uuid4()) for _ in range(3)]
    for number in ids:
        client.post(f"{url}/lists", json={"id": number, "name": "Groceries"})
        client.post(f"{url}/tasks", json={"id": number, "title": "Bake", "list_id": number})
    since = client.get(f"{changes_url}?since=0").json["next"]
    for number in ids:
        client.delete(f"{url}/lists/{number}")

    seen, more = [], True
    while more:
        page = client.get(f"{changes_url}?since={since}&limit={limit}").json
        since, more = page["next"], page["more"]
        seen += [(change["id"], change["type"], change["deleted"]) for change in page["changes"]]

    assert len(seen) == 6
    assert set(seen) == {(number, kind, True) for number in ids for kind in ("list", "task")}


def test_full_sync_contains_only_live_tasks(client, make_task, changes_url):
    live, deleted = make_task(), make_task()
    client.delete(deleted.url)

    response = client.get(f"{changes_url}?since=0")

    assert response.json["changes"] == [
        {
            "type": "task",
            "id": live["id"],
            "revision": live["revision"],
            "deleted": False,
            "value": live,
        }
    ]
    assert response.json["more"] is False


def test_tombstone_has_type_id_revision_and_time_of_deletion(client, task, changes_url):
    since = client.get(f"{changes_url}?since=0").json["next"]
    client.delete(task.url)

    (change,) = client.get(changes_url, query_string={"since": since}).json["changes"]

    assert change["revision"] > task["revision"]
    assert change == {
        "type": "task",
        "id": task["id"],
        "revision": change["revision"],
        "deleted": True,
        "deleted_at": change["deleted_at"],
    }


def test_page_can_end_between_two_tasks_of_one_revision(
    client, make_task, changes_url, tasks_url, connection, user_id
):
    for _ in range(5):
        make_task()
    connection.execute("UPDATE tasks SET completed = true WHERE user_id = %s", (user_id,))
    device = Device(client, changes_url, limit=2)

    device.sync()

    assert len({task["revision"] for task in device.tasks.values()}) == 1
    assert device.tasks == get_tasks_by_id(client, tasks_url)


def test_user_without_tasks_has_no_changes(client, changes_url):
    response = client.get(f"{changes_url}?since=0")

    assert response.json["changes"] == []
    repeated = client.get(changes_url, query_string={"since": response.json["next"]})
    assert (repeated.status_code, repeated.json["changes"]) == (200, [])


@pytest.mark.parametrize(
    "since", ["", "-1", "1", "1.5", "x", "AAAA", "W10", "9" * 19, "x" * 99, "x" * 201, None]
)
def test_invalid_sync_token_is_refused(client, changes_url, since):
    response = client.get(changes_url, query_string={} if since is None else {"since": since})

    assert response.status_code == 422
    assert {error["parameter"] for error in response.json["errors"]} == {"since"}


def test_token_of_another_user_is_refused(client, make_task, changes_url):
    make_task()
    token = client.get(f"/api/{uuid.uuid4()}/changes?since=0").json["next"]

    response = client.get(changes_url, query_string={"since": token})

    assert response.status_code == 422


def test_token_from_before_the_first_task_is_gone_after_it(client, make_task, changes_url):
    """The client may have a task from its own POST that another client has deleted since."""
    token = client.get(f"{changes_url}?since=0").json["next"]
    before = client.get(changes_url, query_string={"since": token})
    task = make_task()
    client.delete(task.url)

    after = client.get(changes_url, query_string={"since": token})

    assert (before.status_code, before.json["next"]) == (200, token)
    assert (after.status_code, after.json["type"]) == (410, "/problems/gone")


def test_token_of_another_epoch_is_gone(client, make_task, changes_url, database_url):
    make_task()
    first = client.get(f"{changes_url}?since=0")
    set_new_epoch(database_url)

    response = client.get(changes_url, query_string={"since": first.json["next"]})
    full_sync = client.get(
        f"{changes_url}?since=0", headers={"If-None-Match": first.headers["ETag"]}
    )

    assert (response.status_code, response.json["type"]) == (410, "/problems/gone")
    assert full_sync.status_code == 200, "a 304 would repeat the token of the old epoch"


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


def test_interrupted_full_sync_restarts_after_a_purge_of_a_received_task(
    client, make_task, changes_url, tasks_url, connection, database_url
):
    tasks = [make_task() for _ in range(5)]
    device = Device(client, changes_url, limit=2)
    assert device.sync_page()
    client.delete(tasks[0].url)
    backdate_deletion(connection, tasks[0], 31)
    purge(database_url)

    assert device.sync() == get_tasks_by_id(client, tasks_url)
    assert device.restarts == 1


def test_full_sync_continues_after_a_purge_of_what_was_deleted_before_it(
    client, make_task, changes_url, tasks_url, connection, database_url
):
    tasks = [make_task() for _ in range(5)]
    client.delete(tasks[4].url)
    device = Device(client, changes_url, limit=2)
    assert device.sync_page()
    backdate_deletion(connection, tasks[4], 31)
    purge(database_url)

    assert device.sync() == get_tasks_by_id(client, tasks_url)
    assert device.restarts == 0


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
    client,
    make_task,
    changes_url,
    tasks_url,
    connection,
    user_id,
    database_url,
    tasks_after_restore,
):
    """After the restore, the server makes fewer or more changes than the device has received.

    `make restored` is the step that follows a restore.
    """
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
            values = [Jsonb(value) if isinstance(value, dict) else value for value in row]
            connection.execute(f"INSERT INTO {table} VALUES ({placeholders})", values)
    connection.execute("RESET session_replication_role")
    set_new_epoch(database_url)
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


def test_trash_lists_deleted_tasks_with_their_purge_time(client, make_task, tasks_url, trash_url):
    live, first, second = make_task(), make_task(), make_task()
    client.delete(first.url)
    client.delete(second.url)

    response = client.get(trash_url)

    assert [entry["id"] for entry in response.json] == [second["id"], first["id"]]
    entry = response.json[1]
    changed = {name: entry["value"][name] for name in ("updated_at", "revision")}
    assert entry == {
        "type": "task",
        "id": first["id"],
        "deleted_at": entry["deleted_at"],
        "purge_at": entry["purge_at"],
        "value": first | changed,
    }
    deleted_at, purge_at = map(datetime.fromisoformat, (entry["deleted_at"], entry["purge_at"]))
    assert purge_at - deleted_at == timedelta(days=30)
    assert response.headers["Cache-Control"] == "no-store"
    assert "ETag" not in response.headers
    assert client.get(tasks_url).json == [live]


def test_trash_is_paged(client, make_task, trash_url, connection, user_id):
    tasks = [make_task() for _ in range(5)]
    for task in tasks[:3]:
        client.delete(task.url)
    # Two in the same microsecond: the id decides.
    connection.execute(
        "UPDATE tasks SET deleted_at = now() WHERE user_id = %s AND deleted_at IS NULL", (user_id,)
    )

    listed = [entry for page in pages(client, f"{trash_url}?limit=2") for entry in page]

    assert listed == client.get(trash_url).json
    assert {entry["id"] for entry in listed} == {task["id"] for task in tasks}


def test_cursor_of_another_users_trash_is_refused(client, make_task, trash_url):
    for _ in range(2):
        client.delete(make_task().url)
    link = next_url(client.get(f"{trash_url}?limit=1"))
    cursor = link.partition("cursor=")[2]

    response = client.get(f"/api/{uuid.uuid4()}/trash?limit=1&cursor={cursor}")

    assert response.status_code == 422


def test_emptied_trash_is_empty_and_live_tasks_stay(client, make_task, tasks_url, trash_url):
    live, deleted = make_task(), make_task()
    client.delete(deleted.url)
    before = client.get(live.url).headers["ETag"]

    responses = [client.delete(trash_url), client.delete(trash_url)]

    assert [response.status_code for response in responses] == [204, 204]
    assert client.get(trash_url).json == []
    assert client.get(tasks_url).json == [live]
    assert client.get(live.url).headers["ETag"] == before
    assert client.post(f"{deleted.url}/restore").status_code == 404
    assert client.delete(deleted.url).status_code == 404


def test_device_restarts_its_sync_after_the_trash_was_emptied(
    client, make_task, changes_url, tasks_url, trash_url
):
    tasks = [make_task() for _ in range(3)]
    up_to_date, outdated = Device(client, changes_url), Device(client, changes_url)
    outdated.sync()
    client.delete(tasks[0].url)
    up_to_date.sync()
    client.delete(trash_url)

    assert up_to_date.sync() == outdated.sync() == get_tasks_by_id(client, tasks_url)
    assert (up_to_date.restarts, outdated.restarts) == (0, 1)


def test_emptying_the_trash_waits_for_a_change_of_a_deleted_task(
    app, client, task, user_id, trash_url, database_url, connection
):
    """Such a change is a renewal. The revision that is removed is the new one."""
    client.delete(task.url)
    with psycopg.connect(database_url) as other, ThreadPoolExecutor(1) as threads:
        other.execute("UPDATE tasks SET title = 'By hand' WHERE id = %s", (task["id"],))
        pending = threads.submit(app.test_client().delete, trash_url)
        wait_for_sessions(database_url, lambda: 1)
        query = "SELECT revision FROM users WHERE id = %s"
        (revision,) = other.execute(query, (user_id,)).fetchone()
        other.commit()
        response = pending.result(timeout=30)

    query = "SELECT revision, purged_revision FROM users WHERE id = %s"
    assert response.status_code == 204
    assert connection.execute(query, (user_id,)).fetchall() == [(revision, revision)]
    assert client.get(trash_url).json == []


def test_emptying_the_trash_of_an_unknown_user_creates_nothing(client, connection):
    stranger = uuid.uuid4()

    response = client.delete(f"/api/{stranger}/trash")

    assert response.status_code == 204
    assert connection.execute("SELECT FROM users WHERE id = %s", (stranger,)).fetchall() == []


def test_restored_task_is_live_again(client, task, trash_url):
    client.delete(task.url)

    response = client.post(f"{task.url}/restore")

    assert response.status_code == 200
    assert response.json == client.get(task.url).json
    assert response.json["revision"] > task["revision"]
    assert client.get(trash_url).json == []


def test_restore_of_a_live_task_changes_nothing(client, task, tasks_url):
    live = client.post(f"{task.url}/restore")
    unknown = client.post(f"{tasks_url}/{uuid.uuid4()}/restore")

    assert (live.status_code, live.json) == (200, task)
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
            if response.status_code == 410:  # the first task has been created
                since = "0"
                continue
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
    # A page has the latest change of each task: the poller may miss only replaced revisions.
    final = {task["revision"] for task in client.get(tasks_url).json}
    assert len(final) == 8
    assert final <= set(revisions)
