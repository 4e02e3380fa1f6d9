"""A WSGI application whose views harm the worker: exit, exceptions, a broken serve loop."""

from __future__ import annotations

import gc
import os
import sys

from todo_api.server.worker import Worker


def app(environ, start_response):
    match environ["PATH_INFO"]:
        case "/exit":
            sys.exit("as a view may")
        case "/raise":
            raise ValueError("before the response")
        case "/break-off":
            start_response("200 OK", [("Content-Length", "10")])
            return raise_after_first_part()
        case "/break-loop":
            (worker,) = (instance for instance in gc.get_objects() if isinstance(instance, Worker))
            worker._take = None
    start_response("200 OK", [("Content-Length", "0"), ("X-Worker", str(os.getpid()))])
    return []


def raise_after_first_part():
    yield b"12345"
    raise ValueError("in the middle of the response")
