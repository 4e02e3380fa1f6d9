"""`make conformance`: tools that we did not write, on the document and on a server that runs.

Each of them is a judge: it ends with 0, or what it has to say is shown and this ends with 1.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import urlopen

from alembic import command
from alembic.config import Config

from todo_api.commands.embedded import temporary_cluster
from todo_api.commands.token import make_token
from todo_api.startup import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
ROOT = HERE.parent
DOCUMENT = "docs/openapi.json"
PYTHON = ROOT / ".venv-conformance" / "bin" / "python"
MODULES = HERE / "node_modules" / ".bin"

# What is generated is another each time; a run is repeated with: make conformance SEED=...
CASES_WANTED = 5000
STATEFUL = ["--phases", "stateful", "--max-examples", "200"]
RUNS = {
    "all but stateful": ["--phases", "examples,coverage,fuzzing", "--max-examples", "400"],
    # That check takes a task for gone for good once it was deleted, and knows of no restoring: it
    # has a run of its own, in which nothing is restored, nor is a user erased who then comes back.
    "stateful": [*STATEFUL, "--max-time", "75", "--exclude-checks", "use_after_free"],
    "stateful, nothing restored": [
        *STATEFUL,
        *("--max-time", "45"),
        *("--exclude-operation-id", "restoreFromTrash", "--exclude-operation-id", "removeUser"),
    ],
}
TIMEOUT = 600  # seconds, for any one of them


@contextmanager
def served(environ: dict[str, str], log: int | None = None) -> Iterator[str]:
    """The address of a server with these settings; it is stopped afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = os.environ | environ | {"HOST": "127.0.0.1", "PORT": str(port), "LOG_LEVEL": "error"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn"], env=environ, cwd=ROOT, stderr=log
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urlopen(f"{url}/livez", timeout=5):
                return
        except URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def judge(name: str, arguments: list[str | Path], **environ: str) -> tuple[bool, str]:
    """Whether this judge has nothing to say against it, and what it said."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            arguments,
            env=os.environ | environ,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        passed, said = done.returncode == 0, done.stdout
    except subprocess.TimeoutExpired as late:
        passed, said = False, f"{late.stdout or ''}\nIt took more than {TIMEOUT} s."
    if not passed:
        print(said)
    print(f"{'pass' if passed else 'FAIL'}  {name}, {time.monotonic() - started:.0f} s", flush=True)
    return passed, said


def judge_document() -> Iterator[bool]:
    spectral = [MODULES / "spectral", "lint", "--fail-severity", "hint"]
    yield judge("Spectral", [*spectral, "--ruleset", HERE / "spectral.yaml", DOCUMENT])[0]
    redocly = [MODULES / "redocly", "lint", "--config", HERE / "redocly.yaml", DOCUMENT]
    yield judge("Redocly", redocly, REDOCLY_SUPPRESS_UPDATE_NOTICE="true")[0]
    vacuum = shutil.which("vacuum")
    if vacuum:
        strictly = ["lint", "-z", "--fail-severity", "warn", "--ruleset", HERE / "vacuum.yaml"]
        yield judge("vacuum", [vacuum, *strictly, DOCUMENT])[0]
    else:
        print(
            "skip  vacuum: its binary is not on the PATH, and its npm package is a download of it"
        )


def judge_server(seed: str) -> Iterator[bool]:
    with ExitStack() as stack:
        cluster = stack.enter_context(temporary_cluster(options={"fsync": "off"}))
        database = cluster.create_database("todo")
        config = Config(toml_file=ROOT / "pyproject.toml")
        config.attributes["url"] = database
        command.upgrade(config, "head")
        settings = {
            "DATABASE_URL": database,
            "AUTH_MODE": "jwt",
            "JWT_SECRET": secrets.token_hex(32),
            "METRICS": "true",
        }
        url = stack.enter_context(served(settings))
        nowhere = {"DATABASE_URL": "postgresql://127.0.0.1:9/todo", "REQUIRE_IF_MATCH": "true"}
        user = str(uuid.uuid4())
        environ = {
            "URL": url,
            "USER_ID": user,
            "TOKEN": make_token(load_settings(settings), user),
        }
        with served(settings | nowhere, subprocess.DEVNULL) as alone:
            answers = [PYTHON, HERE / "lint_responses.py"]
            passed, said = judge("httplint", answers, **environ, URL_WITHOUT_DATABASE=alone)
            print(f"      {said.splitlines()[-1]}")
            yield passed

        program = [
            PYTHON,
            "-m",
            "schemathesis.cli",
            "--config-file",
            HERE / "schemathesis.toml",
            "run",
        ]
        address = [f"{url}/openapi.json", "--url", url, "--seed", seed, "--no-color"]
        address += ["--checks", "all", "--mode", "all"]
        cases = 0
        for name, options in RUNS.items():
            passed, said = judge(f"schemathesis, {name}", [*program, *address, *options], **environ)
            generated = re.search(r"([0-9]+) generated", said)
            cases += int(generated[1]) if generated else 0
            yield passed
        print(f"      {cases} cases, {CASES_WANTED} wanted; SEED={seed}")
        yield cases >= CASES_WANTED


def main() -> None:
    seed = os.environ.get("SEED") or str(secrets.randbelow(10**9))
    verdicts = [*judge_document(), *judge_server(seed)]
    sys.exit(not all(verdicts))


if __name__ == "__main__":
    main()
