"""A proxy to PostgreSQL that delays the data from the client.

It forwards the data from PostgreSQL without a delay, so a round trip takes longer by one delay.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import conninfo_to_dict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Forwarder(asyncio.Protocol):
    """One direction of a connection: passes received data to `receive`."""

    def __init__(self, receive: Callable[[bytes], None], close: Callable[[], None]) -> None:
        self.data_received = receive
        self.close = close

    def connection_lost(self, _: Exception | None) -> None:
        self.close()


async def serve(socket: str, seconds: float) -> None:
    """Print the port, and forward connections to the socket until standard input ends."""
    loop = asyncio.get_running_loop()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, _ = await loop.create_unix_connection(
            lambda: Forwarder(writer.write, writer.close), socket
        )
        while data := await reader.read(65536):
            if seconds:
                loop.call_later(seconds, upstream.write, data)
            else:
                upstream.write(data)
        loop.call_later(seconds, upstream.close)

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def delayed(url: str, milliseconds: float) -> Iterator[str]:
    """Run a proxy with this delay. Yield the URL of the same database through the proxy."""
    parts = conninfo_to_dict(url)
    process = subprocess.Popen(
        [sys.executable, __file__, f"{parts['host']}/.s.PGSQL.5432", str(milliseconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    try:
        port = int(process.stdout.readline())
        yield f"postgresql://{parts['user']}@127.0.0.1:{port}/{parts['dbname']}"
    finally:
        process.stdin.close()
        process.wait(10)


def round_trip(url: str) -> float:
    """Return the milliseconds of an empty statement: the median of 31."""
    seconds = []
    with psycopg.connect(url, autocommit=True, prepare_threshold=0) as connection:
        for _ in range(31):
            started = time.perf_counter()
            connection.execute("SELECT")
            seconds.append(time.perf_counter() - started)
    return sorted(seconds)[len(seconds) // 2] * 1e3


if __name__ == "__main__":
    assert Path(sys.argv[1]).is_socket()
    asyncio.run(serve(sys.argv[1], float(sys.argv[2]) / 1e3))
