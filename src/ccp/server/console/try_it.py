"""The public page for laboratories: drop a message, read every check on it. Nothing is stored or looked up.

It shows what the pool's anchors and settings make of the message, so its visitors learn which roots the pool trusts.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from ccp.errors import EXIError, FieldError
from ccp.exi.message_input import exi_bytes
from ccp.server.console.application import Endpoint, ErrorPage
from ccp.server.console.forms import parse_form
from ccp.server.console.identifiers import IdDisplay
from ccp.server.console.messages import Echo, Reading, echo, read_message
from ccp.server.console.pages.why import MAX_FORM_FACTOR
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.rendering import HEADERS, Rendering
from ccp.server.http.middleware.client_address import client_of

PATH = "/try-it"
NO_MESSAGE = Echo()


class TryIt:
    """The page of one worker."""

    def __init__(self, parts: ConsoleParts, rendering: Rendering) -> None:
        self._parts = parts
        self._rendering = rendering
        # Every id on the page is one that its visitor sent.
        self._ids = IdDisplay(parts.pseudonyms, parts.cipher, in_full=True)

    def routes(self, error_page: ErrorPage) -> list[BaseRoute]:
        """Return the routes of the page."""
        return [
            Route(PATH, Endpoint("try it", self._show, error_page), methods=["GET"]),
            Route(PATH, Endpoint("try it explain", self._explain, error_page), methods=["POST"]),
        ]

    async def _show(self, request: Request) -> Response:
        return self._page()

    async def _explain(self, request: Request) -> Response:
        """Examine a message. Raises TooManyRequests, FieldError, TooLarge."""
        context = self._parts.context
        context.limits.check_try_it(client_of(request.scope))
        limit = MAX_FORM_FACTOR * self._parts.config.max_body
        form = parse_form(request.headers, await context.read_body(request.receive, request.headers, limit))
        text = form.get("message", "").strip()
        try:
            data = exi_bytes(form.need("message").encode("utf-8"))
            reading = await read_message(self._parts, data, context.clock(), self._ids, with_contracts=False)
        except (EXIError, FieldError) as exc:
            return self._page(echo(text, self._ids), problem=str(exc), status=400)
        return self._page(echo(text, self._ids, data), reading)

    def _page(
        self, message: Echo = NO_MESSAGE, reading: Reading | None = None, problem: str | None = None, status: int = 200
    ) -> Response:
        values = {
            "title": "Try it",
            "message": message,
            "reading": reading,
            "problem": problem,
            "ids": self._ids,
            "now": self._parts.context.clock(),
            "path": PATH,
            "linked": False,
        }
        return HTMLResponse(self._rendering.render("try_it.html", values), status, dict(HEADERS))
