"""Cursors and sync tokens that this server did not make: 422, whatever is in them."""

from __future__ import annotations

import json
import random
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from urllib.parse import parse_qs, urlsplit

import pytest

SEED = 20

# The members of a sync token.
REVISION, MOMENT, FULL, START, BROKEN = range(5)

# In microseconds since 1970: the range of Python's dates, and where PostgreSQL's end.
FIRST_MOMENT = -62_135_596_800_000_000
YEAR_10000 = 253_402_300_800_000_000
YEAR_294277 = 9_224_318_016_000_000_000

BORDERS = [0, 1, 2**31, 2**32, 2**53, 10**18, 2**63, 2**64, 10**30]
BORDERS += [FIRST_MOMENT, YEAR_10000, YEAR_294277]
NUMBERS = [sign * (border + step) for border in BORDERS for step in (-1, 0, 1) for sign in (1, -1)]
FLOATS = [0.0, 1.0, -0.5, 1e18, 1e300, float("inf"), float("-inf"), float("nan")]
TEXTS = ["", "1", "-1", "true", "a\x00b", "\ud800", "\udfff\ud800", "\U0001f43b", "x" * 99]
EMPTY = [None, False, 0, 0.0, "", [], {}]
NESTED = [[1], [[1]], {"a": 1}, [None], [[[[]]]], {"": {}}]
VALUES = [*NUMBERS, *TEXTS, *FLOATS, *NESTED, *EMPTY, True]
CHARACTERS = [*map(chr, range(32, 127)), "\x00", "\n", "\u00e9", "\U0001f43b"]


