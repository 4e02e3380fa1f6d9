"""The TypeScript client of README.md works with a real server: it runs typescript/journey.ts."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from fault_injection.servers import serving
from tests.support import ROOT
from tests.support.node import install
from todo_api.commands.token import make_token
from todo_api.startup import load_settings

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent / "typescript"
SERVER = "http://127.0.0.1:8000"
SOURCES = ("journey.ts", "package.json", "tsconfig.json")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A TypeScript project with the client of README.md, built by the commands of README.md."""
    install(FOLDER)
    for name in SOURCES:
        shutil.copy(FOLDER / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(FOLDER / "node_modules")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    commands, client = readme_client()
    (tmp_path / "client.ts").write_text(client)
    generate = next(line for line in commands if line.startswith("npx openapi-typescript "))
    generate = generate.replace(f"{SERVER}/openapi.json", "docs/openapi.json")
    run(tmp_path, *shlex.split(generate, comments=True)[1:])
    run(tmp_path, "tsc")
    return tmp_path


def readme_client() -> tuple[list[str], str]:
    """The commands of README's section on the client, in order, and its code."""
    section = (ROOT / "README.md").read_text().partition("\n## A client\n")[2]
    section = section.partition("\n## ")[0]

    def blocks(language: str) -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)

    (client,) = blocks("ts")
    return "".join(blocks("sh")).splitlines(), client


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


def test_readme_commands_compile_its_client_in_an_empty_folder(tmp_path, database_url):
    """All commands as printed, except for the install: the packages are those of the lock file."""
    install(FOLDER)
    commands, client = readme_client()
    locked = json.loads((FOLDER / "package.json").read_text())
    assert len(commands) == 4

    with serving(database_url) as api:
        for command in commands:
            if command.startswith("npx tsc "):
                (tmp_path / "client.ts").write_text(client)
            if command.startswith("npm install "):
                names = set(re.findall(r"[\w-]+", command.replace("--save-dev", "")))
                packages = locked["dependencies"].keys() | locked["devDependencies"].keys()
                assert names - {"npm", "install"} <= packages
                link_packages(tmp_path)
            else:
                printed = command.replace(SERVER, f"http://127.0.0.1:{api.port}")
                run(tmp_path, "sh", "-ec", printed, NO_UPDATE_NOTIFIER="1")

    assert json.loads((tmp_path / "package.json").read_text())["type"] == "module"
    assert (tmp_path / "client.js").read_text().startswith("import createClient from")


def link_packages(folder: Path) -> None:
    """Install the packages of the lock file, without @types, which README does not install."""
    (folder / "node_modules").mkdir()
    for package in (FOLDER / "node_modules").iterdir():
        if package.name != "@types":
            (folder / "node_modules" / package.name).symlink_to(package)
