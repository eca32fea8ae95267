"""The admin API under `/admin/v1`: the register of parties for operators that automate. Admins only.

The same rules as on the command line, which are `ccp.server.access.party_registry`'s. Members are named as the command
line's `--json` names them. A body with a member that is not known is refused: an operator's slip must not pass as done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Final, TypeAlias

import orjson
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, WithJsonSchema
from starlette.responses import Response

from ccp.ids import WMI, OperatorId, ProviderId
from ccp.schemas.common import Error
from ccp.schemas.json_bodies import Body, read_body
from ccp.server.access.party_registry import (
    DEFAULT_OVERLAP,
    LONGEST_OVERLAP,
    Actor,
    PartyRegistry,
    Precondition,
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
from ccp.server.http.routes.opnc import Edge, Handler

BASE: Final = "/admin/v1"
_PAGE: Final = 100  # Parties on a page if nothing is said.
_LARGEST_PAGE: Final = 1000  # A party is some 300 octets, with few ids.

# Shapes only: what the texts have to be is the register's to say, for the command line too.
_ClientId: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "pattern": CLIENT_ID_PATTERN})]
_Name: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "minLength": 1, "maxLength": NAME_LENGTH})]
_ProviderId: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "pattern": ProviderId.pattern})]
_WMI: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "pattern": WMI.pattern})]
_OperatorId: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "pattern": OperatorId.pattern})]
_Time: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]


class _Given(BaseModel):
    """What is not given is left out, and never null."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def fields(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True)


class NewParty(_Given):
    """A party to register. Without client_id one is made from the name."""

    name: _Name
    roles: list[PartyRole]
    client_id: _ClientId = Field(default_factory=str)
    provider_ids: list[_ProviderId] = Field(default_factory=list)
    all_providers: StrictBool = Field(default_factory=bool)
    wmis: list[_WMI] = Field(default_factory=list)
    operator_ids: list[_OperatorId] = Field(default_factory=list)


class PartyChange(_Given):
    """Members that shall be other than they are. A list takes the place of the one before."""

    name: _Name = Field(default_factory=str)
    roles: list[PartyRole] = Field(default_factory=list)
    provider_ids: list[_ProviderId] = Field(default_factory=list)
    all_providers: StrictBool = Field(default_factory=bool)
    wmis: list[_WMI] = Field(default_factory=list)
    operator_ids: list[_OperatorId] = Field(default_factory=list)


class Rotation(_Given):
    """overlap: seconds that the secret before stays good, 0 to end every older one at once. end: which of two ends."""

    overlap: Annotated[
        int, Field(strict=True), WithJsonSchema({"type": "integer", "minimum": 0, "maximum": LONGEST_OVERLAP})
    ] = Field(DEFAULT_OVERLAP)
    end: SecretToRevoke = Field(default_factory=lambda: SecretToRevoke.OLDER)


class PartyShown(BaseModel):
    client_id: str
    name: str
    roles: list[PartyRole]
    provider_ids: list[str]
    all_providers: bool
    wmis: list[str]
    operator_ids: list[str]
    enabled: bool


class SecretLife(BaseModel):
    """A client secret that is good. expires_at: null, until it is replaced."""

    created_at: _Time
    expires_at: _Time | None


class PartyWithSecrets(PartyShown):
    secrets: list[SecretLife]


class PartyWithNewSecret(PartyWithSecrets):
    """client_secret: told this once."""

    client_secret: str


class PartyPage(BaseModel):
    """next_cursor: asks for the page after this one, null on the last."""

    parties: list[PartyShown]
    next_cursor: str | None


class RoleRow(BaseModel):
    operation: str
    role: PartyRole
    condition: str


class RoleTable(BaseModel):
    roles: list[RoleRow]


BODIES: Final = (NewParty, PartyChange, Rotation)
"""What the OpenAPI description has to be told of, since bodies are read outside of the framework's machinery."""

