"""Each scenario of `make fault-injection` passes in a short run; its check finds differences."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from fault_injection import SCENARIOS
from fault_injection.__main__ import SKIPPED
from fault_injection.change_log import create_change_log
from fault_injection.journal import Journal, Task, compare
from tests.support.postgresql import migrate

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TIMEOUT = 240  # seconds; an idle machine needs a few

# The scenarios kill the servers, which therefore cannot write coverage data.
ENVIRON = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}


def run(*arguments: str) -> tuple[int, str]:
    """Run `python -m fault_injection`; return its exit status and its output."""
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
        process.terminate()  # it then ends its child processes
        output, _ = process.communicate(timeout=60)
    return process.returncode, output


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario_passes(scenario: str):
    status, output = run("--short", scenario)

    if status == SKIPPED:
        pytest.skip(output)
    assert status == 0, output


def test_unknown_scenario_is_an_error_with_its_name():
    status, output = run("lightning")

    assert status == 2
    assert "no such scenario: lightning" in output


@pytest.fixture(scope="module")
def faults_database_url(new_database) -> str:
    url = new_database("faults")
    migrate(url)
    with psycopg.connect(url, autocommit=True) as connection:
        create_change_log(connection)
    return url


@pytest.fixture
def journal(faults_database_url: str):
    """A journal of three tasks, one in the trash, and a connection to a database with them."""
    user = str(uuid.uuid4())
    journal = Journal()
    with psycopg.connect(faults_database_url, autocommit=True) as connection:
        connection.execute("TRUNCATE users, change_log CASCADE")
        connection.execute("INSERT INTO users (id) VALUES (%s)", [user])
        for title in ("Oats", "Rye", "Milk"):
            row = connection.execute(
                "INSERT INTO tasks (user_id, id, title) VALUES (%s, %s, %s)"
                " RETURNING id::text, revision",
                [user, uuid.uuid4(), title],
            ).fetchone()
            task = Task(user, row[0], title, None, completed=False, deleted=False, revision=row[1])
            journal.acknowledge("POST", task)
        connection.execute("UPDATE tasks SET deleted_at = now() WHERE title = 'Milk'")
        journal.acknowledge("DELETE", replace(task, deleted=True))
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
        ("UPDATE tasks SET deleted_at = now() WHERE title = 'Milk'", "but there are 3"),
        ("UPDATE users SET revision = revision + 1", "that of the latest change is"),
    ],
)
def test_difference_from_the_journal_is_an_error(journal, statement: str, fault: str):
    _, connection = journal
    connection.execute(statement)

    with pytest.raises(AssertionError, match=fault):
        compare(*journal)


def test_task_with_a_lower_revision_than_before_is_an_error(journal):
    recorded, _ = journal
    task = next(task for task in recorded.tasks.values() if task.title == "Oats")

    recorded.acknowledge("PATCH", replace(task, revision=task.revision - 1))

    assert len(recorded.errors) == 1
    assert recorded.errors[0].startswith("No greater revision: ")
