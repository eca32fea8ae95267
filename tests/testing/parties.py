"""A contract and a car of one PKI, and shorthands that encrypt the contract's key for the car and decrypt it."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey

from ccp.testing.contract_keys import (
    Curve,
    EncryptedKey,
    decrypt_contract_key_iso2,
    decrypt_contract_key_iso20,
    encrypt_contract_key_iso2,
    encrypt_contract_key_iso20,
)
from ccp.testing.pki import PKI, Algorithm, Credential, agreement_public_key
from ccp.x509.certificates import Certificate
from tests.x509.made import AT

PCID = "WP0ABC00000000001"


@dataclass
class Party:
    """A contract and a car of one PKI."""

    pki: PKI
    contract: Credential
    car: Credential


def party(algorithm: Algorithm) -> Party:
    pki = PKI.generate(AT, algorithm=algorithm)
    return Party(pki, pki.contract("DEABCC00000001", now=AT), pki.vehicle(PCID, now=AT))


def ec_key(credential: Credential) -> EllipticCurvePrivateKey:
    assert isinstance(credential.key, EllipticCurvePrivateKey)
    return credential.key


def ec_public(certificate: Certificate) -> EllipticCurvePublicKey:
    key = agreement_public_key(certificate)
    assert isinstance(key, EllipticCurvePublicKey)
    return key


def encrypted_iso2(who: Party) -> EncryptedKey:
    return encrypt_contract_key_iso2(ec_key(who.contract), ec_public(who.car.certificate))


def decrypted_iso2(who: Party, sent: EncryptedKey) -> EllipticCurvePrivateKey:
    return decrypt_contract_key_iso2(sent.dh_public_key, sent.encrypted, ec_key(who.car), who.contract.certificate)


def encrypted_iso20(curve: Curve, who: Party, pcid: str = PCID, certificate: Certificate | None = None) -> EncryptedKey:
    return encrypt_contract_key_iso20(
        who.contract.key,
        agreement_public_key(who.car.certificate),
        curve=curve,
        pcid=pcid,
        contract_certificate=certificate or who.contract.certificate,
    )


def decrypted_iso20(
    curve: Curve, who: Party, sent: EncryptedKey, pcid: str = PCID, certificate: Certificate | None = None
) -> EllipticCurvePrivateKey | X448PrivateKey:
    return decrypt_contract_key_iso20(
        sent.dh_public_key,
        sent.encrypted,
        who.car.agreement_key or ec_key(who.car),
        curve=curve,
        pcid=pcid,
        contract_certificate=certificate or who.contract.certificate,
    )


def flipped(data: bytes, index: int) -> bytes:
    return data[:index] + bytes((data[index] ^ 1,)) + data[index + 1 :]
