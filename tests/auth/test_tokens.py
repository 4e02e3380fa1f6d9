"""Who gets in: good tokens of every kind of key, attacks, and what is refused before the database.

Attacks go to an application whose database nobody listens for, and a good token gets a 503 there:
an attack that is answered 401 has taken no connection.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
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
# Port 1 of this machine: a connection is refused at once.
NOBODY = "postgresql://nobody@127.0.0.1:1/nothing"
ORDER_OF_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

ALGORITHMS = ["EdDSA", "ES256", "RS256", "HS256"]
ASYMMETRIC = ALGORITHMS[:3]


def case(name: str, *values: Any):
    """A case of a test, under a name that one can read."""
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


# The first key of an algorithm is the server's, the second an attacker's.
ours = functools.cache(
    lambda algorithm: OctKey.import_key(SECRET) if algorithm == "HS256" else make_key(algorithm)
)
theirs = functools.cache(make_key)


def settings_of(algorithm: str, form: str = "PEM", **parameters: Any) -> dict[str, str]:
    """The setting of the key that tokens of this algorithm are verified with."""
    key = ours(algorithm)
    if algorithm == "HS256":
        return {"JWT_SECRET": SECRET}
    if form == "PEM":
        return {"JWT_PUBLIC_KEY": key.as_pem(private=False).decode()}
    return {"JWT_PUBLIC_KEY": json.dumps(key.as_dict(private=False, **parameters))}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def good(**claims: Any) -> dict[str, Any]:
    """Claims that will do, but for those that are given; one that is `...` is left out."""
    whole = {"sub": USER, "iss": ISSUER, "aud": AUDIENCE, "exp": 2**32} | claims
    return {name: value for name, value in whole.items() if value is not ...}


def signature(algorithm: str, key: Key | bytes, message: bytes) -> bytes:
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
    """A token; bytes for a header or for claims are its segment as they are.

    The signature is right for the key, and the key ours unless another is given.
    """
    header = {"alg": algorithm} | (header or {}) if not isinstance(header, bytes) else header
    claims = good() if claims is None else claims
    head, body = (
        b64(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, claims)
    )
    key = ours(algorithm) if key is None else key
    signed = signature(signed_as or algorithm, key, f"{head}.{body}".encode())
    return f"{head}.{body}.{b64(signed)}"


@pytest.fixture(scope="module")
def make_door(log_stream) -> Iterator[Callable[..., Flask]]:  # noqa: ARG001  logging comes first
    """Make an application without a database; the same settings, the same application."""
    doors: dict[tuple[tuple[str, str], ...], Flask] = {}

    def make(**settings: str) -> Flask:
        door = tuple(sorted(settings.items()))
        if door not in doors:
            nowhere = {"DATABASE_URL": NOBODY, "REQUEST_TIMEOUT": "0.2"}
            doors[door] = create_app(load_settings(nowhere | settings))
        return doors[door]

    yield make
    for app in doors.values():
        app.services.pool.close()


@pytest.fixture
def attack(make_door):
    """Send an Authorization field, or none, to an application that has a key for the algorithm."""

    def send(algorithm: str, field: str | None, form: str = "PEM", **options: Any):
        names = {"JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}
        app = make_door(**settings_of(algorithm, form, kid="key-1"), **names)
        answer = request(app, field, **options)
        assert never_asked(app)
        return answer

    return send


def never_asked(app: Flask) -> bool:
    """Whether the application has opened no connection: the first request for one opens a pool."""
    return app.services.pool._pool.closed


def request(app: Flask, field: str | None, path: str = PATH, method: str = "GET", **options: Any):
    """The answer to a request whose Authorization field is, byte for byte, as WSGI has it."""
    environ = {} if field is None else {"HTTP_AUTHORIZATION": field.encode().decode("latin-1")}
    return app.test_client().open(
        path, method=method, environ_overrides=environ, buffered=True, **options
    )


def bearer(token: str) -> str:
    return f"Bearer {token}"


def refused(answer, challenge: str = 'Bearer error="invalid_token"'):
    """The answer is a 401 as RFC 6750 and RFC 9457 have it, and says nothing of the cause."""
    assert answer.status_code == 401, answer.text
    assert answer.headers.getlist("WWW-Authenticate") == [challenge]
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.mimetype == "application/problem+json"
    assert answer.json["status"] == 401
    assert answer.json["type"] == "/problems/unauthorized"
    assert answer.json["instance"] == answer.headers["X-Request-Id"]
    assert set(answer.json) == {"type", "title", "status", "detail", "instance"}


@pytest.fixture
def make_api(make_app):
    """Make an application on the tests' database, with a key for the algorithm."""
    return lambda algorithm, form="PEM", **settings: make_app(
        AUTH_MODE="jwt", **settings_of(algorithm, form, kid="key-1"), **settings
    )


def session_of(app: Flask, token: str):
    return request(app, bearer(token), "/api/session")


