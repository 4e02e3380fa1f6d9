"""Due dates, times and time zones of tasks, and lists that depend on the day."""

from __future__ import annotations

import uuid
from base64 import urlsafe_b64decode, urlsafe_b64encode
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import orjson
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.api import next_url, pages
from tests.support.clock import Clock
from tests.support.locks import wait_for_sessions
from todo_api.resources.time_zones import load_zone

if TYPE_CHECKING:
    from flask import Flask
    from flask.testing import FlaskClient

pytestmark = pytest.mark.pooled

# In the past, because a new version of tzdata may change the clock changes of the future.
TODAY = "2025-11-20"
NOON = f"{TODAY}T12:00:00Z"
FAR_ZONES = ["Pacific/Kiritimati", "Etc/GMT+12", "Asia/Kathmandu"]  # +14, -12 and +5:45


@pytest.fixture(scope="module")
def shared_clock() -> Clock:
    return Clock(NOON)


@pytest.fixture
def clock(shared_clock: Clock) -> Clock:
    shared_clock.set(NOON)
    return shared_clock


@pytest.fixture
def app(shared_app, clock: Clock) -> Flask:
    return shared_app(now=clock)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def set_zone(client: FlaskClient, user_id: str):
    """Return a function that sets the user's time zone."""

    def set_(name: str) -> None:
        assert client.patch(f"/api/{user_id}", json={"time_zone": name}).status_code == 200

    return set_


@pytest.fixture
def titles(client: FlaskClient, tasks_url: str):
    """Return a function that lists the titles of the tasks that pass filters, sorted.

    The count of these tasks must agree.
    """

    def read(**query: str) -> list[str]:
        listed = client.get(tasks_url, query_string=query)
        counted = client.get(f"{tasks_url}/count", query_string=query)
        assert listed.status_code == 200, listed.text
        assert counted.json == {"count": len(listed.json)}
        return sorted(task["title"] for task in listed.json)

    return read


def at(day: str, time_of_day: str, zone: str) -> datetime:
    """Return the moment at which clocks in the zone show this time, for the first time."""
    return datetime.fromisoformat(f"{day}T{time_of_day}").replace(tzinfo=load_zone(zone))


def zoned(moment: datetime, zone: str) -> dict[str, str]:
    """Return the members of a task that is due at this moment, in the zone."""
    local = moment.astimezone(load_zone(zone))
    return {
        "due_date": local.date().isoformat(),
        "due_time": local.time().isoformat(),
        "time_zone": zone,
    }


# Dates that no time zone shifts.


@pytest.mark.parametrize("zone", FAR_ZONES)
@pytest.mark.parametrize(
    "due",
    [
        {"due_date": TODAY},
        {"due_date": TODAY, "start_date": TODAY},
        {"due_date": TODAY, "due_time": "00:00:00"},
        {"due_date": TODAY, "due_time": "23:59:59", "time_zone": "Asia/Kathmandu"},
    ],
)
def test_task_read_and_written_back_keeps_its_date(client, make_task, set_zone, zone, due):
    set_zone(zone)
    task = make_task(**due)

    read = client.get(task.url).json
    put = client.put(task.url, json=read).json
    patched = client.patch(task.url, json=put).json
    renamed = client.put(task.url, json=patched | {"title": "Buy oats"}).json

    assert {name: read[name] for name in due} == due
    assert put == patched == read == task
    assert {**renamed, "title": task["title"]} == {
        **task,
        "updated_at": renamed["updated_at"],
        "revision": renamed["revision"],
    }


@pytest.mark.direct("PgBouncer refuses the option")
@pytest.mark.parametrize("zone", FAR_ZONES)
def test_time_zone_of_the_database_session_shifts_nothing(make_app, make_settings, tasks_url, zone):
    url = make_settings().database_url
    separator = "&" if "?" in url else "?"
    option = f"{separator}options=-c%20timezone%3D{zone.replace('+', '%2B')}"
    client = make_app(now=Clock(NOON), DATABASE_URL=url + option).test_client()
    due = {"due_date": TODAY, "due_time": "23:30:00", "time_zone": "Asia/Kathmandu"}

    task = client.post(tasks_url, json={"title": "Zoned", **due, "start_date": TODAY}).json
    all_day = client.post(tasks_url, json={"title": "All-day", "due_date": TODAY}).json
    first = client.get(f"{tasks_url}?sort=due&limit=1")
    second = client.get(next_url(first))

    assert {name: task[name] for name in due} == due
    assert task["start_date"] == TODAY
    assert task["due_at"] == "2025-11-20T17:45:00.000000Z"
    assert all_day["due_date"] == TODAY
    assert (first.json, second.json) == ([task], [all_day])
    assert client.get(f"{tasks_url}?due=today&sort=due").json == [task, all_day]


