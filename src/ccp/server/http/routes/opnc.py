"""The seven operations of OPNC under `/opnc/v1/ccp`.

POST and PUT of signed contract data are a fast-path endpoint; the other five are FastAPI routes. Both kinds take error
responses from the table in `ccp.server.http.errors`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header
from pydantic import BaseModel
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope

from ccp.schemas.common import PLACEHOLDER_EMAID, PLACEHOLDER_PCID, Boolean, JSONObject, encode_base64
from ccp.schemas.opnc import (
    ContractDataCollection,
    DeliverHeaders,
    SignedContractDataCollection,
    distinguished_name,
)
from ccp.schemas.timestamps import rfc3339
from ccp.server.domain.authorization import Operation
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
from ccp.server.pool.delivery import DeliveredContract, NegativeResponse
from ccp.server.pool.operations import Pool
from ccp.server.pool.remote import RemoteContract

BASE: Final = "/opnc/v1/ccp"


class OPNCSignedContractDataEndpoint(SignedContractDataEndpoint):
    """POST and PUT /signedcontractdata."""

    async def _post(self, scope: Scope, receive: Receive) -> Response:
        options, outcome = await self._deliver(scope, receive, DeliverHeaders)
        if not isinstance(outcome, NegativeResponse):
            return FastJSONResponse({"signedContractDataCollection": [_signed_contract(item) for item in outcome]})
        metadata, headers = negative_metadata(outcome.reason, options.always_exi)
        item = {
            "certificateInstallationRes": encode_base64(outcome.response),
            "emaid": PLACEHOLDER_EMAID,
            "pcid": outcome.pcid or PLACEHOLDER_PCID,
            "xsdMsgDefNamespace": outcome.namespace,
            "metaData": metadata,
        }
        return FastJSONResponse({"signedContractDataCollection": [item]}, headers=headers)


def router(pool: Pool, context: RequestContext) -> APIRouter:
    """Return the routes of OPNC."""
    endpoint = OPNCSignedContractDataEndpoint(pool, context)
    api = APIRouter(routes=[Route(f"{BASE}/signedcontractdata", endpoint)])

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
        emaid: EMAIDPath,
        target: Target = target_of(Operation.GET_CONTRACT_DATA_BY_EMAID),
        namespace: NamespaceQuery = DEFAULT_NAMESPACE,
        root: RootQuery = None,
    ) -> Response:
        """Return a contract's certificate and state, for the eMSP that owns it."""
        found = await target.pool.contract_data_by_emaid(target.caller, emaid, namespace, root, context.clock())
        return FastJSONResponse(
            {"contractDataCollection": [_contract_data(contract, problem) for contract, problem in found]}
        )

    @add("GET", "/contractData/pcid/{pcid}", Operation.GET_CONTRACT_DATA_BY_PCID, ContractDataCollection)
    async def get_contract_data_by_pcid(
        pcid: PCIDPath,
        target: Target = target_of(Operation.GET_CONTRACT_DATA_BY_PCID),
        namespace: NamespaceQuery = DEFAULT_NAMESPACE,
    ) -> Response:
        """List the contracts that are stored for a vehicle, for the OEM that owns its WMI."""
        found = await target.pool.contract_data_by_pcid(target.caller, pcid, namespace)
        return FastJSONResponse({"contractDataCollection": [_contract_data(contract) for contract in found]})

    @add("DELETE", "/signedcontractdata/{emaid}", Operation.WITHDRAW)
    async def delete_signed_contract_data_by_emaid(
        emaid: EMAIDPath,
        target: Target = target_of(Operation.WITHDRAW),
        skip_revocation: Annotated[Boolean, Header(alias="X-Skip-Revocation")] = False,
        reason: Annotated[str | None, Header(alias=REASON_HEADER)] = None,
    ) -> Response:
        """Remove a contract with all its variants, for the eMSP that owns it."""
        why = RevocationReason.parse(reason)
        await target.pool.withdraw(target.caller, emaid, context.clock(), revoke=not skip_revocation, reason=why)
        return Response(status_code=200)

    @add(
        "GET",
        "/signedcontractdata/{emaid}/{pcid}",
        Operation.GET_SIGNED_CONTRACT_DATA,
        SignedContractDataCollection,
    )
    async def get_signed_contract_data_by_emaid_and_pcid(
        emaid: EMAIDPath,
        pcid: PCIDPath,
        target: Target = target_of(Operation.GET_SIGNED_CONTRACT_DATA),
        namespace: NamespaceQuery = DEFAULT_NAMESPACE,
        root: RootQuery = None,
        session_id: SessionQuery = b"",
    ) -> Response:
        """Return the signed responses of a contract, for the OEM that owns the vehicle's WMI."""
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
        return FastJSONResponse({"signedContractDataCollection": [_signed_contract(item) for item in found]})

    @add("POST", "/signedcontractdata/{emaid}/{pcid}/setdefault", Operation.SET_DEFAULT)
    async def set_signed_contract_data_as_default(
        emaid: EMAIDPath, pcid: PCIDPath, target: Target = target_of(Operation.SET_DEFAULT)
    ) -> Response:
        """Make a contract the vehicle's default, for the OEM that owns its WMI."""
        await target.pool.set_default(target.caller, emaid, pcid, context.clock())
        return Response(status_code=200)

    return api


def _signed_contract(item: DeliveredContract) -> JSONObject:
    contract = item.contract
    members = {
        "certificateInstallationRes": encode_base64(item.response),
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