@pytest.mark.parametrize("form", ["PEM", "JWK"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_good_token_is_let_in(make_api, user_id, algorithm, form):
    app = make_api(algorithm, form, JWT_ISSUER=ISSUER, JWT_AUDIENCE=AUDIENCE)
    field = bearer(make_token(algorithm, good(sub=user_id)))

    made = request(app, field, f"/api/{user_id}/tasks", "POST", json={"title": "Buy oat milk"})
    listed = request(app, field, f"/api/{user_id}/tasks")

    assert made.status_code == 201, made.text
    assert listed.status_code == 200
    assert listed.json == [made.json]


@pytest.mark.parametrize(
    "header",
    [
        case("no-kid", {}),
        case("its-kid", {"kid": "key-1"}),
        case("typ", {"typ": "JWT"}),
        case("at-jwt", {"typ": "at+jwt"}),
        case("unknown-names", {"x-tenant": "a", "nested": {"a": [1]}}),
        case("long", {"x5c": ["A" * 2000]}),
    ],
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_else_a_header_says_does_no_harm(make_api, algorithm, header):
    app = make_api(algorithm, "JWK")

    answer = session_of(app, make_token(algorithm, header=header))

    assert answer.status_code == 200, answer.text


def test_a_token_may_name_any_key_where_the_only_one_has_no_id(make_api):
    app = make_api("ES256", "PEM")

    answer = session_of(app, make_token("ES256", header={"kid": "2026-11"}))

    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("algorithm", "also"),
    [("RS256", "RS384"), ("RS256", "RS512"), ("RS256", "PS256"), ("EdDSA", "Ed25519")],
)
def test_a_key_is_good_for_every_algorithm_of_its_kind(make_api, algorithm, also):
    app = make_api(algorithm)

    answer = session_of(app, make_token(also, key=ours(algorithm)))

    assert answer.status_code == 200


def test_a_key_may_say_what_it_is_good_for(make_app):
    app = make_app(AUTH_MODE="jwt", **settings_of("RS256", "JWK", alg="RS256", use="sig"))

    assert session_of(app, make_token("RS256")).status_code == 200
    refused(session_of(app, make_token("PS256", key=ours("RS256"))))


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "bEaReR   "])
def test_the_scheme_is_read_in_any_case(make_api, scheme):
    app = make_api("HS256")

    answer = request(app, scheme + make_token("HS256"), "/api/session")

    assert answer.status_code == 200


def test_ids_are_read_in_any_case(make_api, user_id):
    app = make_api("HS256")
    field = bearer(make_token("HS256", good(sub=user_id.upper())))

    made = request(app, field, f"/api/{user_id.upper()}/tasks", "POST", json={"title": "x"})
    listed = request(app, field, f"/api/{user_id}/tasks")

    assert made.json["user_id"] == user_id
    assert listed.json == [made.json]


def test_a_session_tells_who_the_token_is_for(make_api):
    answer = session_of(make_api("HS256"), make_token("HS256", good(exp=1893456000)))

    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json == {
        "user_id": USER,
        "subject": USER,
        "expires_at": "2030-01-01T00:00:00Z",
    }


def test_without_tokens_there_is_no_session(client):
    answer = client.get("/api/session", headers={"Authorization": bearer(make_token("HS256"))})

    assert answer.status_code == 404


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
def test_a_subject_that_is_no_uuid_becomes_one_of_its_issuer(make_api, subject):
    app = make_api("HS256", JWT_ISSUER=ISSUER)
    user_id = uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, ISSUER), subject)
    token = make_token("HS256", good(sub=subject))

    session = session_of(app, token)
    listed = request(app, bearer(token), f"/api/{user_id}/tasks")

    assert session.json["user_id"] == str(user_id)
    assert session.json["subject"] == subject
    assert listed.json == []


def test_a_subject_of_another_issuer_is_another_user(make_api):
    issuers = (ISSUER, f"{ISSUER}/")
    apps = [make_api("HS256", JWT_ISSUER=issuer) for issuer in issuers]

    sessions = [
        session_of(app, make_token("HS256", good(sub="7", iss=issuer)))
        for app, issuer in zip(apps, issuers, strict=True)
    ]

    assert len({session.json["user_id"] for session in sessions}) == 2


def test_the_user_may_be_in_another_claim(make_api):
    app = make_api("HS256", JWT_USER_CLAIM="https://app.example/user_id")
    claims = good(sub="someone", **{"https://app.example/user_id": OTHER})

    session = session_of(app, make_token("HS256", claims))

    assert session.json["user_id"] == session.json["subject"] == OTHER
    refused(session_of(app, make_token("HS256", good())))
    refused(session_of(app, make_token("HS256", claims | {"https://app.example/user_id": 7})))


def test_without_a_setting_any_issuer_and_audience_will_do(make_api):
    app = make_api("HS256")

    for claims in (good(), good(iss=...), good(aud=...), good(iss="x", aud=["x", "y"])):
        assert session_of(app, make_token("HS256", claims)).status_code == 200


def test_one_of_a_tokens_audiences_has_to_be_ours(make_api):
    app = make_api("HS256", JWT_AUDIENCE=AUDIENCE)

    for audience in (AUDIENCE, [AUDIENCE], ["another", AUDIENCE]):
        token = make_token("HS256", good(aud=audience))
        assert session_of(app, token).status_code == 200


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_another_clock_may_be_a_little_ahead(make_api, claim):
    app = make_api("HS256")

    answer = session_of(app, make_token("HS256", good(**{claim: time.time() + 20})))

    assert answer.status_code == 200


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_good_token_would_have_asked_the_database(make_door, algorithm):
    """What the attacks below rest on: were one let in, its answer would be another."""
    app = make_door(**settings_of(algorithm), WEB_THREADS="1")

    answer = request(app, bearer(make_token(algorithm)))

    assert answer.status_code == 503
    assert not never_asked(app)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "field",
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
def test_without_a_bearer_token_there_is_no_error_code(attack, algorithm, field):
    """RFC 6750, section 3.1: such a client has yet to learn that it needs a token."""
    token = make_token(algorithm)

    answer = attack(algorithm, field and field.replace("{token}", token))

    refused(answer, "Bearer")


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
def test_a_token_is_taken_from_nowhere_else(attack, options):
    sent = json.loads(json.dumps(options).replace("{token}", make_token("HS256")))

    answer = attack("HS256", None, **sent)

    refused(answer, "Bearer")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("keep", ["nothing", "a-good-signature"])
