"""Installation requests and responses: read, verified, answered, refused.

What the octets said and what was verified are different types. A `Verified…` can be made only by the function that
checked it. Nothing here does I/O; time, trust anchors and revocation evidence are arguments.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import InitVar, dataclass
from datetime import datetime
from typing import Final, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from ccp import exi
from ccp.checks import Checks
from ccp.contracts import NoContract, SignedContract
from ccp.errors import (
    CCPError,
    ChainError,
    EXIError,
    ExpiredError,
    FieldError,
    KeyMaterialError,
    MismatchError,
    NotFound,
    RevokedError,
    SignatureError,
)
from ccp.exi import iso2, iso20
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.pki import signatures
from ccp.pki.certificates import Certificate, parse_dn
from ccp.pki.evidence import Key, Revocation
from ccp.pki.paths import Profile, TrustAnchors, Usage, VerifiedChain
from ccp.pki.signatures import SignatureEvidence

_PROFILE: Final = {Namespace.ISO2: Profile.ISO2, Namespace.ISO20: Profile.ISO20}
_VERIFIED: Final = object()
T = TypeVar("T")


def _only_here(token: object) -> None:
    if token is not _VERIFIED:
        raise TypeError("Only the verifying functions of this module make verified messages.")


# --- The vehicle's request -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InstallationRequest:
    """What a CertificateInstallationReq says; nothing of it is verified.

    certificate, sub_certificates: DER. roots: as the vehicle lists them. prioritised: EMAIDs in its order (-20).
    maximum: how many contract certificate chains it takes (always one in ISO-2).
    """

    parsed: exi.Parsed
    namespace: Namespace
    session_id: bytes
    certificate: bytes
    sub_certificates: tuple[bytes, ...]
    roots: tuple[iso2.X509IssuerSerial, ...]
    prioritised: tuple[EMAID, ...]
    maximum: int

    def lists_root_of(self, contract: SignedContract) -> bool:
        """Whether the vehicle names the contract's V2G root: its serial, and no attribute of its name differs."""
        name = _folded(contract.root_dn)
        kinds = {kind for kind, _ in name}
        return any(
            {pair for pair in _folded(root.X509IssuerName) if pair[0] in kinds} <= name
            for root in self.roots
            if root.X509SerialNumber == contract.root_serial
        )


@dataclass(frozen=True, slots=True)
class VerifiedInstallationRequest:
    """A request that a vehicle really sent. chain: None where chains of vehicles are not asked for."""

    request: InstallationRequest
    leaf: Certificate
    pcid: PCID
    chain: VerifiedChain | None
    signature: SignatureEvidence
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        _only_here(token)


def read_request(octets: bytes, namespace: Namespace) -> InstallationRequest:
    """Read a CertificateInstallationReq of that namespace. Raises EXIError."""
    parsed = _parse(octets, namespace)
    message = parsed.message
    if isinstance(message, iso2.V2G_Message) and isinstance(message.Body, iso2.CertificateInstallationReq):
        body = message.Body
        return InstallationRequest(
            parsed, namespace, message.Header.SessionID, body.OEMProvisioningCert, (),
            body.ListOfRootCertificateIDs, (), 1,
        )  # fmt: skip
    if isinstance(message, iso20.CertificateInstallationReq):
        chain = message.OEMProvisioningCertificateChain
        return InstallationRequest(
            parsed, namespace, message.Header.SessionID, chain.Certificate, chain.SubCertificates or (),
            message.ListOfRootCertificateIDs, _known_emaids(message.PrioritizedEMAIDs or ()),
            message.MaximumContractCertificateChains,
        )  # fmt: skip
    raise EXIError("a CertificateInstallationRes where a CertificateInstallationReq is expected")


def _known_emaids(texts: Collection[str]) -> tuple[EMAID, ...]:
    """A vehicle's wishes. One that is no EMAID cannot be ours and is passed over."""
    emaids = []
    for text in texts:
        try:
            emaids.append(EMAID.parse(text))
        except FieldError:
            continue
    return tuple(emaids)


def pcid_of(certificate: Certificate) -> PCID:
    """The vehicle that a provisioning certificate names. Raises ChainError."""
    try:
        return PCID.parse(certificate.subject_cn)
    except FieldError as exc:
        raise ChainError("The provisioning certificate's common name is no PCID.") from exc