@pytest.mark.parametrize(
    ("day", "time_of_day", "zone", "due_at"),
    [
        (TODAY, "09:30", "UTC", "2025-11-20T09:30:00"),
        (TODAY, "00:00", "Pacific/Kiritimati", "2025-11-19T10:00:00"),
        (TODAY, "23:59:59", "Etc/GMT+12", "2025-11-21T11:59:59"),
        (TODAY, "09:30", "Asia/Kathmandu", "2025-11-20T03:45:00"),
        ("2025-07-01", "09:30", "Europe/Berlin", "2025-07-01T07:30:00"),
        ("2025-12-01", "09:30", "Europe/Berlin", "2025-12-01T08:30:00"),
        # Skipped by the clocks: the offset before the gap.
        ("2025-03-30", "02:00", "Europe/Berlin", "2025-03-30T01:00:00"),
        ("2025-03-30", "02:30", "Europe/Berlin", "2025-03-30T01:30:00"),
        ("2025-03-30", "03:00", "Europe/Berlin", "2025-03-30T01:00:00"),
        ("2025-03-09", "02:30", "America/New_York", "2025-03-09T07:30:00"),
        ("2025-10-05", "02:15", "Australia/Lord_Howe", "2025-10-04T15:45:00"),
        ("2025-03-09", "00:30", "America/Havana", "2025-03-09T05:30:00"),
        ("2025-03-30", "00:00", "Asia/Beirut", "2025-03-29T22:00:00"),
        ("2011-12-30", "12:00", "Pacific/Apia", "2011-12-30T22:00:00"),  # a whole day
        # Shown twice by the clocks: the first time.
        ("2025-10-26", "02:00", "Europe/Berlin", "2025-10-26T00:00:00"),
        ("2025-10-26", "02:30", "Europe/Berlin", "2025-10-26T00:30:00"),
        ("2025-10-26", "03:00", "Europe/Berlin", "2025-10-26T02:00:00"),
        ("2025-11-02", "01:30", "America/New_York", "2025-11-02T05:30:00"),
        ("2025-04-06", "01:45", "Australia/Lord_Howe", "2025-04-05T14:45:00"),
        ("2025-11-02", "00:30", "America/Havana", "2025-11-02T04:30:00"),
        ("2025-10-25", "23:30", "Asia/Beirut", "2025-10-25T20:30:00"),
        # The limits of dates.
        ("1970-01-01", "00:00", "Pacific/Kiritimati", "1970-01-01T10:40:00"),
        ("9999-12-30", "23:59:59", "Etc/GMT+12", "9999-12-31T11:59:59"),
        ("9999-12-30", "23:59:59", "America/Los_Angeles", "9999-12-31T07:59:59"),
    ],
)
def test_due_at_is_the_moment_of_the_time_in_the_zone(
    client, make_task, day, time_of_day, zone, due_at
):
    task = make_task(due_date=day, due_time=time_of_day, time_zone=zone)

    assert task["due_at"] == f"{due_at}.000000Z"
    assert client.get(task.url).json == task


@pytest.mark.parametrize(
    "due", [{}, {"due_date": TODAY}, {"due_date": TODAY, "due_time": "09:30:00"}]
)
def test_task_without_a_time_zone_has_no_moment(make_task, due):
    task = make_task(**due)

    assert {name: task[name] for name in ("due_date", "due_time", "time_zone", "due_at")} == {
        "due_date": None,
        "due_time": None,
        "time_zone": None,
        "due_at": None,
        **due,
    }


# The filters due and started.


@pytest.mark.parametrize("source", ["user", "query"])
@pytest.mark.parametrize("zone", ["Pacific/Auckland", "America/Los_Angeles", "UTC"])
@pytest.mark.parametrize(
    ("day", "time_of_day", "word"),
    [
        ("2025-11-19", "00:01", "upcoming"),
        ("2025-11-19", "23:59", "upcoming"),
        ("2025-11-20", "00:01", "today"),
        ("2025-11-20", "23:59", "today"),
        ("2025-11-21", "00:01", None),
    ],
)
def test_today_begins_at_midnight_of_the_zone(
    make_task, set_zone, titles, clock, source, zone, day, time_of_day, word
):
    """The zones of zoned tasks have another date at this moment, or another time."""
    make_task(title="all-day", due_date=TODAY)
    make_task(title="floating", due_date=TODAY, due_time="12:00")
    for name in ("Asia/Tokyo", "Pacific/Honolulu"):
        make_task(title=f"zoned {name}", **zoned(at(TODAY, "12:00", zone), name))
    make_task(title="first moment", **zoned(at(TODAY, "00:00", zone), "Asia/Tokyo"))
    make_task(title="last moment", **zoned(at(TODAY, "23:59:59", zone), "Asia/Tokyo"))
    make_task(title="done", completed=True, due_date=TODAY)
    make_task(title="no date")
    every = sorted(["all-day", "floating", "zoned Asia/Tokyo", "zoned Pacific/Honolulu", "done"])
    every = sorted([*every, "first moment", "last moment"])
    query = {"time_zone": zone} if source == "query" else {}
    set_zone(zone if source == "user" else "Asia/Kathmandu")

    clock.set(at(day, time_of_day, zone))

    found = {name: titles(due=name, **query) for name in ("today", "upcoming", "none")}
    assert found == {"today": [], "upcoming": [], "none": ["no date"]} | (
        {word: every} if word else {}
    )


