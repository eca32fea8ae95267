"""The CertificateInstallationReq of a vehicle: reading and checking."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import InitVar, dataclass
from datetime import datetime
from typing import Protocol

from ccp import exi
from ccp.errors import ChainError, EXIError, ExpiredError, FieldError
from ccp.errors.codes import ErrorCode
from ccp.exi import iso2, iso20
from ccp.ids import EMAID, PCID, Namespace
from ccp.verify import message_signatures
from ccp.verify._common import (
    CONSTRUCTION_TOKEN,
    PROFILES,
    as_lines,
    describe_certificate,
    describe_chain,
    describe_signature,
    load_intermediates,
    parse,
    require_token,
    unwrap,
)
from ccp.verify.message_signatures import SignatureEvidence
from ccp.verify.report import CheckList
from ccp.x509.certificates import Certificate
from ccp.x509.names import comparable_attributes
from ccp.x509.path_validation import TrustAnchors, VerifiedChain
from ccp.x509.profiles import Usage
from ccp.x509.revocation_policy import RevocationChecker


class RootReference(Protocol):
    """The root of the provisioning service's chain of a signed contract."""

    @property
    def root_serial(self) -> int:
        """Serial number of the V2G root."""

    @property
    def root_dn(self) -> str:
        """Distinguished name of the V2G root."""


@dataclass(frozen=True, slots=True)
class InstallationRequest:
    """An unverified CertificateInstallationReq.

    certificate, sub_certificates: DER. root_ids: the V2G roots that the vehicle lists. prioritized_emaids: in the
    vehicle's order (-20). max_chains: number of contract certificate chains that it accepts (always one in ISO-2).
    """

    parsed: exi.ParsedMessage
    namespace: Namespace
    session_id: bytes
    certificate: bytes
    sub_certificates: tuple[bytes, ...]
    root_ids: tuple[iso2.X509IssuerSerial, ...]
    prioritized_emaids: tuple[EMAID, ...]
    max_chains: int

    def trusts_root_of(self, contract: RootReference) -> bool:
        """Whether the vehicle lists the contract's V2G root: same serial number, and no attribute of the name
        differs."""
        name = comparable_attributes(contract.root_dn)
        kinds = {kind for kind, _ in name}
        return any(
            {pair for pair in comparable_attributes(root.X509IssuerName) if pair[0] in kinds} <= name
            for root in self.root_ids
            if root.X509SerialNumber == contract.root_serial
        )


@dataclass(frozen=True, slots=True)
class VerifiedInstallationRequest:
    """A request that was signed by the vehicle of the certificate. chain: None if chains of vehicles are not
    checked."""

    request: InstallationRequest
    leaf: Certificate
    pcid: PCID
    chain: VerifiedChain | None
    signature: SignatureEvidence
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        require_token(token)


def read_request(data: bytes, namespace: Namespace | None) -> InstallationRequest:
    """Read a CertificateInstallationReq of one edition, or of the edition that the message itself has for None.

    Raises EXIError.
    """
    parsed = parse(data, namespace, use_cache=True)
    message = parsed.message
    if isinstance(message, iso2.V2G_Message) and isinstance(message.Body, iso2.CertificateInstallationReq):
        body = message.Body
        return InstallationRequest(
            parsed, Namespace.ISO2, message.Header.SessionID, body.OEMProvisioningCert, (),
            body.ListOfRootCertificateIDs, (), 1,
        )  # fmt: skip
    if isinstance(message, iso20.CertificateInstallationReq):
        chain = message.OEMProvisioningCertificateChain
        return InstallationRequest(
            parsed, Namespace.ISO20, message.Header.SessionID, chain.Certificate, chain.SubCertificates or (),
            message.ListOfRootCertificateIDs, known_emaids(message.PrioritizedEMAIDs or ()),
            message.MaximumContractCertificateChains,
        )  # fmt: skip
    raise EXIError("a CertificateInstallationRes where a CertificateInstallationReq is expected")


def known_emaids(texts: Iterable[str]) -> tuple[EMAID, ...]:
    """The valid EMAIDs among the prioritized ones; other texts cannot name a stored contract."""
    emaids = []
    for text in texts:
        try:
            emaids.append(EMAID.parse(text))
        except FieldError:
            continue
    return tuple(emaids)


