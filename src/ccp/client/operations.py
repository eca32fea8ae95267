"""The operations as pure values: arguments become a `Call`, an answer becomes what the operation is for.

Two dialects, one set of operations. Nothing here does I/O.
"""

from __future__ import annotations

import base64
import binascii
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import ClassVar, Final, Generic, TypeVar
from urllib.parse import quote, urlencode

import orjson
from pydantic import BaseModel, ValidationError

from ccp import verify
from ccp.client.errors import MalformedAnswerError
from ccp.client.model import (
    Check,
    ContractState,
    Delivered,
    Refused,
    Report,
    SignedResponse,
    Withdrawn,
)
from ccp.client.untrusted_text import MAX_METADATA, MAX_SENTENCE, plain
from ccp.errors import ChainError, EXIError, FieldError
from ccp.exi.base64_text import message_bytes
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.schemas import opcp, opnc
from ccp.schemas.common import Routing, encode_base64
from ccp.x509.certificates import Certificate

T = TypeVar("T")
Shape = TypeVar("Shape", bound=BaseModel)

DELIVER_SECONDS: Final = 4.5
"""What a charging station waits for a delivery; the vehicle gives it five (ISO 15118-2, V2G_EVCC_Msg_Timeout)."""

_OK: Final = frozenset({200})
_MAX_DN: Final = 1000  # Characters of a distinguished name.


class Dialect(StrEnum):
    """OPNC: the published API. OPCP: its predecessor."""

    OPNC = "opnc"
    OPCP = "opcp"


@dataclass(frozen=True, slots=True)
class Answer:
    """headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def trace_id(self) -> str | None:
        said = self.headers.get("x-trace-id")
        return None if said is None else plain(said, 100)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One operation, ready to be sent.

    Every one of them may be sent again when its outcome is not known: they read, or they bring about a state that
    sending them twice does not change. Delivering is a POST and reads. gone: what a 404 means that comes after an
    attempt with an unknown outcome; None where that makes no difference.
    """

    method: str
    path: str
    read: Callable[[Answer], T]
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""
    success: frozenset[int] = _OK
    seconds: float | None = None
    gone: T | None = None


