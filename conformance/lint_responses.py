"""Check one response of each status of the API with httplint."""

import http.client
import json
import os
import sys
import time
from urllib.parse import urlsplit

from httplint import HttpRequestLinter, HttpResponseLinter
from httplint.note import levels

# Classes of notes with the level "bad" that the API cannot avoid, each with its reason.
ACCEPTED_NOTES: dict[str, str] = {}

SUCCESSES = {200, 201, 204, 302, 304}
ERRORS = {400, 401, 404, 405, 406, 409, 410, 412, 413, 415, 422, 428, 503}
STATUSES = SUCCESSES | ERRORS

ID = "5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10"  # of a task


class Server:
    """A server, with the statuses and the notes of its responses."""

    def __init__(self, url, token):
        self.parts = urlsplit(url)
        self.token = token
        self.statuses = set()
        self.bad = []
        self.warnings = set()

    def request(self, method, path, body=None, **fields):
        """Send a request, check its response, and return its headers and its content."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers |= {name.replace("_", "-"): value for name, value in fields.items()}
        connection = http.client.HTTPConnection(self.parts.hostname, self.parts.port, timeout=10)
        started = time.time()
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        self.lint(method, path, headers, body, response, content, started)
        return response.headers, content

    def lint(self, method, path, headers, body, response, content, started):
        """Record the status of the response, and httplint's notes on it."""
        request = HttpRequestLinter(start_time=started)
        request.process_request_topline(
            method.encode(), f"http://{self.parts.netloc}{path}".encode(), b"1.1"
        )
        fields = {"Host": self.parts.netloc, "Accept-Encoding": "identity", **headers}
        if body is not None:
            fields["Content-Length"] = str(len(body))
        request.process_headers([(n.encode(), v.encode()) for n, v in fields.items()])
        if body is not None:
            request.feed_content(body)
        request.finish_content(complete=True)
        linter = HttpResponseLinter(
            start_time=started, _related=request, no_content=method == "HEAD"
        )
        linter.process_response_topline(
            b"1.1", str(response.status).encode(), response.reason.encode()
        )
        linter.process_headers(
            [(name.encode(), value.encode()) for name, value in response.headers.items()]
        )
        linter.feed_content(content)
        linter.finish_content(complete=True)
        self.statuses.add(response.status)
        for note in linter.notes:
            line = f"{response.status} {method} {path}: {type(note).__name__}: {note.summary}"
            if note.level is levels.BAD and type(note).__name__ not in ACCEPTED_NOTES:
                self.bad.append(line)
            elif note.level is levels.WARN:
                self.warnings.add(f"{type(note).__name__}: {note.summary}")


def send_requests(request, user):
    """Send all kinds of requests of a user, from the first task until the user is erased."""
    tasks = f"/api/{user}/tasks"
    created, _ = request("POST", tasks, {"title": "Buy oat milk"})
    task, tag = created["Location"], created["ETag"]
    # 201, the same again, and 409: the id is in use with other values.
    for title in ("Buy oats", "Buy oats", "Buy rye"):
        request("POST", tasks, {"id": ID, "title": title})
    # 201, the same response replayed, and 422: another request has used the key.
    for title in ("Buy milk", "Buy milk", "Buy bread"):
        request("POST", tasks, {"title": title}, Idempotency_Key="key")
    first_page, _ = request("GET", f"{tasks}?limit=1")
    request("GET", first_page["Link"].partition(">")[0].lstrip("<"))
    request("HEAD", tasks)
    request("OPTIONS", tasks)
    request("GET", tasks, If_None_Match="*")
    request("GET", task)
    request("HEAD", task)
    request("GET", task, If_None_Match=tag)
    # 200, the same again, and 412: the ETag is that of an older revision.
    for text in ("Two litres", "Two litres", "Three litres"):
        request("PATCH", task, {"description": text}, If_Match=tag)
    request("PUT", task, {"title": "Buy milk"}, If_None_Match="*")
    request("PUT", task, {"title": "Buy milk"})
    request("PATCH", f"{task}/complete", {"completed": True})
    _, changes = request("GET", f"/api/{user}/changes?since=0")
    request("GET", f"/api/{user}/changes?since=1")
    # Deleted, restored, and both again.
    for method, path in (("DELETE", task), ("POST", f"{task}/restore")):
        request(method, path)
        request(method, path)
    request("DELETE", task)
    request("GET", f"/api/{user}/trash")
    request("GET", f"/api/{user}/changes?since={json.loads(changes)['next']}")
    # 410: the deletion is purged, and this client has not read it.
    request("DELETE", f"/api/{user}/trash")
    request("GET", f"/api/{user}/changes?since={json.loads(changes)['next']}")
    request("GET", task)
    request("DELETE", tasks)
    request("GET", tasks, Accept="text/html")
    request("POST", tasks, b"{")
    request("POST", tasks, {"title": ""})
    request("POST", tasks, b" " * (256 * 1024 + 1))
    request("POST", tasks, b"title=x", Content_Type="application/x-www-form-urlencoded")
    request("GET", f"/api/{user}")
    request("DELETE", f"/api/{user}")
    return task


def main():
    user, token = os.environ["USER_ID"], os.environ["TOKEN"]
    server = Server(os.environ["URL"], token)
    task = send_requests(server.request, user)
    for path in ("/api/session", "/livez", "/health", "/metrics"):
        server.request("GET", path)
    for path in ("/openapi.json", "/docs", "/docs/start.js", "/problems/invalid"):
        server.request("GET", path)
    server.request("GET", "/")
    server.request("GET", "/", Accept="text/html")
    server.request("GET", "/nothing")

    without_token = Server(os.environ["URL"], None)
    without_token.request("GET", task)
    without_token.request("GET", task, Authorization="Bearer a.b.c")

    # This server requires If-Match and cannot connect to its database.
    without_database = Server(os.environ["URL_WITHOUT_DATABASE"], token)
    without_database.request("PATCH", task, {"title": "Buy oats"})
    without_database.request("GET", task)
    without_database.request("GET", "/health")

    servers = (server, without_token, without_database)
    missing = STATUSES - set().union(*(server.statuses for server in servers))
    bad = [line for server in servers for line in server.bad]
    for line in sorted(set().union(*(server.warnings for server in servers))):
        print("warning:", line)
    for line in bad:
        print("BAD:", line)
    if missing:
        print("no response with", *sorted(missing))
    print(f"{len(STATUSES) - len(missing)} statuses, {len(bad)} bad notes")
    sys.exit(bool(bad or missing))


if __name__ == "__main__":
    main()
