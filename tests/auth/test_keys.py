"""An issuer's key set: what is taken from it, and that no request notices what the issuer does.

The issuer is a real HTTP server, told by each test how to behave.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
import uuid
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from tests.support import ROOT
from todo_api.app import create_app
from todo_api.auth.jwks import SET_BYTES, IssuerKeys, Pace, fetch, parse_set
from todo_api.auth.keys import KeysUnavailableError
from todo_api.auth.tokens import Verifier
from todo_api.startup import load_settings
from todo_api.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from flask import Flask

NAME, AUDIENCE = "https://issuer.example", "todo"
# Port 1 of this machine: a connection is refused at once.
NOBODY = "postgresql://nobody@127.0.0.1:1/nothing"

# Time flies, but an issuer that is well has ample time to answer on a busy machine.
BRISK = Pace(refresh=0.3, apart=0.05, stale=60, patience=10, timeout=10)
# How long this machine may take for what takes no time, and a test for what must come.
AT_ONCE, LONG = 3, 15  # seconds

HUNDRED_MEGABYTES = 100 * 1024 * 1024


class Signer:
    """A key of the issuer, and tokens signed with it."""

    def __init__(self, kid: str | None = None, key: Key | None = None) -> None:
        self.kid = kid
        self.key = key or OKPKey.generate_key("Ed25519")

    def public(self, **members: Any) -> dict[str, Any]:
        kid = {"kid": self.kid} if self.kid else {}
        return self.key.as_dict(private=False) | kid | members

    def token(self, subject: str = "ada", algorithm: str = "Ed25519") -> str:
        header = {"alg": algorithm} | ({"kid": self.kid} if self.kid else {})
        claims = {"iss": NAME, "aud": AUDIENCE, "sub": subject, "exp": int(time.time()) + 3600}
        return jwt.encode(header, claims, self.key, algorithms=[algorithm])


def key_set(*entries: Any) -> bytes:
    return json.dumps({"keys": entries}).encode()


class Asked(BaseHTTPRequestHandler):
    """A request to the issuer, answered as the issuer is told to."""

    server: Issuer

    def do_GET(self) -> None:
        self.server.asked.append(self)
        self.server.answer(self)

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, body: bytes, status: int = 200, length: int | None = None, **headers: str):
        self.send_response(status)
        for name, value in ({"Content-Length": str(length or len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def write_slowly(self, data: Iterable[int]) -> None:
        """One byte at a time, for a long while."""
        over = time.monotonic() + LONG
        for byte in data:
            self.wfile.write(bytes([byte]))
            if self.server.closed.wait(0.02) or time.monotonic() > over:
                break


Answer = "Callable[[Asked], None]"


class Issuer(ThreadingHTTPServer):
    """An issuer on loopback that remembers what it was asked, and how much it could send."""

    daemon_threads = True
    block_on_close = False  # some answers never end

    def __init__(self, certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.answer: Answer = fails
        self.asked: list[Asked] = []
        self.sent = 0
        self.closed = threading.Event()
        self._tls = None
        if certificate:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._tls.load_cert_chain(certificate)
        scheme = "https" if certificate else "http"
        self.url = f"{scheme}://127.0.0.1:{self.server_port}/jwks"
        threading.Thread(target=self.serve_forever, args=[0.02], daemon=True).start()

    def get_request(self) -> tuple[socket.socket, Any]:
        accepted, address = super().get_request()
        if self._tls:
            accepted = self._tls.wrap_socket(
                accepted, server_side=True, do_handshake_on_connect=False
            )
        return accepted, address

    def handle_error(self, *_: Any) -> None:
        """A client that has gone is no news."""

    def publish(self, *signers: Signer) -> None:
        body = key_set(*(signer.public() for signer in signers))
        self.answer = lambda asked: asked.reply(body)

    def close(self) -> None:
        self.closed.set()
        self.shutdown()
        self.server_close()


def fails(asked: Asked) -> None:
    asked.reply(b"down", 500)


def hangs(asked: Asked) -> None:
    asked.server.closed.wait(LONG)


def writes_garbage(asked: Asked) -> None:
    asked.wfile.write(os.urandom(100_000))


def sends_100_megabytes(asked: Asked) -> None:
    asked.reply(b"", length=HUNDRED_MEGABYTES)
    write_all(asked, lambda chunk: chunk)


def sends_100_megabytes_in_chunks(asked: Asked) -> None:
    asked.protocol_version = "HTTP/1.1"
    asked.send_response(200)
    asked.send_header("Transfer-Encoding", "chunked")
    asked.end_headers()
    write_all(asked, lambda chunk: b"%x\r\n%b\r\n" % (len(chunk), chunk))


def write_all(asked: Asked, framed: Callable[[bytes], bytes]) -> None:
    chunk = framed(b" " * 65536)
    for _ in range(HUNDRED_MEGABYTES // 65536):
        asked.wfile.write(chunk)
        asked.server.sent += len(chunk)


def drips_its_status(asked: Asked) -> None:
    asked.write_slowly(itertools.chain(b"HTTP/1.1 200 ", itertools.repeat(ord("k"))))


def drips_headers(asked: Asked) -> None:
    asked.write_slowly(itertools.chain(b"HTTP/1.1 200 OK\r\n", itertools.cycle(b"A: b\r\n")))


def drips_a_body(asked: Asked) -> None:
    asked.reply(b"{", length=60_000)
    asked.write_slowly(itertools.repeat(ord(" ")))


def drips_a_body_that_ends_with_the_connection(asked: Asked) -> None:
    asked.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
    asked.write_slowly(itertools.repeat(ord(" ")))


def only_ever_continues(asked: Asked) -> None:
    asked.write_slowly(itertools.cycle(b"HTTP/1.1 100 Continue\r\n\r\n"))


@pytest.fixture
def new_issuer():
    with ExitStack() as stack:
        yield lambda *args: stack.enter_context(closing(Issuer(*args)))


@pytest.fixture
def issuer(new_issuer) -> Issuer:
    return new_issuer()


@pytest.fixture
def new_keys():
    """Open the keys of an issuer, which need not answer; they are closed at the end."""
    with ExitStack() as stack:

        def make(issuer: Issuer, pace: Pace = BRISK) -> IssuerKeys:
            keys = stack.enter_context(closing(IssuerKeys(issuer.url, pace)))
            keys.open()
            return keys

        yield make


@pytest.fixture
def new_verifier(new_keys):
    """Make what verifies the tokens of an issuer, its keys opened."""
    return lambda issuer, pace=BRISK: Verifier(
        load_settings(environment_of(issuer)), new_keys(issuer, pace)
    )


@pytest.fixture
def new_app():
    """Make an application that trusts an issuer, and fetches its keys at the pace given."""
    with ExitStack() as stack:

        def make(issuer: Issuer, pace: Pace = BRISK) -> Flask:
            app = create_app(load_settings(environment_of(issuer)), pace)
            stack.enter_context(closing(app.services.keys))
            stack.callback(app.services.pool.close)
            return app

        yield make


def environment_of(issuer: Issuer) -> dict[str, str]:
    return {
        "DATABASE_URL": NOBODY,
        "JWT_JWKS_URL": issuer.url,
        "JWT_ISSUER": NAME,
        "JWT_AUDIENCE": AUDIENCE,
    }


def eventually(come: Callable[[], Any]) -> None:
    """Wait until it has come."""
    deadline = time.monotonic() + LONG
    while not come():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def has(keys: IssuerKeys, signer: Signer) -> bool:
    return any(key.kid == signer.kid for key in keys._keys)


def accepts(verifier: Verifier, token: str) -> bool:
    try:
        return bool(verifier.identify(token))
    except (Problem, KeysUnavailableError):
        return False


def session_of(app: Flask, token: str):
    return app.test_client().get("/api/session", headers={"Authorization": f"Bearer {token}"})


# What is taken from a set.


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        ("EdDSA", OKPKey.generate_key("Ed25519")),
        ("Ed25519", OKPKey.generate_key("Ed25519")),
        ("Ed448", OKPKey.generate_key("Ed448")),
        ("ES256", ECKey.generate_key("P-256")),
        ("ES384", ECKey.generate_key("P-384")),
        ("ES512", ECKey.generate_key("P-521")),
        ("RS256", RSAKey.generate_key(2048)),
        ("PS256", RSAKey.generate_key(2048)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore:.*EdDSA.*")
def test_each_kind_of_key_verifies_its_tokens(issuer, new_verifier, algorithm, key):
    signer = Signer("of this kind", key)
    issuer.publish(Signer("another"), signer)

    verifier = new_verifier(issuer)

    assert verifier.identify(signer.token("ada", algorithm)).subject == "ada"


PUBLIC = Signer("odd").public()


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param({"kty": "AKP", "kid": "odd", "pub": "AAAA"}, id="of an unknown type"),
        pytest.param(RSAKey.generate_key(2048).as_dict(private=True), id="private RSA"),
        pytest.param(OKPKey.generate_key("Ed25519").as_dict(private=True), id="private Ed25519"),
        pytest.param({"kty": "oct", "k": "c2VjcmV0"}, id="a secret"),
        pytest.param(OKPKey.generate_key("X25519").as_dict(private=False), id="X25519"),
        pytest.param(ECKey.generate_key("secp256k1").as_dict(private=False), id="secp256k1"),
        pytest.param(PUBLIC | {"use": "enc"}, id="for encryption, by its use"),
        pytest.param(PUBLIC | {"key_ops": ["encrypt"]}, id="for encryption, by its operations"),
        pytest.param(PUBLIC | {"alg": "ES256"}, id="of another type's algorithm"),
        pytest.param(PUBLIC | {"alg": "none"}, id="for no algorithm"),
        pytest.param(PUBLIC | {"alg": ["EdDSA"]}, id="for a list of algorithms"),
        pytest.param(PUBLIC | {"kid": 5}, id="with a number for an id"),
        pytest.param(PUBLIC | {"kid": ["odd"]}, id="with a list for an id"),
        pytest.param(PUBLIC | {"x": "AAAA"}, id="too short"),
        pytest.param({"kty": "OKP"}, id="without its members"),
        pytest.param({"keys": [PUBLIC]}, id="a set"),
        pytest.param(json.dumps(PUBLIC), id="a text"),
        pytest.param([[]], id="a list"),
        pytest.param(None, id="null"),
    ],
)
def test_an_entry_that_verifies_no_signature_is_passed_over(entry):
    signer = Signer("good")

    keys = parse_set(key_set(entry, signer.public(), entry))

    assert [key.kid for key in keys] == ["good"]


@pytest.mark.filterwarnings("ignore:Key size should be")
def test_a_weak_key_is_passed_over():
    weak = RSAKey.generate_key(1024).as_dict(private=False)

    keys = parse_set(key_set(weak, Signer("good").public()))

    assert [key.kid for key in keys] == ["good"]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
MEMBERS = st.sampled_from(
    ["kty", "crv", "x", "y", "d", "alg", "use", "key_ops", "kid", "x5c", "x5t", "x5u", "ext"]
)


@given(
    of=st.sampled_from([PUBLIC, ECKey.generate_key("P-256").as_dict(private=False)]),
    changes=st.dictionaries(MEMBERS, ANYTHING, min_size=1, max_size=3),
)
def test_no_entry_spoils_the_set(of, changes):
    keys = parse_set(key_set(of | changes, Signer("good").public()))

    assert [key.kid for key in keys][-1] == "good"
    assert len(set(keys)) in (1, 2)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"keys": null}',
        b'{"keys": {}}',
        b"<html>",
        b"\xff",
        b"[" * 9999,
        gzip.compress(key_set(PUBLIC)),
    ],
)
def test_what_is_no_set_leaves_the_keys_as_they_are(issuer, new_keys, body):
    signer = Signer("one")
    issuer.publish(signer)
    keys = new_keys(issuer)
    eventually(lambda: has(keys, signer))
    issuer.answer = lambda asked: asked.reply(body)
    before = len(issuer.asked)

    eventually(lambda: len(issuer.asked) >= before + 3)

    assert has(keys, signer)


def test_of_two_keys_of_one_id_the_first_is_meant_in_every_worker(issuer, new_keys):
    signers = [Signer("twin") for _ in range(8)]
    issuer.publish(*signers)

    keys = new_keys(issuer)

    eventually(lambda: has(keys, signers[0]))
    assert keys.find("twin", "EdDSA").thumbprint == signers[0].key.thumbprint()


def test_two_keys_of_one_id_are_told_apart_by_their_algorithms(issuer, new_keys):
    one, other = Signer("twin"), Signer("twin", ECKey.generate_key("P-256"))
    issuer.publish(one, other)

    keys = new_keys(issuer)

    eventually(lambda: has(keys, one))
    assert keys.find("twin", "ES256").thumbprint == other.key.thumbprint()


def test_a_token_that_names_no_key_needs_a_set_of_one(issuer, new_verifier):
    alone, other = Signer(), Signer("other")
    issuer.publish(alone)
    verifier = new_verifier(issuer)
    assert accepts(verifier, alone.token())

    issuer.publish(alone, other)

    eventually(lambda: has(verifier.keys, other))
    assert not accepts(verifier, alone.token("grace"))


# What a fetch may cost.


@pytest.mark.parametrize(
    "answer",
    [
        hangs,
        drips_its_status,
        drips_headers,
        drips_a_body,
        drips_a_body_that_ends_with_the_connection,
        only_ever_continues,
    ],
)
@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_a_fetch_ends_in_time_whatever_the_issuer_does(new_issuer, trusted, answer, secure):
    issuer = new_issuer(trusted) if secure else new_issuer()
    issuer.answer = answer
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        fetch(issuer.url, 0.4)

    assert time.monotonic() - began < 0.4 + AT_ONCE
    assert len(issuer.asked) == 1


def test_a_fetch_ends_in_time_when_nobody_accepts():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()

        with pytest.raises(TimeoutError):
            fetch(f"https://127.0.0.1:{silent.getsockname()[1]}/jwks", 0.4)

        assert time.monotonic() - began < 0.4 + AT_ONCE


def test_a_fetch_ends_in_time_when_the_handshake_drips(issuer):
    """The longest record that TLS knows, one byte at a time: it would take five minutes."""

    class Dripping(Asked):
        def handle(self) -> None:
            self.write_slowly(itertools.chain(b"\x16\x03\x03\x40\x00", itertools.repeat(2)))

    issuer.RequestHandlerClass = Dripping
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        fetch(issuer.url.replace("http:", "https:"), 0.4)

    assert time.monotonic() - began < 0.4 + AT_ONCE


@pytest.mark.parametrize("answer", [sends_100_megabytes, sends_100_megabytes_in_chunks])
def test_a_body_of_100_megabytes_is_not_read(issuer, answer):
    issuer.answer = answer

    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 65536 bytes"):
        fetch(issuer.url, LONG)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 2 * 1024 * 1024  # of both sides, in this process
    assert issuer.sent < HUNDRED_MEGABYTES / 4  # what the sockets hold


@pytest.mark.parametrize(("size", "taken"), [(SET_BYTES, True), (SET_BYTES + 1, False)])
def test_a_set_may_have_64_kilobytes(issuer, new_keys, size, taken):
    signer = Signer("one")
    body = key_set(signer.public()).ljust(size)
    issuer.answer = lambda asked: asked.reply(body)

    keys = new_keys(issuer)

    eventually(lambda: len(issuer.asked) >= 2)
    assert has(keys, signer) == taken


def test_redirects_are_not_followed(issuer, new_keys):
    signer = Signer("one")

    def redirects(asked: Asked) -> None:
        if asked.path == "/jwks":
            asked.reply(b"", 302, Location="/elsewhere")
        else:
            asked.reply(key_set(signer.public()))

    issuer.answer = redirects

    keys = new_keys(issuer)

    eventually(lambda: len(issuer.asked) >= 3)
    assert {asked.path for asked in issuer.asked} == {"/jwks"}
    assert not has(keys, signer)


def test_the_issuer_is_asked_for_json_uncompressed_with_the_query_of_the_url(issuer):
    issuer.publish()

    fetch(f"{issuer.url}?tenant=1", LONG)

    (asked,) = issuer.asked
    assert asked.path == "/jwks?tenant=1"
    assert asked.headers["Accept"] == "application/json"
    assert asked.headers["Accept-Encoding"] == "identity"


@pytest.fixture(scope="module")
def new_certificate(tmp_path_factory):
    """Make a self-signed certificate of a host, and its key, in one file."""

    def make(host: x509.GeneralName) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([host]), critical=False)
            .sign(key, hashes.SHA256())
        )
        file = tmp_path_factory.mktemp("certificate") / "issuer.pem"
        file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return file

    return make


@pytest.fixture(scope="module")
def certificate(new_certificate) -> Path:
    return new_certificate(x509.IPAddress(IPv4Address("127.0.0.1")))


@pytest.fixture
def trusted(certificate, monkeypatch) -> Path:
    """A certificate that this process trusts, as it would one of a public authority."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return certificate


