"""The TypeScript client of README.md works with a real server: it runs typescript/journey.ts."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from faults.servers import serving
from tests.support import ROOT
from tests.support.node import install
from todo_api.commands.token import make_token
from todo_api.startup import load_settings

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent / "typescript"
SOURCES = ("journey.ts", "package.json", "tsconfig.json")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A TypeScript project with the client of README.md, built by the commands of README.md."""
    install(FOLDER)
    for name in SOURCES:
        shutil.copy(FOLDER / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(FOLDER / "node_modules")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    section = (ROOT / "README.md").read_text().partition("\n## A client\n")[2]
    command, client = (
        re.search(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[1]
        for language in ("sh", "ts")
    )
    (tmp_path / "client.ts").write_text(client)
    generate = next(line for line in command.splitlines() if line.startswith("npx "))
    run(tmp_path, *shlex.split(generate, comments=True)[1:])
    run(tmp_path, "tsc")
    return tmp_path


def run(project: Path, program: str, *arguments: str, **environ: str) -> str:
    """Run a program of the project's packages, or of Node; return its output."""
    package_program = project / "node_modules" / ".bin" / program
    result = subprocess.run(
        [package_program if package_program.exists() else program, *arguments],
        cwd=project,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_generated_client_completes_the_journey(project, database_url):
    secret = secrets.token_hex(32)
    settings = {"DATABASE_URL": database_url, "AUTH_MODE": "jwt", "JWT_SECRET": secret}
    token = make_token(load_settings(settings), str(uuid.uuid4()))

    with serving(database_url, AUTH_MODE="jwt", JWT_SECRET=secret) as api:
        url = f"http://127.0.0.1:{api.port}"
        output = run(project, "node", "built/journey.js", API_URL=url, API_TOKEN=token)

    assert int(output.removesuffix(" responses checked\n")) > 40
