"""The application on other servers than its own: it is a plain one of WSGI (PEP 3333)."""

from __future__ import annotations

import json
import socket

import pytest

from fault_injection.clients import Client
from fault_injection.invalid_requests import exchange
from fault_injection.servers import HOST, Api, serving

MAX_BODY = 128 * 1024  # bytes


class Gthread(Api):
    """gunicorn with a worker of its own, and nothing of gunicorn.conf.py."""

    def command(self) -> list[str]:
        empty = self.log.with_name("empty.py")
        empty.touch()
        options = ["--config", str(empty), "--worker-class", "gthread", "--threads", "4"]
        return ["-m", "gunicorn", *options, "--bind", f"{HOST}:{self.port}", "wsgi:app"]


class Waitress(Api):
    def command(self) -> list[str]:
        return ["-m", "waitress", f"--listen={HOST}:{self.port}", "wsgi:app"]


class Wsgiref(Api):
    """The standard library's, with its validator of WSGI in between, whose complaints are 500s."""

    def command(self) -> list[str]:
        script = f"""
from wsgiref.simple_server import make_server
from wsgiref.validate import validator
from wsgi import app
make_server({HOST!r}, {self.port}, validator(app)).serve_forever()
"""
        return ["-c", script]


@pytest.fixture(
    scope="module", params=[Api, Gthread, Waitress, Wsgiref], ids=lambda kind: kind.__name__
)
def api(request, database_url):
    with serving(database_url, request.param, WEB_CONCURRENCY="1", LOG_LEVEL="info") as server:
        yield server
        assert "Traceback" not in server.log.read_text()


@pytest.fixture
def http(api):
    with Client(api.address) as client:
        yield client


@pytest.fixture
def stored(http, tasks_url):
    """A task, created on this server, and where it is."""
    answer = http.request("POST", tasks_url, {"title": "Buy oat milk"})
    assert answer.status == 201, answer
    return f"{tasks_url}/{answer.json['id']}", answer.json


def test_tasks_are_created_changed_listed_and_deleted(http, tasks_url, stored):
    url, task = stored

    completed = http.request("PATCH", f"{url}/complete")
    listed = http.request("GET", f"{tasks_url}?limit=1")
    head = http.request("HEAD", url)
    unchanged = http.request("GET", url, headers={"If-None-Match": completed.headers["etag"]})
    deleted = http.request("DELETE", url)

    assert completed.json == task | {
        "completed": True,
        "revision": 2,
        "updated_at": completed.json["updated_at"],
    }
    assert (listed.status, listed.json) == (200, [completed.json])
    assert (head.status, head.body) == (200, b"")
    assert (unchanged.status, unchanged.body) == (304, b"")
    assert (deleted.status, deleted.body) == (204, b"")
    assert http.request("GET", url).status == 404


def request_to(url: str, method: str, announced: int, body: bytes = b"") -> bytes:
    fields = "Host: a\r\nContent-Type: application/json\r\nConnection: close\r\n"
    head = f"{method} {url} HTTP/1.1\r\n{fields}Content-Length: {announced}\r\n\r\n"
    return head.encode() + body


CHANGES = [
    ("POST", ""),
    ("PUT", "/{id}"),
    ("PATCH", "/{id}"),
    ("PATCH", "/{id}/complete"),
    ("DELETE", "/{id}"),
]


@pytest.mark.parametrize("body", [b"", b'{"title": "x"'])
@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_a_request_whose_body_is_cut_off_changes_nothing(
    api, http, tasks_url, stored, method, path, body
):
    url, task = stored
    sent = request_to(tasks_url + path.format_map(task), method, 14, body)

    with socket.create_connection(api.address, timeout=30) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: connection.recv(65536), b""))

    # waitress waits for the whole body, and so has nothing to answer.
    if received:
        head, _, problem = received.partition(b"\r\n\r\n")
        assert head.split(b" ")[1] == b"400"
        assert json.loads(problem)["detail"] == "The body ended before its Content-Length."
    assert bool(received) or type(api) is Waitress
    assert http.request("GET", tasks_url).json == [task]
    assert http.request("GET", url).json == task


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_a_body_that_is_too_large_is_refused_and_nothing_changed(
    api, http, tasks_url, stored, method, path
):
    _, task = stored
    too_large = json.dumps({"title": "x"}).ljust(MAX_BODY + 1).encode()
    # Only waitress has to see it: it hands a request over when it has all of it.
    sent = too_large if type(api) is Waitress else b""
    url = tasks_url + path.format_map(task)

    received = exchange(api.address, request_to(url, method, len(too_large), sent))

    head, _, problem = received.partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == b"413"
    assert json.loads(problem)["type"] == "/problems/too-large"
    assert http.request("GET", tasks_url).json == [task]


def test_a_body_of_just_the_size_that_is_allowed_is_read(api, tasks_url):
    largest = json.dumps({"title": "x"}).ljust(MAX_BODY).encode()

    received = exchange(api.address, request_to(tasks_url, "POST", MAX_BODY, largest))

    assert received.split(b" ")[1] == b"201"


@pytest.mark.parametrize(("size", "status"), [(MAX_BODY, b"201"), (MAX_BODY + 1, b"413")])
def test_a_chunked_body_is_bounded_too(api, tasks_url, size, status):
    head = request_to(tasks_url, "POST", 0).replace(
        b"Content-Length: 0", b"Transfer-Encoding: chunked"
    )
    body = json.dumps({"title": "x"}).ljust(size).encode()

    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)

    # wsgiref leaves chunks to the application, which reads none.
    received = exchange(api.address, head if type(api) is Wsgiref else head + chunks)

    assert received.split(b" ")[1] == (b"411" if type(api) is Wsgiref else status)


def test_chunks_are_read_or_refused_but_not_taken_for_no_body(api, http, stored):
    url, _ = stored
    fields = b"Host: a\r\nContent-Type: application/json\r\nConnection: close\r\n"
    head = f"PATCH {url}/complete HTTP/1.1\r\n".encode() + fields
    chunks = b'14\r\n{"completed": false}\r\n0\r\n\r\n'

    received = exchange(api.address, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)

    status = b"411" if type(api) is Wsgiref else b"200"
    assert received.split(b" ")[1] == status
    assert http.request("GET", url).json["completed"] is False
