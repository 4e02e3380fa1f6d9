"""Tables, and the sections of docs/performance.md that are measured and not written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from data import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = ROOT / "docs/performance.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, whose first column has text and whose others have numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replace_section(command: str, text: str) -> None:
    """Put the text between the two marks of this command."""
    page = PAGE.read_text()
    marks = rf"(<!-- {command} -->\n).*(<!-- end of {command} -->)"
    replaced, count = re.subn(
        marks, lambda found: f"{found[1]}\n{text}\n{found[2]}", page, flags=re.DOTALL
    )
    assert count == 1, f"docs/performance.md has no section of {command}"
    PAGE.write_text(replaced)
