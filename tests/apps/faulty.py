"""A WSGI application with typical faults of an application or a middleware."""

from __future__ import annotations

import time


class FailingClose:
    """A response whose `close` raises an exception after the whole body is sent."""

    def __iter__(self):
        return iter([b"whole"])

    def close(self):
        raise ValueError("in close")


def app(environ, start_response):
    path, _, argument = environ["PATH_INFO"].lstrip("/").partition("/")
    body = b"whole"
    match path:
        case "close-raises":
            start_response("200 OK", [("Content-Length", "5")])
            return FailingClose()
        case "write-and-raise":
            start_response("200 OK", [("Content-Length", "5")])(b"whole")
            raise ValueError("after the response")
        case "too-short":
            start_response("200 OK", [("Content-Length", "10")])
            return [b"whole"]
        case "os-error":
            raise FileNotFoundError("of the application")
        case "stop-iteration":
            raise StopIteration("of the application")
        case "sleep":
            time.sleep(float(argument))
        case "read":
            body = environ["wsgi.input"].read()
        case "echo":
            body = argument.encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