def pcid_said(request: InstallationRequest) -> PCID | None:
    """The PCID that an unverified request names, for the answer to it and nothing else."""
    try:
        return pcid_of(Certificate.load(request.certificate))
    except ChainError:
        return None


def verify_request(
    request: InstallationRequest,
    *,
    anchors: TrustAnchors | None,
    revocation: Revocation,
    at: datetime,
    checks: Checks | None = None,
) -> VerifiedInstallationRequest:
    """Check that the vehicle of the provisioning certificate sent the request.

    anchors: None where the signature alone has to do (laboratories without OEM roots).
    Raises ChainError, SignatureError, ExpiredError, RevokedError. Source: ISO 15118-2 [V2G2-771], ISO 15118-20 clause
    7.9.
    """
    checks = checks or Checks()
    leaf = checks.run("provisioning certificate", lambda: Certificate.load(request.certificate), evidence=_described)
    checks.end_stage()
    pcid = checks.run(
        "PCID in the certificate's common name", lambda: pcid_of(_the(leaf)), needs=(leaf,), evidence=_said
    )
    checks.end_stage()
    signed = "CertificateInstallationReq" if request.namespace is Namespace.ISO2 else "OEMProvisioningCertificateChain"
    signature = checks.run(
        "signature of the vehicle",
        lambda: signatures.verify(request.parsed, _the(leaf).public_key, (signed,)),
        needs=(leaf,),
        evidence=_covered,
    )
    checks.end_stage()
    chain = None
    if anchors is None:
        checks.run("validity of the provisioning certificate", lambda: _valid(_the(leaf), at), needs=(leaf,))
    else:
        chain = checks.run(
            "chain of the provisioning certificate to an OEM root",
            lambda: anchors.verify(
                _the(leaf),
                _read_all(anchors, request.sub_certificates),
                usage=Usage.OEM_PROVISIONING,
                at=at,
                profile=_PROFILE[request.namespace],
            ),
            needs=(leaf,),
            evidence=_links,
        )
        checks.end_stage()
        checks.run(
            "revocation of the provisioning chain",
            lambda: revocation.check(_the(chain), at),
            needs=(chain,),
            evidence=_said,
        )
    checks.end_stage()
    if not checks.passed:
        raise ChainError("The request does not verify.")
    return VerifiedInstallationRequest(request, _the(leaf), _the(pcid), chain, _the(signature), _VERIFIED)


def _valid(certificate: Certificate, at: datetime) -> None:
    if at < certificate.not_before:
        raise ChainError(f"Certificate {certificate.label} is not valid yet.")
    if at.replace(microsecond=0) > certificate.not_after:
        raise ExpiredError(f"Certificate {certificate.label} has expired.")


# --- The provisioning service's response -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InstallationResponse:
    """What a CertificateInstallationRes says; nothing of it is verified.

    emaid: as the message has it, None in -20, which names it in the contract certificate alone. curve: of the key
    agreement.
    encrypted_key_of: which of the -20 fields holds the encrypted key.
    """

    parsed: exi.Parsed
    namespace: Namespace
    response_code: str
    emaid: str | None
    cps_certificate: bytes
    cps_sub_certificates: tuple[bytes, ...]
    contract_certificate: bytes
    contract_sub_certificates: tuple[bytes, ...]
    curve: str
    dh_public_key: bytes
    encrypted_key: bytes
    encrypted_key_of: str
    mandatory: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VerifiedInstallationResponse:
    """A response whose every part is known to be good at the time it was checked."""

    response: InstallationResponse
    emaid: EMAID
    cps_chain: VerifiedChain
    contract_chain: VerifiedChain
    signature: SignatureEvidence
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        _only_here(token)

    def signed_contract(
        self,
        pcid: PCID,
        metadata: str | None,
        at: datetime,
        *,
        certificates: tuple[Key, ...] | None = None,
        provisioning_key: str | None = None,
    ) -> SignedContract:
        """The contract to keep for a vehicle. certificates: of both chains, the contract's first."""
        contract, root = self.contract_chain.leaf, self.cps_chain.root
        parsed = self.response.parsed
        return SignedContract(
            emaid=self.emaid,
            pcid=pcid,
            namespace=self.response.namespace,
            root_fingerprint=Fingerprint(root.fingerprint),
            root_serial=root.serial_number,
            root_dn=root.dn,
            valid_from=contract.not_before,
            valid_to=contract.not_after,
            certificate=contract.der,
            response=parsed.octets,
            remaining_from_end=parsed.remaining_from_end,
            metadata=metadata,
            created_at=at,
            updated_at=at,
            certificates=certificates,
            provisioning_key=provisioning_key,
        )


