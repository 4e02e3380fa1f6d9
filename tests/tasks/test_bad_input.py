"""Invalid members of a task: each gets one error that names it, and nothing is stored."""

import json

import pytest

DATE = "Must be a date from 1970-01-01 to 9999-12-30, like 2026-11-21."
DATE_WITHOUT_TIME = "Must be a date without a time, like 2026-11-21."
TIME = "Must be a time of day, like 09:30 or 09:30:00, from 00:00 to 23:59:59."
ZONE = "Must be the IANA name of a time zone, like Europe/Berlin."
MOMENT = "Must be a date-time of RFC 3339, like 2026-11-21T09:30:00Z."
PRIORITY = "Must be none, low, medium or high."
LABELS = "Must be an array of strings."
LABEL_LENGTH = "Must have 1 to 60 characters."
CONTROL = "Must not have a control character."
SAME_LABEL = "Is the same label as number 0 of the array, ignoring case."
METADATA = "Must be an object of strings."
KEY_LENGTH = "A key must have 1 to 40 characters."
CHARACTERS = "U+0000 and lone surrogates are not allowed."
NO_STRING = "Not a valid string."
NO_BOOLEAN = "Not a valid boolean."
NO_NULL = "Field may not be null."

DUE_DATE = {"due_date": "2026-11-21"}
DUE_TIME = {**DUE_DATE, "due_time": "09:30"}


def cases(member, detail, *values, **others):
    """Return a case for each invalid value of the member; `others` are sent with it."""
    return [({**others, member: value}, f"/{member}", detail) for value in values]


