"""A client that remembers all that it ever received of a user, and uses it later.

An erasure or a restore from a backup must not let the server take what it remembers for the state
that replaced it. `check_*` sends what is remembered and checks the response against PostgreSQL.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.api import next_url

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    import psycopg
    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

IDS = 8  # that the client gives to tasks, again and again
TITLES = ["Buy oats", "Buy rye", "Bake", "Call Ada"]
MOST_ETAGS = 10  # in one request
QUERIES = ["", "?limit=3", "?completed=false", "?sort=title&limit=2", "?q=buy&sort=-updated_at"]
PAGE_LIMITS = [2, 20, 200]
MOST_PAGES = 5  # of a list, whose cursors are remembered

Copy = dict[str, dict[str, Any]]


class State(NamedTuple):
    """The members of a task's row that a client can change, and its revision."""

    title: str
    completed: bool
    is_deleted: bool
    revision: int


class RememberingClient:
    """A client that stores bodies by URL and ETag, tasks, sync tokens, cursors and keys."""

    def __init__(
        self,
        client: FlaskClient,
        connection: psycopg.Connection[Any],
        choose: random.Random,
        user_id: str,
        page_limits: Sequence[int] = PAGE_LIMITS,
    ) -> None:
        self.client, self.connection, self.choose = client, connection, choose
        self.user_id, self.page_limits = user_id, page_limits
        self.url = f"/api/{user_id}"
        self.ids = [str(uuid.UUID(int=choose.getrandbits(128), version=4)) for _ in range(IDS)]
        self.bodies: dict[str, dict[str, bytes]] = defaultdict(dict)
        self.tasks: list[tuple[str, State]] = []
        self.tokens: list[tuple[str, Copy]] = []
        # Tokens of a user who had nothing: they are valid until the user has something.
        self.empty_tokens: set[str] = set()
        self.cursors: list[tuple[str, str]] = []
        # The body of each request with a key, and those of the responses that the server stores.
        self.keys: dict[str, dict[str, str]] = {}
        self.stored: dict[str, bytes] = {}
        self.counts: Counter[object] = Counter()

    def act(self) -> None:
        """Write or read anything without a precondition, and remember the response."""
        actions = {self.create: 4, self.create_with_key: 1, self.write: 15}
        (action,) = self.choose.choices(list(actions), list(actions.values()))
        action()
        self.choose.choice([self.read_task, self.read_list, self.sync])()

    def check(self) -> None:
        """Send something that is remembered."""
        checks = {
            self.check_read: 8,
            self.check_write: 6,
            self.check_token: 2,
            self.check_cursor: 2,
            self.check_key: 1,
        }
        (check,) = self.choose.choices(list(checks), list(checks.values()))
        check()

    # Requests whose responses the client stores.

    def get(self, url: str, **headers: str) -> TestResponse:
        return self.client.get(
            url, headers={key.replace("_", "-"): headers[key] for key in headers}
        )

    def read(self, url: str) -> TestResponse:
        """Read without a condition: an ETag never stands for two bodies of one URL."""
        response = self.get(url)
        if response.status_code == 200:
            etag = response.headers["ETag"]
            assert self.bodies[url].setdefault(etag, response.data) == response.data, (url, etag)
        return response

    def read_task(self) -> None:
        self.read(f"{self.url}/tasks/{self.choose.choice(self.ids)}")

    def read_list(self) -> None:
        """Read the first pages of a collection, and remember their cursors."""
        first = url = f"{self.url}/tasks{self.choose.choice(QUERIES)}"
        for _ in range(MOST_PAGES):
            response = self.read(url)
            assert response.status_code == 200
            url = next_url(response)
            if url is None:
                return
            self.cursors.append((first, url))

    def sync(self) -> None:
        """Start a full sync or continue from the latest token; remember the token of each page."""
        token, copy = ("0", {})
        if self.tokens and self.choose.random() < 0.7:
            token, copy = self.tokens[-1]
        self.follow(token, dict(copy))

    def follow(self, token: str, copy: Copy) -> bool:
        """Apply all changes since the token; return False for a 410."""
        limit = self.choose.choice(self.page_limits)
        more = True
        while more:
            response = self.read(f"{self.url}/changes?since={token}&limit={limit}")
            if response.status_code == 410:
                return False
            assert response.status_code == 200
            for change in response.json["changes"]:
                if change["deleted"]:
                    copy.pop(change["id"], None)
                else:
                    copy[change["id"]] = change["value"]
            token, more = response.json["next"], response.json["more"]
            self.tokens.append((token, dict(copy)))
        if not self.has_row():
            self.empty_tokens.add(token)
        revisions = {task_id: task["revision"] for task_id, task in copy.items()}
        assert revisions == self.live_revisions()
        return True

    def create(self) -> None:
        body = {"id": self.choose.choice(self.ids), "title": self.choose.choice(TITLES)}
        response = self.client.post(f"{self.url}/tasks", json=body)
        assert response.status_code in {201, 409}
        self.remember_task(body["id"])

    def create_with_key(self) -> None:
        key = str(uuid.UUID(int=self.choose.getrandbits(128)))
        self.keys[key] = {"title": self.choose.choice(TITLES)}
        self.send_key(key)

    def send_key(self, key: str) -> bool:
        """Return whether the response is a replay. A replay must equal the first response."""
        response = self.client.post(
            f"{self.url}/tasks", json=self.keys[key], headers={"Idempotency-Key": key}
        )
        assert response.status_code == 201
        is_replayed = "Idempotent-Replayed" in response.headers
        assert is_replayed == (key in self.stored)
        assert self.stored.setdefault(key, response.data) == response.data
        return is_replayed

    def write(self) -> None:
        """Change a task, whatever its revision is."""
        task_id = self.choose.choice(self.ids)
        method, url, body = self.any_change(task_id)
        response = self.client.open(url, method=method, json=body)
        assert response.status_code in {200, 204, 404}
        self.remember_task(task_id)
        if self.choose.random() < 0.02:
            assert self.client.delete(f"{self.url}/trash").status_code == 204

    def any_change(self, task_id: str) -> tuple[str, str, dict[str, Any] | None]:
        url = f"{self.url}/tasks/{task_id}"
        title = {"title": self.choose.choice(TITLES)}
        return self.choose.choice(
            [
                ("PATCH", url, title),
                ("PUT", url, title),
                ("PATCH", f"{url}/complete", {"completed": self.choose.random() < 0.5}),
                ("DELETE", url, None),
                ("POST", f"{url}/restore", None),
            ]
        )

    def remember_task(self, task_id: str) -> None:
        """Remember the task's state, as a client knows it from responses and tombstones."""
        state = self.read_state(task_id)
        if state is not None:
            self.tasks.append((task_id, state))

    def erase(self) -> None:
        assert self.client.delete(self.url).status_code == 204
        self.stored.clear()

    # The rows in PostgreSQL.

    def read_state(self, task_id: str) -> State | None:
        row = self.connection.execute(
            "SELECT title, completed, deleted_at IS NOT NULL, revision FROM tasks"
            " WHERE user_id = %s AND id = %s",
            (self.user_id, task_id),
        ).fetchone()
        return State(*row) if row else None

    def has_row(self) -> bool:
        """Return whether the user has written anything since the last erasure."""
        found = self.connection.execute("SELECT FROM users WHERE id = %s", (self.user_id,))
        return found.fetchone() is not None

    def live_revisions(self) -> dict[str, int]:
        rows = self.connection.execute(
            "SELECT id::text, revision FROM tasks WHERE user_id = %s AND deleted_at IS NULL",
            (self.user_id,),
        )
        return dict(rows.fetchall())

    # Requests with the stored values.

    def check_tokens_are_gone(self, tokens: list[tuple[str, Copy]]) -> None:
        """Check that tokens of a lost history get a 410."""
        for token, copy in tokens:
            is_followed = self.follow(token, dict(copy))
            assert not is_followed or (token in self.empty_tokens and not self.has_row()), token

    def check_read(self) -> None:
        """Send remembered ETags: after a 304, a GET without them returns the body of that ETag."""
        url = self.choose.choice(list(self.bodies))
        known = self.bodies[url]
        etags = self.choose.sample(list(known), min(len(known), MOST_ETAGS))
        response = self.get(url, If_None_Match=", ".join(etags))
        self.counts["read", response.status_code] += 1
        if response.status_code == 304:
            fresh = self.get(url)
            assert fresh.status_code == 200, url
            assert response.headers["ETag"] in etags
            assert fresh.data == known[response.headers["ETag"]], url
        elif response.status_code == 200:
            assert response.data == self.read(url).data
        else:
            assert response.status_code in {404, 410}

    def check_write(self) -> None:
        """Send a change based on a remembered state: it is applied only if that is the state."""
        task_id, base = self.choose.choice(self.tasks)
        method, url, body = self.any_change(task_id)
        headers = {"If-Match": f'"{base.revision}"'}
        if body and "title" in body and self.choose.random() < 0.5:
            headers, body = {}, body | {"revision": base.revision}
        before = self.read_state(task_id)

        response = self.client.open(url, method=method, json=body, headers=headers)

        after = self.read_state(task_id)
        self.counts["write", response.status_code] += 1
        assert response.status_code in {200, 204, 404, 412}
        if before is not None and before.revision == base.revision:
            assert before == base, "a revision stands for two states"
            self.counts["write to its base"] += 1
            assert response.status_code != 412
        else:
            assert after == before, "a write whose base is gone has changed the row"
        self.remember_task(task_id)

    def check_token(self) -> None:
        """Continue from a remembered token: the copy equals the rows, or the response is 410."""
        # In about half of the cases, one of the latest tokens; otherwise any token.
        token, copy = self.choose.choice(
            self.tokens[-3:] if self.counts.total() % 2 else self.tokens
        )
        is_followed = self.follow(token, dict(copy))
        self.counts["token", "followed" if is_followed else 410] += 1

    def check_cursor(self) -> None:
        """Continue from a remembered cursor: the pages are the rest of the current collection."""
        if not self.cursors:
            return
        first, url = self.choose.choice(self.cursors)
        rest = self.read_items(url)
        every = self.read_items(first)
        assert every[len(every) - len(rest) :] == rest
        self.counts["cursor"] += 1

    def read_items(self, url: str | None) -> list[dict[str, Any]]:
        """Read a collection to its end, in large pages: a cursor is valid for any page size."""
        items = []
        while url:
            response = self.get(re.sub(r"limit=\d+", "limit=200", url))
            assert response.status_code == 200
            items += response.json
            url = next_url(response)
        return items

    def check_key(self) -> None:
        """Send a remembered request with its key: only a stored response is replayed."""
        if self.keys:
            is_replayed = self.send_key(self.choose.choice(list(self.keys)))
            self.counts["key", "replayed" if is_replayed else "created"] += 1
