"""Each problem type has a page, and the example on it has the shape of a real response."""

import ast
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from flask import abort
from gunicorn.http.errors import ExpectationFailed, LimitRequestHeaders, LimitRequestLine

import todo_api
from todo_api.app import RESOURCES
from todo_api.server.rejections import reject
from todo_api.web.problem_kinds import KINDS_BY_NAME, KINDS_BY_STATUS

PACKAGE = Path(todo_api.__file__).parent
NGINX = PACKAGE.parent / "deploy" / "nginx" / "todo-api" / "http.conf"

NOWHERE = "postgresql://127.0.0.1:1/todo"
JSON = {"Content-Type": "application/json"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}

# Types that the proxy alone answers with: tests/deploy/test_nginx.py has their responses.
OF_THE_PROXY = {"https-required", "too-many-requests", "bad-gateway", "gateway-timeout"}


def rejected(error):
    """Return the body of the response to a request that gunicorn rejects."""
    return json.loads(reject(error, "GET").partition(b"\r\n\r\n")[2])


def in_trash(client, task):
    client.delete(task.url)
    return already_exists(client, task)


def into_archived_list(client, tasks_url):
    lists_url = tasks_url.replace("/tasks", "/lists")
    list_ = client.post(lists_url, json={"name": "Groceries", "archived": True}).json
    return client.post(tasks_url, json={"title": "Buy milk", "list_id": list_["id"]})


def already_exists(client, task):
    tasks_url = task.url.rpartition("/")[0]
    return client.post(tasks_url, json={"id": task["id"], "title": "Buy milk"})


def key_reused(client, url):
    for title in ("Buy oat milk", "Buy milk"):
        answer = client.post(url, json={"title": title}, headers={"Idempotency-Key": url})
    return answer


def chunked(client, url):
    """Send a chunked body to a server that does not decode it, as the test client is."""
    headers = {"Transfer-Encoding": "chunked", **JSON}
    return client.post(url, headers=headers, environ_overrides={"wsgi.input_terminated": False})


def bug(make_app, user_id):
    app = make_app()
    app.view_functions["tasks.get_task"] = lambda **_: 1 / 0
    return app.test_client().get(f"/api/{user_id}/tasks/{user_id}")


def other(make_app):
    app = make_app()
    app.add_url_rule("/other", view_func=lambda: abort(501))
    return app.test_client().get("/other")


@pytest.fixture
def responses(client, make_app, make_task, tasks_url, user_id):
    """Return the body of a real response of each kind that this server answers with."""
    task = make_task(labels=["errand"], metadata={"source": "mail"})
    client.patch(task.url, json={"title": "Buy milk"})
    since = client.get(f"/api/{user_id}/changes?since=0").json["next"]
    client.delete(make_task().url)
    client.delete(f"/api/{user_id}/trash")
    changes = f"/api/{user_id}/changes?since={since}"
    answers = (
        client.post(tasks_url, data='{"title": }', headers=JSON),
        make_app(AUTH_MODE="jwt", JWT_SECRET="s" * 32).test_client().get(tasks_url),
        client.get("/nothing"),
        client.delete(tasks_url),
        client.get(tasks_url, headers={"Accept": "text/html"}),
        in_trash(client, make_task()),
        already_exists(client, make_task()),
        into_archived_list(client, tasks_url),
        make_app(MAX_TASKS="1").test_client().post(tasks_url, json={"title": "Buy milk"}),
        client.get(changes),
        chunked(client, tasks_url),
        client.patch(task.url, json={"title": "Buy oats"}, headers={"If-Match": task.etag}),
        client.post(tasks_url, data=b" " * 300_000, headers=JSON),
        client.post(tasks_url, data="title=x"),
        client.post(tasks_url, json={"title": ""}),
        key_reused(client, tasks_url),
        make_app(REQUIRE_IF_MATCH="true").test_client().patch(task.url, json={}),
        bug(make_app, user_id),
        make_app(DATABASE_URL=NOWHERE, REQUEST_TIMEOUT="0.5").test_client().get(tasks_url),
        other(make_app),
    )
    bodies = [
        *(answer.json for answer in answers),
        rejected(LimitRequestLine(1, 1)),
        rejected(LimitRequestHeaders("too many")),
        rejected(ExpectationFailed("x")),
    ]
    return {body["type"].removeprefix("/problems/"): body for body in bodies}


def example_of(page):
    """Return the example response body of a page in plain text."""
    return json.loads(re.search(r"^\{\n.*?^\}", page, re.DOTALL | re.MULTILINE)[0])


def shape(value):
    """Return the names of the members, without their values; of an array, those of its first."""
    if isinstance(value, dict):
        return {name: shape(member) for name, member in value.items()}
    return [shape(value[0])] if isinstance(value, list) else None


