"""The OAuth 2.0 authorization server: token endpoint, JWKS and metadata.

Client credentials are accepted as form, JSON or HTTP Basic.

Source: RFC 6749 clauses 2.3.1, 3.3, 4.4, 5; RFC 8707 clause 2 (invalid_target); RFC 8414; RFC 7517; RFC 8705 clause 3.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final
from urllib.parse import parse_qsl, unquote_plus

import orjson
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from ccp.errors import FieldError, NotAuthenticated, TooManyRequests
from ccp.errors.codes import ErrorCode
from ccp.schemas import json_input
from ccp.server.access.authorization_server import AuthorizationServer, InvalidScope
from ccp.server.access.token_keys import KEY_ACTIVATION_DELAY
from ccp.server.domain.parties import PartyRole
from ccp.server.http.middleware.client_address import client_of
from ccp.server.http.middleware.tracing import trace_of
from ccp.server.http.request_context import REPEATED_AUTHORIZATION, RequestContext
from ccp.server.http.responses import json_response

PATH: Final = "/oauth/token"
JWKS_PATH: Final = "/.well-known/jwks.json"
METADATA_PATH: Final = "/.well-known/oauth-authorization-server"

_MAX_BODY: Final = 16_384  # Bytes. The longest valid token request has a few hundred.

# Keys and metadata are public. They are cached no longer than a new key is published before it signs.
_CACHEABLE: Final = {"Cache-Control": f"public, max-age={int(KEY_ACTIVATION_DELAY.total_seconds())}"}


class _TokenError(Exception):
    """A rejected token request. Source: RFC 6749 clause 5.2."""

    def __init__(self, status: int, error: str, description: str) -> None:
        super().__init__(description)
        self.status, self.error, self.description = status, error, description
        self.code = ErrorCode.TOKEN_REQUEST_INVALID if status == 400 else ErrorCode.CLIENT_CREDENTIALS_INVALID


def routes(authority: AuthorizationServer, context: RequestContext, *, issuer: str, bind: bool) -> list[Route]:
    """Return the routes of the authorization server.

    issuer: the public URL of the pool. bind: whether tokens are bound to client certificates. Then a request without
    exactly one readable certificate gets no token.
    """

    def _certificate(scope: Scope) -> str:
        try:
            return context.certificates.thumbprint_to_bind(scope)
        except NotAuthenticated as exc:
            trace_of(scope).failure = exc
            raise _TokenError(401, "invalid_client", str(exc)) from exc

    async def token(request: Request) -> Response:
        trace = trace_of(request.scope)
        trace.operation = "token"
        try:
            _check_query(request)
            members = _members(request.headers, await context.read_body(request.receive, request.headers, _MAX_BODY))
            client_id, secret = _credentials(request.headers, members)
            trace.caller, trace.registered = client_id[:100], authority.is_registered(client_id)
            if members.get("grant_type") != "client_credentials":
                known = "grant_type" in members
                error = "unsupported_grant_type" if known else "invalid_request"
                raise _TokenError(400, error, "grant_type must be client_credentials")
            if "audience" in members and not authority.is_own_audience(members["audience"]):
                raise _TokenError(400, "invalid_target", "audience must be the address of this pool")
            # Before the secret: a request without a valid certificate must not test a secret, and is no failed login.
            certificate = _certificate(request.scope) if bind else None
            recognised = authority.secret_is_cached(client_id, secret)
            with context.limits.login_attempt(client_of(request.scope), client_id, secret, recognised=recognised):
                grant = await authority.issue(
                    client_id,
                    secret,
                    context.clock(),
                    roles=members.get("scope", "").split() or None,
                    certificate=certificate,
                )
        except NotAuthenticated as exc:  # A failed login.
            trace.failure = exc
            return _error_response(_TokenError(401, "invalid_client", str(exc)))
        except TooManyRequests as exc:
            trace.failure = exc
            return _error_response(
                _TokenError(429, "temporarily_unavailable", str(exc)), {"Retry-After": str(exc.retry_after)}
            )
        except InvalidScope as exc:
            trace.failure = exc
            return _error_response(_TokenError(400, "invalid_scope", str(exc)))
        except _TokenError as exc:
            if trace.failure is None:
                trace.code = exc.code
            return _error_response(exc)
        granted = {
            "access_token": grant.access_token,
            "token_type": "Bearer",
            "expires_in": grant.lifetime,
            "scope": " ".join(sorted(grant.roles)),
        }
        return json_response(granted)

    async def jwks(request: Request) -> Response:
        trace_of(request.scope).operation = "jwks"
        keys = orjson.dumps(authority.published_keys(context.clock()))
        return Response(keys, 200, _CACHEABLE, media_type="application/jwk-set+json")

    async def metadata(request: Request) -> Response:
        trace_of(request.scope).operation = "metadata"
        return json_response(described, 200, _CACHEABLE)

    described = {
        "issuer": issuer,
        "token_endpoint": issuer + PATH,
        "jwks_uri": issuer + JWKS_PATH,
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": [],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "scopes_supported": sorted(PartyRole),
        "tls_client_certificate_bound_access_tokens": bind,
    }
    return [
        Route(PATH, token, methods=["POST"]),
        Route(JWKS_PATH, jwks, methods=["GET"]),
        Route(METADATA_PATH, metadata, methods=["GET"]),
    ]


def _error_response(error: _TokenError, headers: dict[str, str] | None = None) -> Response:
    if error.status == 401:
        headers = {"WWW-Authenticate": 'Basic realm="token"'}
    return json_response({"error": error.error, "error_description": error.description}, error.status, headers)


_BODY_PARAMETERS: Final = frozenset({"grant_type", "client_id", "client_secret", "scope", "audience"})


def _check_query(request: Request) -> None:
    """Reject body parameters in the URL: they would be logged, and ignoring one could issue a different token.

    Other query parameters are ignored. Source: RFC 6749 clauses 2.3.1 and 3.2.
    """
    if stray := sorted(_BODY_PARAMETERS.intersection(request.query_params)):
        raise _TokenError(400, "invalid_request", f"{', '.join(stray)} must be in the body, not in the URL")


def _members(headers: Headers, body: bytes) -> dict[str, str]:
    """Return the parameters of the request. A repeated parameter, or one that is not a string, is rejected."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            found = json_input.load(body)
        except FieldError as exc:
            # RFC 6749 clause 5.2 allows neither quotation marks nor backslashes here.
            raise _TokenError(400, "invalid_request", str(exc).replace('"', "'").replace("\\", "/")) from exc
        if not isinstance(found, dict) or not all(isinstance(value, str | None) for value in found.values()):
            raise _TokenError(400, "invalid_request", "the body is not a JSON object of strings")
        return {name: value for name, value in found.items() if value is not None}
    try:
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=20, errors="strict")
    except ValueError as exc:
        raise _TokenError(400, "invalid_request", "the body is neither a form nor JSON") from exc
    if len({name for name, _ in pairs}) != len(pairs):
        raise _TokenError(400, "invalid_request", "a parameter is given twice")
    return dict(pairs)


def _credentials(headers: Headers, members: dict[str, str]) -> tuple[str, str]:
    """Return client id and secret. Credentials in two places are rejected."""
    if len(headers.getlist("authorization")) > 1:
        raise _TokenError(400, "invalid_request", REPEATED_AUTHORIZATION)
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        if "client_secret" in members:
            raise _TokenError(400, "invalid_request", "the client authenticates in two ways")
        try:
            text = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError) as exc:
            raise _TokenError(401, "invalid_client", "the Authorization header is not HTTP Basic") from exc
        client_id, colon, secret = text.partition(":")
        if not colon:
            raise _TokenError(401, "invalid_client", "the Authorization header is not HTTP Basic")
        return unquote_plus(client_id), unquote_plus(secret)
    if not members.get("client_id") or not members.get("client_secret"):
        raise _TokenError(401, "invalid_client", "client_id and client_secret are needed")
    return members["client_id"], members["client_secret"]
