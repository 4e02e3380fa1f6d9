"""PostgreSQL is killed, every process of it at once, and started again, while clients write."""

from __future__ import annotations

from faults.servers import postgresql, serving
from faults.writing import write_through


def run(*, short: bool) -> None:
    with postgresql() as server, serving(server.url()) as api:

        def crash() -> None:
            server.kill()
            server.start()

        times, writes = (2, 400) if short else (20, 26_000)
        write_through(crash, times=times, writes=writes, api=api, server=server)
