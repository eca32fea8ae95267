"""Every page of the console: markup of partners stays text, accessibility, widths, themes, weight, requests."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from itertools import chain

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.pages import answers, walk
from tests.browser.place import HOSTILE, Place
from tests.browser.visiting import DESKTOP, PHONE, SIZES, THEMES, Visitor

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
SERIOUS = ("serious", "critical")


def look_at(page: Page, name: str, found: dict[str, list[str]]) -> None:
    """Find what is wrong with the page that is open. found: gets sentences by page."""
    problems = found.setdefault(name, [])
    strange = page.locator("img[src*=xss], [onerror], script:not([src]), style, [style], iframe, object, embed")
    if strange.count():
        problems.append(f"elements: {strange.evaluate_all('all => all.map((one) => one.outerHTML)')}")
    if page.locator("h1").count() != 1:
        problems.append("needs one h1")
    if len(page.content().encode()) > 100_000:
        problems.append(f"{len(page.content())} bytes")
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if wide > 0:
        problems.append(f"{wide} pixels too wide")


def accessible(page: Page) -> list[str]:
    """Findings of axe-core. The script is evaluated by the browser's debugger, to which no policy applies."""
    if not page.evaluate("Boolean(window.axe)"):
        page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {each['help']}: {[node['html'][:160] for node in each['nodes'][:3]]}"
        for each in found["violations"]
        if each["impact"] in SERIOUS
    ]


@pytest.fixture(scope="module")
def everything(here: Place, browser: Browser) -> Iterator[Visitor]:
    """An admin who looks at every page."""
    one = Visitor(browser, here.pool.base_url)
    one.log_in(here.secret)
    yield one
    one.close()


def test_pages_are_sound_in_both_themes_and_widths(here: Place, everything: Visitor) -> None:
    visitor, found, texts = everything, dict[str, list[str]](), dict[str, str]()
    for name in chain(walk(visitor, "/console/overview"), answers(visitor, here)):
        for theme in THEMES:
            for size, pixels in SIZES.items():
                visitor.look(theme, pixels)
                look_at(visitor.page, f"{name} {theme} {size}", found)
                found[f"{name} {theme} {size}"] += accessible(visitor.page)
        visitor.look("light", DESKTOP)
        visitor.keep(f"{name} desktop")
        visitor.look("dark", PHONE)
        visitor.keep(f"{name} phone dark")
        visitor.look("light", DESKTOP)
        texts[name] = visitor.text
        found[name] = [*visitor.problems]
        visitor.problems.clear()
    assert {name: problems for name, problems in found.items() if problems} == {}
    shown = {name for name, text in texts.items() if HOSTILE in text}
    console = {path.removeprefix("/console/").partition("/")[0].partition("?")[0] for path in shown}
    assert {"anchors", "parties", "webhooks", "audit", "contract"} <= console, console


def test_page_of_the_login_is_sound(here: Place, visitor: Visitor) -> None:
    found = dict[str, list[str]]()
    for theme in THEMES:
        for size, pixels in SIZES.items():
            for path in ("/login", "/login?notice=logged-out"):
                visitor.look(theme, pixels)
                page = visitor.open(path)
                look_at(page, f"{path} {theme} {size}", found)
                found[f"{path} {theme} {size}"] += accessible(page)
            visitor.keep(f"log-in {theme} {size}")
    assert {name: problems for name, problems in found.items() if problems} == {}


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_pages_move_only_for_those_who_let_them(here: Place, person: Visitor, motion: str) -> None:
    person.page.emulate_media(reduced_motion=motion)  # type: ignore[arg-type]
    moving = person.open("/overview").evaluate(
        """Array.from(document.querySelectorAll("*")).filter((one) => {
          const style = getComputedStyle(one), spans = style.transitionDuration.split(",");
          return style.animationName !== "none" || spans.some((each) => parseFloat(each) > 0);
        }).map((one) => one.className)"""
    )
    assert moving == ([] if motion == "reduce" else ["skip"])
