"""Check that each use of a private part of a library has its row in the decisions.

    python -m tools.private_apis [--list] [ROOT]

It prints each use (library_uses.py defines a use) as FILE:LINE: NAME, then the number of uses. It
exits with 1 if a use has no row in docs/decisions/0009-private-apis.md, or if a row names a use, a
test or a pin that does not exist. With --list, it only lists the uses. ROOT is another checkout.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tools.library_uses import Use, is_private, read_project

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path("docs/decisions/0009-private-apis.md")
COLUMNS = ("name", "where", "why", "fault or gain", "test", "pin")


class Row(NamedTuple):
    """A row of the page's table: names, files, tests and pins in its cells."""

    names: frozenset[str]
    files: frozenset[str]
    tests: frozenset[str]
    pins: frozenset[str]


def read_rows(page: str) -> Iterator[Row]:
    """Yield the rows of the tables that have all columns.

    In the first cell, a name that begins with a dot is a member of the cell's first name.
    """
    for line in page.splitlines():
        cells = [re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:-1]]
        if len(cells) != len(COLUMNS) or not cells[0]:
            continue
        first = cells[0][0]
        names = (first + name if name.startswith(".") else name for name in cells[0])
        tests = (word for word in cells[4] if word.startswith("test_"))
        yield Row(*map(frozenset, (names, cells[1], tests, cells[5])))


def faults(uses: list[Use], rows: list[Row], tests: str, setup: str) -> Iterator[str]:
    """Yield the uses without a row, and the rows that name what does not exist."""
    for use in uses:
        if not any(use.name in row.names and use.file in row.files for row in rows):
            yield f"{use.file}:{use.line}: {use.name} has no row in {PAGE}"
    for row in rows:
        yield from (f"{PAGE}: {fault}" for fault in row_faults(row, uses, tests, setup))


def row_faults(row: Row, uses: list[Use], tests: str, setup: str) -> Iterator[str]:
    used = {use.name for use in uses}
    files = {use.file for use in uses if use.name in row.names}
    yield from (f"{name} is not used" for name in sorted(row.names - used))
    yield from (f"{file} has no use of {min(row.names)}" for file in sorted(row.files - files))
    if not row.tests:
        yield f"no test is named for {min(row.names)}"
    yield from (f"no test is {test}" for test in sorted(row.tests) if f"def {test}(" not in tests)
    for pin in sorted(row.pins):
        if not re.search(rf"^ *{re.escape(pin)}$", setup, re.MULTILINE):
            yield f"{pin} is not in setup.cfg"


def main() -> int:
    parser = argparse.ArgumentParser(description="List uses of private parts of libraries.")
    parser.add_argument("--list", action="store_true", help="list the uses without a check")
    parser.add_argument("root", nargs="?", type=Path, default=ROOT)
    arguments = parser.parse_args()
    root: Path = arguments.root
    uses = read_project(root).uses()
    for use in uses:
        print(f"{use.file}:{use.line}: {use.name}")
    names = {use.name for use in uses}
    underscored = sum(is_private(name.rpartition(".")[2]) for name in names)
    print(f"{len(uses)} uses of {len(names)} names, {underscored} of them with an underscore")
    if arguments.list:
        return 0
    tests = "\n".join(path.read_text() for path in sorted((root / "tests").rglob("test_*.py")))
    rows = list(read_rows((root / PAGE).read_text()))
    messages = list(faults(uses, rows, tests, (root / "setup.cfg").read_text()))
    for message in messages:
        print(message, file=sys.stderr)
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
