"""Simulated partners of a pool: an eMSP with its provisioning service (CPS), and a car.

The keys of the PKI determine the edition and the algorithms: P-256 for ISO 15118-2; P-521, or Ed448 with X448, for
ISO 15118-20.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey

from ccp import exi, verify
from ccp.errors import MismatchError
from ccp.exi import iso2, iso20
from ccp.ids import EMAID, PCID, Namespace, ProviderId
from ccp.testing import contract_keys
from ccp.testing.contract_keys import EncryptedKey
from ccp.testing.pki import PKI, Credential, agreement_public_key
from ccp.verify import message_signatures
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.revocation_policy import NoRevocationCheck


@dataclass(frozen=True, slots=True)
class IssuedContract:
    """A contract certificate and its private key, encrypted for one car: what an eMSP gives to the CPS.

    encrypted_key: the fields of the response that carry the key.
    """

    emaid: EMAID
    pcid: PCID
    contract: Credential
    encrypted_key: EncryptedKey


def issue_contract(
    pki: PKI,
    emaid: EMAID,
    pcid: PCID,
    provisioning_certificate: Certificate,
    now: datetime,
    valid: tuple[datetime, datetime] | None = None,
) -> IssuedContract:
    """Issue a contract certificate and encrypt its private key for the car, as an eMSP does.

    valid: validity period of the certificate, by default two years from `now`.
    """
    contract = pki.contract(emaid, now=now, valid=valid)
    car_key = agreement_public_key(provisioning_certificate)
    if namespace_of(pki) is Namespace.ISO2:
        assert isinstance(contract.key, EllipticCurvePrivateKey)
        assert isinstance(car_key, EllipticCurvePublicKey)
        encrypted_key = contract_keys.encrypt_contract_key_iso2(contract.key, car_key)
    else:
        encrypted_key = contract_keys.encrypt_contract_key_iso20(
            contract.key,
            car_key,
            curve="SECP521" if isinstance(car_key, EllipticCurvePublicKey) else "X448",
            pcid=pcid,
            contract_certificate=contract.certificate,
        )
    return IssuedContract(emaid, pcid, contract, encrypted_key)


def namespace_of(pki: PKI) -> Namespace:
    """Return the edition of ISO 15118 that a PKI's keys belong to."""
    key = pki.v2g_root.key
    p256 = isinstance(key, EllipticCurvePrivateKey) and key.curve.name == "secp256r1"
    return Namespace.ISO2 if p256 else Namespace.ISO20


def sign_contract(pki: PKI, issued: IssuedContract, now: datetime) -> bytes:
    """Sign a CertificateInstallationRes, as a CPS does. Returns EXI with the session id 00."""
    if namespace_of(pki) is Namespace.ISO2:
        return _sign_iso2(pki.cps, issued)
    return _sign_iso20(pki.cps, issued, now)


def _sign_iso2(cps: Credential, issued: IssuedContract) -> bytes:
    body = iso2.CertificateInstallationRes(
        "OK",
        iso2.CertificateChain(None, cps.certificate.der, _ders(cps.sub_cas)),
        iso2.CertificateChain("ID1", issued.contract.certificate.der, _ders(issued.contract.sub_cas)),
        iso2.ContractSignatureEncryptedPrivateKey("ID2", issued.encrypted_key.encrypted),
        iso2.DHpublickey("ID3", issued.encrypted_key.dh_public_key),
        iso2.EMAID("ID4", str(issued.emaid)),
    )
    signed = (
        ("ContractSignatureCertChain", body.ContractSignatureCertChain),
        ("ContractSignatureEncryptedPrivateKey", body.ContractSignatureEncryptedPrivateKey),
        ("DHpublickey", body.DHpublickey),
        ("eMAID", body.eMAID),
    )
    references = [(str(element.Id), exi.encode_fragment(name, element, exi.ISO2)) for name, element in signed]
    return exi.encode(
        iso2.V2G_Message(iso2.Header(b"\0", None, message_signatures.create_signature(references, cps.key)), body)
    )


def _sign_iso20(cps: Credential, issued: IssuedContract, now: datetime) -> bytes:
    curve = "X448" if isinstance(issued.contract.key, Ed448PrivateKey) else "SECP521"
    data = iso20.SignedInstallationData(
        "ID1",
        iso20.CertificateChain(issued.contract.certificate.der, _ders(issued.contract.sub_cas)),
        curve,
        issued.encrypted_key.dh_public_key,
        SECP521_EncryptedPrivateKey=issued.encrypted_key.encrypted if curve == "SECP521" else None,
        X448_EncryptedPrivateKey=issued.encrypted_key.encrypted if curve == "X448" else None,
    )
    reference = (data.Id, exi.encode_fragment("SignedInstallationData", data, exi.ISO20))
    header = iso20.Header(bytes(8), int(now.timestamp()), message_signatures.create_signature([reference], cps.key))
    chain = iso20.CertificateChain(cps.certificate.der, _ders(cps.sub_cas))
    return exi.encode(iso20.CertificateInstallationRes(header, "OK", "Finished", chain, data, 0))


def _ders(certificates: Iterable[Certificate]) -> tuple[bytes, ...]:
    return tuple(certificate.der for certificate in certificates)


