"""Read the Idempotency-Key header of an IETF draft, which identifies repeated requests."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

import orjson

from todo_api.db.tables import IDEMPOTENCY_KEY_LENGTH
from todo_api.web.problems import malformed_header
from todo_api.web.requests import current_request

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"

# Visible ASCII characters. The draft requires quotes (RFC 9651, section 3.3.3), but most clients
# send none.
QUOTED = r'(?:[!#-\[\]-~]|\\["\\])'
KEY = re.compile(
    rf'"{QUOTED}{{1,{IDEMPOTENCY_KEY_LENGTH}}}"|[!#-~][!-~]{{0,{IDEMPOTENCY_KEY_LENGTH - 1}}}'
)


class IdempotentRequest(NamedTuple):
    """The key of a request, its path, and the SHA-256 of its method, path and body."""

    key: str
    path: str
    fingerprint: bytes


def read_idempotent_request() -> IdempotentRequest | None:
    """Return the request's key and fingerprint, or None without a key. Raises a 400."""
    request = current_request()
    value = request.header(HEADER)
    if value is None:
        return None
    if not KEY.fullmatch(value):
        length = f"1 to {IDEMPOTENCY_KEY_LENGTH} visible ASCII characters"
        raise malformed_header(HEADER, f"Must be {length}, with or without quotes.")
    key = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
    content = [request.method, request.path.lower(), request.body]
    fingerprint = hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).digest()
    return IdempotentRequest(key, request.path, fingerprint)
