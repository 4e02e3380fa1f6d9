"""Read HTTP/1.1 requests strictly, in the same way with both parsers of gunicorn (RFC 9112)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gunicorn.http import Request, RequestParser
from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.errors import (
    InvalidHeader,
    InvalidRequestLine,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ObsoleteFolding,
)

if TYPE_CHECKING:
    from gunicorn.http.unreader import Unreader

# method SP request-target SP HTTP-version (RFC 9112, section 3). The target has the origin-form, or
# the absolute-form without userinfo. A fragment is not allowed.
METHOD = rb"[!#$%&'*+.^_`|~0-9A-Z-]+"
ORIGIN_FORM = rb"/[!-\"$-~]*"
ABSOLUTE_FORM = rb"https?://[0-9A-Za-z._~%!$&'()*+,;=:\[\]-]+(?:[/?][!-\"$-~]*)?"
REQUEST_LINE = re.compile(
    rb"(?:%b (?:%b|%b)|OPTIONS \*) HTTP/1\.[01]" % (METHOD, ORIGIN_FORM, ABSOLUTE_FORM)
)

# uri-host [ ":" port ] (RFC 9110, section 7.2); empty if the target has no authority.
HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(?::[0-9]*)?")


# The maximum of bytes in the request line and all fields together. With gunicorn's limit, 819 KB,
# an idle connection can use 1.7 MB of memory, and both parsers parse the whole head again for each
# packet.
MAX_HEAD = 64 * 1024


class StrictRequest(Request):  # type: ignore[misc]  # gunicorn has no types
    """A request that all HTTP/1.1 parsers read in the same way. Other requests are refused.

    gunicorn_h1c, the parser in C, accepts bare LF line ends, folded lines and several spaces in the
    request line; gunicorn's parser in Python refuses some of these. If the proxy in front and this
    server read the same bytes as different requests, a client could hide a request from the proxy
    (request smuggling).
    """

    def parse(self, unreader: Unreader) -> bytes:
        self._received = bytearray()
        rest: bytes = super().parse(unreader)
        head = self._received.removeprefix(b"\r\n").partition(b"\r\n\r\n")[0]
        request_line, _, fields = head.partition(b"\r\n")
        if not REQUEST_LINE.fullmatch(request_line):
            raise InvalidRequestLine("")
        if head.count(b"\n") != head.count(b"\r\n"):
            raise InvalidHeader("bare LF as line terminator")
        if fields.startswith((b" ", b"\t")) or b"\n " in fields or b"\n\t" in fields:
            raise ObsoleteFolding("")
        # gunicorn does not count fields that it drops, such as X_Forwarded_For.
        if fields and fields.count(b"\r\n") >= self.limit_request_fields:
            raise LimitRequestHeaders("")
        self._received.clear()
        return rest

    def read_into(self, unreader: Unreader, buf: bytearray, stop: bool = False) -> None:  # noqa: FBT001, FBT002  gunicorn's
        """Keep a copy of the received bytes, which `parse` checks."""
        size = len(buf)
        super().read_into(unreader, buf, stop)
        self._received += buf[size:]
        size = len(self._received)
        if size > MAX_HEAD:
            # gunicorn_h1c has no limit on the length of a request line.
            has_line = b"\r\n" in self._received[2:]
            raise LimitRequestHeaders("") if has_line else LimitRequestLine(size, MAX_HEAD)

    def set_body_reader(self) -> None:
        hosts = self.values("HOST")
        # RFC 9112, section 3.2. gunicorn itself refuses a second Host field.
        if (not hosts and self.version >= (1, 1)) or not all(map(HOST.fullmatch, hosts)):
            raise InvalidHeader("HOST", req=self)
        # gunicorn accepts codings that it does not decode, and the obsolete `identity`.
        codings = self.values("TRANSFER-ENCODING")
        if codings and [coding.lower() for coding in codings] != ["chunked"]:
            raise InvalidHeader("TRANSFER-ENCODING", req=self)
        super().set_body_reader()
        if isinstance(self.body.reader, LengthReader):
            self.body.reader = WholeBodyReader(self.unreader, self.body.reader.length)

    def should_close(self) -> bool:
        """Whether the connection ends with this request (RFC 9112, section 9.3).

        gunicorn detects `close` only if it is the only option of the first Connection field.
        """
        # After CONNECT, the client may send data that are not HTTP (RFC 9110, section 9.3.6).
        if self.must_close or self.method == "CONNECT":
            return True
        fields = ",".join(self.values("CONNECTION")).lower()
        options = {option.strip(" \t") for option in fields.split(",")} if fields else ()
        is_old: bool = self.version < (1, 1)
        return "close" in options or (is_old and "keep-alive" not in options)

    def unread_length(self) -> int | None:
        """Return the number of bytes of the body that the application has not read.

        Returns None if reading has failed, or if the application has not read a chunked body to the
        end.
        """
        reader = self.body.reader
        if self.body.failed:
            return None
        if isinstance(reader, ChunkedReader):
            return 0 if reader.parser is None else None
        length: int = reader.length
        return length

    def values(self, name: str) -> list[str]:
        """Return the values of the fields with this name, which must be in upper case."""
        return [value for field, value in self.headers if field == name]


class WholeBodyReader(LengthReader):  # type: ignore[misc]  # gunicorn has no types
    """Reads a body of known length. Raises NoMoreData if the connection ends before the body.

    gunicorn's reader takes the end of the connection for the end of the body, so the application
    would execute an incomplete request (RFC 9112, section 8).
    """

    def read(self, size: int) -> bytes:
        expected = min(self.length, size)
        data: bytes = super().read(size)
        if len(data) < expected:
            raise NoMoreData(data)
        return data


class StrictParser(RequestParser):  # type: ignore[misc]  # gunicorn has no types
    """The requests of one connection, one after another."""

    mesg_class: type[Any] = StrictRequest

    def has_buffered_input(self) -> bool:
        """Whether bytes after the last request have already been received."""
        position: int = self.unreader.buf.tell()
        return position > 0
