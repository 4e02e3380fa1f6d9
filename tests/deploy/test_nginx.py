"""The nginx of deploy/ as it is shipped, in front of a real gunicorn and a real PostgreSQL."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import threading
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from zlib import crc32

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fault_injection.clients import Client
from fault_injection.nginx import NGINX, NGINX_FOLDER, has_ipv6, nginx_proxy
from fault_injection.servers import HOST, free_port, serving, wait_until
from tests.support import ROOT
from todo_api.web.body import MAX_BODY
from todo_api.web.headers import EXPOSED
from todo_api.web.problems import DETAIL_OF_STATUS, KIND_OF_STATUS, Problem
from todo_api.web.requests import WELL_FORMED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        NGINX is None, reason="nginx is not installed (Debian: apt install nginx-light)"
    ),
]

HTTP, SERVER = (
    (NGINX_FOLDER / "todo-api" / name).read_text() for name in ("http.conf", "server.conf")
)
GATE = int(re.search(r"max_conns=(\d+)", (NGINX_FOLDER / "todo-api/upstream.conf").read_text())[1])


@pytest.fixture(scope="module")
def api(database_url: str):
    with serving(database_url, LOG_LEVEL="info", METRICS="true") as running:
        yield running


@pytest.fixture(scope="module")
def nginx(api):
    with nginx_proxy(api.address) as running:
        yield running


@pytest.fixture
def ask(nginx, request):
    """Send a request through nginx; each test is a client of another address."""
    return asker(nginx.address, address_of(request.node.name))


def asker(address, source):
    def ask(method, path, body=None, headers=None):
        with Client(address) as client:
            client._connection.source_address = (source, 0)
            return client.request(method, path, body, headers)

    return ask


def address_of(name: str, number: int = 0) -> str:
    """An address of the loopback network, so that nobody uses up another's requests."""
    return f"127.{1 + crc32(name.encode()) % 250}.{1 + number % 250}.1"


