"""The admin API under `/admin/v1`: the party registry, for automation. It needs the role admin.

The rules are those of the command line, see `ccp.server.access.party_registry`, and members have the names of its
`--json` output. A body with an unknown member is rejected, so that a misspelt member is not silently ignored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Final, TypeAlias

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, Field, StrictBool, WithJsonSchema
from starlette.responses import Response

from ccp.ids import WMI, OperatorId, ProviderId
from ccp.server.access.admin_changes import Precondition
from ccp.server.access.party_registry import (
    DEFAULT_OVERLAP,
    LONGEST_OVERLAP,
    PartyRegistry,
    SecretToRevoke,
)
from ccp.server.domain.authorization import AdminOperation, role_table
from ccp.server.domain.parties import (
    CLIENT_ID_PATTERN,
    NAME_LENGTH,
    Caller,
    Party,
    PartyRole,
    create_party,
    parse_fields,
)
from ccp.server.http import preconditions
from ccp.server.http.admin_operations import BASE, RequestBody, actor_of, describe, if_match
from ccp.server.http.request_context import Handler, RequestContext, caller_dependency
from ccp.server.http.responses import json_response
from ccp.server.pool.statistics import PoolStatistics

_PAGE_SIZE: Final = 100  # Parties.
_MAX_PAGE_SIZE: Final = 1000  # A party with few ids has some 300 bytes.


def _registered(pattern: str) -> str:
    """Return the pattern of ids that can be registered. An EMAID may have an underscore there, a party may not."""
    return pattern.replace(r"\w", "[A-Za-z0-9]")


# Types for the OpenAPI description. The registry validates the values, as it does for the command line.
_ClientId: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "pattern": CLIENT_ID_PATTERN})]
_Name: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "minLength": 1, "maxLength": NAME_LENGTH})]
_ProviderId: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "pattern": _registered(ProviderId.pattern)})]
_WMI: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "pattern": WMI.pattern})]
_OperatorId: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "pattern": _registered(OperatorId.pattern)})]
_Time: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]


class NewParty(RequestBody):
    """A party to register. Without client_id, the pool derives one from the name."""

    name: _Name
    roles: list[PartyRole]
    client_id: _ClientId = Field(default_factory=str)
    provider_ids: list[_ProviderId] = Field(default_factory=list)
    all_providers: StrictBool = Field(default_factory=bool)
    wmis: list[_WMI] = Field(default_factory=list)
    operator_ids: list[_OperatorId] = Field(default_factory=list)


class PartyChange(RequestBody):
    """The members to change. A list replaces the previous one."""

    name: _Name = Field(default_factory=str)
    roles: list[PartyRole] = Field(default_factory=list)
    provider_ids: list[_ProviderId] = Field(default_factory=list)
    all_providers: StrictBool = Field(default_factory=bool)
    wmis: list[_WMI] = Field(default_factory=list)
    operator_ids: list[_OperatorId] = Field(default_factory=list)


class Rotation(RequestBody):
    """overlap: seconds for which the previous secret stays valid, 0 to end all older ones at once. end: which of two
    valid secrets ends.
    """

    overlap: Annotated[
        int, Field(strict=True), WithJsonSchema({"type": "integer", "minimum": 0, "maximum": LONGEST_OVERLAP})
    ] = Field(DEFAULT_OVERLAP)
    end: SecretToRevoke = Field(default_factory=lambda: SecretToRevoke.OLDER)


class PartyShown(BaseModel):
    """A party."""

    client_id: str
    name: str
    roles: list[PartyRole]
    provider_ids: list[str]
    all_providers: bool
    wmis: list[str]
    operator_ids: list[str]
    enabled: bool


class SecretLife(BaseModel):
    """The validity of a client secret. expires_at: null until the secret is replaced."""

    created_at: _Time
    expires_at: _Time | None


class PartyWithSecrets(PartyShown):
    """A party with the validity of its secrets."""

    secrets: list[SecretLife]


class PartyWithNewSecret(PartyWithSecrets):
    """client_secret: shown only in this response."""

    client_secret: str


class PartyPage(BaseModel):
    """next_cursor: the cursor of the next page, null on the last one."""

    parties: list[PartyShown]
    next_cursor: str | None


class RoleRow(BaseModel):
    """One row of the role table."""

    operation: str
    role: PartyRole
    condition: str


class RoleTable(BaseModel):
    """The role table."""

    roles: list[RoleRow]


BODIES: Final = (NewParty, PartyChange, Rotation)
"""Models to add to the OpenAPI description, because the routes read their bodies themselves."""


ClientIdPath: TypeAlias = Annotated[str, Path(description="Client id of the party.")]
LimitQuery: TypeAlias = Annotated[int, Query(ge=1, le=_MAX_PAGE_SIZE, description="Parties on the page, at most.")]
CursorQuery: TypeAlias = Annotated[
    str, Query(pattern=CLIENT_ID_PATTERN, description="next_cursor of the previous page; without it, the first page.")
]


_TAGGED: Final = frozenset({AdminOperation.ADD_PARTY, AdminOperation.GET_PARTY, AdminOperation.EDIT_PARTY})
_IF_MATCH: Final = if_match("party")


class ExpiryWindow(BaseModel):
    """The contracts that end within a number of days, including those of shorter windows."""

    days: int
    contracts: int


class ProviderExpiry(BaseModel):
    """The contracts of a provider that end soon."""

    provider_id: str
    expiring: list[ExpiryWindow]


class Expiry(BaseModel):
    """The contracts that end soon: all of them, and by provider. A contract ends when its first variant ends."""

    counted_at: _Time
    total: list[ExpiryWindow]
    providers: list[ProviderExpiry]


def router(register: PartyRegistry, statistics: PoolStatistics, context: RequestContext) -> APIRouter:
    """Return the routes of the admin API."""
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
        tagged = "party" if operation in _TAGGED else None
        return describe(
            api, method, path, operation, answer, body, status, tagged=tagged, needs_body=body is not Rotation
        )

    @add("GET", "/parties", AdminOperation.LIST_PARTIES, PartyPage)
    async def list_parties(
        caller: Caller = caller_of(AdminOperation.LIST_PARTIES),
        limit: LimitQuery = _PAGE_SIZE,
        cursor: CursorQuery = "",
    ) -> Response:
        """List the parties, ordered by client id."""
        found, more = await register.list_page(cursor, limit)
        next_cursor = found[-1].client_id if more else None
        members: list[dict[str, Any]] = []
        for start in range(0, len(found), _PAGE_SIZE):
            members += [party.members() for party in found[start : start + _PAGE_SIZE]]
            await asyncio.sleep(0)  # A large page must not block the event loop.
        return json_response({"parties": members, "next_cursor": next_cursor})

    @add("POST", "/parties", AdminOperation.ADD_PARTY, PartyWithNewSecret, NewParty, 201)
    async def add_party(request: Request, caller: Caller = caller_of(AdminOperation.ADD_PARTY)) -> Response:
        """Register a party. A provider id belongs to one eMSP and a WMI to one OEM; names and client ids are unique."""
        body = await context.read_json(request, caller, NewParty)
        party = create_party(body.fields())
        now = context.clock()
        secret = await register.add(party, actor_of(caller), now)
        shown = await register.show(party.client_id, now)
        headers = {"Location": f"{BASE}/parties/{party.client_id}", "ETag": preconditions.etag(shown)}
        return json_response({**shown.members(), "client_secret": secret}, 201, headers)

    @add("GET", "/parties/{client_id}", AdminOperation.GET_PARTY, PartyWithSecrets)
    async def get_party(client_id: ClientIdPath, caller: Caller = caller_of(AdminOperation.GET_PARTY)) -> Response:
        """Return a party with the validity of its secrets. Use the ETag in If-Match of a change."""
        shown = await register.show(client_id, context.clock())
        return json_response(shown.members(), headers={"ETag": preconditions.etag(shown)})

    @add("PATCH", "/parties/{client_id}", AdminOperation.EDIT_PARTY, PartyShown, PartyChange)
    async def edit_party(
        request: Request,
        client_id: ClientIdPath,
        caller: Caller = caller_of(AdminOperation.EDIT_PARTY),
        precondition: Precondition = _IF_MATCH,
    ) -> Response:
        """Change a party's name, roles and ids: all given members or none.

        With If-Match: 412 if the party has changed since it was read.
        """
        fields = parse_fields((await context.read_json(request, caller, PartyChange)).fields())

        def change(party: Party) -> Party:
            return replace(party, **fields)

        shown = await register.edit(client_id, change, actor_of(caller), context.clock(), precondition)
        return json_response(shown.party.members(), headers={"ETag": preconditions.etag(shown)})

    @add("POST", "/parties/{client_id}/disable", AdminOperation.DISABLE_PARTY, PartyShown)
    async def disable_party(
        client_id: ClientIdPath,
        caller: Caller = caller_of(AdminOperation.DISABLE_PARTY),
        precondition: Precondition = _IF_MATCH,
    ) -> Response:
        """Reject a party's tokens and secrets, within seconds in every worker. The party keeps its ids."""
        shown = await register.disable(client_id, actor_of(caller), context.clock(), precondition)
        return json_response(shown.party.members())

    @add("POST", "/parties/{client_id}/enable", AdminOperation.ENABLE_PARTY, PartyShown)
    async def enable_party(
        client_id: ClientIdPath,
        caller: Caller = caller_of(AdminOperation.ENABLE_PARTY),
        precondition: Precondition = _IF_MATCH,
    ) -> Response:
        """Enable a disabled party."""
        shown = await register.enable(client_id, actor_of(caller), context.clock(), precondition)
        return json_response(shown.party.members())

    @add("POST", "/parties/{client_id}/rotate-secret", AdminOperation.ROTATE_SECRET, PartyWithNewSecret, Rotation)
    async def rotate_secret(
        request: Request,
        client_id: ClientIdPath,
        caller: Caller = caller_of(AdminOperation.ROTATE_SECRET),
        precondition: Precondition = _IF_MATCH,
    ) -> Response:
        """Issue a new secret; the previous one stays valid for the overlap. At most two are valid at a time."""
        rotation = await context.read_json(request, caller, Rotation, default=b"{}")
        end = rotation.end if "end" in rotation.model_fields_set else None
        secret, shown = await register.rotate_secret(
            client_id, actor_of(caller), context.clock(), rotation.overlap, end, precondition
        )
        return json_response({**shown.members(), "client_secret": secret})

    @add("GET", "/roles", AdminOperation.GET_ROLES, RoleTable)
    async def get_roles(caller: Caller = caller_of(AdminOperation.GET_ROLES)) -> Response:
        """Return the role table: what each role may do, on which condition. Everything else is refused."""
        rows = [{"operation": operation, "role": role, "condition": words} for operation, role, words in role_table()]
        return json_response({"roles": rows})

    @add("GET", "/expiry", AdminOperation.GET_EXPIRY, Expiry)
    async def get_expiry(caller: Caller = caller_of(AdminOperation.GET_EXPIRY)) -> Response:
        """Return how many contracts end within 7, 30 and 90 days, by provider, counted now."""
        return json_response((await statistics.forecast(context.clock())).members())

    return api
