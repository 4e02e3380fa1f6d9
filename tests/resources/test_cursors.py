"""Invalid cursors and sync tokens: the response is 422, and no connection is lost."""

from __future__ import annotations

import json
import random
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from urllib.parse import parse_qs, urlsplit

import pytest

SEED = 20

# A sync token: version, user, epoch, revision, id and start.
TOKEN = struct.Struct(">B16s16sq16sq")
VERSION, USER, EPOCH, REVISION, ID, FULL_SYNC_START = range(6)

# In microseconds since 1970: the range of Python's dates, and the end of PostgreSQL's range.
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
    """Encode as the server does, and also lone surrogates, NaN, and integers of any size."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return urlsafe_b64encode(text.encode(errors="surrogatepass")).decode().rstrip("=")


def decode(text: str) -> list[object]:
    return json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def mutate_members(text: str, rng: random.Random) -> str:
    members = decode(text)
    if rng.random() < 0.05:
        return encode(rng.choice([*VALUES, {"a": members}, members * 2, [members], members[:1]]))
    for _ in range(rng.choice([1, 1, 2, 3])):
        index = rng.randrange(len(members))
        member = members[index]
        match rng.randrange(6):
            case 0 if len(members) > 1:
                del members[index]
            case 1:
                members.insert(index, rng.choice(VALUES))
            case 2 if isinstance(member, int):
                members[index] = member + rng.choice([-1, 1, 0.0, 0.5])
            case 3:
                members[index] = rng.choice([[member], {"a": member}, str(member), bool(member)])
            case 4:
                members[index] = rng.choice(EMPTY)
            case _:
                members[index] = rng.choice(VALUES)
    return encode(members)


def decode_token(text: str) -> list[object]:
    return list(TOKEN.unpack(urlsafe_b64decode(text + "=" * (-len(text) % 4))))


def encode_token(members: list[object]) -> str:
    return urlsafe_b64encode(TOKEN.pack(*members)).decode().rstrip("=")


def mutate_token(text: str, rng: random.Random) -> str:
    members = decode_token(text)
    index = rng.randrange(len(members))
    member = members[index]
    if index == VERSION:
        members[index] = rng.randrange(256)
    elif isinstance(member, int):
        near = [member - 1, member + 1, -member, 0, 1, -1]
        members[index] = rng.choice([*near, *(n for n in NUMBERS if abs(n) < 2**63)])
    else:
        members[index] = rng.choice([bytes(16), b"\xff" * 16, rng.randbytes(16)])
    return encode_token(members)


def mutate_text(text: str, rng: random.Random) -> str:
    index = rng.randrange(len(text))
    character = rng.choice(CHARACTERS)
    return rng.choice(
        [
            text[:index],
            text[:index] + text[index + 1 :],
            text[:index] + character + text[index + 1 :],
            text[:index] + character + text[index:],
            text[index:] + text[:index],
            text + "=" * rng.randrange(1, 4),
        ]
    )


@pytest.fixture
def changes_url(user_id):
    return f"/api/{user_id}/changes"


@pytest.fixture
def sync_tokens(client, make_task, changes_url):
    """Return values of `next` from the server: during a full sync, at its end, and after it."""
    for number in range(4):
        make_task(title=f"Task {number}")
    tokens = ["0"]
    for _ in range(5):
        page = client.get(changes_url, query_string={"since": tokens[-1], "limit": 1})
        tokens.append(page.json["next"])
    return tokens[1:]


def count_lost_connections(app):
    return app.services.metrics.registry.get_sample_value("todo_database_connections_lost_total")


def test_mutated_tokens_and_cursors_cause_no_server_error(
    app, client, changes_url, tasks_url, sync_tokens, count
):
    originals = [(changes_url, "since", {}, token) for token in sync_tokens]
    for sort in ("title", "-title", "created_at", "-updated_at"):
        query = {"sort": sort, "limit": "1"}
        originals.append((tasks_url, "cursor", query, get_next_cursor(client, tasks_url, query)))
    rng = random.Random(SEED)
    lost_before = count_lost_connections(app)
    statuses = Counter()

    for _ in range(count(10_000)):
        url, name, query, text = rng.choice(originals)
        mutate = mutate_token if name == "since" else mutate_members
        mutant = rng.choice([mutate_text, mutate])(text, rng)
        status = client.get(url, query_string=query | {name: mutant}).status_code
        assert status in {200, 410, 422}, f"{status} for {name}={mutant!r}"
        statuses[name, status] += 1

    assert count_lost_connections(app) == lost_before
    assert client.get(tasks_url).status_code == 200
    # Some mutants are valid, so that the statuses 200 and 410 occur, too.
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
        (VERSION, 0),
        (VERSION, 2),
        (USER, bytes(16)),
        (REVISION, -1),
        (REVISION, -(2**63)),
        (FULL_SYNC_START, -1),
    ],
)
def test_sync_token_with_an_invalid_member_is_refused(
    client, changes_url, sync_tokens, member, value
):
    members = decode_token(sync_tokens[0])
    valid = client.get(changes_url, query_string={"since": encode_token(members)})
    assert valid.status_code == 200
    members[member] = value

    response = client.get(changes_url, query_string={"since": encode_token(members)})

    assert response.status_code == 422
    assert [error["parameter"] for error in response.json["errors"]] == ["since"]


@pytest.mark.parametrize("change", [lambda text: text[:-1], lambda text: text + "A", str.swapcase])
def test_sync_token_that_the_server_cannot_have_made_is_refused(
    client, changes_url, sync_tokens, change
):
    response = client.get(changes_url, query_string={"since": change(sync_tokens[0])})

    assert response.status_code == 422


@pytest.mark.parametrize(
    ("member", "value", "status"),
    [
        (EPOCH, bytes(16), 410),
        (REVISION, 2**63 - 1, 410),
        (FULL_SYNC_START, 2**63 - 1, 410),
        (FULL_SYNC_START, 0, 200),
        (REVISION, 0, 200),
        (ID, b"\xff" * 16, 200),
    ],
)
def test_sync_token_at_the_limits_of_its_ranges_is_read(
    client, changes_url, sync_tokens, member, value, status
):
    members = decode_token(sync_tokens[0])
    members[member] = value

    response = client.get(changes_url, query_string={"since": encode_token(members)})

    assert response.status_code == status


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
def test_cursor_with_an_invalid_value_is_refused(client, make_task, tasks_url, sort, value):
    members, query = get_cursor_members(client, make_task, tasks_url, sort)

    response = client.get(tasks_url, query_string=query | {"cursor": encode([value, *members[1:]])})

    assert response.status_code == 422
    assert [error["parameter"] for error in response.json["errors"]] == ["cursor"]


@pytest.mark.parametrize("change_id", [str.upper, "{{{}}}".format, "urn:uuid:{}".format, list, len])
def test_cursor_with_an_invalid_id_is_refused(client, make_task, tasks_url, change_id):
    members, query = get_cursor_members(client, make_task, tasks_url, "title")
    members[1] = change_id(members[1])

    response = client.get(tasks_url, query_string=query | {"cursor": encode(members)})

    assert response.status_code == 422


@pytest.mark.parametrize(
    ("sort", "value"),
    [("created_at", FIRST_MOMENT), ("created_at", YEAR_10000 - 1), ("title", "\U0001f43b")],
)
def test_cursor_at_the_limits_of_its_range_is_valid(client, make_task, tasks_url, sort, value):
    members, query = get_cursor_members(client, make_task, tasks_url, sort)
    text = encode([value, *members[1:]])

    response = client.get(tasks_url, query_string=query | {"cursor": text})

    assert response.status_code == 200


def get_cursor_members(client, make_task, tasks_url, sort):
    """Return the members of a cursor that the server made, and the query of that cursor."""
    for title in ("Oats", "Rye"):
        make_task(title=title)
    query = {"sort": sort, "limit": "1"}
    return decode(get_next_cursor(client, tasks_url, query)), query


def get_next_cursor(client, tasks_url, query):
    link = client.get(tasks_url, query_string=query).headers["Link"]
    target = urlsplit(link.partition("<")[2].partition(">")[0])
    return parse_qs(target.query)["cursor"][0]