def test_a_certificate_that_is_trusted_will_do(new_issuer, trusted):
    issuer = new_issuer(trusted)
    issuer.publish(Signer("one"))

    body = fetch(issuer.url, LONG)

    assert [key.kid for key in parse_set(body)] == ["one"]


def test_a_certificate_that_nobody_vouches_for_is_refused(new_issuer, certificate):
    issuer = new_issuer(certificate)

    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
        fetch(issuer.url, LONG)

    assert not issuer.asked


def test_a_certificate_of_another_host_is_refused(new_issuer, new_certificate, monkeypatch):
    other = new_certificate(x509.DNSName("other.example"))
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    issuer = new_issuer(other)

    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        fetch(issuer.url, LONG)

    assert not issuer.asked


# What requests notice.

MINUTES = 10
MINUTE = 60 / 200  # seconds: time passes two hundred times as fast
HURRIED = Pace(
    *(seconds * MINUTE / 60 for seconds in (Pace.refresh, Pace.apart, Pace.stale)),
    *(seconds * MINUTE / 60 for seconds in (Pace.patience, Pace.timeout)),
)


class Flood:
    """Sends tokens that name keys at random, a thousand a second, until the block ends."""

    def __init__(self, verifier: Verifier) -> None:
        self.sent = 0
        self.accepted = 0
        self._verifier = verifier
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        stranger = Signer("")
        tokens = []
        for _ in range(2000):
            stranger.kid = uuid.uuid4().hex
            tokens.append(stranger.token())
        began = time.monotonic()
        for token in itertools.cycle(tokens):
            if self._over.wait(max(0, began + self.sent / 1000 - time.monotonic())):
                return
            self.accepted += accepts(self._verifier, token)
            self.sent += 1

    def __enter__(self) -> Self:
        self._thread.start()
        eventually(lambda: self.sent)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("outage", [fails, hangs, writes_garbage, sends_100_megabytes])
