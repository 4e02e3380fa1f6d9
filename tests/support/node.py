"""What the tests that need Node have in common: its packages, as a lock file has them."""

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
MINUTES = 4

# npm's codes for files of ours that are wrong. Anything else is the machine's or its registry's.
OURS = {"EJSONPARSE", "ERESOLVE", "EUSAGE"}


def install(folder: Path) -> None:
    """Install what the folder's lock file names, once for all workers and runs.

    Skips the test, with the reason, where Node is missing or too old or no registry serves them.
    No script of a package is run.
    """
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        pytest.skip("Node and npm are not here")
    version = subprocess.check_output([node, "--version"], text=True, timeout=30).strip()
    if int(version.removeprefix("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"Node {OLDEST_NODE} or later is needed, and this is {version}")
    with (folder / "package-lock.json").open() as wanted:
        fcntl.flock(wanted, fcntl.LOCK_EX)
        found = folder / "node_modules" / ".package-lock.json"
        if found.exists() and found.stat().st_mtime > os.fstat(wanted.fileno()).st_mtime:
            return
        try:
            done = subprocess.run(
                ["npm", "ci", "--ignore-scripts"],
                cwd=folder,
                timeout=MINUTES * 60,
                capture_output=True,
                text=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm cannot install {folder.name} in {MINUTES} minutes")
    if done.returncode:
        why = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
        assert not OURS & set(re.findall(r"npm error code (\w+)", done.stderr)), done.stderr
        pytest.skip(f"npm cannot install {folder.name}: {'; '.join(why[:3])}")
