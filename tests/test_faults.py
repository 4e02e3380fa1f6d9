"""Each part of `make faults` passes in a short run, and its check finds differences."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import psycopg
import pytest

from faults import PARTS
from faults.__main__ import SKIPPED
from faults.writing import Journal, Task, compare
from tests.support.postgresql import migrate

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TIMEOUT = 240  # seconds; an idle machine needs a few

# The parts kill the servers, which therefore cannot write coverage data.
ENVIRON = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}


def run(*arguments: str) -> tuple[int, str]:
    """Run `python -m faults`; return its exit status and its output."""
    process = subprocess.Popen(
        [sys.executable, "-m", "faults", *arguments],
        cwd=ROOT,
        env=ENVIRON,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.terminate()  # it then ends its child processes
        output, _ = process.communicate(timeout=60)
    return process.returncode, output


@pytest.mark.parametrize("part", PARTS)
def test_part_of_make_faults_passes(part: str):
    status, output = run("--short", part)

    if status == SKIPPED:
        pytest.skip(output)
    assert status == 0, output


def test_unknown_part_is_an_error_with_its_name():
    status, output = run("lightning")

    assert status == 2
    assert "no such part: lightning" in output


@pytest.fixture(scope="module")
def faults_database_url(new_database) -> str:
    url = new_database("faults")
    migrate(url)
    return url


@pytest.fixture
def journal(faults_database_url: str):
    """A journal of two tasks, and a connection to a database with these tasks."""
    user = str(uuid.uuid4())
    journal = Journal()
    with psycopg.connect(faults_database_url, autocommit=True) as connection:
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


def test_database_equal_to_the_journal_passes(journal):
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
def test_difference_from_the_journal_is_an_error(journal, statement: str, fault: str):
    _, connection = journal
    connection.execute(statement)

    with pytest.raises(AssertionError, match=fault):
        compare(*journal)
