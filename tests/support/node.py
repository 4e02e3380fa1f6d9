"""Install the Node packages of a lock file, for tests that need Node."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

OLDEST_NODE = 20
TIMEOUT_MINUTES = 4

# npm's error codes for wrong files of this project. Other errors come from the machine or registry.
ERRORS_OF_OUR_FILES = {"EJSONPARSE", "ERESOLVE", "EUSAGE"}


def install(folder: Path) -> None:
    """Install the packages of the folder's lock file, once for all pytest workers and runs.

    Skip the test, with the reason, if Node is missing or too old, or if no registry has the
    packages. Scripts of the packages do not run.
    """
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        pytest.skip("Node and npm are not installed")
    version = subprocess.check_output([node, "--version"], text=True, timeout=30).strip()
    if int(version.removeprefix("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"Node {OLDEST_NODE} or later is needed; the installed version is {version}")
    with (folder / "package-lock.json").open() as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        installed = folder / "node_modules" / ".package-lock.json"
        if installed.exists() and installed.stat().st_mtime > os.fstat(lock_file.fileno()).st_mtime:
            return
        try:
            result = subprocess.run(
                ["npm", "ci", "--ignore-scripts"],
                cwd=folder,
                timeout=TIMEOUT_MINUTES * 60,
                capture_output=True,
                text=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm cannot install {folder.name} in {TIMEOUT_MINUTES} minutes")
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if line.startswith("npm error")]
        assert not ERRORS_OF_OUR_FILES & set(re.findall(r"npm error code (\w+)", result.stderr)), (
            result.stderr
        )
        pytest.skip(f"npm cannot install {folder.name}: {'; '.join(errors[:3])}")
