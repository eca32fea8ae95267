"""The CertificateInstallationRes of a provisioning service: reading and checking."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from ccp import exi
from ccp.errors import ChainError, EXIError, FieldError, KeyMaterialError, MismatchError
from ccp.errors.codes import ErrorCode
from ccp.exi import iso2, iso20
from ccp.ids import EMAID, Fingerprint, Namespace
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
from ccp.x509.parse_errors import parse_errors_as
from ccp.x509.path_validation import TrustAnchors, VerifiedChain
from ccp.x509.profiles import Usage
from ccp.x509.revocation_policy import RevocationChecker


@dataclass(frozen=True, slots=True)
class InstallationResponse:
    """An unverified CertificateInstallationRes.

    emaid: as in the message; None in -20, where only the contract certificate contains it. curve: of the key agreement.
    encrypted_key_of: the field that contains the encrypted key. mandatory: elements that the signature must cover.
    """

    parsed: exi.ParsedMessage
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
    """A response of which every check has passed."""

    response: InstallationResponse
    emaid: EMAID
    cps_chain: VerifiedChain
    contract_chain: VerifiedChain
    signature: SignatureEvidence
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        require_token(token)


def read_response(data: bytes, namespace: Namespace | None) -> InstallationResponse:
    """Read a CertificateInstallationRes of one edition, or of the edition that the message itself has for None.

    Raises EXIError, also if its session id cannot be replaced.
    """
    parsed = parse(data, namespace, use_cache=False)
    exi.replace_header_fields(data, session_id=parsed.message.Header.SessionID)
    message = parsed.message
    if isinstance(message, iso2.V2G_Message) and isinstance(message.Body, iso2.CertificateInstallationRes):
        body = message.Body
        cps, contract = body.SAProvisioningCertificateChain, body.ContractSignatureCertChain
        return InstallationResponse(
            parsed, Namespace.ISO2, body.ResponseCode, body.eMAID.value, cps.Certificate, cps.SubCertificates or (),
            contract.Certificate, contract.SubCertificates or (), "SECP256R1", body.DHpublickey.value,
            body.ContractSignatureEncryptedPrivateKey.value, "ContractSignatureEncryptedPrivateKey",
            ("ContractSignatureEncryptedPrivateKey", "ContractSignatureCertChain", "eMAID", "DHpublickey"),
        )  # fmt: skip
    if isinstance(message, iso20.CertificateInstallationRes):
        cps20, signed = message.CPSCertificateChain, message.SignedInstallationData
        name = next(name for name in _KEY_FIELDS if getattr(signed, name) is not None)
        return InstallationResponse(
            parsed, Namespace.ISO20, message.ResponseCode, None, cps20.Certificate, cps20.SubCertificates or (),
            signed.ContractCertificateChain.Certificate, signed.ContractCertificateChain.SubCertificates or (),
            signed.ECDHCurve, signed.DHPublicKey, getattr(signed, name), name, ("SignedInstallationData",),
        )  # fmt: skip
    raise EXIError("a CertificateInstallationReq where a CertificateInstallationRes is expected")


_KEY_FIELDS: Final = ("SECP521_EncryptedPrivateKey", "X448_EncryptedPrivateKey", "TPM_EncryptedPrivateKey")
# By curve: length of the DH public key, and of the encrypted private key by its field; in bytes.
_KEY_LENGTHS: Final[dict[str, tuple[int, dict[str, int]]]] = {
    "SECP256R1": (65, {"ContractSignatureEncryptedPrivateKey": 48}),
    "SECP521": (133, {"SECP521_EncryptedPrivateKey": 94, "TPM_EncryptedPrivateKey": 206}),
    "X448": (56, {"X448_EncryptedPrivateKey": 84}),
}


_NOT_ASKED: Final = "It is asked only for messages that a trusted provisioning service signed."


def check_response(
    response: InstallationResponse,
    *,
    emaid: EMAID | None,
    root: Fingerprint | None,
    anchors: TrustAnchors,
    revocation: RevocationChecker,
    now: datetime,
    checks: CheckList | None = None,
) -> VerifiedInstallationResponse:
    """Check everything that a vehicle relies on, in stages; all failures of a stage are reported together.

    emaid: the publisher's, None to take it from the contract certificate. root: the V2G root that the publisher names,
    None to accept any. checks: collects a report; by default the first failed stage raises.
    Raises MismatchError, ChainError, RevokedError, Unavailable, SignatureError, KeyMaterialError.
    Source: ISO 15118-2 clause 7.9.2, [V2G2-884]; ISO 15118-20 clause 7.9.2.
    """
    checks = checks or CheckList()
    # 1. The message itself.
    checks.run("response code", lambda: _is_ok(response), code=ErrorCode.RESPONSE_NOT_OK)
    contract = checks.run(
        "contract certificate",
        lambda: Certificate.load(response.contract_certificate),
        code=ErrorCode.CONTRACT_CERTIFICATE_INVALID,
        evidence=describe_certificate,
    )
    cps = checks.run(
        "provisioning service certificate",
        lambda: anchors.load_leaf(response.cps_certificate),
        code=ErrorCode.CPS_CERTIFICATE_INVALID,
        evidence=describe_certificate,
    )
    named = checks.run(
        "EMAID the same everywhere",
        lambda: _agreed_emaid(response, emaid, unwrap(contract)),
        code=ErrorCode.EMAID_MISMATCH,
        needs=(contract,),
        evidence=as_lines,
    )
    checks.end_stage()
    # 2. Chains.
    profile = PROFILES[response.namespace]
    cps_chain = checks.run(
        "chain of the provisioning service to a V2G root",
        lambda: anchors.verify(
            unwrap(cps),
            load_intermediates(anchors, response.cps_sub_certificates),
            usage=Usage.CPS,
            now=now,
            profile=profile,
        ),
        code=ErrorCode.CPS_CHAIN_UNTRUSTED,
        expired=ErrorCode.CPS_CERTIFICATE_EXPIRED,
        needs=(cps,),
        evidence=describe_chain,
    )
    contract_chain = checks.run(
        "chain of the contract certificate to an eMSP or V2G root",
        lambda: anchors.verify(
            unwrap(contract),
            load_intermediates(anchors, response.contract_sub_certificates),
            usage=Usage.CONTRACT,
            now=now,
            profile=profile,
        ),
        code=ErrorCode.CONTRACT_CHAIN_UNTRUSTED,
        expired=ErrorCode.CONTRACT_CERTIFICATE_EXPIRED,
        needs=(contract,),
        evidence=describe_chain,
    )
    if root is not None:
        checks.run(
            "V2G root as named",
            lambda: _is_root(unwrap(cps_chain), root),
            code=ErrorCode.ROOT_MISMATCH,
            needs=(cps_chain,),
        )
    checks.end_stage()
    # 3. The provisioning service's signature.
    signature = checks.run(
        "signature of the provisioning service",
        lambda: message_signatures.verify_signature(response.parsed, unwrap(cps).public_key, response.mandatory),
        code=ErrorCode.RESPONSE_SIGNATURE_INVALID,
        needs=(cps,),
        evidence=describe_signature,
    )
    checks.end_stage()
    # 4. Key material.
    checks.run("DH public key", lambda: _check_dh_public_key(response), code=ErrorCode.DH_PUBLIC_KEY_INVALID)
    checks.run("encrypted private key", lambda: _check_encrypted_key(response), code=ErrorCode.ENCRYPTED_KEY_INVALID)
    checks.end_stage()
    # 5. Revocation. Only a trusted provisioning service can make the pool fetch evidence (decision 0005).
    trusted = cps_chain is not None and signature is not None
    for name, chain in (("provisioning service", cps_chain), ("contract", contract_chain)):
        checks.run(
            f"revocation of the {name} chain",
            lambda chain=chain: revocation.check(unwrap(chain), now),  # type: ignore[misc]
            needs=(chain, trusted or None),
            skip_reason="An earlier check failed." if trusted else _NOT_ASKED,
            evidence=as_lines,
        )
    checks.end_stage()
    if not checks.passed:
        raise ChainError("The response does not verify.", code=ErrorCode.RESPONSE_NOT_VERIFIED)
    return VerifiedInstallationResponse(
        response, unwrap(named), unwrap(cps_chain), unwrap(contract_chain), unwrap(signature), CONSTRUCTION_TOKEN
    )


def _is_ok(response: InstallationResponse) -> None:
    if response.response_code != "OK":
        raise MismatchError(f"The message's ResponseCode is {response.response_code}, not OK.")
    message = response.parsed.message
    if isinstance(message, iso20.CertificateInstallationRes) and message.EVSEProcessing != "Finished":
        raise MismatchError(f"The message's EVSEProcessing is {message.EVSEProcessing}, not Finished.")


def _agreed_emaid(response: InstallationResponse, claimed: EMAID | None, contract: Certificate) -> EMAID:
    """The EMAID on which message, contract certificate and publisher agree. Raises MismatchError."""
    try:
        named = EMAID.parse(contract.subject_cn)
    except FieldError as exc:
        raise MismatchError("The contract certificate's common name is no EMAID.") from exc
    if claimed is not None and named != claimed:
        raise MismatchError(f"The contract certificate is for {named}, not for {claimed}.")
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
        raise KeyMaterialError(f"The DH public key has {len(key)} bytes; on {response.curve} it has {length}.")
    if response.curve == "X448":
        # A point of small order makes the agreed secret zero (RFC 7748 clause 6.2).
        if int.from_bytes(key, "little") % (2**448 - 2**224 - 1) in (0, 1, 2**448 - 2**224 - 2):
            raise KeyMaterialError("The DH public key is a point of small order.")
        return
    curve = ec.SECP256R1() if response.curve == "SECP256R1" else ec.SECP521R1()
    with parse_errors_as(lambda: KeyMaterialError(f"The DH public key is no point on {response.curve}.")):
        ec.EllipticCurvePublicKey.from_encoded_point(curve, key)


def _check_encrypted_key(response: InstallationResponse) -> None:
    _, fields = _KEY_LENGTHS[response.curve]
    length = fields.get(response.encrypted_key_of)
    if length is None:
        raise KeyMaterialError(f"{response.encrypted_key_of} does not go with the curve {response.curve}.")
    if len(response.encrypted_key) != length:
        found = len(response.encrypted_key)
        raise KeyMaterialError(f"{response.encrypted_key_of} has {found} bytes; it has to have {length}.")
