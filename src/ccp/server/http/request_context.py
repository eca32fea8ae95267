"""What every route does before its own work: authenticate the caller, find the target pool, read the body.

The dialect routers (OPNC, OPCP, events, admin, OAuth, webhooks) share one `RequestContext` for each worker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends, Header, Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope

from ccp.errors import FieldError, NotAuthenticated, NotAuthorised, NotFound
from ccp.errors.codes import ErrorCode
from ccp.schemas.common import Routing, RoutingHeaders
from ccp.schemas.field_errors import field_error
from ccp.schemas.json_bodies import Body, read_body
from ccp.server.access.authorization_server import AuthorizationServer
from ccp.server.access.rate_limits import RateLimits
from ccp.server.domain.authorization import VEHICLE_OPERATIONS, AnyOperation, authorise_role, authorise_sender
from ccp.server.domain.parties import Caller, PartyRole
from ccp.server.http import body_headers, paths, query_parameters
from ccp.server.http.admission import IDENTIFIED, UNVERIFIED
from ccp.server.http.client_certificate import ClientCertificates
from ccp.server.http.middleware.client_address import client_of
from ccp.server.http.middleware.tracing import trace_of
from ccp.server.pool.operations import Pool
from ccp.server.pool.peers import Peers
from ccp.server.pool.remote import RemotePool
from ccp.server.runtime.clock import Clock

Handler = TypeVar("Handler", bound=Callable[..., Any])

REPEATED_AUTHORIZATION: Final = "The header Authorization must be there once."

_IDENTITY: Final = "ccp.identity"
"""Scope key: the identity of the token and the operation that it was authorised for."""


class RequestContext:
    """The services that every route needs. One for each worker.

    max_body: bytes.
    """

    def __init__(
        self,
        authority: AuthorizationServer,
        peers: Peers,
        clock: Clock,
        max_body: int,
        certificates: ClientCertificates = ClientCertificates(),
        limits: RateLimits | None = None,
    ) -> None:
        self._authority = authority
        self._peers = peers
        self.clock = clock
        self._max_body = max_body
        self.certificates = certificates
        self.limits = limits or RateLimits(None)

    async def authenticate(self, scope: Scope, headers: Headers, operation: AnyOperation) -> Caller:
        """Authenticate the caller, check its rate and its role, and check the query parameters.

        Raises NotAuthenticated, TooManyRequests, NotAuthorised if no role of the caller allows the operation,
        FieldError.
        """
        trace, client = trace_of(scope), client_of(scope)
        trace.operation = operation.value
        authorization = _authorization(headers)
        unverified = not self._authority.is_cached(authorization)
        if unverified:
            self.limits.check_unauthenticated(client)
        try:
            identity = await self._authority.identify(
                authorization, self.clock(), lambda: self.certificates.thumbprint(scope)
            )
        except NotAuthenticated:
            self.limits.record_auth_failure(client)
            _notify_admission(scope, authorization, None)
            raise
        party = identity.party
        if unverified or UNVERIFIED in scope:
            _notify_admission(scope, authorization, party.client_id)
        trace.caller, trace.authenticated = party.client_id, True
        self.limits.check_party(party.client_id)
        try:
            authorise_role(party, operation)
        except NotAuthorised:
            if operation in VEHICLE_OPERATIONS:
                # The vehicle class is served first. A party that may not deliver has no share of it.
                _notify_admission(scope, authorization, None)
            raise
        query_parameters.check_routed(scope)
        scope[_IDENTITY] = identity, operation
        return Caller(party, trace.id, client.address, identity.kid)

    async def reauthenticate(self, scope: Scope, headers: Headers, caller: Caller) -> Caller:
        """Check the caller again after its body was read, which can take as long as `read_timeout`.

        Meanwhile the party may have been disabled or changed, the token may have expired, or its key may have been
        revoked. Raises as `authenticate` does.
        """
        before, operation = scope[_IDENTITY]
        if self._authority.is_still_valid(before, self.clock()):
            return caller
        identity = await self._authority.identify(
            _authorization(headers), self.clock(), lambda: self.certificates.thumbprint(scope)
        )
        authorise_role(identity.party, operation)
        return replace(caller, party=identity.party, kid=identity.kid)

    def resolve_pool_id(self, caller: Caller, routing: Routing) -> str | None:
        """Check the routing headers against the caller and return the id of the addressed pool, None for this one.

        Raises NotAuthorised if the headers name another sender; NotFound for an unknown pool, and if the request has
        been forwarded by a pool already.
        """
        authorise_sender(caller.party, routing.from_type, routing.from_id)
        pool_id = self._peers.route(routing.to_id) if routing.to_type == "ccp" and routing.to_id is not None else None
        if pool_id is not None and (routing.hop is not None or PartyRole.CCP in caller.party.roles):
            raise NotFound("A request of another pool is not passed on.", code=ErrorCode.POOL_NOT_FOUND)
        return pool_id

    def resolve_target(self, pool: Pool, caller: Caller, routing: Routing) -> Pool | RemotePool:
        """Return the pool that the request addresses: this one or a remote one. Raises as `resolve_pool_id` does."""
        pool_id = self.resolve_pool_id(caller, routing)
        return pool if pool_id is None else RemotePool(self._peers, pool_id, (routing.from_type, routing.from_id))

    async def read_body(self, receive: Receive, headers: Headers, max_body: int | None = None) -> bytes:
        """Read the whole body.

        max_body: bytes, where the limit is lower than that of the pool. Raises HTTPException: 413 for a larger body,
        415 for a compressed one.
        """
        body_headers.check_content_encoding(headers)
        limit = self._max_body if max_body is None else min(max_body, self._max_body)
        length = headers.get("content-length")
        if length is not None and length.isascii() and length.isdigit() and int(length) > limit:
            raise HTTPException(413, f"The body is larger than {limit} bytes.")
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > limit:
                raise HTTPException(413, f"The body is larger than {limit} bytes.")
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return bytes(body)

    async def read_json(self, request: Request, caller: Caller, model: type[Body], default: bytes = b"") -> Body:
        """Read the JSON body of a request, after which the caller is checked again.

        default: stands for an empty body. Raises as `read_body` and `reauthenticate` do, and FieldError.
        """
        body = await self.read_body(request.receive, request.headers)
        await self.reauthenticate(request.scope, request.headers, caller)
        return read_body(model, body or default)


@dataclass(frozen=True, slots=True)
class Target:
    """The authenticated caller and the pool that the request addresses. for_content: False for HEAD."""

    caller: Caller
    pool: Pool | RemotePool
    for_content: bool = True


def target_dependency(context: RequestContext, pool: Pool, operation: AnyOperation) -> Any:
    """Return a FastAPI dependency that authenticates the caller and resolves the `Target`."""

    # Two dependencies, because FastAPI reports errors in parameters first. No caller may learn what is wrong with a
    # request before it is authenticated.
    async def authenticated(request: Request) -> Caller:
        return await context.authenticate(request.scope, request.headers, operation)

    async def target(
        request: Request, routing: Annotated[RoutingHeaders, Header()], caller: Caller = Depends(authenticated)
    ) -> Target:
        return Target(caller, context.resolve_target(pool, caller, routing), not paths.is_head(request.scope))

    return Depends(target)


def caller_dependency(context: RequestContext, operation: AnyOperation) -> Any:
    """Return a FastAPI dependency that authenticates the caller of an operation without routing headers."""

    async def caller(request: Request) -> Caller:
        return await context.authenticate(request.scope, request.headers, operation)

    return Depends(caller)


def read_headers(model: type[BaseModel], headers: Headers) -> Any:
    """Read the headers that a model declares. Raises FieldError."""
    names, default = _declared(model)
    values = {names[name]: value.decode("latin-1") for name, value in reversed(headers.raw) if name in names}
    if not values:
        return default
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        raise field_error(exc.errors()) from exc


@cache
def _declared(model: type[BaseModel]) -> tuple[dict[bytes, str], Any]:
    """Return the names of the headers that a model declares, by their lower-case bytes, and the model without any."""
    names = [field.alias or name for name, field in model.model_fields.items()]
    return {name.lower().encode(): name for name in names}, model.model_validate({})


def _authorization(headers: Headers) -> str | None:
    """Return the header Authorization. Raises FieldError for two: a proxy and the pool could each use another one."""
    values = [value for name, value in headers.raw if name == b"authorization"]
    if len(values) > 1:
        raise FieldError(REPEATED_AUTHORIZATION)
    return values[0].decode("latin-1") if values else None


def _notify_admission(scope: Scope, authorization: str | None, client_id: str | None) -> None:
    """Tell the admission control which party an Authorization header belongs to; None: the header is not valid."""
    identified = scope.get(IDENTIFIED)
    if identified is not None and authorization is not None:
        identified(authorization.encode("latin-1"), client_id)