def test_task_is_overdue_when_its_moment_has_passed(make_task, set_zone, titles, clock):
    set_zone("America/Los_Angeles")
    make_task(title="all-day", due_date=TODAY)
    make_task(title="floating", due_date=TODAY, due_time="12:00")
    make_task(title="zoned", **zoned(at(TODAY, "13:00", "America/Los_Angeles"), "Asia/Tokyo"))
    make_task(title="done", completed=True, due_date="2025-11-01")
    make_task(title="no date")

    def overdue_at(day: str, time_of_day: str) -> list[str]:
        clock.set(at(day, time_of_day, "America/Los_Angeles"))
        return titles(due="overdue")

    assert overdue_at(TODAY, "00:00:00") == []
    assert overdue_at(TODAY, "12:00:00") == []
    assert overdue_at(TODAY, "12:00:00.000001") == ["floating"]
    assert overdue_at(TODAY, "13:00:00") == ["floating"]
    assert overdue_at(TODAY, "13:00:01") == ["floating", "zoned"]
    assert overdue_at(TODAY, "23:59:59.999999") == ["floating", "zoned"]
    assert overdue_at("2025-11-21", "00:00:00") == ["all-day", "floating", "zoned"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("today", ["today"]),
        ("overdue", ["overdue"]),
        ("upcoming", ["upcoming"]),
        ("none", ["none"]),
        ("today,overdue", ["overdue", "today"]),
        ("overdue,today,overdue", ["overdue", "today"]),
        ("none,upcoming", ["none", "upcoming"]),
        ("overdue,none", ["none", "overdue"]),
        ("today,overdue,upcoming,none", ["none", "overdue", "today", "upcoming"]),
    ],
)
def test_due_takes_several_words(make_task, titles, words, expected):
    make_task(title="none")
    make_task(title="overdue", due_date="2025-11-19")
    make_task(title="today", due_date=TODAY)
    make_task(title="upcoming", due_date="2025-11-21")

    found = titles(due=words)

    assert found == expected


@pytest.mark.parametrize("words", ["", "tomorrow", "today,", "Today", "today, none", "today,x"])
@pytest.mark.parametrize("path", ["", "/count"])
def test_unknown_word_in_due_is_refused(client, tasks_url, path, words):
    response = client.get(tasks_url + path, query_string={"due": words})

    assert response.status_code == 422
    detail = "Must be one or more of today, overdue, upcoming, none, separated by commas."
    assert response.json["errors"] == [{"parameter": "due", "detail": detail}]


@pytest.mark.parametrize(
    ("moment", "started"),
    [
        ("2025-11-20T10:59:00Z", ["always", "on the 20th"]),  # 23:59 on the 20th in Auckland
        ("2025-11-20T11:01:00Z", ["always", "on the 20th", "on the 21st"]),
    ],
)
def test_task_has_started_on_its_start_date(make_task, set_zone, titles, clock, moment, started):
    set_zone("Pacific/Auckland")
    make_task(title="always", due_date="2025-12-24")
    for day in (20, 21, 22):
        suffix = {20: "th", 21: "st", 22: "nd"}[day]
        make_task(title=f"on the {day}{suffix}", start_date=f"2025-11-{day}")

    clock.set(moment)

    every = ["always", "on the 20th", "on the 21st", "on the 22nd"]
    assert titles(started="true") == started
    assert titles(started="false") == [title for title in every if title not in started]
    assert titles(started="true", due="none") == started[1:]


def test_bounds_of_due_compare_the_date_only(make_task, titles):
    make_task(title="19", due_date="2025-11-19")
    make_task(title="20", due_date=TODAY)
    # In UTC, this is the 19th.
    make_task(title="20 zoned", due_date=TODAY, due_time="01:00", time_zone="Asia/Tokyo")
    make_task(title="21", due_date="2025-11-21", due_time="00:00")
    make_task(title="no date")

    assert titles(due_after="2025-11-19") == ["20", "20 zoned", "21"]
    assert titles(due_before="2025-11-21") == ["19", "20", "20 zoned"]
    assert titles(due_after="2025-11-19", due_before="2025-11-21") == ["20", "20 zoned"]


@pytest.mark.parametrize("parameter", ["due_after", "due_before"])
@pytest.mark.parametrize("value", ["2025-02-30", "2025-11-20T00:00:00Z", "today", "", "20251120"])
def test_invalid_bound_of_due_is_refused(client, tasks_url, parameter, value):
    response = client.get(tasks_url, query_string={parameter: value})

    assert response.status_code == 422
    assert [error["parameter"] for error in response.json["errors"]] == [parameter]


# Days with a clock change. 2025-03-09 in Havana and 2025-03-30 in Beirut begin at 01:00, because
# the clocks skip the hour after midnight. In Beirut, 2025-10-25 has the hour from 23:00 twice. In
# Havana, 2025-11-02 has the hour after midnight twice. On Lord Howe, clocks change by 30 minutes.
@pytest.mark.parametrize(
    ("zone", "day", "first", "last"),
    [
        ("America/Havana", "2025-03-09", "2025-03-09T05:00:00Z", "2025-03-10T03:59:59Z"),
        ("America/Havana", "2025-11-02", "2025-11-02T04:00:00Z", "2025-11-03T04:59:59Z"),
        ("Asia/Beirut", "2025-03-30", "2025-03-29T22:00:00Z", "2025-03-30T20:59:59Z"),
        ("Asia/Beirut", "2025-10-25", "2025-10-24T21:00:00Z", "2025-10-25T21:59:59Z"),
        ("Australia/Lord_Howe", "2025-10-05", "2025-10-04T13:30:00Z", "2025-10-05T12:59:59Z"),
        ("Australia/Lord_Howe", "2025-04-06", "2025-04-05T13:00:00Z", "2025-04-06T13:29:59Z"),
    ],
)
def test_day_with_a_clock_change_is_a_whole_day(
    make_task, set_zone, titles, clock, zone, day, first, last
):
    set_zone(zone)
    make_task(title="all-day", due_date=day)
    begin, end = datetime.fromisoformat(first), datetime.fromisoformat(last)
    second = timedelta(seconds=1)
    for title, moment in (
        ("before", begin - second),
        ("first", begin),
        ("last", end),
        ("after", end + second),
    ):
        make_task(title=title, **zoned(moment, "UTC"))

    def read(moment: datetime) -> dict[str, list[str]]:
        clock.set(moment)
        return {word: titles(due=word) for word in ("today", "upcoming")} | {
            "overdue all-day": titles(due="overdue", q="all-day")
        }

    inside = {"today": ["all-day", "first", "last"], "upcoming": ["after"], "overdue all-day": []}
    assert read(begin) == inside
    assert read(end) == inside
    assert read(begin - second) == {
        "today": ["before"],
        "upcoming": ["after", "all-day", "first", "last"],
        "overdue all-day": [],
    }
    assert read(end + second) == {
        "today": ["after"],
        "upcoming": [],
        "overdue all-day": ["all-day"],
    }