class Calls(ABC):
    """The operations. Common to all: `routing` overrides the client's, `seconds` its total time for a call.

    Ids may be given as text; what is no id raises FieldError, before anything is sent.
    """

    base: ClassVar[str]

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    @abstractmethod
    def deliver(
        self,
        message: bytes | str,
        namespace: Namespace | str,
        *,
        broadcast: bool = False,
        always_exi: bool = True,
        routing: Routing | None = None,
        seconds: float | None = DELIVER_SECONDS,
    ) -> Call[Delivered | Refused]:
        """What a vehicle gets that sent this CertificateInstallationReq.

        message: EXI, or its Base64 as text. broadcast: the pool may ask others. always_exi: False has the pool answer
        404 (NotFoundError) in place of a negative message.
        """

    @abstractmethod
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
        seconds: float | None = None,
    ) -> Call[None]:
        """Store a signed CertificateInstallationRes for a vehicle, in place of what was there.

        message: EXI, or its Base64 as text. root: SHA-256 fingerprint of the V2G root it is signed under.
        """

    @abstractmethod
    def examine(
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
        seconds: float | None = None,
    ) -> Call[Report]:
        """What `publish` would find, without storing anything. For this pool's servers only: others would store it."""

    @abstractmethod
    def contracts_of_emaid(
        self,
        emaid: EMAID | str,
        *,
        namespace: Namespace | str = Namespace.ISO2,
        root: Fingerprint | str | None = None,
        routing: Routing | None = None,
        seconds: float | None = None,
    ) -> Call[tuple[ContractState, ...]]:
        """A contract's variants of one edition, for the eMSP that owns it. None: NotFoundError."""

    @abstractmethod
    def contracts_of_pcid(
        self,
        pcid: PCID | str,
        *,
        namespace: Namespace | str = Namespace.ISO2,
        routing: Routing | None = None,
        seconds: float | None = None,
    ) -> Call[tuple[ContractState, ...]]:
        """What waits for a vehicle, of one edition, for the OEM that owns its WMI. Nothing: NotFoundError."""

    @abstractmethod
    def signed_contracts(
        self,
        emaid: EMAID | str,
        pcid: PCID | str,
        *,
        session_id: bytes = b"",
        namespace: Namespace | str = Namespace.ISO2,
        root: Fingerprint | str | None = None,
        routing: Routing | None = None,
        seconds: float | None = None,
    ) -> Call[tuple[SignedResponse, ...]]:
        """A contract's signed responses, newest first, for the OEM. session_id: at most eight octets, put into them."""

    @abstractmethod
    def withdraw(
        self,
        emaid: EMAID | str,
        *,
        revoke: bool = True,
        reason: str | None = None,
        routing: Routing | None = None,
        seconds: float | None = None,
    ) -> Call[Withdrawn]:
        """Remove a contract, for the eMSP that owns it.

        revoke: False leaves its certificate as it is. reason: of the revocation, in the PKI service's words.
        """

    @abstractmethod
    def set_default(
        self,
        emaid: EMAID | str,
        pcid: PCID | str,
        *,
        routing: Routing | None = None,
        seconds: float | None = None,
    ) -> Call[None]:
        """Make a contract the vehicle's default, for the OEM. An unknown pair: BadRequestError."""

    def _call(
        self,
        method: str,
        path: str,
        read: Callable[[Answer], T],
        routing: Routing | None,
        seconds: float | None,
        *,
        query: Mapping[str, str | None] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, str | None] | None = None,
        success: frozenset[int] = _OK,
        gone: T | None = None,
    ) -> Call[T]:
        asked = urlencode({name: value for name, value in (query or {}).items() if value is not None})
        content = b"" if body is None else orjson.dumps({k: v for k, v in body.items() if v is not None})
        sent = {**(routing or self._routing).headers(), **(headers or {})}
        if body is not None:
            sent["Content-Type"] = "application/json"
        return Call(
            method, self.base + path + (f"?{asked}" if asked else ""), read, sent, content, success, seconds, gone
        )  # fmt: skip


