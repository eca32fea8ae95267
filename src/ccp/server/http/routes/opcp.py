"""OPCP 1.0, the predecessor of OPNC, under `/v1`: the same operations with other paths and shapes.

Charging station back ends in production use it. No description of it is published; the shapes are those that these
clients read. Besides names and casing, OPCP differs from OPNC in three ways:

- A vehicle gets exactly one item: some clients forward the first item, others the last, and none repeats its request
  to get more.
- Clients forward only a 200 to the vehicle, so a refusal is a 200 with the negative message
  (`opcp_no_contract_response`).
- `broadcast: true` forbids asking other pools; in OPNC it allows it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query
from pydantic import BaseModel
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope

from ccp.errors import FieldError, NotFound
from ccp.ids import EMAID
from ccp.schemas.common import PLACEHOLDER_EMAID, Boolean, EMAIDField, JSONObject, PCIDField, encode_base64
from ccp.schemas.opcp import DeliverHeaders, ProvidedSignedContractData, RootCertificateCollection, XMLContracts
from ccp.schemas.timestamps import rfc3339
from ccp.server.domain.authorization import Operation, PublicRootOperation
from ccp.server.domain.contracts import SignedContract
from ccp.server.external.pki_service import REASON_HEADER, RevocationReason
from ccp.server.http.errors import WITHOUT_404, negative_metadata
from ccp.server.http.parameters import (
    DEFAULT_NAMESPACE,
    EMAIDPath,
    NamespaceQuery,
    PCIDPath,
    RootQuery,
    SessionQuery,
)
from ccp.server.http.request_context import Handler, RequestContext, Target, target_dependency
from ccp.server.http.responses import FastJSONResponse, error_descriptions
from ccp.server.http.signed_contract_data import SignedContractDataEndpoint
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

# Path parameters of one place have one name in an OpenAPI description; the method decides which id it is.
_EMAIDId: Any = Annotated[EMAIDField, Path(alias="id", description="The contract, by its EMAID.")]
_PCIDId: Any = Annotated[PCIDField, Path(alias="id", description="The vehicle, by its PCID.")]
_ROOT_TYPES: Final = {AnchorRole.V2G: "V2G", AnchorRole.EMSP: "MO", AnchorRole.OEM: "OEM"}


class OPCPSignedContractDataEndpoint(SignedContractDataEndpoint):
    """POST and PUT /v1/ccp/signedContractData. PUT is that of OPNC."""

    def __init__(self, pool: Pool, context: RequestContext, no_contract_response: OPCPNoContractResponse) -> None:
        super().__init__(pool, context)
        self._deliver_negative = no_contract_response is OPCPNoContractResponse.DELIVER

    async def _post(self, scope: Scope, receive: Receive) -> Response:
        options, namespace, outcome = await self._deliver(scope, receive, DeliverHeaders, max_one=True)
        headers: dict[str, str] = {}
        if isinstance(outcome, NegativeResponse):
            always_exi = self._deliver_negative if options.always_exi is None else options.always_exi
            metadata, headers = negative_metadata(outcome.reason, always_exi)
            # A placeholder, because clients take an item with an empty EMAID for no response.
            emaid, response = PLACEHOLDER_EMAID, outcome.response
        else:
            contract, response = outcome[0].contract, outcome[0].response
            emaid, metadata = contract.emaid, contract.metadata or ""
        item = {"certificateInstallationRes": encode_base64(response), "emaid": emaid, "metaData": metadata}
        return FastJSONResponse(
            {"CCPResponse": {"emaidContent": [{"messageDef": item}]}, "xsdMsgDefNamespace": namespace},
            headers=headers,
        )


def router(pool: Pool, context: RequestContext, no_contract_response: OPCPNoContractResponse) -> APIRouter:
    """Return the routes of OPCP."""
    endpoint = OPCPSignedContractDataEndpoint(pool, context, no_contract_response)
    api = APIRouter(routes=[Route(f"{BASE}/signedContractData", endpoint)], tags=[TAG])

    def target_of(operation: Operation | PublicRootOperation) -> Any:
        return target_dependency(context, pool, operation)

    def add(
        method: str, path: str, operation: Operation | PublicRootOperation, model: type[BaseModel] | None = None
    ) -> Callable[[Handler], Handler]:
        statuses = [400, 401, 403, 404, 500, 503]
        if operation in (*WITHOUT_404, PublicRootOperation.GET_ROOT_CERTIFICATES):
            statuses.remove(404)
        responses = error_descriptions(statuses)
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
        pcid: _PCIDId,
        target: Target = target_of(Operation.GET_CONTRACT_DATA_BY_PCID),
        namespace: NamespaceQuery = DEFAULT_NAMESPACE,
        root: RootQuery = None,
    ) -> Response:
        """List the contracts that are stored for a vehicle, for the OEM that owns its WMI."""
        found = await target.pool.contract_data_by_pcid(target.caller, pcid, namespace)
        ranks = _ranks(found)
        matching = [contract for contract in found if root in (None, contract.root_fingerprint)]
        if not matching:
            raise NotFound("No contract for the given PCID found.")
        return FastJSONResponse(
            {"XMLContracts": [_xml_contract(contract, ranks[contract.emaid]) for contract in matching]}
        )

    @add("GET", f"{BASE}/lookupContract/{{emaid}}", Operation.GET_CONTRACT_DATA_BY_EMAID, XMLContracts)
    async def look_up_contract(
        emaid: EMAIDPath,
        target: Target = target_of(Operation.GET_CONTRACT_DATA_BY_EMAID),
        namespace: NamespaceQuery = DEFAULT_NAMESPACE,
        root: RootQuery = None,
    ) -> Response:
        """Return a contract's certificate, for the eMSP that owns it, which learns nothing of the vehicle's others."""
        found = await target.pool.contract_data_by_emaid(target.caller, emaid, namespace, root, context.clock())
        return FastJSONResponse(
            {"XMLContracts": [_xml_contract(contract, 1 if contract.is_default else 2) for contract, _ in found]}
        )

    @add(
        "GET",
        f"{BASE}/provideSignedContractData/{{emaid}}/{{pcid}}",
        Operation.GET_SIGNED_CONTRACT_DATA,
        ProvidedSignedContractData,
    )
    async def provide_signed_contract_data(
        emaid: EMAIDPath,
        pcid: PCIDPath,
        target: Target = target_of(Operation.GET_SIGNED_CONTRACT_DATA),
        namespace: NamespaceQuery = DEFAULT_NAMESPACE,
        root: RootQuery = None,
        session_id: SessionQuery = b"",
    ) -> Response:
        """Return the newest signed response of a contract, for the OEM that owns the vehicle's WMI."""
        found = await target.pool.signed_contract_data(
            target.caller,
            emaid,
            pcid,
            session_id=session_id,
            namespace=namespace,
            root=root,
            now=context.clock(),
            notify=target.for_content,
        )
        newest = found[0]
        return FastJSONResponse(
            {
                "certificateInstallationRes": encode_base64(newest.response),
                "xsdMsgDefNamespace": newest.contract.namespace,
            }
        )

    @add("DELETE", f"{BASE}/signedContractData/{{id}}", Operation.WITHDRAW)
    async def delete_signed_contract_data(
        emaid: _EMAIDId,
        target: Target = target_of(Operation.WITHDRAW),
        skip_revocation: Annotated[Boolean, Header(alias="X-Skip-Revocation")] = False,
        reason: Annotated[str | None, Header(alias=REASON_HEADER)] = None,
    ) -> Response:
        """Remove a contract with all its variants, for the eMSP that owns it."""
        why = RevocationReason.parse(reason)
        await target.pool.withdraw(target.caller, emaid, context.clock(), revoke=not skip_revocation, reason=why)
        return Response(status_code=200)

    @add("POST", f"{BASE}/signedContractData/{{pcid}}/{{emaid}}/default", Operation.SET_DEFAULT)
    async def set_default(
        pcid: PCIDPath, emaid: EMAIDPath, target: Target = target_of(Operation.SET_DEFAULT)
    ) -> Response:
        """Make a contract the vehicle's default, for the OEM that owns its WMI. The PCID comes first in the path."""
        await target.pool.set_default(target.caller, emaid, pcid, context.clock())
        return Response(status_code=200)

    @add("GET", ROOTS, PublicRootOperation.GET_ROOT_CERTIFICATES, RootCertificateCollection)
    async def root_certificates(
        target: Target = target_of(PublicRootOperation.GET_ROOT_CERTIFICATES),
        root_type: Annotated[str | None, Query(alias="rootType", description="V2G, MO or OEM.")] = None,
    ) -> Response:
        """List the roots that the pool trusts, for every party, without expired ones."""
        if target.pool is not pool:
            raise NotFound("A request for roots is not passed on.")
        wanted = _roles(root_type)
        now = context.clock()
        items = [
            _root(anchor.certificate, role)
            for anchor in pool.anchors.anchors
            for role in AnchorRole
            if role in anchor.roles and role in wanted and now.replace(microsecond=0) <= anchor.certificate.not_after
        ]
        return FastJSONResponse({"RootCertificateCollection": {"rootCertificates": items}})

    return api


def _ranks(contracts: Iterable[SignedContract | RemoteContract]) -> dict[EMAID, int]:
    """Return the priority of each contract of a vehicle: 1 for the default only, then from 2 on, oldest first."""
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
    """Return the roles of the roots that the query selects. Raises FieldError."""
    if root_type is None:
        return frozenset(AnchorRole)
    known = {**{name: frozenset({role}) for role, name in _ROOT_TYPES.items()}, "EMSP": frozenset({AnchorRole.EMSP})}
    # PE: roots of private environments, of which the pool has none.
    found = {**known, "PE": frozenset[AnchorRole]()}.get(root_type.upper())
    if found is None:
        raise FieldError(f"rootType : must be one of {', '.join(_ROOT_TYPES.values())}")
    return found


def _root(certificate: Certificate, role: AnchorRole) -> JSONObject:
    """Source: the schema of the Root Certificate Pool in OPNC 1.0, which is the successor of this one."""
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