def read_response(octets: bytes, namespace: Namespace) -> InstallationResponse:
    """Read a CertificateInstallationRes of that namespace. Raises EXIError, also when no session id could be put in."""
    parsed = _parse(octets, namespace)
    exi.splice(octets, session_id=parsed.message.Header.SessionID)
    message = parsed.message
    if isinstance(message, iso2.V2G_Message) and isinstance(message.Body, iso2.CertificateInstallationRes):
        body = message.Body
        cps, contract = body.SAProvisioningCertificateChain, body.ContractSignatureCertChain
        return InstallationResponse(
            parsed, namespace, body.ResponseCode, body.eMAID.value, cps.Certificate, cps.SubCertificates or (),
            contract.Certificate, contract.SubCertificates or (), "SECP256R1", body.DHpublickey.value,
            body.ContractSignatureEncryptedPrivateKey.value, "ContractSignatureEncryptedPrivateKey",
            ("ContractSignatureEncryptedPrivateKey", "ContractSignatureCertChain", "eMAID", "DHpublickey"),
        )  # fmt: skip
    if isinstance(message, iso20.CertificateInstallationRes):
        cps20, data = message.CPSCertificateChain, message.SignedInstallationData
        name = next(name for name in _KEY_FIELDS if getattr(data, name) is not None)
        return InstallationResponse(
            parsed, namespace, message.ResponseCode, None, cps20.Certificate, cps20.SubCertificates or (),
            data.ContractCertificateChain.Certificate, data.ContractCertificateChain.SubCertificates or (),
            data.ECDHCurve, data.DHPublicKey, getattr(data, name), name, ("SignedInstallationData",),
        )  # fmt: skip
    raise EXIError("a CertificateInstallationReq where a CertificateInstallationRes is expected")


_KEY_FIELDS: Final = ("SECP521_EncryptedPrivateKey", "X448_EncryptedPrivateKey", "TPM_EncryptedPrivateKey")
# Octets of the DH public key and, by the field it stands in, of the encrypted private key, for each curve.
_KEY_LENGTHS: Final[dict[str, tuple[int, dict[str, int]]]] = {
    "SECP256R1": (65, {"ContractSignatureEncryptedPrivateKey": 48}),
    "SECP521": (133, {"SECP521_EncryptedPrivateKey": 94, "TPM_EncryptedPrivateKey": 206}),
    "X448": (56, {"X448_EncryptedPrivateKey": 84}),
}


def verify_response(
    response: InstallationResponse,
    *,
    emaid: EMAID | None,
    root: Fingerprint | None,
    anchors: TrustAnchors,
    revocation: Revocation,
    at: datetime,
    checks: Checks | None = None,
) -> VerifiedInstallationResponse:
    """Check everything that a vehicle will rely on, stage by stage; all failures of one stage are told together.

    emaid: what the publisher says it is, None to take it from the contract certificate. root: the V2G root that it
    names.
    Raises MismatchError, ChainError, RevokedError, Unavailable, SignatureError, KeyMaterialError.
    Source: ISO 15118-2 clause 7.9.2, [V2G2-884]; ISO 15118-20 clause 7.9.2.
    """
    checks = checks or Checks()
    # 1. What it says of itself.
    checks.run("response code", lambda: _is_ok(response))
    contract = checks.run(
        "contract certificate", lambda: Certificate.load(response.contract_certificate), evidence=_described
    )
    cps = checks.run(
        "provisioning service certificate", lambda: Certificate.load(response.cps_certificate), evidence=_described
    )
    named = checks.run(
        "EMAID the same everywhere",
        lambda: _agreed_emaid(response, emaid, _the(contract)),
        needs=(contract,),
        evidence=_said,
    )
    checks.end_stage()
    # 2. Chains and their revocation.
    profile = _PROFILE[response.namespace]
    cps_chain = checks.run(
        "chain of the provisioning service to a V2G root",
        lambda: anchors.verify(
            _the(cps), _read_all(anchors, response.cps_sub_certificates), usage=Usage.CPS, at=at, profile=profile
        ),
        needs=(cps,),
        evidence=_links,
    )
    contract_chain = checks.run(
        "chain of the contract certificate to an eMSP or V2G root",
        lambda: anchors.verify(
            _the(contract),
            _read_all(anchors, response.contract_sub_certificates),
            usage=Usage.CONTRACT,
            at=at,
            profile=profile,
        ),
        needs=(contract,),
        evidence=_links,
    )
    if root is not None:
        checks.run("V2G root as named", lambda: _is_root(_the(cps_chain), root), needs=(cps_chain,))
    for name, chain in (("provisioning service", cps_chain), ("contract", contract_chain)):
        checks.run(
            f"revocation of the {name} chain",
            lambda chain=chain: revocation.check(_the(chain), at),  # type: ignore[misc]
            needs=(chain,),
            evidence=_said,
        )
    checks.end_stage()
    # 3. The provisioning service's signature.
    signature = checks.run(
        "signature of the provisioning service",
        lambda: signatures.verify(response.parsed, _the(cps).public_key, response.mandatory),
        needs=(cps,),
        evidence=_covered,
    )
    checks.end_stage()
    # 4. Key material.
    checks.run("DH public key", lambda: _check_dh_public_key(response))
    checks.run("encrypted private key", lambda: _check_encrypted_key(response))
    checks.end_stage()
    if not checks.passed:
        raise ChainError("The response does not verify.")
    return VerifiedInstallationResponse(
        response, _the(named), _the(cps_chain), _the(contract_chain), _the(signature), _VERIFIED
    )


