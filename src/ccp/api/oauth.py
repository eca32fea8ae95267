"""The token endpoint: client credentials as form, JSON or HTTP Basic. Source: RFC 6749 clauses 2.3.1, 4.4, 5."""

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

from ccp.api.opnc import Edge
from ccp.api.trace import trace_of
from ccp.auth import Authority
from ccp.errors import NotAuthenticated

PATH: Final = "/oauth/token"


class _Refused(Exception):
    """A token request that is answered as RFC 6749 clause 5.2 says."""

    def __init__(self, status: int, error: str, description: str) -> None:
        super().__init__(description)
        self.status, self.error, self.description = status, error, description


def token_route(authority: Authority, edge: Edge) -> Route:
    async def token(request: Request) -> Response:
        trace = trace_of(request.scope)
        trace.operation = "token"
        try:
            members = _members(request.headers, await edge.body(request.receive, request.headers))
            client_id, secret = _credentials(request.headers, members)
            trace.caller = client_id[:100]
            if members.get("grant_type") != "client_credentials":
                known = "grant_type" in members
                error = "unsupported_grant_type" if known else "invalid_request"
                raise _Refused(400, error, "grant_type must be client_credentials")
            try:
                access_token, lifetime = await authority.issue(client_id, secret, edge.clock())
            except NotAuthenticated as exc:
                trace.failure = exc
                raise _Refused(401, "invalid_client", str(exc)) from exc
        except _Refused as refused:
            headers = {"WWW-Authenticate": 'Basic realm="token"'} if refused.status == 401 else {}
            body = {"error": refused.error, "error_description": refused.description}
            return Response(orjson.dumps(body), refused.status, headers, media_type="application/json")
        granted = {"access_token": access_token, "token_type": "Bearer", "expires_in": lifetime}
        return Response(orjson.dumps(granted), 200, media_type="application/json")

    return Route(PATH, token, methods=["POST"])


def _members(headers: Headers, body: bytes) -> dict[str, str]:
    """The request's parameters. A parameter that is there twice, or is not text, is refused."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            found = orjson.loads(body)
        except orjson.JSONDecodeError as exc:
            raise _Refused(400, "invalid_request", "the body is not JSON") from exc
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
