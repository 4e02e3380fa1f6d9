"""All backends of the API are terminated by pg_terminate_backend() while clients write."""

from __future__ import annotations

from fault_injection.journal import write_during
from fault_injection.servers import postgresql, serving


def run(*, short: bool) -> None:
    terminated = 0

    def terminate() -> None:
        nonlocal terminated
        with server.connect() as connection:
            terminated += connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).rowcount

    with postgresql() as server, serving(server.url()) as api:
        times, writes = (3, 600) if short else (50, 26_000)
        write_during(terminate, times=times, writes=writes, api=api, server=server)
        assert terminated >= times, f"Only {terminated} backends were terminated."
