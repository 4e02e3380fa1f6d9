"""The application on other WSGI servers (PEP 3333) than gunicorn with the project's worker."""

from __future__ import annotations

import json
import socket

import pytest

from fault_injection.clients import Client
from fault_injection.invalid_requests import exchange
from fault_injection.servers import HOST, Api, serving

MAX_BODY = 256 * 1024  # bytes


class Gthread(Api):
    """gunicorn with its threaded worker, without gunicorn.conf.py."""

    def command(self) -> list[str]:
        empty = self.log.with_name("empty.py")
        empty.touch()
        options = ["--config", str(empty), "--worker-class", "gthread", "--threads", "4"]
        return ["-m", "gunicorn", *options, "--bind", f"{HOST}:{self.port}", "wsgi:app"]


class Waitress(Api):
    def command(self) -> list[str]:
        return ["-m", "waitress", f"--listen={HOST}:{self.port}", "wsgi:app"]


class Wsgiref(Api):
    """The standard library's server and WSGI validator, which turns violations into 500s."""

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
def stored_task(http, tasks_url):
    """Create a task on this server; return its URL and its JSON."""
    response = http.request("POST", tasks_url, {"title": "Buy oat milk"})
    assert response.status == 201, response
    return f"{tasks_url}/{response.json['id']}", response.json


def test_tasks_are_created_changed_listed_and_deleted(http, tasks_url, stored_task):
    url, task = stored_task

    completed = http.request("PATCH", f"{url}/complete")
    listed = http.request("GET", f"{tasks_url}?limit=1")
    head = http.request("HEAD", url)
    unchanged = http.request("GET", url, headers={"If-None-Match": completed.headers["etag"]})
    deleted = http.request("DELETE", url)

    assert completed.json == task | {
        "completed": True,
        "completed_at": completed.json["updated_at"],
        "revision": completed.json["revision"],
        "updated_at": completed.json["updated_at"],
    }
    assert completed.json["revision"] > task["revision"]
    assert (listed.status, listed.json) == (200, [completed.json])
    assert (head.status, head.body) == (200, b"")
    assert (unchanged.status, unchanged.body) == (304, b"")
    assert (deleted.status, deleted.body) == (204, b"")
    assert http.request("GET", url).status == 404


def request_to(url: str, method: str, content_length: int, body: bytes = b"") -> bytes:
    fields = "Host: a\r\nContent-Type: application/json\r\nConnection: close\r\n"
    head = f"{method} {url} HTTP/1.1\r\n{fields}Content-Length: {content_length}\r\n\r\n"
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
def test_request_with_a_truncated_body_changes_nothing(
    api, http, tasks_url, stored_task, method, path, body
):
    url, task = stored_task
    request = request_to(tasks_url + path.format_map(task), method, 14, body)

    with socket.create_connection(api.address, timeout=30) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: connection.recv(65536), b""))

    # waitress waits for the whole body, so it sends no response.
    if received:
        head, _, problem = received.partition(b"\r\n\r\n")
        assert head.split(b" ")[1] == b"400"
        assert (
            json.loads(problem)["detail"]
            == "Send the whole body: it ended before its Content-Length."
        )
    assert bool(received) or type(api) is Waitress
    assert http.request("GET", tasks_url).json == [task]
    assert http.request("GET", url).json == task


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_too_large_body_is_refused_and_changes_nothing(
    api, http, tasks_url, stored_task, method, path
):
    _, task = stored_task
    too_large = json.dumps({"title": "x"}).ljust(MAX_BODY + 1).encode()
    # waitress starts the application only after it has read the whole body.
    body = too_large if type(api) is Waitress else b""
    url = tasks_url + path.format_map(task)

    received = exchange(api.address, request_to(url, method, len(too_large), body))

    head, _, problem = received.partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == b"413"
    assert json.loads(problem)["type"] == "/problems/too-large"
    assert http.request("GET", tasks_url).json == [task]


def test_body_of_the_maximum_size_is_accepted(api, tasks_url):
    largest = json.dumps({"title": "x"}).ljust(MAX_BODY).encode()

    received = exchange(api.address, request_to(tasks_url, "POST", MAX_BODY, largest))

    assert received.split(b" ")[1] == b"201"


@pytest.mark.parametrize(("size", "status"), [(MAX_BODY, b"201"), (MAX_BODY + 1, b"413")])
def test_size_of_a_chunked_body_is_limited(api, tasks_url, size, status):
    head = request_to(tasks_url, "POST", 0).replace(
        b"Content-Length: 0", b"Transfer-Encoding: chunked"
    )
    body = json.dumps({"title": "x"}).ljust(size).encode()

    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)

    # wsgiref does not decode chunks, so the application refuses the request with 411.
    received = exchange(api.address, head if type(api) is Wsgiref else head + chunks)

    assert received.split(b" ")[1] == (b"411" if type(api) is Wsgiref else status)


def test_chunked_body_is_read_or_refused_but_not_ignored(api, http, stored_task):
    url, _ = stored_task
    fields = b"Host: a\r\nContent-Type: application/json\r\nConnection: close\r\n"
    head = f"PATCH {url}/complete HTTP/1.1\r\n".encode() + fields
    chunks = b'14\r\n{"completed": false}\r\n0\r\n\r\n'

    received = exchange(api.address, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)

    status = b"411" if type(api) is Wsgiref else b"200"
    assert received.split(b" ")[1] == status
    assert http.request("GET", url).json["completed"] is False
