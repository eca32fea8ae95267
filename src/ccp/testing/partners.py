"""The partners of a pool, simulated: an eMSP, a provisioning service, and a car. They do what real ones do.

The algorithms follow the keys of the PKI they are made from: P-256 for ISO 15118-2; P-521, or Ed448 with X448 beside
it, for ISO 15118-20.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey

from ccp import exi, verify
from ccp.errors import MismatchError
from ccp.exi import iso2, iso20
from ccp.ids import EMAID, PCID, Namespace
from ccp.testing import contract_keys
from ccp.testing.contract_keys import EncryptedKey
from ccp.testing.pki import PKI, Credential, agreement_public_key
from ccp.verify import message_signatures
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.revocation_policy import NoRevocationCheck


@dataclass(frozen=True, slots=True)
class ContractBundle:
    """What an eMSP hands to the provisioning service: a contract certificate and its key, encrypted for one car."""

    emaid: EMAID
    pcid: PCID
    contract: Credential
    sent: EncryptedKey


def make_contract(
    pki: PKI,
    emaid: EMAID,
    pcid: PCID,
    provisioning_certificate: Certificate,
    at: datetime,
    valid: tuple[datetime, datetime] | None = None,
) -> ContractBundle:
    """The eMSP's part: a contract certificate, and its private key encrypted for the car."""
    contract = pki.contract(emaid, at=at, valid=valid)
    for_car = agreement_public_key(provisioning_certificate)
    if namespace_of(pki) is Namespace.ISO2:
        assert isinstance(contract.key, EllipticCurvePrivateKey)
        assert isinstance(for_car, EllipticCurvePublicKey)
        sent = contract_keys.encrypt_contract_key_iso2(contract.key, for_car)
    else:
        sent = contract_keys.encrypt_contract_key_iso20(
            contract.key,
            for_car,
            curve="SECP521" if isinstance(for_car, EllipticCurvePublicKey) else "X448",
            pcid=pcid,
            contract_certificate=contract.certificate,
        )
    return ContractBundle(emaid, pcid, contract, sent)


def namespace_of(pki: PKI) -> Namespace:
    """The edition that a PKI's keys are made for."""
    key = pki.v2g_root.key
    p256 = isinstance(key, EllipticCurvePrivateKey) and key.curve.name == "secp256r1"
    return Namespace.ISO2 if p256 else Namespace.ISO20


def sign_contract(pki: PKI, bundle: ContractBundle, at: datetime) -> bytes:
    """The provisioning service's part: the signed CertificateInstallationRes, EXI, with the session id 00."""
    if namespace_of(pki) is Namespace.ISO2:
        return _sign_iso2(pki.cps, bundle)
    return _sign_iso20(pki.cps, bundle, at)


def _sign_iso2(cps: Credential, bundle: ContractBundle) -> bytes:
    body = iso2.CertificateInstallationRes(
        "OK",
        iso2.CertificateChain(None, cps.certificate.der, _ders(cps.sub_cas)),
        iso2.CertificateChain("ID1", bundle.contract.certificate.der, _ders(bundle.contract.sub_cas)),
        iso2.ContractSignatureEncryptedPrivateKey("ID2", bundle.sent.encrypted),
        iso2.DHpublickey("ID3", bundle.sent.dh_public_key),
        iso2.EMAID("ID4", str(bundle.emaid)),
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


def _sign_iso20(cps: Credential, bundle: ContractBundle, at: datetime) -> bytes:
    curve = "X448" if isinstance(bundle.contract.key, Ed448PrivateKey) else "SECP521"
    data = iso20.SignedInstallationData(
        "ID1",
        iso20.CertificateChain(bundle.contract.certificate.der, _ders(bundle.contract.sub_cas)),
        curve,
        bundle.sent.dh_public_key,
        SECP521_EncryptedPrivateKey=bundle.sent.encrypted if curve == "SECP521" else None,
        X448_EncryptedPrivateKey=bundle.sent.encrypted if curve == "X448" else None,
    )
    reference = (data.Id, exi.encode_fragment("SignedInstallationData", data, exi.ISO20))
    header = iso20.Header(bytes(8), int(at.timestamp()), message_signatures.create_signature([reference], cps.key))
    chain = iso20.CertificateChain(cps.certificate.der, _ders(cps.sub_cas))
    return exi.encode(iso20.CertificateInstallationRes(header, "OK", "Finished", chain, data, 0))


def _ders(certificates: Iterable[Certificate]) -> tuple[bytes, ...]:
    return tuple(certificate.der for certificate in certificates)


@dataclass(frozen=True, slots=True)
class Car:
    """A vehicle with its provisioning certificate, and the V2G and eMSP roots that its maker put into it."""

    pcid: PCID
    namespace: Namespace
    provisioning: Credential
    anchors: TrustAnchors
    v2g_roots: tuple[Certificate, ...]

    @classmethod
    def build(cls, pki: PKI, pcid: PCID, at: datetime) -> Car:
        return cls.of(pki, pki.vehicle(pcid, at=at), pcid)

    @classmethod
    def of(cls, pki: PKI, provisioning: Credential, pcid: PCID) -> Car:
        return cls(pcid, namespace_of(pki), provisioning, pki.anchors(), (pki.v2g_root.certificate,))

    def request(
        self,
        session_id: bytes,
        at: datetime,
        *,
        prioritised: tuple[str, ...] = (),
        maximum: int = 3,
        roots: tuple[iso2.X509IssuerSerial, ...] | None = None,
    ) -> bytes:
        """A signed CertificateInstallationReq, EXI.

        prioritised, maximum: -20 only. roots: instead of the roots that the car has.
        """
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
            session_id, int(at.timestamp()), message_signatures.create_signature([reference], own.key)
        )
        return exi.encode(iso20.CertificateInstallationReq(header, chain, roots, maximum, tuple(prioritised) or None))

    def install(
        self, octets: bytes, session_id: bytes, at: datetime
    ) -> tuple[EMAID, EllipticCurvePrivateKey | X448PrivateKey]:
        """Do with a response what a car does: check session, chains and signature, decrypt the key and try it.

        Returns the contract's EMAID and its private key, which is known to belong to the contract certificate.
        Raises EXIError, MismatchError, ChainError, SignatureError, KeyMaterialError.
        """
        response = verify.read_response(octets, self.namespace)
        if response.parsed.message.Header.SessionID != session_id:
            raise MismatchError("The response is for another session.")
        verified = verify.check_response(
            response, emaid=None, root=None, anchors=self.anchors, revocation=NoRevocationCheck(), now=at
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
    """Eight random octets, as a charging station hands them out."""
    return secrets.token_bytes(8)
