"""Every page of the console: what a walk along the links finds, and pages that answer a form."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from playwright.sync_api import Page

from tests.browser.place import HOSTILE, Place
from tests.browser.visiting import Visitor
from tests.world import b64

_PER_KIND = 2
"""Pages to visit of those that differ only in what they are about, such as the pages of two parties."""


def walk(visitor: Visitor, start: str) -> Iterator[str]:
    """Open every page that links lead to, and yield its path. The visitor's page shows it then."""
    waiting, seen, kinds = [start], set(), dict[str, int]()
    while waiting:
        path = waiting.pop(0)
        kind = re.sub(r"(?<=/console/)(\w+)/.+|\?.*", r"\1", path)
        if path in seen or kinds.get(kind, 0) >= _PER_KIND or "/export" in path:
            continue
        seen.add(path)
        kinds[kind] = kinds.get(kind, 0) + 1
        answer = visitor.page.goto(path)
        assert answer is not None
        # A row of the audit trail may name what is not stored any more; the page says so.
        wanted = (200, 404) if path.startswith(("/console/contracts/", "/console/vehicles/")) else (200,)
        assert answer.status in wanted, (path, answer.status)
        links = visitor.page.locator("a[href]").evaluate_all("all => all.map((link) => link.href)")
        for link in links:
            parts = urlsplit(link)
            assert link.startswith(visitor.base_url), (path, link)
            if parts.path.startswith("/console/") and link.partition("#")[0] != visitor.page.url.partition("#")[0]:
                waiting.append(parts.path + (f"?{parts.query}" if parts.query else ""))
        yield path


def answers(visitor: Visitor, here: Place) -> Iterator[str]:
    """Open pages that no link leads to, among them those that answer a form, and yield their names."""
    page = visitor.page

    def explain(message: str, path: str = "/console/why") -> None:
        page.goto(path)
        page.locator("#message").fill(message)
        page.get_by_role("button", name="Explain").click()

    def press(path: str, button: str) -> None:
        page.goto(path)
        page.get_by_role("button", name=button).first.click()

    found: dict[str, Callable[[], object]] = {
        "contract": lambda: page.goto(f"/console/contracts/{here.contract.emaid}"),
        "vehicle": lambda: page.goto(f"/console/vehicles/{here.car.pcid}"),
        "why, valid": lambda: explain(b64(here.contract.message)),
        "why, refused": lambda: explain(b64(here.broken())),
        "why, request": lambda: explain(b64(here.car.request(bytes(range(1, 9))))),
        "why, no message": lambda: explain(HOSTILE),
        "why, markup in XML": lambda: explain(f'<a xmlns="{HOSTILE.translate(QUOTED)}">x</a>'),
        "try it": lambda: page.goto("/try-it"),
        "try it, valid": lambda: explain(b64(here.contract.message), "/try-it"),
        "try it, refused": lambda: explain(b64(here.broken()), "/try-it"),
        "search without result": lambda: page.goto("/console/search?q=" + "%3Cimg%20src=x%20onerror=alert(1)%3E"),
        "search for what is not stored": lambda: page.goto("/console/search?q=DE-EXA-C99999999"),
        "contract that is not stored": lambda: page.goto("/console/contracts/DEEXAC99999999"),
        "peer": lambda: page.goto("/console/peers/DE*PEER"),
        "no page": lambda: page.goto("/console/nothing"),
        "health examined": lambda: press("/console/health", "Examine"),
        "ping": lambda: press(f"/console/webhooks/{here.webhook_id}", "Send a ping"),
        "new secret": lambda: press("/console/parties/other_emsp", "Make a new secret"),
    }
    for name, show in found.items():
        show()
        yield name


QUOTED = str.maketrans({"<": "&lt;", '"': "&quot;", "&": "&amp;"})


def heading(page: Page) -> str:
    """The first heading."""
    return page.locator("h1").first.inner_text()
