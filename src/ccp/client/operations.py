"""The operations of a pool as request builders: arguments become a `Call`, which also reads the response. Pure: no I/O.

OPNC and OPCP have the same operations with other paths and JSON. The subclasses in `opnc` and `opcp` say how each
dialect writes and reads them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar, Final
from urllib.parse import quote
from uuid import UUID

from ccp import exi
from ccp.client import ocpp, roots
from ccp.client.calls import Call
from ccp.client.model import (
    ContractState,
    Delivered,
    DryRunReport,
    EVCertificate,
    NoContractResponse,
    Root,
    SignedResponse,
    Withdrawn,
)
from ccp.client.responses import HttpResponse, parse_nothing, parse_report
from ccp.client.webhooks import WebhookOperations
from ccp.errors import EXIError, FieldError
from ccp.exi.base64_text import looks_like_xml, message_bytes
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.schemas.common import Routing, encode_base64
from ccp.schemas.ocpp import IDEMPOTENCY_KEY, PATH
from ccp.x509.profiles import AnchorRole

DELIVER_TIMEOUT: Final = 4.5
"""Seconds that a charging station waits for a delivery. The vehicle allows five (ISO 15118-2, V2G_EVCC_Msg_Timeout)."""


class Dialect(StrEnum):
    """OPNC: the published API. OPCP: its predecessor."""

    OPNC = "opnc"
    OPCP = "opcp"


class Operations(WebhookOperations, ABC):
    """The operations of a pool in one dialect.

    Parameters of every operation: `routing` takes the place of the client's; `timeout` is the time for the whole call
    in seconds, None for the client's `Timeouts.total`. Ids may be given as text; FieldError is raised for an invalid
    id before a request is sent.
    """

    contracts_path: ClassVar[str]

    def deliver(
        self,
        message: bytes | str,
        namespace: Namespace | str,
        *,
        broadcast: bool = False,
        always_exi: bool = True,
        routing: Routing | None = None,
        timeout: float | None = DELIVER_TIMEOUT,
    ) -> Call[Delivered | NoContractResponse]:
        """Get the contracts for the vehicle that sent this CertificateInstallationReq.

        message: EXI, or its Base64 as text. broadcast: whether the pool may ask other pools. always_exi: False makes
        the pool answer 404 (NotFoundError) instead of a negative message.
        """
        edition = Namespace.parse(namespace)
        headers = {
            "alwaysReturnEXI": _boolean(always_exi),
            "broadcast": _boolean(self._broadcast_header(allowed=broadcast)),
        }
        body = {"certificateInstallationReq": _base64(message), "xsdMsgDefNamespace": edition.value}

        def parse(response: HttpResponse) -> Delivered | NoContractResponse:
            return self._parse_delivery(response, edition)

        return self._call("POST", self.contracts_path, parse, routing, timeout, headers=headers, body=body)

    def get_15118_ev_certificate(
        self,
        request: Mapping[str, Any],
        *,
        version: str | None = None,
        broadcast: bool = True,
        max_exi_response: int | None = None,
        message_id: str | None = None,
        routing: Routing | None = None,
        timeout: float | None = DELIVER_TIMEOUT,
    ) -> Call[EVCertificate]:
        """Answer a charging station's Get15118EVCertificateRequest.

        request: its payload, with the names of OCPP or in snake case. version: of the station's OCPP, 2.0.1 or 2.1, or
        the name of its WebSocket subprotocol; by default 2.1 for a payload that only 2.1 allows, else 2.0.1. broadcast:
        whether the pool may ask other pools. max_exi_response: characters of exiResponse that the station takes, if it
        is not what its version says. message_id: of the station's message, the same if it is sent again: an
        ISO 15118-20 vehicle with several contracts then gets the same one again.
        """
        return self._call(
            "POST",
            PATH,
            ocpp.parse_certificate_response,
            routing,
            timeout,
            base="",
            query=ocpp.query(version, broadcast, max_exi_response),
            headers={IDEMPOTENCY_KEY: ocpp.message_key(message_id)},
            body=ocpp.request_payload(request),
        )

    def publish(
        self,
        message: bytes | str,
        *,
        emaid: EMAID | str,
        pcid: PCID | str,
        namespace: Namespace | str,
        root: Fingerprint | str | None = None,
        root_dn: str | None = None,
        metadata: str | None = None,
        routing: Routing | None = None,
        timeout: float | None = None,
    ) -> Call[None]:
        """Store a signed CertificateInstallationRes for a vehicle; it replaces the one stored before.

        message: EXI or XML, or the Base64 of either as text. root: SHA-256 fingerprint of the V2G root of its
        signature. In OPCP the message is sent as XML, as its description says, unless the signature covers an encoding
        that XML does not preserve.
        """
        body = self._publication(_exi(message), emaid, pcid, namespace, root, root_dn, metadata)
        success = frozenset({200, 201})
        return self._call("PUT", self.contracts_path, parse_nothing, routing, timeout, body=body, success=success)

    def dry_run(
        self,
        message: bytes | str,
        *,
        emaid: EMAID | str,
        pcid: PCID | str,
        namespace: Namespace | str,
        root: Fingerprint | str | None = None,
        root_dn: str | None = None,
        metadata: str | None = None,
        routing: Routing | None = None,
        timeout: float | None = None,
    ) -> Call[DryRunReport]:
        """Run the checks of `publish` without storing anything.

        Send it to opnc-ccp servers only: another server does not know the parameter and stores the message.
        """
        body = self._publication(_exi(message), emaid, pcid, namespace, root, root_dn, metadata)
        query = {"dryRun": "true"}
        return self._call("PUT", self.contracts_path, parse_report, routing, timeout, query=query, body=body)

    def contracts_of_emaid(
        self,
        emaid: EMAID | str,
        *,
        namespace: Namespace | str = Namespace.ISO2,
        root: Fingerprint | str | None = None,
        routing: Routing | None = None,
        timeout: float | None = None,
    ) -> Call[tuple[ContractState, ...]]:
        """List a contract's variants of one edition, for the eMSP that owns it. Raises NotFoundError if none."""
        path, query = self._path_by_emaid(EMAID.parse(emaid)), _filters(namespace, root)
        return self._call("GET", path, self._parse_contracts, routing, timeout, query=query)

    def contracts_of_pcid(
        self,
        pcid: PCID | str,
        *,
        namespace: Namespace | str = Namespace.ISO2,
        routing: Routing | None = None,
        timeout: float | None = None,
    ) -> Call[tuple[ContractState, ...]]:
        """List a vehicle's contracts of one edition, for the OEM that owns its WMI. Raises NotFoundError if none."""
        path, query = self._path_by_pcid(PCID.parse(pcid)), _filters(namespace, None)
        return self._call("GET", path, self._parse_contracts, routing, timeout, query=query)

    def signed_contracts(
        self,
        emaid: EMAID | str,
        pcid: PCID | str,
        *,
        session_id: bytes = b"",
        namespace: Namespace | str = Namespace.ISO2,
        root: Fingerprint | str | None = None,
        routing: Routing | None = None,
        timeout: float | None = None,
    ) -> Call[tuple[SignedResponse, ...]]:
        """Get a contract's signed responses, newest first, for the OEM.

        session_id: at most eight bytes, which the pool writes into the messages.
        """
        contract, vehicle = EMAID.parse(emaid), PCID.parse(pcid)

        def parse(response: HttpResponse) -> tuple[SignedResponse, ...]:
            return self._parse_signed(response, contract, vehicle)

        query = {**_filters(namespace, root), "sessionID": session_id.hex() or None}
        return self._call("GET", self._path_of_signed(contract, vehicle), parse, routing, timeout, query=query)

    def withdraw(
        self,
        emaid: EMAID | str,
        *,
        revoke: bool = True,
        reason: str | None = None,
        routing: Routing | None = None,
        timeout: float | None = None,
    ) -> Call[Withdrawn]:
        """Remove a contract with all its variants, for the eMSP that owns it.

        revoke: False does not revoke its certificate. reason: of the revocation, as the PKI service names it.
        """
        headers = {} if revoke else {"X-Skip-Revocation": "true"}
        if reason is not None:
            headers["X-Revocation-Reason"] = str(reason)
        path = f"{self.contracts_path}/{quote(EMAID.parse(emaid))}"

        def parse(response: HttpResponse) -> Withdrawn:
            return Withdrawn()

        unconfirmed = Withdrawn(confirmed=False)
        return self._call("DELETE", path, parse, routing, timeout, headers=headers, not_found_after_retry=unconfirmed)

    def set_default(
        self,
        emaid: EMAID | str,
        pcid: PCID | str,
        *,
        routing: Routing | None = None,
        timeout: float | None = None,
    ) -> Call[None]:
        """Make a contract the vehicle's default, for the OEM. Raises BadRequestError for an unknown pair."""
        path = self._path_of_default(EMAID.parse(emaid), PCID.parse(pcid))
        return self._call("POST", path, parse_nothing, routing, timeout)

    def roots(
        self, role: AnchorRole | None = None, *, routing: Routing | None = None, timeout: float | None = None
    ) -> Call[tuple[Root, ...]]:
        """List the roots that the pool trusts, for every party. role: None for all of them.

        Raises NotFoundError if the pool does not offer OPCP.
        """
        query = {"rootType": roots.root_type(role)}
        return self._call("GET", roots.PATH, roots.parse_roots, routing, timeout, base="", query=query)

    def root(self, root_id: UUID | str, *, routing: Routing | None = None, timeout: float | None = None) -> Call[Root]:
        """Get one of the listed roots by its id. Raises NotFoundError for an unknown one."""
        return self._call("GET", roots.path_of(root_id), roots.parse_root, routing, timeout, base="")

    def _publication(
        self,
        message: bytes,
        emaid: EMAID | str,
        pcid: PCID | str,
        namespace: Namespace | str,
        root: Fingerprint | str | None,
        root_dn: str | None,
        metadata: str | None,
    ) -> dict[str, str | None]:
        return {
            **self._publication_members(message, root_dn, metadata),
            "emaid": str(EMAID.parse(emaid)),
            "pcid": str(PCID.parse(pcid)),
            "xsdMsgDefNamespace": Namespace.parse(namespace).value,
            "cpsV2GRootCertificateFingerprint": None if root is None else str(Fingerprint.parse(root)),
        }

    # What the dialects differ in.

    @staticmethod
    @abstractmethod
    def _broadcast_header(*, allowed: bool) -> bool:
        """Return the value of the header `broadcast`."""

    @staticmethod
    @abstractmethod
    def _publication_members(message: bytes, root_dn: str | None, metadata: str | None) -> dict[str, str | None]:
        """Return the members of a publication whose names differ. message: EXI."""

    @abstractmethod
    def _path_by_emaid(self, emaid: EMAID) -> str:
        """Return the path that lists a contract's variants."""

    @abstractmethod
    def _path_by_pcid(self, pcid: PCID) -> str:
        """Return the path that lists a vehicle's contracts."""

    @abstractmethod
    def _path_of_signed(self, emaid: EMAID, pcid: PCID) -> str:
        """Return the path of a contract's signed responses."""

    @abstractmethod
    def _path_of_default(self, emaid: EMAID, pcid: PCID) -> str:
        """Return the path that sets a vehicle's default contract."""

    @abstractmethod
    def _parse_delivery(self, response: HttpResponse, edition: Namespace) -> Delivered | NoContractResponse:
        """Read the response to `deliver`. Raises MalformedResponseError."""

    @abstractmethod
    def _parse_contracts(self, response: HttpResponse) -> tuple[ContractState, ...]:
        """Read a list of contracts. Raises MalformedResponseError."""

    @abstractmethod
    def _parse_signed(self, response: HttpResponse, emaid: EMAID, pcid: PCID) -> tuple[SignedResponse, ...]:
        """Read the response to `signed_contracts`. Raises MalformedResponseError."""


def _exi(message: bytes | str) -> bytes:
    """EXI of a message in EXI or XML, or in Base64 of either. Raises FieldError."""
    try:
        if isinstance(message, str):
            return message_bytes(message, allow_xml=True)
        return exi.encode(exi.from_xml(message)) if looks_like_xml(message) else message
    except EXIError as exc:
        raise FieldError(f"message : must be EXI or XML, or Base64 as text: {exc}") from exc


def _base64(message: bytes | str) -> str:
    """Base64 of a message. Raises FieldError for a text that is not Base64; its ASCII white space is removed."""
    if isinstance(message, bytes):
        return encode_base64(message)
    try:
        return encode_base64(message_bytes(message))
    except EXIError as exc:
        raise FieldError(f"message : must be EXI, or Base64 as text: {exc}") from exc


def _filters(namespace: Namespace | str, root: Fingerprint | str | None) -> dict[str, str | None]:
    return {
        "xsdMsgDefNamespace": Namespace.parse(namespace).value,
        "cpsV2GRootCertificateFingerprint": None if root is None else str(Fingerprint.parse(root)),
    }


def _boolean(value: bool) -> str:
    return "true" if value else "false"
