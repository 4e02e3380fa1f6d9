"""The key by which a repeated request is recognised (the Idempotency-Key header field's draft)."""

from __future__ import annotations

import hashlib
import re

import orjson

from todo_api.errors import malformed_header
from todo_api.messages import current_request
from todo_api.tables import KEY_LENGTH

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"

# Visible characters of ASCII: a string in quotes (RFC 9651, section 3.3.3), as the draft has it, or
# without them, as most clients send it.
QUOTED = r'(?:[!#-\[\]-~]|\\["\\])'
KEY = re.compile(rf'"{QUOTED}{{1,{KEY_LENGTH}}}"|[!#-~][!-~]{{0,{KEY_LENGTH - 1}}}')


def idempotency_key() -> str | None:
    """The request's key, without quotes, or None if it has none. Raises a 400."""
    given = current_request().field(HEADER)
    if given is None:
        return None
    if not KEY.fullmatch(given):
        detail = f"Must be 1 to {KEY_LENGTH} visible ASCII characters, with or without quotes."
        raise malformed_header(HEADER, detail)
    return re.sub(r"\\(.)", r"\1", given[1:-1]) if given.startswith('"') else given


def fingerprint() -> bytes:
    """What tells the request from others: SHA-256 of its method, path and body, as it was read."""
    request = current_request()
    what = [request.method, request.path.lower(), request.body]
    return hashlib.sha256(orjson.dumps(what, option=orjson.OPT_SORT_KEYS)).digest()
