"""Install the Python packages of a lock file beside those of the application, for tests."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_MINUTES = 4

# Texts that pip prints for a wrong lock file. Other errors come from the machine or registry.
ERRORS_OF_OUR_FILES = ("HASHES", "--require-hashes", "ResolutionImpossible", "Invalid requirement")


def install(lock_file: Path, environment: Path) -> Path:
    """Install the packages of the lock file into a virtual environment; return its `bin`.

    It is made once for all pytest workers and runs, until the lock file changes. Skip the test,
    with the reason, if no registry has the packages.
    """
    wanted = lock_file.read_text()
    installed = environment / "installed"
    with lock_file.open() as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        if installed.exists() and installed.read_text() == wanted:
            return environment / "bin"
        options = ["--quiet", "--disable-pip-version-check", "--require-hashes"]
        pip = [environment / "bin" / "python", "-m", "pip", "install", *options, "-r", lock_file]
        try:
            subprocess.run(
                [sys.executable, "-m", "venv", "--clear", environment],
                timeout=TIMEOUT_MINUTES * 60,
                check=True,
            )
            result = subprocess.run(
                pip, timeout=TIMEOUT_MINUTES * 60, capture_output=True, text=True, check=False
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"pip cannot install {lock_file} in {TIMEOUT_MINUTES} minutes")
        if result.returncode:
            assert not any(error in result.stderr for error in ERRORS_OF_OUR_FILES), result.stderr
            errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            pytest.skip(f"pip cannot install {lock_file}: {'; '.join(errors[:3])}")
        installed.write_text(wanted)
    return environment / "bin"
