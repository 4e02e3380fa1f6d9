"""Positions sort by code point in databases of every collation, and stay short."""

from __future__ import annotations

import random
import uuid
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from tests.support.postgresql import (
    DEBIAN_POSTGRES,
    NO_DEBIAN_POSTGRES,
    DebianCluster,
    at_database,
    execute,
    migrate,
    server_folder,
)
from tests.support.trees import Account

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.direct

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
LONGEST = 100

# The options of CREATE DATABASE. A server without the locale skips its tests.
EMBEDDED = {
    "C": "LOCALE 'C'",
    "builtin": "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'",
}
DEBIAN = {
    "debian_C": "LOCALE 'C'",
    "debian_en_US": "LOCALE 'en_US.UTF-8'",
    "debian_icu": "LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C'",
}
COLLATIONS = EMBEDDED | DEBIAN
BETWEEN = "SELECT order_key_between(%s, %s)"


@pytest.fixture(scope="module")
def debian_server() -> Iterator[str]:
    """The URL of a server of Debian's PostgreSQL, which has ICU and the system's locales."""
    if DEBIAN_POSTGRES is None:
        pytest.skip(NO_DEBIAN_POSTGRES)
    with server_folder() as folder:
        cluster = DebianCluster(folder)
        try:
            cluster.start()
            yield cluster.url()
        finally:
            cluster.stop()


