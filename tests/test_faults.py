"""Each scenario of `make fault-injection`, for a few seconds, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import psycopg
import pytest

from fault_injection import SCENARIOS
from fault_injection.__main__ import SKIPPED
from fault_injection.journal import Journal, Task, compare
from tests.support.postgresql import migrate

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TIMEOUT = 240  # seconds: a few on a machine that does nothing else

# The servers that are tested here write no figures of coverage: they are killed.
ENVIRON = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}


def run(*arguments: str) -> tuple[int, str]:
    """The exit status and the output of `python -m fault_injection`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fault_injection", *arguments],
        cwd=ROOT,
        env=ENVIRON,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.terminate()  # it ends what it has started
        output, _ = process.communicate(timeout=60)
    return process.returncode, output


@pytest.mark.parametrize("part", SCENARIOS)
def test_what_is_promised_holds_through_a_fault(part: str):
    status, output = run("--short", part)

    if status == SKIPPED:
        pytest.skip(output)
    assert status == 0, output


def test_a_part_that_does_not_exist_is_named():
    status, output = run("lightning")

    assert status == 2
    assert "no such scenario: lightning" in output


@pytest.fixture(scope="module")
def own_database(new_database) -> str:
    url = new_database("faults")
    migrate(url)
    return url


@pytest.fixture
def journal(own_database: str):
    """A journal, and a connection to the database that holds what it says."""
    user = str(uuid.uuid4())
    journal = Journal()
    with psycopg.connect(own_database, autocommit=True) as connection:
        connection.execute("TRUNCATE users CASCADE")
        connection.execute("INSERT INTO users (id) VALUES (%s)", [user])
        for title in ("Oats", "Rye"):
            row = connection.execute(
                "INSERT INTO tasks (user_id, id, title) VALUES (%s, %s, %s)"
                " RETURNING id::text, revision",
                [user, uuid.uuid4(), title],
            ).fetchone()
            task = Task(user, row[0], title, None, completed=False, deleted=False, revision=row[1])
            journal.acknowledge("POST", task)
        yield journal, connection


def test_what_is_there_as_acknowledged_is_no_fault(journal):
    compare(*journal)


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("DELETE FROM tasks WHERE title = 'Oats'", "Lost"),
        ("UPDATE tasks SET title = 'Milk' WHERE title = 'Oats'", "but there is"),
        ("UPDATE tasks SET deleted_at = now() WHERE title = 'Oats'", "but there is"),
        (
            "INSERT INTO tasks SELECT user_id, gen_random_uuid(), title FROM tasks LIMIT 1",
            "Never acknowledged",
        ),
        ("UPDATE users SET revision = revision + 1", "so many changes"),
    ],
)
def test_what_is_lost_changed_or_doubled_is_found(journal, statement: str, fault: str):
    _, connection = journal
    connection.execute(statement)

    with pytest.raises(AssertionError, match=fault):
        compare(*journal)
