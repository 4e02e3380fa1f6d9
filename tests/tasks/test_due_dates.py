"""Due dates, times and time zones of tasks, and lists that depend on the day."""

from __future__ import annotations

import re
import uuid
from base64 import urlsafe_b64decode, urlsafe_b64encode
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time, timedelta
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


@pytest.fixture
def clock() -> Clock:
    return Clock(NOON)


@pytest.fixture
def app(make_app, clock: Clock) -> Flask:
    return make_app(now=clock)


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
def test_time_zone_of_the_database_session_shifts_nothing(
    make_app, make_settings, user_id, tasks_url, zone
):
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
