"""`make restored`: after a restore from a backup, clients have to start a full sync."""

import os
import subprocess
import sys
import uuid

import pytest

from tests.support.postgresql import as_login, execute, migrate
from todo_api.commands.restored import set_new_epoch


@pytest.fixture
def changes_url(user_id):
    return f"/api/{user_id}/changes"


def test_sync_token_of_the_previous_epoch_is_gone(client, task, changes_url, database_url):
    before = client.get(f"{changes_url}?since=0").json["next"]

    set_new_epoch(database_url)

    outdated = client.get(changes_url, query_string={"since": before})
    full = client.get(f"{changes_url}?since=0")
    later = client.get(changes_url, query_string={"since": full.json["next"]})
    assert outdated.status_code == 410
    assert outdated.json["type"] == "/problems/gone"
    assert [change["value"] for change in full.json["changes"]] == [task]
    assert (later.status_code, later.json["changes"]) == (200, [])


def test_stored_page_of_the_previous_epoch_is_sent_again(client, task, changes_url, database_url):
    """`next` of the stored page has the previous epoch, so a 304 would lead to a 410."""
    before = client.get(f"{changes_url}?since=0")
    if_none_match = {"If-None-Match": before.headers["ETag"]}
    unchanged = client.get(f"{changes_url}?since=0", headers=if_none_match)

    set_new_epoch(database_url)
    after = client.get(f"{changes_url}?since=0", headers=if_none_match)

    assert [change["value"] for change in before.json["changes"]] == [task]
    assert unchanged.status_code == 304
    assert after.status_code == 200
    assert after.json["next"] != before.json["next"]


def test_tasks_keep_their_revisions_and_etags(client, task, database_url):
    set_new_epoch(database_url)

    response = client.get(task.url)

    assert (response.json, response.headers["ETag"]) == (task, task.etag)
    assert client.patch(task.url, json=task | {"title": "Buy oats"}).status_code == 200


def test_each_run_sets_another_epoch(connection, database_url):
    epochs = [set_new_epoch(database_url) for _ in range(3)]

    assert len(set(map(uuid.UUID, epochs))) == 3
    assert connection.execute("SELECT epoch::text FROM database_state").fetchall() == [
        (epochs[-1],)
    ]


def test_unprivileged_owner_of_the_tables_can_set_an_epoch(
    new_database, new_login, server, database_url
):
    assert database_url  # its migrations have created the roles
    login = new_login("restorer")
    execute(server, f"GRANT todo_app, todo_maintenance TO {login}")
    owner_url = as_login(new_database("restored", login), login)
    migrate(owner_url)

    assert set_new_epoch(owner_url) != set_new_epoch(owner_url)


def test_command_logs_the_epoch(connection, database_url, request):
    process = subprocess.run(
        [sys.executable, "-m", "todo_api.commands.restored"],
        cwd=request.config.rootpath,
        env=os.environ | {"DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    (epoch,) = connection.execute("SELECT epoch::text FROM database_state").fetchone()
    assert f'"epoch":"{epoch}"' in process.stderr


def test_command_names_a_missing_setting(request):
    environ = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}

    process = subprocess.run(
        [sys.executable, "-m", "todo_api.commands.restored"],
        cwd=request.config.rootpath,
        env=environ | {"DATABASE_URL": ""},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert process.returncode == 1
    assert "DATABASE_URL" in process.stderr