ClientIdPath: TypeAlias = Annotated[str, Path(description="Client id of the party.")]
LimitQuery: TypeAlias = Annotated[int, Query(ge=1, le=_LARGEST_PAGE, description="Most parties on the page.")]
CursorQuery: TypeAlias = Annotated[
    str, Query(pattern=CLIENT_ID_PATTERN, description="next_cursor of the page before; the first page without.")
]


_TAGGED: Final = frozenset({AdminOperation.ADD_PARTY, AdminOperation.GET_PARTY, AdminOperation.EDIT_PARTY})
_ETAG: Final = {"ETag": {"description": "Entity tag of the party as GET shows it.", "schema": {"type": "string"}}}


def _precondition(
    request: Request,
    declared: Annotated[
        str | None,
        Header(alias="If-Match", description="ETag that the party must have; * or no header: any."),
    ] = None,
) -> Precondition:
    return preconditions.if_match(request.headers.getlist("if-match"))


_IF_MATCH: Final = Depends(_precondition)
"""After the caller in a signature, so that who calls is known before anything is judged."""


def router(register: PartyRegistry, edge: Edge) -> APIRouter:
    api = APIRouter(tags=["admin"])

    def calling(operation: AdminOperation) -> Any:
        async def caller(request: Request) -> Caller:
            return await edge.caller(request.scope, request.headers, operation)

        return Depends(caller)

    def add(
        method: str,
        path: str,
        operation: AdminOperation,
        answer: type[BaseModel],
        body: type[BaseModel] | None = None,
        status: int = 200,
    ) -> Callable[[Handler], Handler]:
        one = path.startswith("/parties/")  # An operation on one party.
        failures = [401, 403, 500, 503]
        failures += [412] if one and method != "GET" else []
        failures += [404] if "{" in path else []
        failures += [] if operation is AdminOperation.GET_ROLES else [400]
        failures += [413, 415] if body else []
        return api.api_route(
            BASE + path,
            methods=[method],
            name=operation.value,
            operation_id=operation.value,
            summary=operation.value,
            response_class=Response,
            status_code=status,
            responses={
                status: {"model": answer, **({"headers": _ETAG} if operation in _TAGGED else {})},
                **{code: {"model": Error} for code in sorted(failures)},
            },
            openapi_extra={"requestBody": _described(body, required=body is not Rotation)} if body else None,
        )

    @add("GET", "/parties", AdminOperation.LIST_PARTIES, PartyPage)
    async def list_parties(
        caller: Caller = calling(AdminOperation.LIST_PARTIES), limit: LimitQuery = _PAGE, cursor: CursorQuery = ""
    ) -> Response:
        """The parties, in order of their client ids."""
        found, more = await register.list_page(cursor, limit)
        next_cursor = found[-1].client_id if more else None
        members: list[dict[str, Any]] = []
        for start in range(0, len(found), _PAGE):
            members += [party.members() for party in found[start : start + _PAGE]]
            await asyncio.sleep(0)  # A large page must not keep others waiting.
        return _json({"parties": members, "next_cursor": next_cursor})

    @add("POST", "/parties", AdminOperation.ADD_PARTY, PartyWithNewSecret, NewParty, 201)
    async def add_party(request: Request, caller: Caller = calling(AdminOperation.ADD_PARTY)) -> Response:
        """Register a party. A provider id belongs to one eMSP and a WMI to one OEM; names and client ids are unique."""
        body = await read(request, caller, NewParty)
        party = create_party(body.fields())
        at = edge.clock()
        secret = await register.add(party, _actor(caller), at)
        shown = await register.show(party.client_id, at)
        headers = {"Location": f"{BASE}/parties/{party.client_id}", "ETag": preconditions.etag(shown)}
        return _json({**shown.members(), "client_secret": secret}, 201, headers)

    @add("GET", "/parties/{client_id}", AdminOperation.GET_PARTY, PartyWithSecrets)
    async def get_party(client_id: ClientIdPath, caller: Caller = calling(AdminOperation.GET_PARTY)) -> Response:
        """A party, and how long its secrets are valid. ETag: for If-Match of a change."""
        shown = await register.show(client_id, edge.clock())
        return _json(shown.members(), headers={"ETag": preconditions.etag(shown)})

    @add("PATCH", "/parties/{client_id}", AdminOperation.EDIT_PARTY, PartyShown, PartyChange)
    async def edit_party(
        request: Request,
        client_id: ClientIdPath,
        caller: Caller = calling(AdminOperation.EDIT_PARTY),
        precondition: Precondition = _IF_MATCH,
    ) -> Response:
        """Change a party's name, roles and ids, all that is given or nothing.

        With If-Match: 412 if another operator has changed the party since it was read.
        """
        fields = parse_fields((await read(request, caller, PartyChange)).fields())

        def change(party: Party) -> Party:
            return replace(party, **fields)

        shown = await register.edit(client_id, change, _actor(caller), edge.clock(), precondition)
        return _json(shown.party.members(), headers={"ETag": preconditions.etag(shown)})

    @add("POST", "/parties/{client_id}/disable", AdminOperation.DISABLE_PARTY, PartyShown)
    async def disable_party(
        client_id: ClientIdPath,
        caller: Caller = calling(AdminOperation.DISABLE_PARTY),
        precondition: Precondition = _IF_MATCH,
    ) -> Response:
        """Refuse a party's tokens and secrets from now on, within seconds in every worker. Its ids stay its own."""
        shown = await register.disable(client_id, _actor(caller), edge.clock(), precondition)
        return _json(shown.party.members())

    @add("POST", "/parties/{client_id}/enable", AdminOperation.ENABLE_PARTY, PartyShown)
    async def enable_party(
        client_id: ClientIdPath,
        caller: Caller = calling(AdminOperation.ENABLE_PARTY),
        precondition: Precondition = _IF_MATCH,
    ) -> Response:
        """Let a party call again."""
        shown = await register.enable(client_id, _actor(caller), edge.clock(), precondition)
        return _json(shown.party.members())

    @add("POST", "/parties/{client_id}/rotate-secret", AdminOperation.ROTATE_SECRET, PartyWithNewSecret, Rotation)
    async def rotate_secret(
        request: Request,
        client_id: ClientIdPath,
        caller: Caller = calling(AdminOperation.ROTATE_SECRET),
        precondition: Precondition = _IF_MATCH,
    ) -> Response:
        """Give a party a new secret; the one before stays good for a while. At most two are good at a time."""
        wanted = await read(request, caller, Rotation, optional=True)
        end = wanted.end if "end" in wanted.model_fields_set else None
        secret, shown = await register.rotate_secret(
            client_id, _actor(caller), edge.clock(), wanted.overlap, end, precondition
        )
        return _json({**shown.members(), "client_secret": secret})

    @add("GET", "/roles", AdminOperation.GET_ROLES, RoleTable)
    async def get_roles(caller: Caller = calling(AdminOperation.GET_ROLES)) -> Response:
        """The role table: what each role may do, and on which condition. Whatever is not in it is refused."""
        rows = [{"operation": operation, "role": role, "condition": words} for operation, role, words in role_table()]
        return _json({"roles": rows})

    async def read(request: Request, caller: Caller, model: type[Body], *, optional: bool = False) -> Body:
        octets = await edge.body(request.receive, request.headers)
        await edge.again(request.scope, request.headers, caller)
        return read_body(model, b"{}" if optional and not octets else octets)

    return api


def _actor(caller: Caller) -> Actor:
    return Actor(caller.party.client_id, caller.trace_id, caller.kid)


def _described(body: type[BaseModel], *, required: bool) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _json(members: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(members), status, headers, media_type="application/json")
