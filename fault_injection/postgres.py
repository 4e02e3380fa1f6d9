"""All processes of PostgreSQL are killed at once, and it starts again, while clients write."""

from __future__ import annotations

from fault_injection.journal import write_during
from fault_injection.servers import postgresql, serving


def run(*, short: bool) -> None:
    with postgresql() as server, serving(server.url()) as api:

        def crash() -> None:
            server.kill()
            server.start()

        times, writes = (2, 400) if short else (20, 26_000)
        write_during(crash, times=times, writes=writes, api=api, server=server)
