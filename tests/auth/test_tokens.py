"""Tokens that are accepted or refused, for every type of key.

Attacks go to an application whose database refuses connections. A valid token gets 503 there, so
a 401 shows that the request did not use the database.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import re
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from tests.support.api import etag
from todo_api.app import create_app
from todo_api.auth.authentication import make_keys
from todo_api.auth.tokens import Verifier
from todo_api.metrics import Metrics
from todo_api.startup import load_settings
from todo_api.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask import Flask

ISSUER = "https://issuer.example/auth"
AUDIENCE = "todo-api"
SECRET = "a-secret-of-the-tests-that-is-long-enough"
USER = "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21"
OTHER = "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b22"
PATH = f"/api/{USER}/tasks"
# Port 1 of this machine refuses connections at once.
NO_DATABASE = "postgresql://nobody@127.0.0.1:1/nothing"
ORDER_OF_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

ALGORITHMS = ["EdDSA", "ES256", "RS256", "HS256"]
ASYMMETRIC = ALGORITHMS[:3]


def case(name: str, *values: Any):
    """Return a test case with a readable id."""
    return pytest.param(*values, id=name)


def make_key(algorithm: str) -> Key:
    match algorithm[:2]:
        case "Ed":
            return OKPKey.generate_key("Ed25519")
        case "ES":
            curve = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "ES256K": "secp256k1"}
            return ECKey.generate_key(curve[algorithm])
        case "RS" | "PS":
            return RSAKey.generate_key(2048)
        case _:
            return OctKey.import_key(f"another-secret-that-is-long-enough-for-{algorithm}" * 2)


# For each algorithm, the server has one key and the attacker another.
server_key = functools.cache(
    lambda algorithm: OctKey.import_key(SECRET) if algorithm == "HS256" else make_key(algorithm)
)
attacker_key = functools.cache(make_key)


def key_settings(algorithm: str, form: str = "PEM", **parameters: Any) -> dict[str, str]:
    """Return the setting with the server's key for tokens of this algorithm."""
    key = server_key(algorithm)
    if algorithm == "HS256":
        return {"JWT_SECRET": SECRET}
    if form == "PEM":
        return {"JWT_PUBLIC_KEY": key.as_pem(private=False).decode()}
    return {"JWT_PUBLIC_KEY": json.dumps(key.as_dict(private=False, **parameters))}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def make_claims(**claims: Any) -> dict[str, Any]:
    """Return valid claims with these changes; a claim that is `...` is left out."""
    all_claims = {"sub": USER, "iss": ISSUER, "aud": AUDIENCE, "exp": 2**32} | claims
    return {name: value for name, value in all_claims.items() if value is not ...}


def sign(algorithm: str, key: Key | bytes, message: bytes) -> bytes:
    if isinstance(key, bytes):
        return hmac.digest(key, message, hashlib.new(f"sha{algorithm[2:]}").name)
    return JWSRegistry.algorithms[algorithm].sign(message, key)


def make_token(
    algorithm: str,
    claims: Any = None,
    *,
    header: Any = None,
    key: Key | bytes | None = None,
    signed_as: str | None = None,
) -> str:
    """Return a token with a valid signature of `key`; the default is the server's key.

    A header or claims in bytes are encoded as they are, without JSON.
    """
    header = {"alg": algorithm} | (header or {}) if not isinstance(header, bytes) else header
    claims = make_claims() if claims is None else claims
    head, body = (
        b64(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, claims)
    )
    key = server_key(algorithm) if key is None else key
    signed = sign(signed_as or algorithm, key, f"{head}.{body}".encode())
    return f"{head}.{body}.{b64(signed)}"


@pytest.fixture(scope="module")
def make_offline_app(log_stream) -> Iterator[Callable[..., Flask]]:  # noqa: ARG001  logging comes first
    """Create an application without a database, or return the earlier one with these settings."""
    apps: dict[tuple[tuple[str, str], ...], Flask] = {}

    def make(**settings: str) -> Flask:
        key = tuple(sorted(settings.items()))
        if key not in apps:
            unreachable = {"DATABASE_URL": NO_DATABASE, "REQUEST_TIMEOUT": "0.2"}
            apps[key] = create_app(load_settings(unreachable | settings))
        return apps[key]

    yield make
    for app in apps.values():
        app.services.pool.close()


@pytest.fixture
def attack(make_offline_app):
    """Send the header Authorization, or none, to an application with a key for the algorithm."""

    def send(algorithm: str, authorization: str | None, form: str = "PEM", **options: Any):
        expected = {"JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}
        app = make_offline_app(**key_settings(algorithm, form, kid="key-1"), **expected)
        response = send_request(app, authorization, **options)
        assert is_database_unused(app)
        return response

    return send


def is_database_unused(app: Flask) -> bool:
    """Whether the application has never used the database: the first use opens the pool."""
    return app.services.pool._pool.closed


def send_request(
    app: Flask, authorization: str | None, path: str = PATH, method: str = "GET", **options: Any
):
    """Send a request with exactly these bytes in the header Authorization."""
    environ = (
        {}
        if authorization is None
        else {"HTTP_AUTHORIZATION": authorization.encode().decode("latin-1")}
    )
    return app.test_client().open(
        path, method=method, environ_overrides=environ, buffered=True, **options
    )


def bearer(token: str) -> str:
    return f"Bearer {token}"


def assert_refused(response, challenge: str = 'Bearer error="invalid_token"'):
    """Check that the response is a 401 as in RFC 6750 and RFC 9457, without the cause."""
    assert response.status_code == 401, response.text
    assert response.headers.getlist("WWW-Authenticate") == [challenge]
    assert response.headers["Cache-Control"] == "no-store"
    assert response.mimetype == "application/problem+json"
    assert response.json["status"] == 401
    assert response.json["type"] == "/problems/unauthorized"
    assert response.json["instance"] == response.headers["X-Request-Id"]
    assert set(response.json) == {"type", "title", "status", "detail", "instance"}


@pytest.fixture
def make_api(make_app):
    """Create an application on the tests' database, with a key for the algorithm."""
    return lambda algorithm, form="PEM", **settings: make_app(
        AUTH_MODE="jwt", **key_settings(algorithm, form, kid="key-1"), **settings
    )


def get_session(app: Flask, token: str):
    return send_request(app, bearer(token), "/api/session")


@pytest.mark.parametrize("form", ["PEM", "JWK"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_valid_token_is_accepted(make_api, user_id, algorithm, form):
    app = make_api(algorithm, form, JWT_ISSUER=ISSUER, JWT_AUDIENCE=AUDIENCE)
    authorization = bearer(make_token(algorithm, make_claims(sub=user_id)))

    created = send_request(
        app, authorization, f"/api/{user_id}/tasks", "POST", json={"title": "Buy oat milk"}
    )
    listed = send_request(app, authorization, f"/api/{user_id}/tasks")

    assert created.status_code == 201, created.text
    assert listed.status_code == 200
    assert listed.json == [created.json]


@pytest.mark.parametrize(
    "header",
    [
        case("no-kid", {}),
        case("matching-kid", {"kid": "key-1"}),
        case("typ", {"typ": "JWT"}),
        case("at-jwt", {"typ": "at+jwt"}),
        case("unknown-names", {"x-tenant": "a", "nested": {"a": [1]}}),
        case("long", {"x5c": ["A" * 2000]}),
    ],
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_other_header_members_are_ignored(make_api, algorithm, header):
    app = make_api(algorithm, "JWK")

    response = get_session(app, make_token(algorithm, header=header))

    assert response.status_code == 200, response.text


def test_any_key_id_is_accepted_if_the_only_key_has_none(make_api):
    app = make_api("ES256", "PEM")

    response = get_session(app, make_token("ES256", header={"kid": "2026-11"}))

    assert response.status_code == 200


@pytest.mark.parametrize(
    ("algorithm", "token_algorithm"),
    [("RS256", "RS384"), ("RS256", "RS512"), ("RS256", "PS256"), ("EdDSA", "Ed25519")],
)
def test_key_verifies_every_algorithm_of_its_type(make_api, algorithm, token_algorithm):
    app = make_api(algorithm)

    response = get_session(app, make_token(token_algorithm, key=server_key(algorithm)))

    assert response.status_code == 200


def test_key_with_alg_verifies_only_this_algorithm(make_app):
    app = make_app(AUTH_MODE="jwt", **key_settings("RS256", "JWK", alg="RS256", use="sig"))

    assert get_session(app, make_token("RS256")).status_code == 200
    assert_refused(get_session(app, make_token("PS256", key=server_key("RS256"))))


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "bEaReR   "])
def test_scheme_is_case_insensitive(make_api, scheme):
    app = make_api("HS256")

    response = send_request(app, scheme + make_token("HS256"), "/api/session")

    assert response.status_code == 200


def test_user_ids_are_case_insensitive(make_api, user_id):
    app = make_api("HS256")
    authorization = bearer(make_token("HS256", make_claims(sub=user_id.upper())))

    created = send_request(
        app, authorization, f"/api/{user_id.upper()}/tasks", "POST", json={"title": "x"}
    )
    listed = send_request(app, authorization, f"/api/{user_id}/tasks")

    assert created.json["user_id"] == user_id
    assert listed.json == [created.json]


def test_session_shows_the_user_of_the_token(make_api):
    response = get_session(make_api("HS256"), make_token("HS256", make_claims(exp=1893456000)))

    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert response.json == {
        "user_id": USER,
        "subject": USER,
        "expires_at": "2030-01-01T00:00:00Z",
    }


def test_session_is_404_without_authentication(client):
    response = client.get("/api/session", headers={"Authorization": bearer(make_token("HS256"))})

    assert response.status_code == 404


@pytest.mark.parametrize(
    "subject",
    [
        "auth0|5f7c8ec7c33c6c004bbafe82",
        "7",
        "é\u200d\U0001f43b",
        "x" * 255,
        f"{{{USER}}}",
        USER[1:],
    ],
)
def test_user_id_of_other_subjects_is_derived_from_issuer_and_subject(make_api, subject):
    app = make_api("HS256", JWT_ISSUER=ISSUER)
    user_id = uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, ISSUER), subject)
    token = make_token("HS256", make_claims(sub=subject))

    session = get_session(app, token)
    listed = send_request(app, bearer(token), f"/api/{user_id}/tasks")

    assert session.json["user_id"] == str(user_id)
    assert session.json["subject"] == subject
    assert listed.json == []