def test_each_example_has_the_shape_of_a_real_response(client, responses):
    assert responses.keys() == KINDS_BY_NAME.keys() - OF_THE_PROXY

    for name, response in responses.items():
        example = example_of(client.get(f"/problems/{name}").text)

        assert shape(example) == shape(response), name
        for member in ("type", "title", "status"):
            assert example[member] == response[member], name


def test_every_kind_that_the_code_names_is_declared():
    """Kinds are named as text: `kind=...`, `conflict(...)`, KINDS_BY_NAME[...]."""
    named = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "kind":
                named |= text_of(node.value)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "conflict":
                named |= text_of(node.args[0])
            elif (
                isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "KINDS_BY_NAME"
            ):
                named |= text_of(node.slice)
    for resource in RESOURCES:
        named |= {*resource.conflicts.values()}

    assert named >= {"in-trash", "already-exists", "key-reused"}
    assert named <= KINDS_BY_NAME.keys(), "declare the kind in todo_api/web/problem_kinds.py"


def text_of(node):
    """Return the texts that the expression can be: a constant, or one of two."""
    if isinstance(node, ast.IfExp):
        return text_of(node.body) | text_of(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) else set()


def test_every_status_in_the_openapi_document_has_a_kind(client):
    responses = client.get("/openapi.json").json["components"]["responses"]

    statuses = {int(re.search("[0-9]{3}", name)[0]) for name in responses}

    assert statuses <= {kind.status for kind in KINDS_BY_NAME.values()}
    assert statuses - KINDS_BY_STATUS.keys() == {409}


def test_every_type_of_the_proxy_has_a_page(client):
    types = set(re.findall(r'"type":"(/problems/[a-z-]+)"', NGINX.read_text()))

    assert types >= {f"/problems/{name}" for name in OF_THE_PROXY}
    for path in types:
        assert client.get(path).status_code == 200, path


@pytest.mark.parametrize("name", KINDS_BY_NAME)
def test_browsers_get_html_and_other_clients_get_plain_text(client, name):
    kind = KINDS_BY_NAME[name]

    page = client.get(kind.type, headers=BROWSER)
    text = client.get(kind.type, headers={"Accept": "*/*"})

    assert (page.mimetype, text.mimetype) == ("text/html", "text/plain")
    assert words(html_text(page.text)) == words(page_title(kind) + " " + text.text)
    for part in (kind.happened, kind.reason, kind.remedy, kind.request):
        assert set(words(part)) <= set(words(text.text))


def page_title(kind):
    return f"{kind.name}: {kind.title}"


def words(text):
    """Return the words of a text in lower case, without backticks."""
    return text.replace("`", "").lower().split()


class Text(HTMLParser):
    """The text of a page, without the link at its end."""

    def __init__(self, page):
        super().__init__()
        self.parts = []
        self.feed(page.partition("<p><a")[0])

    def handle_data(self, data):
        self.parts.append(data)


def html_text(page):
    return "".join(Text(page).parts)


@pytest.mark.parametrize("accept", [None, "", "*/*", "application/json", "text/plain", "image/*"])
def test_a_client_that_does_not_prefer_html_gets_plain_text(client, accept):
    answer = client.get("/problems/invalid", headers={} if accept is None else {"Accept": accept})

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_html_is_escaped(client):
    page = client.get("/problems/unauthorized", headers=BROWSER).text

    assert 'error="' not in page
    assert "<code>error=&#34;invalid_token&#34;</code>" in page
    assert 'error="invalid_token"' in html.unescape(page)


def test_a_page_can_be_cached_and_revalidated(client):
    first = client.get("/problems/gone")

    again = client.get("/problems/gone", headers={"If-None-Match": first.headers["ETag"]})
    as_html = client.get("/problems/gone", headers=BROWSER)

    assert first.headers["Cache-Control"] == "public, max-age=3600"
    assert first.vary.as_set(preserve_casing=True) == {"Accept"}
    assert (again.status_code, again.data) == (304, b"")
    assert as_html.headers["ETag"] != first.headers["ETag"]


def test_pages_need_no_token(make_app):
    client = make_app(AUTH_MODE="jwt", JWT_SECRET="s" * 32).test_client()

    assert client.get("/problems/unauthorized").status_code == 200
    assert client.get("/problems/unknown").status_code == 401


def test_an_unknown_kind_is_not_found(client):
    answer = client.get("/problems/unknown")

    assert (answer.status_code, answer.json["type"]) == (404, "/problems/not-found")


def test_the_page_of_a_task_in_the_trash_names_the_request_that_helps(client, make_task):
    """The request that the page shows succeeds after the response that it explains."""
    task = make_task()
    in_trash(client, task)
    page = client.get("/problems/in-trash").text

    method, path = re.search(r"^(POST) (\S+) HTTP/1.1$", page, re.MULTILINE).groups()
    restored = client.open(
        path.replace("USER_ID", task["user_id"]).replace("TASK_ID", task["id"]), method=method
    )

    assert restored.status_code == 200
