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
from functools import lru_cache, partial
from http import HTTPStatus
from selectors import EVENT_READ
from typing import TYPE_CHECKING, Any

import structlog
from gunicorn import util
from gunicorn.http import Request, RequestParser, wsgi
from gunicorn.http.errors import InvalidHeader, ObsoleteFolding, ParseException
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker
from uuid_utils import uuid7

from todo_api.arrivals import Arrivals

if TYPE_CHECKING:
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

# When every thread has been serving the same request for so long, in seconds, what else arrives is
# looked at for probes.
STALL = 0.05

# How often, in seconds, connections are looked through for those that have waited too long.
LOOKS = 0.5

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


class Response(wsgi.Response):  # type: ignore[misc]  # gunicorn has no types
    """An answer that goes out in one write, if it is whole: gunicorn's own takes two."""

    headers_sent: bool

    def default_headers(self) -> list[str]:
        major, minor = self.req.version
        connection = "close" if self.should_close() else "keep-alive"
        lines = [
            f"HTTP/{major}.{minor} {self.status}\r\n",
            f"Server: {self.version}\r\n",
            f"Date: {http_date(int(time.time()))}\r\n",
            f"Connection: {connection}\r\n",
        ]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked\r\n")
        return lines

    def send_headers(self, body: bytes = b"") -> None:
        if self.headers_sent:
            return
        fields = (f"{name}: {value}\r\n" for name, value in self.headers)
        head = "".join([*self.default_headers(), *fields, "\r\n"])
        self.headers_sent = True
        self.sock.sendall(head.encode("latin-1") + body)

    def write(self, arg: bytes) -> None:
        if self.headers_sent or self._omits_body or len(arg) != self.response_length:
            super().write(arg)
        else:
            self.sent = len(arg)
            self.send_headers(arg)


@lru_cache(maxsize=2)
def http_date(second: int) -> str:
    """The Date field (RFC 9110, section 6.6.1), made once in a second."""
    date: str = util.http_date(second)
    return date


