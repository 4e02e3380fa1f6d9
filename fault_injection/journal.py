"""Clients that write, retry, and record each acknowledged write in a journal."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from fault_injection import print_figures
from fault_injection.change_log import count_changes, create_change_log
from fault_injection.clients import Client, Response
from todo_api.web.conditional import etag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg import Connection

    from fault_injection.servers import Api, Postgres

CLIENTS = 8
USERS = 4  # fewer than clients, so that they wait for each other's locks
RETRY_TIMEOUT = 60  # seconds for a request and all its retries
MAX_LIVE = 20  # tasks that a client changes; it never changes the others again
TRASH_PAGE = 200  # tasks
REPEATED = 0.05  # of the writes: they are sent again after their response


@dataclass(frozen=True)
class Task:
    """A task with the values of its last acknowledged write."""

    user: str
    id: str
    title: str
    description: str | None
    completed: bool
    deleted: bool
    # From the latest response. A DELETE's response has no revision: the row has a higher one.
    revision: int

    @property
    def path(self) -> str:
        return f"/api/{self.user}/tasks/{self.id}"

    @property
    def values(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "description": self.description,
            "completed": self.completed,
        }


@dataclass
class Journal:
    """The acknowledged writes of all clients, and the errors."""

    tasks: dict[str, Task] = field(default_factory=dict)
    acknowledged: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)  # by task
    outcomes: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    last_write_at: float = 0
    requests: int = 0
    pauses: list[float] = field(default_factory=list)  # from the end of a fault to the next write
    slowest: float = 0  # seconds from one attempt to its response
    revisions: set[tuple[str, int]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def acknowledge(self, operation: str, task: Task) -> None:
        with self.lock:
            before = self.tasks.get(task.id)
            self.tasks[task.id] = task
            self.acknowledged += 1
            self.operations[operation] += 1
            self.changes[task.id] += 1
            self.last_write_at = time.monotonic()
            if not task.deleted:
                if (task.user, task.revision) in self.revisions:
                    self.errors.append(f"Revision {task.revision} twice: {task}")
                if before and task.revision <= before.revision:
                    self.errors.append(f"No greater revision: {before}, then {task}")
                self.revisions.add((task.user, task.revision))

    def record_response_time(self, seconds: float) -> None:
        with self.lock:
            self.requests += 1
            self.slowest = max(self.slowest, seconds)

    def count(self, outcome: str) -> None:
        with self.lock:
            self.outcomes[outcome] += 1

    def record_error(self, error: str) -> None:
        with self.lock:
            self.errors.append(error)


class Writer(threading.Thread):
    """A client that writes until it is stopped; then it waits for its last response."""

    def __init__(
        self,
        api: Api,
        journal: Journal,
        users: list[str],
        stop: threading.Event,
        pause: float,
    ) -> None:
        super().__init__(daemon=True)
        self._client = Client(api.address)
        self._journal = journal
        self._users = users
        self._stop_asked = stop
        self._pause = pause
        self._random = random.Random()
        self._live: list[Task] = []
        self._trash: list[Task] = []

    def run(self) -> None:
        operations = [self.create, self.change, self.complete, self.delete]
        operations += [self.restore, self.create_with_id, self.read]
        weights = [30, 30, 15, 10, 8, 7, 10]
        try:
            while not self._stop_asked.wait(self._pause):
                (operation,) = self._random.choices(operations, weights)
                operation()
        except Exception as error:  # noqa: BLE001  the main thread reports it
            self._journal.record_error(f"{type(error).__name__}: {error}")
        finally:
            self._client.close()

    def make_values(self) -> dict[str, Any]:
        name = uuid.uuid4().hex
        return {
            "title": f"Buy {name}",
            "description": self._random.choice([None, "Two litres " + name * 3]),
            "completed": self._random.random() < 0.3,
        }

    def create(self) -> None:
        user, values = self._random.choice(self._users), self.make_values()
        key = str(uuid.uuid4())
        path = f"/api/{user}/tasks"
        response = self.write("POST", 201, "POST", path, values, {"Idempotency-Key": key})
        if response:
            self.record_task("POST", user, values, response.json)

    def create_with_id(self) -> None:
        user = self._random.choice(self._users)
        values = {"id": str(uuid.uuid4()), **self.make_values()}
        response = self.write("POST with an id", 201, "POST", f"/api/{user}/tasks", values)
        if response:
            self.record_task("POST with an id", user, values, response.json)

    def change(self) -> None:
        if task := self.pop_random(self._live):
            self.patch("PATCH", task, "", self.make_values())

    def complete(self) -> None:
        if task := self.pop_random(self._live):
            self.patch("complete", task, "/complete", {"completed": not task.completed})

    def patch(self, operation: str, task: Task, suffix: str, changes: dict[str, Any]) -> None:
        condition = {"If-Match": etag(task.revision)}
        response = self.write(operation, 200, "PATCH", task.path + suffix, changes, condition)
        if response:
            self.record_change(operation, task, changes, response.json)

    def delete(self) -> None:
        task = self.pop_random(self._live)
        if task is None:
            return
        condition = {"If-Match": etag(task.revision)}
        if self.write("DELETE", 204, "DELETE", task.path, None, condition):
            deleted = replace(task, deleted=True)
            self._journal.acknowledge("DELETE", deleted)
            self._trash.append(deleted)

    def restore(self) -> None:
        task = self.pop_random(self._trash)
        if task is None:
            return
        # If-Match names this deletion, whose revision the trash lists. So an attempt that arrives
        # late does not undo a later deletion.
        deleted = self.find_in_trash(task)
        if deleted is None:
            return
        condition = {"If-Match": etag(deleted["revision"])}
        response = self.write("restore", 200, "POST", f"{task.path}/restore", None, condition)
        if response:
            self.record_change("restore", task, {}, response.json)

    def find_in_trash(self, task: Task) -> dict[str, Any] | None:
        """Return the task as the trash lists it, or None and record an error."""
        path = f"/api/{task.user}/trash?limit={TRASH_PAGE}"
        while path:
            response = self.send("GET", path)
            if not self.has_status("trash", response, 200):
                return None
            for entry in response.json:
                if entry["id"] == task.id:
                    deleted: dict[str, Any] = entry["value"]
                    if deleted != deleted | task.values or deleted["revision"] <= task.revision:
                        self._journal.record_error(f"Deleted {task}, but the trash has {entry}")
                        return None
                    return deleted
            path = response.headers.get("link", "").partition(">")[0].removeprefix("<")
        self._journal.record_error(f"Not in the trash: {task}")
        return None

    def read(self) -> None:
        if self._live:
            task = self._random.choice(self._live)
            response = self.send("GET", task.path)
            expected = {"revision": task.revision, **task.values}
            if self.has_status("GET", response, 200) and response.json != response.json | expected:
                self._journal.record_error(f"Acknowledged {task}, but read {response}")

    def pop_random(self, tasks: list[Task]) -> Task | None:
        if not tasks:
            return None
        return tasks.pop(self._random.randrange(len(tasks)))

    def record_change(self, operation: str, task: Task, changes: dict[str, Any], body: Any) -> None:
        """Record a change of the task, as `record_task` does."""
        self.record_task(operation, task.user, {"id": task.id, **task.values, **changes}, body)

    def record_task(self, operation: str, user: str, values: dict[str, Any], body: Any) -> None:
        """Record the task of a response, or an error if its values differ from the sent ones."""
        expected = values | {"user_id": user}
        if body != body | expected:
            self._journal.record_error(f"{operation} sent {expected} and got {body}")
            return
        names = ("id", "title", "description", "completed", "revision")
        task = Task(user, deleted=False, **{name: body[name] for name in names})
        self._journal.acknowledge(operation, task)
        self._live.append(task)
        if len(self._live) > MAX_LIVE:
            self.pop_random(self._live)

    def has_status(self, operation: str, response: Response, status: int) -> bool:
        """Return True if the response has the expected status; record another one as an error."""
        if response.status != status:
            self._journal.record_error(f"{operation} got the response {response}")
        return response.status == status

    def write(
        self,
        operation: str,
        status: int,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
    ) -> Response | None:
        """Send the write until it gets a response, and sometimes once more after that.

        Only this client writes to the task, so each response must be a success: an earlier attempt
        without a response may have been applied, and a write can be sent again as it is. Return
        the response, or None and record an error.
        """
        response = self.send(method, path, body, headers)
        if not self.has_status(operation, response, status):
            return None
        if self._random.random() < REPEATED:
            again = self.send(method, path, body, headers)
            if (again.status, again.body) != (response.status, response.body):
                self._journal.record_error(f"{operation} got {response}, then {again}")
                return None
            self._journal.count("repeated")
        return response

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
    ) -> Response:
        """Send the request until a response other than 503 comes, and return this response."""
        deadline = time.monotonic() + RETRY_TIMEOUT
        while time.monotonic() < deadline:
            started = time.monotonic()
            try:
                response = self._client.request(method, path, body, headers)
            except (OSError, HTTPException):
                self._journal.count("no response")
                time.sleep(0.05)
            else:
                self._journal.record_response_time(time.monotonic() - started)
                if response.status != 503:
                    if "idempotent-replayed" in response.headers:
                        self._journal.count("replayed")
                    return response
                self._journal.count("503")
                if "retry-after" not in response.headers:
                    self._journal.record_error(f"A 503 without Retry-After: {response}")
                # Shorter than Retry-After, so that more writes are sent before the next fault.
                time.sleep(0.1 + 0.2 * self._random.random())
        raise TimeoutError(f"Only 503 or no response to {method} {path} in {RETRY_TIMEOUT} s")


@contextmanager
def writers(
    api: Api, journal: Journal, clients: int = CLIENTS, *, pause: float = 0
) -> Iterator[None]:
    """Run clients that write, each with a pause of `pause` seconds between two requests.

    At the end, each client waits for its last response.
    """
    users = [str(uuid.uuid4()) for _ in range(USERS)]
    stop = threading.Event()
    threads = [Writer(api, journal, users, stop, pause) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(RETRY_TIMEOUT * 2)
    assert not any(thread.is_alive() for thread in threads), "A client does not end."


def write_during(
    fault: Callable[[], None],
    *,
    times: int,
    writes: int,
    api: Api,
    server: Postgres,
    clients: int = CLIENTS,
    seconds: float = 900,
) -> Journal:
    """Inject the fault `times` times while clients write, before, between and after the faults.

    At least `writes` writes are acknowledged. At the end, the journal and the database must match.
    """
    journal = Journal()
    with server.connect() as connection:
        create_change_log(connection)
    started = time.monotonic()
    with writers(api, journal, clients):
        for number in range(1, times + 2):
            await_writes(journal, writes * number // (times + 1), started + seconds)
            if number <= times:
                fault()
                before, fault_ended = journal.acknowledged, time.monotonic()
                await_writes(journal, before + 1, started + seconds)
                journal.pauses.append(journal.last_write_at - fault_ended)
    with server.connect() as connection:
        compare(journal, connection)
    counts = api.metrics()
    print_figures(
        faults=times,
        clients=clients,
        writes_acknowledged=journal.acknowledged,
        **{f"  {name}": count for name, count in sorted(journal.operations.items())},
        seconds=round(time.monotonic() - started),
        requests_without_a_response=journal.outcomes["no response"],
        responses_of_503=journal.outcomes["503"],
        writes_sent_again_after_a_success=journal.outcomes["repeated"],
        responses_replayed=journal.outcomes["replayed"],
        statements_retried_by_the_API=round(counts["todo_database_retries_total"]),
        unknown_outcomes_of_statements=round(counts["todo_database_unknown_outcomes_total"]),
        slowest_response=f"{journal.slowest:.2f} s",
        longest_time_to_the_next_write=f"{max(journal.pauses, default=0):.2f} s",
        lost_or_applied_twice=0,
    )
    return journal


def await_writes(journal: Journal, writes: int, deadline: float) -> None:
    while journal.acknowledged < writes:
        assert not journal.errors, "\n".join(journal.errors[:20])
        assert time.monotonic() < deadline, (
            f"Only {journal.acknowledged} of {writes} writes before the timeout."
        )
        time.sleep(0.002)


def compare(journal: Journal, connection: Connection[tuple[Any, ...]]) -> None:
    """Compare the journal with the rows of the database.

    The connection is a superuser's, so it sees all rows. AssertionError lists the differences.
    """
    errors = list(journal.errors)
    rows = connection.execute(
        "SELECT user_id::text, id::text, title, description, completed,"
        " deleted_at IS NOT NULL, revision FROM tasks"
    ).fetchall()
    stored = {row[1]: Task(*row) for row in rows}
    for task_id, task in journal.tasks.items():
        row = stored.pop(task_id, None)
        if row is None:
            errors.append(f"Lost: {task}")
        elif task.deleted and row.deleted and row.revision > task.revision:
            continue
        elif row != task:
            errors.append(f"Acknowledged {task}, but there is {row}")
    errors += [f"Never acknowledged: {task}" for task in stored.values()]
    # Every write is one change of a task, and every change takes the next revision of its user.
    changes = count_changes(connection)
    errors += [
        f"Acknowledged {acknowledged} changes of {task_id}, but there are {changes[task_id]}"
        for task_id, acknowledged in journal.changes.items()
        if changes[task_id] != acknowledged
    ]
    revisions = connection.execute(
        "SELECT users.id::text, users.revision, max(tasks.revision)"
        " FROM users JOIN tasks ON user_id = users.id GROUP BY users.id, users.revision"
    ).fetchall()
    errors += [
        f"The revision of user {user} is {revision}, but that of the latest change is {latest}"
        for user, revision, latest in revisions
        if revision != latest
    ]
    assert not errors, f"{len(errors)} errors:\n" + "\n".join(errors[:20])
