"""Read the Idempotency-Key header, which identifies repeated requests (an IETF draft)."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

import orjson

from todo_api.db.tables import KEY_LENGTH
from todo_api.web.problems import malformed_header
from todo_api.web.requests import current_request

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"

# Visible ASCII characters: in quotes (RFC 9651, section 3.3.3), as in the draft, or without quotes,
# as most clients send them.
QUOTED = r'(?:[!#-\[\]-~]|\\["\\])'
KEY = re.compile(rf'"{QUOTED}{{1,{KEY_LENGTH}}}"|[!#-~][!-~]{{0,{KEY_LENGTH - 1}}}')


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
        detail = f"Must be 1 to {KEY_LENGTH} visible ASCII characters, with or without quotes."
        raise malformed_header(HEADER, detail)
    key = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
    content = [request.method, request.path.lower(), request.body]
    fingerprint = hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).digest()
    return IdempotentRequest(key, request.path, fingerprint)