def test_floating_task_stays_overdue_when_the_clocks_are_set_back(
    make_task, set_zone, titles, clock
):
    """Clocks in Berlin show 02:30 at 00:30 UTC and at 01:30 UTC."""
    set_zone("Europe/Berlin")
    make_task(title="floating", due_date="2025-10-26", due_time="02:30")

    def overdue_at(time_of_day: str) -> list[str]:
        clock.set(f"2025-10-26T{time_of_day}Z")
        return titles(due="overdue")

    assert overdue_at("00:30:00") == []
    assert overdue_at("00:30:01") == ["floating"]
    assert overdue_at("01:00:00") == ["floating"]  # 02:00 again
    assert overdue_at("01:45:00") == ["floating"]


def test_floating_task_is_overdue_when_the_clocks_have_skipped_its_time(
    make_task, set_zone, titles, clock
):
    """Clocks in Berlin show 03:00 instead of 02:00, at 01:00 UTC."""
    set_zone("Europe/Berlin")
    make_task(title="floating", due_date="2025-03-30", due_time="02:30")

    clock.set("2025-03-30T00:59:59Z")
    before = titles(due="overdue")
    clock.set("2025-03-30T01:00:00Z")
    after = titles(due="overdue")

    assert (before, after) == ([], ["floating"])


# ETags and cursors of lists that depend on the day.


@pytest.mark.parametrize("path", ["", "/count"])
@pytest.mark.parametrize("query", ["due=today", "due=upcoming,none", "started=true"])
def test_etag_of_a_list_by_day_differs_across_midnight(
    client, make_task, set_zone, tasks_url, clock, path, query
):
    set_zone("Pacific/Auckland")
    make_task(due_date=TODAY)
    clock.set(at(TODAY, "00:00", "Pacific/Auckland"))
    url = f"{tasks_url}{path}?{query}"
    etag = client.get(url).headers["ETag"]

    def repeat(day: str, time_of_day: str):
        clock.set(at(day, time_of_day, "Pacific/Auckland"))
        return client.get(url, headers={"If-None-Match": etag})

    last = repeat(TODAY, "23:59:59.999999")
    first = repeat("2025-11-21", "00:00")

    assert (last.status_code, last.data, last.headers["ETag"]) == (304, b"", etag)
    assert first.status_code == 200
    assert first.headers["ETag"] != etag
    assert first.json == client.get(url).json


@pytest.mark.parametrize("query", ["", "?completed=false", "?due_before=2025-11-21", "?sort=due"])
def test_etag_of_a_list_without_a_day_lasts_for_days(client, make_task, tasks_url, clock, query):
    make_task(due_date=TODAY)
    etag = client.get(tasks_url + query).headers["ETag"]

    clock.set("2025-11-29T12:00:00Z")
    repeated = client.get(tasks_url + query, headers={"If-None-Match": etag})

    assert repeated.status_code == 304


@pytest.mark.parametrize("path", ["", "/count"])
@pytest.mark.parametrize("words", ["overdue", "today,overdue"])
def test_overdue_has_no_etag(client, make_task, tasks_url, clock, path, words):
    """The response changes at any moment, without a change of a task."""
    make_task(due_date=TODAY, due_time="12:00", time_zone="UTC")
    url = f"{tasks_url}{path}?due={words}"

    before = client.get(url)
    clock.set(f"{TODAY}T12:00:01Z")
    after = client.get(url, headers={"If-None-Match": "*"})

    assert "ETag" not in before.headers
    assert "ETag" not in after.headers
    assert after.status_code == 200
    assert before.headers["Cache-Control"] == after.headers["Cache-Control"]


def test_etag_of_a_list_by_day_belongs_to_its_time_zone(client, make_task, set_zone, tasks_url):
    """It is the 21st in Auckland."""
    set_zone("Pacific/Auckland")
    make_task(due_date=TODAY)
    url = f"{tasks_url}?due=today"
    in_auckland = client.get(url)

    set_zone("UTC")
    in_utc = client.get(url, headers={"If-None-Match": in_auckland.headers["ETag"]})

    assert in_auckland.json == []
    assert (in_utc.status_code, len(in_utc.json)) == (200, 1)


@pytest.mark.parametrize("source", ["user", "query"])
def test_cursor_keeps_the_zone_and_the_day_of_its_first_page(
    client, make_task, set_zone, titles, tasks_url, clock, source
):
    zone = "America/Los_Angeles"
    set_zone(zone if source == "user" else "Asia/Tokyo")
    query = f"due=today&limit=2{f'&time_zone={zone}' if source == 'query' else ''}"
    for number in range(5):
        make_task(title=f"{number}", due_date=TODAY)
    make_task(title="tomorrow", due_date="2025-11-21")
    clock.set(at(TODAY, "23:59:59", zone))
    first = client.get(f"{tasks_url}?{query}")

    clock.set(at("2025-11-21", "00:00:01", zone))
    if source == "user":
        set_zone("UTC")
    second = client.get(next_url(first))
    third = client.get(next_url(second))

    listed = [[task["title"] for task in page.json] for page in (first, second, third)]
    assert listed == [["4", "3"], ["2", "1"], ["0"]]
    assert next_url(third) is None
    assert titles(due="today", time_zone=zone) == ["tomorrow"]