def encode(value: object) -> str:
    """Encode as the server does, and what it cannot: lone surrogates, integers of any size, NaN."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return urlsafe_b64encode(text.encode(errors="surrogatepass")).decode().rstrip("=")


def decode(text: str) -> list[object]:
    return json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def changed_members(text: str, choose: random.Random) -> str:
    members = decode(text)
    if choose.random() < 0.05:
        return encode(choose.choice([*VALUES, {"a": members}, members * 2, [members], members[:1]]))
    for _ in range(choose.choice([1, 1, 2, 3])):
        at = choose.randrange(len(members))
        member = members[at]
        match choose.randrange(6):
            case 0 if len(members) > 1:
                del members[at]
            case 1:
                members.insert(at, choose.choice(VALUES))
            case 2 if isinstance(member, int):
                members[at] = member + choose.choice([-1, 1, 0.0, 0.5])
            case 3:
                members[at] = choose.choice([[member], {"a": member}, str(member), bool(member)])
            case 4:
                members[at] = choose.choice(EMPTY)
            case _:
                members[at] = choose.choice(VALUES)
    return encode(members)


def changed_text(text: str, choose: random.Random) -> str:
    at = choose.randrange(len(text))
    character = choose.choice(CHARACTERS)
    return choose.choice(
        [
            text[:at],
            text[:at] + text[at + 1 :],
            text[:at] + character + text[at + 1 :],
            text[:at] + character + text[at:],
            text[at:] + text[:at],
            text + "=" * choose.randrange(1, 4),
        ]
    )


@pytest.fixture
def changes_url(user_id):
    return f"/api/{user_id}/changes"


@pytest.fixture
def sync_tokens(client, make_task, changes_url):
    """Return what the server gives as `next`: within a full sync, at its end, and after it."""
    for number in range(4):
        make_task(title=f"Task {number}")
    tokens = ["0"]
    for _ in range(5):
        page = client.get(changes_url, query_string={"since": tokens[-1], "limit": 1})
        tokens.append(page.json["next"])
    return tokens[1:]


def lost_connections(app):
    return app.services.metrics.registry.get_sample_value("todo_database_connections_lost_total")


def test_mutants_are_answered_and_cost_no_connection(
    app, client, changes_url, tasks_url, sync_tokens, count
):
    own = [(changes_url, "since", {}, token) for token in sync_tokens]
    for sort in ("title", "-title", "created_at", "-updated_at"):
        query = {"sort": sort, "limit": "1"}
        own.append((tasks_url, "cursor", query, next_cursor(client, tasks_url, query)))
    choose = random.Random(SEED)
    lost = lost_connections(app)
    statuses = Counter()

    for _ in range(count(10_000)):
        url, name, query, text = choose.choice(own)
        changed = choose.choice([changed_text, changed_members])(text, choose)
        status = client.get(url, query_string=query | {name: changed}).status_code
        assert status in {200, 410, 422}, f"{status} for {name}={changed!r}"
        statuses[name, status] += 1

    assert lost_connections(app) == lost
    assert client.get(tasks_url).status_code == 200
    # Some say what the server could have said: the others are refused for what they say.
    assert set(statuses) == {
        ("since", 200),
        ("since", 410),
        ("since", 422),
        ("cursor", 200),
        ("cursor", 422),
    }


@pytest.mark.parametrize(
    ("member", "value"),
    [
        (REVISION, "4"),
        (REVISION, True),
        (REVISION, 4.0),
        (REVISION, -1),
        (REVISION, 10**18),
        (REVISION, 2**63),
        (REVISION, [4]),
        (REVISION, None),
        (MOMENT, "1"),
        (MOMENT, False),
        (MOMENT, 1.5),
        (MOMENT, FIRST_MOMENT - 1),
        (MOMENT, YEAR_10000),
        (MOMENT, {}),
        (FULL, 1),
        (FULL, None),
        (FULL, False),
        (START, False),
        (START, "4"),
        (START, ""),
        (START, 0.0),
        (START, []),
        (START, {}),
        (START, 2**63),
        (START, None),
        (BROKEN, 0),
        (BROKEN, "false"),
    ],
)
def test_sync_token_with_another_member_is_refused(client, changes_url, sync_tokens, member, value):
    members = decode(sync_tokens[0])
    assert client.get(changes_url, query_string={"since": encode(members)}).status_code == 200
    members[member] = value

    answer = client.get(changes_url, query_string={"since": encode(members)})

    assert answer.status_code == 422
    assert [error["parameter"] for error in answer.json["errors"]] == ["since"]


@pytest.mark.parametrize(
    "members", [[], [4], [4, None, False, None], [4, None, False, None, False, 0]]
)
def test_sync_token_of_another_length_is_refused(client, changes_url, members):
    answer = client.get(changes_url, query_string={"since": encode(members)})

    assert answer.status_code == 422


def test_sync_token_at_the_end_of_its_ranges_is_taken(client, changes_url):
    last = [10**18 - 1, YEAR_10000 - 1, True, 10**18 - 1, True]
    first = [0, FIRST_MOMENT, True, 0, False]

    statuses = [
        client.get(changes_url, query_string={"since": encode(members)}).status_code
        for members in (last, first)
    ]

    assert statuses == [200, 200]


@pytest.mark.parametrize(
    ("sort", "value"),
    [
        ("created_at", True),
        ("created_at", 1.0),
        ("created_at", "1"),
        ("created_at", None),
        ("created_at", FIRST_MOMENT - 1),
        ("created_at", YEAR_10000),
        ("created_at", 2**63),
        ("title", 1),
        ("title", None),
        ("title", "a\x00b"),
        ("title", ["a"]),
        ("title", True),
    ],
)
def test_cursor_with_another_value_is_refused(client, make_task, tasks_url, sort, value):
    members, query = own_cursor(client, make_task, tasks_url, sort)

    answer = client.get(tasks_url, query_string=query | {"cursor": encode([value, *members[1:]])})

    assert answer.status_code == 422
    assert [error["parameter"] for error in answer.json["errors"]] == ["cursor"]


@pytest.mark.parametrize("spell", [str.upper, "{{{}}}".format, "urn:uuid:{}".format, list, len])
def test_cursor_with_another_id_is_refused(client, make_task, tasks_url, spell):
    members, query = own_cursor(client, make_task, tasks_url, "title")
    members[1] = spell(members[1])

    answer = client.get(tasks_url, query_string=query | {"cursor": encode(members)})

    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("sort", "value"),
    [("created_at", FIRST_MOMENT), ("created_at", YEAR_10000 - 1), ("title", "\U0001f43b")],
)
def test_cursor_at_the_end_of_its_range_is_taken(client, make_task, tasks_url, sort, value):
    members, query = own_cursor(client, make_task, tasks_url, sort)
    text = encode([value, *members[1:]])

    answer = client.get(tasks_url, query_string=query | {"cursor": text})

    assert answer.status_code == 200


def own_cursor(client, make_task, tasks_url, sort):
    """Return the members of a cursor of the server's own, and the query that it belongs to."""
    for title in ("Oats", "Rye"):
        make_task(title=title)
    query = {"sort": sort, "limit": "1"}
    return decode(next_cursor(client, tasks_url, query)), query


def next_cursor(client, tasks_url, query):
    link = client.get(tasks_url, query_string=query).headers["Link"]
    target = urlsplit(link.partition("<")[2].partition(">")[0])
    return parse_qs(target.query)["cursor"][0]