def pcid_of(certificate: Certificate) -> PCID:
    """The PCID in the common name of a provisioning certificate. Raises ChainError."""
    try:
        return PCID.parse(certificate.subject_cn)
    except FieldError as exc:
        raise ChainError("The provisioning certificate's common name is no PCID.") from exc


def claimed_pcid(request: InstallationRequest) -> PCID | None:
    """The PCID that an unverified request claims. Use it only in the response to that request."""
    try:
        return pcid_of(Certificate.load(request.certificate))
    except ChainError:
        return None


def check_request(
    request: InstallationRequest,
    *,
    anchors: TrustAnchors | None,
    revocation: RevocationChecker,
    now: datetime,
    checks: CheckList | None = None,
) -> VerifiedInstallationRequest:
    """Check that the vehicle of the provisioning certificate sent the request.

    anchors: None to check only the signature (laboratories without OEM roots). checks: collects a report; by default
    the first failed stage raises.
    Raises ChainError, SignatureError, ExpiredError, RevokedError. Source: ISO 15118-2 [V2G2-771], ISO 15118-20 clause
    7.9.
    """
    checks = checks or CheckList()
    leaf = checks.run(
        "provisioning certificate",
        lambda: _leaf(request, anchors),
        code=ErrorCode.PROVISIONING_CERTIFICATE_INVALID,
        evidence=describe_certificate,
    )
    checks.end_stage()
    pcid = checks.run(
        "PCID in the certificate's common name",
        lambda: pcid_of(unwrap(leaf)),
        code=ErrorCode.PROVISIONING_CERTIFICATE_WITHOUT_PCID,
        needs=(leaf,),
        evidence=as_lines,
    )
    checks.end_stage()
    signed = "CertificateInstallationReq" if request.namespace is Namespace.ISO2 else "OEMProvisioningCertificateChain"
    signature = checks.run(
        "signature of the vehicle",
        lambda: message_signatures.verify_signature(request.parsed, unwrap(leaf).public_key, (signed,)),
        code=ErrorCode.REQUEST_SIGNATURE_INVALID,
        needs=(leaf,),
        evidence=describe_signature,
    )
    checks.end_stage()
    chain = None
    if anchors is None:
        checks.run(
            "validity of the provisioning certificate",
            lambda: _valid(unwrap(leaf), now),
            code=ErrorCode.PROVISIONING_CERTIFICATE_INVALID,
            expired=ErrorCode.PROVISIONING_CERTIFICATE_EXPIRED,
            needs=(leaf,),
        )
    else:
        chain = checks.run(
            "chain of the provisioning certificate to an OEM root",
            lambda: anchors.verify(
                unwrap(leaf),
                load_intermediates(anchors, request.sub_certificates),
                usage=Usage.OEM_PROVISIONING,
                now=now,
                profile=PROFILES[request.namespace],
            ),
            code=ErrorCode.PROVISIONING_CHAIN_UNTRUSTED,
            expired=ErrorCode.PROVISIONING_CERTIFICATE_EXPIRED,
            needs=(leaf,),
            evidence=describe_chain,
        )
        checks.end_stage()
        checks.run(
            "revocation of the provisioning chain",
            lambda: revocation.check(unwrap(chain), now),
            needs=(chain,),
            evidence=as_lines,
        )
    checks.end_stage()
    if not checks.passed:
        raise ChainError("The request does not verify.", code=ErrorCode.REQUEST_NOT_VERIFIED)
    return VerifiedInstallationRequest(
        request, unwrap(leaf), unwrap(pcid), chain, unwrap(signature), CONSTRUCTION_TOKEN
    )


def _leaf(request: InstallationRequest, anchors: TrustAnchors | None) -> Certificate:
    return Certificate.load(request.certificate) if anchors is None else anchors.load_leaf(request.certificate)


def _valid(certificate: Certificate, now: datetime) -> None:
    if now < certificate.not_before:
        raise ChainError(f"Certificate {certificate.display_name} is not valid yet.")
    if now.replace(microsecond=0) > certificate.not_after:
        raise ExpiredError(f"Certificate {certificate.display_name} has expired.")
