"""The seven operations under `/opnc/v1/ccp`.

POST and PUT carry the load, so they are bare ASGI endpoints in front of the framework's machinery for parameters; the
other five are written the usual way. Both kinds answer errors through the one table of `ccp.server.http.errors`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import orjson
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ccp.errors import FieldError, NotAuthenticated, NotAuthorised, NotFound
from ccp.ids import Namespace
from ccp.schemas.common import (
    PLACEHOLDER_EMAID,
    PLACEHOLDER_PCID,
    Boolean,
    EMAIDField,
    Error,
    FingerprintField,
    JSONObject,
    NamespaceField,
    PCIDField,
    Routing,
    RoutingHeaders,
    SessionIDField,
    encode_base64,
)
from ccp.schemas.field_errors import field_error
from ccp.schemas.json_bodies import read_body
from ccp.schemas.opnc import (
    ContractDataCollection,
    DeliverHeaders,
    GetSignedContractDataReq,
    PublishQuery,
    SignedContractData,
    SignedContractDataCollection,
    distinguished_name,
)
from ccp.schemas.timestamps import rfc3339
from ccp.server.access.authorization_server import AuthorizationServer
from ccp.server.access.rate_limits import RateLimits
from ccp.server.domain.authorization import AnyOperation, Operation, authorise_role, authorise_sender
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.parties import Caller, PartyRole
from ccp.server.external.pki_service import REASON_HEADER, RevocationReason
from ccp.server.http import body_headers, paths, query_parameters
from ccp.server.http.admission import IDENTIFIED, UNVERIFIED, WAITED
from ccp.server.http.client_certificate import ClientCertificates
from ccp.server.http.errors import WITHOUT_404, negative_metadata
from ccp.server.http.middleware.client_address import client_of
from ccp.server.http.middleware.tracing import trace_of
from ccp.server.pool.delivery import DELIVERY_TIMEOUT, DeliveredContract, NegativeResponse
from ccp.server.pool.operations import Pool
from ccp.server.pool.peers import Peers
from ccp.server.pool.remote import RemoteContract, RemotePool

BASE: Final = "/opnc/v1/ccp"
Clock: TypeAlias = Callable[[], datetime]
Handler = TypeVar("Handler", bound=Callable[..., Any])

_IDENTITY: Final = "ccp.identity"


class Edge:
    """What every operation does first: who calls, for whom, and when."""

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

    async def caller(self, scope: Scope, headers: Headers, operation: AnyOperation) -> Caller:
        """The caller of a request whose query parameters are in order.

        Raises NotAuthenticated, NotAuthorised for a role that the operation is not for, TooManyRequests, FieldError.
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
            _identified(scope, authorization, None)
            raise
        party = identity.party
        if unverified or UNVERIFIED in scope:
            _identified(scope, authorization, party.client_id)
        trace.caller, trace.authenticated = party.client_id, True
        self.limits.check_party(party.client_id)
        try:
            authorise_role(party, operation)
        except NotAuthorised:
            if operation is Operation.DELIVER:  # Vehicles are served before all others: not a place for its requests.
                _identified(scope, authorization, None)
            raise
        query_parameters.check_routed(scope)
        scope[_IDENTITY] = identity, operation
        return Caller(party, trace.id, client.address, identity.kid)

    async def again(self, scope: Scope, headers: Headers, caller: Caller) -> Caller:
        """The caller as it is after its body was read, which can take as long as `read_timeout`.

        Meanwhile its party may have been disabled or changed, its token may have expired or the key of it have been
        revoked. Raises as `caller` does.
        """
        before, operation = scope[_IDENTITY]
        if self._authority.is_still_valid(before, self.clock()):
            return caller
        identity = await self._authority.identify(
            _authorization(headers), self.clock(), lambda: self.certificates.thumbprint(scope)
        )
        authorise_role(identity.party, operation)
        return replace(caller, party=identity.party, kid=identity.kid)

    def route(self, caller: Caller, routing: Routing) -> str | None:
        """Hold the OPNC headers against the caller. Returns the pool that the request is for, None for this one.

        Raises NotAuthorised; NotFound for a pool that is unknown here, and for what came from a pool already.
        """
        authorise_sender(caller.party, routing.from_type, routing.from_id)
        to = self._peers.route(routing.to_id) if routing.to_type == "ccp" and routing.to_id is not None else None
        if to is not None and (routing.hop is not None or PartyRole.CCP in caller.party.roles):
            raise NotFound("A request of another pool is not passed on.")
        return to

    def there(self, pool: Pool, caller: Caller, routing: Routing) -> Pool | RemotePool:
        """The pool that a request is for, to be asked in place of this one. Raises as `route` does."""
        to = self.route(caller, routing)
        return pool if to is None else RemotePool(self._peers, to, (routing.from_type, routing.from_id))

    async def body(self, receive: Receive, headers: Headers, most: int | None = None) -> bytes:
        """The whole body, within the limit. most: octets, where it has to be less than any body may be."""
        body_headers.check_content_encoding(headers)
        most = self._max_body if most is None else min(most, self._max_body)
        length = headers.get("content-length")
        if length is not None and length.isascii() and length.isdigit() and int(length) > most:
            raise HTTPException(413, f"The body is larger than {most} octets.")
        octets = bytearray()
        while True:
            message = await receive()
            octets += message.get("body", b"")
            if len(octets) > most:
                raise HTTPException(413, f"The body is larger than {most} octets.")
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return bytes(octets)


