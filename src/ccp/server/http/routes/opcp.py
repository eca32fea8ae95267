"""OPCP 1.0, the predecessor of OPNC, under `/v1`: other paths and shapes for the same operations.

Back ends of charging stations that are in production speak it. There is no published description to hold it against;
the shapes are those that these clients read. What differs from OPNC, besides names and casing:

- A vehicle gets exactly one item: some clients hand on the first, some the last, and none repeats its request for more.
- Only a 200 reaches the vehicle, so a refusal is 200 with the negative message (`opcp_no_contract_response`).
- `broadcast: true` forbids to ask other pools; OPNC's allows it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import BaseModel
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope

from ccp.errors import FieldError, NotFound
from ccp.ids import EMAID, Namespace
from ccp.schemas.common import (
    PLACEHOLDER_EMAID,
    Boolean,
    EMAIDField,
    Error,
    JSONObject,
    PCIDField,
    RoutingHeaders,
    encode_base64,
)
from ccp.schemas.opcp import (
    DeliverHeaders,
    OPCPSignedContractData,
    ProvidedSignedContractData,
    RootCertificateCollection,
    XMLContracts,
)
from ccp.schemas.opnc import PublishQuery
from ccp.schemas.timestamps import rfc3339
from ccp.server.domain.authorization import Operation, PublicRootOperation
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.parties import Caller
from ccp.server.external.pki_service import REASON_HEADER, RevocationReason
from ccp.server.http import paths
from ccp.server.http.errors import WITHOUT_404, negative_metadata
from ccp.server.http.routes.opnc import (
    _JSON,
    Asked,
    Edge,
    EmaidPath,
    Handler,
    NamespaceQuery,
    PcidPath,
    RootQuery,
    SessionQuery,
    SignedContractDataEndpoint,
)
from ccp.server.pool.delivery import NegativeResponse
from ccp.server.pool.operations import Pool
from ccp.server.pool.remote import RemoteContract
from ccp.server.settings import OPCPNoContractResponse
from ccp.x509.certificates import Certificate
from ccp.x509.names import parse_dn
from ccp.x509.profiles import AnchorRole

BASE: Final = "/v1/ccp"
ROOTS: Final = "/v1/root/rootCerts"
TAG: Final = "OPCP"

# Path parameters of one place, whose ids are told apart by the method, have one name in a description.
_EmaidId: Any = Annotated[EMAIDField, Path(alias="id", description="The contract, by its EMAID.")]
_PcidId: Any = Annotated[PCIDField, Path(alias="id", description="The vehicle, by its PCID.")]
_NAMESPACE: Final = Namespace.ISO2
_ROOT_TYPES: Final = {AnchorRole.V2G: "V2G", AnchorRole.EMSP: "MO", AnchorRole.OEM: "OEM"}


class OPCPSignedContractDataEndpoint(SignedContractDataEndpoint):
    """POST and PUT /v1/ccp/signedContractData. PUT is that of OPNC."""

    def __init__(self, pool: Pool, edge: Edge, negative: OPCPNoContractResponse) -> None:
        super().__init__(pool, edge)
        self._negative = negative

    async def _deliver(self, scope: Scope, receive: Receive) -> Response:
        options, namespace, outcome = await self._delivered(scope, receive, DeliverHeaders, max_one=True)
        if isinstance(outcome, NegativeResponse):
            always = (
                self._negative is OPCPNoContractResponse.DELIVER if options.always_exi is None else options.always_exi
            )
            told, again = negative_metadata(outcome.reason, always)
            # Not empty, though it stands for nothing: clients take an item without an EMAID for no answer.
            emaid, response = PLACEHOLDER_EMAID, outcome.response
        else:
            contract, response = outcome[0].contract, outcome[0].response
            emaid, told, again = contract.emaid, contract.metadata or "", {}
        item = {"certificateInstallationRes": encode_base64(response), "emaid": emaid, "metaData": told}
        return _JSON(
            {"CCPResponse": {"emaidContent": [{"messageDef": item}]}, "xsdMsgDefNamespace": namespace},
            headers=again,
        )


def router(pool: Pool, edge: Edge, negative: OPCPNoContractResponse) -> APIRouter:
    api = APIRouter(
        routes=[Route(f"{BASE}/signedContractData", OPCPSignedContractDataEndpoint(pool, edge, negative))], tags=[TAG]
    )

    def calling(operation: Operation | PublicRootOperation) -> Any:
        # As every operation of OPNC: nobody is told what is wrong with a request before it is known whose it is.
        async def authenticated(request: Request) -> Caller:
            return await edge.caller(request.scope, request.headers, operation)

        async def asked(
            request: Request, routing: Annotated[RoutingHeaders, Header()], known: Caller = Depends(authenticated)
        ) -> Asked:
            return Asked(known, edge.there(pool, known, routing), not paths.is_head(request.scope))

        return Depends(asked)

    def add(
        method: str, path: str, operation: Operation | PublicRootOperation, model: type[BaseModel] | None = None
    ) -> Callable[[Handler], Handler]:
        responses: dict[int | str, dict[str, Any]] = {
            status: {"model": Error}
            for status in (400, 401, 403, 404, 500, 503)
            if status != 404 or operation not in (*WITHOUT_404, PublicRootOperation.GET_ROOT_CERTIFICATES)
        }
        if model is not None:
            responses[200] = {"model": model}
        return api.api_route(
            path,
            methods=[method],
            name=f"OPCP {operation.value}",
            operation_id=f"{TAG}{operation.value}",
            summary=operation.value,
            response_class=Response,
            responses=responses,
        )

    @add("GET", f"{BASE}/signedContractData/{{id}}", Operation.GET_CONTRACT_DATA_BY_PCID, XMLContracts)
    async def contracts_of_vehicle(
        pcid: _PcidId,
        asked: Asked = calling(Operation.GET_CONTRACT_DATA_BY_PCID),
        namespace: NamespaceQuery = _NAMESPACE,
        root: RootQuery = None,
    ) -> Response:
        """The contracts that wait for a vehicle, for the OEM that owns its WMI."""
        found = await asked.pool.contract_data_by_pcid(asked.caller, pcid, namespace)
        ranks = _ranks(found)
        named = [contract for contract in found if root in (None, contract.root_fingerprint)]
        if not named:
            raise NotFound("No contract for the given PCID found.")
        return _JSON({"XMLContracts": [_xml_contract(contract, ranks[contract.emaid]) for contract in named]})

    @add("GET", f"{BASE}/lookupContract/{{emaid}}", Operation.GET_CONTRACT_DATA_BY_EMAID, XMLContracts)
    async def look_up_contract(
        emaid: EmaidPath,
        asked: Asked = calling(Operation.GET_CONTRACT_DATA_BY_EMAID),
        namespace: NamespaceQuery = _NAMESPACE,
        root: RootQuery = None,
    ) -> Response:
        """A contract's certificate, for the eMSP that owns it. Of the vehicle's other contracts it learns nothing."""
        found = await asked.pool.contract_data_by_emaid(asked.caller, emaid, namespace, root, edge.clock())
        return _JSON(
            {"XMLContracts": [_xml_contract(contract, 1 if contract.is_default else 2) for contract, _ in found]}
        )

    @add(
        "GET",
        f"{BASE}/provideSignedContractData/{{emaid}}/{{pcid}}",
        Operation.GET_SIGNED_CONTRACT_DATA,
        ProvidedSignedContractData,
    )
    async def provide_signed_contract_data(
        emaid: EmaidPath,
        pcid: PcidPath,
        asked: Asked = calling(Operation.GET_SIGNED_CONTRACT_DATA),
        namespace: NamespaceQuery = _NAMESPACE,
        root: RootQuery = None,
        session_id: SessionQuery = b"",
    ) -> Response:
        """The newest signed response of a contract, for the OEM that owns the vehicle's WMI."""
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
        newest = found[0]
        return _JSON(
            {
                "certificateInstallationRes": encode_base64(newest.response),
                "xsdMsgDefNamespace": newest.contract.namespace,
            }
        )

    @add("DELETE", f"{BASE}/signedContractData/{{id}}", Operation.WITHDRAW)
    async def delete_signed_contract_data(
        emaid: _EmaidId,
        asked: Asked = calling(Operation.WITHDRAW),
        skip_revocation: Annotated[Boolean, Header(alias="X-Skip-Revocation")] = False,
        reason: Annotated[str | None, Header(alias=REASON_HEADER)] = None,
    ) -> Response:
        """Remove a contract with all its variants, for the eMSP that owns it."""
        why = RevocationReason.parse(reason)
        await asked.pool.withdraw(asked.caller, emaid, edge.clock(), revoke=not skip_revocation, reason=why)
        return Response(status_code=200)

    @add("POST", f"{BASE}/signedContractData/{{pcid}}/{{emaid}}/default", Operation.SET_DEFAULT)
    async def set_default(pcid: PcidPath, emaid: EmaidPath, asked: Asked = calling(Operation.SET_DEFAULT)) -> Response:
        """Make a contract the vehicle's default, for the OEM that owns its WMI. The vehicle comes first in the path."""
        await asked.pool.set_default(asked.caller, emaid, pcid, edge.clock())
        return Response(status_code=200)

    @add("GET", ROOTS, PublicRootOperation.GET_ROOT_CERTIFICATES, RootCertificateCollection)
    async def root_certificates(
        asked: Asked = calling(PublicRootOperation.GET_ROOT_CERTIFICATES),
        root_type: Annotated[str | None, Query(alias="rootType", description="V2G, MO or OEM.")] = None,
    ) -> Response:
        """The roots that the pool trusts, for every party; those past their validity are left out."""
        if asked.pool is not pool:
            raise NotFound("A request for roots is not passed on.")
        wanted = _roles(root_type)
        at = edge.clock()
        items = [
            _root(anchor.certificate, role)
            for anchor in pool.anchors.anchors
            for role in AnchorRole
            if role in anchor.roles and role in wanted and at.replace(microsecond=0) <= anchor.certificate.not_after
        ]
        return _JSON({"RootCertificateCollection": {"rootCertificates": items}})

    return api


