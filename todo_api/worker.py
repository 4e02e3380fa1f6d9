"""gunicorn's threaded worker, which refuses in our words and lets no client hold it up."""

from __future__ import annotations

import math
import mmap
import re
import socket
import time
from array import array
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from selectors import EVENT_READ
from typing import TYPE_CHECKING, Any

import structlog
from gunicorn import util
from gunicorn.http import Request, RequestParser
from gunicorn.http.errors import InvalidHeader, ObsoleteFolding, ParseException
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker
from uuid_utils.compat import uuid7

if TYPE_CHECKING:
    from concurrent.futures import Future

    from gunicorn.http.unreader import Unreader
    from gunicorn.sock import BaseSocket
    from gunicorn.workers.gthread import TConn

log = structlog.get_logger(__name__)

# For a request from its first byte to the last byte of its answer. What the application does is
# bounded more tightly; this is for clients that send or read slowly, or not at all.
REQUEST_SECONDS = 30

# A connection that we close is read on for a while: closed at once, with bytes unread, it would be
# reset, and the reset can overtake the answer (RFC 9112, section 9.6).
CLOSING_SECONDS = 2
CLOSING_BYTES = 1024 * 1024

# What a probe sends, and how much of a request is looked at to tell.
PROBE = b"GET /livez "
PROBE_BYTES = 2048

# The connections of each worker of a master, by its slot: in memory that they share.
MOST_WORKERS = 256
NO_WORKER = -1
SHARES = memoryview(mmap.mmap(-1, 4 * MOST_WORKERS)).cast("i")
SHARES[:] = array("i", [NO_WORKER] * MOST_WORKERS)
HEAD_START = 0.0005  # seconds, in which a worker that has nothing to do wakes

# uri-host [ ":" port ] of RFC 9110, section 7.2; empty where the target has no authority.
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?")


class StrictRequest(Request):  # type: ignore[misc]  # gunicorn has no types
    """A request whose lines end in CRLF and are not folded, whichever parser reads it.

    gunicorn_h1c takes a bare LF, too, as RFC 9112 (section 2.2) allows, and a folded line as a
    field without a name: a proxy in front may have seen other fields than we do.
    """

    def _parse_fast(self, unreader: Unreader, buf: bytearray) -> bytes:
        rest: bytes = super()._parse_fast(unreader, buf)
        end = len(buf) - len(rest)
        if buf.count(b"\n", 0, end) != buf.count(b"\r\n", 0, end):
            raise InvalidHeader("bare LF as line terminator")
        if any(not name for name, _ in self.headers):
            raise ObsoleteFolding("")
        return rest