class StrictParser(RequestParser):  # type: ignore[misc]  # gunicorn has no types
    mesg_class = StrictRequest


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Threads that wait for requests by themselves, and a loop for connections' begin and end.

    gunicorn's own loop hands each request over to a thread, and is handed the connection back: two
    changes of thread, which take as long as Flask does. A thread of ours holds a connection only
    while there is something to read, and for bounded time.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alive: bool
        self.stopped_at = math.inf
        self.ended = False
        self.look_again_at = 0.0
        self.put_aside: deque[TConn] = deque()
        self.served: dict[TConn, float] = {}
        self.closing: deque[TConn] = deque()

    def init_process(self) -> None:
        SHARES[self.slot % MOST_WORKERS] = 0
        # As gunicorn has it, each look at a setting is a search: 20 us of each request.
        settings = self.cfg.settings.items()
        self.cfg.__dict__.update((name, setting.get()) for name, setting in settings)
        self.arrivals = Arrivals()
        super().init_process()

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """As many as gunicorn has, and one for who asks whether the process lives."""
        return ThreadPoolExecutor(self.cfg.threads + 1)

    def load_wsgi(self) -> None:
        super().load_wsgi()
        config = getattr(self.wsgi, "config", {})
        self.most_sent = config.get("MAX_CONTENT_LENGTH") or math.inf

    def run(self) -> None:
        for _ in range(self.cfg.threads):
            self.tpool.submit(self.serve)
        self.tpool.submit(self.answer_probes)
        self.loop()

    def loop(self) -> None:
        """Accept and end connections, until the end: gunicorn's own loop."""
        try:
            super().run()
        finally:
            self.ended = True
            self.arrivals.end()

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

    def enqueue_req(self, conn: TConn) -> None:
        """Let a connection that was accepted wait for its first request."""
        conn.parser = StrictParser(self.cfg, conn.sock, conn.client)
        conn.initialized = True
        conn.sock.settimeout(None)
        conn.set_timeout()
        self.arrivals.put(conn)

    def serve(self) -> None:
        """Answer one request after the other, of whichever connection, until the end."""
        while not self.ended:
            conn = self.taken_up() or self.arrivals.take()
            if conn is not None:
                self.serve_one(conn)

    def taken_up(self) -> TConn | None:
        """A connection that was put aside, if there is one."""
        try:
            return self.put_aside.popleft() if self.put_aside else None
        except IndexError:  # another thread was faster
            return None

    def serve_one(self, conn: TConn) -> None:
        """Answer the request that arrives; let the connection wait for the next, or close it."""
        self.served[conn] = time.monotonic()
        kept = False
        try:
            kept = self.handle(conn)
        except BaseException:  # SystemExit, say: it would end the thread, and nobody would see it
            self.log.exception("a request broke off")
        finally:
            del self.served[conn]
        if kept:
            conn.set_timeout()
            self.arrivals.put(conn, arrived=bool(conn.parser.unreader.buf.getvalue()))
        else:
            self.method_queue.defer(self.close, conn)

    def answer_probes(self) -> None:
        """While every thread waits, as for a database that hangs, answer who asks for /livez.

        A probe must not take that for the process. What else arrives meanwhile is put aside.
        """
        while not self.ended:
            if not self.stalled():
                while conn := self.taken_up():
                    self.arrivals.put(conn, arrived=True)
                time.sleep(STALL)
            elif conn := self.arrivals.take(STALL):
                if is_probe(conn.sock):
                    self.serve_one(conn)
                else:
                    self.put_aside.append(conn)

    def stalled(self) -> bool:
        """Whether every thread has been serving the same request for a while."""
        begun = list(self.served.values())
        return len(begun) >= self.cfg.threads and max(begun) < time.monotonic() - STALL

    def handle_request(self, req: Request, conn: TConn) -> bool:
        """Answer the request; whether another one may follow. gunicorn's hooks are not called."""
        fields = dict(req.headers)
        host = fields.get("HOST")
        # RFC 9112, section 3.2; gunicorn has refused a second one.
        if (host is None and req.version >= (1, 1)) or not HOST.fullmatch(host or ""):
            raise InvalidHeader("HOST", req=req)
        if int(fields.get("CONTENT-LENGTH", 0)) > self.most_sent:
            # It will be refused, and what follows is not read to find where the next one begins.
            req.force_close()
        response, environ = wsgi.create(
            req, conn.sock, conn.client, conn.server, self.cfg, response_class=Response
        )
        environ["wsgi.multithread"] = True
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
        if not self.alive or self.nr_conns > self.max_keepalived:
            response.force_close()
        answer = self.wsgi(environ, response.start_response)
        try:
            for part in answer:
                response.write(part)
            response.close()
        except OSError:
            raise
        except Exception:
            if not response.headers_sent:
                raise
            # A second answer would be taken for that to the next request.
            self.log.exception("an answer broke off")
            return False
        finally:
            if hasattr(answer, "close"):
                answer.close()
        return not response.should_close()

    def _keepalive_after(self, conn: TConn, keepalive: bool) -> bool:  # noqa: FBT001  gunicorn's
        """Whether another request may follow, whose beginning is known."""
        if keepalive and getattr(conn.parser.mesg.body.reader, "length", None) == 0:
            return True  # nothing of the body is left to be read
        try:
            return bool(super()._keepalive_after(conn, keepalive))
        except ParseException:
            # In a body that the application did not read. It has answered: a second answer would
            # be taken for that to the next request.
            return False

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
        self.share()
        while self.closing and self.closing[0].timeout <= now:
            self.let_go(self.closing.popleft())
        if now < self.look_again_at:
            return
        self.look_again_at = now + LOOKS
        for conn in self.arrivals.waiting():
            timeout = min(conn.timeout, self.stopped_at + STOP_KEEPALIVE_LINGER)
            if timeout <= now and self.arrivals.remove(conn):
                self.close(conn)
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