def describe(described: dict[str, Any], operation: Callable[..., dict[str, Any]]) -> None:
    """Add the two operations that stand outside of the framework's parameter machinery to a description.

    operation: makes one out of its kind, the names of its body's and its answer's schema, its headers and its query.
    """
    schema = OPCPSignedContractData.model_json_schema(ref_template="#/components/schemas/{model}")
    described["components"]["schemas"].update(schema.pop("$defs", {}))
    described["components"]["schemas"][OPCPSignedContractData.__name__] = schema
    item = {
        "post": operation(
            Operation.DELIVER, "GetSignedContractDataReq", "200", OPCPSignedContractData.__name__, DeliverHeaders
        ),
        "put": operation(Operation.PUBLISH, "SignedContractData", "201", None, RoutingHeaders, PublishQuery),
    }
    for each in item.values():
        each.update(operationId=f"{TAG}{each['operationId']}", tags=[TAG])
    described["paths"][f"{BASE}/signedContractData"] = item


def _ranks(contracts: Iterable[SignedContract | RemoteContract]) -> dict[EMAID, int]:
    """The priority of a vehicle's contracts: 1 for the default and no other, then from 2 on, the oldest first."""
    rank: dict[EMAID, int] = {}
    for contract in sorted(contracts, key=lambda contract: (contract.created_at, contract.emaid)):
        if contract.emaid not in rank:
            others = sum(number > 1 for number in rank.values())
            rank[contract.emaid] = 1 if contract.is_default else 2 + others
    return rank


