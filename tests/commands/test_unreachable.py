"""A database that cannot be reached: commands say so in one sentence, and repeat no password."""

import os
import socket
import subprocess
import sys

import pytest

from fault_injection.servers import free_port
from tests.support.make_run import link_source
from tests.support.postgresql import at_database
from todo_api.db.connect import UnreachableError, connect

COMMANDS = [
    ["todo_api.commands.run"],
    ["todo_api.commands.purge"],
    ["todo_api.commands.restored"],
    ["alembic", "upgrade", "head"],
    ["alembic", "current"],
]


def run(command, folder, **variables):
    link_source(folder)
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=os.environ | {"AUTH_MODE": "none", "PORT": str(free_port())} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-1])
def test_a_command_names_host_and_port(command, tmp_path):
    ended = run(command, tmp_path, DATABASE_URL="postgresql://todo:s3cret@127.0.0.1:1/todo")

    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == (
        "Cannot connect to the database at 127.0.0.1, port 1: Connection refused.\n"
    )


def test_migrations_name_the_host_that_they_connect_to(tmp_path):
    ended = run(
        ["alembic", "upgrade", "head"],
        tmp_path,
        DATABASE_URL="postgresql://127.0.0.1:2/todo",
        MIGRATION_DATABASE_URL="postgresql://todo:s3cret@127.0.0.1:1/todo",
    )

    assert "at 127.0.0.1, port 1:" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "postgresql://todo:s3cret@nowhere.invalid/todo",
            r"at nowhere\.invalid, port 5432: failed to resolve host 'nowhere\.invalid'.*[^.]\.",
        ),
        (
            "postgresql://todo:s3cret@/todo?host=/tmp/no-such-folder&port=5433",
            r"at /tmp/no-such-folder, port 5433: No such file or directory\.",
        ),
        (
            "postgresql://todo:s3cret@127.0.0.1:1,127.0.0.1:2/todo",
            r"at 127\.0\.0\.1,127\.0\.0\.1, port 1,2: Connection refused\.",
        ),
    ],
)
def test_message_is_one_sentence_without_the_password(url, message):
    with pytest.raises(UnreachableError, match=f"^Cannot connect to the database {message}$") as e:
        connect(url)

    assert "s3cret" not in str(e.value)
    assert "\n" not in str(e.value)


def test_reason_of_the_server_is_repeated(server):
    with pytest.raises(UnreachableError, match=r'database "no_such_database" does not exist\.$'):
        connect(at_database(server, "no_such_database"))


@pytest.mark.parametrize("parameters", ["", "?connect_timeout=1"])
def test_a_host_that_does_not_answer_is_given_up(parameters):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        timeout = 600 if parameters else 1

        with pytest.raises(UnreachableError) as e:
            connect(f"postgresql://127.0.0.1:{port}/todo{parameters}", timeout=timeout)

    assert f"at 127.0.0.1, port {port}: " in str(e.value)
    assert "timeout" in str(e.value)
