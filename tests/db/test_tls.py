"""A PostgreSQL that wants TLS and SCRAM, with the URLs that Neon's console prints, as they are."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fault_injection.clients import Client
from fault_injection.servers import Api, environment, free_port, serving
from tests.support import ROOT
from tests.support.postgresql import VOLATILE
from todo_api.commands.embedded import Cluster

# Debian's PostgreSQL: the embedded one was built without TLS.
POSTGRES = max(
    Path("/usr/lib/postgresql").glob("[0-9]*/bin/postgres"),
    key=lambda program: int(program.parts[-3]),
    default=None,
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(POSTGRES is None, reason="Debian's package postgresql is not here"),
]

# Names of Neon's kind. Nobody looks them up: each connection is told the address.
HOST = "ep-example-123.eu-central-1.aws.neon.tech"
OTHER_HOST = "ep-example-123.us-east-2.aws.neon.tech"
ADDRESS = "127.0.0.1"

# What has to be written as %2F and the like in a URL.
PASSWORD = "fake/pass@word:100%?"

ACCESS = """
local   all all                    trust
hostssl all careless 127.0.0.1/32  password
hostssl all all      127.0.0.1/32  scram-sha-256
"""


class Authority:
    """Who signs certificates; `file` is what to trust it by."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{file.stem} (test)")])
        self._key = ec.generate_private_key(ec.SECP256R1())
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        certificate = self._sign(self._name, self._key.public_key(), constraints)
        file.write_bytes(certificate.public_bytes(Encoding.PEM))

    def certify(self, host: str, certificate_file: Path, key_file: Path) -> None:
        """Write a certificate for the host, and its key, which only its owner may read."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        certificate = self._sign(subject, key.public_key(), names)
        certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
        key_file.touch(mode=0o600)
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def _sign(self, subject, public_key, extension) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .sign(self._key, SHA256())
        )


class Server(Cluster):
    """A PostgreSQL that nobody reaches over TCP without TLS and a password."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "authority.pem")
        self.stranger = Authority(folder / "stranger.pem")
        self.port = free_port()
        wildcard = f"*.{HOST.partition('.')[2]}"
        self.authority.certify(wildcard, folder / "server.pem", folder / "server.key")
        (folder / "access").write_text(ACCESS)
        own = {
            "ssl": "on",
            "ssl_cert_file": str(folder / "server.pem"),
            "ssl_key_file": str(folder / "server.key"),
            "hba_file": str(folder / "access"),
            "listen_addresses": ADDRESS,
            "port": str(self.port),
        }
        super().__init__(
            folder,
            version=int(POSTGRES.parts[-3]),
            options=VOLATILE | own,
            programs=POSTGRES.parent,
        )
        self._own(folder / "server.key")

    def connect(self) -> psycopg.Connection:
        """A superuser's connection, by the socket."""
        return psycopg.connect(self.url(), port=self.port, autocommit=True)


@pytest.fixture(scope="module")
def tls_server():
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # the server's account has to get at its data, below
        running = Server(Path(folder))
        try:
            running.start()
            with running.connect() as connection:
                for login, attributes in {"todo": "CREATEROLE", "careless": ""}.items():
                    connection.execute(
                        f"CREATE ROLE {login} LOGIN {attributes} PASSWORD '{PASSWORD}'"
                    )
                connection.execute("CREATE DATABASE todo OWNER todo")
            yield running
        finally:
            running.stop()


def neon_url(parameters: str, scheme="postgresql", login="todo", password=PASSWORD, host=HOST):
    return f"{scheme}://{login}:{quote(password, '')}@{host}/todo?{parameters}"


@pytest.fixture
def where(tls_server):
    """The way to the server beside the URL, as libpq reads it from the environment."""
    return {"PGHOSTADDR": ADDRESS, "PGPORT": str(tls_server.port)}


AS_PRINTED = "sslmode=require&channel_binding=require"
VERIFIED = "sslmode=verify-full&sslrootcert={trusted}&channel_binding=require"