@pytest.mark.parametrize("subject", [USER, USER.upper(), "7"])
def test_derived_id_depends_on_issuer_and_subject_for_every_subject(make_api, subject):
    app = make_api("HS256", JWT_ISSUER=ISSUER, JWT_USER_IDS="derived")
    user_id = uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, ISSUER), subject)
    token = make_token("HS256", make_claims(sub=subject))

    session = get_session(app, token)
    listed = send_request(app, bearer(token), f"/api/{user_id}/tasks")
    by_subject = send_request(app, bearer(token), f"/api/{subject}/tasks")

    assert session.json["user_id"] == str(user_id)
    assert session.json["subject"] == subject
    assert listed.json == []
    assert by_subject.status_code == 404


def test_derived_ids_cannot_be_chosen(make_api):
    """A subject that is the derived id of another user is a third user."""
    app = make_api("HS256", JWT_ISSUER=ISSUER, JWT_USER_IDS="derived")
    victim = get_session(app, make_token("HS256", make_claims(sub="alice"))).json["user_id"]

    thief = get_session(app, make_token("HS256", make_claims(sub=victim))).json["user_id"]

    assert thief != victim


def test_same_subject_of_another_issuer_is_another_user(make_api):
    issuers = (ISSUER, f"{ISSUER}/")
    apps = [make_api("HS256", JWT_ISSUER=issuer) for issuer in issuers]

    sessions = [
        get_session(app, make_token("HS256", make_claims(sub="7", iss=issuer)))
        for app, issuer in zip(apps, issuers, strict=True)
    ]

    assert len({session.json["user_id"] for session in sessions}) == 2


def test_user_claim_can_be_set(make_api):
    app = make_api("HS256", JWT_USER_CLAIM="https://app.example/user_id")
    claims = make_claims(sub="someone", **{"https://app.example/user_id": OTHER})

    session = get_session(app, make_token("HS256", claims))

    assert session.json["user_id"] == session.json["subject"] == OTHER
    assert_refused(get_session(app, make_token("HS256", make_claims())))
    assert_refused(
        get_session(app, make_token("HS256", claims | {"https://app.example/user_id": 7}))
    )


def test_any_issuer_and_audience_is_accepted_by_default(make_api):
    app = make_api("HS256")

    for claims in (
        make_claims(),
        make_claims(iss=...),
        make_claims(aud=...),
        make_claims(iss="x", aud=["x", "y"]),
    ):
        assert get_session(app, make_token("HS256", claims)).status_code == 200


def test_one_audience_of_the_token_must_match(make_api):
    app = make_api("HS256", JWT_AUDIENCE=AUDIENCE)

    for audience in (AUDIENCE, [AUDIENCE], ["another", AUDIENCE]):
        token = make_token("HS256", make_claims(aud=audience))
        assert get_session(app, token).status_code == 200


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_clock_difference_of_20_seconds_is_accepted(make_api, claim):
    app = make_api("HS256")

    response = get_session(app, make_token("HS256", make_claims(**{claim: time.time() + 20})))

    assert response.status_code == 200


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_valid_token_uses_the_database(make_offline_app, algorithm):
    """The attacks below rely on this: an accepted attack would get another status than 401."""
    app = make_offline_app(**key_settings(algorithm), WEB_THREADS="1")

    response = send_request(app, bearer(make_token(algorithm)))

    assert response.status_code == 503
    assert not is_database_unused(app)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "authorization",
    [
        case("none", None),
        case("empty", ""),
        case("scheme-alone", "Bearer"),
        case("token-alone", "{token}"),
        case("basic", "Basic dXNlcjpwYXNz"),
        case("basic-with-token", "Basic {token}"),
        case("digest", 'Digest username="a", response="{token}"'),
        case("dpop", "DPoP {token}"),
        case("token", "Token {token}"),
        case("jwt", "JWT {token}"),
        case("negotiate", "Negotiate {token}"),
        case("longer-scheme", "Bearerx {token}"),
        case("tab", "Bearer\t{token}"),
        case("no-space", "Bearer{token}"),
        case("colon", "Bearer: {token}"),
        case("wide-letters", "\uff22earer {token}"),
        case("another-scheme-first", "Basic dXNlcjpwYXNz,Bearer {token}"),
    ],
)
def test_challenge_without_a_bearer_token_has_no_error_code(attack, algorithm, authorization):
    """RFC 6750, section 3.1: without a token, the challenge contains no error code."""
    token = make_token(algorithm)

    response = attack(algorithm, authorization and authorization.replace("{token}", token))

    assert_refused(response, "Bearer")


@pytest.mark.parametrize(
    "options",
    [
        case("query", {"query_string": {"access_token": "{token}"}}),
        case("query-of-another-name", {"query_string": {"token": "{token}", "jwt": "{token}"}}),
        case("cookie", {"headers": {"Cookie": "access_token={token}; Authorization={token}"}}),
        case("form", {"method": "POST", "data": {"access_token": "{token}"}}),
        case("json", {"method": "POST", "json": {"title": "x", "access_token": "{token}"}}),
        case("x-authorization", {"headers": {"X-Authorization": "Bearer {token}"}}),
        case("proxy-authorization", {"headers": {"Proxy-Authorization": "Bearer {token}"}}),
        case("forwarded", {"headers": {"X-Forwarded-Authorization": "Bearer {token}"}}),
        case("access-token", {"headers": {"X-Access-Token": "{token}", "X-Api-Key": "{token}"}}),
        case("user", {"headers": {"X-User-Id": USER, "X-Forwarded-User": USER}}),
        case("remote-user", {"environ_base": {"REMOTE_USER": USER, "AUTH_TYPE": "Bearer"}}),
    ],
)
def test_token_is_read_only_from_the_authorization_header(attack, options):
    options_with_token = json.loads(json.dumps(options).replace("{token}", make_token("HS256")))

    response = attack("HS256", None, **options_with_token)

    assert_refused(response, "Bearer")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("signature_part", ["empty", "valid"])