DATE_CASES = [
    case
    for member in ("due_date", "start_date")
    for case in (
        *cases(
            member,
            DATE_WITHOUT_TIME,
            *("2026-11-21T00:00:00Z", "2026-11-21T09:30", "2026-11-21t09:30:00+01:00"),
        ),
        *cases(member, DATE, *("2026-02-30", "2026-13-01", "0000-01-01", "1969-12-31")),
        *cases(member, DATE, *("9999-12-31", "10000-01-01", "2026-1-1", "20261121", "2026-W47-6")),
        *cases(member, DATE, *("", " 2026-11-21", "2026-11-21 ", "2026-11-21 09:30", "today")),
        *cases(member, DATE, *("２０２６-11-21", "2026-11-21\x00", "-2026-11-21", "21.11.2026")),
        *cases(member, DATE, *(20261121, 1763719200, 1.5, True, [], {}, ["2026-11-21"])),
    )
]
TIME_CASES = [
    *cases("due_time", TIME, *("09:30:00Z", "09:30+01:00", "09:30:00-00:00"), **DUE_DATE),
    *cases("due_time", TIME, *("24:00", "24:00:00", "9:30", "09:60", "23:59:60"), **DUE_DATE),
    *cases("due_time", TIME, *("09:30:00.5", "09", "0930", "T09:30", "noon", ""), **DUE_DATE),
    *cases("due_time", TIME, *("09:30 ", "٠٩:30", "09:30\x00", "09:30 am"), **DUE_DATE),
    *cases("due_time", TIME, *(930, 9.5, True, [], {}), **DUE_DATE),
    ({"due_time": "09:30"}, "/due_time", "Needs a due_date."),
    ({"due_time": "09:30", "due_date": None}, "/due_time", "Needs a due_date."),
    ({"due_time": "09:30", "time_zone": "UTC"}, "/due_time", "Needs a due_date."),
]
ZONE_CASES = [
    *cases("time_zone", ZONE, *("europe/berlin", "CET+1", "localtime", "Europe"), **DUE_TIME),
    *cases("time_zone", ZONE, *("../etc/passwd", "/usr/share/zoneinfo/UTC"), **DUE_TIME),
    *cases("time_zone", ZONE, *("Factory", "posixrules", "posix/UTC", "right/UTC"), **DUE_TIME),
    *cases("time_zone", ZONE, *("", "UTC+1", "+01:00", "Z", "Local", "tzdata.zi"), **DUE_TIME),
    *cases("time_zone", ZONE, *("Europe/Berlin ", "Europe\\Berlin", "Europe//Berlin"), **DUE_TIME),
    *cases("time_zone", ZONE, *("x" * 64, "x" * 65, "Europe/Berlin\n"), **DUE_TIME),
    *cases("time_zone", NO_STRING, *(1, True, [], {}, ["UTC"]), **DUE_TIME),
    *cases("time_zone", "The character U+0000 is not allowed.", "UTC\x00", **DUE_TIME),
    *cases("time_zone", "A lone surrogate is not a character.", "UTC\ud800", **DUE_TIME),
    ({"time_zone": "Europe/Berlin"}, "/time_zone", "Needs a due_time."),
    ({"time_zone": "Europe/Berlin", **DUE_DATE}, "/time_zone", "Needs a due_time."),
]
START_CASES = [
    ({"start_date": "2026-11-22", **DUE_DATE}, "/start_date", "Must not be after due_date."),
    ({"start_date": "9999-12-30", **DUE_TIME}, "/start_date", "Must not be after due_date."),
]
PRIORITY_CASES = cases(
    "priority", PRIORITY, *(4, 0, 1.0, True, "urgent", "High", "", " high", "1", ["high"], {})
)
LABEL_CASES = [
    *cases("labels", LABELS, *("errand", "errand,shop", 5, True, {}, {"0": "errand"})),
    *(
        ({"labels": labels}, "/labels/1", SAME_LABEL)
        for labels in (
            *(["home", "Home"], ["home", "home"], ["home", " home "], ["é", "É"]),
            *(["ss", "ß"], ["STRASSE", "straße"], ["ς", "Σ"], ["ﬁt", "FIT"]),
        )
    ),
    *(
        ({"labels": [label]}, "/labels/0", detail)
        for label, detail in (
            ("a,b", "Must not have a comma."),
            (",", "Must not have a comma."),
            ("", LABEL_LENGTH),
            (" \u3000 ", LABEL_LENGTH),
            ("x" * 61, LABEL_LENGTH),
            ("\U0001f43b" * 61, LABEL_LENGTH),
            ("a\nb", CONTROL),
            ("\ta", CONTROL),
            ("a\x7f", CONTROL),
            ("a\x85b", CONTROL),
            ("a\x1b[0m", CONTROL),
            ("a\x00", "The character U+0000 is not allowed."),
            ("a\ud800", "A lone surrogate is not a character."),
            (1, NO_STRING),
            (True, NO_STRING),
            (["a"], NO_STRING),
            ({}, NO_STRING),
            (None, NO_NULL),
        )
    ),
    (
        {"labels": [f"label {number}" for number in range(21)]},
        "/labels",
        "Must have at most 20 labels.",
    ),
]
METADATA_CASES = [
    *cases("metadata", METADATA, *([], "source", 5, True, [["source", "mail"]])),
    *(
        ({"metadata": {"source": value}}, "/metadata/source", "Must be a string.")
        for value in (5, 1.5, True, [], {}, ["mail"], {"a": "b"})
    ),
    ({"metadata": {"a/b~c": 1}}, "/metadata/a~1b~0c", "Must be a string."),
    ({"metadata": {"": "mail"}}, "/metadata/", KEY_LENGTH),
    ({"metadata": {"k" * 41: "mail"}}, f"/metadata/{'k' * 41}", KEY_LENGTH),
    ({"metadata": {"k": "v" * 201}}, "/metadata/k", "Must have at most 200 characters."),
    ({"metadata": {"k": "a\x00"}}, "/metadata/k", CHARACTERS),
    ({"metadata": {"k": "a\ud800"}}, "/metadata/k", CHARACTERS),
    ({"metadata": {"a\x00": "v"}}, "/metadata/a\x00", CHARACTERS),
    ({"metadata": {"a\udfff": "v"}}, "/metadata/a?", CHARACTERS),
    (
        {"metadata": {f"key {number}": "" for number in range(21)}},
        "/metadata",
        "Must have at most 20 keys.",
    ),
]
COMPLETION_CASES = [
    *cases("completed", NO_BOOLEAN, *(1, 0, 1.0, "true", "false", "", [], {})),
    *cases("completed", NO_NULL, None),
    *cases("completed_at", "Must not be in the future.", "2126-01-01T00:00:00Z", completed=True),
    *cases(
        "completed_at", "Must not be in the future.", "9999-12-31T23:59:59.999999Z", completed=False
    ),
    *cases(
        "completed_at",
        MOMENT,
        *("2026-11-20T09:30:00", "2026-11-20", "2026-11-20 09:30:00Z", "2026-11-20T09:30Z"),
        *("2026-02-30T00:00:00Z", "2026-11-20T24:00:00Z", "2026-11-20T23:59:60Z"),
        *("2026-11-20T09:30:00+25:00", "2026-11-20T09:30:00+0100", "2026-11-20T09:30:00 01:00"),
        *("2026-11-20T09:30:00.1234567Z", "2026-11-20T09:30:00,5Z", "2026-W47-6T09:30:00Z"),
        *("0001-01-01T00:00:00+01:00", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59-00:01"),
        *("now", "", "1763719200", 1763719200, 1.5, True, [], {}),
        completed=True,
    ),
]
# Values that a merge patch takes for the default.
NULL_CASES = [
    *(({member: None}, f"/{member}", NO_NULL) for member in ("priority", "labels", "metadata")),
    ({"metadata": {"source": None}}, "/metadata/source", "Must be a string."),
]
BAD_INPUT = [
    *(*DATE_CASES, *TIME_CASES, *ZONE_CASES, *START_CASES, *PRIORITY_CASES, *LABEL_CASES),
    *(*METADATA_CASES, *COMPLETION_CASES),
]


def send(client, method, tasks_url, task, body):
    """Send the members with this method, and with a title if the method needs one."""
    url = tasks_url if method == "POST" else task.url
    sent = body if method == "PATCH" else {"title": task["title"], **body}
    return client.open(url, method=method, data=json.dumps(sent), content_type="application/json")


def assert_refused(response, errors):
    assert response.status_code == 422, response.text
    assert response.mimetype == "application/problem+json"
    assert response.json["type"] == "/problems/invalid"
    assert response.json["errors"] == errors


@pytest.fixture
def assert_nothing_is_stored(client, tasks_url, user_id, task):
    """Return a function that compares what the user has with what the user had before."""
    before = [client.get(url).json for url in (tasks_url, f"/api/{user_id}")]

    def check():
        assert [client.get(url).json for url in (tasks_url, f"/api/{user_id}")] == before
        assert before[0] == [task]

    return check


def ids(cases):
    """Return a readable id for each case, in ASCII."""
    return [json.dumps(body)[:60] for body, *_ in cases]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize(("body", "pointer", "detail"), BAD_INPUT, ids=ids(BAD_INPUT))
def test_invalid_member_gets_one_error_and_nothing_is_stored(
    client, tasks_url, task, assert_nothing_is_stored, method, body, pointer, detail
):
    response = send(client, method, tasks_url, task, body)

    assert_refused(response, [{"pointer": pointer, "detail": detail}])
    assert_nothing_is_stored()


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(("body", "pointer", "detail"), NULL_CASES, ids=ids(NULL_CASES))
def test_null_is_refused_outside_a_merge_patch(
    client, tasks_url, task, assert_nothing_is_stored, method, body, pointer, detail
):
    response = send(client, method, tasks_url, task, body)

    assert_refused(response, [{"pointer": pointer, "detail": detail}])
    assert_nothing_is_stored()


@pytest.mark.parametrize("value", [None, "2026-11-21T08:30:00.000000Z", "x", 5])
def test_due_at_in_a_post_is_refused(client, tasks_url, task, assert_nothing_is_stored, value):
    response = send(client, "POST", tasks_url, task, {**DUE_TIME, "due_at": value})

    assert_refused(response, [{"pointer": "/due_at", "detail": "Is read-only."}])
    assert_nothing_is_stored()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_each_invalid_member_of_a_request_gets_its_error(
    client, tasks_url, task, assert_nothing_is_stored, method
):
    body = {
        "priority": 4,
        "labels": ["ok", 5, "a,b"],
        "due_date": "2026-02-30",
        "due_time": "24:00",
        "metadata": {"a": 1, "b": "", "c": 2},
        "dueDate": "2026-11-21",
    }

    response = send(client, method, tasks_url, task, body)

    assert response.status_code == 422
    assert {error["pointer"]: error["detail"] for error in response.json["errors"]} == {
        "/priority": PRIORITY,
        "/labels/1": NO_STRING,
        "/labels/2": "Must not have a comma.",
        "/due_date": DATE,
        "/due_time": TIME,
        "/metadata/a": "Must be a string.",
        "/metadata/c": "Must be a string.",
        "/dueDate": "Unknown field.",
    }
    assert_nothing_is_stored()


@pytest.mark.parametrize(("body", "pointer", "detail"), COMPLETION_CASES, ids=ids(COMPLETION_CASES))
def test_invalid_completion_is_refused(
    client, task, assert_nothing_is_stored, body, pointer, detail
):
    response = client.patch(f"{task.url}/complete", json=body)

    assert_refused(response, [{"pointer": pointer, "detail": detail}])
    assert_nothing_is_stored()


LIMITS = [
    ({"due_date": "1970-01-01"}, {}),
    ({"due_date": "9999-12-30", "due_time": "23:59:59", "time_zone": "Etc/GMT+12"}, {}),
    (
        {"due_date": "1970-01-01", "due_time": "00:00", "time_zone": "Pacific/Kiritimati"},
        {"due_time": "00:00:00"},
    ),
    ({"due_date": "2024-02-29", "start_date": "2024-02-29"}, {}),
    ({"labels": [f"label {number:02}" for number in range(20)]}, {}),
    ({"labels": ["#1", "'; --", "a b", "x" * 60, "\u202eb", "\U0001f43b" * 60]}, {}),
    ({"labels": [" b ", "\u3000a", "B2"]}, {"labels": ["B2", "a", "b"]}),
    ({"metadata": {f"{number:040}": "v" * 200 for number in range(20)}}, {}),
    ({"metadata": {"\U0001f43b" * 40: "\U0001f43b" * 200, " ": " ", "$": "'", '"\\/': "\n"}}, {}),
    (
        {"completed": True, "completed_at": "0001-01-01T01:00:00+01:00"},
        {"completed_at": "0001-01-01T00:00:00.000000Z"},
    ),
]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize(("body", "changed"), LIMITS, ids=ids(LIMITS))
def test_greatest_and_strangest_valid_values_are_stored(
    client, tasks_url, task, method, body, changed
):
    response = send(client, method, tasks_url, task, body)

    assert response.status_code in (200, 201), response.text
    stored = client.get(f"{tasks_url}/{response.json['id']}").json
    assert stored == response.json
    assert {name: stored[name] for name in body} == body | changed
