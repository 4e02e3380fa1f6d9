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


# A statement's SQL and the type OIDs of its parameters. Each shape is prepared once.
Shape: TypeAlias = tuple[bytes, tuple[int, ...]]


# The maximum of prepared statements per connection.
MAX_PREPARED = 200


class Query(NamedTuple):
    """A statement's shape, its parameters in the form that is sent, and their formats."""

    shape: Shape
    parameters: Sequence[Buffer | None]
    formats: Sequence[Format] | None


class Prepare(NamedTuple):
    """The command that prepares a statement."""

    shape: Shape


class Close(NamedTuple):
    """The command that closes the least recently used prepared statement."""

    shape: Shape


# The command that a result belongs to; for the execution of a query, it is None.
Command: TypeAlias = Prepare | Close | None


class Connection(psycopg.Connection[Row]):
    """A connection with the method `transact`. Call `set_up` first."""

    opened_at = 0.0

    def set_up(self, *, prepares: bool, max_prepared: int = MAX_PREPARED) -> None:
        """Set up the connection for `transact`, with at most `max_prepared` prepared statements.

        At this maximum, the least recently used one is closed before the next one is prepared.
        With `prepares=False`, statements are not prepared, for poolers without prepared statements.
        """
        self.opened_at = time.monotonic()
        # Load JSON as bytes: responses contain JSON as PostgreSQL wrote it.
        bytes_loader = self.adapters.get_loader(self.adapters.types["bytea"].oid, Format.BINARY)
        if bytes_loader is not None:
            self.adapters.register_loader("json", bytes_loader)
        self._transformer = Transformer(self)
        self._max_prepared = max_prepared if prepares else 0
        self._names: dict[Shape, bytes] = {}
        self._readable, self._readable_or_writable = select.poll(), select.poll()
        self._readable.register(self.fileno(), select.POLLIN)
        self._readable_or_writable.register(self.fileno(), select.POLLIN | select.POLLOUT)

    def transact(
        self, statements: Sequence[Statement], values: Mapping[str, Any], deadline: float
    ) -> list[list[Row]]:
        """Run the statements in one transaction and one round trip; return the rows of each.

        Between two Syncs of a pipeline, all statements are one implicit transaction (PostgreSQL's
        manual, "Message Flow", "Pipelining"). The calls of libpq follow PostgreSQL's manual
        ("Pipeline Mode"): for two statements, psycopg's own pipeline takes four times as long.

        Raises psycopg.Error. If a statement fails, its error is raised, and all statements are
        rolled back. If the connection is lost, or no result comes before `deadline`
        (time.monotonic), the error is an OperationalError without SQLSTATE, and the connection is
        unusable. If a value cannot be adapted, nothing is sent, and the connection stays usable.
        """
        queries = [self._adapt(statement, values) for statement in statements]
        self.pgconn.enter_pipeline_mode()
        sent = [command for query in queries for command in self._send(query)]
        # Send nothing after the Sync. A pooler would treat a Flush as the start of a transaction,
        # and would reserve a server connection for this client while it is idle.
        self.pgconn.pipeline_sync()
        while self.pgconn.flush():
            self._await(self._readable_or_writable, deadline)
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
        """Correct `_names`: PostgreSQL did not execute these commands."""
        for command in reversed(list(commands)):
            match command:
                case Prepare(shape):
                    del self._names[shape]
                case Close(shape):
                    self._names[shape] = name_of(shape)

    def _adapt(self, statement: Statement, values: Mapping[str, Any]) -> Query:
        """Return the statement and its parameters in PostgreSQL's formats."""
        parameters = self._transformer.dump_sequence(
            [values[name] for name in statement.names], statement.formats
        )
        shape = (statement.numbered, self._transformer.types or ())
        return Query(shape, parameters, self._transformer.formats)

    def _send(self, query: Query) -> Iterator[Command]:
        """Send the query; for each expected result, yield the command that it belongs to."""
        shape, parameters, formats = query
        name = self._names.pop(shape, None)
        if name is None and self._max_prepared:
            if len(self._names) >= self._max_prepared:
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
            # The last entry of the dict is the most recently used statement.
            self._names[shape] = name
            self.pgconn.send_query_prepared(name, parameters, formats, Format.BINARY)
        yield None

    def _receive(self, deadline: float) -> list[PGresult]:
        """Return all results before the result of the Sync."""
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

    def _await(self, poller: select.poll, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise psycopg.OperationalError("no result before the deadline")
        self.pgconn.consume_input()


def name_of(shape: Shape) -> bytes:
    """Return the name of the prepared statement, which depends on the shape only."""
    return hashlib.blake2b(repr(shape).encode(), digest_size=12).hexdigest().encode()
