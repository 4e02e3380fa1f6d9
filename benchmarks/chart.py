"""Charts as SVG, with colors for light and dark pages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 13px }
.small { font-size: 11px; fill: #59636e }
.axis { stroke: #d1d9e0; stroke-width: 1 }
.first { fill: #0969da } .other { fill: #9aa5b1 } .grey { fill: #d1d9e0 }
polyline { fill: none; stroke-width: 2 }
.line0 { stroke: #0969da } .line1 { stroke: #bc4c00 } .line2 { stroke: #1a7f37 }
.line3 { stroke: #8250df } .line4 { stroke: #bf3989 } .line5 { stroke: #59636e }
.dot0 { fill: #0969da } .dot1 { fill: #bc4c00 } .dot2 { fill: #1a7f37 }
.dot3 { fill: #8250df } .dot4 { fill: #bf3989 } .dot5 { fill: #59636e }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .small { fill: #9198a1 } .axis { stroke: #3d444d }
  .first { fill: #4493f8 } .other { fill: #656c76 } .grey { fill: #3d444d }
  .line0 { stroke: #4493f8 } .line1 { stroke: #f0883e } .line2 { stroke: #3fb950 }
  .line3 { stroke: #ab7df8 } .line4 { stroke: #db61a2 } .line5 { stroke: #9198a1 }
  .dot0 { fill: #4493f8 } .dot1 { fill: #f0883e } .dot2 { fill: #3fb950 }
  .dot3 { fill: #ab7df8 } .dot4 { fill: #db61a2 } .dot5 { fill: #9198a1 }
}
"""
COLORS = 6

Point = tuple[float, float]


def svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}">\n<style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">'
        f"{escape(content)}</text>"
    )


def bars(panels: Mapping[str, Mapping[str, float]], grey: frozenset[str], *, columns: int) -> str:
    """Draw a panel of horizontal bars for each title. `panels` maps titles to values by name.

    The first bar of a panel has another color, because the others are compared with it. The bars
    of the names in `grey` are grey.
    """
    width, name_width, bar = 350.0, 130.0, 18.0
    height = bar * max(len(values) for values in panels.values()) + 44
    parts = []
    for number, (title, values) in enumerate(panels.items()):
        left, top = number % columns * width, number // columns * height
        parts.append(text(left + name_width, top + 20, title, "title"))
        maximum = max(values.values())
        for row, (name, value) in enumerate(values.items()):
            y = top + 30 + row * bar
            length = value / maximum * (width - name_width - 70)
            kind = "grey" if name in grey else "first" if row == 0 else "other"
            parts += [
                text(left + name_width - 6, y + 12, name, "" if row == 0 else "small", "end"),
                (
                    f'<rect x="{left + name_width:.1f}" y="{y:.1f}" width="{length:.1f}" '
                    f'height="{bar - 4:g}" class="{kind}"/>'
                ),
                text(left + name_width + length + 5, y + 12, f"{value:,.0f}", "small"),
            ]
    rows = math.ceil(len(panels) / columns)
    return svg(min(columns, len(panels)) * width, rows * height, parts)


@dataclass(frozen=True)
class Lines:
    """A panel of lines. Each line is a list of points sorted by x. The y axis starts at 0."""

    title: str
    x: str
    series: Mapping[str, Sequence[Point]]
    log: bool = True


def lines(panels: Sequence[Lines]) -> str:
    """Draw the panels side by side."""
    width, height = 430.0, 300.0
    parts: list[str] = []
    for number, panel in enumerate(panels):
        parts += draw_panel(panel, number * width, width, height)
    return svg(width * len(panels), height, parts)


def draw_panel(panel: Lines, left: float, width: float, height: float) -> list[str]:
    x0, x1, y0, y1 = left + 55, left + width - 95, height - 45, 35.0
    xs = sorted({x for points in panel.series.values() for x, _ in points})
    top = round_up(max(y for points in panel.series.values() for _, y in points))

    def position(value: float) -> float:
        return math.log10(value) if panel.log else value

    low, high = position(xs[0]), position(xs[-1])

    def place(point: Point) -> tuple[float, float]:
        share = (position(point[0]) - low) / ((high - low) or 1)
        return x0 + share * (x1 - x0), y0 - point[1] / top * (y0 - y1)

    parts = [text(x0, 18, panel.title, "title"), text(x1, height - 8, panel.x, "small", "end")]
    for step in range(5):
        _, y = place((xs[0], top * step / 4))
        parts += [
            f'<line x1="{x0:.1f}" y1="{y:.1f}" x2="{x1:.1f}" y2="{y:.1f}" class="axis"/>',
            text(x0 - 6, y + 4, f"{top * step / 4:,g}", "small", "end"),
        ]
    for value in xs:
        parts.append(text(place((value, 0))[0], y0 + 16, f"{value:,.10g}", "small", "middle"))
    lowest = math.inf
    ends = sorted(enumerate(panel.series.items()), key=lambda item: -place(item[1][1][-1])[1])
    for number, (name, points) in ends:
        color = number % COLORS
        placed = [place(point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" class="line{color}"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="dot{color}"/>' for x, y in placed
        ]
        lowest = min(placed[-1][1] + 4, lowest - 13)  # a name moves up if it would overlap another
        parts.append(text(placed[-1][0] + 8, lowest, name, f"dot{color} small"))
    return parts


def round_up(value: float) -> float:
    """Return a round number that is not below the value and whose quarter is round, too."""
    unit = 10.0 ** math.floor(math.log10(value or 1))
    return next(unit * step for step in (1, 2, 4, 6, 8, 10) if unit * step >= value)