@pytest.mark.parametrize("none", ["none", "None", "NONE", "nOnE", "none ", "", "null", "no\u0274e"])
def test_an_unsigned_token_is_refused(attack, algorithm, none, keep):
    header, claims, signed = make_token(algorithm, header={"alg": none}, signed_as=algorithm).split(
        "."
    )

    with_dot = attack(
        algorithm, bearer(f"{header}.{claims}.{signed if keep == 'a-good-signature' else ''}")
    )
    without = attack(algorithm, bearer(f"{header}.{claims}"))

    refused(with_dot)
    refused(without)


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
def test_a_malformed_header_is_refused_though_it_is_signed(attack, algorithm, header):
    if isinstance(header, bytes):
        header = header.replace(b"{alg}", algorithm.encode())
    else:
        text = json.dumps(header).replace("{alg}", algorithm)
        header = json.loads(text.replace("{low}", algorithm.swapcase()))

    answer = attack(algorithm, bearer(make_token(algorithm, header=header)), form="JWK")

    refused(answer)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_payload_that_is_not_encoded_is_refused(attack, algorithm):
    """RFC 7797, as it asks: the name in "crit", the signature over the payload as it is."""
    header = b64(json.dumps({"alg": algorithm, "b64": False, "crit": ["b64"]}).encode())
    claims = json.dumps(good())
    signed = b64(signature(algorithm, ours(algorithm), f"{header}.{claims}".encode()))

    refused(attack(algorithm, bearer(f"{header}.{claims}.{signed}")))
    refused(attack(algorithm, bearer(f"{header}..{signed}")))
    refused(attack(algorithm, bearer(f"{header}.{b64(claims.encode())}.{signed}")))


# The forms in which the world may have a public key.
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
    "number": lambda key: unb64(number_of(key)),
    "number-encoded": lambda key: number_of(key).encode(),
}


def number_of(key: Key) -> str:
    """What makes a public key this one and no other: the modulus, or the point's x."""
    public = key.as_dict(private=False)
    return public["n" if isinstance(key, RSAKey) else "x"]


