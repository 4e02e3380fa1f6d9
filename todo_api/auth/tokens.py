"""Verify JSON Web Tokens (RFC 7519, RFC 8725)."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jws import JWSRegistry, deserialize_compact
from joserfc.jwt import JWTClaimsRegistry
from joserfc.util import urlsafe_b64decode

from todo_api.web import strict_json
from todo_api.web.fields import UUID_TEXT
from todo_api.web.problems import Problem, unauthorized

if TYPE_CHECKING:
    from todo_api.auth.keys import Keys, VerificationKey
    from todo_api.settings import Settings

TOKEN_BYTES = 8 * 1024
LEEWAY = 30  # seconds: `nbf` and `iat` may be so much later than this server's clock
SUBJECT_LENGTH = 255
VERIFIED_TOKENS = 10_000  # the maximum that a worker caches


@dataclass(frozen=True)
class Identity:
    """The user of a verified token. `expires_at` is a Unix time in seconds."""

    user_id: uuid.UUID
    subject: str
    expires_at: float
    key: VerificationKey


class AnyAlgorithm(JWSRegistry):
    """The algorithms of joserfc, without its warning about EdDSA, which many issuers use.

    The key decides which algorithm is used: see keys.py. joserfc's limits on header and signature
    are raised to TOKEN_BYTES: a header can contain a chain of certificates, and a long key makes a
    long signature.
    """

    max_header_length = max_signature_length = TOKEN_BYTES

    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]


# Unknown header members are ignored (RFC 7515, section 4); `_verify` refuses "crit" and "b64".
REGISTRY = AnyAlgorithm(strict_check_header=False)


class Verifier:
    """Verifies tokens, and caches the identities of the last `capacity` verified tokens."""

    def __init__(self, settings: Settings, keys: Keys, capacity: int = VERIFIED_TOKENS) -> None:
        self.keys = keys
        self._capacity = capacity
        self._settings = settings
        options: dict[str, Any] = {"exp": {"essential": True}}
        if settings.jwt_issuer:
            options["iss"] = {"essential": True, "value": settings.jwt_issuer}
        if settings.jwt_audience:
            options["aud"] = {"essential": True, "value": settings.jwt_audience}
        self._claims = JWTClaimsRegistry(leeway=LEEWAY, **options)
        self._verified: dict[bytes, Identity] = {}
        self._lock = threading.Lock()

    def identify(self, token: str) -> Identity:
        """Return the token's user. Raises a Problem (401) or KeysUnavailableError.

        A cached token is accepted until it expires or its key is withdrawn.
        """
        digest = hashlib.sha256(token.encode()).digest()
        identity = self._verified.get(digest)
        if identity is None or not self.keys.has(identity.key):
            identity = self._verify(token)
            with self._lock:
                if len(self._verified) >= self._capacity:
                    del self._verified[next(iter(self._verified))]
                self._verified[digest] = identity
        if identity.expires_at <= time.time():
            raise invalid_token("Get a new token: this one has expired.")
        return identity

    def _verify(self, token: str) -> Identity:
        try:
            header_segment, claims_segment, _ = token.split(".")
            header = decode_segment(header_segment)
            if "crit" in header or "b64" in header:
                raise invalid_token(
                    "Get another token: the server does not support an extension of this one."
                )
            key = self._find_key(header)
            deserialize_compact(token, key.key, registry=REGISTRY)
            claims = decode_segment(claims_segment)
            self._claims.validate(claims)
            subject = self._read_subject(claims)
            expires_at = float(claims["exp"])
            datetime.fromtimestamp(expires_at, UTC)  # ValueError after the year 9999
            return Identity(make_user_id(self._settings, subject), subject, expires_at, key)
        except ExpiredTokenError:
            raise invalid_token("Get a new token: this one has expired.") from None
        # RecursionError: joserfc parses the header again, a few calls deeper, and can fail on a
        # nesting that `decode_segment` has accepted.
        except (JoseError, ValueError, OverflowError, RecursionError):
            raise invalid_token(
                "Get another token: the server could not verify this one."
            ) from None

    def _find_key(self, header: dict[str, Any]) -> VerificationKey:
        kid, algorithm = header.get("kid"), header.get("alg")
        if not isinstance(algorithm, str) or not isinstance(kid, str | None):
            raise invalid_token("Get another token: the header of this one is malformed.")
        key = self.keys.find(kid, algorithm) if algorithm in REGISTRY.algorithms else None
        if key is None:
            raise invalid_token(
                "Get another token: the server has no key for the signature of this one."
            )
        return key

    def _read_subject(self, claims: dict[str, Any]) -> str:
        subject = claims.get(self._settings.jwt_user_claim)
        if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_LENGTH:
            raise invalid_token("Get another token: this one names no user.")
        subject.encode()  # ValueError for a lone surrogate
        return subject


def make_user_id(settings: Settings, subject: str) -> uuid.UUID:
    """Return the subject if it is a UUID, otherwise the UUIDv5 of the issuer and the subject.

    With JWT_USER_IDS=derived, the id is a UUIDv5 in every case, so that no subject can be equal to
    another user's id.
    """
    if settings.jwt_user_ids == "subject" and UUID_TEXT.fullmatch(subject):
        return uuid.UUID(subject)
    issuer = uuid.uuid5(uuid.NAMESPACE_URL, settings.jwt_issuer or "")
    return uuid.uuid5(issuer, subject)


def decode_segment(segment: str) -> dict[str, Any]:
    """Return the JSON object of a token's segment (RFC 7515, section 3). Raises ValueError."""
    value = strict_json.loads(urlsafe_b64decode(segment.encode()))
    if not isinstance(value, dict):
        raise strict_json.NotJsonError("not an object")
    return value


def invalid_token(detail: str) -> Problem:
    """Return a 401 for a token that is not accepted (RFC 6750, section 3.1)."""
    return unauthorized(detail, 'Bearer error="invalid_token"')