def _xml_contract(contract: SignedContract | RemoteContract, priority: int) -> JSONObject:
    return {
        "pcid": contract.pcid,
        "emaid": contract.emaid,
        "xsdMsgDefNamespace": contract.namespace,
        "contractCertificate": encode_base64(contract.certificate),
        "priority": priority,
        "certValidFrom": rfc3339(contract.valid_from),
        "certValidTo": rfc3339(contract.valid_to),
    }


def _roles(root_type: str | None) -> frozenset[AnchorRole]:
    """Whose roots are asked for. Raises FieldError."""
    if root_type is None:
        return frozenset(AnchorRole)
    known = {**{name: frozenset({role}) for role, name in _ROOT_TYPES.items()}, "EMSP": frozenset({AnchorRole.EMSP})}
    # Roots of private environments are a kind of their own, of which the pool has none.
    found = {**known, "PE": frozenset[AnchorRole]()}.get(root_type.upper())
    if found is None:
        raise FieldError(f"rootType : must be one of {', '.join(_ROOT_TYPES.values())}")
    return found


def _root(certificate: Certificate, role: AnchorRole) -> JSONObject:
    """Source: the Root Certificate Pool's schema in OPNC 1.0, whose older sibling this is."""
    root_type = _ROOT_TYPES[role]
    identifier = certificate.authority_key_identifier or certificate.key_identifier or b""
    return {
        "rootCertificateId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"sha256:{certificate.fingerprint}:{root_type}")),
        "distinguishedName": certificate.subject_dn,
        "caCertificate": encode_base64(certificate.der),
        "commonName": certificate.subject_cn,
        "rootAuthorityKeyIdentifier": encode_base64(identifier),
        "rootIssuerSerialNumber": f"{certificate.serial_number:x}",
        "validFrom": rfc3339(certificate.not_before),
        "validTo": rfc3339(certificate.not_after),
        "organizationName": dict(parse_dn(certificate.subject_dn)).get("O", ""),
        "rootType": root_type,
        "fingerprint": certificate.fingerprint,
    }
