"""Corrections of generated requests, for rules of the API that an OpenAPI schema cannot express."""

import re
from datetime import UTC, datetime
from urllib.parse import unquote
from uuid import uuid4

import schemathesis

ENTITY_TAGS = {"If-Match", "If-None-Match"}
TITLE_LENGTH = 255
LABEL_LENGTH = 60
MOST_LABELS = 20

ZONE = "Europe/Berlin"
DUE = {"due_date": "2026-11-21", "due_time": "09:30", "time_zone": ZONE}
# Dates as text have the order of the days.
FIRST_DATE, LAST_DATE = "1970-01-01", "9999-12-30"


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
    keep_label_valid(case.path_parameters)
    if isinstance(case.body, dict):
        item = next((name for name in ("task_id", "list_id") if name in case.path_parameters), None)
        # PUT and PATCH take what GET gave, with the ids that are in the path.
        ids = {"id": item, "user_id": "user_id"} if item else {}
        for name in ids.keys() & case.body.keys():
            case.body[name] = case.path_parameters[ids[name]]
        keep_members_valid(case.body, is_user=item is None)
        keep_places_valid(case.body)
    if case.query:
        keep_filters_valid(case.query)
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


def keep_members_valid(body, *, is_user):
    """Correct values and combinations of members that a schema cannot exclude.

    A body of a user may have a `time_zone` without a `due_time`.
    """
    if isinstance(body.get("time_zone"), str):
        body["time_zone"] = ZONE
    for name in ("due_date", "start_date"):
        if isinstance(body.get(name), str):
            body[name] = min(max(body[name], FIRST_DATE), LAST_DATE)
    if isinstance(body.get("completed_at"), str) and not is_in_the_past(body["completed_at"]):
        body["completed_at"] = "2020-11-21T09:30:00Z"
    if isinstance(body.get("labels"), list):
        unequal = {label.strip().casefold(): label for label in body["labels"]}
        body["labels"] = list(unequal.values())
    # A task that is changed may have any of these members, so all of them are sent.
    is_due = body.keys() & {*DUE, "start_date"}
    if is_due and not (is_user and body.keys() == {"time_zone"}):
        for name, value in DUE.items():
            body[name] = body.get(name) or value
        start_date = body.get("start_date")
        body["start_date"] = start_date and min(start_date, body["due_date"])


def keep_places_valid(body):
    """Replace ids of lists and tasks that do not exist, and correct combinations of members."""
    for name in ("list_id", "parent_id", "after", "before"):
        if name in body:
            body[name] = None
    if "after" in body:
        body.pop("before", None)
    if body.get("subtasks"):
        body["completed"] = True


def keep_label_valid(path_parameters):
    """Replace a label that violates its pattern. The stateful phase generates such labels.

    The label is percent-encoded.
    """
    label = unquote(path_parameters.get("label", "errand")).strip()
    if not 1 <= len(label) <= LABEL_LENGTH or re.search(r"[,\x00-\x1f\x7f-\x9f]", label):
        path_parameters["label"] = "errand"


def keep_filters_valid(query):
    """Correct parameters that a schema cannot describe: dates, time zones and labels."""
    if isinstance(query.get("time_zone"), str):
        query["time_zone"] = ZONE
    for name in ("due_after", "due_before"):
        if isinstance(query.get(name), str):
            query[name] = min(max(query[name], FIRST_DATE), LAST_DATE)
    for name in ("label", "label_any"):
        if isinstance(query.get(name), str):
            labels = [label.strip()[:LABEL_LENGTH] for label in query[name].split(",")]
            query[name] = ",".join(labels[:MOST_LABELS])


def is_in_the_past(text):
    """Return whether the date-time is one that Python can represent, and not in the future."""
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC) <= datetime.now(UTC)
    except (ValueError, OverflowError):
        return False


def keep_invalid(case):
    """Keep a title and a label in a path too long: add characters that the server does not strip.

    The server strips white space before it checks the length. maxLength cannot express this. A
    link replaces the invalid id in the path of a label, so the label must be invalid, too.
    """
    if "label" in case.path_parameters:
        case.path_parameters["label"] = "x" * (LABEL_LENGTH + 1)
    title = case.body.get("title") if isinstance(case.body, dict) else None
    if isinstance(title, str) and len(title.strip()) <= TITLE_LENGTH < len(title):
        case.body["title"] = f"|{title}|"
