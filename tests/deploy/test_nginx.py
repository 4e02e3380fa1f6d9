"""The nginx configuration of deploy/, unchanged, in front of a real gunicorn and PostgreSQL."""

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
from fault_injection.load import NGINX_DETAIL
from fault_injection.nginx import NGINX, NGINX_FOLDER, has_ipv6, nginx_proxy
from fault_injection.servers import HOST, free_port, serving, wait_until
from tests.support import ROOT
from todo_api.web.body import MAX_BODY
from todo_api.web.headers import EXPOSED
from todo_api.web.problem_kinds import KINDS_BY_NAME
from todo_api.web.problems import DETAIL_OF_STATUS, Problem
from todo_api.web.requests import REQUEST_ID_PATTERN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        NGINX is None, reason="nginx is not installed (Debian: apt install nginx-light)"
    ),
]

HTTP, SERVER = (
    (NGINX_FOLDER / "todo-api" / name).read_text() for name in ("http.conf", "server.conf")
)
MAX_CONNECTIONS = int(
    re.search(r"max_conns=(\d+)", (NGINX_FOLDER / "todo-api/upstream.conf").read_text())[1]
)


@pytest.fixture(scope="module")
def api(database_url: str):
    with serving(database_url, LOG_LEVEL="info", METRICS="true") as running:
        yield running


@pytest.fixture(scope="module")
def nginx(api):
    with nginx_proxy(api.address) as running:
        yield running


@pytest.fixture
def send_request(nginx, request):
    """Send a request through nginx, with a client address that depends on the test."""
    return make_client(nginx.address, address_of(request.node.name))


def make_client(address, source):
    def send_request(method, path, body=None, headers=None):
        with Client(address) as client:
            client._connection.source_address = (source, 0)
            return client.request(method, path, body, headers)

    return send_request


def address_of(name: str, number: int = 0) -> str:
    """Return an address of the loopback network, so that each client has its own rate limit."""
    return f"127.{1 + crc32(name.encode()) % 250}.{1 + number % 250}.1"


def exchange(address, request_bytes: bytes, source: str = "127.0.0.1") -> bytes:
    """Send bytes, and return the response until the connection is closed."""
    with socket.create_connection(address, timeout=30, source_address=(source, 0)) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def assert_problem(response, status: int) -> None:
    """Check that the response is problem details with the headers of the application's errors."""
    assert response.status == status, response
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json["status"] == status
    assert response.json["type"].startswith("/problems/")
    assert response.json["instance"] == response.headers["x-request-id"]
    assert set(response.json) == {"type", "title", "status", "detail", "instance"}
    for name in ("cache-control", "x-content-type-options", "content-security-policy"):
        assert name in response.headers


def test_nginx_accepts_the_files_unchanged(nginx):
    assert "warn" not in nginx.verify()


def test_task_is_created_changed_and_deleted_through_nginx(send_request, tasks_url):
    """Create, read, change and delete a task with its ETag; no response is compressed."""
    compressed = {"Accept-Encoding": "gzip, br"}
    created = send_request("POST", tasks_url, {"title": "Buy oat milk " * 15}, compressed)
    task, etag = created.headers["location"], created.headers["etag"]

    read = send_request("GET", task, headers=compressed)
    not_modified = send_request("GET", task, headers=compressed | {"If-None-Match": etag})
    changed = send_request("PATCH", task, {"completed": True}, {"If-Match": etag})
    refused = send_request("PATCH", task, {"completed": False}, {"If-Match": etag})
    deleted = send_request("DELETE", task, headers={"If-Match": changed.headers["etag"]})

    assert (created.status, etag[0]) == (201, '"')
    assert (read.body, read.headers["etag"]) == (created.body, etag)
    assert "content-encoding" not in read.headers
    assert [response.status for response in (not_modified, changed, refused, deleted)] == [
        304,
        200,
        412,
        204,
    ]
    assert refused.json["current"] == changed.json


def test_large_list_is_not_compressed(send_request, tasks_url):
    for _ in range(3):
        send_request(
            "POST", tasks_url, {"title": "Buy oat milk", "description": "Two litres. " * 500}
        )

    listed = send_request("GET", tasks_url, headers={"Accept-Encoding": "gzip"})

    assert len(listed.json) == 3
    assert "content-encoding" not in listed.headers
    assert listed.headers["etag"].startswith('"')


