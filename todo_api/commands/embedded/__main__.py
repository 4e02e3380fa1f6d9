"""Run a command with a database: `python -m todo_api.commands.embedded COMMAND [ARGUMENT ...]`."""

from __future__ import annotations

import os
import subprocess
import sys

from todo_api.commands.embedded.cluster import temporary_cluster
from todo_api.commands.embedded.errors import EmbeddedError


def main(command: list[str]) -> int:
    """Run the command with a new, empty database as DATABASE_URL; return its exit code."""
    with temporary_cluster() as cluster:
        environ = os.environ | {"DATABASE_URL": cluster.url()}
        return subprocess.run(command, env=environ, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EmbeddedError as error:
        sys.exit(str(error))
