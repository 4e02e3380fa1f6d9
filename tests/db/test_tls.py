"""PostgreSQL that requires TLS and SCRAM, with the connection URLs that Neon's console prints."""

from __future__ import annotations

import subprocess
import sys
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
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
from tests.support.postgresql import (
    DEBIAN_POSTGRES,
    NO_DEBIAN_POSTGRES,
    DebianCluster,
    server_folder,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DEBIAN_POSTGRES is None, reason=NO_DEBIAN_POSTGRES),
]

# Host names as on Neon. They are not resolved, because each connection gets the address.
HOST = "ep-example-123.eu-central-1.aws.neon.tech"
OTHER_HOST = "ep-example-123.us-east-2.aws.neon.tech"
ADDRESS = "127.0.0.1"

# A password with characters that a URL must escape.
PASSWORD = "fake/pass@word:100%?"

ACCESS = """
local   all all                    trust
hostssl all careless 127.0.0.1/32  password
hostssl all all      127.0.0.1/32  scram-sha-256
"""


class Authority:
    """A certificate authority; `file` contains its own certificate."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{file.stem} (test)")])
        self._key = ec.generate_private_key(ec.SECP256R1())
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        certificate = self._sign(self._name, self._key.public_key(), constraints)
        file.write_bytes(certificate.public_bytes(Encoding.PEM))

    def certify(self, host: str, certificate_file: Path, key_file: Path) -> None:
        """Write a certificate for the host, and its key with mode 0600."""
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


class Server(DebianCluster):
    """A PostgreSQL server that requires TLS and a password over TCP."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "authority.pem")
        self.untrusted = Authority(folder / "untrusted.pem")
        self.port = free_port()
        wildcard = f"*.{HOST.partition('.')[2]}"
        self.authority.certify(wildcard, folder / "server.pem", folder / "server.key")
        (folder / "access").write_text(ACCESS)
        tls_options = {
            "ssl": "on",
            "ssl_cert_file": str(folder / "server.pem"),
            "ssl_key_file": str(folder / "server.key"),
            "hba_file": str(folder / "access"),
            "listen_addresses": ADDRESS,
            "port": str(self.port),
        }
        super().__init__(folder, **tls_options)
        self._give_to_account(folder / "server.key")

    def connect(self) -> psycopg.Connection:
        """Open a superuser's connection through the Unix socket."""
        return psycopg.connect(self.url(), port=self.port, autocommit=True)


@pytest.fixture(scope="module")
def tls_server():
    with server_folder() as folder:
        running = Server(folder)
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
def server_environ(tls_server):
    """The server's address and port as variables that libpq reads from the environment."""
    return {"PGHOSTADDR": ADDRESS, "PGPORT": str(tls_server.port)}


AS_PRINTED = "sslmode=require&channel_binding=require"
VERIFIED = "sslmode=verify-full&sslrootcert={trusted}&channel_binding=require"


@pytest.mark.parametrize(
    ("scheme", "parameters"),
    [("postgresql", AS_PRINTED), ("postgres", AS_PRINTED), ("postgresql", VERIFIED)],
    ids=["as printed", "postgres", "verified"],
)
def test_urls_that_neon_prints_work_unchanged(tls_server, server_environ, scheme, parameters):
    url = neon_url(parameters.format(trusted=tls_server.authority.file), scheme=scheme)

    migrate(url, **server_environ)
    with serving(url, WEB_CONCURRENCY="1", **server_environ) as api, Client(api.address) as client:
        exercise_api(client)
        with tls_server.connect() as connection:
            connections = connection.execute(
                "SELECT ssl, usename FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
                " WHERE application_name = 'todo-api'"
            ).fetchall()

    assert set(connections) == {(True, "todo")}


def migrate(url, **server_environ):
    subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env=environment(DATABASE_URL=url, **server_environ),
        check=True,
        timeout=60,
    )


# Settings of a server that soon reports a refused connection.
SHORT_TIMEOUT = {"REQUEST_TIMEOUT": "1", "WEB_CONCURRENCY": "1"}


@contextmanager
def running(api):
    """Start the server and wait for /livez, which needs no database; stop it at the end."""
    try:
        api.start()
        api.wait_for_success("/livez")
        yield
    finally:
        api.stop()


def exercise_api(client):
    """Create, change, complete, list and delete a task."""
    url = f"/api/{uuid.uuid4()}/tasks"
    created = client.request("POST", url, {"title": "Buy oat milk"})
    task_url = created.headers["location"]
    changed = client.request("PATCH", task_url, {"description": "Two litres"})
    completed = client.request("PATCH", f"{task_url}/complete")
    listed = client.request("GET", url)
    deleted = client.request("DELETE", task_url)

    responses = (created, changed, completed, listed, deleted)
    assert [response.status for response in responses] == [201, 200, 200, 200, 204]
    assert listed.json == [completed.json]
    assert completed.json["description"] == "Two litres"
    assert client.request("GET", url).json == []


def test_corrected_password_needs_no_restart(tls_server, server_environ, tmp_path):
    migrate(neon_url(AS_PRINTED), **server_environ)
    new_password = "changed" + PASSWORD
    api = Api(
        neon_url(AS_PRINTED, password=new_password),
        tmp_path / "log",
        **SHORT_TIMEOUT,
        **server_environ,
    )
    with tls_server.connect() as connection, running(api), Client(api.address) as client:
        refused = client.request("GET", "/health")
        connection.execute(f"ALTER ROLE todo PASSWORD '{new_password}'")
        try:
            api.wait_for_success("/health")
            exercise_api(client)
        finally:
            connection.execute(f"ALTER ROLE todo PASSWORD '{PASSWORD}'")

    assert refused.status == 503


@pytest.mark.parametrize(
    ("parameters", "changes", "reason"),
    [
        (VERIFIED.replace("trusted", "untrusted"), {}, "certificate verify failed"),
        (VERIFIED, {"host": OTHER_HOST}, "does not match host name"),
        (VERIFIED, {"password": "wrong"}, "password authentication failed"),
        (VERIFIED, {"login": "careless"}, "channel binding required"),
        ("sslmode=disable", {}, "no encryption"),
    ],
    ids=["authority", "host", "password", "no channel binding", "plain text"],
)
def test_untrusted_connection_is_refused_with_a_reason(
    tls_server, server_environ, tmp_path, parameters, changes, reason
):
    files = {"trusted": tls_server.authority.file, "untrusted": tls_server.untrusted.file}
    url = neon_url(parameters.format_map(files), **changes)
    with pytest.raises(psycopg.OperationalError, match=reason):
        psycopg.connect(url, hostaddr=ADDRESS, port=tls_server.port)

    api = Api(url, tmp_path / "log", **SHORT_TIMEOUT, **server_environ)
    with running(api), Client(api.address) as client:
        health = [client.request("GET", "/health") for _ in range(2)]
        livez = client.request("GET", "/livez")

    assert [response.status for response in health] == [503, 503]
    assert health[0].json["type"] == "/problems/unavailable"
    assert livez.status == 200
    assert api.process.returncode == 0
    log = api.log.read_text()
    assert reason in log
    assert not any(secret in log for secret in (PASSWORD, quote(PASSWORD, ""), "wrong"))