def test_an_outage_of_ten_minutes_is_not_noticed(new_issuer, new_verifier, outage):
    """Two servers, one of them with an issuer that is well, are asked in turn."""
    well, ill, signer = new_issuer(), new_issuer(), Signer("one")
    verifiers = [new_verifier(issuer, HURRIED) for issuer in (well, ill)]
    for issuer, verifier in zip((well, ill), verifiers, strict=True):
        issuer.publish(signer)
        eventually(lambda verifier=verifier: has(verifier.keys, signer))
    tokens = [signer.token(f"user {n}") for n in range(1000)]
    waits = []

    with Flood(verifiers[0]), Flood(verifiers[1]) as flood:
        ill.answer = outage
        already = len(ill.asked)
        for minute in range(MINUTES):
            waits.append(([], []))
            over = time.monotonic() + MINUTE
            for token in itertools.cycle(tokens[minute * 100 :]):
                for verifier, waited in zip(verifiers, waits[-1], strict=True):
                    began = time.perf_counter()
                    assert verifier.identify(token).subject.startswith("user")
                    waited.append(time.perf_counter() - began)
                if time.monotonic() > over:
                    break
                time.sleep(0.0005)
        fetches = len(ill.asked) - already

    # A machine that is busy delays both alike, by more than a request may wait for a fetch.
    beside, during = (
        statistics.mean(wait > HURRIED.patience for wait in itertools.chain(*waited))
        for waited in zip(*waits, strict=True)
    )
    assert during < 2 * beside + 0.02
    assert 5 <= fetches <= 2 * MINUTES + 1
    assert flood.accepted == 0


