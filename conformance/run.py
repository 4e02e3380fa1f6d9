"""Check the OpenAPI document and a running server with tools of other projects: `make conformance`.

Each check passes if its tool exits with 0. The output of a failed tool is printed, and this program
exits with 1.
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

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
DOCUMENT = "docs/openapi.json"
PYTHON = ROOT / ".venv-conformance" / "bin" / "python"
MODULES = FOLDER / "node_modules" / ".bin"

# schemathesis generates other cases in each run. To repeat a run: make conformance SEED=...
MIN_CASES = 5000
STATEFUL = ["--phases", "stateful", "--max-examples", "200"]
RUNS = {
    "all but stateful": ["--phases", "examples,coverage,fuzzing", "--max-examples", "400"],
    # The check use_after_free expects that no deleted task, list or user comes back. It
    # runs only in the last run, without these operations.
    "stateful": [*STATEFUL, "--max-time", "75", "--exclude-checks", "use_after_free"],
    "stateful, without restore": [
        *STATEFUL,
        *("--max-time", "45"),
        *("--exclude-operation-id", "restoreTask", "--exclude-operation-id", "restoreList"),
        *("--exclude-operation-id", "eraseUser"),
    ],
}
TIMEOUT = 600  # seconds for each tool


@contextmanager
def run_server(environ: dict[str, str], log: int | None = None) -> Iterator[str]:
    """Run a server with these settings, and yield its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environ = os.environ | environ | {"HOST": "127.0.0.1", "PORT": str(port), "LOG_LEVEL": "error"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn"], env=environ, cwd=ROOT, stderr=log
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_live(url)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def wait_until_live(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urlopen(f"{url}/livez", timeout=5):
                return
        except (URLError, TimeoutError):  # the socket listens before the workers have started
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def run_tool(name: str, arguments: list[str | Path], **environ: str) -> tuple[bool, str]:
    """Run a tool and print its result. Return True if it exits with 0, and its output."""
    started = time.monotonic()
    try:
        process = subprocess.run(
            arguments,
            env=os.environ | environ,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        passed, output = process.returncode == 0, process.stdout
    except subprocess.TimeoutExpired as error:
        passed, output = False, f"{error.stdout or ''}\nIt took more than {TIMEOUT} s."
    if not passed:
        print(output)
    print(f"{'pass' if passed else 'FAIL'}  {name}, {time.monotonic() - started:.0f} s", flush=True)
    return passed, output


def check_document() -> Iterator[bool]:
    spectral = [MODULES / "spectral", "lint", "--fail-severity", "hint"]
    yield run_tool("Spectral", [*spectral, "--ruleset", FOLDER / "spectral.yaml", DOCUMENT])[0]
    redocly = [MODULES / "redocly", "lint", "--config", FOLDER / "redocly.yaml", DOCUMENT]
    yield run_tool("Redocly", redocly, REDOCLY_SUPPRESS_UPDATE_NOTICE="true")[0]
    vacuum = shutil.which("vacuum")
    if vacuum:
        options = ["lint", "-z", "--fail-severity", "warn", "--ruleset", FOLDER / "vacuum.yaml"]
        yield run_tool("vacuum", [vacuum, *options, DOCUMENT])[0]
    else:
        print("skip  vacuum: its program is not in the PATH, and its npm package only downloads it")


def check_server(seed: str) -> Iterator[bool]:
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
        url = stack.enter_context(run_server(settings))
        no_database = {"DATABASE_URL": "postgresql://127.0.0.1:9/todo", "REQUIRE_IF_MATCH": "true"}
        user = str(uuid.uuid4())
        environ = {
            "URL": url,
            "USER_ID": user,
            "TOKEN": make_token(load_settings(settings), user),
        }
        with run_server(settings | no_database, subprocess.DEVNULL) as url_without_database:
            passed, output = run_tool(
                "httplint",
                [PYTHON, FOLDER / "lint_responses.py"],
                **environ,
                URL_WITHOUT_DATABASE=url_without_database,
            )
            print(f"      {output.splitlines()[-1]}")
            yield passed

        program = [
            PYTHON,
            "-m",
            "schemathesis.cli",
            "--config-file",
            FOLDER / "schemathesis.toml",
            "run",
        ]
        target = [f"{url}/openapi.json", "--url", url, "--seed", seed, "--no-color"]
        target += ["--checks", "all", "--mode", "all"]
        cases = 0
        for name, options in RUNS.items():
            passed, output = run_tool(
                f"schemathesis, {name}", [*program, *target, *options], **environ
            )
            generated = re.search(r"([0-9]+) generated", output)
            cases += int(generated[1]) if generated else 0
            yield passed
        print(f"      {cases} cases, {MIN_CASES} at least; SEED={seed}")
        yield cases >= MIN_CASES


def main() -> None:
    seed = os.environ.get("SEED") or str(secrets.randbelow(10**9))
    results = [*check_document(), *check_server(seed)]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