@pytest.fixture(
    scope="module",
    params=[*EMBEDDED, *(pytest.param(name, marks=pytest.mark.slow) for name in DEBIAN)],
)
def collated_url(worker_id: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a migrated database with this collation."""
    server = request.getfixturevalue("debian_server" if request.param in DEBIAN else "server")
    name = f"todo_collation_{request.param.lower()}_{worker_id}"
    identifier = sql.Identifier(name)
    execute(server, sql.SQL("DROP DATABASE IF EXISTS {}").format(identifier))
    options = sql.SQL(COLLATIONS[request.param])
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' {}")
    try:
        execute(server, statement.format(identifier, options))
    except psycopg.Error as error:
        pytest.skip(f"this server has no such collation: {error.diag.message_primary}")
    url = at_database(server, name)
    migrate(url)
    yield url
    execute(server, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


@pytest.fixture
def database(collated_url) -> Iterator[psycopg.Connection]:
    with psycopg.connect(collated_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def account(collated_url, make_app, user_id):
    return Account(make_app(DATABASE_URL=collated_url).test_client(), user_id)


# Keys.


def read_key(database: psycopg.Connection, below: str, above: str | None) -> str | None:
    """Return the key between two keys, or None if there is no room."""
    return database.execute(BETWEEN, (below, above)).fetchone()[0]


def test_key_is_between_its_neighbours(database, count):
    choose = random.Random(1)
    keys = [""]

    for _ in range(count(1000)):
        # Fewer than 250 of 1,000 keys at each end: there, room ends after more than 250 keys.
        ends_and_any = [0, len(keys) - 1, choose.randrange(len(keys))]
        (place,) = choose.choices(ends_and_any, weights=[1, 1, 3])
        above = keys[place + 1] if place + 1 < len(keys) else None
        keys.insert(place + 1, read_key(database, keys[place], above))

        assert keys[place] < keys[place + 1] < (above or "~")
        assert set(keys[place + 1]) <= set(ALPHABET)
        assert keys[place + 1][-1] != "0"
    assert keys == sorted(set(keys))


@pytest.mark.parametrize("side", ["below", "above"])
def test_keys_of_one_gap_end_at_60_characters(database, side):
    below, above, keys = "V", "W", []

    while key := read_key(database, below, above):
        keys.append(key)
        assert below < key < above
        below, above = (below, key) if side == "below" else (key, above)

    assert 250 < len(keys) < 1000
    assert max(len(key) for key in keys) == 60


@pytest.mark.parametrize(
    ("below", "above"),
    [("V", "V"), ("W", "V"), ("V", "V0"), ("Va", "V"), ("V" * 60, "V" * 59 + "W")],
)
def test_no_key_is_between_keys_without_room(database, below, above):
    assert read_key(database, below, above) is None


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        ("", None, "V"),
        ("", "1", "0V"),
        ("Z", "a", "ZV"),
        ("z", None, "zV"),
        ("9", "A", "9V"),
        ("a", "c", "b"),
        ("aV", "b", "ak"),
        ("a", "aV", "aF"),
        ("A", "a", "N"),
    ],
)
def test_key_is_in_the_middle(database, below, above, expected):
    key = read_key(database, below, above)

    assert key == expected


def test_keys_of_moments_are_in_their_order(database):
    moments = ["1970-01-01", "2026-11-22 10:00", "2026-11-22 10:00:00.000001", "2255-06-01"]
    statement = "SELECT order_key_of(timezone('UTC', %s::timestamp))"

    keys = [database.execute(statement, (moment,)).fetchone()[0] for moment in moments]

    assert keys == sorted(set(keys))
    assert {len(key) for key in keys} == {10}


def read_new_keys(database: psycopg.Connection, old: list[str]) -> list[str]:
    """Return the keys that make room between these keys, which are sorted."""
    rows = database.execute(
        "SELECT order_key_of_row(key, number, lag(key) OVER numbers, lead(key) OVER numbers)"
        " FROM unnest(%s::text[]) WITH ORDINALITY AS each (key, number)"
        " WINDOW numbers AS (ORDER BY number) ORDER BY number",
        (old,),
    )
    return [key for (key,) in rows]


def test_new_keys_of_equal_rows_are_in_their_order(database):
    keys = read_new_keys(database, ["V"] * 20000)

    assert keys == sorted(set(keys))
    assert {len(key) for key in keys} == {16}


def test_new_keys_begin_like_the_old_ones_and_have_room(database):
    choose = random.Random(3)
    starts = ["".join(choose.choices(ALPHABET, k=choose.randrange(12))) for _ in range(100)]
    old = sorted(start + "V" * choose.choice([1, 1, 2, 50]) for start in starts * 2)

    new = read_new_keys(database, old)

    assert new == sorted(set(new))
    for before, after in zip(old, new, strict=True):
        assert after[:10].ljust(10, "0") == before[:10].ljust(10, "0")
        assert len(after) <= 16
    alone = [key for key in old if sum(key[:10] == other[:10] for other in old) == 1]
    assert [key for key in alone if len(key) <= 16 and key not in new] == []
    assert all(read_key(database, *pair) for pair in pairwise(new))


def test_positions_are_compared_by_code_point(database):
    user, names = uuid.uuid4(), ["a", "B", "Z", "b", "A", "z", "0", "9", "aB", "Ab"]
    database.execute("INSERT INTO users (id) VALUES (%s)", (user,))
    for table, member in (("tasks", "title"), ("lists", "name")):
        for name in names:
            database.execute(
                sql.SQL(
                    "INSERT INTO {} (user_id, id, {}, position)"
                    " VALUES (%s, gen_random_uuid(), 'A', %s)"
                ).format(sql.Identifier(table), sql.Identifier(member)),
                (user, name),
            )
        ordered = database.execute(
            sql.SQL("SELECT position FROM {} WHERE user_id = %s ORDER BY position").format(
                sql.Identifier(table)
            ),
            (user,),
        )

        assert [position for (position,) in ordered] == sorted(names)


# Moves.


def make_room_small(database: psycopg.Connection, table: str, ids: list[str]) -> None:
    """Give the items long positions in their order, so that new ones are needed soon."""
    for number, item in enumerate(ids):
        database.execute(
            sql.SQL("UPDATE {} SET position = %s WHERE id = %s").format(sql.Identifier(table)),
            ("V" * 54 + ALPHABET[number + 1], item),
        )


def check_move(before: dict[str, Any], after: dict[str, Any], moved: str) -> bool:
    """Check which items have changed; return whether all siblings got new positions."""
    changed = {key for key in before if before[key]["revision"] != after[key]["revision"]}
    if changed == {moved}:
        return False
    assert changed == before.keys()
    assert len({item["revision"] for item in after.values()}) == 1
    return True


@pytest.mark.parametrize("kind", ["tasks", "subtasks", "lists"])
def test_moves_into_one_gap_keep_the_order(account, database, count, kind):
    parent = {"parent_id": account.task("Parent")["id"]} if kind == "subtasks" else {}
    table = "lists" if kind == "lists" else "tasks"
    ids = [account.create(table, **parent)["id"] for _ in range(8)]
    query = "list_id=inbox&parent_id=" + parent.get("parent_id", "none")
    if kind == "tasks":
        query = "list_id=inbox"
    make_room_small(database, table, ids)
    choose, renumbered, rounds = random.Random(2), 0, count(1000, least=60)
    siblings = query if table == "tasks" else ""
    order = list(ids)

    def read() -> dict[str, Any]:
        return account.live(table, f"archived=true&{siblings}")

    state = read()
    for _ in range(rounds):
        side = choose.choice(["after", "before"])
        # The gap behind the first item, which never moves; its follower changes.
        moved = order[-1] if order[-1] != order[1] else order[-2]
        anchor = order[0] if side == "after" else order[1]
        response = account.client.post(f"{account.url}/{table}/{moved}/move", json={side: anchor})
        order.remove(moved)
        order.insert(1, moved)

        assert response.status_code == 200, response.text
        found = account.order_of_lists() if table == "lists" else account.order(query)
        assert found == order
        previous, state = state, read()
        assert state[moved] == response.json
        keys = [(item["position"], item["id"]) for item in state.values()]
        assert [key for _, key in sorted(keys)] == order
        assert max(len(position) for position, _ in keys) <= LONGEST
        renumbered += check_move(previous, state, moved)

    assert 1 <= renumbered <= 1 + rounds / 200
