"""Clients that write, repeat what was not answered, and remember all that was acknowledged."""

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

from faults import table
from faults.clients import Answer, Client
from todo_api.web.conditional import etag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg import Connection

    from faults.servers import Api, Postgres

CLIENTS = 8
USERS = 4  # fewer than clients, so that they wait for each other's locks
PATIENCE = 60  # seconds in which a request has to be answered at last, however often it is repeated
LIVE = 20  # tasks that a client goes on with; the others rest as they are


@dataclass(frozen=True)
class Task:
    """A task as a client knows it from what was acknowledged."""

    user: str
    id: str
    title: str
    description: str | None
    completed: bool
    deleted: bool
    # That of the latest answer. A DELETE's has none: the task's is then above it.
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
    """What was acknowledged, by all clients together, and what went wrong."""

    tasks: dict[str, Task] = field(default_factory=dict)
    acknowledged: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)  # by user
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    latest: float = 0
    requests: int = 0
    pauses: list[float] = field(default_factory=list)  # from the end of a fault to the next write
    slowest: float = 0  # the seconds that one attempt waited for its answer
    revisions: set[tuple[str, int]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def acknowledge(self, operation: str, task: Task) -> None:
        with self.lock:
            self.tasks[task.id] = task
            self.acknowledged += 1
            self.operations[operation] += 1
            self.changes[task.user] += 1
            self.latest = time.monotonic()
            if not task.deleted:
                if (task.user, task.revision) in self.revisions:
                    self.wrong.append(f"Revision {task.revision} twice: {task}")
                self.revisions.add((task.user, task.revision))

    def took(self, seconds: float) -> None:
        with self.lock:
            self.requests += 1
            self.slowest = max(self.slowest, seconds)

    def count(self, outcome: str) -> None:
        with self.lock:
            self.outcomes[outcome] += 1

    def complain(self, what: str) -> None:
        with self.lock:
            self.wrong.append(what)


class Writer(threading.Thread):
    """A client that goes on writing until it is told to stop, and then ends what it has begun."""

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
        operations += [self.restore, self.create_named, self.read]
        weights = [30, 30, 15, 10, 8, 7, 10]
        try:
            while not self._stop_asked.wait(self._pause):
                (operation,) = self._random.choices(operations, weights)
                operation()
        except Exception as error:  # noqa: BLE001  told by the thread that waits for this one
            self._journal.complain(f"{type(error).__name__}: {error}")
        finally:
            self._client.close()

    def values(self) -> dict[str, Any]:
        name = uuid.uuid4().hex
        return {
            "title": f"Buy {name}",
            "description": self._random.choice([None, "Two litres " + name * 3]),
            "completed": self._random.random() < 0.3,
        }

    def create(self) -> None:
        user, values = self._random.choice(self._users), self.values()
        key = str(uuid.uuid4())
        answer, _ = self.ask("POST", f"/api/{user}/tasks", values, {"Idempotency-Key": key})
        if self.told("POST", answer, 201):
            self.took("POST", user, values, answer.json)

    def create_named(self) -> None:
        user, values = self._random.choice(self._users), self.values()
        path = f"/api/{user}/tasks/{uuid.uuid4()}"
        answer, doubtful = self.ask("PUT", path, values, {"If-None-Match": "*"})
        if doubtful and answer.status == 412:
            self.took("PUT", user, values, answer.json["current"])
        elif self.told("PUT", answer, 201):
            self.took("PUT", user, values, answer.json)

    def change(self) -> None:
        if task := self.pick(self._live):
            self.patch("PATCH", task, "", self.values())

    def complete(self) -> None:
        if task := self.pick(self._live):
            self.patch("complete", task, "/complete", {"completed": not task.completed})

    def patch(self, operation: str, task: Task, suffix: str, changes: dict[str, Any]) -> None:
        condition = {"If-Match": etag(task.revision)}
        answer, doubtful = self.ask("PATCH", task.path + suffix, changes, condition)
        wanted = task.values | changes
        if doubtful and answer.status == 412:
            self.took(operation, task.user, wanted, answer.json["current"])
        elif self.told(operation, answer, 200):
            self.took(operation, task.user, wanted, answer.json)

    def delete(self) -> None:
        task = self.pick(self._live)
        if task is None:
            return
        condition = {"If-Match": etag(task.revision)}
        answer, doubtful = self.ask("DELETE", task.path, None, condition)
        if (doubtful and answer.status == 404) or self.told("DELETE", answer, 204):
            gone = replace(task, deleted=True)
            self._journal.acknowledge("DELETE", gone)
            self._trash.append(gone)

    def restore(self) -> None:
        task = self.pick(self._trash)
        if task is None:
            return
        # On the condition that it is this deletion: an attempt that is held up on its way must not
        # undo a later one. The trash tells its revision.
        query = f"deleted=true&q={task.title.removeprefix('Buy ')}"
        answer, _ = self.ask("GET", f"/api/{task.user}/tasks?{query}")
        if not self.told("trash", answer, 200):
            return
        ((there, revision),) = ((each["id"], each["revision"]) for each in answer.json)
        assert there == task.id, f"Another task is in the trash: {there}"
        condition = {"If-Match": etag(revision)}
        answer, doubtful = self.ask("POST", f"{task.path}/restore", None, condition)
        if doubtful and answer.status in (409, 412):
            answer, _ = self.ask("GET", task.path)
        if self.told("restore", answer, 200):
            self.took("restore", task.user, task.values, answer.json)

    def read(self) -> None:
        if self._live:
            task = self._random.choice(self._live)
            answer, _ = self.ask("GET", task.path)
            shown = {"revision": task.revision, **task.values}
            if self.told("GET", answer, 200) and answer.json != answer.json | shown:
                self._journal.complain(f"Acknowledged {task}, but read {answer}")

    def pick(self, tasks: list[Task]) -> Task | None:
        if not tasks:
            return None
        return tasks.pop(self._random.randrange(len(tasks)))

    def took(self, operation: str, user: str, wanted: dict[str, Any], told: Any) -> None:
        """Remember the task that was answered, if it is as it was asked for."""
        shown = {name: told[name] for name in wanted} | {"user_id": told["user_id"]}
        if shown != wanted | {"user_id": user}:
            self._journal.complain(f"{operation} wanted {wanted} and got {told}")
            return
        task = Task(user, told["id"], deleted=False, revision=told["revision"], **wanted)
        self._journal.acknowledge(operation, task)
        self._live.append(task)
        if len(self._live) > LIVE:
            self.pick(self._live)

    def told(self, operation: str, answer: Answer, status: int) -> bool:
        if answer.status != status:
            self._journal.complain(f"{operation} was answered with {answer}")
        return answer.status == status

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[Answer, bool]:
        """The answer at last, and whether an earlier attempt may have been done without one.

        Without an answer, or after a 503, it is sent again, the same.
        """
        doubtful = False
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            begun = time.monotonic()
            try:
                answer = self._client.request(method, path, body, headers)
            except (OSError, HTTPException):
                self._journal.count("no answer")
                time.sleep(0.05)
            else:
                self._journal.took(time.monotonic() - begun)
                if answer.status != 503:
                    if "idempotent-replayed" in answer.headers:
                        self._journal.count("replayed")
                    return answer, doubtful
                self._journal.count("503")
                if "retry-after" not in answer.headers:
                    self._journal.complain(f"A 503 without Retry-After: {answer}")
                # Sooner than asked for, so that there are more writes for the next fault to hit.
                time.sleep(0.1 + 0.2 * self._random.random())
            doubtful = True
        raise TimeoutError(f"No answer to {method} {path} in {PATIENCE} s")


@contextmanager
def writers(
    api: Api, journal: Journal, clients: int = CLIENTS, *, pause: float = 0
) -> Iterator[None]:
    """Clients that write all the while, each with a pause of so many seconds between two requests.

    Afterwards each has an answer to all that it asked.
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
            thread.join(PATIENCE * 2)
    assert not any(thread.is_alive() for thread in threads), "A client waits for ever."


def write_through(
    fault: Callable[[], None],
    *,
    times: int,
    writes: int,
    api: Api,
    server: Postgres,
    clients: int = CLIENTS,
    seconds: float = 900,
) -> Journal:
    """Let clients write while the fault happens so often, with writes before, between and after.

    Afterwards what was acknowledged, which is at least `writes`, is what the database holds.
    """
    journal = Journal()
    begun = time.monotonic()
    with writers(api, journal, clients):
        for number in range(1, times + 2):
            await_writes(journal, writes * number // (times + 1), begun + seconds)
            if number <= times:
                fault()
                before, failed = journal.acknowledged, time.monotonic()
                await_writes(journal, before + 1, begun + seconds)
                journal.pauses.append(journal.latest - failed)
    with server.connect() as connection:
        compare(journal, connection)
    counts = api.metrics()
    table(
        faults=times,
        clients=clients,
        acknowledged=journal.acknowledged,
        **{f"  {name}": count for name, count in sorted(journal.operations.items())},
        seconds=round(time.monotonic() - begun),
        requests_without_an_answer=journal.outcomes["no answer"],
        answers_of_503=journal.outcomes["503"],
        answers_replayed=journal.outcomes["replayed"],
        statements_that_the_API_repeated=round(counts["todo_database_retries_total"]),
        outcomes_that_it_could_not_tell=round(counts["todo_database_unknown_outcomes_total"]),
        slowest_answer=f"{journal.slowest:.2f} s",
        longest_until_the_next_write=f"{max(journal.pauses, default=0):.2f} s",
        lost_or_doubled=0,
    )
    return journal


def await_writes(journal: Journal, writes: int, deadline: float) -> None:
    while journal.acknowledged < writes:
        assert not journal.wrong, "\n".join(journal.wrong[:20])
        assert time.monotonic() < deadline, f"{journal.acknowledged} of {writes} writes in time"
        time.sleep(0.002)


def compare(journal: Journal, connection: Connection[tuple[Any, ...]]) -> None:
    """Compare what was acknowledged with what the database holds: neither more nor less.

    The connection is a superuser's, who sees what is there. AssertionError tells what differs.
    """
    wrong = list(journal.wrong)
    rows = connection.execute(
        "SELECT user_id::text, id::text, title, description, completed,"
        " deleted_at IS NOT NULL, revision FROM tasks"
    ).fetchall()
    held = {row[1]: Task(*row) for row in rows}
    for task_id, task in journal.tasks.items():
        there = held.pop(task_id, None)
        if there is None:
            wrong.append(f"Lost: {task}")
        elif task.deleted and there.deleted and there.revision > task.revision:
            continue
        elif there != task:
            wrong.append(f"Acknowledged {task}, but there is {there}")
    wrong += [f"Never acknowledged: {task}" for task in held.values()]
    # Every write here changes something, and every change takes one number of its user.
    numbers = dict(connection.execute("SELECT id::text, revision FROM users").fetchall())
    if numbers != journal.changes:
        wrong.append(f"Acknowledged so many changes: {journal.changes}; there were {numbers}")
    assert not wrong, f"{len(wrong)} faults:\n" + "\n".join(wrong[:20])