class OPNCCalls(Calls):
    """Source: OPNC API 1.0."""

    base = "/opnc/v1/ccp"

    def deliver(
        self,
        message: bytes | str,
        namespace: Namespace | str,
        *,
        broadcast: bool = False,
        always_exi: bool = True,
        routing: Routing | None = None,
        seconds: float | None = DELIVER_SECONDS,
    ) -> Call[Delivered | Refused]:
        edition = Namespace.parse(namespace)

        def read(answer: Answer) -> Delivered | Refused:
            items = _shape(opnc.ReceivedSignedContractDataCollection, answer).signedContractDataCollection
            if any(item.xsdMsgDefNamespace is not edition for item in items):
                raise _malformed(f"The answer is not of the edition {edition}.", answer)
            return _outcome([(_signed(item, answer), item.metaData) for item in items], edition, answer)

        headers = {"alwaysReturnEXI": _word(always_exi), "broadcast": _word(broadcast)}
        body = {"certificateInstallationReq": _base64(message), "xsdMsgDefNamespace": edition.value}
        return self._call("POST", self._contracts(), read, routing, seconds, headers=headers, body=body)

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
        seconds: float | None = None,
    ) -> Call[None]:
        body = _publication(message, emaid, pcid, namespace, root, root_dn, metadata)
        accepted = frozenset({200, 201})
        return self._call("PUT", self._contracts(), _nothing, routing, seconds, body=body, success=accepted)

    def examine(
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
        seconds: float | None = None,
    ) -> Call[Report]:
        body = _publication(message, emaid, pcid, namespace, root, root_dn, metadata)
        return self._call("PUT", self._contracts(), _report, routing, seconds, query={"dryRun": "true"}, body=body)

    def contracts_of_emaid(
        self,
        emaid: EMAID | str,
        *,
        namespace: Namespace | str = Namespace.ISO2,
        root: Fingerprint | str | None = None,
        routing: Routing | None = None,
        seconds: float | None = None,
    ) -> Call[tuple[ContractState, ...]]:
        path, query = f"/contractData/emaid/{quote(EMAID.parse(emaid))}", _filters(namespace, root)
        return self._call("GET", path, _states, routing, seconds, query=query)

    def contracts_of_pcid(
        self,
        pcid: PCID | str,
        *,
        namespace: Namespace | str = Namespace.ISO2,
        routing: Routing | None = None,
        seconds: float | None = None,
    ) -> Call[tuple[ContractState, ...]]:
        path, query = f"/contractData/pcid/{PCID.parse(pcid)}", _filters(namespace, None)
        return self._call("GET", path, _states, routing, seconds, query=query)

    def signed_contracts(
        self,
        emaid: EMAID | str,
        pcid: PCID | str,
        *,
        session_id: bytes = b"",
        namespace: Namespace | str = Namespace.ISO2,
        root: Fingerprint | str | None = None,
        routing: Routing | None = None,
        seconds: float | None = None,
    ) -> Call[tuple[SignedResponse, ...]]:
        def read(answer: Answer) -> tuple[SignedResponse, ...]:
            items = _shape(opnc.ReceivedSignedContractDataCollection, answer).signedContractDataCollection
            return tuple(_signed(item, answer) for item in items)

        path = f"/signedcontractdata/{quote(EMAID.parse(emaid))}/{PCID.parse(pcid)}"
        query = {**_filters(namespace, root), "sessionID": session_id.hex() or None}
        return self._call("GET", path, read, routing, seconds, query=query)

    def withdraw(
        self,
        emaid: EMAID | str,
        *,
        revoke: bool = True,
        reason: str | None = None,
        routing: Routing | None = None,
        seconds: float | None = None,
    ) -> Call[Withdrawn]:
        headers = {} if revoke else {"X-Skip-Revocation": "true"}
        if reason is not None:
            headers["X-Revocation-Reason"] = str(reason)
        path = f"{self._contracts()}/{quote(EMAID.parse(emaid))}"
        gone = Withdrawn(certain=False)
        return self._call("DELETE", path, lambda answer: Withdrawn(), routing, seconds, headers=headers, gone=gone)

    def set_default(
        self,
        emaid: EMAID | str,
        pcid: PCID | str,
        *,
        routing: Routing | None = None,
        seconds: float | None = None,
    ) -> Call[None]:
        path = f"/signedcontractdata/{quote(EMAID.parse(emaid))}/{PCID.parse(pcid)}/setdefault"
        return self._call("POST", path, _nothing, routing, seconds)

    def _contracts(self) -> str:
        return "/signedcontractdata"