def exchange(address, sent: bytes, source: str = "127.0.0.1") -> bytes:
    """All that is answered to these bytes, until the connection is closed."""
    with socket.create_connection(address, timeout=30, source_address=(source, 0)) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def assert_problem(answer, status: int) -> None:
    """The answer is problem details as the application's are, with the headers of these."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["status"] == status
    assert answer.json["type"].startswith("/problems/")
    assert answer.json["instance"] == answer.headers["x-request-id"]
    assert set(answer.json) == {"type", "title", "status", "detail", "instance"}
    for name in ("cache-control", "x-content-type-options", "content-security-policy"):
        assert name in answer.headers


def test_nginx_takes_the_files_as_they_are(nginx):
    assert "warn" not in nginx.verify()


def test_a_journey_through_nginx(ask, tasks_url):
    """Created, found, changed by its ETag, refused by an old one, deleted; never compressed."""
    compressed = {"Accept-Encoding": "gzip, br"}
    created = ask("POST", tasks_url, {"title": "Buy oat milk " * 15}, compressed)
    task, etag = created.headers["location"], created.headers["etag"]

    found = ask("GET", task, headers=compressed)
    same = ask("GET", task, headers=compressed | {"If-None-Match": etag})
    changed = ask("PATCH", task, {"completed": True}, {"If-Match": etag})
    refused = ask("PATCH", task, {"completed": False}, {"If-Match": etag})
    deleted = ask("DELETE", task, headers={"If-Match": changed.headers["etag"]})

    assert (created.status, etag[0]) == (201, '"')
    assert (found.body, found.headers["etag"]) == (created.body, etag)
    assert "content-encoding" not in found.headers
    assert [each.status for each in (same, changed, refused, deleted)] == [304, 200, 412, 204]
    assert refused.json["current"] == changed.json


def test_no_list_is_compressed_however_large(ask, tasks_url):
    for _ in range(3):
        ask("POST", tasks_url, {"title": "Buy oat milk", "description": "Two litres. " * 500})

    listed = ask("GET", tasks_url, headers={"Accept-Encoding": "gzip"})

    assert len(listed.json) == 3
    assert "content-encoding" not in listed.headers
    assert listed.headers["etag"].startswith('"')


def test_a_request_id_is_the_same_everywhere(ask, api, nginx):
    answer = ask("GET", "/livez", headers={"X-Request-Id": "from-a-client"})

    assert answer.headers["x-request-id"] == "from-a-client"
    await_line(api.log, '"request_id":"from-a-client"')
    await_line(nginx.access_log, '"request_id":"from-a-client"')


@pytest.mark.parametrize("given", ["with spaces", "x" * 129, '"quoted"', "é"])
def test_a_malformed_request_id_is_replaced_by_nginx(ask, api, given):
    made = ask("GET", "/livez", headers={"X-Request-Id": given}).headers["x-request-id"]

    assert re.fullmatch("[0-9a-f]{32}", made)
    await_line(api.log, f'"request_id":"{made}"')


def test_the_access_log_is_json_and_holds_no_address_of_a_request(ask, nginx, tasks_url):
    ask("GET", f"{tasks_url}?q=secret-wish", headers={"X-Request-Id": "who-searches"})

    line = json.loads(await_line(nginx.access_log, "who-searches"))

    assert line["method"], line["status"] == ("GET", 200)
    assert "secret-wish" not in nginx.access_log.read_text()


def await_line(log: Path, text: str) -> str:
    wait_until(lambda: text in log.read_text(), f"{log} tells of {text}")
    return next(line for line in log.read_text().splitlines() if text in line)


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (400, b"NONSENSE\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\n\r\n"),
        (400, b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n"),
        (405, b"TRACE / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        (413, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 131073\r\n\r\n" + b"x" * 131_073),
        (414, b"GET /" + b"a" * 4000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        (414, b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"a" * 9000 + b"\r\n\r\n"),
        (505, b"GET / HTTP/3.1\r\nHost: x\r\n\r\n"),
    ],
)
def test_what_nginx_refuses_by_itself_is_a_problem(nginx, status, sent):
    answer = exchange(nginx.address, sent)

    head, _, body = answer.decode().partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} "), answer
    assert "Content-Type: application/problem+json" in head
    assert "Server: nginx\r\n" in head
    assert json.loads(body)["status"] == status
    assert json.loads(body)["instance"] in head


def test_a_body_that_is_too_large_is_told_as_by_the_application(ask, api, tasks_url):
    body = {"title": "x" * MAX_BODY}
    with Client(api.address) as straight:
        own = straight.request("POST", tasks_url, body)
    refused = ask("POST", tasks_url, body)

    assert_problem(refused, 413)
    assert refused.json | {"instance": ""} == own.json | {"instance": ""}


def test_a_body_in_chunks_is_bounded_too(nginx, tasks_url):
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    head = f"POST {tasks_url} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

    answer = exchange(nginx.address, head.encode() + 3 * chunk)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer


def test_the_largest_body_reaches_the_application(ask, tasks_url):
    framed = len(json.dumps({"title": ""}))

    answer = ask("POST", tasks_url, {"title": "x" * (MAX_BODY - framed)})

    assert answer.status == 422
    assert answer.json["errors"][0]["pointer"] == "/title"


@pytest.mark.parametrize(
    "path", ["/metrics", "//metrics", "/metrics/", "/%6detrics", "/api/../metrics", "/metrics?x=1"]
)
def test_nobody_outside_sees_the_metrics(ask, api, path):
    answer = ask("GET", path)

    assert_problem(answer, 404)
    with Client(api.address) as inside:
        assert inside.request("GET", "/metrics").status == 200


def test_a_client_that_floods_is_refused_and_no_other():
    """Nothing is behind this nginx, so that it answers at once, on a slow machine too."""
    flood = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 400

    with nginx_proxy((HOST, free_port())) as nginx:
        answers = exchange(nginx.address, flood, "127.0.0.2").decode()
        other = asker(nginx.address, "127.0.0.3")("GET", "/livez")

    statuses = re.findall(r"HTTP/1\.1 (\d+)", answers)
    assert set(statuses) == {"502", "429"}
    assert statuses[:100] == ["502"] * 100
    assert answers.count('"type":"/problems/too-many-requests"') == statuses.count("429")
    assert answers.count("Retry-After: 1\r\n") == 400
    assert other.status == 502


def test_past_the_gate_a_request_is_refused_at_once_and_all_before_it_are_answered(database_url):
    """A stopped gunicorn, so that all that is let in is still there when the next one comes."""
    with serving(database_url) as api, nginx_proxy(api.address) as nginx, ExitStack() as waiting:
        workers = api.workers()
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        try:
            let_in = [
                waiting.enter_context(begun(nginx, "/livez", address_of("gate", number)))
                for number in range(GATE)
            ]
            wait_until(lambda: connections_to(api.port) >= GATE, "all have been passed on")
            refused = asker(nginx.address, "127.0.0.2")("GET", "/livez")
            changed = asker(nginx.address, "127.0.0.2")("POST", "/api/x/tasks", {"title": "x"})
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGCONT)

        assert_problem(refused, 503)
        assert_problem(changed, 503)
        assert refused.headers["retry-after"] == changed.headers["retry-after"] == "1"
        assert {each.getresponse().status for each in let_in} == {200}
        line = json.loads(await_line(nginx.access_log, refused.headers["x-request-id"]))
        assert line["upstream"] == "todo_api"


@contextmanager
def begun(nginx, path, source):
    """A connection on which a request was sent, and no answer has been read."""
    connection = HTTPConnection(*nginx.address, timeout=30, source_address=(source, 0))
    try:
        connection.request("GET", path)
        yield connection
    finally:
        connection.close()


def connections_to(port: int) -> int:
    """How many connections to the port of this machine are established."""
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(fields[2].endswith(f":{port:04X}") and fields[3] == "01" for fields in lines)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_without_gunicorn_the_answer_is_502(method):
    with nginx_proxy((HOST, free_port())) as nginx:
        answer = asker(nginx.address, "127.0.0.1")(method, "/api/x/tasks")

    assert_problem(answer, 502)
    assert answer.headers["retry-after"] == "1"


def test_when_gunicorn_does_not_answer_in_time_it_is_504(database_url, request):
    if not request.config.option.full:
        pytest.skip("it takes 15 s: --full runs it")
    with serving(database_url) as api, nginx_proxy(api.address) as nginx:
        workers = api.workers()
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        answer = asker(nginx.address, "127.0.0.1")("GET", "/livez")
        for worker in workers:
            os.kill(worker, signal.SIGCONT)

    assert_problem(answer, 504)
    assert "retry-after" not in answer.headers


class Unreliable(threading.Thread):
    """An upstream that answers a connection's first request, and breaks it at the second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._listening = socket.create_server((HOST, 0))
        self.address = self._listening.getsockname()
        self.received: list[str] = []

    def run(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            with connection:
                for _ in range(2):
                    head = self.read(connection)
                    if not head:
                        break
                    self.received.append(head.split()[0])
                    if len(self.received) != 2:
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def read(self, connection) -> str:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            received = connection.recv(65536)
            if not received:
                return ""
            head += received
        return head.decode()


@pytest.mark.parametrize(
    ("method", "sent", "status"),
    [
        ("GET", ["GET", "GET", "GET"], 200),
        ("POST", ["GET", "POST"], 502),
        ("PUT", ["GET", "PUT"], 502),
        ("PATCH", ["GET", "PATCH"], 502),
        ("DELETE", ["GET", "DELETE"], 502),
    ],
)
def test_a_change_is_never_sent_twice(method, sent, status):
    """The connection breaks after the request was sent on it: a read is tried again."""
    upstream = Unreliable()
    upstream.start()
    # One process, so that the second request finds the connection of the first.
    one = ("nginx.conf", "worker_processes auto", "worker_processes 1")
    with nginx_proxy(upstream.address, one) as nginx:
        ask = asker(nginx.address, "127.0.0.1")
        assert ask("GET", "/").status == 200

        answer = ask(method, "/")

    assert answer.status == status
    assert upstream.received == sent


def test_slow_clients_keep_no_thread_of_gunicorn(ask, nginx, request, tasks_url):
    """Ten for each thread, of each kind; without nginx, one for each would stop the server."""
    for _ in range(30):
        ask("POST", tasks_url, {"title": "Buy oat milk", "description": "x" * 10_000})
    head = f"POST {tasks_url} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    kinds = [
        head.encode(),
        f"{head}Content-Length: 1000\r\n\r\n{{".encode(),
        f"GET {tasks_url} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    ]
    with ExitStack() as slow:
        for number in range(240):
            connection = slow.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.bind((address_of(request.node.name, number), 0))
            connection.connect(nginx.address)
            connection.sendall(kinds[number % 3])

        statuses = {ask("GET", f"{tasks_url}?limit=1").status for _ in range(40)}

    assert statuses == {200}


def test_a_page_of_an_origin_that_is_named_can_read_a_refusal(api):
    readable = set(EXPOSED.split(", "))
    empty = 'map $http_origin $todo_origin {\n    default "";\n'
    with_one = f'{empty}    "https://app.example" $http_origin;\n'
    with nginx_proxy(api.address, ("todo-api/http.conf", empty, with_one)) as nginx:
        ask = asker(nginx.address, "127.0.0.1")
        named = ask("GET", "/metrics", headers={"Origin": "https://app.example"})
        other = ask("GET", "/metrics", headers={"Origin": "https://other.example"})

    assert named.headers["access-control-allow-origin"] == "https://app.example"
    assert set(named.headers["access-control-expose-headers"].split(", ")) <= readable
    assert not {name for name in other.headers if name.startswith("access-control")}


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_it_is_there_by_ipv6(nginx):
    answer = exchange(("::1", nginx.port), b"GET /livez HTTP/1.0\r\n\r\n", "::1")

    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.fixture
def with_tls(api, tmp_path):
    """An nginx with tls.conf instead of the plain server, and a certificate of its own."""
    certificate, key = write_certificate(tmp_path)
    main, tls = "nginx.conf", "todo-api/tls.conf"
    path = "/etc/letsencrypt/live/todo.example"
    port = free_port()
    changes = [
        (main, "server {\n", "server {\n        # "),
        (main, "# include todo-api/tls.conf", "include todo-api/tls.conf"),
        (tls, f"{path}/fullchain.pem", str(certificate)),
        (tls, f"{path}/privkey.pem", str(key)),
        (tls, "listen 443", f"listen {HOST}:{port}"),
        (
            tls,
            "listen [::]:443 ssl http2;",
            f"listen [::1]:{port} ssl http2;" if has_ipv6() else "",
        ),
    ]
    with nginx_proxy(api.address, *changes) as nginx:
        nginx.secure_port, nginx.certificate = port, certificate
        yield nginx


def write_certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "todo.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("todo.example")]), critical=False)
        .sign(key, SHA256())
    )
    written = folder / "fullchain.pem", folder / "privkey.pem"
    written[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    written[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return written


def test_tls_is_modern_and_plain_http_is_refused(with_tls):
    address = (HOST, with_tls.secure_port)
    client = ssl.create_default_context(cafile=with_tls.certificate)
    client.set_alpn_protocols(["h2", "http/1.1"])
    http1 = ssl.create_default_context(cafile=with_tls.certificate)
    old = ssl.create_default_context(cafile=with_tls.certificate)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1

    with secured(address, client) as connection:
        agreed = connection.version(), connection.selected_alpn_protocol()
    with secured(address, http1) as connection:
        connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        answer = connection.recv(65536)
    with pytest.raises(ssl.SSLError), secured(address, old):
        pass
    plain = asker(with_tls.address, "127.0.0.1")("GET", "/livez")

    assert agreed == ("TLSv1.3", "h2")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"Strict-Transport-Security: max-age=31536000" in answer
    assert_problem(plain, 403)
    assert plain.json["type"] == "/problems/https-required"


@contextmanager
def secured(address, context):
    with (
        socket.create_connection(address, timeout=30) as connection,
        context.wrap_socket(connection, server_hostname="todo.example") as wrapped,
    ):
        yield wrapped


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2"),
        ("2001:db8:1:2::1", "2001:db8:1:2"),
        ("2001:db8::1", "2001:db8"),
        ("2001:db8::5:6:7:8", "2001:db8"),
        ("2001:db8::", "2001:db8"),
        ("2001::5:1:2:3:4", "2001::5:1:2:3:4"),
        ("::1", "::1"),
    ],
)
def test_a_client_of_ipv6_is_its_network(address, client):
    """The map's expressions, in its order: the first that fits."""
    block = HTTP[HTTP.index("$todo_client {") :].partition("}\n\n")[0]
    rules = re.findall(r'"~(\S+ .*)" \$(\w+);', block)

    for pattern, value in rules:
        if found := re.search(pattern.replace("(?<", "(?P<"), f"0 {address}"):
            assert (found["network"] if value == "network" else address) == client
            return
    pytest.fail("no rule fits")


