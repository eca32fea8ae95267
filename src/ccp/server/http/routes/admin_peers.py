"""The admin API under `/admin/v1/peers`: the other pools that this pool asks. It needs the role admin.

The rules are those of the command line, see `ccp.server.pool.peer_registry`, and members have the names of its `--json`
output. A secret is taken, and never returned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Final, TypeAlias

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field, WithJsonSchema
from starlette.responses import Response

from ccp.client import Dialect
from ccp.ids import Fingerprint, ProviderId
from ccp.server.access.admin_changes import Precondition
from ccp.server.domain.authorization import AdminOperation
from ccp.server.domain.parties import Caller
from ccp.server.http import preconditions
from ccp.server.http.admin_operations import BASE, RequestBody, actor_of, describe, if_match
from ccp.server.http.request_context import Handler, RequestContext, caller_dependency
from ccp.server.http.responses import json_response
from ccp.server.pool.peer_registry import (
    MAX_SECRET,
    MAX_TEXT,
    PARTY_ID_PATTERN,
    PeerRegistry,
    PeerView,
    create_peer,
    parse_peer_fields,
)
from ccp.server.storage.queries.peers import Peer

# Types for the OpenAPI description. The registry validates the values, as it does for the command line.
_PartyId: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "pattern": PARTY_ID_PATTERN})]
_URL: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "format": "uri", "maxLength": MAX_TEXT})]
_Text: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "maxLength": MAX_TEXT})]
_Secret: TypeAlias = Annotated[
    str, WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_SECRET, "writeOnly": True})
]
_Root: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "pattern": Fingerprint.pattern})]
_Provider: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "pattern": ProviderId.pattern})]


class NewPeer(RequestBody):
    """A pool to register.

    base_url: without the API's path. secret: the client secret of client_id, or without client_id an access token.
    token_url: its token endpoint, if it is not /oauth/token.
    """

    party_id: _PartyId
    base_url: _URL
    secret: _Secret = Field(repr=False)
    dialect: Dialect = Field(default=Dialect.OPNC)
    client_id: _Text = Field(default_factory=str)
    token_url: _Text = Field(default_factory=str)
    audience: _Text = Field(default_factory=str)
    v2g_roots: list[_Root] = Field(default_factory=list)
    provider_ids: list[_Provider] = Field(default_factory=list)


class PeerChange(RequestBody):
    """The members to change. A list replaces the previous one; an empty token_url or audience removes it."""

    base_url: _URL = Field(default_factory=str)
    dialect: Dialect = Field(default=Dialect.OPNC)
    token_url: _Text = Field(default_factory=str)
    audience: _Text = Field(default_factory=str)
    v2g_roots: list[_Root] = Field(default_factory=list)
    provider_ids: list[_Provider] = Field(default_factory=list)


class PeerCredentials(RequestBody):
    """What the peer has given to this pool. client_id: if it is new."""

    secret: _Secret = Field(repr=False)
    client_id: _Text = Field(default_factory=str)


class PeerShown(BaseModel):
    """A peer, without its secret. client_id: null if the secret is an access token."""

    party_id: str
    base_url: str
    dialect: str
    client_id: str | None
    token_url: str | None
    audience: str | None
    v2g_roots: list[str]
    provider_ids: list[str]
    enabled: bool


class PeerList(BaseModel):
    """All peers, ordered by party id."""

    peers: list[PeerShown]


BODIES: Final = (NewPeer, PeerChange, PeerCredentials)
"""Models to add to the OpenAPI description, because the routes read their bodies themselves."""

PartyIdPath: TypeAlias = Annotated[str, Path(description="Party id of the peer.")]
_IF_MATCH: Final = if_match("peer")


def router(register: PeerRegistry, context: RequestContext) -> APIRouter:
    """Return the routes."""
    api = APIRouter(tags=["admin"])

    def caller_of(operation: AdminOperation) -> Any:
        return caller_dependency(context, operation)

    def add(
        method: str,
        path: str,
        operation: AdminOperation,
        answer: type[BaseModel],
        body: type[BaseModel] | None = None,
        status: int = 200,
    ) -> Callable[[Handler], Handler]:
        tagged = None if answer is PeerList or method == "DELETE" else "peer"
        return describe(api, method, path, operation, answer, body, status, tagged=tagged)

    def shown(peer: Peer, status: int = 200, **headers: str) -> Response:
        view = PeerView(peer)
        return json_response(view.members(), status, {"ETag": preconditions.etag(view), **headers})

    @add("GET", "/peers", AdminOperation.LIST_PEERS, PeerList)
    async def list_peers(caller: Caller = caller_of(AdminOperation.LIST_PEERS)) -> Response:
        """List the peers, ordered by party id, without secrets."""
        return json_response({"peers": [PeerView(peer).members() for peer in await register.list_all()]})

    @add("POST", "/peers", AdminOperation.ADD_PEER, PeerShown, NewPeer, 201)
    async def add_peer(request: Request, caller: Caller = caller_of(AdminOperation.ADD_PEER)) -> Response:
        """Register a pool. Workers ask it within seconds."""
        given = (await context.read_json(request, caller, NewPeer)).fields()
        peer = create_peer(given, given.pop("secret"))
        await register.add(peer, actor_of(caller), context.clock())
        return shown(peer, 201, Location=f"{BASE}/peers/{peer.party_id}")

    @add("GET", "/peers/{party_id}", AdminOperation.GET_PEER, PeerShown)
    async def get_peer(party_id: PartyIdPath, caller: Caller = caller_of(AdminOperation.GET_PEER)) -> Response:
        """Return a peer without its secret. Use the ETag in If-Match of a change."""
        return shown(await register.get(party_id))

    @add("PATCH", "/peers/{party_id}", AdminOperation.EDIT_PEER, PeerShown, PeerChange)
    async def edit_peer(
        request: Request,
        party_id: PartyIdPath,
        caller: Caller = caller_of(AdminOperation.EDIT_PEER),
        precondition: Precondition = _IF_MATCH,
    ) -> Response:
        """Change a peer: all given members or none. Calls in progress end as they began.

        With If-Match: 412 if the peer has changed since it was read.
        """
        values = parse_peer_fields((await context.read_json(request, caller, PeerChange)).fields())

        def change(peer: Peer) -> Peer:
            return replace(peer, **values)

        return shown(await register.edit(party_id, change, actor_of(caller), context.clock(), precondition))

    @add("DELETE", "/peers/{party_id}", AdminOperation.REMOVE_PEER, PeerShown)
    async def remove_peer(
        party_id: PartyIdPath,
        caller: Caller = caller_of(AdminOperation.REMOVE_PEER),
        precondition: Precondition = _IF_MATCH,
    ) -> Response:
        """Remove a peer, the credentials there, and the subscription to its events. Returns the removed peer."""
        peer = await register.remove(party_id, actor_of(caller), context.clock(), precondition)
        return json_response(PeerView(peer).members())

    @add("POST", "/peers/{party_id}/disable", AdminOperation.DISABLE_PEER, PeerShown)
    async def disable_peer(
        party_id: PartyIdPath,
        caller: Caller = caller_of(AdminOperation.DISABLE_PEER),
        precondition: Precondition = _IF_MATCH,
    ) -> Response:
        """Ask a peer no longer, within seconds in every worker."""
        return shown(await register.disable(party_id, actor_of(caller), context.clock(), precondition))

    @add("POST", "/peers/{party_id}/enable", AdminOperation.ENABLE_PEER, PeerShown)
    async def enable_peer(
        party_id: PartyIdPath,
        caller: Caller = caller_of(AdminOperation.ENABLE_PEER),
        precondition: Precondition = _IF_MATCH,
    ) -> Response:
        """Enable a disabled peer."""
        return shown(await register.enable(party_id, actor_of(caller), context.clock(), precondition))

    @add("POST", "/peers/{party_id}/rotate-secret", AdminOperation.ROTATE_PEER_SECRET, PeerShown, PeerCredentials)
    async def rotate_secret(
        request: Request,
        party_id: PartyIdPath,
        caller: Caller = caller_of(AdminOperation.ROTATE_PEER_SECRET),
        precondition: Precondition = _IF_MATCH,
    ) -> Response:
        """Replace the client secret or access token that the peer has given to this pool."""
        body = await context.read_json(request, caller, PeerCredentials)
        client_id = parse_peer_fields({"client_id": body.client_id})["client_id"]
        peer = await register.rotate_secret(
            party_id, body.secret, actor_of(caller), context.clock(), client_id, precondition
        )
        return shown(peer)

    return api
