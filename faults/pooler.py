"""PgBouncer, in transaction mode, is killed and started again, while clients write through it."""

from __future__ import annotations

from faults import Absent
from faults.pgbouncer import PGBOUNCER, pgbouncer
from faults.servers import postgresql, serving
from faults.writing import write_through


def run(*, short: bool) -> None:
    if PGBOUNCER is None:
        raise Absent("PgBouncer is not installed (Debian: apt install pgbouncer)")

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
