"""The operations in OPCP, the predecessor of OPNC. Withdrawing has the same JSON in both.

Source: OPCP 1.0, and the clients and pools that speak it.
"""

from __future__ import annotations

from urllib.parse import quote

from ccp import exi
from ccp.client.model import ContractState, Delivered, NoContractResponse, SignedResponse
from ccp.client.operations import Operations
from ccp.client.responses import HttpResponse, decode_base64, delivery, limited, parse, parse_certificate, parse_time
from ccp.client.untrusted_text import MAX_DN, MAX_METADATA
from ccp.errors import EXIError
from ccp.ids import EMAID, PCID, Namespace
from ccp.schemas import opcp
from ccp.schemas.common import encode_base64


class OPCPOperations(Operations):
    """Requests and responses of OPCP."""

    base = "/v1/ccp"
    contracts_path = "/signedContractData"
    webhooks_path = "/v1/webhook/endpoints"

    @staticmethod
    def _broadcast_header(*, allowed: bool) -> bool:
        return not allowed  # In OPCP the header forbids to ask other pools.

    @staticmethod
    def _publication_members(message: bytes, root_dn: str | None, metadata: str | None) -> dict[str, str | None]:
        # There is no member for the root's name.
        return {**_message_member(message), "metadata": metadata}

    def _path_by_emaid(self, emaid: EMAID) -> str:
        return f"/lookupContract/{quote(emaid)}"

    def _path_by_pcid(self, pcid: PCID) -> str:
        return f"{self.contracts_path}/{pcid}"

    def _path_of_signed(self, emaid: EMAID, pcid: PCID) -> str:
        return f"/provideSignedContractData/{quote(emaid)}/{pcid}"

    def _path_of_default(self, emaid: EMAID, pcid: PCID) -> str:
        return f"{self.contracts_path}/{pcid}/{quote(emaid)}/default"

    def _parse_delivery(self, response: HttpResponse, edition: Namespace) -> Delivered | NoContractResponse:
        contents = parse(opcp.ReceivedOPCPSignedContractData, response).CCPResponse.emaidContent
        items = []
        for content in contents:
            item = content.messageDef
            message = decode_base64(item.certificateInstallationRes, response)
            metadata = limited(item.metaData or None, MAX_METADATA)
            items.append((SignedResponse(item.emaid, None, edition, message, metadata, item.root), item.metaData))
        return delivery(items, edition, response)

    def _parse_contracts(self, response: HttpResponse) -> tuple[ContractState, ...]:
        return tuple(
            ContractState(
                item.emaid,
                item.pcid,
                item.xsdMsgDefNamespace,
                parse_certificate(item.contractCertificate, response),
                item.is_default,
                parse_time(item.certValidFrom, response),
                parse_time(item.certValidTo, response),
                item.root,
                limited(item.cpsRootCertificateDN or item.cpsRootDistinguishedName, MAX_DN),
            )
            for item in parse(opcp.ReceivedXMLContracts, response).XMLContracts
        )

    def _parse_signed(self, response: HttpResponse, emaid: EMAID, pcid: PCID) -> tuple[SignedResponse, ...]:
        item = parse(opcp.ReceivedProvidedSignedContractData, response)
        message = decode_base64(item.certificateInstallationRes, response)
        return (SignedResponse(emaid, pcid, item.xsdMsgDefNamespace, message, root=item.root),)


def _message_member(message: bytes) -> dict[str, str | None]:
    """The member with the message of a publication: XML, as the description says. message: EXI.

    A pool encodes the XML again. A message that is not the same afterwards is sent as EXI, which pools like this
    project's take: its signature would not verify.
    """
    try:
        document = exi.to_xml(exi.decode(message))
        is_preserved = exi.encode(exi.from_xml(document)) == message
    except EXIError:
        is_preserved = False
    if not is_preserved:
        return {"certificateInstallationRes": encode_base64(message)}
    return {"signedContractDataXML": encode_base64(document)}
