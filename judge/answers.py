"""One answer of every status that the API gives, each read by httplint."""

import http.client
import json
import os
import sys
import time
from urllib.parse import urlsplit

from httplint import HttpRequestLinter, HttpResponseLinter
from httplint.note import levels

# Notes of the level "bad" that are not ours to mend, by class, each with its reason.
NOT_OURS: dict[str, str] = {}

WANTED = {200, 201, 204, 304, 400, 401, 404, 405, 406, 409, 410, 412, 413, 415, 422, 428, 503}


class Server:
    """A server that is asked, its answers read."""

    def __init__(self, url, token):
        self.parts = urlsplit(url)
        self.token = token
        self.statuses = set()
        self.bad = []
        self.warnings = set()

    def ask(self, method, path, body=None, **fields):
        """The answer's headers, after httplint has read it."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers |= {name.replace("_", "-"): value for name, value in fields.items()}
        connection = http.client.HTTPConnection(self.parts.hostname, self.parts.port, timeout=10)
        started = time.time()
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self.read(method, path, headers, body, answer, content, started)
        return answer.headers

    def read(self, method, path, headers, body, answer, content, started):
        request = HttpRequestLinter(start_time=started)
        request.process_request_topline(
            method.encode(), f"http://{self.parts.netloc}{path}".encode(), b"1.1"
        )
        sent = {"Host": self.parts.netloc, "Accept-Encoding": "identity", **headers}
        if body is not None:
            sent["Content-Length"] = str(len(body))
        request.process_headers([(n.encode(), v.encode()) for n, v in sent.items()])
        if body is not None:
            request.feed_content(body)
        request.finish_content(complete=True)
        response = HttpResponseLinter(
            start_time=started, _related=request, no_content=method == "HEAD"
        )
        response.process_response_topline(
            b"1.1", str(answer.status).encode(), answer.reason.encode()
        )
        response.process_headers(
            [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        )
        response.feed_content(content)
        response.finish_content(complete=True)
        self.statuses.add(answer.status)
        for note in response.notes:
            line = f"{answer.status} {method} {path}: {type(note).__name__}: {note.summary}"
            if note.level is levels.BAD and type(note).__name__ not in NOT_OURS:
                self.bad.append(line)
            elif note.level is levels.WARN:
                self.warnings.add(f"{type(note).__name__}: {note.summary}")


def ask_a_user(ask, user):
    """What a user's requests are answered, from the first task to the user's leave."""
    tasks = f"/api/{user}/tasks"
    created = ask("POST", tasks, {"title": "Buy oat milk"})
    ask("POST", tasks, {"title": "Buy oats"})
    task, tag = created["Location"], created["ETag"]
    # Created, told again, and refused: the key is another request's.
    for title in ("Buy milk", "Buy milk", "Buy bread"):
        ask("POST", tasks, {"title": title}, Idempotency_Key="key")
    first_page = ask("GET", f"{tasks}?limit=1")
    ask("GET", first_page["Link"].partition(">")[0].lstrip("<"))
    ask("HEAD", tasks)
    ask("OPTIONS", tasks)
    ask("GET", tasks, If_None_Match="*")
    ask("GET", task)
    ask("HEAD", task)
    ask("GET", task, If_None_Match=tag)
    ask("PATCH", task, {"description": "Two litres"}, If_Match=tag)
    ask("PATCH", task, {"description": "Three litres"}, If_Match=tag)
    ask("PUT", task, {"title": "Buy milk"}, If_None_Match="*")
    ask("PUT", task, {"title": "Buy milk"})
    ask("PATCH", f"{task}/complete", {"completed": True})
    ask("POST", f"{task}/restore")
    ask("GET", f"/api/{user}/changes?since=0")
    ask("GET", f"/api/{user}/changes?since=999999")
    ask("DELETE", task)
    ask("GET", f"{tasks}?deleted=true")
    ask("GET", task)
    ask("DELETE", tasks)
    ask("GET", tasks, Accept="text/html")
    ask("POST", tasks, b"{")
    ask("POST", tasks, {"title": ""})
    ask("POST", tasks, b" " * (128 * 1024 + 1))
    ask("POST", tasks, b"title=x", Content_Type="application/x-www-form-urlencoded")
    ask("DELETE", f"/api/{user}")
    return task


def main():
    user, token = os.environ["USER_ID"], os.environ["TOKEN"]
    server = Server(os.environ["URL"], token)
    task = ask_a_user(server.ask, user)
    for path in ("/api/session", "/livez", "/health", "/metrics"):
        server.ask("GET", path)
    for path in ("/openapi.json", "/docs", "/docs/start.js", "/problems/invalid"):
        server.ask("GET", path)
    server.ask("GET", "/nothing")

    stranger = Server(os.environ["URL"], None)
    stranger.ask("GET", task)
    stranger.ask("GET", task, Authorization="Bearer a.b.c")

    # One that wants If-Match, and whose database is away.
    alone = Server(os.environ["URL_WITHOUT_DATABASE"], token)
    alone.ask("PATCH", task, {"title": "Buy oats"})
    alone.ask("GET", task)
    alone.ask("GET", "/health")

    servers = (server, stranger, alone)
    missing = WANTED - set().union(*(one.statuses for one in servers))
    bad = [line for one in servers for line in one.bad]
    for line in sorted(set().union(*(one.warnings for one in servers))):
        print("warning,", line)
    for line in bad:
        print("BAD,", line)
    if missing:
        print("no answer of", *sorted(missing))
    print(f"{len(WANTED) - len(missing)} statuses, {len(bad)} bad notes")
    sys.exit(bool(bad or missing))


if __name__ == "__main__":
    main()