@pytest.mark.parametrize("form", PUBLIC_BYTES)
@pytest.mark.parametrize("hash_name", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_a_public_key_is_no_secret(attack, algorithm, hash_name, form):
    key = PUBLIC_BYTES[form](ours(algorithm))

    refused(attack(algorithm, bearer(make_token(hash_name, key=key))))
    refused(attack(algorithm, bearer(make_token(hash_name, key=key)), form="JWK"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("key", [b"", b"\0", b"secret", b"0" * 32, b"None", b"null"])
def test_a_secret_is_not_guessed(attack, algorithm, key):
    answer = attack(algorithm, bearer(make_token("HS256", key=key)))

    refused(answer)


CLAIMED = [
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
OF_OTHER_KEYS = [
    (algorithm, claimed)
    for algorithm, good_for in {
        "EdDSA": {"EdDSA", "Ed25519"},
        "ES256": {"ES256"},
        "RS256": {"RS256", "PS256"},
        "HS256": {"HS256"},
    }.items()
    for claimed in CLAIMED
    if claimed not in good_for
]


@pytest.mark.parametrize(("algorithm", "claimed"), OF_OTHER_KEYS)
def test_an_algorithm_of_another_kind_of_key_is_refused(attack, algorithm, claimed):
    """Signed as it claims to be, and signed with our key under a false name."""
    attackers = make_token(claimed, key=theirs(claimed))
    mislabelled = make_token(algorithm, header={"alg": claimed})

    refused(attack(algorithm, bearer(attackers)))
    refused(attack(algorithm, bearer(mislabelled)))


@pytest.mark.parametrize("hash_name", ["HS384", "HS512"])
def test_a_secret_is_for_one_algorithm(attack, hash_name):
    refused(attack("HS256", bearer(make_token(hash_name, key=SECRET.encode()))))


@pytest.mark.parametrize("curve", ["ES384", "ES512", "ES256K"])
def test_a_signature_on_another_curve_is_refused(attack, curve):
    key = theirs(curve)
    header, claims, _ = make_token("ES256").split(".")
    message = f"{header}.{claims}".encode()
    der = key.private_key.sign(message, ec.ECDSA(hashes.SHA256()))
    r, s = utils.decode_dss_signature(der)
    size = (key.private_key.key_size + 7) // 8
    whole = r.to_bytes(size, "big") + s.to_bytes(size, "big")

    for signed in (whole, whole[:64], whole[-64:]):
        refused(attack("ES256", bearer(f"{header}.{claims}.{b64(signed)}")))


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
def test_a_psychic_signature_is_refused(attack, r, s):
    header, claims, _ = make_token("ES256").split(".")
    signed = r.to_bytes(32, "big") + s.to_bytes(32, "big")

    refused(attack("ES256", bearer(f"{header}.{claims}.{b64(signed)}")))


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
def test_a_changed_signature_is_refused(attack, algorithm, change):
    header, claims, signed = make_token(algorithm).split(".")

    answer = attack(algorithm, bearer(f"{header}.{claims}.{b64(change(unb64(signed)))}"))

    refused(answer)


def test_a_signature_in_der_is_refused(attack):
    """Right for the key, but not in the form of RFC 7518, section 3.4."""
    header, claims, _ = make_token("ES256").split(".")
    message = f"{header}.{claims}".encode()
    der = ours("ES256").private_key.sign(message, ec.ECDSA(hashes.SHA256()))

    refused(attack("ES256", bearer(f"{header}.{claims}.{b64(der)}")))


def other_last_character(segment: str) -> str:
    """The segment with unused bits at its end set, which decodes to the same bytes carelessly."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(segment) % 4
    return segment[:-1] + alphabet[alphabet.index(segment[-1]) + 1]


def of_length(rest: int, **claims: Any) -> dict[str, Any]:
    """Claims whose segment has this many characters beyond a multiple of four."""
    padded = (good(pad="x" * n, **claims) for n in range(3))
    return next(c for c in padded if len(b64(json.dumps(c).encode())) % 4 == rest)


def with_symbols(algorithm: str) -> str:
    """A token in each of whose claims and signature are characters that base64 has otherwise."""
    for number in range(1000):
        token = make_token(
            algorithm, json.dumps(good(pad=f"\u00ff?>{number}"), ensure_ascii=False).encode()
        )
        _, claims, signed = token.split(".")
        if {"-", "_"} & set(claims) and {"-", "_"} & set(signed):
            return token
    raise AssertionError("no such token")


def standard(token: str, part: int) -> str:
    parts = token.split(".")
    parts[part] = parts[part].replace("-", "+").replace("_", "/")
    assert set(parts[part]) & {"+", "/"}
    return ".".join(parts)


def changed(token: str, part: int, change: Callable[[str], str]) -> str:
    parts = token.split(".")
    parts[part] = change(parts[part])
    return ".".join(parts)


ENCODINGS: dict[str, Callable[[str], str]] = {
    "padded-signature": lambda a: make_token(a) + "=",
    "padded-signature-twice": lambda a: make_token(a) + "==",
    "padded-header": lambda a: changed(make_token(a), 0, lambda s: s + "="),
    "padded-claims": lambda a: changed(make_token(a, of_length(3)), 1, lambda s: s + "="),
    "padded-claims-twice": lambda a: changed(make_token(a, of_length(2)), 1, lambda s: s + "=="),
    "escaped-padding": lambda a: make_token(a) + "%3D",
    "standard-alphabet-in-claims": lambda a: standard(with_symbols(a), 1),
    "standard-alphabet-in-signature": lambda a: standard(with_symbols(a), 2),
    "unused-bits-in-signature": lambda a: changed(make_token(a), 2, other_last_character),
    "space-before": lambda a: " \x0b" + make_token(a),
    "space-after": lambda a: make_token(a) + " ",
    "space-in-claims": lambda a: changed(make_token(a), 1, lambda s: s[:9] + " " + s[9:]),
    "space-around-dot": lambda a: make_token(a).replace(".", " . "),
    "tab-after": lambda a: make_token(a) + "\t",
    "line-feed-after": lambda a: make_token(a) + "\n",
    "line-feed-in-signature": lambda a: changed(make_token(a), 2, lambda s: s[:9] + "\n" + s[9:]),
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
    "no-claims": lambda a: changed(make_token(a), 1, lambda _: ""),
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
    "a-length-that-no-bytes-have": lambda a: changed(
        make_token(a, of_length(0)), 1, lambda s: s + "A"
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
    "8-kib": lambda a: make_token(a, good(pad="x" * 6200)),
    "a-megabyte": lambda a: make_token(a, good(pad="x" * 2**20)),
    "a-megabyte-of-dots": lambda _: "." * 2**20,
    "a-megabyte-in-the-header": lambda a: make_token(a, header={"pad": "x" * 2**20}),
    "a-megabyte-of-signature": lambda a: make_token(a) + "A" * 2**20,
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("encoded", [case(name, make) for name, make in ENCODINGS.items()])
def test_a_token_has_one_spelling(attack, algorithm, encoded):
    """Each of these holds a good token, or what a careless reader might take for one."""
    refused(attack(algorithm, bearer(encoded(algorithm))))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("rest", [2, 3])
def test_unused_bits_are_zero(attack, algorithm, rest):
    """Signed over the segment as it is sent, so that only its spelling is at fault."""
    header, claims, _ = make_token(algorithm, of_length(rest)).split(".")
    claims = other_last_character(claims)
    signed = signature(algorithm, ours(algorithm), f"{header}.{claims}".encode())

    refused(attack(algorithm, bearer(f"{header}.{claims}.{b64(signed)}")))


@pytest.fixture
def listener():
    """A port of this machine that a server might be lured to, and whether it was."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        opened.settimeout(0)
        yield opened


def certificate_of(key: Key) -> str:
    """A certificate that an attacker has signed for itself, in base64 as "x5c" has it."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer.example")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.private_key.public_key(), 1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key.private_key, None if isinstance(key, OKPKey) else hashes.SHA256())
    )
    return base64.b64encode(made.public_bytes(serialization.Encoding.DER)).decode()


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
def test_a_header_cannot_bring_its_own_key(attack, listener, algorithm, names):
    key = theirs(algorithm)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/keys"
    brought = {
        "jwk": key.as_dict(private=False),
        "jwk-private": key.as_dict(private=True),
        "jku": url,
        "x5u": url,
        "x5c": [certificate_of(key)],
        "x5t": b64(hashlib.sha1(base64.b64decode(certificate_of(key))).digest()),
        "kid": "key-1",
    }
    header = {name.removesuffix("-private"): brought[name] for name in names.split("+")}

    refused(attack(algorithm, bearer(make_token(algorithm, header=header, key=key))))
    refused(attack(algorithm, bearer(make_token(algorithm, header=header, key=key)), form="JWK"))

    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize("name", ["jwk", "kid", "x5c", "jku"])
def test_a_header_cannot_bring_a_secret(attack, name):
    key = theirs("HS256")
    brought = {"jwk": key.as_dict(private=True), "kid": "key-1", "x5c": [SECRET], "jku": NOBODY}
    header = {name: brought[name]}

    for algorithm in ALGORITHMS:
        refused(attack(algorithm, bearer(make_token("HS256", header=header, key=key))))


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
def test_a_key_id_is_compared_and_nothing_else(attack, algorithm, kid, secret):
    """Neither a token under a known secret gets in, nor one of ours that names another key."""
    attackers = make_token("HS256", header={"kid": kid}, key=secret)
    misnamed = make_token(algorithm, header={"kid": kid})

    refused(attack(algorithm, bearer(attackers), form="JWK"))
    if algorithm != "HS256":  # whose key has no id
        refused(attack(algorithm, bearer(misnamed), form="JWK"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_token_of_another_key_is_refused(attack, algorithm):
    token = make_token(algorithm, key=theirs(algorithm))

    refused(attack(algorithm, bearer(token)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("index", "other"), [case("header", 0, {"typ": "JWT"}), case("claims", 1, good(sub=OTHER))]
)
def test_a_signature_is_for_what_it_signs(attack, algorithm, index, other):
    token = make_token(algorithm).split(".")
    token[index] = b64(json.dumps({"alg": algorithm} | other).encode())

    answer = attack(algorithm, bearer(".".join(token)), path=f"/api/{OTHER}/tasks")

    refused(answer)


def test_the_parts_of_two_tokens_make_no_third(attack):
    first = make_token("HS256").split(".")
    second = make_token("HS256", good(sub=OTHER, exp=2**32 + 1)).split(".")

    refused(attack("HS256", bearer(".".join([first[0], second[1], first[2]]))))
    refused(attack("HS256", bearer(".".join([first[0], first[1], second[2]]))))


def raw(text: str) -> bytes:
    """Claims as they are written, between the good ones."""
    whole = json.dumps(good(sub=..., exp=...))
    return f"{whole[:-1]},{text}}}".encode()


NOW = int(time.time())

BAD_CLAIMS = {
    "list": b"[]",
    "pairs": json.dumps(list(good().items())).encode(),
    "text": json.dumps(json.dumps(good())).encode(),
    "number": b"5",
    "null": b"null",
    "true": b"true",
    "empty": b"",
    "empty-object": b"{}",
    "no-json": b"sub=1",
    "two-values": json.dumps(good()).encode() * 2,
    "nested-token": b"eyJhbGciOiJub25lIn0.e30.",
    "not-utf-8": json.dumps(good(pad="X")).encode().replace(b"X", b"\xff"),
    "utf-16": json.dumps(good()).encode("utf-16"),
    "utf-32": json.dumps(good()).encode("utf-32-le"),
    "byte-order-mark": b"\xef\xbb\xbf" + json.dumps(good()).encode(),
    "overlong-utf-8": json.dumps(good(pad="X")).encode().replace(b"X", b"\xc0\x80"),
    "control-character": json.dumps(good(pad="X")).encode().replace(b"X", b"\n"),
    "deep-lists": raw(f'"exp":{2**32},"sub":{"[" * 2500}{"]" * 2500}'),
    "deep-objects": raw(f'"exp":{2**32},"sub":' + '{"":' * 1000 + "0" + "}" * 1000),
    "deep-unclosed": b'{"a":' * 1200,
    "sub-twice": raw(f'"exp":{2**32},"sub":"{OTHER}","sub":"{USER}"'),
    "sub-twice-escaped": raw(f'"exp":{2**32},"sub":"{OTHER}","\\u0073ub":"{USER}"'),
    "exp-twice": raw(f'"sub":"{USER}","exp":1,"exp":{2**32}'),
    "exp-twice-expired-last": raw(f'"sub":"{USER}","exp":{2**32},"exp":1'),
    "iss-twice": raw(f'"sub":"{USER}","exp":{2**32},"iss":"{ISSUER}"'),
    "aud-twice": raw(f'"sub":"{USER}","exp":{2**32},"aud":"{AUDIENCE}"'),
    "twice-below": raw(f'"sub":"{USER}","exp":{2**32},"x":{{"a":1,"a":2}}'),
    "sub-absent": good(sub=...),
    "sub-null": good(sub=None),
    "sub-number": good(sub=5),
    "sub-float": good(sub=5.0),
    "sub-true": good(sub=True),
    "sub-list": good(sub=[USER]),
    "sub-object": good(sub={"id": USER}),
    "sub-empty": good(sub=""),
    "sub-too-long": good(sub="x" * 256),
    "sub-far-too-long": good(sub="x" * 5000),
    "sub-lone-surrogate": good(sub="\ud800"),
    "sub-low-surrogate-first": good(sub="\udc00\ud800"),
    "sub-uuid-and-surrogate": good(sub=USER + "\udfff"),
    "sub-in-upper-case": good(sub=..., SUB=USER),
    "sub-with-space": good(sub=..., **{"sub ": USER}),
    "exp-absent": good(exp=...),
    "exp-null": good(exp=None),
    "exp-past": good(exp=NOW - 3600),
    "exp-just-past": good(exp=NOW - 1),
    "exp-now": good(exp=NOW),
    "exp-zero": good(exp=0),
    "exp-negative": good(exp=-1),
    "exp-very-negative": good(exp=-(10**400)),
    "exp-text": good(exp=str(2**32)),
    "exp-date": good(exp="2099-01-01T00:00:00Z"),
    "exp-empty": good(exp=""),
    "exp-true": good(exp=True),
    "exp-false": good(exp=False),
    "exp-list": good(exp=[2**32]),
    "exp-object": good(exp={}),
    "exp-huge": good(exp=10**400),
    "exp-milliseconds": good(exp=2**32 * 1000),
    "exp-beyond-dates": good(exp=1e300),
    "exp-of-5000-digits": raw(f'"sub":"{USER}","exp":{"9" * 5000}'),
    "exp-overflow": raw(f'"sub":"{USER}","exp":1e400'),
    "exp-nan": raw(f'"sub":"{USER}","exp":NaN'),
    "exp-infinity": raw(f'"sub":"{USER}","exp":Infinity'),
    "exp-minus-infinity": raw(f'"sub":"{USER}","exp":-Infinity'),
    "exp-hexadecimal": raw(f'"sub":"{USER}","exp":0xffffffff'),
    "exp-leading-zero": raw(f'"sub":"{USER}","exp":04294967296'),
    "exp-other-digits": raw(f'"sub":"{USER}","exp":\u0664\u0664\u0664\u0664\u0664'),
    "nbf-future": good(nbf=NOW + 3600),
    "nbf-huge": good(nbf=10**400),
    "nbf-overflow": raw(f'"sub":"{USER}","exp":{2**32},"nbf":1e400'),
    "nbf-nan": raw(f'"sub":"{USER}","exp":{2**32},"nbf":NaN'),
    "nbf-text": good(nbf="0"),
    "nbf-true": good(nbf=True),
    "nbf-null": good(nbf=None),
    "nbf-list": good(nbf=[0]),
    "iat-future": good(iat=NOW + 3600),
    "iat-huge": good(iat=10**400),
    "iat-text": good(iat="yesterday"),
    "iat-null": good(iat=None),
    "iat-false": good(iat=False),
    "iss-absent": good(iss=...),
    "iss-null": good(iss=None),
    "iss-empty": good(iss=""),
    "iss-another": good(iss="https://attacker.example"),
    "iss-longer": good(iss=f"{ISSUER}/"),
    "iss-shorter": good(iss=ISSUER[:-1]),
    "iss-prefix-of-a-host": good(iss=f"{ISSUER}.attacker.example"),
    "iss-substring": good(iss=f"https://attacker.example/{ISSUER}"),
    "iss-host-alone": good(iss="https://issuer.example"),
    "iss-case": good(iss=ISSUER.upper()),
    "iss-http": good(iss=ISSUER.replace("https", "http")),
    "iss-space": good(iss=f"{ISSUER} "),
    "iss-look-alike": good(iss=ISSUER.replace("e", "\u0435")),
    "iss-nul": good(iss=f"{ISSUER}\0"),
    "iss-list": good(iss=[ISSUER]),
    "iss-object": good(iss={ISSUER: 1}),
    "iss-number": good(iss=0),
    "iss-true": good(iss=True),
    "aud-absent": good(aud=...),
    "aud-null": good(aud=None),
    "aud-empty": good(aud=""),
    "aud-empty-list": good(aud=[]),
    "aud-another": good(aud="another-api"),
    "aud-longer": good(aud=f"{AUDIENCE}-2"),
    "aud-substring": good(aud=f"not-{AUDIENCE}-at-all"),
    "aud-shorter": good(aud=AUDIENCE[:-1]),
    "aud-case": good(aud=AUDIENCE.upper()),
    "aud-list-without-ours": good(aud=["another-api", "third-api"]),
    "aud-list-of-substrings": good(aud=[f"{AUDIENCE}-2", AUDIENCE[:-1]]),
    "aud-list-with-numbers": good(aud=[AUDIENCE, 5]),
    "aud-list-with-null": good(aud=[AUDIENCE, None]),
    "aud-list-in-a-list": good(aud=[[AUDIENCE]]),
    "aud-object": good(aud={AUDIENCE: True}),
    "aud-number": good(aud=0),
    "aud-true": good(aud=True),
    "aud-space-separated": good(aud=f"another-api {AUDIENCE}"),
    "aud-with-commas": good(aud=f"another-api,{AUDIENCE}"),
    "jti-number": good(jti=5),
}


@pytest.mark.parametrize("claims", [case(name, claims) for name, claims in BAD_CLAIMS.items()])
def test_claims_that_will_not_do_are_refused_though_they_are_signed(attack, claims):
    refused(attack("ES256", bearer(make_token("ES256", claims))))


@pytest.mark.parametrize("where", ["header", "claims"])
def test_no_depth_of_nesting_is_too_much_for_the_parsers(make_door, where):
    """Around the depth at which Python gives up: nothing in between may fail in its own way."""
    app = make_door(**settings_of("HS256"))
    statuses = []

    for depth in [*range(100, 900, 50), *range(900, 1000), *range(1000, 2800, 200)]:
        nested = b'"x":' + b"[" * depth + b"]" * depth + b"}"
        parts = {"header": b'{"alg":"HS256",', "claims": json.dumps(good()).encode()[:-1] + b","}
        token = make_token("HS256", **{where: parts[where] + nested})
        statuses.append(session_of(app, token).status_code)

    assert statuses[0] == 200
    assert set(statuses) <= {200, 401}
    assert statuses == sorted(statuses)


CACHED = {
    "claims-of-another": lambda t: changed(
        t, 1, lambda _: b64(json.dumps(good(sub=OTHER)).encode())
    ),
    "other-header": lambda t: changed(t, 0, lambda _: b64(b'{"alg":"none"}')),
    "no-signature": lambda t: changed(t, 2, lambda _: ""),
    "shorter-signature": lambda t: t[:-2],
    "longer-signature": lambda t: t + "AA",
    "other-signature": lambda t: changed(t, 2, lambda s: ("B" if s[0] == "A" else "A") + s[1:]),
    "unused-bits": lambda t: changed(t, 2, other_last_character),
    "other-case": lambda t: t.swapcase(),
    "padded": lambda t: t + "=",
}


@pytest.mark.parametrize("change", [case(name, change) for name, change in CACHED.items()])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_variant_of_a_token_that_was_let_in_is_refused(make_door, algorithm, change):
    app = make_door(**settings_of(algorithm))
    token = make_token(algorithm)

    before = session_of(app, token)
    varied = session_of(app, change(token))
    after = session_of(app, token)

    assert before.status_code == after.status_code == 200
    refused(varied)


def test_a_token_expires_though_it_was_let_in_before(make_door):
    app = make_door(**settings_of("HS256"))
    expires_at = time.time() + 1.2
    token = make_token("HS256", good(exp=expires_at))

    before = session_of(app, token)
    time.sleep(max(0, expires_at - time.time()) + 0.05)
    after = session_of(app, token)

    assert before.status_code == 200
    refused(after)


def test_a_token_that_is_let_in_again_is_not_verified_again():
    settings = load_settings({"DATABASE_URL": NOBODY} | settings_of("RS256"))
    verifier = Verifier(settings, make_keys(settings, Metrics()))
    token = make_token("RS256")

    first, second = verifier.identify(token), verifier.identify(token)

    assert first is second


def test_few_verified_tokens_are_remembered_and_each_is_its_users():
    """Eight threads, more tokens than there is room for, bad ones among the good."""
    settings = load_settings({"DATABASE_URL": NOBODY} | settings_of("HS256"))
    verifier = Verifier(settings, make_keys(settings, Metrics()), capacity=5)
    tokens = {
        make_token("HS256", good(sub=str(user))): user
        for user in map(uuid.UUID, map(user_of, range(20)))
    }
    forged = [make_token("HS256", good(sub=user_of(n)), key=b"x" * 32) for n in range(20)]
    together = threading.Barrier(8)
    seen = []

    def enter(shift: int) -> None:
        together.wait(timeout=10)
        order = list(tokens.items())[shift:] + list(tokens.items())[:shift]
        for _ in range(20):
            for (token, user), bad in zip(order, forged, strict=True):
                assert verifier.identify(token).user_id == user
                with pytest.raises(Problem):
                    verifier.identify(bad)
                seen.append(len(verifier._verified))

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(enter, shift) for shift in range(8)]:
            done.result(timeout=60)

    assert len(seen) == 8 * 20 * 20
    assert max(seen) == 5


def user_of(number: int) -> str:
    return f"019aa5c8-6f3a-7cc4-9a51-{number:012x}"


# Whoever adds to these has thought about who may read it.
OPEN = {"/livez", "/health", "/openapi.json", "/docs"}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "BREW"]


def is_open(rule: str) -> bool:
    return rule in OPEN or rule.startswith("/docs/")


def path_of(rule, user_id: str = USER, task_id: str = OTHER) -> str:
    path = rule.rule.replace("<id:user_id>", user_id).replace("<id:task_id>", task_id)
    assert "<" not in path, rule
    return path


@pytest.fixture
def closed(make_door) -> Flask:
    """An application that nobody has asked for a connection, and that never gets one."""
    return make_door(**settings_of("HS256"), JWT_USER_CLAIM="sub", PORT="8001")


def test_every_route_wants_a_token_but_for_those_that_are_named_here(closed):
    for rule in closed.url_map.iter_rules():
        for method in METHODS:
            if is_open(rule.rule) and method in rule.methods:
                continue
            answer = request(closed, None, path_of(rule), method)
            assert answer.status_code == 401, (method, rule)
            assert answer.headers["WWW-Authenticate"] == "Bearer", (method, rule)

    assert never_asked(closed)


def test_the_named_routes_are_open(make_door):
    app = make_door(**settings_of("HS256"), PORT="8002")

    statuses = {
        rule.rule: request(app, None, rule.rule).status_code
        for rule in app.url_map.iter_rules()
        if is_open(rule.rule)
    }

    assert statuses.keys() >= OPEN
    assert {path for path, status in statuses.items() if status != 200} == {"/health"}
    assert statuses["/health"] == 503


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "path",
    [
        "/",
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
def test_a_path_that_is_not_there_wants_a_token_too(closed, method, path):
    """Without one, nobody learns what there is."""
    refused_by = request(closed, None, path, method)

    assert refused_by.status_code == 401
    assert never_asked(closed)


BODIES = {
    "no-body": {},
    "good-body": {"json": {"title": "x"}},
    "not-json": {"data": b"{", "content_type": "application/json"},
    "another-type": {"data": b"x", "content_type": "text/plain"},
    "too-large": {"data": b" " * (128 * 1024 + 1), "content_type": "application/json"},
    "unknown-query": {"query_string": {"unknown": "1"}},
}


@pytest.mark.parametrize("body", [case(name, body) for name, body in BODIES.items()])
@pytest.mark.parametrize(
    "foreign",
    [OTHER, OTHER.upper(), USER[:-1], f"{USER}0", "x", "%00", "%ff", "null", USER.replace("-", "")],
)
def test_a_path_that_is_not_the_tokens_is_refused_before_all_else(closed, foreign, body):
    field = bearer(make_token("HS256"))
    bodies = set()

    for rule in closed.url_map.iter_rules():
        if "<id:user_id>" not in rule.rule:
            continue
        for method in METHODS:
            answer = request(closed, field, path_of(rule, foreign), method, **body)
            assert answer.status_code == 404, (method, rule)
            if method != "HEAD":
                bodies.add(answer.text.replace(answer.headers["X-Request-Id"], "ID"))

    assert len(bodies) == 1
    assert never_asked(closed)


def test_the_tokens_path_is_served(closed, make_door):
    """The same requests with the owner's path get beyond the checks above."""
    app = make_door(**settings_of("HS256"), PORT="8003")
    field = bearer(make_token("HS256"))

    assert request(app, field, PATH, "BREW").status_code == 405
    assert request(app, field, PATH).status_code == 503
    assert never_asked(closed)


def test_refusals_come_in_the_contracts_order(closed):
    """401; 404 for another's path; 405, 415, 413; 400; 422. Each fault is mended in its turn."""
    field = bearer(make_token("HS256"))
    large = {"data": b"x" * (128 * 1024 + 1), "content_type": "text/plain"}
    theirs_, mine = f"/api/{OTHER}/tasks/x?y=1", f"/api/{USER}/tasks/x?y=1"
    json_type = {"content_type": "application/json"}

    statuses = [
        request(closed, *sent, **options).status_code
        for sent, options in [
            ((None, theirs_, "POST"), large),
            ((bearer("x.y.z"), theirs_, "POST"), large),
            ((field, theirs_, "POST"), large),
            ((field, mine, "POST"), large),
            ((field, mine, "PUT"), large),
            ((field, mine, "PUT"), large | json_type),
            ((field, mine, "PUT"), {"data": b"{"} | json_type),
            ((field, mine, "PUT"), {"data": b"{}"} | json_type),
        ]
    ]

    assert statuses == [401, 401, 404, 405, 415, 413, 400, 422]
    assert never_asked(closed)


# To bring a deleted task back is what this one is for.
OF_DELETED_TASKS = {"/api/<id:user_id>/tasks/<id:task_id>/restore"}


@pytest.mark.parametrize("match", [None, "*", etag(1), f"{etag(2)}, {etag(1)}"])
def test_what_is_anothers_deleted_or_never_was_is_the_same_404(make_api, match):
    """The same bytes but for the request id, and the same headers."""
    app = make_api("HS256")
    mine, another = str(uuid.uuid4()), str(uuid.uuid4())
    field = {user: bearer(make_token("HS256", good(sub=user))) for user in (mine, another)}
    made = {
        user: request(app, field[user], f"/api/{user}/tasks", "POST", json={"title": "x"}).json
        for user in (mine, another)
    }
    gone = request(app, field[mine], f"/api/{mine}/tasks/{made[mine]['id']}", "DELETE")
    ids = [made[another]["id"], made[mine]["id"], str(uuid.uuid4())]
    headers = {} if match is None else {"If-Match": match}

    told = {
        (rule.rule, method): [
            told_by(
                request(
                    app,
                    field[mine],
                    path_of(rule, mine, task_id),
                    method,
                    **sent(method),
                    headers=headers,
                )
            )
            for task_id in ids
        ]
        for rule in app.url_map.iter_rules()
        if "<id:task_id>" in rule.rule and rule.rule not in OF_DELETED_TASKS
        for method in rule.methods - {"OPTIONS"}
    }

    assert gone.status_code == 204
    assert len(told) >= 6
    for operation, (foreign, deleted, never) in told.items():
        assert foreign[0] == 404, operation
        assert foreign == deleted == never, operation


def sent(method: str) -> dict[str, Any]:
    """A body that any operation with this method takes."""
    bodies = {"PUT": {"title": "y"}, "PATCH": {"completed": True}}
    return {"json": bodies[method]} if method in bodies else {}


def told_by(answer) -> tuple[int, str, list[tuple[str, str]]]:
    """All that an answer tells, but for the request's own id and the time."""
    request_id = answer.headers["X-Request-Id"]
    headers = [
        (name, value) for name, value in answer.headers if name not in ("X-Request-Id", "Date")
    ]
    return answer.status_code, answer.text.replace(request_id, "ID"), sorted(headers)
