"""Send a response with a complete body in one write."""

from __future__ import annotations

import time
from functools import lru_cache

from gunicorn.http import wsgi
from werkzeug import http

# Bytes of a request's body that the application may leave unread: the server discards them. If more
# bytes are unread, the server closes the connection. gunicorn's `finish_body` has the same limit.
MAX_DRAIN = 64 * 1024


class Response(wsgi.Response):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's response, but head and body are sent together if the body is complete.

    gunicorn sends head and body separately, with two system calls and two packets.
    """

    headers_sent: bool

    def default_headers(self) -> list[str]:
        unread = self.req.unread_length()
        if unread is None or unread >= MAX_DRAIN:
            self.force_close()
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

    def check_length(self) -> None:
        """Raise ValueError if the body was shorter than its Content-Length.

        The client would read the next bytes on the connection as the rest of the body.
        """
        if not self._omits_body and self.sent < (self.response_length or 0):
            msg = f"{self.sent} of {self.response_length} bytes were sent"
            raise ValueError(msg)


@lru_cache(maxsize=2)
def http_date(second: int) -> str:
    """Return the Date field's value (RFC 9110, section 6.6.1), computed once a second."""
    return http.http_date(second)