def test_page_of_a_cursor_has_the_same_etag_on_every_day(client, make_task, tasks_url, clock):
    for _ in range(2):
        make_task(due_date=TODAY)
    page_url = next_url(client.get(f"{tasks_url}?due=today&limit=1"))
    page = client.get(page_url)

    clock.set("2025-11-29T12:00:00Z")
    repeated = client.get(page_url, headers={"If-None-Match": page.headers["ETag"]})

    assert repeated.status_code == 304


def test_cursor_keeps_the_moment_of_overdue(client, make_task, titles, tasks_url, clock):
    for hour in (9, 10, 11, 13):
        make_task(title=f"{hour}", due_date=TODAY, due_time=f"{hour:02}:00", time_zone="UTC")
    first = client.get(f"{tasks_url}?due=overdue&sort=due&limit=2")

    clock.set(f"{TODAY}T14:00:00Z")
    second = client.get(next_url(first))

    assert [[task["title"] for task in page.json] for page in (first, second)] == [
        ["9", "10"],
        ["11"],
    ]
    assert titles(due="overdue") == ["10", "11", "13", "9"]


# The time zone of the query and of the user.


def test_day_is_in_the_zone_of_the_query_or_else_of_the_user(make_task, set_zone, titles):
    """At noon in UTC, it is the 21st in Auckland and on Kiritimati."""
    make_task(title="20", due_date=TODAY)
    make_task(title="21", due_date="2025-11-21")

    default = titles(due="today")
    set_zone("Pacific/Auckland")
    found = {
        zone: titles(due="today", **({"time_zone": zone} if zone else {}))
        for zone in ("", "UTC", "Pacific/Kiritimati", "America/Los_Angeles")
    }

    assert default == ["20"]
    assert found == {
        "": ["21"],
        "UTC": ["20"],
        "Pacific/Kiritimati": ["21"],
        "America/Los_Angeles": ["20"],
    }


@pytest.mark.parametrize("query", ["", "due=today", "sort=due"])
@pytest.mark.parametrize("path", ["", "/count"])
@pytest.mark.parametrize("zone", ["europe/berlin", "CET+1", "Europe", "localtime", "Factory", ""])
def test_invalid_zone_in_the_query_is_refused(client, tasks_url, path, query, zone):
    sort = {"sort": "due"} if query == "sort=due" and not path else {}
    due = {"due": "today"} if query == "due=today" else {}

    response = client.get(tasks_url + path, query_string={"time_zone": zone, **sort, **due})

    assert response.status_code == 422
    detail = "Must be the IANA name of a time zone, like Europe/Berlin."
    assert response.json["errors"] == [{"parameter": "time_zone", "detail": detail}]


@pytest.mark.parametrize("path", ["", "/count"])
def test_worker_uses_the_zone_that_another_worker_has_set(
    make_app, make_task, user_id, tasks_url, clock, path
):
    """Each worker remembers the zones of users. At noon in UTC, it is the 21st in Auckland."""
    user_url = f"/api/{user_id}"
    task = make_task(due_date="2025-11-21")
    first, second = (make_app(now=clock).test_client() for _ in range(2))
    url = f"{tasks_url}{path}?due=today"
    before = first.get(url)

    second.patch(user_url, json={"time_zone": "Pacific/Auckland"})
    in_auckland = first.get(url, headers={"If-None-Match": before.headers["ETag"]})
    second.patch(user_url, json={"time_zone": "America/Los_Angeles"})
    in_los_angeles = first.get(url, headers={"If-None-Match": in_auckland.headers["ETag"]})
    second.patch(user_url, json={"time_zone": "Pacific/Auckland"})
    first.delete(user_url)
    after_erasure = second.get(url)
    created = first.post(tasks_url, json={"title": "UTC", "due_date": TODAY})
    in_utc = second.get(url)

    def content(tasks: list[Any]) -> Any:
        return {"count": len(tasks)} if path else tasks

    responses = (before, in_auckland, in_los_angeles, after_erasure, in_utc)
    assert [response.status_code for response in responses] == [200] * 5
    assert [response.json for response in responses] == [
        content([]),
        content([task]),
        content([]),
        content([]),
        content([created.json]),
    ]


# Lists sorted by due.


@pytest.mark.parametrize("limit", [1, 3, 4, 200])
@pytest.mark.parametrize("filters", ["", "&completed=false"])
@pytest.mark.parametrize("sort", ["due", "-due"])
def test_pages_by_due_are_ordered_by_wall_clock(client, make_task, tasks_url, sort, filters, limit):
    """All-day tasks are the last of their day, and tasks without a date are the last of all."""
    dues = [
        {"due_date": TODAY, "due_time": "00:00"},
        {"due_date": TODAY, "due_time": "09:30"},
        # The order is by wall clock: this one is due before the others.
        {"due_date": TODAY, "due_time": "09:30", "time_zone": "Pacific/Kiritimati"},
        {"due_date": TODAY, "due_time": "23:59:59"},
        {"due_date": TODAY},
        {"due_date": TODAY},
        {"due_date": "2025-11-21", "due_time": "00:00", "time_zone": "Pacific/Kiritimati"},
        {"due_date": "1970-01-01"},
        {"due_date": "9999-12-30"},
        {},
        {},
    ]
    tasks = [make_task(**due) for due in reversed(dues)]

    listed = list(pages(client, f"{tasks_url}?sort={sort}&limit={limit}{filters}"))

    def key(task: dict[str, Any]) -> tuple[str, str, str]:
        return (task["due_date"] or "~", task["due_time"] or "~", task["id"])

    expected = sorted(tasks, key=key, reverse=sort == "-due")
    assert [task for page in listed for task in page] == expected
    assert {len(page) for page in listed[:-1]} <= {limit}