def test_nothing_that_a_request_needs_is_held_during_a_fetch(issuer, new_verifier):
    signer = Signer("one")
    issuer.publish(signer)
    verifier = new_verifier(issuer)
    eventually(lambda: has(verifier.keys, signer))
    issuer.answer = hangs

    eventually(lambda: verifier.keys._is_fetching)

    assert verifier.keys._state.acquire(blocking=False)
    verifier.keys._state.release()
    assert verifier.identify(signer.token()).subject == "ada"


def test_the_first_token_of_a_new_key_brings_it(issuer, new_verifier):
    old, new = Signer("old"), Signer("new")
    issuer.publish(old)
    verifier = new_verifier(issuer, Pace(refresh=3600, apart=0.05, patience=LONG, timeout=LONG))
    eventually(lambda: has(verifier.keys, old))
    issuer.publish(old, new)
    eventually(lambda: time.monotonic() > verifier.keys._next_at)

    identity = verifier.identify(new.token())

    assert identity.subject == "ada"
    assert len(issuer.asked) == 2


def test_waiting_for_a_fetch_that_is_under_way_causes_no_other(issuer, new_verifier):
    signer, answered = Signer("a key"), threading.Event()
    body = key_set(signer.public())
    issuer.answer = lambda asked: answered.wait(LONG) and asked.reply(body)
    verifier = new_verifier(issuer, Pace(refresh=3600, apart=0.05, patience=LONG, timeout=LONG))
    eventually(lambda: issuer.asked)
    threading.Timer(0.1, answered.set).start()

    identity = verifier.identify(signer.token())
    time.sleep(0.3)  # when another would long have been made

    assert identity.subject == "ada"
    assert len(issuer.asked) == 1


