"""Keys that tokens are verified with, and what each may be used for."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, Key, OctKey, OKPKey, RSAKey

if TYPE_CHECKING:
    from collections.abc import Iterable


SECRET_BYTES = 32


RSA_BITS = 2048


# What a key may be used for is the key's to say, not the token's (RFC 8725, section 3.1).
ALGORITHMS_OF_CURVE = {
    "P-256": {"ES256"},
    "P-384": {"ES384"},
    "P-521": {"ES512"},
    "Ed25519": {"EdDSA", "Ed25519"},
    "Ed448": {"EdDSA", "Ed448"},
}


ALGORITHMS_OF_RSA = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}


ALGORITHMS_OF_SECRET = {"HS256"}


class KeyFormatError(ValueError):
    """No key that tokens can be verified with; the message says why."""


class KeysUnavailableError(Exception):
    """There is no key set: the issuer has not been reached, or not for too long."""


@dataclass(frozen=True)
class VerificationKey:
    """A key, the algorithms that it is good for, and the id by which tokens name it."""

    thumbprint: str
    kid: str | None
    algorithms: frozenset[str]
    key: Key = field(compare=False, repr=False)

    @classmethod
    def of(cls, key: Key) -> VerificationKey:
        """Raises KeyFormatError for a key that is private, weak, or not for signatures."""
        algorithms = algorithms_of(key)
        if key.alg is not None:
            algorithms &= {key.alg, "EdDSA"} if key.alg == "Ed25519" else {key.alg}
        if key.get("use", "sig") != "sig" or "verify" not in key.get("key_ops", ["verify"]):  # type: ignore[operator]
            algorithms = set()
        if not algorithms:
            raise KeyFormatError("It is not for verifying signatures.")
        return cls(key.thumbprint(), key.kid, frozenset(algorithms), key)


def algorithms_of(key: Key) -> set[str]:
    match key:
        case OctKey():
            return set(ALGORITHMS_OF_SECRET)
        case RSAKey():
            if key.public_key.key_size < RSA_BITS:
                raise KeyFormatError(f"An RSA key needs {RSA_BITS} bits.")
            return set(ALGORITHMS_OF_RSA)
        case ECKey() | OKPKey():
            return set(ALGORITHMS_OF_CURVE.get(key.curve_name, ()))


def parse_secret(text: str) -> VerificationKey:
    """The key of a shared secret, of 32 bytes at least (RFC 7518, section 3.2)."""
    if len(text.encode(errors="surrogateescape")) < SECRET_BYTES:
        raise KeyFormatError(f"It needs {SECRET_BYTES} bytes: openssl rand -hex 32.")
    try:
        return VerificationKey.of(OctKey.import_key(text))
    except ValueError as error:  # joserfc's, for a public key, or bytes that are not UTF-8
        raise KeyFormatError("It is no secret: a public key goes to JWT_PUBLIC_KEY.") from error


def parse_public_key(text: str) -> VerificationKey:
    """The key of a PEM or of a JSON Web Key. Raises KeyFormatError."""
    try:
        key = import_jwk(text) if text.lstrip().startswith("{") else import_pem(text)
    except KeyFormatError:
        raise
    except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise KeyFormatError("It is neither a PEM nor a JSON Web Key.") from error
    if key.is_private:
        raise KeyFormatError("It is a private key, which this server must not have.")
    return VerificationKey.of(key)


def import_jwk(text: str) -> Key:
    members = json.loads(text)
    if members.get("kty") == OctKey.key_type:
        raise KeyFormatError("It is a secret: that is what JWT_SECRET is for.")
    return JWKRegistry.import_key(members)


def import_pem(text: str) -> Key:
    for kind in (RSAKey, ECKey, OKPKey):
        with suppress(JoseError, ValueError, TypeError):
            return kind.import_key(text)
    raise ValueError("no known kind of key")


class Keys(Protocol):
    """Where a token's key is looked up."""

    def find(self, kid: str | None, algorithm: str) -> VerificationKey | None:
        """The key that the header of a token means. Raises KeysUnavailableError."""

    def holds(self, key: VerificationKey) -> bool:
        """Whether the key is still one of those that tokens are verified with."""


def chosen(
    keys: Iterable[VerificationKey], kid: str | None, algorithm: str
) -> VerificationKey | None:
    """The one key of this id and for this algorithm; without an id, the only one for it."""
    fit = [
        key
        for key in keys
        if algorithm in key.algorithms and (kid is None or key.kid in (kid, None))
    ]
    named = [key for key in fit if key.kid == kid]
    if kid is not None and named:
        return named[0]
    return fit[0] if len(fit) == 1 else None


class FixedKey:
    """The one key of the settings."""

    def __init__(self, key: VerificationKey) -> None:
        self._key = key

    def find(self, kid: str | None, algorithm: str) -> VerificationKey | None:
        return chosen([self._key], kid, algorithm)

    def holds(self, key: VerificationKey) -> bool:
        return key == self._key