TWICE: Final = "The header Authorization must be there once."


def _authorization(headers: Headers) -> str | None:
    """Raises FieldError where there are two: a proxy and the pool could each believe another one."""
    found = [value for name, value in headers.raw if name == b"authorization"]
    if len(found) > 1:
        raise FieldError(TWICE)
    return found[0].decode("latin-1") if found else None


def _identified(scope: Scope, authorization: str | None, client_id: str | None) -> None:
    """Let the admission know whose a header is; None: it is no good."""
    known = scope.get(IDENTIFIED)
    if known is not None and authorization is not None:
        known(authorization.encode("latin-1"), client_id)


class SignedContractDataEndpoint:
    """POST and PUT /signedcontractdata."""

    def __init__(self, pool: Pool, edge: Edge) -> None:
        self._pool = pool
        self._edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            response = await self._deliver(scope, receive)
        elif scope["method"] == "PUT":
            response = await self._publish(scope, receive)
        else:
            raise HTTPException(405, headers={"Allow": "POST, PUT"})
        await response(scope, receive, send)

    async def _deliver(self, scope: Scope, receive: Receive) -> Response:
        options, namespace, outcome = await self._delivered(scope, receive, DeliverHeaders)
        if not isinstance(outcome, NegativeResponse):
            return _JSON({"signedContractDataCollection": [_signed_contract(answer) for answer in outcome]})
        told, again = negative_metadata(outcome.reason, options.always_exi)
        item = {
            "certificateInstallationRes": encode_base64(outcome.response),
            "emaid": PLACEHOLDER_EMAID,
            "pcid": outcome.pcid or PLACEHOLDER_PCID,
            "xsdMsgDefNamespace": namespace,
            "metaData": told,
        }
        return _JSON({"signedContractDataCollection": [item]}, headers=again)

    async def _delivered(
        self, scope: Scope, receive: Receive, model: type[RoutingHeaders], *, max_one: bool = False
    ) -> tuple[Any, Namespace, list[DeliveredContract] | NegativeResponse]:
        """Read a vehicle's request and ask the pool: the headers as `model` has them, the edition, and what it says.

        The time limit runs from the request's arrival; the time in which the caller sends its body is the caller's.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DELIVERY_TIMEOUT
        headers = Headers(scope=scope)
        caller = await self._edge.caller(scope, headers, Operation.DELIVER)
        options = _read_headers(model, headers)
        to = self._edge.route(caller, options)
        began = loop.time()
        octets = await self._edge.body(receive, headers)
        # The body is followed by a wait for a turn, as the head may have been: that is the pool's time.
        deadline += loop.time() - began - scope.get(WAITED, 0.0)
        caller = await self._edge.again(scope, headers, caller)
        body = read_body(GetSignedContractDataReq, octets)
        outcome = await self._pool.deliver(
            caller,
            body.xsdMsgDefNamespace,
            body.certificateInstallationReq,
            broadcast=options.may_ask_peers,
            now=self._edge.clock(),
            max_one=max_one,
            target_pool=to,
            deadline=deadline,
        )
        trace = trace_of(scope)
        if isinstance(outcome, NegativeResponse):
            trace.pcid, trace.failure = outcome.pcid, outcome.reason
        else:
            trace.emaid, trace.pcid = outcome[0].contract.emaid, outcome[0].contract.pcid
        return options, body.xsdMsgDefNamespace, outcome

    async def _publish(self, scope: Scope, receive: Receive) -> Response:
        began = self._edge.clock()
        headers = Headers(scope=scope)
        caller = await self._edge.caller(scope, headers, Operation.PUBLISH)
        dry_run = query_parameters.read(PublishQuery, scope["query_string"], changes=True).dry_run
        there = self._edge.there(self._pool, caller, _read_headers(RoutingHeaders, headers))
        octets = await self._edge.body(receive, headers)
        caller = await self._edge.again(scope, headers, caller)
        body = read_body(SignedContractData, octets)
        trace = trace_of(scope)
        trace.emaid, trace.pcid = body.emaid, body.pcid
        at = self._edge.clock()
        said: dict[str, Any] = {
            "emaid": body.emaid,
            "pcid": body.pcid,
            "namespace": body.xsdMsgDefNamespace,
            "message": body.certificateInstallationRes,
            "root": body.cpsV2GRootCertificateFingerprint,
            "now": at,
            "began": began,
        }
        if dry_run:
            checks, warnings = await there.dry_run(caller, **said)
            return _JSON(checks.to_json("CertificateInstallationRes", at, warnings))
        await there.publish(caller, metadata=body.metaData, **said)
        return Response(status_code=201)


def _read_headers(model: type[BaseModel], headers: Headers) -> Any:
    wanted, default = _wanted(model)
    said = {wanted[name]: value.decode("latin-1") for name, value in reversed(headers.raw) if name in wanted}
    if not said:
        return default
    try:
        return model.model_validate(said)
    except ValidationError as exc:
        raise field_error(exc.errors()) from exc


@cache
def _wanted(model: type[BaseModel]) -> tuple[dict[bytes, str], Any]:
    """The headers that a model reads, by their name on the wire, and what it is without any of them."""
    names = [field.alias or name for name, field in model.model_fields.items()]
    return {name.lower().encode(): name for name in names}, model.model_validate({})


EmaidPath: TypeAlias = Annotated[EMAIDField, Path(description="The contract.")]
PcidPath: TypeAlias = Annotated[PCIDField, Path(description="The vehicle.")]
NamespaceQuery: TypeAlias = Annotated[
    NamespaceField, Query(alias="xsdMsgDefNamespace", description="The version of ISO 15118.")
]
RootQuery: TypeAlias = Annotated[
    FingerprintField | None,
    Query(alias="cpsV2GRootCertificateFingerprint", description="SHA-256 of the V2G root that it is signed under."),
]
SessionQuery: TypeAlias = Annotated[
    SessionIDField,
    Query(alias="sessionID", description="Hexadecimal, at most eight octets; put into the message."),
]
_NAMESPACE: Final = Namespace.ISO2


@dataclass(frozen=True, slots=True)
class Asked:
    """Who calls, and the pool that the request is for. for_content: false for HEAD, which hands out nothing."""

    caller: Caller
    pool: Pool | RemotePool
    for_content: bool = True


def router(pool: Pool, edge: Edge) -> APIRouter:
    """The five operations that are not the load, and the two that are."""
    endpoint = SignedContractDataEndpoint(pool, edge)
    api = APIRouter(routes=[Route(f"{BASE}/signedcontractdata", endpoint)])

    def calling(operation: Operation) -> Any:
        async def authenticated(request: Request) -> Caller:
            return await edge.caller(request.scope, request.headers, operation)

        async def asked(
            request: Request, routing: Annotated[RoutingHeaders, Header()], known: Caller = Depends(authenticated)
        ) -> Asked:
            return Asked(known, edge.there(pool, known, routing), not paths.is_head(request.scope))

        return Depends(asked)

    def add(
        method: str, path: str, operation: Operation, model: type[BaseModel] | None = None
    ) -> Callable[[Handler], Handler]:
        responses: dict[int | str, dict[str, Any]] = {
            status: {"model": Error}
            for status in (400, 401, 403, 404, 500, 503)
            if status != 404 or operation not in WITHOUT_404
        }
        if model is not None:
            responses[200] = {"model": model}
        return api.api_route(
            BASE + path,
            methods=[method],
            name=operation.value,
            operation_id=operation.value,
            summary=operation.value,
            response_class=Response,
            responses=responses,
        )

    @add("GET", "/contractData/emaid/{emaid}", Operation.GET_CONTRACT_DATA_BY_EMAID, ContractDataCollection)
    async def get_contract_data_by_emaid(
        emaid: EmaidPath,
        asked: Asked = calling(Operation.GET_CONTRACT_DATA_BY_EMAID),
        namespace: NamespaceQuery = _NAMESPACE,
        root: RootQuery = None,
    ) -> Response:
        """A contract's certificate and state, for the eMSP that owns it."""
        found = await asked.pool.contract_data_by_emaid(asked.caller, emaid, namespace, root, edge.clock())
        return _JSON({"contractDataCollection": [_contract_data(contract, problem) for contract, problem in found]})

    @add("GET", "/contractData/pcid/{pcid}", Operation.GET_CONTRACT_DATA_BY_PCID, ContractDataCollection)
    async def get_contract_data_by_pcid(
        pcid: PcidPath,
        asked: Asked = calling(Operation.GET_CONTRACT_DATA_BY_PCID),
        namespace: NamespaceQuery = _NAMESPACE,
    ) -> Response:
        """The contracts that wait for a vehicle, for the OEM that owns its WMI."""
        found = await asked.pool.contract_data_by_pcid(asked.caller, pcid, namespace)
        return _JSON({"contractDataCollection": [_contract_data(contract) for contract in found]})

    @add("DELETE", "/signedcontractdata/{emaid}", Operation.WITHDRAW)
    async def delete_signed_contract_data_by_emaid(
        emaid: EmaidPath,
        asked: Asked = calling(Operation.WITHDRAW),
        skip_revocation: Annotated[Boolean, Header(alias="X-Skip-Revocation")] = False,
        reason: Annotated[str | None, Header(alias=REASON_HEADER)] = None,
    ) -> Response:
        """Remove a contract with all its variants, for the eMSP that owns it."""
        why = RevocationReason.parse(reason)
        await asked.pool.withdraw(asked.caller, emaid, edge.clock(), revoke=not skip_revocation, reason=why)
        return Response(status_code=200)

    @add(
        "GET",
        "/signedcontractdata/{emaid}/{pcid}",
        Operation.GET_SIGNED_CONTRACT_DATA,
        SignedContractDataCollection,
    )
    async def get_signed_contract_data_by_emaid_and_pcid(
        emaid: EmaidPath,
        pcid: PcidPath,
        asked: Asked = calling(Operation.GET_SIGNED_CONTRACT_DATA),
        namespace: NamespaceQuery = _NAMESPACE,
        root: RootQuery = None,
        session_id: SessionQuery = b"",
    ) -> Response:
        """The signed responses of a contract, for the OEM that owns the vehicle's WMI."""
        found = await asked.pool.signed_contract_data(
            asked.caller,
            emaid,
            pcid,
            session_id=session_id,
            namespace=namespace,
            root=root,
            now=edge.clock(),
            notify=asked.for_content,
        )
        return _JSON({"signedContractDataCollection": [_signed_contract(answer) for answer in found]})

    @add("POST", "/signedcontractdata/{emaid}/{pcid}/setdefault", Operation.SET_DEFAULT)
    async def set_signed_contract_data_as_default(
        emaid: EmaidPath, pcid: PcidPath, asked: Asked = calling(Operation.SET_DEFAULT)
    ) -> Response:
        """Make a contract the vehicle's default, for the OEM that owns its WMI."""
        await asked.pool.set_default(asked.caller, emaid, pcid, edge.clock())
        return Response(status_code=200)

    return api