def test_one_request_waits_for_a_new_key_and_the_others_are_refused_at_once(issuer, new_verifier):
    old, new = Signer("old"), Signer("new")
    issuer.publish(old)
    verifier = new_verifier(issuer, Pace(refresh=3600, apart=0.05, patience=LONG, timeout=LONG))
    eventually(lambda: has(verifier.keys, old))
    eventually(lambda: time.monotonic() > verifier.keys._next_at)
    rotated = threading.Event()

    def answers_when_rotated(asked: Asked) -> None:
        rotated.wait(LONG)
        asked.reply(key_set(new.public()))

    issuer.answer = answers_when_rotated
    answers = []
    first = threading.Thread(target=lambda: answers.append(accepts(verifier, new.token())))
    first.start()
    eventually(verifier.keys._turn_to_wait.locked)

    others = [accepts(verifier, new.token(f"user {n}")) for n in range(100)]
    was_waiting = first.is_alive()
    rotated.set()
    first.join(LONG)

    assert others == [False] * 100
    assert was_waiting
    assert answers == [True]


def test_a_request_waits_no_longer_than_its_patience(issuer, new_verifier):
    issuer.answer = hangs
    verifier = new_verifier(issuer, Pace(patience=0.2, timeout=LONG))
    eventually(lambda: issuer.asked)
    began = time.monotonic()

    with pytest.raises(KeysUnavailableError):
        verifier.identify(Signer("one").token())

    assert 0.2 <= time.monotonic() - began < 0.2 + AT_ONCE
    assert verifier.keys._is_fetching