def _is_ok(response: InstallationResponse) -> None:
    if response.response_code != "OK":
        raise MismatchError(f"The message's ResponseCode is {response.response_code}, not OK.")
    message = response.parsed.message
    if isinstance(message, iso20.CertificateInstallationRes) and message.EVSEProcessing != "Finished":
        raise MismatchError(f"The message's EVSEProcessing is {message.EVSEProcessing}, not Finished.")


def _agreed_emaid(response: InstallationResponse, said: EMAID | None, contract: Certificate) -> EMAID:
    """The EMAID in which the message, the contract certificate and the publisher agree. Raises MismatchError."""
    try:
        named = EMAID.parse(contract.subject_cn)
    except FieldError as exc:
        raise MismatchError("The contract certificate's common name is no EMAID.") from exc
    if said is not None and named != said:
        raise MismatchError(f"The contract certificate is for {named}, not for {said}.")
    if response.emaid is not None:
        try:
            inside = EMAID.parse(response.emaid)
        except FieldError as exc:
            raise MismatchError("The message's eMAID is no EMAID.") from exc
        if inside != named:
            raise MismatchError(f"The message's eMAID is {inside}, the contract certificate is for {named}.")
    return named


def _is_root(chain: VerifiedChain, named: Fingerprint) -> None:
    if chain.root.fingerprint != named:
        raise MismatchError(
            f"The provisioning service's chain leads to the V2G root {chain.root.fingerprint}, "
            "not to the one in cpsV2GRootCertificateFingerprint."
        )


def _check_dh_public_key(response: InstallationResponse) -> None:
    length, _ = _KEY_LENGTHS[response.curve]
    key = response.dh_public_key
    if len(key) != length:
        raise KeyMaterialError(f"The DH public key has {len(key)} octets; on {response.curve} it has {length}.")
    if response.curve == "X448":
        # A point of small order makes the agreed secret zero (RFC 7748 clause 6.2).
        if int.from_bytes(key, "little") % (2**448 - 2**224 - 1) in (0, 1, 2**448 - 2**224 - 2):
            raise KeyMaterialError("The DH public key is a point of small order.")
        return
    curve = ec.SECP256R1() if response.curve == "SECP256R1" else ec.SECP521R1()
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(curve, key)
    except ValueError as exc:
        raise KeyMaterialError(f"The DH public key is no point on {response.curve}.") from exc


def _check_encrypted_key(response: InstallationResponse) -> None:
    _, fields = _KEY_LENGTHS[response.curve]
    length = fields.get(response.encrypted_key_of)
    if length is None:
        raise KeyMaterialError(f"{response.encrypted_key_of} does not go with the curve {response.curve}.")
    if len(response.encrypted_key) != length:
        found = len(response.encrypted_key)
        raise KeyMaterialError(f"{response.encrypted_key_of} has {found} octets; it has to have {length}.")


# --- Answering -------------------------------------------------------------------------------------------------------