@pytest.mark.parametrize(
    ("scheme", "parameters"),
    [("postgresql", AS_PRINTED), ("postgres", AS_PRINTED), ("postgresql", VERIFIED)],
    ids=["as printed", "postgres", "verified"],
)
def test_the_urls_that_neon_prints_work_as_they_are(tls_server, where, scheme, parameters):
    url = neon_url(parameters.format(trusted=tls_server.authority.file), scheme=scheme)

    migrate(url, **where)
    with serving(url, WEB_CONCURRENCY="1", **where) as api, Client(api.address) as client:
        journey(client)
        with tls_server.connect() as connection:
            ways = connection.execute(
                "SELECT ssl, usename FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
                " WHERE application_name = 'todo-api'"
            ).fetchall()

    assert set(ways) == {(True, "todo")}


def migrate(url, **where):
    subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env=environment(DATABASE_URL=url, **where),
        check=True,
        timeout=60,
    )


# A server that is refused, and says so soon.
IMPATIENT = {"REQUEST_TIMEOUT": "1", "WEB_CONCURRENCY": "1"}


@contextmanager
def running(api):
    """The server, from when its process answers, whether or not its database does."""
    try:
        api.start()
        api.wait_for_success("/livez")
        yield
    finally:
        api.stop()


def journey(client):
    """A task's life, from nothing to nothing."""
    url = f"/api/{uuid.uuid4()}/tasks"
    made = client.request("POST", url, {"title": "Buy oat milk"})
    task_url = made.headers["location"]
    changed = client.request("PATCH", task_url, {"description": "Two litres"})
    completed = client.request("PATCH", f"{task_url}/complete")
    listed = client.request("GET", url)
    deleted = client.request("DELETE", task_url)

    answers = (made, changed, completed, listed, deleted)
    assert [answer.status for answer in answers] == [201, 200, 200, 200, 204]
    assert listed.json == [completed.json]
    assert completed.json["description"] == "Two litres"
    assert client.request("GET", url).json == []


def test_a_password_that_is_put_right_needs_no_restart(tls_server, where, tmp_path):
    migrate(neon_url(AS_PRINTED), **where)
    changed = "changed" + PASSWORD
    api = Api(neon_url(AS_PRINTED, password=changed), tmp_path / "log", **IMPATIENT, **where)
    with tls_server.connect() as connection, running(api), Client(api.address) as client:
        refused = client.request("GET", "/health")
        connection.execute(f"ALTER ROLE todo PASSWORD '{changed}'")
        try:
            api.wait_for_success("/health")
            journey(client)
        finally:
            connection.execute(f"ALTER ROLE todo PASSWORD '{PASSWORD}'")

    assert refused.status == 503


@pytest.mark.parametrize(
    ("parameters", "other", "reason"),
    [
        (VERIFIED.replace("trusted", "stranger"), {}, "certificate verify failed"),
        (VERIFIED, {"host": OTHER_HOST}, "does not match host name"),
        (VERIFIED, {"password": "wrong"}, "password authentication failed"),
        (VERIFIED, {"login": "careless"}, "channel binding required"),
        ("sslmode=disable", {}, "no encryption"),
    ],
    ids=["authority", "host", "password", "no channel binding", "plain text"],
)
def test_whom_it_must_not_trust_it_does_not_talk_to(
    tls_server, where, tmp_path, parameters, other, reason
):
    files = {"trusted": tls_server.authority.file, "stranger": tls_server.stranger.file}
    url = neon_url(parameters.format_map(files), **other)
    with pytest.raises(psycopg.OperationalError, match=reason):
        psycopg.connect(url, hostaddr=ADDRESS, port=tls_server.port)

    api = Api(url, tmp_path / "log", **IMPATIENT, **where)
    with running(api), Client(api.address) as client:
        health = [client.request("GET", "/health") for _ in range(2)]
        alive = client.request("GET", "/livez")

    assert [answer.status for answer in health] == [503, 503]
    assert health[0].json["type"] == "/problems/unavailable"
    assert alive.status == 200
    assert api.process.returncode == 0
    log = api.log.read_text()
    assert reason in log
    assert not any(secret in log for secret in (PASSWORD, quote(PASSWORD, ""), "wrong"))