def test_between_two_fetches_nobody_waits(issuer, new_verifier):
    known, unknown = Signer("known"), Signer("unknown")
    issuer.publish(known)
    verifier = new_verifier(issuer, Pace(apart=3600, patience=1))
    eventually(lambda: has(verifier.keys, known))
    began = time.monotonic()

    answers = [accepts(verifier, unknown.token(f"user {n}")) for n in range(10)]

    assert not any(answers)
    assert time.monotonic() - began < AT_ONCE
    assert len(issuer.asked) == 1


@pytest.mark.parametrize("left", [["other"], []], ids=["replaced", "withdrawn"])
def test_a_key_that_is_gone_verifies_no_more(issuer, new_verifier, left):
    """Nor a token that it verified before."""
    signer = Signer("one")
    issuer.publish(signer)
    verifier = new_verifier(issuer)
    token = signer.token()
    assert accepts(verifier, token)
    before = len(issuer.asked)

    issuer.publish(*map(Signer, left))

    eventually(lambda: not accepts(verifier, token))
    assert len(issuer.asked) > before
    with pytest.raises(Problem, match="signed by no key"):
        verifier.identify(token)


def test_a_new_key_under_an_old_id_ends_the_old_ones_tokens(issuer, new_verifier):
    old, new = Signer("same"), Signer("same")
    issuer.publish(old)
    verifier = new_verifier(issuer)
    assert accepts(verifier, old.token())

    issuer.publish(new)

    eventually(lambda: accepts(verifier, new.token()))
    assert not accepts(verifier, old.token())


