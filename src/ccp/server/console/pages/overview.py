"""Overview: what needs attention first, then the state of the pool."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.responses import Response

from ccp.server.console.application import Console
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.visit import Visit
from ccp.server.trust.anchors import expiry_warnings


@dataclass(frozen=True, slots=True)
class Attention:
    """A sentence about what needs attention. kind: bad or warn. path: of the page that shows more."""

    kind: str
    text: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its name. kind: warn, bad, or empty."""

    label: str
    value: str
    kind: str = ""
    note: str = ""


def register(console: Console, parts: ConsoleParts) -> None:
    """Register the page."""

    @console.page("/overview", "Overview", navigation=True)
    async def show(visit: Visit) -> Response:
        snapshot = parts.trust.anchors
        attention = [Attention("bad", sentence) for sentence in await parts.health.problems()]
        attention += [Attention("warn", text, "/anchors") for text in expiry_warnings(snapshot, visit.now)]
        figures = [Figure("Trust anchors", str(len(snapshot.anchors)))]
        return visit.render("overview.html", attention=attention, figures=figures)
