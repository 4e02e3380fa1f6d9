"""A gunicorn worker in which every serving thread waits for the events of all connections.

The main thread accepts connections and enforces their time limits. The serving threads wait on one
epoll set, which reports one event per connection (EPOLLONESHOT). The thread that receives the event
owns the connection until it registers the connection for a new event or closes it. No other thread
closes a connection, so the system reuses no file descriptor for which an event is pending.
"""

from __future__ import annotations

import math
import os
import resource
import select
import socket
import threading
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gunicorn.http import wsgi
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.workers import base

from todo_api.server.connections import LINGER_SECONDS, Connection
from todo_api.server.rejections import reject
from todo_api.server.responses import Response

if TYPE_CHECKING:
    from gunicorn.sock import BaseSocket

    from todo_api.server.requests import StrictRequest

# Seconds from a request's first byte to the last byte of its response, a limit for clients that
# send or read slowly, or not at all. REQUEST_TIMEOUT limits the work of the application.
EXCHANGE_TIMEOUT = 30

# Seconds for which a stopping worker still waits for requests on idle connections.
STOP_LINGER = 2

SWEEP_INTERVAL = 0.5  # seconds

# Seconds between two accepts of a worker. In this pause, another worker can accept the next
# connection. If 16 clients connect to 2 workers at the same time, the busier worker gets 56 % of
# the connections (median), without the pause 81 %. Requests are not delayed: other threads serve
# them.
ACCEPT_INTERVAL = 0.0005

# Seconds without accepting if the system has no file descriptor left, and the minimum of seconds
# between two log lines about this.
ACCEPT_PAUSE = 1
LOG_PAUSE = 60

# File descriptors that are not for clients: listeners, database connections, log, metrics.
RESERVED_DESCRIPTORS = 64

# Raised if the client has closed or reset the connection, or does not acknowledge data. Any other
# OSError, such as FileNotFoundError, comes from the application.
DISCONNECTED = (NoMoreData, ConnectionError, TimeoutError)

READABLE = select.EPOLLIN | select.EPOLLONESHOT
# Wakes a thread immediately, because a socket is nearly always writable.
WRITABLE = select.EPOLLOUT | select.EPOLLONESHOT


