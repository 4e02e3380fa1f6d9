"""Corrections of generated requests, for rules of the API that an OpenAPI schema cannot express."""

from uuid import uuid4

import schemathesis

ENTITY_TAGS = {"If-Match", "If-None-Match"}
TITLE_LENGTH = 255


@schemathesis.hook
def before_call(context, case, kwargs):
    """Keep valid requests valid and invalid requests invalid; do not change the others."""
    shorten_query(case)
    if case.meta is not None and case.meta.generation.mode.is_positive:
        keep_valid(case)
    elif case.meta is not None:
        keep_invalid(case)


def shorten_query(case):
    """Keep the first two values of a repeated parameter, which are as invalid as more of them.

    gunicorn refuses a request line of more than 4,094 characters with 414. An operation does not
    document what a request gets that does not reach the application.
    """
    for name, value in (case.query or {}).items():
        if isinstance(value, list):
            case.query[name] = value[:2]


def keep_valid(case):
    """Remove or replace values that match the schema but that the server must refuse."""
    # PUT and PATCH take what GET gave, with the ids that are in the path.
    if isinstance(case.body, dict) and "task_id" in case.path_parameters:
        ids = {"id": "task_id", "user_id": "user_id"}
        for name in ids.keys() & case.body.keys():
            case.body[name] = case.path_parameters[ids[name]]
    if case.query:
        # The server makes both values for its clients; a schema cannot describe them.
        case.query.pop("cursor", None)
        if "since" in case.query:
            case.query["since"] = "0"
    if case.headers:
        # The coverage phase generates `0` for these headers, although it violates their pattern.
        for name in ENTITY_TAGS & set(case.headers):
            if case.headers[name] == "0":
                del case.headers[name]
        # A key is refused if another request has used it, so each request gets a new key in the
        # generated form.
        key, new_key = case.headers.get("Idempotency-Key"), uuid4().hex
        if key:
            is_quoted = key.startswith('"')
            case.headers["Idempotency-Key"] = (
                f'"{new_key}"' if is_quoted else new_key + key[len(new_key) :]
            )


def keep_invalid(case):
    """Keep a title too long: add characters that the server does not strip.

    The server strips white space before it checks the length. maxLength cannot express this.
    """
    title = case.body.get("title") if isinstance(case.body, dict) else None
    if isinstance(title, str) and len(title.strip()) <= TITLE_LENGTH < len(title):
        case.body["title"] = f"|{title}|"