class StrictParser(RequestParser):  # type: ignore[misc]  # gunicorn has no types
    mesg_class = StrictRequest


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """A thread holds a connection only while there is something to read, and for bounded time.

    As gunicorn 27 has it, a new connection takes a thread before it has sent anything, and one
    that is closed holds the loop that accepts until its client closes, too, for up to 2 s.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stopped_at = math.inf
        self.served: dict[TConn, float] = {}
        self.closing: deque[TConn] = deque()

    def handle_error(
        self, req: Request | None, client: socket.socket, addr: object, exc: Exception
    ) -> None:
        """Answer what never reached the application, and log it as the application would."""
        # Not at the top: the master imports this module, and must not import what counts, which
        # would make it files of its own among those of the workers.
        from todo_api.refusals import answer, refusal  # noqa: PLC0415

        del addr  # no line of ours says where a client is
        problem = refusal(exc)
        request_id = str(uuid7())
        fields = {"request_id": request_id, "status": problem.status}
        if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("unhandled exception", exc_info=exc, **fields)
        else:
            # Not the error's text, which quotes what the client wrote.
            log.info("request", method=None, route=None, error=type(exc).__name__, **fields)
        with suppress(OSError):
            util.write_nonblock(client, answer(problem, request_id, getattr(req, "method", None)))

    def handle_request(self, req: Request, conn: TConn) -> Any:
        fields = dict(req.headers)
        host = fields.get("HOST")
        # RFC 9112, section 3.2; gunicorn has refused a second one.
        if (host is None and req.version >= (1, 1)) or not HOST.fullmatch(host or ""):
            raise InvalidHeader("HOST", req=req)
        if int(fields.get("CONTENT-LENGTH", 0)) > self.wsgi.config["MAX_CONTENT_LENGTH"]:
            # It will be refused, and what follows is not read to find where the next one begins.
            req.force_close()
        return super().handle_request(req, conn)

    def _keepalive_after(self, conn: TConn, keepalive: bool) -> bool:  # noqa: FBT001  gunicorn's
        """Whether another request may follow, whose beginning is known."""
        try:
            return bool(super()._keepalive_after(conn, keepalive))
        except ParseException:
            # In a body that the application did not read. It has answered: a second answer would
            # be taken for that to the next request.
            return False

    def handle(self, conn: TConn) -> Any:
        self.served[conn] = time.monotonic()
        try:
            return super().handle(conn)
        finally:
            del self.served[conn]

    def init_process(self) -> None:
        SHARES[self.slot % MOST_WORKERS] = 0
        super().init_process()

    def accept(self, listener: BaseSocket) -> None:
        """Accept one connection, but let a worker that has fewer come first.

        All wake when clients connect, and who is faster takes what there is. Of 16 clients that
        connected at once, one worker of two had all in a sixth of the runs, at half the rate.
        """
        if any(0 <= share < self.nr_conns - 1 for share in SHARES):
            time.sleep(HEAD_START)
        super().accept(listener)
        self.share()

    def share(self) -> None:
        """Tell the other workers how many connections this one has; of one that ends, nothing."""
        SHARES[self.slot % MOST_WORKERS] = self.nr_conns if self.alive else NO_WORKER

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """As gunicorn has it, and beside it a thread for who asks whether the process lives.

        When all others wait for a database that hangs, a probe must not take that for the process.
        """
        self.probes = ThreadPoolExecutor(1, "probes")
        threads: ThreadPoolExecutor = super().get_thread_pool()
        return threads

    def enqueue_req(self, conn: TConn) -> None:
        """Give the connection to a thread; a new one only when it has sent something."""
        if conn.initialized or conn.data_ready:
            threads = self.probes if is_probe(conn.sock) else self.tpool
            served = threads.submit(self.handle, conn)
            served.add_done_callback(
                lambda done: self.method_queue.defer(self.finish_request, conn, done)
            )
            return
        conn.parser = StrictParser(self.cfg, conn.sock, conn.client)
        conn.set_timeout()
        self.pending_conns.append(conn)
        readable = partial(self.on_pending_socket_readable, conn)
        self.poller.register(conn.sock, EVENT_READ, readable)

    def finish_request(self, conn: TConn, fs: Future[Any]) -> None:
        if fs.cancelled() or fs.exception() or fs.result():
            super().finish_request(conn, fs)
        else:
            self.close(conn)

    def close(self, conn: TConn) -> None:
        """Say that no more will be sent, and read on in the loop until the client closes, too."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:  # it has gone
            self.nr_conns -= 1
            conn.close()
            return
        conn.sock.settimeout(0)
        conn.timeout = time.monotonic() + CLOSING_SECONDS
        conn.unread = CLOSING_BYTES
        self.closing.append(conn)
        self.poller.register(conn.sock, EVENT_READ, partial(self.read_on, conn))

    def read_on(self, conn: TConn, client: socket.socket) -> None:
        try:
            data = client.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        conn.unread -= len(data)
        if not data or conn.unread <= 0:
            self.closing.remove(conn)
            self.let_go(conn)

    def let_go(self, conn: TConn) -> None:
        self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def murder_pending(self) -> None:
        """End what has taken too long. gunicorn's loops call this after every wait."""
        now = time.monotonic()
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, self.stopped_at + STOP_KEEPALIVE_LINGER)
        super().murder_pending()
        self.share()
        while self.closing and self.closing[0].timeout <= now:
            self.let_go(self.closing.popleft())
        # A thread that is still reading when all others have ended would keep the process from
        # ending; gunicorn would kill it after half a minute, and say that it hung.
        last = self.stopped_at + self.cfg.graceful_timeout - 2
        for conn, since in self.served.copy().items():
            if now > min(since + REQUEST_SECONDS, last):
                with suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RDWR)

    def set_accept_enabled(self, enabled: bool) -> None:  # noqa: FBT001  gunicorn's
        super().set_accept_enabled(enabled)
        if not enabled and not self.alive and self.stopped_at == math.inf:
            self.stopped_at = time.monotonic()
            for listener in self.sockets:
                self.leave(listener)

    def leave(self, listener: BaseSocket) -> None:
        """Take what has connected so far, and close our end.

        gunicorn closes it when the worker ends: until then, if no other process has it, clients
        connect and send, and are reset seconds later.
        """
        taken = -1
        while taken != self.nr_conns < self.worker_connections:
            taken = self.nr_conns
            self.accept(listener)
        listener.close()

    def handle_quit(self, sig: int, frame: object) -> None:
        """End as at SIGTERM: gunicorn's own way waits for a lock that it may hold itself."""
        self.handle_exit(sig, frame)


def is_probe(client: socket.socket) -> bool:
    """Whether what has come is a whole request for /livez: its thread waits for nobody."""
    try:
        begin = client.recv(PROBE_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False
    return begin.startswith(PROBE) and b"\r\n\r\n" in begin
