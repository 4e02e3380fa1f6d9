"""SQL with named parameters, compiled once from SQLAlchemy Core."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

from psycopg.adapt import PyFormat
from sqlalchemy import Uuid, bindparam
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

if TYPE_CHECKING:
    from sqlalchemy.sql import ClauseElement
    from sqlalchemy.sql.compiler import SQLCompiler


# Parameters that many statements have: the owner of the rows, and the id of a row.
OWNER = bindparam("owner", type_=Uuid)
ID = bindparam("id", type_=Uuid)

PLACEHOLDER = re.compile(rb"%\((\w+)\)s|%%")


@dataclass(frozen=True)
class Statement:
    """SQL as psycopg takes it: `%(name)s` is a placeholder, and `%%` is a percent sign."""

    sql: bytes

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the placeholders, each once, in the order of their first use."""
        names = (match[1] for match in PLACEHOLDER.finditer(self.sql))
        return tuple(dict.fromkeys(name.decode() for name in names if name))

    @cached_property
    def formats(self) -> list[PyFormat]:
        return [PyFormat.AUTO] * len(self.names)

    @cached_property
    def numbered(self) -> bytes:
        """The SQL as PostgreSQL takes it: `$1` is the first of `names`."""
        numbers = {name.encode(): b"$%d" % number for number, name in enumerate(self.names, 1)}
        return PLACEHOLDER.sub(lambda match: numbers.get(match[1], b"%"), self.sql)


def compiled(statement: ClauseElement) -> Statement:
    """Return the Core statement as SQL. Call this at import or with a cache, not in each request.

    `Database` sets these parameters of all statements:

    owner      the user who owns the rows
    attempt    the write attempt id, which the first run and the retries of a write have in common;
               the trigger `write_row` writes it into changed rows
    elapsed    the seconds since the first run began; NULL in the first run

    Raises ValueError if the statement contains a value, which should be a parameter.
    """
    dialect = PGDialect_psycopg()  # type: ignore[no-untyped-call]
    compilation = cast("SQLCompiler", statement.compile(dialect=dialect))
    values = [name for bind, name in compilation.bind_names.items() if not bind.required]
    if values:
        raise ValueError(f"Values in the statement instead of parameters: {sorted(values)}")
    return Statement(str(compilation).encode())
