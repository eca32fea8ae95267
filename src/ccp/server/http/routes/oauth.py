"""The authorisation server: its token endpoint, its keys, and its description of itself.

Client credentials come as form, JSON or HTTP Basic. Source: RFC 6749 clauses 2.3.1, 3.3, 4.4, 5; RFC 8707 clause 2
(invalid_target); RFC 8414; RFC 7517; RFC 8705 clause 3.
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
from ccp.schemas import json_input
from ccp.server.access.authorization_server import AuthorizationServer, InvalidScope
from ccp.server.access.token_keys import KEY_ACTIVATION_DELAY
from ccp.server.domain.parties import PartyRole
from ccp.server.http.middleware.client_address import client_of
from ccp.server.http.middleware.tracing import trace_of
from ccp.server.http.routes.opnc import TWICE, Edge

PATH: Final = "/oauth/token"
JWKS_PATH: Final = "/.well-known/jwks.json"
METADATA_PATH: Final = "/.well-known/oauth-authorization-server"

_MOST: Final = 16_384  # Octets of a token request; the longest that makes sense has a few hundred.

# Nothing secret, and the same for everybody; not longer than a new key is published before it signs.
_CACHEABLE: Final = {"Cache-Control": f"public, max-age={int(KEY_ACTIVATION_DELAY.total_seconds())}"}


class _Refused(Exception):
    """A token request that is answered as RFC 6749 clause 5.2 says."""

    def __init__(self, status: int, error: str, description: str) -> None:
        super().__init__(description)
        self.status, self.error, self.description = status, error, description


def routes(authority: AuthorizationServer, edge: Edge, *, issuer: str, bind: bool) -> list[Route]:
    """Everything that the authorisation server answers. issuer: our own address. bind: tokens to client certificates;
    a request without exactly one readable certificate gets no token.
    """

    def _certificate(scope: Scope) -> str:
        try:
            return edge.certificates.thumbprint_to_bind(scope)
        except NotAuthenticated as exc:
            trace_of(scope).failure = exc
            raise _Refused(401, "invalid_client", str(exc)) from exc

    async def token(request: Request) -> Response:
        trace = trace_of(request.scope)
        trace.operation = "token"
        try:
            _check_query(request)
            members = _members(request.headers, await edge.body(request.receive, request.headers, _MOST))
            client_id, secret = _credentials(request.headers, members)
            trace.caller, trace.registered = client_id[:100], authority.is_registered(client_id)
            if members.get("grant_type") != "client_credentials":
                known = "grant_type" in members
                error = "unsupported_grant_type" if known else "invalid_request"
                raise _Refused(400, error, "grant_type must be client_credentials")
            if "audience" in members and not authority.is_own_audience(members["audience"]):
                raise _Refused(400, "invalid_target", "audience must be the address of this pool")
            # Before the secret: a request that gets no token anyway says nothing about it, and is no failed login.
            certificate = _certificate(request.scope) if bind else None
            recognised = authority.secret_is_cached(client_id, secret)
            with edge.limits.login_attempt(client_of(request.scope), client_id, secret, recognised=recognised):
                grant = await authority.issue(
                    client_id,
                    secret,
                    edge.clock(),
                    roles=members.get("scope", "").split() or None,
                    certificate=certificate,
                )
        except NotAuthenticated as exc:  # The one place where a login has failed.
            trace.failure = exc
            return _refusal(_Refused(401, "invalid_client", str(exc)))
        except TooManyRequests as exc:
            trace.failure = exc
            return _refusal(_Refused(429, "temporarily_unavailable", str(exc)), {"Retry-After": str(exc.retry_after)})
        except InvalidScope as exc:
            trace.failure = exc
            return _refusal(_Refused(400, "invalid_scope", str(exc)))
        except _Refused as refused:
            return _refusal(refused)
        granted = {
            "access_token": grant.access_token,
            "token_type": "Bearer",
            "expires_in": grant.lifetime,
            "scope": " ".join(sorted(grant.roles)),
        }
        return Response(orjson.dumps(granted), 200, media_type="application/json")

    async def jwks(request: Request) -> Response:
        trace_of(request.scope).operation = "jwks"
        keys = orjson.dumps(authority.published_keys(edge.clock()))
        return Response(keys, 200, _CACHEABLE, media_type="application/jwk-set+json")

    async def metadata(request: Request) -> Response:
        trace_of(request.scope).operation = "metadata"
        return Response(orjson.dumps(described), 200, _CACHEABLE, media_type="application/json")

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


def _refusal(refused: _Refused, headers: dict[str, str] | None = None) -> Response:
    if refused.status == 401:
        headers = {"WWW-Authenticate": 'Basic realm="token"'}
    body = {"error": refused.error, "error_description": refused.description}
    return Response(orjson.dumps(body), refused.status, headers, media_type="application/json")


_IN_BODY: Final = frozenset({"grant_type", "client_id", "client_secret", "scope", "audience"})


def _check_query(request: Request) -> None:
    """Refuse body parameters in the URL: they would be logged there, and ignoring one could issue another token.

    Other query parameters are ignored. Source: RFC 6749 clauses 2.3.1 and 3.2.
    """
    if stray := sorted(_IN_BODY.intersection(request.query_params)):
        raise _Refused(400, "invalid_request", f"{', '.join(stray)} must be in the body, not in the URL")


def _members(headers: Headers, body: bytes) -> dict[str, str]:
    """The request's parameters. A parameter that is there twice, or is not text, is refused."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            found = json_input.load(body)
        except FieldError as exc:
            # RFC 6749 clause 5.2 allows neither quotation marks nor backslashes here.
            raise _Refused(400, "invalid_request", str(exc).replace('"', "'").replace("\\", "/")) from exc
        if not isinstance(found, dict) or not all(isinstance(value, str | None) for value in found.values()):
            raise _Refused(400, "invalid_request", "the body is not a JSON object of strings")
        return {name: value for name, value in found.items() if value is not None}
    try:
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=20, errors="strict")
    except ValueError as exc:
        raise _Refused(400, "invalid_request", "the body is neither a form nor JSON") from exc
    if len({name for name, _ in pairs}) != len(pairs):
        raise _Refused(400, "invalid_request", "a parameter is given twice")
    return dict(pairs)


def _credentials(headers: Headers, members: dict[str, str]) -> tuple[str, str]:
    """Client id and secret, from one place only."""
    if len(headers.getlist("authorization")) > 1:
        raise _Refused(400, "invalid_request", TWICE)
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        if "client_secret" in members:
            raise _Refused(400, "invalid_request", "the client authenticates in two ways")
        try:
            text = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError) as exc:
            raise _Refused(401, "invalid_client", "the Authorization header is not HTTP Basic") from exc
        client_id, colon, secret = text.partition(":")
        if not colon:
            raise _Refused(401, "invalid_client", "the Authorization header is not HTTP Basic")
        return unquote_plus(client_id), unquote_plus(secret)
    if not members.get("client_id") or not members.get("client_secret"):
        raise _Refused(401, "invalid_client", "client_id and client_secret are needed")
    return members["client_id"], members["client_secret"]
