"""What schemathesis cannot know of valid requests, taken out of those that it holds to be valid."""

import re
from uuid import uuid4

import schemathesis

ENTITY_TAGS = {"If-Match", "If-None-Match"}
TITLE_LENGTH = 255


@schemathesis.hook
def before_call(context, case, kwargs):
    """Keep valid requests valid, and invalid ones invalid; the others go as they were made."""
    if case.meta is not None and case.meta.generation.mode.is_positive:
        keep_valid(case)
    elif case.meta is not None:
        keep_invalid(case)


def keep_valid(case):
    """Send nothing that only this server can tell to be wrong."""
    if case.query:
        # Both are what the server gave to its client: no schema tells which texts these are.
        case.query.pop("cursor", None)
        if "since" in case.query and not re.fullmatch("[0-9]{1,18}", str(case.query["since"])):
            case.query["since"] = "0"
    if case.headers:
        # Together, they say that the task must be there and must not be.
        if case.headers.get("If-None-Match") == "*":
            case.headers.pop("If-Match", None)
        # The coverage phase makes `0` for a header whose every value has a character beside
        # letters and digits, against the header's pattern.
        for name in ENTITY_TAGS & set(case.headers):
            if case.headers[name] == "0":
                del case.headers[name]
        # A key that another request has had is refused; sent again, it may tell of a task that is
        # deleted since. Each request has one of its own, of the form that was generated.
        key, own = case.headers.get("Idempotency-Key"), uuid4().hex
        if key:
            quoted = key.startswith('"')
            case.headers["Idempotency-Key"] = f'"{own}"' if quoted else own + key[len(own) :]


def keep_invalid(case):
    """Send a title that is too long, and not one that is too long with its white space only.

    That is stripped before the rest is measured, which maxLength cannot say.
    """
    title = case.body.get("title") if isinstance(case.body, dict) else None
    if isinstance(title, str) and len(title.strip()) <= TITLE_LENGTH < len(title):
        case.body["title"] = f"|{title}|"
