"""Log-in and log-out of the console.

The cookie of the session is HttpOnly, SameSite=Lax, of this host only (`__Host-`, Secure) where the pool is reached by
TLS. Lax, because a link to a page, in a ticket or an alert, opens it, and because the browser returns from an OpenID
provider by such a link; a form of another site gets no cookie, and needs a token that it cannot know.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ccp.errors import AccessError, CCPError, NotAuthenticated, NotFound, TooManyRequests
from ccp.errors.codes import ErrorCode
from ccp.server.console.forms import check_csrf, check_origin, is_page, parse_form
from ccp.server.console.openid import LOGIN_TIME, OpenIDLogin
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.pool_keys import load_key
from ccp.server.console.rendering import HEADERS, PREFIX, Rendering
from ccp.server.console.sessions import ConsoleRole, Person, Session, Sessions, credential_of
from ccp.server.console.visit import NOTICES, redirect
from ccp.server.domain.parties import may_administer
from ccp.server.http import errors
from ccp.server.http.middleware.client_address import client_of
from ccp.server.http.middleware.tracing import trace_of

_REFUSED: Final = "Client id or secret is wrong, or the party has not the role admin."
_MAX_BODY: Final = 8192  # Bytes of the form.
_MAX_CLIENT_ID: Final = 100
_MAX_SECRET: Final = 1000
_KEY_NAME: Final = "console_login_key"


def _refused() -> NotAuthenticated:
    """The error of every log-in that is refused; its sentence and its code do not tell why."""
    return NotAuthenticated(_REFUSED, code=ErrorCode.CLIENT_CREDENTIALS_INVALID)


class Login:
    """The pages of the log-in, and the session of a request."""

    def __init__(self, parts: ConsoleParts, sessions: Sessions, rendering: Rendering) -> None:
        self._parts = parts
        self._sessions = sessions
        self._rendering = rendering
        self._secure = parts.config.public_url.startswith("https://")
        self._cookie = "__Host-ccp-console" if self._secure else "ccp-console"
        self._login_cookie = "__Host-ccp-login" if self._secure else "ccp-login"
        self._key = b""
        oidc = parts.config.console_oidc
        uri = f"{parts.config.public_url}{PREFIX}/login/oidc/return"
        self._openid = None if oidc is None else OpenIDLogin(oidc, parts.outbound, uri)

    async def open(self) -> None:
        """Load the keys of sessions and of log-ins with an OpenID provider, or create them. Raises Unavailable."""
        await self._sessions.open()
        if self._openid is not None:
            self._key = await load_key(self._parts.store, _KEY_NAME)

    # --- The session of a request ---

    async def session_of(self, request: Request) -> Session | None:
        """The session of a request. Raises TooManyRequests, Unavailable.

        A cookie that this pool did not issue counts as a failure of its address, and causes no query. One of a session
        that has ended cannot be guessed and does not count: browsers that were open over night lock out no office.
        """
        limits, session_id = self._parts.context.limits, self._issued_id(request)
        if session_id is None:
            if self._cookie in request.cookies:
                client = client_of(request.scope)
                limits.check_unauthenticated(client)
                limits.record_auth_failure(client)
            return None
        session = await self._sessions.find(session_id, self._agent(request), self._parts.context.clock())
        if session is None:
            return None
        trace = trace_of(request.scope)
        trace.caller, trace.authenticated = session.actor, True
        limits.check_party(session.actor)
        return session

    def _issued_id(self, request: Request) -> str | None:
        """The session id in the cookie, if this pool issued it."""
        given = request.cookies.get(self._cookie)
        return given if given is not None and self._sessions.is_issued(given) else None

    def _agent(self, request: Request) -> str:
        """What the session is bound to: the client certificate, if the request came with one, and the browser."""
        agent = request.headers.get("user-agent", "")[:500]
        return f"{self._parts.context.certificates.thumbprint(request.scope) or '-'} {agent}"

    # --- Log-in with a client secret ---

    async def show(self, request: Request) -> Response:
        """The page of the log-in. A cookie that was not issued has been counted where it led here."""
        if self._issued_id(request) is not None and await self.session_of(request) is not None:
            return redirect(f"{PREFIX}/")
        return self._page(request, request.query_params.get("next", ""))

    def _page(self, request: Request, target: str, problem: str | None = None, status: int = 200) -> Response:
        values = {
            "title": "Log in",
            "problem": problem,
            "notice": NOTICES.get(request.query_params.get("notice", "")),
            "target": target if is_page(target) else "",
            "provider": self._openid and self._openid.name,
        }
        return HTMLResponse(self._rendering.render("login.html", values), status, dict(HEADERS))

    async def with_secret(self, request: Request) -> Response:
        """Log in with client id and secret of an admin party, as at the token endpoint."""
        check_origin(request, self._parts.config.public_url)
        context, trace = self._parts.context, trace_of(request.scope)
        form = parse_form(request.headers, await context.read_body(request.receive, request.headers, _MAX_BODY))
        client_id, secret = form.get("client_id", "").strip(), form.get("client_secret", "")
        target = form.get("next", "")
        trace.caller = client_id[:_MAX_CLIENT_ID]
        trace.registered = self._parts.authority.is_registered(client_id)
        try:
            person = await self._person(request, client_id, secret)
            return await self._begin(request, person, target)
        except TooManyRequests as exc:
            trace.failure = exc
            response = self._page(request, target, "Too many failed attempts; wait before the next one.", 429)
            response.headers["Retry-After"] = str(exc.retry_after)
            return response
        except NotAuthenticated as exc:
            trace.failure = exc
            return self._page(request, target, _REFUSED, 403)

    async def _person(self, request: Request, client_id: str, secret: str) -> Person:
        """Raises NotAuthenticated, TooManyRequests, Unavailable."""
        context, authority = self._parts.context, self._parts.authority
        if not client_id or not secret or len(client_id) > _MAX_CLIENT_ID or len(secret) > _MAX_SECRET:
            raise _refused()
        if self._parts.config.certificate_bound_tokens:
            context.certificates.thumbprint_to_bind(request.scope)
        recognised = authority.secret_is_cached(client_id, secret)
        with context.limits.login_attempt(client_of(request.scope), client_id, secret, recognised=recognised):
            party, matching = await authority.verify_secret(client_id, secret, context.clock())
        if not may_administer(party):
            raise _refused()
        return Person(party.client_id, ConsoleRole.ADMIN, party.client_id, credential_of([matching])[0])

    async def _begin(self, request: Request, person: Person, target: str) -> Response:
        """Start a session with a new id, whatever cookie the browser has. The session of that cookie ends."""
        trace, now = trace_of(request.scope), self._parts.context.clock()
        session_id = await self._sessions.begin(
            person, self._agent(request), now, trace.id, replaced=self._issued_id(request)
        )
        trace.caller, trace.authenticated = person.actor, True
        response = redirect(target if is_page(target) else f"{PREFIX}/")
        response.set_cookie(
            self._cookie,
            session_id,
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="lax",
        )
        return response

    async def end(self, request: Request) -> Response:
        """Log out: end the session, and remove its cookie."""
        check_origin(request, self._parts.config.public_url)
        session = await self.session_of(request)
        if session is not None:
            context = self._parts.context
            form = parse_form(request.headers, await context.read_body(request.receive, request.headers, _MAX_BODY))
            check_csrf(form, session.csrf_token)
            session_id, trace_id = request.cookies[self._cookie], trace_of(request.scope).id
            await self._sessions.end(session_id, session, context.clock(), trace_id)
        response = redirect(f"{PREFIX}/login?notice=logged-out")
        self._delete(response, self._cookie)
        response.headers["Clear-Site-Data"] = '"cache"'
        return response

    # --- Log-in with an OpenID provider ---

    async def to_provider(self, request: Request) -> Response:
        """Send the browser to the OpenID provider."""
        if self._openid is None:
            raise NotFound("There is no page at this address.")
        self._parts.context.limits.check_unauthenticated(client_of(request.scope))
        url, cookie = await self._openid.begin(self._key, self._parts.context.clock())
        response = redirect(url)
        response.set_cookie(
            self._login_cookie,
            cookie,
            max_age=int(LOGIN_TIME),
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="lax",
        )
        return response

    async def from_provider(self, request: Request) -> Response:
        """The return of the browser from the OpenID provider."""
        if self._openid is None:
            raise NotFound("There is no page at this address.")
        client, limits, trace = client_of(request.scope), self._parts.context.limits, trace_of(request.scope)
        limits.check_unauthenticated(client)
        cookie, query = request.cookies.get(self._login_cookie, ""), request.url.query
        try:
            person = await self._openid.finish(self._key, cookie, query, self._parts.context.clock())
            response = await self._begin(request, person, "")
        except CCPError as exc:
            if isinstance(exc, AccessError):
                limits.record_auth_failure(client)
            trace.failure = exc
            status = 403 if isinstance(exc, AccessError) else errors.status_of(exc)
            response = self._page(request, "", str(exc), status)
        self._delete(response, self._login_cookie)
        return response

    def _delete(self, response: Response, name: str) -> None:
        response.delete_cookie(name, path="/", secure=self._secure, httponly=True, samesite="lax")
