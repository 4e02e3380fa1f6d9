"""PgBouncer, in transaction mode, is killed and started again, while clients write through it."""

from __future__ import annotations

from fault_injection import MissingProgramError
from fault_injection.journal import write_through
from fault_injection.pgbouncer import PGBOUNCER, pgbouncer
from fault_injection.servers import postgresql, serving


def run(*, short: bool) -> None:
    if PGBOUNCER is None:
        raise MissingProgramError("PgBouncer is not installed (Debian: apt install pgbouncer)")

    def crash() -> None:
        pooler.kill()
        pooler.start()

    with (
        postgresql() as server,
        pgbouncer(server.url()) as pooler,
        # PgBouncer carries no prepared statements before its version 1.22.
        serving(pooler.url, DATABASE_PREPARE="false") as api,
    ):
        times, writes = (1, 400) if short else (10, 26_000)
        write_through(crash, times=times, writes=writes, api=api, server=server)
