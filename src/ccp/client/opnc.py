"""The operations in OPNC. Source: OPNC API 1.0."""

from __future__ import annotations

from urllib.parse import quote

from ccp.client.model import ContractState, Delivered, NoContractResponse, SignedResponse
from ccp.client.operations import Operations
from ccp.client.responses import (
    HttpResponse,
    decode_base64,
    delivery,
    limited,
    malformed,
    parse,
    parse_certificate,
    parse_time,
)
from ccp.client.untrusted_text import MAX_DN, MAX_METADATA, MAX_SENTENCE
from ccp.ids import EMAID, PCID, Namespace
from ccp.schemas import opnc
from ccp.schemas.common import encode_base64


class OPNCOperations(Operations):
    """Requests and responses of OPNC."""

    base = "/opnc/v1/ccp"
    contracts_path = "/signedcontractdata"
    webhooks_path = "/opnc/v1/event/endpoints"

    @staticmethod
    def _broadcast_header(*, allowed: bool) -> bool:
        return allowed

    @staticmethod
    def _publication_members(message: bytes, root_dn: str | None, metadata: str | None) -> dict[str, str | None]:
        return {
            "certificateInstallationRes": encode_base64(message),
            "cpsRootDistinguishedName": root_dn,
            "metaData": metadata,
        }

    def _path_by_emaid(self, emaid: EMAID) -> str:
        return f"/contractData/emaid/{quote(emaid)}"

    def _path_by_pcid(self, pcid: PCID) -> str:
        return f"/contractData/pcid/{pcid}"

    def _path_of_signed(self, emaid: EMAID, pcid: PCID) -> str:
        return f"{self.contracts_path}/{quote(emaid)}/{pcid}"

    def _path_of_default(self, emaid: EMAID, pcid: PCID) -> str:
        return f"{self.contracts_path}/{quote(emaid)}/{pcid}/setdefault"

    def _parse_delivery(self, response: HttpResponse, edition: Namespace) -> Delivered | NoContractResponse:
        items = parse(opnc.ReceivedSignedContractDataCollection, response).signedContractDataCollection
        if any(item.xsdMsgDefNamespace is not edition for item in items):
            raise malformed(f"The response is not of the edition {edition}.", response)
        return delivery([(_signed(item, response), item.metaData) for item in items], edition, response)

    def _parse_contracts(self, response: HttpResponse) -> tuple[ContractState, ...]:
        return tuple(
            ContractState(
                item.emaid,
                item.pcid,
                item.xsdMsgDefNamespace,
                parse_certificate(item.contractCertificate, response),
                item.defaultContract,
                parse_time(item.certValidFrom, response),
                parse_time(item.certValidTo, response),
                item.cpsV2GRootCertificateFingerprint,
                limited(item.cpsV2GRootDistinguishedName, MAX_DN),
                limited(item.undeliverable, MAX_SENTENCE),
            )
            for item in parse(opnc.ReceivedContractDataCollection, response).contractDataCollection
        )

    def _parse_signed(self, response: HttpResponse, emaid: EMAID, pcid: PCID) -> tuple[SignedResponse, ...]:
        items = parse(opnc.ReceivedSignedContractDataCollection, response).signedContractDataCollection
        return tuple(_signed(item, response) for item in items)


def _signed(item: opnc.ReceivedSignedContractData, response: HttpResponse) -> SignedResponse:
    return SignedResponse(
        item.emaid,
        item.pcid,
        item.xsdMsgDefNamespace,
        decode_base64(item.certificateInstallationRes, response),
        limited(item.metaData, MAX_METADATA),
        item.cpsV2GRootCertificateFingerprint,
        limited(item.cpsRootDistinguishedName, MAX_DN),
    )