def test_keys_are_good_for_a_while_without_their_issuer_and_then_503(issuer, new_app):
    signer = Signer("one")
    issuer.publish(signer)
    stale = 1.5
    app = new_app(issuer, Pace(refresh=0.3, apart=0.05, stale=stale, patience=5, timeout=5))
    token = signer.token()
    assert session_of(app, token).status_code == 200
    issuer.answer = fails
    down_since = time.monotonic()
    before = len(issuer.asked)

    answers = []
    eventually(lambda: answers.append(session_of(app, token)) or answers[-1].status_code != 200)
    lasted = time.monotonic() - down_since

    assert answers[-1].status_code == 503
    assert answers[-1].headers["Retry-After"] == "1"
    assert answers[-1].json["detail"].startswith("The keys of the token's issuer")
    assert len(issuer.asked) > before + 3
    assert stale - 0.5 <= lasted  # the last good set may have come a refresh before

    issuer.publish(signer)
    eventually(lambda: session_of(app, token).status_code == 200)


def test_an_issuer_that_is_down_at_the_start_means_503_until_it_is_up(issuer, new_app):
    signer = Signer("one")
    app = new_app(issuer)

    down = session_of(app, signer.token())
    issuer.publish(signer)

    assert (down.status_code, down.headers["Retry-After"]) == (503, "1")
    eventually(lambda: has(app.services.keys, signer))  # no request asks for it
    assert session_of(app, signer.token()).status_code == 200


def test_a_set_that_is_empty_is_no_outage(issuer, new_app):
    issuer.publish()
    app = new_app(issuer)
    eventually(lambda: session_of(app, Signer("one").token()).status_code != 503)

    answer = session_of(app, Signer("one").token())

    assert answer.status_code == 401


# When it begins and ends.


def test_nothing_is_fetched_before_the_first_token(issuer, new_app):
    signer = Signer("one")
    issuer.publish(signer)

    app = new_app(issuer)

    assert app.services.keys._thread is None
    assert app.test_client().get("/livez").status_code == 200
    assert not issuer.asked
    assert session_of(app, signer.token()).status_code == 200


@pytest.mark.parametrize("answer", [lambda asked: asked.reply(key_set()), fails, hangs])
def test_closing_ends_the_thread(issuer, answer):
    issuer.answer = answer
    keys = IssuerKeys(issuer.url, Pace(timeout=0.5))
    keys.open()
    eventually(lambda: issuer.asked)

    keys.close()

    keys._thread.join(LONG)
    assert not keys._thread.is_alive()


def test_a_failure_is_logged_without_what_the_issuer_sent_at_length(
    issuer, new_keys, log_stream, log_lines
):
    assert log_stream is not None
    issuer.answer = lambda asked: asked.wfile.write(b"spam" * 5000)

    new_keys(issuer)

    eventually(log_lines)
    (line,) = [line for line in log_lines() if line["url"] == issuer.url][:1]
    assert line["event"] == "key set not fetched"
    assert line["level"] == "warning"
    assert len(line["error"]) <= 200


@pytest.mark.slow
def test_each_worker_of_gunicorn_fetches_for_itself_and_no_more_than_it_may(issuer):
    """A thousand requests that name keys at random make no fetch beyond each worker's first."""
    signer = Signer("one")
    issuer.publish(signer)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn"],
        cwd=ROOT,
        env=kept | environment_of(issuer) | {"PORT": str(port), "WEB_CONCURRENCY": "2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    try:
        eventually(lambda: len(issuer.asked) == 2)
        statuses = [status_of(port, signer.token()) for _ in range(20)]
        strangers = (Signer(uuid.uuid4().hex) for _ in range(1000))
        refused = [status_of(port, stranger.token()) for stranger in strangers]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(LONG)

    assert set(statuses) == {200}
    assert set(refused) == {401}
    assert len(issuer.asked) == 2


def status_of(port: int, token: str) -> int | None:
    head = f"GET /api/session HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), LONG) as opened:
        opened.sendall(f"{head}Connection: close\r\n\r\n".encode())
        return int(opened.makefile("rb").readline().split()[1])
    return None