class Worker(base.Worker):  # type: ignore[misc]  # gunicorn has no types
    """Serves HTTP/1.1 with `threads` threads."""

    alive: bool
    wsgi: Any

    def run(self) -> None:
        self._prepare()
        threads = [
            threading.Thread(target=self._serve, name=f"serve-{number}", daemon=True)
            for number in range(self.cfg.threads)
        ]
        for thread in threads:
            thread.start()
        self._supervise()
        for thread in threads:
            thread.join(1)

    def _prepare(self) -> None:
        # A copy of the settings as attributes: each read of gunicorn's Config is a function call,
        # and a request reads 15 settings.
        values = {name: setting.get() for name, setting in self.cfg.settings.items()}
        networks = self.cfg.forwarded_allow_networks
        self._settings = SimpleNamespace(**values, is_ssl=False, forwarded_allow_networks=networks)
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        available = descriptors - RESERVED_DESCRIPTORS - self.cfg.threads
        self._max_connections = max(1, min(self.cfg.worker_connections, available))
        self._connections: dict[int, Connection] = {}
        # The thread that removes a connection from this set owns the connection: a serving thread,
        # to serve a request, or the main thread, to close a connection that was idle for too long.
        self._idle: set[Connection] = set()
        self._accept_again_at = self._log_again_at = self._sweep_again_at = 0.0
        self._all_must_end_at = math.inf
        self._has_ended = False
        self._epoll = select.epoll()
        # A pipe that wakes all threads at the end: when its write end is closed, its read end
        # becomes readable for all of them.
        stop_reader, self._stop_writer = os.pipe()
        self._epoll.register(stop_reader, select.EPOLLIN)

    # The main thread

    def _supervise(self) -> None:
        """Accept connections until the worker has to stop, then wait until all have ended."""
        self._accept_until_stopped()
        self._stop()
        self._has_ended = True
        os.close(self._stop_writer)

    def _accept_until_stopped(self) -> None:
        """Accept connections and enforce their time limits."""
        listeners = {listener.fileno(): listener for listener in self.sockets}
        for listener in self.sockets:
            listener.settimeout(0)
        poller = select.poll()
        poller.register(self.PIPE[0], select.POLLIN)  # a signal, or `_wake`
        is_accepting = False
        while self.alive and self.ppid == os.getppid():
            self.notify()
            if is_accepting != self._may_accept():
                is_accepting = not is_accepting
                for descriptor in listeners:
                    if is_accepting:
                        poller.register(descriptor, select.POLLIN)
                    else:
                        poller.unregister(descriptor)
            for descriptor, _ in poller.poll(SWEEP_INTERVAL * 1000):
                if descriptor in listeners:
                    self._accept(listeners[descriptor])
                    time.sleep(ACCEPT_INTERVAL)
                else:
                    os.read(descriptor, 1024)
            self._enforce_deadlines()

    def _may_accept(self) -> bool:
        has_room = len(self._connections) < self._max_connections
        return has_room and time.monotonic() >= self._accept_again_at

    def _accept(self, listener: BaseSocket) -> bool:
        """Accept one connection; return whether there was one."""
        try:
            client, peer = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:  # no descriptor or no memory is left
            now = time.monotonic()
            self._accept_again_at = now + ACCEPT_PAUSE
            if now >= self._log_again_at:
                self._log_again_at = now + LOG_PAUSE
                self.log.error("accepting connections failed: %s", error.strerror)  # noqa: TRY400
            return False
        client.settimeout(None)
        connection = Connection(client, peer, listener.getsockname(), self._settings)
        self._connections[connection.descriptor] = connection
        self._idle.add(connection)
        self._epoll.register(connection.descriptor, READABLE)
        return True

    def _enforce_deadlines(self) -> None:
        """Shut down connections after their deadlines. A serving thread then closes them."""
        now = time.monotonic()
        if now < self._sweep_again_at:
            return
        self._sweep_again_at = now + SWEEP_INTERVAL
        for connection in list(self._connections.values()):
            if now < min(connection.deadline, self._all_must_end_at):
                continue
            if connection in self._idle and self._has_waiting_request(connection, now):
                continue
            with suppress(OSError):  # the client has reset it, or a thread has closed it
                if self._take(connection):
                    connection.deadline = now + LINGER_SECONDS
                    connection.sock.shutdown(socket.SHUT_WR)
                # A serving thread has taken the connection. If it has set a new deadline meanwhile,
                # the connection stays open.
                elif now >= min(connection.deadline, self._all_must_end_at):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def _has_waiting_request(self, connection: Connection, now: float) -> bool:
        """Whether a request on this connection waits for a thread, and may wait longer."""
        end = min(connection.deadline + EXCHANGE_TIMEOUT, self._all_must_end_at)
        return now < end and connection.has_input()

    def _stop(self) -> None:
        """Stop accepting connections, and wait until the open ones have ended."""
        for listener in self.sockets:
            # Accept all pending connections, because closing the listener resets them.
            while self._may_accept() and self._accept(listener):
                pass
            listener.close()
        now = time.monotonic()
        for connection in list(self._idle):
            connection.deadline = min(connection.deadline, now + STOP_LINGER)
        # gunicorn kills the worker after graceful_timeout: all connections must end before.
        self._all_must_end_at = now + max(self.cfg.graceful_timeout - 2, 0)
        while self._connections and time.monotonic() < self._all_must_end_at + 1:
            self.notify()
            time.sleep(0.05)
            self._enforce_deadlines()

    # The threads

    def _serve(self) -> None:
        """Handle one event after another. If this loop ends early, the worker stops."""
        try:
            while not self._has_ended:
                for descriptor, _ in self._epoll.poll(maxevents=1):
                    if connection := self._connections.get(descriptor):
                        self._handle_event(connection)
        except BaseException:
            self.log.critical(
                "the worker stops: a serve loop ended with an exception", exc_info=True
            )
        finally:
            self.alive = False
            self._wake()

    def _handle_event(self, connection: Connection) -> None:
        """Serve a request, or discard input if the connection is being closed."""
        # Set the new deadline before `_take`: `_enforce_deadlines` must not see the old deadline of
        # a connection that is no longer idle.
        old_deadline = connection.deadline
        connection.deadline = time.monotonic() + EXCHANGE_TIMEOUT
        if not self._take(connection):
            connection.deadline = old_deadline
            self._discard_input(connection)
            return
        is_kept = False
        try:
            is_kept = self._exchange(connection)
        except BaseException:  # a view may even raise SystemExit
            self.log.exception("connection closed: serving a request failed")
        if is_kept:
            seconds = self._settings.keepalive if self.alive else STOP_LINGER
            connection.deadline = time.monotonic() + seconds
            self._idle.add(connection)
            has_input = connection.parser.has_buffered_input()
            self._epoll.modify(connection.descriptor, WRITABLE if has_input else READABLE)
        else:
            self._begin_close(connection)

    def _take(self, connection: Connection) -> bool:
        """Remove the connection from `_idle`; return False if another thread has removed it."""
        try:
            self._idle.remove(connection)
        except KeyError:
            return False
        return True

    def _exchange(self, connection: Connection) -> bool:
        """Serve one request; return whether the connection can be used for another one."""
        request: StrictRequest | None = None
        try:
            request = next(connection.parser, None)  # None: the client has closed it
            if request is None or not self._respond(connection, request):
                return False
        except DISCONNECTED:
            return False
        except Exception as error:  # noqa: BLE001  its type decides the response
            self._reject(connection, getattr(error, "req", request), error)
            return False
        if request.unread_length() == 0:
            return True
        try:
            return bool(connection.parser.finish_body(time.monotonic() + LINGER_SECONDS))
        except (ParseException, OSError):
            # No error response: the client would take it for the response to its next request.
            return False

    def _respond(self, connection: Connection, request: StrictRequest) -> bool:
        """Run the application; return whether the connection may stay open."""
        response, environ = wsgi.create(
            *(request, connection.sock, connection.peer, connection.local, self._settings),
            response_class=Response,
        )
        environ["wsgi.multithread"] = True
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
            self._wake()
        try:
            body = self.wsgi(environ, response.start_response)
            try:
                # The worker may have begun to stop while the application ran.
                keepalive_limit = self._max_connections - self.cfg.threads
                if not self.alive or len(self._connections) > keepalive_limit:
                    response.force_close()
                for part in body:
                    response.write(part)
                response.close()
            finally:
                if hasattr(body, "close"):
                    body.close()
            response.check_length()
        except Exception as error:
            if not response.headers_sent:
                raise
            if not isinstance(error, DISCONNECTED):
                self.log.exception("connection closed: sending a response failed")
            # No error response: the client would take it for the response to its next request.
            return False
        return not response.should_close()

    def _reject(self, connection: Connection, request: Any, error: Exception) -> None:
        """Respond to a request that did not reach the application, and log it."""
        method = getattr(request, "method", None)
        with suppress(OSError):
            connection.sock.send(reject(error, method), socket.MSG_DONTWAIT)

    def _begin_close(self, connection: Connection) -> None:
        """Begin a lingering close: send no more data, and wait until the client closes."""
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client has reset it
            self._close(connection)
            return
        connection.deadline = time.monotonic() + LINGER_SECONDS
        self._epoll.modify(connection.descriptor, READABLE)

    def _discard_input(self, connection: Connection) -> None:
        """Discard data from the client on a connection that is being closed."""
        try:
            data = connection.sock.recv(65536, socket.MSG_DONTWAIT)
        except OSError:
            data = b""
        connection.unread_limit -= len(data)
        if data and connection.unread_limit > 0:
            self._epoll.modify(connection.descriptor, READABLE)
        else:
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        was_full = len(self._connections) >= self._max_connections
        # Before the socket is closed: later, a new connection may get the same descriptor.
        del self._connections[connection.descriptor]
        connection.sock.close()
        if was_full:
            self._wake()

    def _wake(self) -> None:
        """Wake the main thread."""
        with suppress(OSError):  # the pipe is full, so the main thread wakes anyway
            os.write(self.PIPE[1], b".")