def test_request_id_is_the_same_in_response_and_logs(send_request, api, nginx):
    response = send_request("GET", "/livez", headers={"X-Request-Id": "from-a-client"})

    assert response.headers["x-request-id"] == "from-a-client"
    await_line(api.log, '"request_id":"from-a-client"')
    await_line(nginx.access_log, '"request_id":"from-a-client"')


@pytest.mark.parametrize("request_id", ["with spaces", "x" * 129, '"quoted"', "é"])
def test_malformed_request_id_is_replaced_by_nginx(send_request, api, request_id):
    replaced = send_request("GET", "/livez", headers={"X-Request-Id": request_id}).headers[
        "x-request-id"
    ]

    assert re.fullmatch("[0-9a-f]{32}", replaced)
    await_line(api.log, f'"request_id":"{replaced}"')


def test_access_log_is_json_without_query_strings(send_request, nginx, tasks_url):
    send_request("GET", f"{tasks_url}?q=secret-text", headers={"X-Request-Id": "id-of-search"})

    line = json.loads(await_line(nginx.access_log, "id-of-search"))

    assert line["method"], line["status"] == ("GET", 200)
    assert "secret-text" not in nginx.access_log.read_text()


def await_line(log: Path, text: str) -> str:
    wait_until(lambda: text in log.read_text(), f"{log} contains {text}")
    return next(line for line in log.read_text().splitlines() if text in line)


@pytest.mark.parametrize(
    ("status", "request_bytes"),
    [
        (400, b"NONSENSE\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\n\r\n"),
        (400, b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n"),
        (405, b"TRACE / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        (413, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 262145\r\n\r\n" + b"x" * 262_145),
        (414, b"GET /" + b"a" * 4000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        (414, b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"a" * 9000 + b"\r\n\r\n"),
        (505, b"GET / HTTP/3.1\r\nHost: x\r\n\r\n"),
    ],
)
def test_request_refused_by_nginx_gets_problem_details(nginx, status, request_bytes):
    response = exchange(nginx.address, request_bytes)

    head, _, body = response.decode().partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} "), response
    assert "Content-Type: application/problem+json" in head
    assert "Server: nginx\r\n" in head
    assert json.loads(body)["status"] == status
    assert json.loads(body)["instance"] in head


def test_too_large_body_gets_the_same_problem_as_from_the_application(send_request, api, tasks_url):
    body = {"title": "x" * MAX_BODY}
    with Client(api.address) as client:
        direct = client.request("POST", tasks_url, body)
    refused = send_request("POST", tasks_url, body)

    assert_problem(refused, 413)
    assert refused.json | {"instance": ""} == direct.json | {"instance": ""}


def test_size_of_a_chunked_body_is_limited(nginx, tasks_url):
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    head = f"POST {tasks_url} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

    response = exchange(nginx.address, head.encode() + 5 * chunk)

    assert response.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in response


def test_body_of_the_maximum_size_reaches_the_application(send_request, tasks_url):
    overhead = len(json.dumps({"title": ""}))

    response = send_request("POST", tasks_url, {"title": "x" * (MAX_BODY - overhead)})

    assert response.status == 422
    assert response.json["errors"][0]["pointer"] == "/title"


@pytest.mark.parametrize(
    "path", ["/metrics", "//metrics", "/metrics/", "/%6detrics", "/api/../metrics", "/metrics?x=1"]
)
def test_metrics_are_not_served_through_nginx(send_request, api, path):
    response = send_request("GET", path)

    assert_problem(response, 404)
    with Client(api.address) as direct_client:
        assert direct_client.request("GET", "/metrics").status == 200


def test_rate_limit_applies_to_one_client():
    """Without an upstream, nginx responds at once, even on a slow machine."""
    flood = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 400

    with nginx_proxy((HOST, free_port())) as nginx:
        responses = exchange(nginx.address, flood, "127.0.0.2").decode()
        other = make_client(nginx.address, "127.0.0.3")("GET", "/livez")

    statuses = re.findall(r"HTTP/1\.1 (\d+)", responses)
    assert set(statuses) == {"502", "429"}
    assert statuses[:100] == ["502"] * 100
    assert responses.count('"type":"/problems/too-many-requests"') == statuses.count("429")
    assert responses.count("Retry-After: 1\r\n") == 400
    assert other.status == 502


def test_requests_over_the_connection_limit_are_refused_at_once(database_url):
    """Suspend gunicorn, so that the accepted requests are still open when the next one arrives."""
    with (
        serving(database_url) as api,
        nginx_proxy(api.address) as nginx,
        ExitStack() as connections,
    ):
        workers = api.workers()
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        try:
            accepted = [
                connections.enter_context(
                    open_request(nginx, "/livez", address_of("limit", number))
                )
                for number in range(MAX_CONNECTIONS)
            ]
            wait_until(
                lambda: connections_to(api.port) >= MAX_CONNECTIONS,
                "all requests have reached gunicorn",
            )
            refused = make_client(nginx.address, "127.0.0.2")("GET", "/livez")
            changed = make_client(nginx.address, "127.0.0.2")(
                "POST", "/api/x/tasks", {"title": "x"}
            )
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGCONT)

        assert_problem(refused, 503)
        assert_problem(changed, 503)
        assert NGINX_DETAIL.decode() in refused.json["detail"]
        assert refused.headers["retry-after"] == changed.headers["retry-after"] == "1"
        assert {connection.getresponse().status for connection in accepted} == {200}
        line = json.loads(await_line(nginx.access_log, refused.headers["x-request-id"]))
        assert line["upstream"] == "todo_api"


