"""A browser without scripts: cookies, redirects by hand, the forms of a page."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

import httpx

from ccp.server.domain.parties import Party, PartyRole
from tests.world import Pool, party

AGENT = "Mozilla/5.0 (X11; Linux x86_64) Example/1.0"


def admin(name: str = "admin") -> Party:
    return party(name, PartyRole.ADMIN)


@dataclass
class FormOnPage:
    """A form: its method, its target, and the values of its fields."""

    method: str
    action: str
    fields: dict[str, str] = field(default_factory=dict)


class Page(HTMLParser):
    """What a test looks for in a page: forms, links, elements by name with their attributes, the text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = text
        self.forms: list[FormOnPage] = []
        self.links: list[str] = []
        self.link_texts: list[str] = []
        self._in_link = False
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.append((tag, given))
        if tag == "form":
            self.forms.append(FormOnPage(given.get("method") or "get", given.get("action") or ""))
        elif tag in ("input", "textarea", "select") and self.forms and given.get("name"):
            self.forms[-1].fields[str(given["name"])] = given.get("value") or ""
        elif tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
            self.link_texts.append("")
            self._in_link = True

    def handle_endtag(self, tag: str) -> None:
        self._in_link = self._in_link and tag != "a"

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)
        if self._in_link:
            self.link_texts[-1] += data

    @property
    def text(self) -> str:
        """The words of the page, with single blanks."""
        return " ".join(" ".join(self.pieces).split())

    def form(self, action: str) -> FormOnPage:
        """The first form whose target ends so."""
        return next(form for form in self.forms if form.action.endswith(action))


class Browser:
    """A browser of one person. Redirects are not followed."""

    def __init__(self, base_url: str, agent: str = AGENT, **options: Any) -> None:
        self.base_url = base_url
        self.http = httpx.Client(base_url=base_url, headers={"User-Agent": agent}, timeout=10, **options)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(path if path.startswith(("/console", "http")) else f"/console{path}", **options)

    def page(self, path: str) -> Page:
        """Open a page, which must be there."""
        answer = self.get(path)
        assert answer.status_code == 200, (answer.status_code, answer.headers.get("location"), answer.text)
        return Page(answer.text)

    def post(
        self, path: str, fields: dict[str, str] | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Send a form as a page of the console would."""
        own = {"Origin": self.base_url, "Sec-Fetch-Site": "same-origin"}
        path = path if path.startswith("/console") else f"/console{path}"
        sent = {"Content-Type": "application/x-www-form-urlencoded", **(own if headers is None else headers)}
        return self.http.post(path, content=urlencode(fields or {}), headers=sent)

    def log_in(self, pool: Pool, name: str = "admin", **fields: str) -> httpx.Response:
        """Log in with a party's secret."""
        given = {"client_id": name, "client_secret": pool.world.member(name).secret, **fields}
        return self.post("/login", given)

    def act(self, page: str, action: str, **fields: str) -> httpx.Response:
        """Send the form of a page that has this target, with these fields filled in."""
        form = next(each for each in self.page(page).forms if each.action.endswith(action) and each.method == "post")
        return self.post(form.action, {**form.fields, **fields})

    @property
    def cookie(self) -> str:
        """The session id."""
        return str(self.http.cookies["ccp-console"])


def logged_in(pool: Pool, name: str = "admin", **options: Any) -> Browser:
    """A browser of an admin who is logged in."""
    browser = Browser(pool.base_url, **options)
    answer = browser.log_in(pool, name)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/"), answer.text
    return browser


def outside(answer: httpx.Response) -> bool:
    """Whether the person was sent to the log-in."""
    return answer.status_code == 303 and answer.headers["location"].startswith("/console/login")
