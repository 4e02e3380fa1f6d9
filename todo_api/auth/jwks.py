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
    choose_key,
    parse_public_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable


log = structlog.get_logger(__name__)

MAX_KEY_SET_BYTES = 64 * 1024
ERROR_LENGTH = 200  # characters in the log: an error may quote the issuer's response


def parse_set(body: bytes) -> list[VerificationKey]:
    """Return the keys of a JWK Set (RFC 7517, section 5) that can verify tokens.

    Raises ValueError if the body is not a JWK Set. An empty set is valid: the issuer has withdrawn
    all its keys.
    """
    document = json.loads(body.decode())
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("not a JWK Set")  # noqa: TRY004  the same exception for all invalid bodies
    keys = []
    for entry in document["keys"]:
        with suppress(KeyFormatError):
            keys.append(parse_public_key(json.dumps(entry)))
    return keys


@dataclass(frozen=True)
class FetchTimes:
    """Intervals and timeouts for fetching a key set, in seconds."""

    refresh: float = 300  # from a successful fetch to the next fetch
    min_interval: float = 30  # the minimum from the end of a fetch to the next fetch
    stale: float = 24 * 3600  # how long keys are used while the issuer is down
    request_wait: float = 1  # how long a request waits for a fetch; only one waits at a time
    timeout: float = 3  # of a whole fetch


class IssuerKeys:
    """An issuer's key set. One thread fetches the set, and requests read the last result.

    If a token names a key that is not in the set, one request at a time waits for a fetch, at most
    `request_wait`, and only if `min_interval` allows a fetch now.
    """

    def __init__(
        self,
        url: str,
        fetch_times: FetchTimes | None = None,
        report: Callable[[int | None], None] = lambda _: None,
    ) -> None:
        """`report` is called after each fetch.

        It gets the number of usable keys, or None if the fetch failed.
        """
        self._url = url
        self._times = fetch_times or FetchTimes()
        self._report = report
        self._keys: tuple[VerificationKey, ...] = ()
        self._fetched_at = self._next_at = float("-inf")
        self._is_fetching = False
        self._fetches_ended = 0
        self._state = threading.Condition()
        self._wait_lock = threading.Lock()
        self._fetch_requested = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Start the thread unless it runs. A worker calls this method after the fork."""
        with self._state:
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep_fresh, daemon=True, name="jwks")
                self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._fetch_requested.set()

    def find(self, kid: str | None, algorithm: str) -> VerificationKey | None:
        if self._thread is None:
            self.open()
        keys = self._keys
        key = choose_key(keys, kid, algorithm)
        is_kid_known = any(kid == other.kid for other in keys)
        if key is None and not is_kid_known:
            self._await_fetch()
            # Also if this request did not wait: another request's fetch may have ended.
            key = choose_key(self._keys, kid, algorithm)
        if not self._is_fresh():
            raise KeysUnavailableError
        return key

    def has(self, key: VerificationKey) -> bool:
        return self._is_fresh() and key in self._keys

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._fetched_at <= self._times.stale

    def _await_fetch(self) -> None:
        """Wait for a fetch, unless another request waits or `min_interval` forbids a fetch now."""
        if not self._wait_lock.acquire(blocking=False):
            return
        try:
            with self._state:
                if not self._is_fetching:
                    self._fetch_requested.set()
                    if time.monotonic() < self._next_at:
                        return
                before = self._fetches_ended
                self._state.wait_for(lambda: self._fetches_ended > before, self._times.request_wait)
        finally:
            self._wait_lock.release()

    def _keep_fresh(self) -> None:
        while not self._stop.is_set():
            with self._state:
                self._fetch_requested.clear()
                self._is_fetching = True
            keys = self._fetch()
            self._report(None if keys is None else len(keys))
            with self._state:
                if keys is not None:
                    self._keys, self._fetched_at = tuple(keys), time.monotonic()
                self._is_fetching, self._next_at = (
                    False,
                    time.monotonic() + self._times.min_interval,
                )
                self._fetches_ended += 1
                self._state.notify_all()
            stopped = self._stop.wait(self._times.min_interval)
            if keys is not None and not stopped:
                self._fetch_requested.wait(self._times.refresh - self._times.min_interval)

    def _fetch(self) -> list[VerificationKey] | None:
        try:
            keys = parse_set(fetch(self._url, self._times.timeout))
        except Exception as error:  # noqa: BLE001  no exception may end the thread
            log.warning("key set fetch failed", url=self._url, error=repr(error)[:ERROR_LENGTH])
            return None
        log.info("key set fetched", url=self._url, keys=len(keys))
        return keys


def fetch(url: str, timeout: float) -> bytes:
    """Return the body of a 200 response, at most MAX_KEY_SET_BYTES, within `timeout` seconds.

    If a host has several addresses, each address that does not respond adds up to half of
    `timeout`. Redirects are not followed. Raises OSError, HTTPException or ValueError.
    """
    ends_at = time.monotonic() + timeout
    parts = urlsplit(url)
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    # The timeout of TCP's connect and of TLS's handshake, each. Later, `give_up` enforces
    # `ends_at`.
    connection = connect(parts.hostname or "", parts.port, timeout=timeout / 2)
    with closing(connection):
        connection.connect()
        # HTTPConnection sets `sock` to None after a header `Connection: close`.
        opened: socket = connection.sock
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            with suppress(OSError):
                # Not SSLSocket.shutdown: it disables TLS, and plain text would then be accepted.
                socket.shutdown(opened, SHUT_RDWR)

        # A socket's timeout applies to each read, so an issuer could send single bytes for ever.
        opened.settimeout(timeout)
        deadline = threading.Timer(max(0, ends_at - time.monotonic()), give_up)
        deadline.daemon = True
        deadline.start()
        try:
            body = read_body(
                connection, f"{parts.path or '/'}{'?' * bool(parts.query)}{parts.query}"
            )
        except (OSError, HTTPException) as error:
            if is_late.is_set():
                raise TimeoutError from error
            raise
        finally:
            deadline.cancel()
        if is_late.is_set():
            raise TimeoutError
        return body


def read_body(connection: HTTPConnection, path: str) -> bytes:
    """Return the body of a 200 response. Raises ValueError for another status or a long body."""
    connection.request("GET", path, headers={"Accept": "application/json"})
    with connection.getresponse() as response:
        if response.status != 200:  # noqa: PLR2004
            raise ValueError(f"the status is {response.status}")
        body = response.read(MAX_KEY_SET_BYTES + 1)
    if len(body) > MAX_KEY_SET_BYTES:
        raise ValueError(f"more than {MAX_KEY_SET_BYTES} bytes")
    return body