class OPCPCalls(OPNCCalls):
    """Source: the clients and pools that speak it. Publishing and withdrawing are as in OPNC."""

    base = "/v1/ccp"

    def deliver(
        self,
        message: bytes | str,
        namespace: Namespace | str,
        *,
        broadcast: bool = False,
        always_exi: bool = True,
        routing: Routing | None = None,
        seconds: float | None = DELIVER_SECONDS,
    ) -> Call[Delivered | Refused]:
        edition = Namespace.parse(namespace)

        def read(answer: Answer) -> Delivered | Refused:
            items = _shape(opcp.ReceivedOPCPSignedContractData, answer).CCPResponse.emaidContent
            found = []
            for item in items:
                said = item.messageDef
                octets = _octets(said.certificateInstallationRes, answer)
                found.append(
                    (
                        SignedResponse(said.emaid, None, edition, octets, _plain(said.metaData or None, MAX_METADATA)),
                        said.metaData,
                    )
                )
            return _outcome(found, edition, answer)

        # Here the word forbids what it allows in OPNC.
        headers = {"alwaysReturnEXI": _word(always_exi), "broadcast": _word(not broadcast)}
        body = {"certificateInstallationReq": _base64(message), "xsdMsgDefNamespace": edition.value}
        return self._call("POST", self._contracts(), read, routing, seconds, headers=headers, body=body)

    def contracts_of_emaid(
        self,
        emaid: EMAID | str,
        *,
        namespace: Namespace | str = Namespace.ISO2,
        root: Fingerprint | str | None = None,
        routing: Routing | None = None,
        seconds: float | None = None,
    ) -> Call[tuple[ContractState, ...]]:
        path, query = f"/lookupContract/{quote(EMAID.parse(emaid))}", _filters(namespace, root)
        return self._call("GET", path, _xml_contracts, routing, seconds, query=query)

    def contracts_of_pcid(
        self,
        pcid: PCID | str,
        *,
        namespace: Namespace | str = Namespace.ISO2,
        routing: Routing | None = None,
        seconds: float | None = None,
    ) -> Call[tuple[ContractState, ...]]:
        path, query = f"{self._contracts()}/{PCID.parse(pcid)}", _filters(namespace, None)
        return self._call("GET", path, _xml_contracts, routing, seconds, query=query)

    def signed_contracts(
        self,
        emaid: EMAID | str,
        pcid: PCID | str,
        *,
        session_id: bytes = b"",
        namespace: Namespace | str = Namespace.ISO2,
        root: Fingerprint | str | None = None,
        routing: Routing | None = None,
        seconds: float | None = None,
    ) -> Call[tuple[SignedResponse, ...]]:
        contract, vehicle = EMAID.parse(emaid), PCID.parse(pcid)

        def read(answer: Answer) -> tuple[SignedResponse, ...]:
            item = _shape(opcp.ProvidedSignedContractData, answer)
            octets = _octets(item.certificateInstallationRes, answer)
            return (SignedResponse(contract, vehicle, item.xsdMsgDefNamespace, octets),)

        path = f"/provideSignedContractData/{quote(contract)}/{vehicle}"
        query = {**_filters(namespace, root), "sessionID": session_id.hex() or None}
        return self._call("GET", path, read, routing, seconds, query=query)

    def set_default(
        self,
        emaid: EMAID | str,
        pcid: PCID | str,
        *,
        routing: Routing | None = None,
        seconds: float | None = None,
    ) -> Call[None]:
        path = f"{self._contracts()}/{PCID.parse(pcid)}/{quote(EMAID.parse(emaid))}/default"
        return self._call("POST", path, _nothing, routing, seconds)

    def _contracts(self) -> str:
        return "/signedContractData"


CALLS: Final[Mapping[Dialect, type[Calls]]] = {Dialect.OPNC: OPNCCalls, Dialect.OPCP: OPCPCalls}


# --- From and to the wire --------------------------------------------------------------------------------------------


def _shape(model: type[Shape], answer: Answer) -> Shape:
    try:
        return model.model_validate_json(answer.body)
    except ValidationError as exc:
        raise _malformed(f"The answer is not a {model.__name__.removeprefix('Received')}.", answer) from exc


def _malformed(message: str, answer: Answer) -> MalformedAnswerError:
    return MalformedAnswerError(message, status=answer.status, trace_id=answer.trace_id)


def _plain(text: str | None, max_length: int) -> str | None:
    """What another pool says in words; its length and characters are limited as those of our own callers are."""
    return None if text is None else plain(text, max_length)


def _octets(text: str, answer: Answer) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise _malformed("Something in the answer is not Base64.", answer) from exc


def _signed(item: opnc.ReceivedSignedContractData, answer: Answer) -> SignedResponse:
    return SignedResponse(
        item.emaid,
        item.pcid,
        item.xsdMsgDefNamespace,
        _octets(item.certificateInstallationRes, answer),
        _plain(item.metaData, MAX_METADATA),
        item.cpsV2GRootCertificateFingerprint,
        _plain(item.cpsRootDistinguishedName, _MAX_DN),
    )