@pytest.mark.parametrize("sort", ["due", "-due"])
def test_cursor_by_due_continues_at_its_position_after_a_change(client, make_task, tasks_url, sort):
    tasks = [make_task(title=f"{day}", due_date=f"2025-11-{day}") for day in range(20, 24)]
    if sort == "-due":
        tasks.reverse()
    first = client.get(f"{tasks_url}?sort={sort}&limit=2")

    # The task at the end of the page goes to the other end of the list.
    moved = client.patch(tasks[1].url, json={"due_date": None if sort == "due" else "2025-11-01"})
    second = client.get(next_url(first))

    assert first.json == tasks[:2]
    assert second.json == tasks[2:]
    assert client.get(next_url(second)).json == [moved.json]


# Forged cursors.


def forge(url: str, change: Any) -> str:
    """Return the URL of a page with `change` applied to the values in its cursor."""
    (text,) = parse_qs(urlsplit(url).query)["cursor"]
    values = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    change(values)
    forged = urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")
    return url.replace(text, forged)


VALUE, ID, DIGEST, ZONE, MOMENT = range(5)
FORGED = [
    *((VALUE, value) for value in (None, "", "2025-11-20", True, 1.5, -1, 2**63, [], {})),
    (VALUE, 253402214400000001),  # after the key of tasks without a date
    *((ZONE, zone) for zone in (None, "", "europe/berlin", "Factory", "localtime", 1, ["UTC"])),
    (ZONE, "../etc/passwd"),
    *((MOMENT, moment) for moment in (None, "0", True, 0.5, -1, 2**53, 2**63, [0])),
]


@pytest.mark.parametrize(("index", "value"), FORGED)
def test_forged_value_in_a_cursor_is_refused(client, make_task, tasks_url, index, value):
    for _ in range(2):
        make_task(due_date=TODAY)
    page_url = next_url(client.get(f"{tasks_url}?due=today&sort=due&limit=1"))
    assert len(client.get(page_url).json) == 1

    def change(values: list[Any]) -> None:
        assert values[ZONE:] == ["UTC", 1763640000000000]
        values[index] = value

    response = client.get(forge(page_url, change))

    assert response.status_code == 422
    assert [error["parameter"] for error in response.json["errors"]] == ["cursor"]


@pytest.mark.parametrize(
    ("query", "change"),
    [
        ("due=today&sort=due", lambda values: values.pop(MOMENT)),
        ("due=today&sort=due", lambda values: values.append(0)),
        ("due=today&sort=due", lambda values: values.__delitem__(slice(ZONE, None))),
        ("sort=due", lambda values: values.extend(["UTC", 1763640000000000])),
    ],
    ids=["without moment", "longer", "without day", "with a day"],
)
def test_cursor_has_a_day_only_if_the_query_depends_on_it(
    client, make_task, tasks_url, query, change
):
    for _ in range(2):
        make_task(due_date=TODAY)
    page_url = next_url(client.get(f"{tasks_url}?{query}&limit=1"))

    response = client.get(forge(page_url, change))

    assert response.status_code == 422
    assert [error["parameter"] for error in response.json["errors"]] == ["cursor"]


@pytest.mark.parametrize("moment", [0, 2**53 - 1])
@pytest.mark.parametrize("zone", FAR_ZONES)
def test_cursor_of_any_day_is_answered(client, make_task, tasks_url, zone, moment):
    for _ in range(2):
        make_task(due_date=TODAY)
    page_url = next_url(client.get(f"{tasks_url}?due=overdue,today,none&started=true&limit=1"))

    def change(values: list[Any]) -> None:
        values[ZONE:] = [zone, moment]

    response = client.get(forge(page_url, change))

    assert response.status_code == 200


# Changes of some of the members that determine `due_at`.


@pytest.mark.parametrize(
    ("change", "due_at"),
    [
        ({"due_date": "2025-11-22"}, "2025-11-22T11:00:00.000000Z"),
        ({"due_date": "2025-07-01"}, "2025-07-01T10:00:00.000000Z"),
        ({"due_time": "13:30"}, "2025-11-20T12:30:00.000000Z"),
        ({"time_zone": "Asia/Tokyo"}, "2025-11-20T03:00:00.000000Z"),
        ({"due_date": "2025-11-22", "time_zone": "Asia/Tokyo"}, "2025-11-22T03:00:00.000000Z"),
        ({"due_time": "13:30", "time_zone": "UTC"}, "2025-11-20T13:30:00.000000Z"),
        ({"time_zone": None}, None),
        ({"time_zone": None, "due_time": None}, None),
        ({"time_zone": None, "due_time": None, "due_date": None}, None),
        ({"title": "Buy oats"}, "2025-11-20T11:00:00.000000Z"),
    ],
)
@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_change_of_one_member_recomputes_due_at(client, make_task, method, change, due_at):
    task = make_task(due_date=TODAY, due_time="12:00:00", time_zone="Europe/Berlin")

    body = {"title": task["title"], **change} if method == "PUT" else change
    response = client.open(task.url, method=method, json=body)

    changed = {**task, **change, "due_at": due_at}
    if change.get("due_time"):
        changed["due_time"] = f"{change['due_time']}:00"
    assert response.status_code == 200
    assert response.json == changed | {
        "updated_at": response.json["updated_at"],
        "revision": response.json["revision"],
    }
    assert response.json["revision"] > task["revision"]
    assert client.get(task.url).json == response.json