@contextmanager
def open_request(nginx, path, source):
    """Open a connection and send a request, without reading the response."""
    connection = HTTPConnection(*nginx.address, timeout=30, source_address=(source, 0))
    try:
        connection.request("GET", path)
        yield connection
    finally:
        connection.close()


def connections_to(port: int) -> int:
    """Return the number of established connections to a port of this machine."""
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(fields[2].endswith(f":{port:04X}") and fields[3] == "01" for fields in lines)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_response_is_502_without_gunicorn(method):
    with nginx_proxy((HOST, free_port())) as nginx:
        response = make_client(nginx.address, "127.0.0.1")(method, "/api/x/tasks")

    assert_problem(response, 502)
    assert response.headers["retry-after"] == "1"


def test_response_is_504_when_gunicorn_does_not_respond_in_time(database_url, request):
    if not request.config.option.full:
        pytest.skip("takes 15 s; runs with --full")
    with serving(database_url) as api, nginx_proxy(api.address) as nginx:
        workers = api.workers()
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        response = make_client(nginx.address, "127.0.0.1")("GET", "/livez")
        for worker in workers:
            os.kill(worker, signal.SIGCONT)

    assert_problem(response, 504)
    assert "retry-after" not in response.headers


class UnreliableUpstream(threading.Thread):
    """An upstream that closes its first connection at the second request."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server((HOST, 0))
        self.address = self._listener.getsockname()
        self.received: list[str] = []

    def run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
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
    ("method", "received", "status"),
    [
        ("GET", ["GET", "GET", "GET"], 200),
        ("POST", ["GET", "POST"], 502),
        ("PUT", ["GET", "PUT"], 502),
        ("PATCH", ["GET", "PATCH"], 502),
        ("DELETE", ["GET", "DELETE"], 502),
    ],
)
def test_change_is_never_sent_twice(method, received, status):
    """The connection breaks after the request was sent: nginx repeats only a read."""
    upstream = UnreliableUpstream()
    upstream.start()
    # With one nginx process, the second request uses the connection of the first.
    one_process = ("nginx.conf", "worker_processes auto", "worker_processes 1")
    with nginx_proxy(upstream.address, one_process) as nginx:
        send_request = make_client(nginx.address, "127.0.0.1")
        assert send_request("GET", "/").status == 200

        response = send_request(method, "/")

    assert response.status == status
    assert upstream.received == received


def test_slow_clients_occupy_no_thread_of_gunicorn(send_request, nginx, request, tasks_url):
    """240 slow clients of three kinds are far more than the threads of gunicorn."""
    for _ in range(30):
        send_request("POST", tasks_url, {"title": "Buy oat milk", "description": "x" * 10_000})
    head = f"POST {tasks_url} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request_kinds = [
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
            connection.sendall(request_kinds[number % 3])

        statuses = {send_request("GET", f"{tasks_url}?limit=1").status for _ in range(40)}

    assert statuses == {200}


def test_allowed_origin_can_read_error_responses(api):
    readable = set(EXPOSED.split(", "))
    no_origin = 'map $http_origin $todo_origin {\n    default "";\n'
    one_origin = f'{no_origin}    "https://app.example" $http_origin;\n'
    with nginx_proxy(api.address, ("todo-api/http.conf", no_origin, one_origin)) as nginx:
        send_request = make_client(nginx.address, "127.0.0.1")
        allowed = send_request("GET", "/metrics", headers={"Origin": "https://app.example"})
        other = send_request("GET", "/metrics", headers={"Origin": "https://other.example"})

    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert set(allowed.headers["access-control-expose-headers"].split(", ")) <= readable
    assert not {name for name in other.headers if name.startswith("access-control")}


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_nginx_listens_on_ipv6(nginx):
    response = exchange(("::1", nginx.port), b"GET /livez HTTP/1.0\r\n\r\n", "::1")

    assert response.startswith(b"HTTP/1.1 200 ")


@pytest.fixture
def tls_nginx(api, tmp_path):
    """An nginx with tls.conf instead of the plain server, and a self-signed certificate."""
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
    files = folder / "fullchain.pem", folder / "privkey.pem"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


def test_old_tls_and_plain_http_are_refused(tls_nginx):
    address = (HOST, tls_nginx.secure_port)
    client = ssl.create_default_context(cafile=tls_nginx.certificate)
    client.set_alpn_protocols(["h2", "http/1.1"])
    http1 = ssl.create_default_context(cafile=tls_nginx.certificate)
    old = ssl.create_default_context(cafile=tls_nginx.certificate)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1

    with tls_connection(address, client) as connection:
        protocols = connection.version(), connection.selected_alpn_protocol()
    with tls_connection(address, http1) as connection:
        connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        response = connection.recv(65536)
    with pytest.raises(ssl.SSLError), tls_connection(address, old):
        pass
    plain = make_client(tls_nginx.address, "127.0.0.1")("GET", "/livez")

    assert protocols == ("TLSv1.3", "h2")
    assert response.startswith(b"HTTP/1.1 200 ")
    assert b"Strict-Transport-Security: max-age=31536000" in response
    assert_problem(plain, 403)
    assert plain.json["type"] == "/problems/https-required"


@contextmanager
def tls_connection(address, context):
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
def test_ipv6_client_is_identified_by_its_network(address, client):
    """Apply the expressions of the map in order; the first match counts."""
    block = HTTP[HTTP.index("$todo_client {") :].partition("}\n\n")[0]
    rules = re.findall(r'"~(\S+ .*)" \$(\w+);', block)

    for pattern, value in rules:
        if match := re.search(pattern.replace("(?<", "(?P<"), f"0 {address}"):
            assert (match["network"] if value == "network" else address) == client
            return
    pytest.fail("no rule matches")


def test_nginx_and_the_application_send_the_same_problems():
    """Type and title are equal, and the detail, unless it depends on the request."""
    problems = {
        int(status): json.loads("{" + text.replace("$status", "0").replace("\\'", "'") + "}")
        for status, text in re.findall(r"^    (\d{3}) '(\".*\")';$", HTTP, re.MULTILINE)
    }

    assert {400, 404, 413, 414, 429, 431, 502, 503, 504} <= set(problems)
    for status, problem in problems.items():
        kind = KINDS_BY_NAME[problem["type"].removeprefix("/problems/")]
        assert (status, problem["title"]) == (kind.status, kind.title)
        if status not in (400, 405, 503):
            assert problem["detail"] == DETAIL_OF_STATUS.get(status, kind.detail), status
        assert list(problem) == list(json.loads(Problem(status, "").body("")))[:-1]


def test_nginx_and_gunicorn_have_matching_limits():
    def seconds(name: str, text: str) -> int:
        return int(re.search(rf"\b{name} (\d+)s;", text)[1])

    gunicorn = (ROOT / "gunicorn.conf.py").read_text()

    assert seconds("keepalive_timeout", HTTP) < int(re.search(r"keepalive = (\d+)", gunicorn)[1])
    assert int(re.search(r"client_max_body_size (\d+)k", SERVER)[1]) * 1024 == MAX_BODY
    assert f'"~^{REQUEST_ID_PATTERN.pattern}$"' in HTTP
