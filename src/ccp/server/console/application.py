"""Pages and actions of the console, and what every request goes through: session, role, CSRF, errors, headers.

def register(console: Console, parts: ConsoleParts) -> None:
    @console.page("/parties", "Parties", navigation=True)
    async def parties(visit: Visit) -> Response:
        return visit.render("parties.html", parties=await …)

    @console.action("/parties/{client_id}/ping")
    async def ping(visit: Visit, form: Form) -> Response:
        …
        return visit.redirect("/parties", notice="pinged")
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias
from urllib.parse import quote, urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from ccp.errors import CCPError, NotFound
from ccp.schemas.error_messages import error_messages
from ccp.server.console.forms import MAX_FORM, Form, check_csrf, check_origin, is_page, parse_form
from ccp.server.console.identifiers import IdDisplay
from ccp.server.console.login import Login
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.rendering import HEADERS, PREFIX, Rendering
from ccp.server.console.sessions import ConsoleRole, Session
from ccp.server.console.texts import MAX_TEXT, cut
from ccp.server.console.visit import NavigationEntry, Visit, redirect
from ccp.server.http import errors
from ccp.server.http.error_body import INTERNAL_ERROR
from ccp.server.http.middleware.tracing import trace_of

PageHandler: TypeAlias = Callable[[Visit], Awaitable[Response]]
ActionHandler: TypeAlias = Callable[[Visit, Form], Awaitable[Response]]
_Answer: TypeAlias = Callable[[Request], Awaitable[Response]]

_MESSAGES: Final = 20
"""Sentences of an error page."""
_CACHED: Final = "public, max-age=31536000, immutable"


class Console:
    """The console of one worker. Pages register themselves with it, in the order of the navigation."""

    def __init__(self, parts: ConsoleParts, rendering: Rendering, login: Login) -> None:
        self._parts = parts
        self._rendering = rendering
        self._login = login
        self._routes: list[BaseRoute] = []
        self._navigation: tuple[NavigationEntry, ...] = ()

    def page(
        self, path: str, title: str, *, navigation: bool = False, role: ConsoleRole = ConsoleRole.VIEWER
    ) -> Callable[[PageHandler], PageHandler]:
        """Register a page. path: below the prefix. role: that may open it."""

        def register(handler: PageHandler) -> PageHandler:
            if navigation:
                self._navigation = (*self._navigation, NavigationEntry(path, title, role))

            async def answer(request: Request) -> Response:
                session = await self._login.session_of(request)
                if session is None:
                    return redirect(f"{PREFIX}/login?{urlencode(_next_page(request))}")
                visit = self._visit(request, session, path, title)
                if role is ConsoleRole.ADMIN:
                    visit.need_admin()
                return await handler(visit)

            self._add("GET", path, answer)
            return handler

        return register

    def action(
        self, path: str, *, role: ConsoleRole = ConsoleRole.ADMIN, max_body: int = MAX_FORM, title: str = "Console"
    ) -> Callable[[ActionHandler], ActionHandler]:
        """Register the target of a form (POST). max_body: bytes. title: of the page that it answers with, if any."""

        def register(handler: ActionHandler) -> ActionHandler:
            async def answer(request: Request) -> Response:
                check_origin(request, self._parts.config.public_url)
                session = await self._login.session_of(request)
                if session is None:
                    return redirect(f"{PREFIX}/login?notice=session-ended")
                visit = self._visit(request, session, path, title)
                body = await self._parts.context.read_body(request.receive, request.headers, max_body)
                form = parse_form(request.headers, body)
                check_csrf(form, session.csrf_token)
                if role is ConsoleRole.ADMIN:
                    visit.need_admin()
                return await handler(visit, form)

            self._add("POST", path, answer)
            return handler

        return register

    def static_routes(self) -> list[BaseRoute]:
        """Return the route of the style sheet and the scripts."""
        return [Route(f"{PREFIX}/static/{{name}}", Endpoint("console static", self._static, self.error_page))]

    def routes(self) -> list[BaseRoute]:
        """Return the routes of all pages. Call it after every page has registered itself."""
        self._add("GET", "/login", self._login.show)
        self._add("POST", "/login", self._login.with_secret)
        self._add("POST", "/logout", self._login.end)
        self._add("GET", "/login/oidc", self._login.to_provider)
        self._add("GET", "/login/oidc/return", self._login.from_provider)
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        front = Endpoint("console", self._front, self.error_page)
        unknown = Endpoint("console", self._unknown, self.error_page)
        return [
            *self._routes,
            Route(PREFIX, front, methods=["GET"]),
            Route(f"{PREFIX}/", front, methods=["GET"]),
            Route(f"{PREFIX}/{{rest:path}}", unknown, methods=methods),
        ]

    def _add(self, method: str, path: str, answer: _Answer) -> None:
        name = re.sub(r"[^a-z]+", " ", path.lower()).strip()
        endpoint = Endpoint(f"console {name}", answer, self.error_page)
        self._routes.append(Route(f"{PREFIX}{path}", endpoint, methods=[method]))

    def _visit(self, request: Request, session: Session, path: str, title: str) -> Visit:
        in_full = session.role is ConsoleRole.ADMIN
        ids = request.state.ids = IdDisplay(self._parts.pseudonyms, self._parts.cipher, in_full=in_full)
        return Visit(
            request,
            session,
            ids,
            self._parts.context.clock(),
            trace_of(request.scope).id,
            path,
            title,
            self._rendering,
            self._navigation,
        )

    async def _front(self, request: Request) -> Response:
        return redirect(f"{PREFIX}{self._navigation[0].path}")

    async def _unknown(self, request: Request) -> Response:
        if await self._login.session_of(request) is None:
            return redirect(f"{PREFIX}/login")
        raise NotFound("There is no page at this address.")

    async def _static(self, request: Request) -> Response:
        file = self._rendering.static.get(request.path_params["name"])
        if file is None:
            raise NotFound("There is no page at this address.")
        headers = {**HEADERS, "Cache-Control": _CACHED}
        return Response(file.content, 200, headers, media_type=file.media_type)

    async def error_page(self, request: Request, status: int, messages: list[str], headers: dict[str, str]) -> Response:
        """The page for a refused or failed request. Its sentences may contain ids: an admin sees these in full."""
        ids: IdDisplay | None = getattr(request.state, "ids", None)
        show = self._parts.pseudonyms.mask_ids if ids is None else ids.text
        values: dict[str, Any] = {
            "title": _TITLES.get(status, "Not possible"),
            "messages": [cut(show(message), 2 * MAX_TEXT) for message in messages[:_MESSAGES]],
            "more": max(len(messages) - _MESSAGES, 0),
            "trace_id": trace_of(request.scope).id,
            "status": status,
        }
        text = self._rendering.render("error.html", values)
        return HTMLResponse(text, status, {**headers, **HEADERS})


_TITLES: Final = {
    403: "Not allowed",
    404: "Not found",
    429: "Too many requests",
    500: "Something went wrong",
    503: "Not possible now",
}

ErrorPage: TypeAlias = Callable[[Request, int, list[str], dict[str, str]], Awaitable[Response]]


class Endpoint:
    """ASGI application of one route: errors become pages."""

    def __init__(self, operation: str, answer: _Answer, error_page: ErrorPage) -> None:
        self._operation = operation
        self._answer = answer
        self.error_page = error_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, trace = Request(scope, receive), trace_of(scope)
        trace.operation = self._operation
        try:
            response = await self._answer(request)
        except CCPError as exc:
            trace.failure = exc
            status = 403 if (status := errors.status_of(exc)) == 401 else status
            response = await self.error_page(request, status, list(error_messages(exc)), errors.retry_after(exc))
        except HTTPException as exc:
            response = await self.error_page(request, exc.status_code, [exc.detail], dict(exc.headers or {}))
        except Exception:
            response = await self.error_page(request, 500, [INTERNAL_ERROR], {})
            await response(scope, receive, send)
            raise  # The trace middleware logs it.
        await response(scope, receive, send)


def _next_page(request: Request) -> dict[str, str]:
    path = quote(request.url.path, safe="/~")
    target = path + (f"?{request.url.query}" if request.url.query else "")
    found = {"notice": "log-in"}
    return {**found, "next": target} if is_page(target) else found
