"""One request of a person who is logged in, as the handler of a page gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ccp.errors import NotAuthorised
from ccp.server.console.forms import parse_time
from ccp.server.console.identifiers import IdDisplay
from ccp.server.console.rendering import HEADERS, PREFIX, Rendering
from ccp.server.console.sessions import ConsoleRole, Session
from ccp.server.domain.actor import Actor

NOTICES: Final = {
    "logged-out": "You are logged out.",
    "session-ended": "Your session has ended, and nothing was changed. Log in again.",
    "log-in": "Log in to open this page.",
    "session-removed": "The session has ended.",
    "party-disabled": "The party is disabled; its tokens and secrets are refused.",
    "party-enabled": "The party is enabled.",
    "peer-disabled": "The peer is disabled; this pool does not ask it.",
    "peer-enabled": "The peer is enabled.",
    "webhook-disabled": "The webhook is disabled; its events wait.",
    "webhook-enabled": "The webhook is enabled.",
    "verification-started": "The verification runs in the background, and reads every row of the trail.",
    "events-replayed": "The events wait again, and are sent under the same ids.",
}
"""Sentences that a page shows after a redirect, by the value of `?notice=`: a link can show no other text."""


@dataclass(frozen=True, slots=True)
class NavigationEntry:
    """An entry of the navigation. path: below the prefix. role: that sees it."""

    path: str
    label: str
    role: ConsoleRole


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of a person who is logged in.

    now: time of the request. trace_id: of the request. ids: ids as this person may see them. path: below the prefix,
    as registered.
    """

    request: Request
    session: Session
    ids: IdDisplay
    now: datetime
    trace_id: str
    path: str
    title: str
    _rendering: Rendering
    _navigation: tuple[NavigationEntry, ...]

    @property
    def is_admin(self) -> bool:
        """Whether the person may act and sees ids in full."""
        return self.session.role is ConsoleRole.ADMIN

    @property
    def actor(self) -> Actor:
        """The person as the actor of a change."""
        return Actor(self.session.actor, self.trace_id)

    def need_admin(self) -> None:
        """Refuse a viewer. Actions are refused already. Raises NotAuthorised."""
        if not self.is_admin:
            raise NotAuthorised("This needs the role admin.")

    def query(self, name: str, default: str = "") -> str:
        """The first value of a query parameter, without blanks at its ends; at most 200 characters."""
        return self.request.query_params.get(name, default).strip()[:200]

    def time(self, name: str) -> datetime | None:
        """The time that a query parameter has, in UTC unless it names an offset. Raises FieldError."""
        text = self.query(name)
        return parse_time(name, text) if text else None

    def path_part(self, name: str) -> str:
        """A variable part of the path."""
        value: str = self.request.path_params[name]
        return value

    def render(self, template: str, status: int = 200, title: str | None = None, **values: Any) -> Response:
        """Render a template that extends `page.html`. title: default that of the page."""
        frame: Mapping[str, Any] = {
            "visit": self,
            "session": self.session,
            "ids": self.ids,
            "now": self.now,
            "is_admin": self.is_admin,
            "title": title or self.title,
            "csrf_token": self.session.csrf_token,
            "navigation": [entry for entry in self._navigation if self.is_admin or entry.role is ConsoleRole.VIEWER],
            "here": self.path,
            "linked": True,
            "notice": NOTICES.get(self.query("notice")),
        }
        return HTMLResponse(self._rendering.render(template, {**frame, **values}), status, dict(HEADERS))

    def redirect(self, path: str, notice: str = "") -> Response:
        """Redirect the browser to a page after an action. path: below the prefix. notice: a key of NOTICES."""
        assert not notice or notice in NOTICES, notice
        separator = "&" if "?" in path else "?"
        return redirect(f"{PREFIX}{path}" + (f"{separator}notice={notice}" if notice else ""))


def redirect(url: str) -> Response:
    """A redirect that makes the browser GET a page of the console."""
    return RedirectResponse(url, 303, dict(HEADERS))