def answer(contract: SignedContract, session_id: bytes, at: datetime, remaining: int | None = None) -> bytes:
    """The stored response for a session. Only what the signature does not cover is replaced.

    session_id: at most eight octets. remaining: -20, contracts left after this one; None leaves the stored number.
    """
    if contract.namespace is Namespace.ISO2:
        return exi.splice(contract.response, session_id=session_id)
    return exi.splice(
        contract.response,
        session_id=session_id,
        timestamp=int(at.timestamp()),
        remaining=remaining,
        remaining_from_end=contract.remaining_from_end if remaining is not None else None,
    )


# Which code tells the vehicle why it gets nothing: the first row that fits the error, by edition.
_REFUSALS: Final[tuple[tuple[type[CCPError], str, str], ...]] = (
    (NoContract, "FAILED_NoCertificateAvailable", "WARNING_NoContractMatchingPCIDFound"),
    (NotFound, "FAILED_NoCertificateAvailable", "WARNING_NoCertificateAvailable"),
    (SignatureError, "FAILED_SignatureError", "FAILED_SignatureError"),
    (ExpiredError, "FAILED_CertificateExpired", "WARNING_CertificateExpired"),
    (RevokedError, "FAILED_CertificateRevoked", "WARNING_CertificateRevoked"),
    (ChainError, "FAILED_CertChainError", "WARNING_CertificateValidationError"),
    (CCPError, "FAILED", "FAILED"),
)
_NOTHING: Final = b"\0"  # Receivers choke on empty mandatory values, so one zero octet stands in each.


def refuse(namespace: Namespace, session_id: bytes, reason: CCPError, at: datetime) -> bytes:
    """The negative response of a session: mandatory parts hold one zero octet or "0", nothing is signed."""
    code2, code20 = next(row[1:] for row in _REFUSALS if isinstance(reason, row[0]))
    if namespace is Namespace.ISO2:
        chain = iso2.CertificateChain(None, _NOTHING)
        notification = iso2.Notification("UnknownError", _short(str(reason)))
        body = iso2.CertificateInstallationRes(
            code2, chain, chain, iso2.ContractSignatureEncryptedPrivateKey("0", _NOTHING),
            iso2.DHpublickey("0", _NOTHING), iso2.EMAID("0", "0"),
        )  # fmt: skip
        return exi.encode(iso2.V2G_Message(iso2.Header(session_id, notification), body))
    data = iso20.SignedInstallationData(
        "0", iso20.CertificateChain(_NOTHING, (_NOTHING,)), "SECP521", _NOTHING, SECP521_EncryptedPrivateKey=_NOTHING
    )
    header = iso20.Header(session_id, int(at.timestamp()))
    chain20 = iso20.CertificateChain(_NOTHING)
    return exi.encode(iso20.CertificateInstallationRes(header, code20, "Finished", chain20, data, 0))


def _short(text: str) -> str:
    """At most 64 characters, which is what FaultMsg and many receivers can hold, and none that XML does not allow."""
    text = "".join(character if character.isprintable() else "?" for character in text[:65])
    return text if len(text) <= 64 else text[:61].rstrip() + "..."


# --- Small helpers ---------------------------------------------------------------------------------------------------


def _parse(octets: bytes, namespace: Namespace) -> exi.Parsed:
    parsed = exi.parse(octets)
    if exi.namespace_of(parsed.message) != namespace:
        raise EXIError(f"a message of {exi.namespace_of(parsed.message)}, not of {namespace}")
    return parsed


def _folded(name: str) -> set[tuple[str, str]]:
    return {(kind, value.casefold()) for kind, value in parse_dn(name)}


def _read_all(anchors: TrustAnchors, ders: Collection[bytes]) -> list[Certificate]:
    return [anchors.read(der) for der in ders]


def _the(result: T | None) -> T:
    assert result is not None, "a check runs only when the results it needs are there"
    return result


def _described(certificate: Certificate) -> tuple[str, ...]:
    return (f"{certificate.dn} (SHA-256 {certificate.fingerprint})",)


def _links(chain: VerifiedChain) -> tuple[str, ...]:
    return tuple(
        f"{certificate.label} valid {certificate.not_before:%Y-%m-%d} to {certificate.not_after:%Y-%m-%d}, "
        f"SHA-256 {certificate.fingerprint}"
        for certificate in chain.certificates
    )


def _covered(signature: SignatureEvidence) -> tuple[str, ...]:
    return (
        f"{signature.method}, SignedInfo under the {signature.grammar} grammar",
        *(f"digest of {part.name} (Id {part.id}), {part.digest}" for part in signature.parts),
    )


def _said(text: str) -> tuple[str, ...]:
    return (str(text),)
