"""Tables in Markdown, and the sections of docs/performance.md that the benchmarks generate."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from data import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = ROOT / "docs/performance.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown: text in the first column, numbers in the others."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replace_section(command: str, text: str) -> None:
    """Replace the text between the two comments that name this command."""
    page = PAGE.read_text()
    section = rf"(<!-- {command} -->\n).*(<!-- end of {command} -->)"
    new_page, count = re.subn(
        section, lambda match: f"{match[1]}\n{text}\n{match[2]}", page, flags=re.DOTALL
    )
    assert count == 1, f"docs/performance.md has no section of {command}"
    PAGE.write_text(new_page)
