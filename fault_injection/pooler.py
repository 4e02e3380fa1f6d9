"""PgBouncer in transaction mode is killed and starts again while clients write through it."""

from __future__ import annotations

from fault_injection import MissingProgramError
from fault_injection.journal import write_during
from fault_injection.pgbouncer import PGBOUNCER, pgbouncer
from fault_injection.servers import postgresql, serving


def run(*, short: bool) -> None:
    if PGBOUNCER is None:
        raise MissingProgramError("PgBouncer is not installed (Debian's package pgbouncer).")

    def crash() -> None:
        pooler.kill()
        pooler.start()

    with (
        postgresql() as server,
        pgbouncer(server.url()) as pooler,
        # PgBouncer supports prepared statements from version 1.22 on.
        serving(pooler.url, DATABASE_PREPARE="false") as api,
    ):
        times, writes = (1, 400) if short else (10, 26_000)
        write_during(crash, times=times, writes=writes, api=api, server=server)
