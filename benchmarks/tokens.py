"""What verifying tokens costs: a warm GET of one task with and without; `make bench-tokens`.

Three gunicorns on one embedded PostgreSQL take turns for ROUNDS rounds: without tokens, with one
token that is verified once and then remembered, and with more tokens than are remembered.
Needs wrk, a package of Debian.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from joserfc import jwt
from joserfc.jwk import OKPKey

from todo_api.auth.tokens import VERIFIED_TOKENS
from todo_api.commands.embedded import temporary_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
ROUNDS, SECONDS, CONNECTIONS = 7, 4, 16
USER = str(uuid.UUID(int=7))

SCRIPT = """
local tokens, at = {}, 0
for line in io.lines(os.getenv("TOKENS")) do tokens[#tokens + 1] = line end
function request()
  at = at % #tokens + 1
  return wrk.format("GET", nil, {["Authorization"] = "Bearer " .. tokens[at]})
end
"""


@contextmanager
def serving(**environ: str) -> Iterator[str]:
    """A gunicorn with these settings, and where it is."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn"],
        cwd=ROOT,
        env=os.environ | {"PORT": str(port), "LOG_LEVEL": "info"} | environ,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def rate(url: str, folder: Path, tokens: Path, seconds: int = SECONDS) -> float:
    """Requests a second, all of them answered with 200."""
    ended = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(folder / "wrk.lua"), url],
        env=os.environ | {"TOKENS": str(tokens)},
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        check=True,
    ).stdout
    assert "Non-2xx" not in ended, ended
    found = re.search(r"Requests/sec:\s+([\d.]+)", ended)
    assert found, ended
    return float(found[1])


def main() -> None:
    if shutil.which("wrk") is None:
        sys.exit("wrk is needed: apt-get install wrk")
    key = OKPKey.generate_key("Ed25519")
    now = int(time.time())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "wrk.lua").write_text(SCRIPT)
        many = [
            jwt.encode(
                {"alg": "Ed25519"},
                {"sub": USER, "exp": now + 3600, "jti": str(number)},
                key,
                algorithms=["Ed25519"],
            )
            for number in range(VERIFIED_TOKENS * 3)
        ]
        (folder / "one").write_text(f"{many[0]}\n")
        (folder / "many").write_text("\n".join(many) + "\n")
        cluster = stack.enter_context(temporary_cluster())
        database = {"DATABASE_URL": cluster.create_database("bench")}
        subprocess.run(
            [sys.executable, "-m", "alembic", "upgrade", "head"],
            cwd=ROOT,
            env=os.environ | database,
            capture_output=True,
            check=True,
        )
        public = json.dumps(key.as_dict(private=False))
        open_url = stack.enter_context(serving(AUTH_MODE="none", **database))
        closed_url = stack.enter_context(serving(JWT_PUBLIC_KEY=public, **database))
        made = urllib.request.Request(
            f"{open_url}/api/{USER}/tasks",
            data=b'{"title": "Buy oat milk"}',
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(made, timeout=5) as answer:
            path = answer.headers["Location"]
        columns = {
            "no tokens": (open_url, "one"),
            "one token": (closed_url, "one"),
            "many tokens": (closed_url, "many"),
        }
        rates: dict[str, list[float]] = {name: [] for name in columns}
        for number in range(ROUNDS + 1):
            for name, (url, tokens) in columns.items():
                measured = rate(url + path, folder, folder / tokens)
                if number:  # the first round warms up
                    rates[name].append(measured)
    base = rates["no tokens"]
    for name, measured in rates.items():
        ratios = [mine / other for mine, other in zip(measured, base, strict=True)]
        print(
            f"{name:12} {statistics.median(measured):7.0f} requests/s, "
            f"{statistics.median(ratios):5.1%} of the rate without tokens"
        )


if __name__ == "__main__":
    main()
