"""OPCP 1.0, the predecessor of OPNC, under `/v1`: the same operations with other paths and shapes.

Charging station back ends in production use it. The shapes are those of its published description and those that these
clients read; docs/spec-divergences.md says where they differ. Besides names and casing, OPCP differs from OPNC in these
ways:

- A vehicle gets exactly one item: some clients forward the first item, others the last, and none repeats its request
  to get more.
- Clients forward only a 200 to the vehicle, so a refusal is a 200 with the negative message; the published 404, which
  carries the message too, is a setting (`opcp_no_contract_response`).
- Some clients state ISO 15118-2 for every vehicle, so the message decides (`opcp_detect_edition`).
- `broadcast: true` forbids asking other pools; in OPNC it allows it.
- A V2G root is named by its fingerprint or by its id in the list of roots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final, TypeAlias
from uuid import UUID

from fastapi import APIRouter, Header, Path, Query
from pydantic import BaseModel
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope

from ccp.errors import FieldError, NotFound
from ccp.errors.codes import ErrorCode
from ccp.ids import EMAID, Fingerprint
from ccp.schemas.common import PLACEHOLDER_EMAID, Boolean, EMAIDField, JSONObject, PCIDField, encode_base64
from ccp.schemas.error_messages import error_messages
from ccp.schemas.opcp import (
    TAG,
    DeliverHeaders,
    OPCPSignedContractDataRequest,
    ProvidedSignedContractData,
    RootField,
    XMLContracts,
    distinguished_name,
)
from ccp.schemas.opnc import SignedContractData
from ccp.schemas.timestamps import rfc3339
from ccp.server.domain.authorization import Operation
from ccp.server.domain.contracts import SignedContract
from ccp.server.external.pki_service import REASON_HEADER, RevocationReason
from ccp.server.http.errors import WITHOUT_404, negative_metadata
from ccp.server.http.middleware.tracing import trace_of
from ccp.server.http.parameters import (
    DEFAULT_NAMESPACE,
    EMAIDPath,
    NamespaceQuery,
    PCIDPath,
    SessionQuery,
)
from ccp.server.http.request_context import Handler, RequestContext, Target, target_dependency
from ccp.server.http.responses import FastJSONResponse, error_descriptions, json_response
from ccp.server.http.signed_contract_data import SignedContractDataEndpoint
from ccp.server.pool.delivery import NegativeResponse
from ccp.server.pool.operations import Pool
from ccp.server.pool.remote import RemoteContract
from ccp.server.settings import OPCPNoContractResponse, Settings
from ccp.server.trust.root_catalogue import CurrentRootCatalogue

BASE: Final = "/v1/ccp"

# Path parameters of one place have one name in an OpenAPI description; the method decides which id it is.
_EMAIDId: Any = Annotated[EMAIDField, Path(alias="id", description="The contract, by its EMAID.")]
_PCIDId: Any = Annotated[PCIDField, Path(alias="id", description="The vehicle, by its PCID.")]
_RootQuery: TypeAlias = Annotated[
    RootField | None,
    Query(
        alias="cpsV2GRootCertificateFingerprint",
        description="The V2G root of the CPS chain: SHA-256, or the id from the list of roots.",
    ),
]


class RootReferences:
    """Resolves what names a V2G root in OPCP: its fingerprint, or its id in the list of roots."""

    def __init__(self, pool: Pool, catalogue: CurrentRootCatalogue) -> None:
        self._pool = pool
        self._catalogue = catalogue

    def fingerprint(self, reference: Fingerprint | UUID | None) -> Fingerprint | None:
        """Return the fingerprint. Raises NotFound for an id that no trusted root has."""
        if not isinstance(reference, UUID):
            return reference
        root = self._catalogue.of(self._pool.anchors).by_id(reference)
        if root is None:
            raise NotFound(
                "No root of this pool has the id in cpsV2GRootCertificateFingerprint.", code=ErrorCode.ROOT_NOT_FOUND
            )
        return Fingerprint(root.certificate.fingerprint)


class OPCPSignedContractDataEndpoint(SignedContractDataEndpoint):
    """POST and PUT /v1/ccp/signedContractData."""

    publication_model = OPCPSignedContractDataRequest

    def __init__(self, pool: Pool, context: RequestContext, settings: Settings, roots: RootReferences) -> None:
        super().__init__(pool, context)
        self._deliver_negative = settings.opcp_no_contract_response is OPCPNoContractResponse.DELIVER
        self._detect_edition = settings.opcp_detect_edition
        self._roots = roots

    async def _post(self, scope: Scope, receive: Receive) -> Response:
        options, outcome = await self._deliver(
            scope, receive, DeliverHeaders, max_one=True, detect_edition=self._detect_edition
        )
        headers: dict[str, str] = {}
        if isinstance(outcome, NegativeResponse):
            metadata, headers = negative_metadata(outcome.reason, options.always_exi)
            if not self._deliver_negative and not headers:  # A temporary failure has headers and is no 404.
                return _not_found(outcome, trace_of(scope).id)
            namespace = outcome.namespace
            item = {
                "certificateInstallationRes": encode_base64(outcome.response),
                # A placeholder, because clients take an item with an empty EMAID for no response.
                "emaid": PLACEHOLDER_EMAID,
                "metaData": metadata,
            }
        else:
            contract = outcome[0].contract
            namespace = contract.namespace
            item = {
                "certificateInstallationRes": encode_base64(outcome[0].response),
                "emaid": contract.emaid,
                "metaData": contract.metadata or "",
                "cpsV2GRootCertificateFingerprint": contract.root_fingerprint,
            }
        return FastJSONResponse(
            {"CCPResponse": {"emaidContent": [{"messageDef": item}]}, "xsdMsgDefNamespace": namespace},
            headers=headers,
        )

    def _root_of(self, body: SignedContractData) -> Fingerprint | None:
        try:
            return self._roots.fingerprint(body.cpsV2GRootCertificateFingerprint)
        except NotFound as exc:
            raise FieldError(*exc.messages, code=exc.code) from exc

    def _metadata_of(self, body: SignedContractData) -> str | None:
        assert isinstance(body, OPCPSignedContractDataRequest), "the publication model"
        return body.any_metadata()


def _not_found(outcome: NegativeResponse, trace_id: str) -> Response:
    """Return the published 404 with the negative message, and beside it the members of every error."""
    message = {"certificateInstallationRes": encode_base64(outcome.response)}
    return json_response(
        {
            "CCPResponse": {"emaidContent": [{"messageDef": message}]},
            "errorMessages": list(dict.fromkeys(error_messages(outcome.reason))),
            "traceId": trace_id,
        },
        404,
    )


def router(pool: Pool, context: RequestContext, settings: Settings, catalogue: CurrentRootCatalogue) -> APIRouter:
    """Return the routes of OPCP, except those of roots."""
    roots = RootReferences(pool, catalogue)
    endpoint = OPCPSignedContractDataEndpoint(pool, context, settings, roots)
    api = APIRouter(routes=[Route(f"{BASE}/signedContractData", endpoint)], tags=[TAG])

    def target_of(operation: Operation) -> Any:
        return target_dependency(context, pool, operation)

    def add(
        method: str, path: str, operation: Operation, model: type[BaseModel] | None = None
    ) -> Callable[[Handler], Handler]:
        statuses = [400, 401, 403, 404, 500, 503]
        if operation in WITHOUT_404:
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
        root: _RootQuery = None,
    ) -> Response:
        """List the contracts that are stored for a vehicle, for the OEM that owns its WMI."""
        wanted = roots.fingerprint(root)
        found = await target.pool.contract_data_by_pcid(target.caller, pcid, namespace)
        ranks = _ranks(found)
        matching = [contract for contract in found if wanted in (None, contract.root_fingerprint)]
        if not matching:
            raise NotFound("No contract for the given PCID found.", code=ErrorCode.CONTRACT_NOT_FOUND)
        return FastJSONResponse(
            {"XMLContracts": [_xml_contract(contract, ranks[contract.emaid]) for contract in matching]}
        )

    @add("GET", f"{BASE}/lookupContract/{{emaid}}", Operation.GET_CONTRACT_DATA_BY_EMAID, XMLContracts)
    async def look_up_contract(
        emaid: EMAIDPath,
        target: Target = target_of(Operation.GET_CONTRACT_DATA_BY_EMAID),
        namespace: NamespaceQuery = DEFAULT_NAMESPACE,
        root: _RootQuery = None,
    ) -> Response:
        """Return a contract's certificate, for the eMSP that owns it, which learns nothing of the vehicle's others."""
        found = await target.pool.contract_data_by_emaid(
            target.caller, emaid, namespace, roots.fingerprint(root), context.clock()
        )
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
        root: _RootQuery = None,
        session_id: SessionQuery = b"",
    ) -> Response:
        """Return the newest signed response of a contract, for the OEM that owns the vehicle's WMI."""
        found = await target.pool.signed_contract_data(
            target.caller,
            emaid,
            pcid,
            session_id=session_id,
            namespace=namespace,
            root=roots.fingerprint(root),
            now=context.clock(),
            notify=target.for_content,
        )
        newest = found[0]
        return FastJSONResponse(
            {
                "certificateInstallationRes": encode_base64(newest.response),
                "xsdMsgDefNamespace": newest.contract.namespace,
                "cpsV2GRootCertificateFingerprint": newest.contract.root_fingerprint,
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
    members: JSONObject = {
        "pcid": contract.pcid,
        "emaid": contract.emaid,
        "xsdMsgDefNamespace": contract.namespace,
        "contractCertificate": encode_base64(contract.certificate),
        "defaultContract": contract.is_default,
        "priority": priority,
        "certValidFrom": rfc3339(contract.valid_from),
        "certValidTo": rfc3339(contract.valid_to),
    }
    if contract.root_fingerprint is not None:
        members["cpsV2GRootCertificateFingerprint"] = contract.root_fingerprint
    if name := distinguished_name(contract.root_dn):
        members["cpsRootCertificateDN"] = members["cpsRootDistinguishedName"] = name
    return members