def _outcome(
    items: Iterable[tuple[SignedResponse, str | None]], edition: Namespace, answer: Answer
) -> Delivered | Refused:
    """What the messages themselves say decides, not what is written around them: pools differ in that."""
    positive: list[SignedResponse] = []
    negative: Refused | None = None
    for item, told in items:
        try:
            code = verify.read_response(item.message, edition).response_code
        except EXIError as exc:
            raise _malformed(f"The answer's message cannot be read: {exc}.", answer) from exc
        if code.startswith("OK"):
            positive.append(item)
        elif negative is None:
            negative = Refused(item.message, edition, code, _plain(told, MAX_METADATA), answer.trace_id)
    if positive:
        return Delivered(tuple(positive), answer.trace_id)
    if negative is None:
        raise _malformed("The answer has no item.", answer)
    return negative


def _states(answer: Answer) -> tuple[ContractState, ...]:
    return tuple(
        ContractState(
            item.emaid,
            item.pcid,
            item.xsdMsgDefNamespace,
            _certificate(item.contractCertificate, answer),
            item.defaultContract,
            _instant(item.certValidFrom, answer),
            _instant(item.certValidTo, answer),
            item.cpsV2GRootCertificateFingerprint,
            _plain(item.cpsV2GRootDistinguishedName, _MAX_DN),
            _plain(item.undeliverable, MAX_SENTENCE),
        )
        for item in _shape(opnc.ReceivedContractDataCollection, answer).contractDataCollection
    )


def _xml_contracts(answer: Answer) -> tuple[ContractState, ...]:
    return tuple(
        ContractState(
            item.emaid,
            item.pcid,
            item.xsdMsgDefNamespace,
            _certificate(item.contractCertificate, answer),
            item.priority == 1,
            _instant(item.certValidFrom, answer),
            _instant(item.certValidTo, answer),
        )
        for item in _shape(opcp.ReceivedXMLContracts, answer).XMLContracts
    )


def _certificate(text: str, answer: Answer) -> bytes:
    """DER. The published text says PEM and its example is DER, so pools may send either."""
    octets = _octets(text, answer)
    try:
        return Certificate.load_pem(octets)[0].der if octets.startswith(b"-----BEGIN") else octets
    except ChainError as exc:
        raise _malformed("The answer's certificate cannot be read.", answer) from exc


def _instant(text: str, answer: Answer) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise _malformed("A time in the answer cannot be read.", answer) from exc
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _report(answer: Answer) -> Report:
    try:
        said = orjson.loads(answer.body)
        checks = tuple(
            Check(check["subject"], check["verdict"], check["reason"], tuple(check["evidence"]))
            for check in said["checks"]
        )
        return Report(said["passed"] is True, checks, tuple(said["warnings"]), said)
    except (orjson.JSONDecodeError, KeyError, TypeError) as exc:
        raise _malformed("The answer is not the report of a dry run.", answer) from exc


def _nothing(answer: Answer) -> None:
    return None


def _publication(
    message: bytes | str,
    emaid: EMAID | str,
    pcid: PCID | str,
    namespace: Namespace | str,
    root: Fingerprint | str | None,
    root_dn: str | None,
    metadata: str | None,
) -> dict[str, str | None]:
    return {
        "certificateInstallationRes": _base64(message),
        "emaid": str(EMAID.parse(emaid)),
        "pcid": str(PCID.parse(pcid)),
        "xsdMsgDefNamespace": Namespace.parse(namespace).value,
        "cpsV2GRootCertificateFingerprint": None if root is None else str(Fingerprint.parse(root)),
        "cpsRootDistinguishedName": root_dn,
        "metaData": metadata,
    }


def _base64(message: bytes | str) -> str:
    """A message as it travels. Raises FieldError for a text that is not Base64; its ASCII white space is left out."""
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


def _word(value: bool) -> str:
    return "true" if value else "false"
