"""Statements as one message: what comes back, and each way in which that can end."""

from __future__ import annotations

import time
from contextlib import closing

import psycopg
import pytest
from psycopg.errors import DivisionByZero
from psycopg.pq import PipelineStatus, TransactionStatus

from todo_api.db.connection import Connection
from todo_api.db.statement import Statement

SOON = 60  # seconds, within which all that should come does


def test_a_placeholder_is_a_number_the_same_one_each_time():
    statement = Statement(b"SELECT %(a)s, %(b)s, %(a)s, 100 %% 7, '%%s'")

    assert statement.names == ("a", "b")
    assert statement.numbered == b"SELECT $1, $2, $1, 100 % 7, '%s'"


@pytest.fixture
def opened(database_url):
    with closing(Connection.connect(database_url, autocommit=True)) as connection:
        connection.set_up(prepares=True)
        yield connection


@pytest.fixture
def transact(opened):
    def run(*statements: bytes, within: float = SOON, **values):
        return opened.transact(
            [Statement(sql) for sql in statements], values, time.monotonic() + within
        )

    return run


def prepared(connection):
    found = connection.execute(
        "SELECT statement FROM pg_prepared_statements WHERE from_sql = false"
    )
    return sorted(statement for (statement,) in found)


def test_each_statement_has_its_rows(transact):
    rows = transact(
        b"SELECT %(a)s::int + 1",
        b"SELECT n, n::text FROM generate_series(1, %(a)s) AS n",
        b"SELECT WHERE false",
        a=2,
    )

    assert rows == [[(3,)], [(1, "1"), (2, "2")], []]


def test_json_is_passed_on_as_postgresql_wrote_it(transact):
    text = '{"a" : 1.50, "ü":\t[ null]}'

    ((row,),) = transact(b"SELECT %(text)s::json", text=text)

    assert row == (text.encode(),)


def test_they_are_one_transaction(transact):
    transact(b"SELECT set_config('todo.a', 'set', true)")

    ((before,), _, (within,)) = transact(
        b"SELECT current_setting('todo.a', true)",
        b"SELECT set_config('todo.a', 'set', true)",
        b"SELECT current_setting('todo.a', true)",
    )

    assert before == ("",)
    assert within == ("set",)


def test_the_first_error_undoes_all_and_leaves_the_connection_well(opened, transact):
    with pytest.raises(DivisionByZero):
        transact(
            b"SELECT set_config('todo.b', 'set', false)",
            b"SELECT 1 / %(zero)s",
            b"SELECT 'never run'",
            zero=0,
        )

    assert opened.pgconn.transaction_status == TransactionStatus.IDLE
    for _ in range(2):
        assert transact(b"SELECT current_setting('todo.b', true)", b"SELECT 'never run'") == [
            [("",)],
            [("never run",)],
        ]


def test_an_error_of_syntax_is_one_each_time(transact):
    for _ in range(2):
        with pytest.raises(psycopg.errors.SyntaxError):
            transact(b"SELECT 1", b"SELEC 2")
        assert transact(b"SELECT 1") == [[(1,)]]


def test_a_statement_is_prepared_once_for_each_kind_of_its_parameters(opened, transact):
    for value in (1, 2, "three", "four", None):
        ((row,),) = transact(b"SELECT %(value)s::text", value=value)
        assert row == (None if value is None else str(value),)

    assert set(prepared(opened)) == {"SELECT $1::text"}
    assert len(prepared(opened)) <= 3


def test_the_statement_that_was_not_used_for_longest_makes_room(opened, transact):
    opened.set_up(prepares=True, most_prepared=2)

    for number in (1, 2, 1, 3, 1, 4, 3):
        assert transact(b"SELECT %d" % number) == [[(number,)]]

    assert set(prepared(opened)) == {"SELECT 4", "SELECT 3"}


