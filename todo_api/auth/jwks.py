"""An issuer's JWK Set (RFC 7517), fetched by one thread and cached."""

from __future__ import annotations

import json
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from socket import SHUT_RDWR, socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from todo_api.auth.keys import (
    KeyFormatError,
    KeysUnavailableError,
    VerificationKey,
    chosen,
    parse_public_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable


log = structlog.get_logger(__name__)


SET_BYTES = 64 * 1024


ERROR_LENGTH = 200  # of what is logged: an error may quote the issuer


def parse_set(body: bytes) -> list[VerificationKey]:
    """The usable keys of a JWK Set (RFC 7517, section 5); the others are passed over.

    Raises ValueError for what is no set at all. A set may be empty: its issuer has withdrawn all.
    """
    document = json.loads(body.decode())
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("not a JWK Set")  # noqa: TRY004  one error for all that is none
    keys = []
    for entry in document["keys"]:
        with suppress(KeyFormatError):
            keys.append(parse_public_key(json.dumps(entry)))
    return keys


@dataclass(frozen=True)
class Pace:
    """How often and how long, in seconds."""

    refresh: float = 300  # between fetches when all is well
    apart: float = 30  # at least this between any two fetches
    stale: float = 24 * 3600  # how long keys are good while the issuer is down
    patience: float = 1  # what a request waits for a fetch, one request at a time
    timeout: float = 3  # of a fetch, whatever the issuer does


class IssuerKeys:
    """An issuer's key set, kept fresh by a thread of its own: no request waits for the network.

    Requests read a snapshot. A key id that is not in it makes one request at a time wait, for
    `pace.patience` at most, and only where `pace.apart` lets a fetch begin.
    """

    def __init__(
        self,
        url: str,
        pace: Pace | None = None,
        report: Callable[[int | None], None] = lambda _: None,
    ) -> None:
        """`report` is called at the end of each fetch, with the number of keys or None."""
        self._url = url
        self._pace = pace or Pace()
        self._report = report
        self._keys: tuple[VerificationKey, ...] = ()
        self._fetched_at = self._next_at = float("-inf")
        self._underway = False
        self._ended = 0
        self._state = threading.Condition()
        self._turn_to_wait = threading.Lock()
        self._wanted = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Start fetching. Opening twice is harmless; a worker opens its own, after the fork."""
        with self._state:
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep_fresh, daemon=True, name="jwks")
                self._thread.start()

    def close(self) -> None:
        """Fetch no more."""
        self._stop.set()
        self._wanted.set()

    def find(self, kid: str | None, algorithm: str) -> VerificationKey | None:
        if self._thread is None:
            self.open()
        known = self._keys
        key = chosen(known, kid, algorithm)
        named = any(kid == other.kid for other in known)
        if key is None and not named and self._await_fetch():
            key = chosen(self._keys, kid, algorithm)
        if not self._fresh():
            raise KeysUnavailableError
        return key

    def holds(self, key: VerificationKey) -> bool:
        return self._fresh() and key in self._keys

    def _fresh(self) -> bool:
        return time.monotonic() - self._fetched_at <= self._pace.stale

    def _await_fetch(self) -> bool:
        """Whether a fetch ended while this request waited for it."""
        if not self._turn_to_wait.acquire(blocking=False):
            return False
        try:
            with self._state:
                if not self._underway:
                    self._wanted.set()
                    if time.monotonic() < self._next_at:
                        return False
                ended = self._ended
                return self._state.wait_for(lambda: self._ended > ended, self._pace.patience)
        finally:
            self._turn_to_wait.release()

    def _keep_fresh(self) -> None:
        while not self._stop.is_set():
            with self._state:
                self._wanted.clear()
                self._underway = True
            keys = self._fetch()
            self._report(None if keys is None else len(keys))
            with self._state:
                if keys is not None:
                    self._keys, self._fetched_at = tuple(keys), time.monotonic()
                self._underway, self._next_at = False, time.monotonic() + self._pace.apart
                self._ended += 1
                self._state.notify_all()
            stopped = self._stop.wait(self._pace.apart)
            if keys is not None and not stopped:
                self._wanted.wait(self._pace.refresh - self._pace.apart)

    def _fetch(self) -> list[VerificationKey] | None:
        try:
            keys = parse_set(fetch(self._url, self._pace.timeout))
        except Exception as error:  # noqa: BLE001  whatever it was, there must be a next time
            log.warning("key set not fetched", url=self._url, error=repr(error)[:ERROR_LENGTH])
            return None
        log.info("key set fetched", url=self._url, keys=len(keys))
        return keys


def fetch(url: str, timeout: float) -> bytes:
    """The body of a 200, of SET_BYTES at most, within `timeout` seconds in all.

    A host of several addresses of which the first do not answer takes half of that for each more.
    Follows no redirect. Raises OSError, HTTPException or ValueError.
    """
    ends_at = time.monotonic() + timeout
    parts = urlsplit(url)
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    # One half is for TCP, the other for TLS: until both are done, there is nothing to shut down.
    connection = connect(parts.hostname or "", parts.port, timeout=timeout / 2)
    with closing(connection):
        connection.connect()
        # The connection forgets its socket when it has read the headers of a last answer.
        opened: socket = connection.sock
        late = threading.Event()

        def give_up() -> None:
            late.set()
            with suppress(OSError):
                # Not the method of an SSLSocket, after which plain text would pass for TLS.
                socket.shutdown(opened, SHUT_RDWR)

        # A timeout of a socket is for one read; an issuer that drips would have its way.
        opened.settimeout(timeout)
        deadline = threading.Timer(max(0, ends_at - time.monotonic()), give_up)
        deadline.daemon = True
        deadline.start()
        try:
            body = get(connection, f"{parts.path or '/'}{'?' * bool(parts.query)}{parts.query}")
        except (OSError, HTTPException) as error:
            if late.is_set():
                raise TimeoutError from error
            raise
        finally:
            deadline.cancel()
        if late.is_set():
            raise TimeoutError
        return body


def get(connection: HTTPConnection, path: str) -> bytes:
    connection.request("GET", path, headers={"Accept": "application/json"})
    with connection.getresponse() as response:
        if response.status != 200:  # noqa: PLR2004
            raise ValueError(f"answered {response.status}")
        body = response.read(SET_BYTES + 1)
    if len(body) > SET_BYTES:
        raise ValueError(f"more than {SET_BYTES} bytes")
    return body