@dataclass(frozen=True, slots=True)
class Car:
    """A vehicle with its provisioning certificate and the V2G and eMSP roots that its manufacturer installed.

    The times `now` are aware; the current time by default.
    """

    pcid: PCID
    namespace: Namespace
    provisioning: Credential
    anchors: TrustAnchors
    v2g_roots: tuple[Certificate, ...]

    @classmethod
    def generate(cls, pki: PKI, pcid: PCID | str, now: datetime | None = None) -> Car:
        """Make a car with a new key and provisioning certificate. Raises FieldError for an invalid PCID."""
        pcid = PCID.parse(pcid)
        return cls.from_credential(pki, pki.vehicle(pcid, now=now or datetime.now(UTC)), pcid)

    @classmethod
    def from_credential(cls, pki: PKI, provisioning: Credential, pcid: PCID) -> Car:
        """Make a car with a provisioning certificate of the PKI."""
        return cls(pcid, namespace_of(pki), provisioning, pki.anchors(), (pki.v2g_root.certificate,))

    def request(
        self,
        session_id: bytes,
        now: datetime | None = None,
        *,
        prioritized_emaids: tuple[str, ...] = (),
        max_chains: int = 3,
        roots: tuple[iso2.X509IssuerSerial, ...] | None = None,
    ) -> bytes:
        """Sign a CertificateInstallationReq. Returns EXI.

        prioritized_emaids, max_chains: ISO 15118-20 only. roots: the V2G roots to list, by default the car's own.
        """
        now = now or datetime.now(UTC)
        if roots is None:
            roots = tuple(iso2.X509IssuerSerial(root.subject_dn, root.serial_number) for root in self.v2g_roots)
        own = self.provisioning
        if self.namespace is Namespace.ISO2:
            body = iso2.CertificateInstallationReq("ID1", own.certificate.der, roots)
            reference = (body.Id, exi.encode_fragment("CertificateInstallationReq", body, exi.ISO2))
            return exi.encode(
                iso2.V2G_Message(
                    iso2.Header(session_id, None, message_signatures.create_signature([reference], own.key)), body
                )
            )
        chain = iso20.OEMProvisioningCertificateChain("ID1", own.certificate.der, _ders(own.sub_cas) or None)
        reference = (chain.Id, exi.encode_fragment("OEMProvisioningCertificateChain", chain, exi.ISO20))
        header = iso20.Header(
            session_id, int(now.timestamp()), message_signatures.create_signature([reference], own.key)
        )
        return exi.encode(
            iso20.CertificateInstallationReq(header, chain, roots, max_chains, tuple(prioritized_emaids) or None)
        )

    def install(
        self, message: bytes, session_id: bytes, now: datetime | None = None
    ) -> tuple[EMAID, EllipticCurvePrivateKey | X448PrivateKey]:
        """Verify a CertificateInstallationRes and decrypt its key, as a car does.

        The car checks the session id, the certificate chains, the signature, and that the decrypted private key belongs
        to the contract certificate. message: EXI. session_id: of the request. Returns the contract's EMAID and private
        key. Raises EXIError, MismatchError, ChainError, SignatureError, KeyMaterialError.
        """
        now = now or datetime.now(UTC)
        response = verify.read_response(message, self.namespace)
        if response.parsed.message.Header.SessionID != session_id:
            raise MismatchError("The response has another session id than the request.")
        verified = verify.check_response(
            response, emaid=None, root=None, anchors=self.anchors, revocation=NoRevocationCheck(), now=now
        )
        certificate = verified.contract_chain.leaf
        own = self.provisioning
        if self.namespace is Namespace.ISO2:
            assert isinstance(own.key, EllipticCurvePrivateKey)
            return verified.emaid, contract_keys.decrypt_contract_key_iso2(
                response.dh_public_key, response.encrypted_key, own.key, certificate
            )
        static = own.agreement_key or own.key
        assert isinstance(static, EllipticCurvePrivateKey | X448PrivateKey)
        return verified.emaid, contract_keys.decrypt_contract_key_iso20(
            response.dh_public_key,
            response.encrypted_key,
            static,
            curve="X448" if response.curve == "X448" else "SECP521",
            pcid=self.pcid,
            contract_certificate=certificate,
        )


def new_session_id() -> bytes:
    """Generate eight random bytes, as a charging station does."""
    return secrets.token_bytes(8)


@dataclass(frozen=True, slots=True)
class SignedContract:
    """A contract to publish. message: the signed CertificateInstallationRes, EXI."""

    emaid: EMAID
    pcid: PCID
    namespace: Namespace
    message: bytes


class Provider:
    """An eMSP together with the provisioning service (CPS) that signs for it."""

    def __init__(self, pki: PKI, provider_id: ProviderId | str) -> None:
        """provider_id: country and provider, such as DEEXA. Raises FieldError."""
        self.pki = pki
        self.provider_id = ProviderId.parse(provider_id)
        self._numbers = count(1)

    def sign_contract(self, car: Car, emaid: EMAID | str | None = None, now: datetime | None = None) -> SignedContract:
        """Issue and sign a contract for a car. emaid: by default the provider's next one. Raises FieldError."""
        now = now or datetime.now(UTC)
        emaid = EMAID.parse(f"{self.provider_id}C{next(self._numbers):08d}" if emaid is None else emaid)
        issued = issue_contract(self.pki, emaid, car.pcid, car.provisioning.certificate, now)
        return SignedContract(emaid, car.pcid, car.namespace, sign_contract(self.pki, issued, now))
