"""Send several statements in one message, and run them in one transaction."""

from __future__ import annotations

import hashlib
import select
import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import psycopg
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, Format

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from psycopg.abc import Buffer
    from psycopg.pq.abc import PGresult

    from todo_api.db.statement import Statement


Json: TypeAlias = bytes


Row: TypeAlias = tuple[Any, ...]


# A statement and the OIDs of its parameters' types: each shape is prepared once.
Shape: TypeAlias = tuple[bytes, tuple[int, ...]]


# Prepared statements of one connection, at most.
MOST_PREPARED = 200


class Query(NamedTuple):
    """A statement's shape, and its parameters as they are sent, each with its format."""

    shape: Shape
    parameters: Sequence[Buffer | None]
    formats: Sequence[Format] | None


class Prepare(NamedTuple):
    """The result of preparing a statement."""

    shape: Shape


class Close(NamedTuple):
    """The result of closing the least recently used prepared statement."""

    shape: Shape


# The command that a result belongs to. None is the run of a query.
Command: TypeAlias = Prepare | Close | None


class Connection(psycopg.Connection[Row]):
    """A connection that can `transact`, after `set_up`."""

    opened_at = 0.0

    def set_up(self, *, prepares: bool, most_prepared: int = MOST_PREPARED) -> None:
        """Prepare the connection for `transact`, with at most `most_prepared` prepared statements.

        The least recently used one is closed before another one is prepared. With `prepares` false,
        no statement is prepared, because some poolers do not support it.
        """
        self.opened_at = time.monotonic()
        # Load JSON and text as bytes: responses send them as PostgreSQL wrote them.
        bytes_loader = self.adapters.get_loader(self.adapters.types["bytea"].oid, Format.BINARY)
        if bytes_loader is not None:
            self.adapters.register_loader("json", bytes_loader)
            self.adapters.register_loader("text", bytes_loader)
        self._transformer = Transformer(self)
        self._most_prepared = most_prepared if prepares else 0
        self._names: dict[Shape, bytes] = {}
        self._readable, self._either = select.poll(), select.poll()
        self._readable.register(self.fileno(), select.POLLIN)
        self._either.register(self.fileno(), select.POLLIN | select.POLLOUT)

    def transact(
        self, statements: Sequence[Statement], values: Mapping[str, Any], deadline: float
    ) -> list[list[Row]]:
        """Return the rows of each statement, run in one transaction and one round trip.

        Between two Syncs of a pipeline all statements are one implicit transaction (PostgreSQL,
        "Pipelining" in the chapter on the message flow). libpq is called as PostgreSQL's
        manual describes it ("Pipeline Mode"): for two statements, psycopg's own pipeline takes four
        times as long.

        Raises psycopg.Error: the error of the statement that failed, after which all are rolled
        back; or an OperationalError without an SQLSTATE if the connection is lost or gets no result
        until `deadline` (time.monotonic). The connection cannot be used after that. A value that
        cannot be adapted raises before anything is sent, and the connection stays usable.
        """
        queries = [self._adapt(statement, values) for statement in statements]
        self.pgconn.enter_pipeline_mode()
        sent = [command for query in queries for command in self._send(query)]
        # Send nothing after the Sync. A pooler treats a later Flush as the start of a transaction
        # and assigns a server connection, which no other client can use while this one is idle.
        self.pgconn.pipeline_sync()
        while self.pgconn.flush():
            self._await(self._either, deadline)
        results = self._receive(deadline)
        self.pgconn.exit_pipeline_mode()
        rows, failed = [], None
        for command, result in zip(sent, results, strict=True):
            if result.status == ExecStatus.FATAL_ERROR:
                failed = result
            if command is None and failed is None:
                self._transformer.set_pgresult(result)
                rows.append(self._transformer.load_rows(0, result.ntuples, tuple))
        if failed is not None:
            self._undo(
                command
                for command, result in zip(sent, results, strict=True)
                if result.status != ExecStatus.COMMAND_OK
            )
            raise error_from_result(failed)
        return rows

    def _undo(self, commands: Iterable[Command]) -> None:
        """Correct the record of prepared statements: these commands were not executed."""
        for command in reversed(list(commands)):
            match command:
                case Prepare(shape):
                    del self._names[shape]
                case Close(shape):
                    self._names[shape] = name_of(shape)

    def _adapt(self, statement: Statement, values: Mapping[str, Any]) -> Query:
        """Return the statement with its parameters in PostgreSQL's formats; send nothing."""
        parameters = self._transformer.dump_sequence(
            [values[name] for name in statement.names], statement.formats
        )
        shape = (statement.numbered, self._transformer.types or ())
        return Query(shape, parameters, self._transformer.formats)

    def _send(self, query: Query) -> Iterator[Command]:
        """Send the query; yield the command that each expected result belongs to."""
        shape, parameters, formats = query
        name = self._names.pop(shape, None)
        if name is None and self._most_prepared:
            if len(self._names) >= self._most_prepared:
                oldest = next(iter(self._names))
                self.pgconn.send_close_prepared(self._names.pop(oldest))
                yield Close(oldest)
            name = name_of(shape)
            self.pgconn.send_prepare(name, *shape)
            yield Prepare(shape)
        if name is None:
            sql, types = shape
            self.pgconn.send_query_params(sql, parameters, types, formats, Format.BINARY)
        else:
            # At the end of the dict: the most recently used.
            self._names[shape] = name
            self.pgconn.send_query_prepared(name, parameters, formats, Format.BINARY)
        yield None

    def _receive(self, deadline: float) -> list[PGresult]:
        """Return every result before that of the Sync."""
        results: list[PGresult] = []
        while True:
            while self.pgconn.is_busy():
                self._await(self._readable, deadline)
            result = self.pgconn.get_result()
            if result is None:
                if self.pgconn.status == ConnStatus.BAD:
                    raise psycopg.OperationalError("the connection is lost")
            elif result.status == ExecStatus.PIPELINE_SYNC:
                return results
            else:
                results.append(result)

    def _await(self, ready: select.poll, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not ready.poll(left * 1000):
            raise psycopg.OperationalError("no result before the deadline")
        self.pgconn.consume_input()


def name_of(shape: Shape) -> bytes:
    """Return the name of the prepared statement: the same each time, so none is prepared twice."""
    return hashlib.blake2b(repr(shape).encode(), digest_size=12).hexdigest().encode()
