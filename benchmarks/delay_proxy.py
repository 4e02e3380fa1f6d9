"""A way to PostgreSQL that takes longer: what a client sends arrives so many milliseconds later.

Answers come back at once, so that this is what a round trip takes more.
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


class Passing(asyncio.Protocol):
    """One direction: gives what it receives to `receive`, in order."""

    def __init__(self, receive: Callable[[bytes], None], close: Callable[[], None]) -> None:
        self.data_received = receive
        self.close = close

    def connection_lost(self, _: Exception | None) -> None:
        self.close()


async def serve(socket: str, seconds: float) -> None:
    """Pass connections on to the socket; the port is printed. Ends when its standard input does."""
    loop = asyncio.get_running_loop()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, _ = await loop.create_unix_connection(
            lambda: Passing(writer.write, writer.close), socket
        )
        while sent := await reader.read(65536):
            if seconds:
                loop.call_later(seconds, there.write, sent)
            else:
                there.write(sent)
        loop.call_later(seconds, there.close)

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def delayed(url: str, milliseconds: float) -> Iterator[str]:
    """The URL by which the database of `url` is so much further away."""
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
    """Milliseconds that a statement takes which does nothing: the median of a few."""
    taken = []
    with psycopg.connect(url, autocommit=True, prepare_threshold=0) as connection:
        for _ in range(31):
            begun = time.perf_counter()
            connection.execute("SELECT")
            taken.append(time.perf_counter() - begun)
    return sorted(taken)[len(taken) // 2] * 1e3


if __name__ == "__main__":
    assert Path(sys.argv[1]).is_socket()
    asyncio.run(serve(sys.argv[1], float(sys.argv[2]) / 1e3))
