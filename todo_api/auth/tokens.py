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
from todo_api.web.problems import Problem, unauthorized
from todo_api.web.validation import UUID_TEXT

if TYPE_CHECKING:
    from todo_api.auth.keys import Keys, VerificationKey
    from todo_api.settings import Settings


TOKEN_BYTES = 8 * 1024


LEEWAY = 30  # seconds that another clock's "not before" and "issued at" may be ahead


SUBJECT_LENGTH = 255


VERIFIED_TOKENS = 10_000  # that a worker remembers, at most


@dataclass(frozen=True)
class Identity:
    """Who a verified token is for, and until when, in seconds since the epoch."""

    user_id: uuid.UUID
    subject: str
    expires_at: float
    key: VerificationKey


class AnyAlgorithm(JWSRegistry):
    """joserfc's algorithms, without its warning about EdDSA, which issuers use.

    Which of them will do is the key's to say: see keys.py. How long a part may be, TOKEN_BYTES
    says: a header may carry a chain of certificates, and a signature be of a long RSA key.
    """

    max_header_length = max_signature_length = TOKEN_BYTES

    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]


# What a header has besides is passed over (RFC 7515, section 4); "crit" and "b64" are refused.
REGISTRY = AnyAlgorithm(strict_check_header=False)


class Verifier:
    """Verifies tokens, and remembers the last `capacity` that it has verified."""

    def __init__(self, settings: Settings, keys: Keys, capacity: int = VERIFIED_TOKENS) -> None:
        self.keys = keys
        self._capacity = capacity
        self._user_claim = settings.jwt_user_claim
        self._namespace = uuid.uuid5(uuid.NAMESPACE_URL, settings.jwt_issuer or "")
        options: dict[str, Any] = {"exp": {"essential": True}}
        if settings.jwt_issuer:
            options["iss"] = {"essential": True, "value": settings.jwt_issuer}
        if settings.jwt_audience:
            options["aud"] = {"essential": True, "value": settings.jwt_audience}
        self._claims = JWTClaimsRegistry(leeway=LEEWAY, **options)
        self._verified: dict[bytes, Identity] = {}
        self._room = threading.Lock()

    def identify(self, token: str) -> Identity:
        """Whose token it is. Raises a 401, or KeysUnavailableError.

        A token that was verified before is good for as long as its key is, and not expired.
        """
        digest = hashlib.sha256(token.encode()).digest()
        identity = self._verified.get(digest)
        if identity is None or not self.keys.holds(identity.key):
            identity = self._verify(token)
            with self._room:
                if len(self._verified) >= self._capacity:
                    del self._verified[next(iter(self._verified))]
                self._verified[digest] = identity
        if identity.expires_at <= time.time():
            raise refused("The token has expired.")
        return identity

    def _verify(self, token: str) -> Identity:
        try:
            header_segment, claims_segment, _ = token.split(".")
            header = members(header_segment)
            if "crit" in header or "b64" in header:
                raise refused("The token asks for an extension that is not known here.")
            key = self._key(header)
            deserialize_compact(token, key.key, registry=REGISTRY)
            claims = members(claims_segment)
            self._claims.validate(claims)
            subject = self._subject(claims)
            expires_at = float(claims["exp"])
            datetime.fromtimestamp(expires_at, UTC)  # beyond the year 9999, it is a ValueError
            return Identity(self._user_id(subject), subject, expires_at, key)
        except ExpiredTokenError:
            raise refused("The token has expired.") from None
        # joserfc reads the header again, a few calls deeper: what was nested just not too deeply
        # for `members` is a RecursionError there.
        except (JoseError, ValueError, OverflowError, RecursionError):
            raise refused("The token is not one that is accepted here.") from None

    def _key(self, header: dict[str, Any]) -> VerificationKey:
        kid, algorithm = header.get("kid"), header.get("alg")
        if not isinstance(algorithm, str) or not isinstance(kid, str | None):
            raise refused("The header of the token is malformed.")
        key = self.keys.find(kid, algorithm) if algorithm in REGISTRY.algorithms else None
        if key is None:
            raise refused("The token is signed by no key that is accepted here.")
        return key

    def _subject(self, claims: dict[str, Any]) -> str:
        subject = claims.get(self._user_claim)
        if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_LENGTH:
            raise refused("The token names no user.")
        subject.encode()  # a lone surrogate is a ValueError
        return subject

    def _user_id(self, subject: str) -> uuid.UUID:
        """The subject itself, if it is a UUID, or UUIDv5 of the issuer and the subject."""
        if UUID_TEXT.fullmatch(subject):
            return uuid.UUID(subject)
        return uuid.uuid5(self._namespace, subject)


def members(segment: str) -> dict[str, Any]:
    """The object that a segment of a token is. Raises ValueError."""
    value = strict_json.loads(urlsafe_b64decode(segment.encode()))
    if not isinstance(value, dict):
        raise strict_json.NotJsonError("no object")
    return value


def refused(detail: str) -> Problem:
    """A 401 for a token that will not do."""
    return unauthorized(detail, 'Bearer error="invalid_token"')
