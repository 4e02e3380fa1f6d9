"""An issuer's key set: the accepted keys, the limits of a fetch, and the effect of an outage.

The issuer is a real HTTP server, and each test sets its behavior.
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
from todo_api.auth.jwks import MAX_KEY_SET_BYTES, FetchTimes, IssuerKeys, fetch, parse_set
from todo_api.auth.keys import KeysUnavailableError
from todo_api.auth.tokens import Verifier
from todo_api.startup import load_settings
from todo_api.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from flask import Flask

ISSUER_NAME, AUDIENCE = "https://issuer.example", "todo"
# Port 1 of this machine refuses connections at once.
NO_DATABASE = "postgresql://nobody@127.0.0.1:1/nothing"

# Short intervals between fetches, but timeouts that a working issuer meets on a busy machine.
FAST_PACE = FetchTimes(refresh=0.3, min_interval=0.05, stale=60, request_wait=10, timeout=10)
# TOLERANCE is added to durations, because the machine may be busy. TIMEOUT limits each wait.
TOLERANCE, TIMEOUT = 3, 15  # seconds

HUNDRED_MEGABYTES = 100 * 1024 * 1024


class Signer:
    """A key of the issuer that signs tokens."""

    def __init__(self, kid: str | None = None, key: Key | None = None) -> None:
        self.kid = kid
        self.key = key or OKPKey.generate_key("Ed25519")

    def public_jwk(self, **members: Any) -> dict[str, Any]:
        kid = {"kid": self.kid} if self.kid else {}
        return self.key.as_dict(private=False) | kid | members

    def token(self, subject: str = "ada", algorithm: str = "Ed25519") -> str:
        header = {"alg": algorithm} | ({"kid": self.kid} if self.kid else {})
        claims = {
            "iss": ISSUER_NAME,
            "aud": AUDIENCE,
            "sub": subject,
            "exp": int(time.time()) + 3600,
        }
        return jwt.encode(header, claims, self.key, algorithms=[algorithm])


def key_set(*entries: Any) -> bytes:
    return json.dumps({"keys": entries}).encode()


class IssuerRequest(BaseHTTPRequestHandler):
    """A request to the issuer, which the issuer's function `respond` answers."""

    server: Issuer

    def do_GET(self) -> None:
        self.server.requests.append(self)
        self.server.respond(self)

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, body: bytes, status: int = 200, length: int | None = None, **headers: str):
        self.send_response(status)
        for name, value in ({"Content-Length": str(length or len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def write_slowly(self, data: Iterable[int]) -> None:
        """Send one byte every 20 ms, until the issuer closes or TIMEOUT has passed."""
        end = time.monotonic() + TIMEOUT
        for byte in data:
            self.wfile.write(bytes([byte]))
            if self.server.closed.wait(0.02) or time.monotonic() > end:
                break


Respond = "Callable[[IssuerRequest], None]"


class Issuer(ThreadingHTTPServer):
    """An issuer on loopback that records its requests and how many bytes it has sent."""

    daemon_threads = True
    block_on_close = False  # some responses never end

    def __init__(self, certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), IssuerRequest)
        self.respond: Respond = respond_with_500
        self.requests: list[IssuerRequest] = []
        self.bytes_sent = 0
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
        """Ignore clients that have disconnected."""

    def publish(self, *signers: Signer) -> None:
        body = key_set(*(signer.public_jwk() for signer in signers))
        self.respond = lambda request: request.reply(body)

    def close(self) -> None:
        self.closed.set()
        self.shutdown()
        self.server_close()


def respond_with_500(request: IssuerRequest) -> None:
    request.reply(b"down", 500)


def never_respond(request: IssuerRequest) -> None:
    request.server.closed.wait(TIMEOUT)


def send_random_bytes(request: IssuerRequest) -> None:
    request.wfile.write(os.urandom(100_000))


def send_100_megabytes(request: IssuerRequest) -> None:
    request.reply(b"", length=HUNDRED_MEGABYTES)
    send_in_pieces(request, lambda chunk: chunk)


def send_100_megabytes_in_chunks(request: IssuerRequest) -> None:
    request.protocol_version = "HTTP/1.1"
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    send_in_pieces(request, lambda chunk: b"%x\r\n%b\r\n" % (len(chunk), chunk))


def send_in_pieces(request: IssuerRequest, frame: Callable[[bytes], bytes]) -> None:
    chunk = frame(b" " * 65536)
    for _ in range(HUNDRED_MEGABYTES // 65536):
        request.wfile.write(chunk)
        request.server.bytes_sent += len(chunk)


def send_status_slowly(request: IssuerRequest) -> None:
    request.write_slowly(itertools.chain(b"HTTP/1.1 200 ", itertools.repeat(ord("k"))))


def send_headers_slowly(request: IssuerRequest) -> None:
    request.write_slowly(itertools.chain(b"HTTP/1.1 200 OK\r\n", itertools.cycle(b"A: b\r\n")))


def send_body_slowly(request: IssuerRequest) -> None:
    request.reply(b"{", length=60_000)
    request.write_slowly(itertools.repeat(ord(" ")))


def send_body_without_length_slowly(request: IssuerRequest) -> None:
    request.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
    request.write_slowly(itertools.repeat(ord(" ")))


def repeat_100_continue(request: IssuerRequest) -> None:
    request.write_slowly(itertools.cycle(b"HTTP/1.1 100 Continue\r\n\r\n"))


@pytest.fixture
def new_issuer():
    with ExitStack() as stack:
        yield lambda *args: stack.enter_context(closing(Issuer(*args)))


@pytest.fixture
def issuer(new_issuer) -> Issuer:
    return new_issuer()


@pytest.fixture
def new_keys():
    """Start to fetch the keys of an issuer, and close them after the test."""
    with ExitStack() as stack:

        def make(issuer: Issuer, fetch_times: FetchTimes = FAST_PACE) -> IssuerKeys:
            keys = stack.enter_context(closing(IssuerKeys(issuer.url, fetch_times)))
            keys.open()
            return keys

        yield make


@pytest.fixture
def new_verifier(new_keys):
    """Create a verifier of the issuer's tokens that fetches its keys."""
    return lambda issuer, fetch_times=FAST_PACE: Verifier(
        load_settings(issuer_settings(issuer)), new_keys(issuer, fetch_times)
    )


@pytest.fixture
def new_app():
    """Create an application that trusts an issuer and fetches its keys at these times."""
    with ExitStack() as stack:

        def make(issuer: Issuer, fetch_times: FetchTimes = FAST_PACE) -> Flask:
            app = create_app(load_settings(issuer_settings(issuer)), fetch_times)
            stack.enter_context(closing(app.services.keys))
            stack.callback(app.services.pool.close)
            return app

        yield make


def issuer_settings(issuer: Issuer) -> dict[str, str]:
    return {
        "DATABASE_URL": NO_DATABASE,
        "JWT_JWKS_URL": issuer.url,
        "JWT_ISSUER": ISSUER_NAME,
        "JWT_AUDIENCE": AUDIENCE,
    }


def wait_until(condition: Callable[[], Any]) -> None:
    """Wait until the condition is true."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.005)


def has_key(keys: IssuerKeys, signer: Signer) -> bool:
    return any(key.kid == signer.kid for key in keys._keys)


def accepts(verifier: Verifier, token: str) -> bool:
    try:
        return bool(verifier.identify(token))
    except (Problem, KeysUnavailableError):
        return False


def get_session(app: Flask, token: str):
    return app.test_client().get("/api/session", headers={"Authorization": f"Bearer {token}"})


# The keys that are accepted from a set.


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
def test_every_key_type_verifies_its_tokens(issuer, new_verifier, algorithm, key):
    signer = Signer("tested", key)
    issuer.publish(Signer("another"), signer)

    verifier = new_verifier(issuer)

    assert verifier.identify(signer.token("ada", algorithm)).subject == "ada"


PUBLIC = Signer("unusable").public_jwk()


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param({"kty": "AKP", "kid": "unusable", "pub": "AAAA"}, id="unknown type"),
        pytest.param(RSAKey.generate_key(2048).as_dict(private=True), id="private RSA"),
        pytest.param(OKPKey.generate_key("Ed25519").as_dict(private=True), id="private Ed25519"),
        pytest.param({"kty": "oct", "k": "c2VjcmV0"}, id="symmetric key"),
        pytest.param(OKPKey.generate_key("X25519").as_dict(private=False), id="X25519"),
        pytest.param(ECKey.generate_key("secp256k1").as_dict(private=False), id="secp256k1"),
        pytest.param(PUBLIC | {"use": "enc"}, id="use is encryption"),
        pytest.param(PUBLIC | {"key_ops": ["encrypt"]}, id="key_ops is encryption"),
        pytest.param(PUBLIC | {"alg": "ES256"}, id="alg of another key type"),
        pytest.param(PUBLIC | {"alg": "none"}, id="alg is none"),
        pytest.param(PUBLIC | {"alg": ["EdDSA"]}, id="alg is a list"),
        pytest.param(PUBLIC | {"kid": 5}, id="kid is a number"),
        pytest.param(PUBLIC | {"kid": ["unusable"]}, id="kid is a list"),
        pytest.param(PUBLIC | {"x": "AAAA"}, id="x is too short"),
        pytest.param({"kty": "OKP"}, id="members are missing"),
        pytest.param({"keys": [PUBLIC]}, id="nested key set"),
        pytest.param(json.dumps(PUBLIC), id="string"),
        pytest.param([[]], id="list"),
        pytest.param(None, id="null"),
    ],
)
def test_unusable_key_is_skipped(entry):
    signer = Signer("good")

    keys = parse_set(key_set(entry, signer.public_jwk(), entry))

    assert [key.kid for key in keys] == ["good"]


@pytest.mark.filterwarnings("ignore:Key size should be")
def test_weak_rsa_key_is_skipped():
    weak = RSAKey.generate_key(1024).as_dict(private=False)

    keys = parse_set(key_set(weak, Signer("good").public_jwk()))

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
    key=st.sampled_from([PUBLIC, ECKey.generate_key("P-256").as_dict(private=False)]),
    changes=st.dictionaries(MEMBERS, ANYTHING, min_size=1, max_size=3),
)
def test_malformed_key_does_not_affect_other_keys(key, changes):
    keys = parse_set(key_set(key | changes, Signer("good").public_jwk()))

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
def test_invalid_key_set_keeps_previous_keys(issuer, new_keys, body):
    signer = Signer("one")
    issuer.publish(signer)
    keys = new_keys(issuer)
    wait_until(lambda: has_key(keys, signer))
    issuer.respond = lambda request: request.reply(body)
    before = len(issuer.requests)

    wait_until(lambda: len(issuer.requests) >= before + 3)

    assert has_key(keys, signer)


def test_first_of_several_keys_with_the_same_id_is_used(issuer, new_keys):
    signers = [Signer("twin") for _ in range(8)]
    issuer.publish(*signers)

    keys = new_keys(issuer)

    wait_until(lambda: has_key(keys, signers[0]))
    assert keys.find("twin", "EdDSA").thumbprint == signers[0].key.thumbprint()


def test_keys_with_the_same_id_are_selected_by_algorithm(issuer, new_keys):
    one, other = Signer("twin"), Signer("twin", ECKey.generate_key("P-256"))
    issuer.publish(one, other)

    keys = new_keys(issuer)

    wait_until(lambda: has_key(keys, one))
    assert keys.find("twin", "ES256").thumbprint == other.key.thumbprint()


def test_token_without_key_id_is_accepted_only_if_there_is_one_key(issuer, new_verifier):
    alone, other = Signer(), Signer("other")
    issuer.publish(alone)
    verifier = new_verifier(issuer)
    assert accepts(verifier, alone.token())

    issuer.publish(alone, other)

    wait_until(lambda: has_key(verifier.keys, other))
    assert not accepts(verifier, alone.token("grace"))


# The limits of a fetch.


@pytest.mark.parametrize(
    "respond",
    [
        never_respond,
        send_status_slowly,
        send_headers_slowly,
        send_body_slowly,
        send_body_without_length_slowly,
        repeat_100_continue,
    ],
)
@pytest.mark.parametrize("is_secure", [False, True], ids=["http", "https"])
def test_fetch_times_out_when_the_response_is_slow(new_issuer, trusted, respond, is_secure):
    issuer = new_issuer(trusted) if is_secure else new_issuer()
    issuer.respond = respond
    started_at = time.monotonic()

    with pytest.raises(TimeoutError):
        fetch(issuer.url, 0.4)

    assert time.monotonic() - started_at < 0.4 + TOLERANCE
    assert len(issuer.requests) == 1


def test_fetch_times_out_when_the_connection_is_not_accepted():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started_at = time.monotonic()

        with pytest.raises(TimeoutError):
            fetch(f"https://127.0.0.1:{silent.getsockname()[1]}/jwks", 0.4)

        assert time.monotonic() - started_at < 0.4 + TOLERANCE


def test_fetch_times_out_when_the_tls_handshake_is_slow(issuer):
    """A TLS record of the maximum length, one byte at a time, would take five minutes."""

    class SlowHandshake(IssuerRequest):
        def handle(self) -> None:
            self.write_slowly(itertools.chain(b"\x16\x03\x03\x40\x00", itertools.repeat(2)))

    issuer.RequestHandlerClass = SlowHandshake
    started_at = time.monotonic()

    with pytest.raises(TimeoutError):
        fetch(issuer.url.replace("http:", "https:"), 0.4)

    assert time.monotonic() - started_at < 0.4 + TOLERANCE


@pytest.mark.parametrize("respond", [send_100_megabytes, send_100_megabytes_in_chunks])
def test_body_of_100_megabytes_is_not_read(issuer, respond):
    issuer.respond = respond

    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 65536 bytes"):
        fetch(issuer.url, TIMEOUT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 2 * 1024 * 1024  # client and issuer share this process
    assert issuer.bytes_sent < HUNDRED_MEGABYTES / 4  # the socket buffers hold less


@pytest.mark.parametrize(
    ("size", "is_accepted"), [(MAX_KEY_SET_BYTES, True), (MAX_KEY_SET_BYTES + 1, False)]
)
def test_key_set_may_have_64_kilobytes(issuer, new_keys, size, is_accepted):
    signer = Signer("one")
    body = key_set(signer.public_jwk()).ljust(size)
    issuer.respond = lambda request: request.reply(body)

    keys = new_keys(issuer)

    wait_until(lambda: len(issuer.requests) >= 2)
    assert has_key(keys, signer) == is_accepted


def test_redirects_are_not_followed(issuer, new_keys):
    signer = Signer("one")

    def redirect(request: IssuerRequest) -> None:
        if request.path == "/jwks":
            request.reply(b"", 302, Location="/elsewhere")
        else:
            request.reply(key_set(signer.public_jwk()))

    issuer.respond = redirect

    keys = new_keys(issuer)

    wait_until(lambda: len(issuer.requests) >= 3)
    assert {request.path for request in issuer.requests} == {"/jwks"}
    assert not has_key(keys, signer)


def test_fetch_requests_uncompressed_json_and_keeps_the_query(issuer):
    issuer.publish()

    fetch(f"{issuer.url}?tenant=1", TIMEOUT)

    (request,) = issuer.requests
    assert request.path == "/jwks?tenant=1"
    assert request.headers["Accept"] == "application/json"
    assert request.headers["Accept-Encoding"] == "identity"


@pytest.fixture(scope="module")
def new_certificate(tmp_path_factory):
    """Create a file with a self-signed certificate for a host, and its key."""

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
    """A certificate that this process trusts like one of a public authority."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return certificate


def test_trusted_certificate_is_accepted(new_issuer, trusted):
    issuer = new_issuer(trusted)
    issuer.publish(Signer("one"))

    body = fetch(issuer.url, TIMEOUT)

    assert [key.kid for key in parse_set(body)] == ["one"]


def test_untrusted_certificate_is_refused(new_issuer, certificate):
    issuer = new_issuer(certificate)

    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
        fetch(issuer.url, TIMEOUT)

    assert not issuer.requests


def test_certificate_of_another_host_is_refused(new_issuer, new_certificate, monkeypatch):
    other = new_certificate(x509.DNSName("other.example"))
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    issuer = new_issuer(other)

    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        fetch(issuer.url, TIMEOUT)

    assert not issuer.requests


# The effect on requests.

MINUTES = 10
MINUTE = 60 / 200  # seconds: the test runs 200 times faster than real time
SCALED_TIMES = FetchTimes(
    *(
        seconds * MINUTE / 60
        for seconds in (FetchTimes.refresh, FetchTimes.min_interval, FetchTimes.stale)
    ),
    *(seconds * MINUTE / 60 for seconds in (FetchTimes.request_wait, FetchTimes.timeout)),
)


class Flood:
    """Send 1,000 tokens with random key ids per second, until the block ends."""

    def __init__(self, verifier: Verifier) -> None:
        self.sent = 0
        self.accepted = 0
        self._verifier = verifier
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        signer = Signer("")
        tokens = []
        for _ in range(2000):
            signer.kid = uuid.uuid4().hex
            tokens.append(signer.token())
        started_at = time.monotonic()
        for token in itertools.cycle(tokens):
            if self._stopped.wait(max(0, started_at + self.sent / 1000 - time.monotonic())):
                return
            self.accepted += accepts(self._verifier, token)
            self.sent += 1

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self.sent)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    "outage", [respond_with_500, never_respond, send_random_bytes, send_100_megabytes]
)
def test_outage_of_ten_minutes_does_not_delay_requests(new_issuer, new_verifier, outage):
    """Send the same tokens to two verifiers in turn. Only one of their issuers has an outage."""
    healthy, failing, signer = new_issuer(), new_issuer(), Signer("one")
    verifiers = [new_verifier(issuer, SCALED_TIMES) for issuer in (healthy, failing)]
    for issuer, verifier in zip((healthy, failing), verifiers, strict=True):
        issuer.publish(signer)
        wait_until(lambda verifier=verifier: has_key(verifier.keys, signer))
    tokens = [signer.token(f"user {n}") for n in range(1000)]
    durations = []

    with Flood(verifiers[0]), Flood(verifiers[1]) as flood:
        failing.respond = outage
        fetches_before = len(failing.requests)
        for minute in range(MINUTES):
            durations.append(([], []))
            end = time.monotonic() + MINUTE
            for token in itertools.cycle(tokens[minute * 100 :]):
                for verifier, verifier_durations in zip(verifiers, durations[-1], strict=True):
                    started_at = time.perf_counter()
                    assert verifier.identify(token).subject.startswith("user")
                    verifier_durations.append(time.perf_counter() - started_at)
                if time.monotonic() > end:
                    break
                time.sleep(0.0005)
        fetches = len(failing.requests) - fetches_before

    # A busy machine delays both verifiers: compare how often each delay exceeds `request_wait`.
    delayed_healthy, delayed_failing = (
        statistics.mean(
            duration > SCALED_TIMES.request_wait for duration in itertools.chain(*by_minute)
        )
        for by_minute in zip(*durations, strict=True)
    )
    assert delayed_failing < 2 * delayed_healthy + 0.02
    assert 5 <= fetches <= 2 * MINUTES + 1
    assert flood.accepted == 0


def test_fetch_does_not_hold_the_lock_that_requests_need(issuer, new_verifier):
    signer = Signer("one")
    issuer.publish(signer)
    verifier = new_verifier(issuer)
    wait_until(lambda: has_key(verifier.keys, signer))
    issuer.respond = never_respond

    wait_until(lambda: verifier.keys._is_fetching)

    assert verifier.keys._state.acquire(blocking=False)
    verifier.keys._state.release()
    assert verifier.identify(signer.token()).subject == "ada"


def test_first_token_of_a_new_key_triggers_a_fetch(issuer, new_verifier):
    old, new = Signer("old"), Signer("new")
    issuer.publish(old)
    verifier = new_verifier(
        issuer, FetchTimes(refresh=3600, min_interval=0.05, request_wait=TIMEOUT, timeout=TIMEOUT)
    )
    wait_until(lambda: has_key(verifier.keys, old))
    issuer.publish(old, new)
    wait_until(lambda: time.monotonic() > verifier.keys._next_at)

    identity = verifier.identify(new.token())

    assert identity.subject == "ada"
    assert len(issuer.requests) == 2


def test_request_during_a_fetch_starts_no_second_fetch(issuer, new_verifier):
    signer, released = Signer("one"), threading.Event()
    body = key_set(signer.public_jwk())
    issuer.respond = lambda request: released.wait(TIMEOUT) and request.reply(body)
    verifier = new_verifier(
        issuer, FetchTimes(refresh=3600, min_interval=0.05, request_wait=TIMEOUT, timeout=TIMEOUT)
    )
    wait_until(lambda: issuer.requests)
    threading.Timer(0.1, released.set).start()

    identity = verifier.identify(signer.token())
    time.sleep(0.3)  # enough time for a second fetch

    assert identity.subject == "ada"
    assert len(issuer.requests) == 1


def test_one_request_waits_for_a_new_key_and_others_are_refused_at_once(issuer, new_verifier):
    old, new = Signer("old"), Signer("new")
    issuer.publish(old)
    verifier = new_verifier(
        issuer, FetchTimes(refresh=3600, min_interval=0.05, request_wait=TIMEOUT, timeout=TIMEOUT)
    )
    wait_until(lambda: has_key(verifier.keys, old))
    wait_until(lambda: time.monotonic() > verifier.keys._next_at)
    rotated = threading.Event()

    def respond_after_rotation(request: IssuerRequest) -> None:
        rotated.wait(TIMEOUT)
        request.reply(key_set(new.public_jwk()))

    issuer.respond = respond_after_rotation
    first_results = []
    first = threading.Thread(target=lambda: first_results.append(accepts(verifier, new.token())))
    first.start()
    wait_until(verifier.keys._wait_lock.locked)

    others = [accepts(verifier, new.token(f"user {n}")) for n in range(100)]
    was_waiting = first.is_alive()
    rotated.set()
    first.join(TIMEOUT)

    assert others == [False] * 100
    assert was_waiting
    assert first_results == [True]


def test_request_waits_no_longer_than_request_wait(issuer, new_verifier):
    issuer.respond = never_respond
    verifier = new_verifier(issuer, FetchTimes(request_wait=0.2, timeout=TIMEOUT))
    wait_until(lambda: issuer.requests)
    started_at = time.monotonic()

    with pytest.raises(KeysUnavailableError):
        verifier.identify(Signer("one").token())

    assert 0.2 <= time.monotonic() - started_at < 0.2 + TOLERANCE
    assert verifier.keys._is_fetching


def test_requests_do_not_wait_between_two_fetches(issuer, new_verifier):
    known, unknown = Signer("known"), Signer("unknown")
    issuer.publish(known)
    verifier = new_verifier(issuer, FetchTimes(min_interval=3600, request_wait=1))
    wait_until(lambda: has_key(verifier.keys, known))
    started_at = time.monotonic()

    results = [accepts(verifier, unknown.token(f"user {n}")) for n in range(10)]

    assert not any(results)
    assert time.monotonic() - started_at < TOLERANCE
    assert len(issuer.requests) == 1


@pytest.mark.parametrize("remaining", [["other"], []], ids=["replaced", "removed"])
def test_tokens_of_a_removed_key_are_refused(issuer, new_verifier, remaining):
    """Tokens that were verified before the removal are refused, too."""
    signer = Signer("one")
    issuer.publish(signer)
    verifier = new_verifier(issuer)
    token = signer.token()
    assert accepts(verifier, token)
    before = len(issuer.requests)

    issuer.publish(*map(Signer, remaining))

    wait_until(lambda: not accepts(verifier, token))
    assert len(issuer.requests) > before
    with pytest.raises(Problem, match="no key for the signature"):
        verifier.identify(token)


def test_new_key_with_the_same_id_invalidates_tokens_of_the_old_key(issuer, new_verifier):
    old, new = Signer("same"), Signer("same")
    issuer.publish(old)
    verifier = new_verifier(issuer)
    assert accepts(verifier, old.token())

    issuer.publish(new)

    wait_until(lambda: accepts(verifier, new.token()))
    assert not accepts(verifier, old.token())


def test_keys_remain_valid_during_an_outage_until_they_are_stale(issuer, new_app):
    signer = Signer("one")
    issuer.publish(signer)
    stale = 1.5
    app = new_app(
        issuer, FetchTimes(refresh=0.3, min_interval=0.05, stale=stale, request_wait=5, timeout=5)
    )
    token = signer.token()
    assert get_session(app, token).status_code == 200
    issuer.respond = respond_with_500
    down_since = time.monotonic()
    before = len(issuer.requests)

    responses = []
    wait_until(
        lambda: responses.append(get_session(app, token)) or responses[-1].status_code != 200
    )
    duration = time.monotonic() - down_since

    assert responses[-1].status_code == 503
    assert responses[-1].headers["Retry-After"] == "1"
    assert "the keys of the token's issuer cannot be fetched" in responses[-1].json["detail"]
    assert len(issuer.requests) > before + 3
    assert stale - 0.5 <= duration  # the last valid set can be one refresh interval old

    issuer.publish(signer)
    wait_until(lambda: get_session(app, token).status_code == 200)


def test_issuer_down_at_start_gives_503_until_it_is_up(issuer, new_app):
    signer = Signer("one")
    app = new_app(issuer)

    down = get_session(app, signer.token())
    issuer.publish(signer)

    assert (down.status_code, down.headers["Retry-After"]) == (503, "1")
    wait_until(lambda: has_key(app.services.keys, signer))  # without another request
    assert get_session(app, signer.token()).status_code == 200


def test_empty_key_set_gives_401_instead_of_503(issuer, new_app):
    issuer.publish()
    app = new_app(issuer)
    wait_until(lambda: get_session(app, Signer("one").token()).status_code != 503)

    response = get_session(app, Signer("one").token())

    assert response.status_code == 401


# The start and the end of fetches.


def test_no_key_is_fetched_before_the_first_token(issuer, new_app):
    signer = Signer("one")
    issuer.publish(signer)

    app = new_app(issuer)

    assert app.services.keys._thread is None
    assert app.test_client().get("/livez").status_code == 200
    assert not issuer.requests
    assert get_session(app, signer.token()).status_code == 200


@pytest.mark.parametrize(
    "respond", [lambda request: request.reply(key_set()), respond_with_500, never_respond]
)
def test_close_ends_the_thread(issuer, respond):
    issuer.respond = respond
    keys = IssuerKeys(issuer.url, FetchTimes(timeout=0.5))
    keys.open()
    wait_until(lambda: issuer.requests)

    keys.close()

    keys._thread.join(TIMEOUT)
    assert not keys._thread.is_alive()


def test_logged_fetch_error_has_at_most_200_characters(issuer, new_keys, log_stream, log_lines):
    assert log_stream is not None
    issuer.respond = lambda request: request.wfile.write(b"spam" * 5000)

    new_keys(issuer)

    wait_until(log_lines)
    (line,) = [line for line in log_lines() if line["url"] == issuer.url][:1]
    assert line["event"] == "key set fetch failed"
    assert line["level"] == "warning"
    assert len(line["error"]) <= 200


@pytest.mark.slow
def test_each_gunicorn_worker_fetches_once(issuer):
    """1,000 tokens with random key ids cause no fetch after the first one of each worker."""
    signer = Signer("one")
    issuer.publish(signer)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn"],
        cwd=ROOT,
        env=inherited | issuer_settings(issuer) | {"PORT": str(port), "WEB_CONCURRENCY": "2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_until(lambda: len(issuer.requests) == 2)
        statuses = [status_of(port, signer.token()) for _ in range(20)]
        unknown_signers = (Signer(uuid.uuid4().hex) for _ in range(1000))
        refused = [status_of(port, unknown.token()) for unknown in unknown_signers]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT)

    assert set(statuses) == {200}
    assert set(refused) == {401}
    assert len(issuer.requests) == 2


def status_of(port: int, token: str) -> int | None:
    head = f"GET /api/session HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    with (
        suppress(ConnectionError),
        socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection,
    ):
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
        return int(connection.makefile("rb").readline().split()[1])
    return None
