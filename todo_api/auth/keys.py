"""Keys that verify tokens, and the algorithms that each key may be used with."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, Key, OctKey, OKPKey, RSAKey

if TYPE_CHECKING:
    from collections.abc import Iterable

SECRET_BYTES = 32
RSA_BITS = 2048

# The key, not the token, decides which algorithms are allowed (RFC 8725, section 3.1).
CURVE_ALGORITHMS = {
    "P-256": {"ES256"},
    "P-384": {"ES384"},
    "P-521": {"ES512"},
    "Ed25519": {"EdDSA", "Ed25519"},
    "Ed448": {"EdDSA", "Ed448"},
}
RSA_ALGORITHMS = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
SECRET_ALGORITHMS = {"HS256"}


class KeyFormatError(ValueError):
    """The text is not a key that can verify tokens. The message gives the reason."""


class KeysUnavailableError(Exception):
    """No key set has been fetched from the issuer, or the last key set is too old."""


@dataclass(frozen=True)
class VerificationKey:
    """A key, its algorithms, and its id (`kid`) in tokens."""

    thumbprint: str
    kid: str | None
    algorithms: frozenset[str]
    key: Key = field(compare=False, repr=False)

    @classmethod
    def from_key(cls, key: Key) -> VerificationKey:
        """Return the key with its algorithms. Raises KeyFormatError if there are none."""
        algorithms = list_algorithms(key)
        if key.alg is not None:
            algorithms &= {key.alg, "EdDSA"} if key.alg == "Ed25519" else {key.alg}
        if key.get("use", "sig") != "sig" or "verify" not in key.get("key_ops", ["verify"]):  # type: ignore[operator]
            algorithms = set()
        if not algorithms:
            raise KeyFormatError("The key is not for verifying signatures.")
        return cls(key.thumbprint(), key.kid, frozenset(algorithms), key)


def list_algorithms(key: Key) -> set[str]:
    """Return the algorithms of the key's type. Raises KeyFormatError for a short RSA key."""
    match key:
        case OctKey():
            return set(SECRET_ALGORITHMS)
        case RSAKey():
            if key.public_key.key_size < RSA_BITS:
                raise KeyFormatError(f"An RSA key needs at least {RSA_BITS} bits.")
            return set(RSA_ALGORITHMS)
        case ECKey() | OKPKey():
            return set(CURVE_ALGORITHMS.get(key.curve_name, ()))


def parse_secret(text: str) -> VerificationKey:
    """Return the key of a shared secret (RFC 7518, section 3.2). Raises KeyFormatError."""
    if len(text.encode(errors="surrogateescape")) < SECRET_BYTES:
        raise KeyFormatError(
            f"The secret needs at least {SECRET_BYTES} bytes: openssl rand -hex 32."
        )
    try:
        return VerificationKey.from_key(OctKey.import_key(text))
    except ValueError as error:  # joserfc's, for a public key, or for bytes that are not UTF-8
        raise KeyFormatError(
            "This is not a shared secret. Set a public key in JWT_PUBLIC_KEY."
        ) from error


def read_public_key(value: str) -> str:
    """Return a PEM or JSON Web Key: the value itself, or the text of the file at this path.

    Raises KeyFormatError, also for a key that cannot verify tokens.
    """
    # On many hosting platforms, a variable has one line: line ends are written as \n.
    text = value.replace("\\n", "\n")
    if not text.lstrip().startswith(("-----", "{")):
        try:
            text = Path(value).read_text(encoding="utf-8")
        except (OSError, ValueError):
            raise KeyFormatError("This is neither a key nor the path of a readable file.") from None
    parse_public_key(text)
    return text


def parse_public_key(text: str) -> VerificationKey:
    """Return the key of a PEM or of a JSON Web Key (RFC 7517). Raises KeyFormatError."""
    try:
        key = import_jwk(text) if text.lstrip().startswith("{") else import_pem(text)
    except KeyFormatError:
        raise
    except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise KeyFormatError("This is neither a PEM nor a JSON Web Key.") from error
    if key.is_private:
        raise KeyFormatError(
            "This is a private key. Set the public key instead: the server needs no private key."
        )
    return VerificationKey.from_key(key)


def import_jwk(text: str) -> Key:
    """Return joserfc's key for a JSON Web Key. Raises joserfc's and Python's errors."""
    members = json.loads(text)
    if members.get("kty") == OctKey.key_type:
        raise KeyFormatError("This is a shared secret. Set it in JWT_SECRET.")
    return JWKRegistry.import_key(members)


def import_pem(text: str) -> Key:
    """Return joserfc's key for a PEM. Raises ValueError."""
    for kind in (RSAKey, ECKey, OKPKey):
        with suppress(JoseError, ValueError, TypeError):
            return kind.import_key(text)
    raise ValueError("no known type of key")


class Keys(Protocol):
    """The keys among which a token's key is looked up."""

    def find(self, kid: str | None, algorithm: str) -> VerificationKey | None:
        """Return the key for a token with this header, or None. Raises KeysUnavailableError."""

    def has(self, key: VerificationKey) -> bool:
        """Return whether the key may still verify tokens."""


def choose_key(
    keys: Iterable[VerificationKey], kid: str | None, algorithm: str
) -> VerificationKey | None:
    """Return the key with this id for this algorithm.

    If no key has the id, return the only key for the algorithm that has no id. If `kid` is None,
    return the only key for the algorithm. Return None if there is no such key or more than one.
    """
    candidates = [
        key
        for key in keys
        if algorithm in key.algorithms and (kid is None or key.kid in (kid, None))
    ]
    with_kid = [key for key in candidates if key.kid == kid]
    if kid is not None and with_kid:
        return with_kid[0]
    return candidates[0] if len(candidates) == 1 else None


class FixedKey:
    """The one key of the settings."""

    def __init__(self, key: VerificationKey) -> None:
        self._key = key

    def find(self, kid: str | None, algorithm: str) -> VerificationKey | None:
        return choose_key([self._key], kid, algorithm)

    def has(self, key: VerificationKey) -> bool:
        return key == self._key
