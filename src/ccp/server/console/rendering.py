"""Templates and static files. Every value that a template shows is escaped; an unknown name is an error."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ccp.errors.codes import BY_VALUE
from ccp.ids import Namespace
from ccp.schemas.timestamps import rfc3339
from ccp.server.console import charts
from ccp.server.console.texts import cut
from ccp.server.http.documentation_site import PREFIX as DOCUMENTATION

PREFIX: Final = "/console"
EDITIONS: Final = {Namespace.ISO2: "ISO 15118-2", Namespace.ISO20: "ISO 15118-20"}
_STATIC: Final = f"{PREFIX}/static"

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
"""Of every page. `same-origin` sends no address of a page to another site, and keeps `Origin` in forms."""

_TYPES: Final = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file that templates refer to. version: changes with the content, part of its address."""

    content: bytes
    media_type: str
    version: str


class Rendering:
    """The templates and static files of the console, read once. One object for each worker."""

    def __init__(self, *, has_documentation: bool = False) -> None:
        """has_documentation: the pool serves its documentation, and pages link to it."""
        self.static: Final = dict(_static_files())
        self._environment: Final = Environment(
            loader=PackageLoader("ccp.server.console"),
            autoescape=True,
            undefined=StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(
            time=time_element, age=age, number=number, duration=duration, plural=plural, cut=cut, card_table=card_table
        )
        self._environment.globals.update(
            static=self._address,
            prefix=PREFIX,
            charts=charts,
            error_codes=BY_VALUE,
            documentation=DOCUMENTATION if has_documentation else "",
        )
        for name in self._environment.list_templates(extensions=["html"]):
            self._environment.get_template(name)  # So that no request waits for the compiler.

    def render(self, template: str, values: Mapping[str, Any]) -> str:
        """Render a template. Raises UndefinedError for a name that is missing."""
        return self._environment.get_template(template).render(values)

    def _address(self, name: str) -> str:
        return f"{_STATIC}/{name}?v={self.static[name].version}"


def _static_files() -> list[tuple[str, StaticFile]]:
    found = []
    for file in files("ccp.server.console").joinpath("static").iterdir():
        suffix = file.name.rpartition(".")[2]
        if suffix in _TYPES:
            content = file.read_bytes()
            found.append((file.name, StaticFile(content, _TYPES[suffix], hashlib.sha256(content).hexdigest()[:16])))
    return found


# --- Filters ---------------------------------------------------------------------------------------------------------


def time_element(moment: datetime | None, precision: str = "seconds") -> Markup:
    """A time in UTC as a `<time>` element; a dash for None. precision: seconds, minutes or days."""
    if moment is None:
        return Markup("–")
    moment = moment.astimezone(UTC)
    shown = {"seconds": "%Y-%m-%d %H:%M:%S UTC", "minutes": "%Y-%m-%d %H:%M UTC", "days": "%Y-%m-%d"}[precision]
    return Markup('<time datetime="{}">{}</time>').format(rfc3339(moment), moment.strftime(shown))


def duration(span: timedelta | float) -> str:
    """A duration in its largest unit: "45 seconds", "3 days", "2 years"."""
    seconds = abs(span.total_seconds() if isinstance(span, timedelta) else span)
    for unit, length in (("year", 31_557_600), ("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length or (unit == "day" and seconds >= length):
            return plural(int(seconds // length), unit)
    return plural(int(seconds), "second")


def age(moment: datetime | None, now: datetime) -> str:
    """A time relative to now: "3 days ago", "in 2 hours"; "never" for None."""
    if moment is None:
        return "never"
    return f"{duration(now - moment)} ago" if moment <= now else f"in {duration(moment - now)}"


def number(value: float) -> str:
    """A number with narrow spaces between thousands."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def plural(count: int, word: str, several: str | None = None) -> str:
    """A count with its noun: "1 peer", "3 peers"."""
    return f"{number(count)} {word if count == 1 else several or word + 's'}"


_HEAD: Final = re.compile(r"<th scope=\"col\"([^>]*)>(.*?)</th>", re.DOTALL)
_CELL: Final = re.compile(r"<(thead|tbody|tr|td|th scope=\"row\")(?=[ >])")
_TAG: Final = re.compile(r"<[^>]+>")


def card_table(content: Markup) -> Markup:
    """The rows of a table so that a narrow window can show each as a card: explicit roles, and the name of the column
    in each cell.

    content: thead and tbody as templates have them, with one cell in each row for each column.
    """
    names = [_TAG.sub("", found[2]).strip() for found in _HEAD.finditer(content)]
    column = 0

    def named(found: re.Match[str]) -> str:
        nonlocal column
        tag = found[1]
        if tag in ("thead", "tbody", "tr"):
            column = 0
            return f'<{tag} role="{"row" if tag == "tr" else "rowgroup"}"'
        name = names[column] if column < len(names) else ""
        column += 1
        return f'<{tag} role="{"cell" if tag == "td" else "rowheader"}" data-name="{name}"'

    return Markup(_HEAD.sub(r'<th scope="col" role="columnheader"\1>\2</th>', _CELL.sub(named, content)))  # noqa: S704  ours


def percent(part: float, whole: float) -> str:
    """A share: "12 %", "< 1 %"; a dash of nothing."""
    if not whole:
        return "–"
    share = 100 * part / whole
    return "< 1 %" if 0 < share < 1 else f"{share:.0f} %"