@pytest.mark.parametrize("none", ["none", "None", "NONE", "nOnE", "none ", "", "null", "no\u0274e"])
def test_unsigned_token_is_refused(attack, algorithm, none, signature_part):
    header, claims, signed = make_token(algorithm, header={"alg": none}, signed_as=algorithm).split(
        "."
    )

    with_dot = attack(
        algorithm, bearer(f"{header}.{claims}.{signed if signature_part == 'valid' else ''}")
    )
    without_dot = attack(algorithm, bearer(f"{header}.{claims}"))

    assert_refused(with_dot)
    assert_refused(without_dot)


@pytest.mark.parametrize(
    "header",
    [
        case("alg-absent", b'{"typ":"JWT"}'),
        case("alg-null", {"alg": None}),
        case("alg-number", {"alg": 256}),
        case("alg-true", {"alg": True}),
        case("alg-list", {"alg": ["{alg}"]}),
        case("alg-object", {"alg": {"{alg}": 1}}),
        case("alg-lower-case", {"alg": "{low}"}),
        case("alg-with-space", {"alg": "{alg} "}),
        case("alg-with-nul", {"alg": "{alg}\0"}),
        case("alg-lone-surrogate", b'{"alg":"\\ud800"}'),
        case("alg-unknown", {"alg": "XS256"}),
        case("alg-class-attribute", {"alg": "__class__"}),
        case("alg-of-encryption", {"alg": "RSA-OAEP", "enc": "A128GCM"}),
        case("alg-dir", {"alg": "dir", "enc": "A256GCM"}),
        case("alg-twice", b'{"alg":"none","alg":"{alg}"}'),
        case("alg-twice-none-last", b'{"alg":"{alg}","alg":"none"}'),
        case("alg-twice-escaped", b'{"alg":"none","\\u0061lg":"{alg}"}'),
        case("kid-twice", b'{"alg":"{alg}","kid":"key-1","kid":"key-2"}'),
        case("empty-object", b"{}"),
        case("list", b'["{alg}"]'),
        case("pairs", b'[["alg","{alg}"]]'),
        case("text", b'"{alg}"'),
        case("number", b"256"),
        case("null", b"null"),
        case("nan", b"NaN"),
        case("empty", b""),
        case("no-json", b"{alg}"),
        case("two-values", b'{"alg":"{alg}"}{"alg":"{alg}"}'),
        case("trailing-comma", b'{"alg":"{alg}",}'),
        case("single-quotes", b"{'alg':'{alg}'}"),
        case("comment", b'{"alg":"{alg}"}//'),
        case("byte-order-mark", b'\xef\xbb\xbf{"alg":"{alg}"}'),
        case("not-utf-8", b'{"alg":"{alg}","x":"\xff"}'),
        case("utf-16", '{"alg":"HS256"}'.encode("utf-16")),
        case("overlong-utf-8", b'{"alg":"{alg}","x":"\xc0\xae"}'),
        case("surrogate-in-utf-8", b'{"alg":"{alg}","x":"\xed\xa0\x80"}'),
        case("control-character", b'{"alg":"{alg}","x":"\0"}'),
        case("not-a-number", b'{"alg":"{alg}","x":NaN}'),
        case("5000-digits", b'{"alg":"{alg}","x":' + b"9" * 5000 + b"}"),
        case("deep-lists", b'{"alg":"{alg}","kid":' + b"[" * 2600 + b"]" * 2600 + b"}"),
        case("deep-objects", b'{"alg":"{alg}","kid":' + b'{"":' * 1000 + b"0" + b"}" * 1001),
        case("deep-unclosed", b"[" * 5000),
        case("crit-unknown", {"crit": ["x"], "x": 1}),
        case("crit-known-claim", {"crit": ["exp"], "exp": 2**32}),
        case("crit-alg", {"crit": ["alg"]}),
        case("crit-missing-name", {"crit": ["http://openbanking.org.uk/iat"]}),
        case("crit-empty", {"crit": []}),
        case("crit-null", {"crit": None}),
        case("crit-text", {"crit": "b64"}),
        case("crit-number", {"crit": 1}),
        case("crit-of-numbers", {"crit": [1, None, {}]}),
        case("crit-object", {"crit": {"x": 1}}),
        case("crit-b64", {"crit": ["b64"], "b64": True}),
        case("b64-false", {"b64": False}),
        case("b64-true", {"b64": True}),
        case("b64-null", {"b64": None}),
        case("typ-number", {"typ": 5}),
        case("cty-list", {"cty": ["JWT"]}),
        case("jwk-text", {"jwk": "x"}),
        case("jwk-null", {"jwk": None}),
        case("jku-number", {"jku": 5}),
        case("x5c-object", {"x5c": {"a": 1}}),
        case("x5c-of-numbers", {"x5c": [1]}),
        case("kid-number", {"kid": 5}),
        case("kid-true", {"kid": True}),
        case("kid-list", {"kid": ["key-1"]}),
        case("kid-object", {"kid": {"key-1": 1}}),
    ],
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_signed_token_with_malformed_header_is_refused(attack, algorithm, header):
    if isinstance(header, bytes):
        header = header.replace(b"{alg}", algorithm.encode())
    else:
        text = json.dumps(header).replace("{alg}", algorithm)
        header = json.loads(text.replace("{low}", algorithm.swapcase()))

    response = attack(algorithm, bearer(make_token(algorithm, header=header)), form="JWK")

    assert_refused(response)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_unencoded_payload_is_refused(attack, algorithm):
    """The token follows RFC 7797: "crit" names "b64", and the payload is signed unencoded."""
    header = b64(json.dumps({"alg": algorithm, "b64": False, "crit": ["b64"]}).encode())
    claims = json.dumps(make_claims())
    signed = b64(sign(algorithm, server_key(algorithm), f"{header}.{claims}".encode()))

    assert_refused(attack(algorithm, bearer(f"{header}.{claims}.{signed}")))
    assert_refused(attack(algorithm, bearer(f"{header}..{signed}")))
    assert_refused(attack(algorithm, bearer(f"{header}.{b64(claims.encode())}.{signed}")))


# The encodings in which an attacker may have the public key.
PUBLIC_BYTES: dict[str, Callable[[Key], bytes]] = {
    "pem": lambda key: key.as_pem(private=False),
    "pem-stripped": lambda key: key.as_pem(private=False).strip(),
    "pem-of-windows": lambda key: key.as_pem(private=False).replace(b"\n", b"\r\n"),
    "pem-in-one-line": lambda key: key.as_pem(private=False).replace(b"\n", b"\\n"),
    "base64": lambda key: b"".join(key.as_pem(private=False).splitlines()[1:-1]),
    "der": lambda key: key.as_der(private=False),
    "jwk": lambda key: json.dumps(key.as_dict(private=False)).encode(),
    "jwk-compact": lambda key: json.dumps(
        key.as_dict(private=False), separators=(",", ":")
    ).encode(),
    "number": lambda key: unb64(key_number(key)),
    "number-encoded": lambda key: key_number(key).encode(),
}


def key_number(key: Key) -> str:
    """Return the number that identifies a public key: the modulus, or the x of the point."""
    public = key.as_dict(private=False)
    return public["n" if isinstance(key, RSAKey) else "x"]


@pytest.mark.parametrize("form", PUBLIC_BYTES)
@pytest.mark.parametrize("hash_name", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_public_key_is_not_accepted_as_hmac_secret(attack, algorithm, hash_name, form):
    key = PUBLIC_BYTES[form](server_key(algorithm))

    assert_refused(attack(algorithm, bearer(make_token(hash_name, key=key))))
    assert_refused(attack(algorithm, bearer(make_token(hash_name, key=key)), form="JWK"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("key", [b"", b"\0", b"secret", b"0" * 32, b"None", b"null"])
def test_trivial_hmac_secret_is_refused(attack, algorithm, key):
    response = attack(algorithm, bearer(make_token("HS256", key=key)))

    assert_refused(response)


TOKEN_ALGORITHMS = [
    "EdDSA",
    "Ed25519",
    "ES256",
    "ES384",
    "ES512",
    "RS256",
    "PS256",
    "HS256",
    "HS384",
    "HS512",
]
WRONG_ALGORITHMS = [
    (algorithm, token_algorithm)
    for algorithm, allowed in {
        "EdDSA": {"EdDSA", "Ed25519"},
        "ES256": {"ES256"},
        "RS256": {"RS256", "PS256"},
        "HS256": {"HS256"},
    }.items()
    for token_algorithm in TOKEN_ALGORITHMS
    if token_algorithm not in allowed
]


@pytest.mark.parametrize(("algorithm", "token_algorithm"), WRONG_ALGORITHMS)
def test_algorithm_of_another_key_type_is_refused(attack, algorithm, token_algorithm):
    """One token is signed by the attacker's key, the other by the server's with a wrong "alg"."""
    attackers = make_token(token_algorithm, key=attacker_key(token_algorithm))
    mislabelled = make_token(algorithm, header={"alg": token_algorithm})

    assert_refused(attack(algorithm, bearer(attackers)))
    assert_refused(attack(algorithm, bearer(mislabelled)))


@pytest.mark.parametrize("hash_name", ["HS384", "HS512"])
def test_hmac_secret_verifies_only_hs256(attack, hash_name):
    assert_refused(attack("HS256", bearer(make_token(hash_name, key=SECRET.encode()))))


@pytest.mark.parametrize("curve", ["ES384", "ES512", "ES256K"])
def test_signature_on_another_curve_is_refused(attack, curve):
    key = attacker_key(curve)
    header, claims, _ = make_token("ES256").split(".")
    message = f"{header}.{claims}".encode()
    der = key.private_key.sign(message, ec.ECDSA(hashes.SHA256()))
    r, s = utils.decode_dss_signature(der)
    size = (key.private_key.key_size + 7) // 8
    full = r.to_bytes(size, "big") + s.to_bytes(size, "big")

    for signed in (full, full[:64], full[-64:]):
        assert_refused(attack("ES256", bearer(f"{header}.{claims}.{b64(signed)}")))


@pytest.mark.parametrize(
    ("r", "s"),
    [
        case("r-and-s-0", 0, 0),
        case("r-0", 0, 1),
        case("s-0", 1, 0),
        case("r-and-s-1", 1, 1),
        case("r-and-s-n", ORDER_OF_P256, ORDER_OF_P256),
        case("r-n", ORDER_OF_P256, 1),
        case("s-n", 1, ORDER_OF_P256),
        case("r-n-s-0", ORDER_OF_P256, 0),
        case("r-0-s-n", 0, ORDER_OF_P256),
        case("n-minus-1", ORDER_OF_P256 - 1, ORDER_OF_P256 - 1),
        case("n-plus-1", ORDER_OF_P256 + 1, ORDER_OF_P256 + 1),
        case("all-ones", 2**256 - 1, 2**256 - 1),
    ],
)
def test_ecdsa_signature_of_special_numbers_is_refused(attack, r, s):
    """Some verifiers accepted such signatures for every message (CVE-2022-21449)."""
    header, claims, _ = make_token("ES256").split(".")
    signed = r.to_bytes(32, "big") + s.to_bytes(32, "big")

    assert_refused(attack("ES256", bearer(f"{header}.{claims}.{b64(signed)}")))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "change",
    [
        case("empty", lambda _: b""),
        case("one-byte", lambda sig: sig[:1]),
        case("first-half", lambda sig: sig[: len(sig) // 2]),
        case("second-half", lambda sig: sig[len(sig) // 2 :]),
        case("without-its-last-byte", lambda sig: sig[:-1]),
        case("without-its-first-byte", lambda sig: sig[1:]),
        case("with-a-byte-more", lambda sig: sig + b"\0"),
        case("with-a-byte-before", lambda sig: b"\0" + sig),
        case("twice", lambda sig: sig * 2),
        case("first-bit", lambda sig: bytes([sig[0] ^ 0x80]) + sig[1:]),
        case("last-bit", lambda sig: sig[:-1] + bytes([sig[-1] ^ 1])),
        case("zeros", lambda sig: bytes(len(sig))),
        case("ones", lambda sig: b"\xff" * len(sig)),
        case("reversed", lambda sig: sig[::-1]),
        case("hexadecimal", lambda sig: sig.hex().encode()),
        case("encoded-twice", lambda sig: b64(sig).encode()),
        case("long", lambda sig: sig * 40),
    ],
)
def test_changed_signature_is_refused(attack, algorithm, change):
    header, claims, signed = make_token(algorithm).split(".")

    response = attack(algorithm, bearer(f"{header}.{claims}.{b64(change(unb64(signed)))}"))

    assert_refused(response)


def test_signature_in_der_is_refused(attack):
    """The signature is valid, but RFC 7518, section 3.4, requires another encoding."""
    header, claims, _ = make_token("ES256").split(".")
    message = f"{header}.{claims}".encode()
    der = server_key("ES256").private_key.sign(message, ec.ECDSA(hashes.SHA256()))

    assert_refused(attack("ES256", bearer(f"{header}.{claims}.{b64(der)}")))


def set_unused_bits(segment: str) -> str:
    """Set the unused bits at the end; a lenient decoder then returns the same bytes."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(segment) % 4
    return segment[:-1] + alphabet[alphabet.index(segment[-1]) + 1]


def claims_of_length(rest: int, **claims: Any) -> dict[str, Any]:
    """Return claims whose segment has `rest` characters more than a multiple of four."""
    padded = (make_claims(pad="x" * n, **claims) for n in range(3))
    return next(c for c in padded if len(b64(json.dumps(c).encode())) % 4 == rest)


def make_token_with_symbols(algorithm: str) -> str:
    """Return a token whose claims and signature contain "-" or "_" of the URL-safe alphabet."""
    for number in range(1000):
        token = make_token(
            algorithm, json.dumps(make_claims(pad=f"\u00ff?>{number}"), ensure_ascii=False).encode()
        )
        _, claims, signed = token.split(".")
        if {"-", "_"} & set(claims) and {"-", "_"} & set(signed):
            return token
    raise AssertionError("no token contains these characters")


def to_standard_alphabet(token: str, part: int) -> str:
    parts = token.split(".")
    parts[part] = parts[part].replace("-", "+").replace("_", "/")
    assert set(parts[part]) & {"+", "/"}
    return ".".join(parts)


def change_part(token: str, part: int, change: Callable[[str], str]) -> str:
    parts = token.split(".")
    parts[part] = change(parts[part])
    return ".".join(parts)


ENCODINGS: dict[str, Callable[[str], str]] = {
    "padded-signature": lambda a: make_token(a) + "=",
    "padded-signature-twice": lambda a: make_token(a) + "==",
    "padded-header": lambda a: change_part(make_token(a), 0, lambda s: s + "="),
    "padded-claims": lambda a: change_part(
        make_token(a, claims_of_length(3)), 1, lambda s: s + "="
    ),
    "padded-claims-twice": lambda a: change_part(
        make_token(a, claims_of_length(2)), 1, lambda s: s + "=="
    ),
    "escaped-padding": lambda a: make_token(a) + "%3D",
    "standard-alphabet-in-claims": lambda a: to_standard_alphabet(make_token_with_symbols(a), 1),
    "standard-alphabet-in-signature": lambda a: to_standard_alphabet(make_token_with_symbols(a), 2),
    "unused-bits-in-signature": lambda a: change_part(make_token(a), 2, set_unused_bits),
    "space-before": lambda a: " \x0b" + make_token(a),
    "space-after": lambda a: make_token(a) + " ",
    "space-in-claims": lambda a: change_part(make_token(a), 1, lambda s: s[:9] + " " + s[9:]),
    "space-around-dot": lambda a: make_token(a).replace(".", " . "),
    "tab-after": lambda a: make_token(a) + "\t",
    "line-feed-after": lambda a: make_token(a) + "\n",
    "line-feed-in-signature": lambda a: change_part(
        make_token(a), 2, lambda s: s[:9] + "\n" + s[9:]
    ),
    "folded": lambda a: make_token(a).replace(".", ".\r\n "),
    "carriage-return-after": lambda a: make_token(a) + "\r",
    "no-break-space-after": lambda a: make_token(a) + "\xa0",
    "line-separator-after": lambda a: make_token(a) + "\u2028",
    "nul-after": lambda a: make_token(a) + "\0",
    "nul-and-more": lambda a: make_token(a) + "\0" + make_token(a),
    "comma-after": lambda a: make_token(a) + ",",
    "quoted": lambda a: f'"{make_token(a)}"',
    "in-angle-brackets": lambda a: f"<{make_token(a)}>",
    "fullwidth-letter": lambda a: "\uff45" + make_token(a)[1:],
    "cyrillic-letter": lambda a: "\u0435" + make_token(a)[1:],
    "dotless-i": lambda a: make_token(a) + "\u0131",
    "other-digits": lambda a: make_token(a) + "\u0664",
    "ideographic-full-stop": lambda a: make_token(a).replace(".", "\u3002"),
    "one-dot-leader": lambda a: make_token(a).replace(".", "\u2024"),
    "zero-width-space": lambda a: make_token(a).replace(".", "\u200b."),
    "combining-mark": lambda a: make_token(a) + "\u0301",
    "no-part": lambda _: ".",
    "one-part": lambda a: make_token(a).replace(".", ""),
    "two-parts": lambda a: make_token(a).rpartition(".")[0],
    "two-parts-and-a-dot": lambda a: make_token(a).rpartition(".")[0] + ".",
    "no-header": lambda a: "." + make_token(a).partition(".")[2],
    "no-claims": lambda a: change_part(make_token(a), 1, lambda _: ""),
    "only-dots": lambda _: "..",
    "four-parts": lambda a: make_token(a) + ".e30",
    "four-parts-the-last-empty": lambda a: make_token(a) + ".",
    "five-parts": lambda a: make_token(a) + ".e30.e30",
    "encrypted": lambda _: ".".join(
        [b64(b'{"alg":"dir","enc":"A256GCM"}'), "", b64(bytes(12)), b64(bytes(99)), b64(bytes(16))]
    ),
    "json-serialization": lambda a: json.dumps(
        dict(zip(("protected", "payload", "signature"), make_token(a).split("."), strict=True))
    ),
    "impossible-length": lambda a: change_part(
        make_token(a, claims_of_length(0)), 1, lambda s: s + "A"
    ),
    "escaped-percent": lambda a: make_token(a).replace(".", "%2E"),
    "twice-with-a-comma": lambda a: f"{make_token(a)},{make_token(a)}",
    "two-fields": lambda a: f"{make_token(a)},Bearer {make_token(a)}",
    "two-fields-with-a-space": lambda a: f"{make_token(a)}, Bearer {make_token(a)}",
    "two-fields-the-second-basic": lambda a: f"{make_token(a)},Basic dXNlcjpwYXNz",
    "two-fields-the-first-bad": lambda a: f"x.y.z,Bearer {make_token(a)}",
    "two-tokens": lambda a: f"{make_token(a)} {make_token(a)}",
    "scheme-twice": lambda a: f"Bearer {make_token(a)}",
    "parameters": lambda a: f'{make_token(a)}, realm="x"',
    "named": lambda a: f"token={make_token(a)}",
    "undefined": lambda _: "undefined",
    "null": lambda _: "null",
    "8-kib": lambda a: make_token(a, make_claims(pad="x" * 6200)),
    "a-megabyte": lambda a: make_token(a, make_claims(pad="x" * 2**20)),
    "a-megabyte-of-dots": lambda _: "." * 2**20,
    "a-megabyte-in-the-header": lambda a: make_token(a, header={"pad": "x" * 2**20}),
    "a-megabyte-of-signature": lambda a: make_token(a) + "A" * 2**20,
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("encoded", [case(name, make) for name, make in ENCODINGS.items()])
def test_token_in_another_encoding_is_refused(attack, algorithm, encoded):
    """Each value contains a valid token, or a text that a lenient parser accepts as one."""
    assert_refused(attack(algorithm, bearer(encoded(algorithm))))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("rest", [2, 3])
def test_claims_with_unused_bits_set_are_refused(attack, algorithm, rest):
    """The signature covers the segment as it is sent, so that only the encoding is wrong."""
    header, claims, _ = make_token(algorithm, claims_of_length(rest)).split(".")
    claims = set_unused_bits(claims)
    signed = sign(algorithm, server_key(algorithm), f"{header}.{claims}".encode())

    assert_refused(attack(algorithm, bearer(f"{header}.{claims}.{b64(signed)}")))


@pytest.fixture
def listener():
    """A listening socket of the attacker; the application must not connect to it."""
    with socket.create_server(("127.0.0.1", 0)) as server_socket:
        server_socket.settimeout(0)
        yield server_socket


def make_certificate(key: Key) -> str:
    """Return a certificate that the attacker signed, in base64 as in the header "x5c"."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.private_key.public_key(), 1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key.private_key, None if isinstance(key, OKPKey) else hashes.SHA256())
    )
    return base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()


@pytest.mark.parametrize(
    "names",
    [
        "jwk",
        "jwk+kid",
        "jwk-private",
        "jku",
        "jku+kid",
        "x5u",
        "x5c",
        "x5c+x5t",
        "jku+jwk+x5u+x5c+kid",
    ],
)
@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_key_in_the_header_is_not_used(attack, listener, algorithm, names):
    key = attacker_key(algorithm)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/keys"
    members = {
        "jwk": key.as_dict(private=False),
        "jwk-private": key.as_dict(private=True),
        "jku": url,
        "x5u": url,
        "x5c": [make_certificate(key)],
        "x5t": b64(hashlib.sha1(base64.b64decode(make_certificate(key))).digest()),
        "kid": "key-1",
    }
    header = {name.removesuffix("-private"): members[name] for name in names.split("+")}

    assert_refused(attack(algorithm, bearer(make_token(algorithm, header=header, key=key))))
    assert_refused(
        attack(algorithm, bearer(make_token(algorithm, header=header, key=key)), form="JWK")
    )

    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize("name", ["jwk", "kid", "x5c", "jku"])
def test_secret_in_the_header_is_not_used(attack, name):
    key = attacker_key("HS256")
    members = {
        "jwk": key.as_dict(private=True),
        "kid": "key-1",
        "x5c": [SECRET],
        "jku": NO_DATABASE,
    }
    header = {name: members[name]}

    for algorithm in ALGORITHMS:
        assert_refused(attack(algorithm, bearer(make_token("HS256", header=header, key=key))))


@pytest.mark.parametrize(
    ("kid", "secret"),
    [
        case("null-device", "/dev/null", b""),
        case("path", "../../../../../../dev/null", b""),
        case("encoded-path", "..%2f..%2f..%2fdev%2fnull", b""),
        case("windows-path", "..\\..\\windows\\win.ini", b""),
        case("file-of-known-content", "/proc/sys/kernel/randomize_va_space", b"2\n"),
        case("url", "http://127.0.0.1:1/key", b""),
        case("file-url", "file:///dev/null", b""),
        case("sql", "x' UNION SELECT 'attacker'; --", b"attacker"),
        case("sql-drop", "'; DROP TABLE users; --", b"attacker"),
        case("command", "key-1 | echo attacker", b"attacker\n"),
        case("template", "{{ 7 * 7 }}${7*7}%(asctime)s{0}", b"49"),
        case("ldap", "*)(uid=*", b""),
        case("nul", "key-1\0", b""),
        case("nul-alone", "\0", b""),
        case("empty", "", b""),
        case("space", "key-1 ", b""),
        case("case", "KEY-1", b""),
        case("look-alike", "key\u20101", b""),
        case("prefix", "key", b""),
        case("line-break", "key-1\r\nX-User-Id: 1", b""),
        case("very-long", "k" * 5000, b""),
        case("lone-surrogate", "\udfff", b""),
        case("attribute", "__class__", b""),
    ],
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_key_id_is_only_compared(attack, algorithm, kid, secret):
    """Refuse a token with a known secret, and a token of the server's key with another key id."""
    attackers = make_token("HS256", header={"kid": kid}, key=secret)
    misnamed = make_token(algorithm, header={"kid": kid})

    assert_refused(attack(algorithm, bearer(attackers), form="JWK"))
    if algorithm != "HS256":  # its key has no id
        assert_refused(attack(algorithm, bearer(misnamed), form="JWK"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_token_of_another_key_is_refused(attack, algorithm):
    token = make_token(algorithm, key=attacker_key(algorithm))

    assert_refused(attack(algorithm, bearer(token)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("index", "other"),
    [case("header", 0, {"typ": "JWT"}), case("claims", 1, make_claims(sub=OTHER))],
)
def test_changed_header_or_claims_are_refused(attack, algorithm, index, other):
    token = make_token(algorithm).split(".")
    token[index] = b64(json.dumps({"alg": algorithm} | other).encode())

    response = attack(algorithm, bearer(".".join(token)), path=f"/api/{OTHER}/tasks")

    assert_refused(response)


def test_combined_parts_of_two_tokens_are_refused(attack):
    first = make_token("HS256").split(".")
    second = make_token("HS256", make_claims(sub=OTHER, exp=2**32 + 1)).split(".")

    assert_refused(attack("HS256", bearer(".".join([first[0], second[1], first[2]]))))
    assert_refused(attack("HS256", bearer(".".join([first[0], first[1], second[2]]))))


def raw_claims(text: str) -> bytes:
    """Return valid claims in which this JSON text replaces "sub" and "exp"."""
    rest = json.dumps(make_claims(sub=..., exp=...))
    return f"{rest[:-1]},{text}}}".encode()


NOW = int(time.time())

INVALID_CLAIMS = {
    "list": b"[]",
    "pairs": json.dumps(list(make_claims().items())).encode(),
    "text": json.dumps(json.dumps(make_claims())).encode(),
    "number": b"5",
    "null": b"null",
    "true": b"true",
    "empty": b"",
    "empty-object": b"{}",
    "no-json": b"sub=1",
    "two-values": json.dumps(make_claims()).encode() * 2,
    "nested-token": b"eyJhbGciOiJub25lIn0.e30.",
    "not-utf-8": json.dumps(make_claims(pad="X")).encode().replace(b"X", b"\xff"),
    "utf-16": json.dumps(make_claims()).encode("utf-16"),
    "utf-32": json.dumps(make_claims()).encode("utf-32-le"),
    "byte-order-mark": b"\xef\xbb\xbf" + json.dumps(make_claims()).encode(),
    "overlong-utf-8": json.dumps(make_claims(pad="X")).encode().replace(b"X", b"\xc0\x80"),
    "control-character": json.dumps(make_claims(pad="X")).encode().replace(b"X", b"\n"),
    "deep-lists": raw_claims(f'"exp":{2**32},"sub":{"[" * 2500}{"]" * 2500}'),
    "deep-objects": raw_claims(f'"exp":{2**32},"sub":' + '{"":' * 1000 + "0" + "}" * 1000),
    "deep-unclosed": b'{"a":' * 1200,
    "sub-twice": raw_claims(f'"exp":{2**32},"sub":"{OTHER}","sub":"{USER}"'),
    "sub-twice-escaped": raw_claims(f'"exp":{2**32},"sub":"{OTHER}","\\u0073ub":"{USER}"'),
    "exp-twice": raw_claims(f'"sub":"{USER}","exp":1,"exp":{2**32}'),
    "exp-twice-expired-last": raw_claims(f'"sub":"{USER}","exp":{2**32},"exp":1'),
    "iss-twice": raw_claims(f'"sub":"{USER}","exp":{2**32},"iss":"{ISSUER}"'),
    "aud-twice": raw_claims(f'"sub":"{USER}","exp":{2**32},"aud":"{AUDIENCE}"'),
    "nested-twice": raw_claims(f'"sub":"{USER}","exp":{2**32},"x":{{"a":1,"a":2}}'),
    "sub-absent": make_claims(sub=...),
    "sub-null": make_claims(sub=None),
    "sub-number": make_claims(sub=5),
    "sub-float": make_claims(sub=5.0),
    "sub-true": make_claims(sub=True),
    "sub-list": make_claims(sub=[USER]),
    "sub-object": make_claims(sub={"id": USER}),
    "sub-empty": make_claims(sub=""),
    "sub-too-long": make_claims(sub="x" * 256),
    "sub-far-too-long": make_claims(sub="x" * 5000),
    "sub-lone-surrogate": make_claims(sub="\ud800"),
    "sub-low-surrogate-first": make_claims(sub="\udc00\ud800"),
    "sub-uuid-and-surrogate": make_claims(sub=USER + "\udfff"),
    "sub-in-upper-case": make_claims(sub=..., SUB=USER),
    "sub-with-space": make_claims(sub=..., **{"sub ": USER}),
    "exp-absent": make_claims(exp=...),
    "exp-null": make_claims(exp=None),
    "exp-past": make_claims(exp=NOW - 3600),
    "exp-just-past": make_claims(exp=NOW - 1),
    "exp-now": make_claims(exp=NOW),
    "exp-zero": make_claims(exp=0),
    "exp-negative": make_claims(exp=-1),
    "exp-very-negative": make_claims(exp=-(10**400)),
    "exp-text": make_claims(exp=str(2**32)),
    "exp-date": make_claims(exp="2099-01-01T00:00:00Z"),
    "exp-empty": make_claims(exp=""),
    "exp-true": make_claims(exp=True),
    "exp-false": make_claims(exp=False),
    "exp-list": make_claims(exp=[2**32]),
    "exp-object": make_claims(exp={}),
    "exp-huge": make_claims(exp=10**400),
    "exp-milliseconds": make_claims(exp=2**32 * 1000),
    "exp-beyond-dates": make_claims(exp=1e300),
    "exp-of-5000-digits": raw_claims(f'"sub":"{USER}","exp":{"9" * 5000}'),
    "exp-overflow": raw_claims(f'"sub":"{USER}","exp":1e400'),
    "exp-nan": raw_claims(f'"sub":"{USER}","exp":NaN'),
    "exp-infinity": raw_claims(f'"sub":"{USER}","exp":Infinity'),
    "exp-minus-infinity": raw_claims(f'"sub":"{USER}","exp":-Infinity'),
    "exp-hexadecimal": raw_claims(f'"sub":"{USER}","exp":0xffffffff'),
    "exp-leading-zero": raw_claims(f'"sub":"{USER}","exp":04294967296'),
    "exp-other-digits": raw_claims(f'"sub":"{USER}","exp":\u0664\u0664\u0664\u0664\u0664'),
    "nbf-future": make_claims(nbf=NOW + 3600),
    "nbf-huge": make_claims(nbf=10**400),
    "nbf-overflow": raw_claims(f'"sub":"{USER}","exp":{2**32},"nbf":1e400'),
    "nbf-nan": raw_claims(f'"sub":"{USER}","exp":{2**32},"nbf":NaN'),
    "nbf-text": make_claims(nbf="0"),
    "nbf-true": make_claims(nbf=True),
    "nbf-null": make_claims(nbf=None),
    "nbf-list": make_claims(nbf=[0]),
    "iat-future": make_claims(iat=NOW + 3600),
    "iat-huge": make_claims(iat=10**400),
    "iat-text": make_claims(iat="yesterday"),
    "iat-null": make_claims(iat=None),
    "iat-false": make_claims(iat=False),
    "iss-absent": make_claims(iss=...),
    "iss-null": make_claims(iss=None),
    "iss-empty": make_claims(iss=""),
    "iss-another": make_claims(iss="https://attacker.example"),
    "iss-longer": make_claims(iss=f"{ISSUER}/"),
    "iss-shorter": make_claims(iss=ISSUER[:-1]),
    "iss-prefix-of-a-host": make_claims(iss=f"{ISSUER}.attacker.example"),
    "iss-substring": make_claims(iss=f"https://attacker.example/{ISSUER}"),
    "iss-host-alone": make_claims(iss="https://issuer.example"),
    "iss-case": make_claims(iss=ISSUER.upper()),
    "iss-http": make_claims(iss=ISSUER.replace("https", "http")),
    "iss-space": make_claims(iss=f"{ISSUER} "),
    "iss-look-alike": make_claims(iss=ISSUER.replace("e", "\u0435")),
    "iss-nul": make_claims(iss=f"{ISSUER}\0"),
    "iss-list": make_claims(iss=[ISSUER]),
    "iss-object": make_claims(iss={ISSUER: 1}),
    "iss-number": make_claims(iss=0),
    "iss-true": make_claims(iss=True),
    "aud-absent": make_claims(aud=...),
    "aud-null": make_claims(aud=None),
    "aud-empty": make_claims(aud=""),
    "aud-empty-list": make_claims(aud=[]),
    "aud-another": make_claims(aud="another-api"),
    "aud-longer": make_claims(aud=f"{AUDIENCE}-2"),
    "aud-substring": make_claims(aud=f"not-{AUDIENCE}-at-all"),
    "aud-shorter": make_claims(aud=AUDIENCE[:-1]),
    "aud-case": make_claims(aud=AUDIENCE.upper()),
    "aud-list-without-this-audience": make_claims(aud=["another-api", "third-api"]),
    "aud-list-of-substrings": make_claims(aud=[f"{AUDIENCE}-2", AUDIENCE[:-1]]),
    "aud-list-with-numbers": make_claims(aud=[AUDIENCE, 5]),
    "aud-list-with-null": make_claims(aud=[AUDIENCE, None]),
    "aud-list-in-a-list": make_claims(aud=[[AUDIENCE]]),
    "aud-object": make_claims(aud={AUDIENCE: True}),
    "aud-number": make_claims(aud=0),
    "aud-true": make_claims(aud=True),
    "aud-space-separated": make_claims(aud=f"another-api {AUDIENCE}"),
    "aud-with-commas": make_claims(aud=f"another-api,{AUDIENCE}"),
    "jti-number": make_claims(jti=5),
}


@pytest.mark.parametrize("claims", [case(name, claims) for name, claims in INVALID_CLAIMS.items()])
def test_signed_token_with_invalid_claims_is_refused(attack, claims):
    assert_refused(attack("ES256", bearer(make_token("ES256", claims))))


@pytest.mark.parametrize("part", ["header", "claims"])
def test_nested_json_is_accepted_or_refused_at_every_depth(make_offline_app, part):
    """Depths around the limit of Python's parsers: no depth causes an error of the server."""
    app = make_offline_app(**key_settings("HS256"))
    statuses = []

    for depth in [*range(100, 900, 50), *range(900, 1000), *range(1000, 2800, 200)]:
        nested = b'"x":' + b"[" * depth + b"]" * depth + b"}"
        parts = {
            "header": b'{"alg":"HS256",',
            "claims": json.dumps(make_claims()).encode()[:-1] + b",",
        }
        token = make_token("HS256", **{part: parts[part] + nested})
        statuses.append(get_session(app, token).status_code)

    assert statuses[0] == 200
    assert set(statuses) <= {200, 401}
    assert statuses == sorted(statuses)


VARIANTS = {
    "claims-of-another": lambda t: change_part(
        t, 1, lambda _: b64(json.dumps(make_claims(sub=OTHER)).encode())
    ),
    "other-header": lambda t: change_part(t, 0, lambda _: b64(b'{"alg":"none"}')),
    "no-signature": lambda t: change_part(t, 2, lambda _: ""),
    "shorter-signature": lambda t: t[:-2],
    "longer-signature": lambda t: t + "AA",
    "other-signature": lambda t: change_part(t, 2, lambda s: ("B" if s[0] == "A" else "A") + s[1:]),
    "unused-bits": lambda t: change_part(t, 2, set_unused_bits),
    "other-case": lambda t: t.swapcase(),
    "padded": lambda t: t + "=",
}


@pytest.mark.parametrize("change", [case(name, change) for name, change in VARIANTS.items()])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_variant_of_a_cached_token_is_refused(make_offline_app, algorithm, change):
    app = make_offline_app(**key_settings(algorithm))
    token = make_token(algorithm)

    before = get_session(app, token)
    variant = get_session(app, change(token))
    after = get_session(app, token)

    assert before.status_code == after.status_code == 200
    assert_refused(variant)


def test_cached_token_expires(make_offline_app):
    app = make_offline_app(**key_settings("HS256"))
    expires_at = time.time() + 1.2
    token = make_token("HS256", make_claims(exp=expires_at))

    before = get_session(app, token)
    time.sleep(max(0, expires_at - time.time()) + 0.05)
    after = get_session(app, token)

    assert before.status_code == 200
    assert_refused(after)


def test_cached_token_is_not_verified_again():
    settings = load_settings({"DATABASE_URL": NO_DATABASE} | key_settings("RS256"))
    verifier = Verifier(settings, make_keys(settings, Metrics()))
    token = make_token("RS256")

    first, second = verifier.identify(token), verifier.identify(token)

    assert first is second


def test_token_cache_is_bounded_and_keeps_users_apart():
    """Eight threads verify more tokens than the cache can hold, valid and forged ones in turn."""
    settings = load_settings({"DATABASE_URL": NO_DATABASE} | key_settings("HS256"))
    verifier = Verifier(settings, make_keys(settings, Metrics()), capacity=5)
    tokens = {
        make_token("HS256", make_claims(sub=str(user))): user
        for user in map(uuid.UUID, map(numbered_user, range(20)))
    }
    forged = [
        make_token("HS256", make_claims(sub=numbered_user(n)), key=b"x" * 32) for n in range(20)
    ]
    barrier = threading.Barrier(8)
    sizes = []

    def verify(shift: int) -> None:
        barrier.wait(timeout=10)
        order = list(tokens.items())[shift:] + list(tokens.items())[:shift]
        for _ in range(20):
            for (token, user), forged_token in zip(order, forged, strict=True):
                assert verifier.identify(token).user_id == user
                with pytest.raises(Problem):
                    verifier.identify(forged_token)
                sizes.append(len(verifier._verified))

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(verify, shift) for shift in range(8)]:
            future.result(timeout=60)

    assert len(sizes) == 8 * 20 * 20
    assert max(sizes) == 5


def numbered_user(number: int) -> str:
    return f"019aa5c8-6f3a-7cc4-9a51-{number:012x}"


# Routes that need no token. Before you add one, consider which clients can read it.
OPEN_ROUTES = {"/", "/livez", "/health", "/openapi.json", "/docs"}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "BREW"]


def is_open(rule: str) -> bool:
    return rule in OPEN_ROUTES or rule.startswith(("/docs/", "/problems/"))


def fill_path(rule, user_id: str = USER, task_id: str = OTHER) -> str:
    path = rule.rule.replace("<id:user_id>", user_id).replace("<text:label>", "errand")
    path = re.sub("<id:(task|list)_id>", task_id, path)
    assert "<" not in path, rule
    return path


@pytest.fixture
def offline_app(make_offline_app) -> Flask:
    """An application without a database, whose pool is still closed."""
    # The port distinguishes this application from those of other tests, which open their pools.
    return make_offline_app(**key_settings("HS256"), JWT_USER_CLAIM="sub", PORT="8001")


def test_every_route_except_the_open_routes_needs_a_token(offline_app):
    for rule in offline_app.url_map.iter_rules():
        for method in METHODS:
            if is_open(rule.rule) and method in rule.methods:
                continue
            response = send_request(offline_app, None, fill_path(rule), method)
            assert response.status_code == 401, (method, rule)
            assert response.headers["WWW-Authenticate"] == "Bearer", (method, rule)

    assert is_database_unused(offline_app)


def test_open_routes_need_no_token(make_offline_app):
    app = make_offline_app(**key_settings("HS256"), PORT="8002")

    statuses = {
        rule.rule: send_request(app, None, rule.rule).status_code
        for rule in app.url_map.iter_rules()
        if is_open(rule.rule)
    }

    assert statuses.keys() >= OPEN_ROUTES
    assert {path for path, status in statuses.items() if status != 200} == {"/health"}
    assert statuses["/health"] == 503


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "path",
    [
        "/api",
        "/api/",
        "/api/session/",
        "/api/unknown",
        f"/api/{USER}/",
        f"/api/{USER}/tasks/",
        f"/api/{USER}/unknown",
        "/admin",
        "/favicon.ico",
        "/static/x",
        "/livez/",
        "/livezz",
        "/LIVEZ",
        "/docs/",
        "/docs/unknown.js",
        "/problems",
        "/problems/",
        "/problems/unknown",
        "/docs/../api/session",
        "/docs/%2e%2e/api/session",
        "/openapi.json/x",
        "/livez%2F..%2Fapi%2Fsession",
        "/livez;/../api/session",
        "/livez%00",
        "/%ff",
        "//livez/x",
    ],
)
def test_unknown_path_needs_a_token(offline_app, method, path):
    """A client without a token cannot find out which paths exist."""
    response = send_request(offline_app, None, path, method)

    assert response.status_code == 401
    assert is_database_unused(offline_app)


BODIES = {
    "no-body": {},
    "good-body": {"json": {"title": "x"}},
    "not-json": {"data": b"{", "content_type": "application/json"},
    "another-type": {"data": b"x", "content_type": "text/plain"},
    "too-large": {"data": b" " * (256 * 1024 + 1), "content_type": "application/json"},
    "unknown-query": {"query_string": {"unknown": "1"}},
}


@pytest.mark.parametrize("body", [case(name, body) for name, body in BODIES.items()])
@pytest.mark.parametrize(
    "path_user",
    [OTHER, OTHER.upper(), USER[:-1], f"{USER}0", "x", "%00", "%ff", "null", USER.replace("-", "")],
)
def test_path_of_another_user_is_refused_before_other_checks(offline_app, path_user, body):
    authorization = bearer(make_token("HS256"))
    bodies = set()

    for rule in offline_app.url_map.iter_rules():
        if "<id:user_id>" not in rule.rule:
            continue
        for method in METHODS:
            response = send_request(
                offline_app, authorization, fill_path(rule, path_user), method, **body
            )
            assert response.status_code == 404, (method, rule)
            if method != "HEAD":
                bodies.add(response.text.replace(response.headers["X-Request-Id"], "ID"))

    assert len(bodies) == 1
    assert is_database_unused(offline_app)


def test_path_of_the_user_is_served(offline_app, make_offline_app):
    """The same requests with the user's own path pass the checks above."""
    app = make_offline_app(**key_settings("HS256"), PORT="8003")
    authorization = bearer(make_token("HS256"))

    assert send_request(app, authorization, PATH, "BREW").status_code == 405
    assert send_request(app, authorization, PATH).status_code == 503
    assert is_database_unused(offline_app)


def test_checks_run_in_the_documented_order(offline_app):
    """Each request corrects one fault of the request before it."""
    authorization = bearer(make_token("HS256"))
    large = {"data": b"x" * (256 * 1024 + 1), "content_type": "text/plain"}
    other_path, own_path = f"/api/{OTHER}/tasks/x?y=1", f"/api/{USER}/tasks/x?y=1"
    json_type = {"content_type": "application/json"}

    statuses = [
        send_request(offline_app, *arguments, **options).status_code
        for arguments, options in [
            ((None, other_path, "POST"), large),
            ((bearer("x.y.z"), other_path, "POST"), large),
            ((authorization, other_path, "POST"), large),
            ((authorization, own_path, "POST"), large),
            ((authorization, own_path, "PUT"), large),
            ((authorization, own_path, "PUT"), large | json_type),
            ((authorization, own_path, "PUT"), {"data": b"{"} | json_type),
            ((authorization, own_path, "PUT"), {"data": b"{}"} | json_type),
        ]
    ]

    assert statuses == [401, 401, 404, 405, 415, 413, 400, 422]
    assert is_database_unused(offline_app)


# Routes that accept the id of a deleted task.
ROUTES_OF_DELETED_TASKS = {"/api/<id:user_id>/tasks/<id:task_id>/restore"}


@pytest.mark.parametrize("match", [None, "*", etag(1), f"{etag(2)}, {etag(1)}"])
def test_foreign_deleted_and_unknown_tasks_get_the_same_404(make_api, match):
    """Body and headers are equal except for the request id and the date."""
    app = make_api("HS256")
    owner, other_owner = str(uuid.uuid4()), str(uuid.uuid4())
    authorization = {
        user: bearer(make_token("HS256", make_claims(sub=user))) for user in (owner, other_owner)
    }
    tasks = {
        user: send_request(
            app, authorization[user], f"/api/{user}/tasks", "POST", json={"title": "x"}
        ).json
        for user in (owner, other_owner)
    }
    deleted = send_request(
        app, authorization[owner], f"/api/{owner}/tasks/{tasks[owner]['id']}", "DELETE"
    )
    ids = [tasks[other_owner]["id"], tasks[owner]["id"], str(uuid.uuid4())]
    headers = {} if match is None else {"If-Match": match}

    results = {
        (rule.rule, method): [
            comparable_parts(
                send_request(
                    app,
                    authorization[owner],
                    fill_path(rule, owner, task_id),
                    method,
                    **example_body(method),
                    headers=headers,
                )
            )
            for task_id in ids
        ]
        for rule in app.url_map.iter_rules()
        if "<id:task_id>" in rule.rule and rule.rule not in ROUTES_OF_DELETED_TASKS
        for method in rule.methods - {"OPTIONS"}
    }

    assert deleted.status_code == 204
    assert len(results) >= 6
    for operation, (foreign_task, deleted_task, unknown_task) in results.items():
        assert foreign_task[0] == 404, operation
        assert foreign_task == unknown_task, operation
        if operation == ("/api/<id:user_id>/tasks/<id:task_id>", "DELETE"):
            assert deleted_task[0] == 204, "the task is in the trash already"
        else:
            assert foreign_task == deleted_task, operation


def example_body(method: str) -> dict[str, Any]:
    """Return a body that is valid for every operation with this method."""
    bodies = {"PUT": {"title": "y"}, "PATCH": {"completed": True}}
    return {"json": bodies[method]} if method in bodies else {}


def comparable_parts(response) -> tuple[int, str, list[tuple[str, str]]]:
    """Return status, body and headers, without the request id and the date."""
    request_id = response.headers["X-Request-Id"]
    headers = [
        (name, value) for name, value in response.headers if name not in ("X-Request-Id", "Date")
    ]
    return response.status_code, response.text.replace(request_id, "ID"), sorted(headers)
