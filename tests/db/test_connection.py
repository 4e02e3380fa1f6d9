"""A transaction sent as one message: its rows, its errors, its prepared statements."""

from __future__ import annotations

import time
from contextlib import closing

import psycopg
import pytest
from psycopg.errors import DivisionByZero
from psycopg.pq import PipelineStatus, TransactionStatus

from todo_api.db.connection import Connection
from todo_api.db.statement import Statement

TIMEOUT = 60  # seconds


def test_placeholder_has_the_same_number_each_time():
    statement = Statement(b"SELECT %(a)s, %(b)s, %(a)s, 100 %% 7, '%%s'")

    assert statement.names == ("a", "b")
    assert statement.numbered == b"SELECT $1, $2, $1, 100 % 7, '%s'"


@pytest.fixture
def db_connection(database_url):
    with closing(Connection.connect(database_url, autocommit=True)) as connection:
        connection.set_up(prepares=True)
        yield connection


@pytest.fixture
def transact(db_connection):
    def run(*statements: bytes, timeout: float = TIMEOUT, **values):
        return db_connection.transact(
            [Statement(sql) for sql in statements], values, time.monotonic() + timeout
        )

    return run


def prepared_statements(connection):
    rows = connection.execute("SELECT statement FROM pg_prepared_statements WHERE from_sql = false")
    return sorted(statement for (statement,) in rows)


def test_each_statement_returns_its_rows(transact):
    rows = transact(
        b"SELECT %(a)s::int + 1",
        b"SELECT n, n::text FROM generate_series(1, %(a)s) AS n",
        b"SELECT WHERE false",
        a=2,
    )

    assert rows == [[(3,)], [(1, "1"), (2, "2")], []]


def test_json_is_returned_as_postgresql_wrote_it(transact):
    text = '{"a" : 1.50, "ü":\t[ null]}'

    ((row,),) = transact(b"SELECT %(text)s::json", text=text)

    assert row == (text.encode(),)


def test_statements_are_one_transaction(transact):
    transact(b"SELECT set_config('todo.a', 'set', true)")

    ((before,), _, (after,)) = transact(
        b"SELECT current_setting('todo.a', true)",
        b"SELECT set_config('todo.a', 'set', true)",
        b"SELECT current_setting('todo.a', true)",
    )

    assert before == ("",)
    assert after == ("set",)


def test_first_error_rolls_back_and_keeps_the_connection(db_connection, transact):
    with pytest.raises(DivisionByZero):
        transact(
            b"SELECT set_config('todo.b', 'set', false)",
            b"SELECT 1 / %(zero)s",
            b"SELECT 'never run'",
            zero=0,
        )

    assert db_connection.pgconn.transaction_status == TransactionStatus.IDLE
    for _ in range(2):
        assert transact(b"SELECT current_setting('todo.b', true)", b"SELECT 'never run'") == [
            [("",)],
            [("never run",)],
        ]


def test_syntax_error_is_raised_each_time(transact):
    for _ in range(2):
        with pytest.raises(psycopg.errors.SyntaxError):
            transact(b"SELECT 1", b"SELEC 2")
        assert transact(b"SELECT 1") == [[(1,)]]


def test_statement_is_prepared_once_for_each_type_of_its_parameters(db_connection, transact):
    for value in (1, 2, "three", "four", None):
        ((row,),) = transact(b"SELECT %(value)s::text", value=value)
        assert row == (None if value is None else str(value),)

    assert set(prepared_statements(db_connection)) == {"SELECT $1::text"}
    assert len(prepared_statements(db_connection)) <= 3


def test_least_recently_used_statement_is_evicted(db_connection, transact):
    db_connection.set_up(prepares=True, max_prepared=2)

    for number in (1, 2, 1, 3, 1, 4, 3):
        assert transact(b"SELECT %d" % number) == [[(number,)]]

    assert set(prepared_statements(db_connection)) == {"SELECT 4", "SELECT 3"}


def test_failed_transaction_keeps_prepared_statements_usable(db_connection, transact):
    db_connection.set_up(prepares=True, max_prepared=2)
    transact(b"SELECT 1", b"SELECT 2")

    for _ in range(2):
        with pytest.raises(psycopg.errors.DivisionByZero):
            transact(b"SELECT 1 / %(zero)s::int", b"SELECT 3", b"SELECT 4", zero=0)

        assert transact(b"SELECT 1", b"SELECT 2") == [[(1,)], [(2,)]]
        assert transact(b"SELECT 3", b"SELECT 4") == [[(3,)], [(4,)]]
    assert len(prepared_statements(db_connection)) == 2


def test_no_statement_is_prepared_for_a_pooler(db_connection, transact):
    db_connection.set_up(prepares=False)

    for _ in range(3):
        assert transact(b"SELECT %(a)s::int", a=1) == [[(1,)]]

    assert prepared_statements(db_connection) == []


def test_values_larger_than_the_socket_buffers_are_sent(transact):
    text = "0123456789" * 1_000_000

    rows = transact(b"SELECT length(%(a)s::text)", b"SELECT %(b)s::text", a=text, b=text)

    assert rows == [[(len(text),)], [(text,)]]


@pytest.mark.parametrize("timeout", [0.2, -1])
def test_timeout_is_an_operational_error_and_ends_the_connection(db_connection, transact, timeout):
    started_at = time.monotonic()

    with pytest.raises(psycopg.OperationalError) as error:
        transact(b"SELECT pg_sleep(20)", timeout=timeout)

    assert error.value.sqlstate is None
    assert time.monotonic() - started_at < 15
    assert db_connection.pgconn.transaction_status != TransactionStatus.IDLE


def test_connection_ended_by_the_server_is_an_operational_error(db_connection, transact):
    with pytest.raises(psycopg.OperationalError):
        transact(b"SELECT pg_terminate_backend(pg_backend_pid())", b"SELECT pg_sleep(1)")

    assert db_connection.pgconn.transaction_status != TransactionStatus.IDLE


def test_closed_connection_is_an_operational_error(db_connection, transact):
    db_connection.close()

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
@pytest.mark.parametrize("is_first", [True, False])
def test_value_that_cannot_be_adapted_sends_nothing_and_keeps_the_connection(
    db_connection, transact, value, is_first
):
    """The value is in the first statement, or in the second one after a valid statement."""
    statements = [b"SELECT set_config('todo.c', 'set', false)", b"SELECT %(value)s"]

    with pytest.raises((psycopg.DataError, psycopg.ProgrammingError, UnicodeEncodeError)):
        transact(*(statements[::-1] if is_first else statements), value=value)

    assert db_connection.pgconn.transaction_status == TransactionStatus.IDLE
    assert db_connection.pgconn.pipeline_status == PipelineStatus.OFF
    assert prepared_statements(db_connection) == []
    assert transact(b"SELECT current_setting('todo.c', true)") == [[(None,)]]


def test_missing_value_sends_nothing_and_keeps_the_connection(db_connection, transact):
    with pytest.raises(KeyError):
        transact(b"SELECT 1", b"SELECT %(value)s")

    assert db_connection.pgconn.pipeline_status == PipelineStatus.OFF
    assert transact(b"SELECT 1") == [[(1,)]]


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30])
def test_integer_beyond_bigint_is_an_error_and_keeps_the_connection(db_connection, transact, value):
    with pytest.raises(psycopg.DataError):
        transact(b"SELECT 1", b"SELECT %(value)s::bigint", value=value)

    assert db_connection.pgconn.transaction_status == TransactionStatus.IDLE
    assert transact(b"SELECT 1") == [[(1,)]]