class _JSON(Response):
    """An answer whose head is always the same but for its length, so that nothing has to be worked out for it."""

    def __init__(self, members: JSONObject, headers: Mapping[str, str] | None = None) -> None:
        self.body = orjson.dumps(members)
        self.status_code = 200
        self.background = None
        self.raw_headers = [
            (b"content-length", str(len(self.body)).encode()),
            (b"content-type", b"application/json"),
        ]
        if headers:
            self.raw_headers += [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def _signed_contract(answer: DeliveredContract) -> JSONObject:
    contract = answer.contract
    members = {
        "certificateInstallationRes": encode_base64(answer.response),
        "emaid": contract.emaid,
        "pcid": contract.pcid,
        "xsdMsgDefNamespace": contract.namespace,
        "cpsV2GRootCertificateFingerprint": contract.root_fingerprint,
    }
    if contract.metadata is not None:
        members["metaData"] = contract.metadata
    if name := distinguished_name(contract.root_dn):
        members["cpsRootDistinguishedName"] = name
    return members


def _contract_data(contract: SignedContract | RemoteContract, problem: str | None = None) -> JSONObject:
    members: JSONObject = {
        "pcid": contract.pcid,
        "emaid": contract.emaid,
        "xsdMsgDefNamespace": contract.namespace,
        "contractCertificate": encode_base64(contract.certificate),
        "defaultContract": contract.is_default,
        "certValidFrom": rfc3339(contract.valid_from),
        "certValidTo": rfc3339(contract.valid_to),
    }
    if contract.root_fingerprint is not None:
        members["cpsV2GRootCertificateFingerprint"] = contract.root_fingerprint
    if name := distinguished_name(contract.root_dn):
        members["cpsV2GRootDistinguishedName"] = name
    if problem is not None:
        members["undeliverable"] = problem
    return members