def test_a_failed_transaction_leaves_prepared_statements_usable(opened, transact):
    opened.set_up(prepares=True, most_prepared=2)
    transact(b"SELECT 1", b"SELECT 2")

    for _ in range(2):
        with pytest.raises(psycopg.errors.DivisionByZero):
            transact(b"SELECT 1 / %(zero)s::int", b"SELECT 3", b"SELECT 4", zero=0)

        assert transact(b"SELECT 1", b"SELECT 2") == [[(1,)], [(2,)]]
        assert transact(b"SELECT 3", b"SELECT 4") == [[(3,)], [(4,)]]
    assert len(prepared(opened)) == 2


def test_nothing_is_prepared_for_a_pooler(opened, transact):
    opened.set_up(prepares=False)

    for _ in range(3):
        assert transact(b"SELECT %(a)s::int", a=1) == [[(1,)]]

    assert prepared(opened) == []


def test_what_does_not_fit_into_a_buffer_gets_through(transact):
    text = "0123456789" * 1_000_000

    rows = transact(b"SELECT length(%(a)s::text)", b"SELECT %(b)s::text", a=text, b=text)

    assert rows == [[(len(text),)], [(text,)]]


@pytest.mark.parametrize("within", [0.2, -1])
def test_no_answer_in_time_is_a_connection_lost(opened, transact, within):
    began = time.monotonic()

    with pytest.raises(psycopg.OperationalError) as error:
        transact(b"SELECT pg_sleep(20)", within=within)

    assert error.value.sqlstate is None
    assert time.monotonic() - began < 15
    assert opened.pgconn.transaction_status != TransactionStatus.IDLE


def test_a_server_that_ends_the_connection_is_an_operational_error(opened, transact):
    with pytest.raises(psycopg.OperationalError):
        transact(b"SELECT pg_terminate_backend(pg_backend_pid())", b"SELECT pg_sleep(1)")

    assert opened.pgconn.transaction_status != TransactionStatus.IDLE


def test_a_connection_that_is_closed_is_an_operational_error(opened, transact):
    opened.close()

    with pytest.raises(psycopg.OperationalError):
        transact(b"SELECT 1")


UNADAPTABLE = {
    "object": object(),
    "nul": "a\x00b",
    "lone-surrogate": "\ud800",
    "list-of-two-types": [1, "a"],
    "dict": {"a": 1},
}


@pytest.mark.parametrize("value", UNADAPTABLE.values(), ids=UNADAPTABLE.keys())
@pytest.mark.parametrize("first", [True, False])
def test_value_that_cannot_be_adapted_sends_nothing_and_keeps_the_connection(
    opened, transact, value, first
):
    """Whether it is in the first statement or behind one that could have been sent."""
    statements = [b"SELECT set_config('todo.c', 'set', false)", b"SELECT %(value)s"]

    with pytest.raises((psycopg.DataError, psycopg.ProgrammingError, UnicodeEncodeError)):
        transact(*(statements[::-1] if first else statements), value=value)

    assert opened.pgconn.transaction_status == TransactionStatus.IDLE
    assert opened.pgconn.pipeline_status == PipelineStatus.OFF
    assert prepared(opened) == []
    assert transact(b"SELECT current_setting('todo.c', true)") == [[(None,)]]


def test_value_that_is_missing_sends_nothing_and_keeps_the_connection(opened, transact):
    with pytest.raises(KeyError):
        transact(b"SELECT 1", b"SELECT %(value)s")

    assert opened.pgconn.pipeline_status == PipelineStatus.OFF
    assert transact(b"SELECT 1") == [[(1,)]]


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30])
def test_integer_beyond_bigint_is_an_error_and_keeps_the_connection(opened, transact, value):
    with pytest.raises(psycopg.DataError):
        transact(b"SELECT 1", b"SELECT %(value)s::bigint", value=value)

    assert opened.pgconn.transaction_status == TransactionStatus.IDLE
    assert transact(b"SELECT 1") == [[(1,)]]