def test_nginx_says_what_the_application_says():
    """Of the same status, the same type and title; of a 404 and a 413, the same words."""
    problems = {
        int(status): json.loads("{" + text.replace("$status", "0").replace("\\'", "'") + "}")
        for status, text in re.findall(r"^    (\d{3}) '(\".*\")';$", HTTP, re.MULTILINE)
    }

    assert {400, 404, 413, 414, 429, 431, 502, 503, 504} <= set(problems)
    for status, problem in problems.items():
        if status in KIND_OF_STATUS:
            kind, title = KIND_OF_STATUS[status]
            assert (problem["type"], problem["title"]) == (f"/problems/{kind}", title)
        assert list(problem) == list(json.loads(Problem(status, "").body("")))[:-1]
    for status in (404, 413):
        assert problems[status]["detail"] == DETAIL_OF_STATUS[status]


def test_nginx_and_what_is_behind_it_agree_in_their_numbers():
    def seconds(name: str, text: str) -> int:
        return int(re.search(rf"\b{name} (\d+)s;", text)[1])

    gunicorn = (ROOT / "gunicorn.conf.py").read_text()

    assert seconds("keepalive_timeout", HTTP) < int(re.search(r"keepalive = (\d+)", gunicorn)[1])
    assert int(re.search(r"client_max_body_size (\d+)k", SERVER)[1]) * 1024 == MAX_BODY
    assert f'"~^{WELL_FORMED.pattern}$"' in HTTP