@pytest.mark.parametrize("headers", [{}, {"If-Match": "*"}])
def test_change_of_the_date_alone_that_changes_nothing_takes_no_revision(
    client, make_task, headers
):
    task = make_task(due_date=TODAY, due_time="12:00", time_zone="Europe/Berlin")

    response = client.patch(task.url, json={"due_date": TODAY}, headers=headers)

    assert (response.status_code, response.json) == (200, task)


def test_change_of_the_date_alone_checks_the_precondition(client, make_task):
    task = make_task(due_date=TODAY, due_time="12:00", time_zone="Europe/Berlin")
    current = client.patch(task.url, json={"title": "Buy oats"})

    refused = client.patch(
        task.url, json={"due_date": "2025-11-21"}, headers={"If-Match": task.etag}
    )
    made = client.patch(
        task.url,
        json={"due_date": "2025-11-21"},
        headers={"If-Match": current.headers["ETag"]},
    )

    assert refused.status_code == 412
    assert refused.json["current"] == current.json
    assert made.json["due_at"] == "2025-11-21T11:00:00.000000Z"


def moment_of(task: dict[str, Any]) -> str | None:
    """Return the `due_at` that follows from the other members of the task."""
    if None in (task["due_date"], task["due_time"], task["time_zone"]):
        return None
    moment = at(task["due_date"], task["due_time"], task["time_zone"]).astimezone(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@pytest.mark.parametrize(
    ("others_change", "due_at"),
    [
        ({"due_time": "18:00:00"}, "2025-11-22T17:00:00.000000Z"),
        ({"time_zone": "Asia/Tokyo"}, "2025-11-22T03:00:00.000000Z"),
        ({"time_zone": None}, None),
        ({"time_zone": None, "due_time": None}, None),
        ({"title": "Buy oats"}, "2025-11-22T11:00:00.000000Z"),
    ],
)
def test_change_of_the_date_uses_the_time_that_another_writer_commits_meanwhile(
    client, make_task, database_url, others_change, due_at
):
    """The change has read the stored time, and waits for the writer of the other time."""
    task = make_task(due_date=TODAY, due_time="12:00:00", time_zone="Europe/Berlin")
    others = {**task, **others_change}
    columns = {**others_change, "due_at": moment_of(others)}
    names = ", ".join(f"{name} = %({name})s" for name in columns)

    with psycopg.connect(database_url) as writer, ThreadPoolExecutor(1) as threads:
        writer.execute(f"UPDATE tasks SET {names} WHERE id = %(id)s", {**columns, "id": task["id"]})
        waiting = threads.submit(client.patch, task.url, json={"due_date": "2025-11-22"})
        wait_for_sessions(database_url, lambda: not waiting.done())
        writer.commit()
        response = waiting.result(timeout=10)

    assert response.status_code == 200
    assert response.json == others | {
        "due_date": "2025-11-22",
        "due_at": due_at,
        "updated_at": response.json["updated_at"],
        "revision": response.json["revision"],
    }
    assert client.get(task.url).json == response.json


def test_simultaneous_changes_of_date_time_and_zone_are_merged(
    app, make_task, client, user_id, database_url
):
    task = make_task(due_date=TODAY, due_time="12:00", time_zone="Europe/Berlin")
    changes = [{"due_date": "2025-07-01"}, {"due_time": "18:00"}, {"time_zone": "Asia/Tokyo"}]

    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(3) as threads:
        holder.execute(
            "SELECT FROM tasks WHERE user_id = %s AND id = %s FOR UPDATE", (user_id, task["id"])
        )
        waiting = [
            threads.submit(app.test_client().patch, task.url, json=change) for change in changes
        ]
        wait_for_sessions(database_url, lambda: 3)
        holder.rollback()
        responses = [each.result(timeout=10) for each in waiting]

    assert [response.status_code for response in responses] == [200] * 3
    assert [response.json["due_at"] for response in responses] == [
        moment_of(response.json) for response in responses
    ]
    merged = client.get(task.url).json
    assert merged["due_at"] == "2025-07-01T09:00:00.000000Z"
    assert merged in [response.json for response in responses]


# The filters against a model.


class Model:
    """The filters due and started, evaluated in Python from a task's members alone."""

    def __init__(self, now: datetime, zone: str) -> None:
        self.now, self.zone = now, load_zone(zone)
        self.local = now.astimezone(self.zone)

    def words(self, task: dict[str, Any]) -> set[str]:
        """Return the words of `due` for which a list has the task."""
        if task["due_date"] is None:
            return {"none"}
        day = self.day(task)
        words = set()
        if day == self.local.date():
            words.add("today")
        if day > self.local.date():
            words.add("upcoming")
        if not task["completed"] and self.has_passed(task):
            words.add("overdue")
        return words

    def day(self, task: dict[str, Any]) -> date:
        if task["time_zone"] is None:
            return date.fromisoformat(task["due_date"])
        return self.moment(task, load_zone(task["time_zone"])).astimezone(self.zone).date()

    def has_passed(self, task: dict[str, Any]) -> bool:
        if task["due_time"] is None:
            return self.local.date() > date.fromisoformat(task["due_date"])
        if task["time_zone"] is not None:
            return self.moment(task, load_zone(task["time_zone"])) < self.now
        moment = self.moment(task, self.zone)
        due = datetime.fromisoformat(f"{task['due_date']}T{task['due_time']}")
        if moment.astimezone(self.zone).replace(tzinfo=None) != due:
            # The clocks skip this time: it has passed when they show a later one.
            return self.local.replace(tzinfo=None) > due
        return moment < self.now

    def moment(self, task: dict[str, Any], zone: tzinfo) -> datetime:
        due = datetime.fromisoformat(f"{task['due_date']}T{task['due_time']}")
        return due.replace(tzinfo=zone).astimezone(UTC)

    def has_started(self, task: dict[str, Any]) -> bool:
        start = task["start_date"]
        return start is None or date.fromisoformat(start) <= self.local.date()


# Moments at which clocks change, at different times of the day; in other zones, two midnights.
CLOCK_CHANGES = {
    "America/Havana": ["2025-03-09T05:00Z", "2025-11-02T05:00Z"],
    "America/Los_Angeles": ["2025-03-09T10:00Z", "2025-11-02T09:00Z"],
    "America/Santiago": ["2025-04-06T03:00Z", "2025-09-07T04:00Z"],
    "Africa/Cairo": ["2025-04-24T22:00Z", "2025-10-30T21:00Z"],
    "Asia/Beirut": ["2025-03-29T22:00Z", "2025-10-25T21:00Z"],
    "Atlantic/Azores": ["2025-03-30T01:00Z", "2025-10-26T01:00Z"],
    "Australia/Lord_Howe": ["2025-04-05T15:00Z", "2025-10-04T15:30Z"],
    "Europe/Berlin": ["2025-03-30T01:00Z", "2025-10-26T01:00Z"],
    "Pacific/Auckland": ["2025-04-05T14:00Z", "2025-09-27T14:00Z"],
    "UTC": ["2025-11-20T00:00Z", "2025-11-21T00:00Z"],
    "Pacific/Kiritimati": ["2025-11-20T10:00Z", "2025-11-21T10:00Z"],
    "Etc/GMT+12": ["2025-11-20T12:00Z", "2025-11-21T12:00Z"],
    "Asia/Kathmandu": ["2025-11-19T18:15Z", "2025-11-20T18:15Z"],
}
ZONES = st.sampled_from(list(CLOCK_CHANGES))
# Differences from the moment, in seconds.
NEAR = st.sampled_from([0, 0, -1, 1, -1799, -1800, 1800, -3600, 3600]) | st.integers(-9000, 9000)


@st.composite
def moments_and_tasks(draw: st.DrawFn) -> tuple[datetime, str, list[dict[str, Any]]]:
    """Return a moment, a time zone, and tasks that are due at about this moment or day."""
    zone, changes = draw(st.sampled_from(list(CLOCK_CHANGES.items())))
    tzinfo = load_zone(zone)
    change = datetime.fromisoformat(draw(st.sampled_from(changes)))
    seconds = draw(st.sampled_from([-3600, -1, 0, 1, 900, 1800, 3599, 3600, 7200, 43_200]))
    now = change + timedelta(seconds=seconds)
    local = now.astimezone(tzinfo).replace(tzinfo=None)
    midnights = [
        datetime.combine(local.date() + timedelta(days), time(), tzinfo).astimezone(UTC)
        for days in (0, 1)
    ]
    dates = st.integers(-1, 1).map(lambda days: (local.date() + timedelta(days)).isoformat())

    def floating(difference: int) -> dict[str, str]:
        due = local + timedelta(seconds=difference)
        return {"due_date": due.date().isoformat(), "due_time": due.time().isoformat()}

    def zoned_at(moment: datetime, difference: int, name: str) -> dict[str, str]:
        return zoned(moment + timedelta(seconds=difference), name)

    due = st.one_of(
        st.just({}),
        st.fixed_dictionaries({"start_date": dates}),
        st.fixed_dictionaries({"due_date": dates}),
        st.builds(floating, NEAR),
        st.builds(zoned_at, st.just(now), NEAR, ZONES),
        st.builds(zoned_at, st.sampled_from(midnights), st.integers(-1, 1), ZONES),
    )
    completed = st.sampled_from([False, False, False, True])
    tasks = st.builds(lambda due, done: {**due, "completed": done}, due, completed)
    return now, zone, draw(st.lists(tasks, min_size=4, max_size=12))


@given(moments_and_tasks())
def test_due_filters_agree_with_a_model(client, clock, example):
    now, zone, members = example
    url = f"/api/{uuid.uuid4()}"
    client.patch(url, json={"time_zone": zone})
    clock.set(now)
    tasks = []
    for number, values in enumerate(members):
        response = client.post(f"{url}/tasks", json={"title": f"{number:02}", **values})
        assert response.status_code == 201, response.text
        tasks.append(response.json)
    model = Model(clock(), zone)

    def read(query: str) -> list[str]:
        return sorted(task["title"] for task in client.get(f"{url}/tasks?{query}").json)

    for word in ("today", "overdue", "upcoming", "none", "overdue,today", "upcoming,none"):
        expected = [task["title"] for task in tasks if model.words(task) & set(word.split(","))]
        assert read(f"due={word}") == expected, word
    for started in (True, False):
        expected = [task["title"] for task in tasks if model.has_started(task) == started]
        assert read(f"started={str(started).lower()}") == expected
