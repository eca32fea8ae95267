"""Charts as inline SVG, made by the server: no script, no style attribute, readable without seeing them.

A chart has `role="img"` with title and description; its page shows the same numbers in a table (`details`), which
screen readers and keyboards reach. Colours are classes of the style sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from markupsafe import Markup

_WIDTH: Final = 340  # That of a narrow card, so that labels are as large there as the text around them.
_HEIGHT: Final = 132
_BASE: Final = 112  # Of the bars, from above; labels are below.
_TOP: Final = 14


@dataclass(frozen=True, slots=True)
class Series:
    """One kind of value in each bar. kind: class of the style sheet (ok, warn, bad, quiet)."""

    name: str
    kind: str
    values: Sequence[int]

    @property
    def total(self) -> int:
        """Sum of the values."""
        return sum(self.values)


def bars(title: str, labels: Sequence[str], series: Sequence[Series]) -> Markup:
    """A stacked bar chart. labels: of the bars, all named in tooltips, first, middle and last on the axis.

    Each series is one path, so that a chart with five series of thirty values has less than 10,000 bytes.
    """
    count = len(labels)
    totals = [sum(line.values[place] for line in series) for place in range(count)]
    step = _WIDTH / max(count, 1)
    parts = [
        Markup('<svg class="chart" role="img" viewBox="0 0 {} {}" aria-label="{}">').format(_WIDTH, _HEIGHT, title),
        Markup("<title>{}</title><desc>{}</desc>").format(title, _description(labels, series, totals)),
        Markup('<text class="axis" x="0" y="10">{}</text>').format(f"{max(totals, default=0):,}"),
        Markup('<line class="grid" x1="0" x2="{0}" y1="{1}" y2="{1}"></line>').format(_WIDTH, _TOP),
        Markup('<line class="base" x1="0" x2="{0}" y1="{1}" y2="{1}"></line>').format(_WIDTH, _BASE),
    ]
    for line, path in zip(series, _paths(series, totals, step), strict=True):
        if path:
            parts.append(Markup('<path class="bar {}" d="{}"></path>').format(line.kind, path))
    for place, label in enumerate(labels):
        if totals[place]:
            words = ", ".join(f"{line.values[place]:,} {line.name}" for line in series if line.values[place])
            over = Markup('<rect class="over" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>')
            parts.append(over.format(place * step, _TOP, step, _BASE - _TOP, f"{label}: {words}"))
    for place, anchor in ((0, "start"), (count // 2, "middle"), (count - 1, "end")):
        if count:
            x = {"start": 0.0, "end": float(_WIDTH)}.get(anchor, (place + 0.5) * step)
            parts.append(
                Markup('<text class="axis" x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
                    x, _HEIGHT - 4, anchor, labels[place]
                )
            )
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def _paths(series: Sequence[Series], totals: Sequence[int], step: float) -> list[str]:
    """The bars of each series, stacked in their order from the base line. Every value but 0 is visible."""
    top = max(totals, default=0) or 1
    below = [float(_BASE)] * len(totals)
    paths = []
    for line in series:
        path = ""
        for place, value in enumerate(line.values):
            if not value:
                continue
            height = max((_BASE - _TOP) * value / top, 1.5)
            below[place] -= height
            path += f"M{(place + 0.1) * step:.1f} {below[place]:.1f}h{0.8 * step:.1f}v{height:.1f}h-{0.8 * step:.1f}z"
        paths.append(path)
    return paths


def _description(labels: Sequence[str], series: Sequence[Series], totals: Sequence[int]) -> str:
    if not any(totals):
        return "No values in this period."
    sums = ", ".join(f"{sum(line.values):,} {line.name}" for line in series)
    largest = max(range(len(totals)), key=lambda place: totals[place])
    return f"Together {sums}. Most in {labels[largest]}: {totals[largest]:,}."


def validity(begins: datetime, ends: datetime, now: datetime) -> Markup:
    """A bar of a validity period with a mark for now. Its text says the same."""
    whole = max((ends - begins).total_seconds(), 1.0)
    passed = min(max((now - begins).total_seconds() / whole, 0.0), 1.0)
    left = (ends - now).total_seconds()
    kind = "bad" if left <= 0 or now < begins else "warn" if left < 30 * 86_400 else "ok"
    shown = {"bad": "not valid now", "warn": "valid, ends within 30 days", "ok": "valid"}[kind]
    text = f"{begins:%Y-%m-%d} to {ends:%Y-%m-%d}, {shown}; {100 * passed:.0f} % has passed"
    return Markup(
        '<svg class="validity {0}" role="img" viewBox="0 0 200 10" preserveAspectRatio="none" aria-label="{1}">'
        '<title>{1}</title><rect class="track" width="200" height="10"></rect>'
        '<rect class="passed" width="{2:.1f}" height="10"></rect>'
        '<rect class="now" x="{3:.1f}" width="2" height="10"></rect></svg>'
    ).format(kind, text, 200 * passed, min(200 * passed, 198.0))
