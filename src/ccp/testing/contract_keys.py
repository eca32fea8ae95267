"""Encryption of a contract's private key by the eMSP, and decryption by the car. A pool never decrypts it.

Both editions agree on a key by one-pass ephemeral-static Diffie-Hellman (NIST SP 800-56A, C(1,1); U is the eMSP, V the
car) with the key of the OEM provisioning certificate, derive a key with the concatenation KDF, and encrypt the
contract's private key with it.

    sent = encrypt_contract_key_iso2(contract.key, agreement_public_key(car.certificate))
    key = decrypt_contract_key_iso2(sent.dh_public_key, sent.encrypted, car.key, contract.certificate)

Source: ISO 15118-2 [V2G2-815] to [V2G2-823]; ISO 15118-20 [V2G20-2492] to [V2G20-2510], [V2G20-2535].

ISO 15118-20 leaves two points open. This module interprets them as follows; docs/spec-divergences.md cites it.

* Associated data: the PCID in upper-case ASCII, 17 or 18 characters, without padding; then the contract certificate's
  SubjectKeyIdentifier in upper-case hex, of any length. A certificate without that extension is an error, because the
  key would not be bound to it.
* X448: the field holds 448 bits, but an Ed448 private key (RFC 8032) is a seed of 456 bits. The secret scalar that
  RFC 8032 clause 5.2.5 derives from the seed does fit: it has 56 bytes and is clamped exactly as an X448 private key
  (RFC 7748 clause 5). The plaintext is therefore this scalar in the little-endian encoding of both RFCs. The contract
  certificate is an ordinary Ed448 certificate, and a car can verify that the key belongs to it. To sign with the key, a
  car needs an EdDSA implementation that starts from the scalar. That of `cryptography` starts from the seed, so the
  simulated car only verifies. No published message shows how other implementations interpret this.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDH,
    SECP256R1,
    SECP521R1,
    EllipticCurve,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    derive_private_key,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey, Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey, X448PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ccp.errors import KeyMaterialError
from ccp.x509.certificates import Certificate

Curve = Literal["SECP521", "X448"]

_OTHER_INFO: Final = bytes.fromhex("015556")  # AlgorithmID, party U, party V
_CBC_IV: Final = 16
_GCM_IV: Final = 12
_GCM_TAG: Final = 16
_P256_SCALAR: Final = 32
_P521_SCALAR: Final = 66  # 521 bits behind seven zero bits
_X448_SCALAR: Final = 56
_P256: Final = SECP256R1()
_P521: Final = SECP521R1()

_P448: Final = 2**448 - 2**224 - 1
_EDWARDS448_D: Final = -39081


@dataclass(frozen=True, slots=True)
class EncryptedKey:
    """The two fields of an installation response that carry the key.

    dh_public_key: uncompressed point of 65 bytes (P-256) or 133 bytes (P-521); 56 bytes for X448.
    encrypted: ISO-2 IV 16 ‖ ciphertext 32; -20 IV 12 ‖ ciphertext 66 (SECP521) or 56 (X448) ‖ tag 16.
    """

    dh_public_key: bytes
    encrypted: bytes


def encrypt_contract_key_iso2(
    contract_key: EllipticCurvePrivateKey, provisioning_key: EllipticCurvePublicKey
) -> EncryptedKey:
    """Encrypt for ISO 15118-2; both keys are on P-256. Raises KeyMaterialError."""
    _require_curve(contract_key, _P256)
    ephemeral, shared = _agree(provisioning_key, _P256)
    iv = secrets.token_bytes(_CBC_IV)
    cipher = Cipher(AES(_kdf_iso2(shared)), CBC(iv)).encryptor()
    scalar = contract_key.private_numbers().private_value.to_bytes(_P256_SCALAR, "big")
    return EncryptedKey(ephemeral, iv + cipher.update(scalar) + cipher.finalize())


def decrypt_contract_key_iso2(
    dh_public_key: bytes,
    encrypted: bytes,
    provisioning_key: EllipticCurvePrivateKey,
    contract_certificate: Certificate,
) -> EllipticCurvePrivateKey:
    """Decrypt as an ISO 15118-2 car does.

    CBC has no authentication tag: only the signature of the CPS and the comparison of the public keys protect the
    ciphertext. Raises KeyMaterialError for a wrong length, an invalid point or scalar, or another public key.
    """
    _require_length(encrypted, _CBC_IV + _P256_SCALAR)
    shared = _agree_as_car(dh_public_key, provisioning_key, _P256)
    cipher = Cipher(AES(_kdf_iso2(shared)), CBC(encrypted[:_CBC_IV])).decryptor()
    plain = cipher.update(encrypted[_CBC_IV:]) + cipher.finalize()
    return _contract_key(plain, _P256, contract_certificate)


def encrypt_contract_key_iso20(
    contract_key: EllipticCurvePrivateKey | Ed448PrivateKey,
    provisioning_key: EllipticCurvePublicKey | X448PublicKey,
    *,
    curve: Curve,
    pcid: str,
    contract_certificate: Certificate,
) -> EncryptedKey:
    """Encrypt for ISO 15118-20.

    SECP521 takes two P-521 keys; X448 takes an Ed448 contract key and an X448 provisioning key. Raises
    KeyMaterialError.
    """
    associated = associated_data(pcid, contract_certificate)
    if curve == "SECP521":
        _require_curve(contract_key, _P521)
        assert isinstance(contract_key, EllipticCurvePrivateKey)
        plain = contract_key.private_numbers().private_value.to_bytes(_P521_SCALAR, "big")
        dh_public_key, shared = _agree(provisioning_key, _P521)
    else:
        if not isinstance(contract_key, Ed448PrivateKey) or not isinstance(provisioning_key, X448PublicKey):
            raise KeyMaterialError("X448 takes an Ed448 contract key and an X448 provisioning key.")
        plain = secret_scalar(contract_key)
        ephemeral = X448PrivateKey.generate()
        dh_public_key, shared = ephemeral.public_key().public_bytes_raw(), _x448(ephemeral, provisioning_key)
    iv = secrets.token_bytes(_GCM_IV)
    return EncryptedKey(dh_public_key, iv + AESGCM(_kdf_iso20(shared)).encrypt(iv, plain, associated))


def decrypt_contract_key_iso20(
    dh_public_key: bytes,
    encrypted: bytes,
    provisioning_key: EllipticCurvePrivateKey | X448PrivateKey,
    *,
    curve: Curve,
    pcid: str,
    contract_certificate: Certificate,
) -> EllipticCurvePrivateKey | X448PrivateKey:
    """Decrypt as an ISO 15118-20 car does.

    For X448 the result holds the secret scalar of the contract key; see the module's docstring. Raises KeyMaterialError
    for a wrong length, an invalid DH key, tag, padding or scalar, or another public key.
    """
    associated = associated_data(pcid, contract_certificate)
    _require_length(encrypted, _GCM_IV + (_P521_SCALAR if curve == "SECP521" else _X448_SCALAR) + _GCM_TAG)
    if curve == "SECP521":
        shared = _agree_as_car(dh_public_key, provisioning_key, _P521)
    elif isinstance(provisioning_key, X448PrivateKey):
        shared = _x448(provisioning_key, _x448_public_key(dh_public_key))
    else:
        raise KeyMaterialError("X448 takes an X448 provisioning key.")
    try:
        plain = AESGCM(_kdf_iso20(shared)).decrypt(encrypted[:_GCM_IV], encrypted[_GCM_IV:], associated)
    except InvalidTag as exc:
        raise KeyMaterialError("The encrypted contract key is not for this vehicle and contract.") from exc
    if curve == "SECP521":
        return _contract_key(plain, _P521, contract_certificate)
    return _contract_scalar(plain, contract_certificate)


def associated_data(pcid: str, contract_certificate: Certificate) -> bytes:
    """Return the data that binds an encrypted key to a vehicle and a contract certificate. Raises KeyMaterialError."""
    identifier = contract_certificate.key_identifier
    if not identifier:
        raise KeyMaterialError(
            f"Contract certificate {contract_certificate.display_name} has no subject key identifier."
        )
    if not (pcid.isascii() and pcid.isalnum()):
        raise KeyMaterialError("The PCID has characters other than letters and digits.")
    return pcid.upper().encode() + identifier.hex().upper().encode()


def secret_scalar(key: Ed448PrivateKey) -> bytes:
    """Return the 56 significant bytes of an Ed448 key's secret scalar, little endian. Source: RFC 8032 clause 5.2.5."""
    scalar = bytearray(hashlib.shake_256(key.private_bytes_raw()).digest(114)[:_X448_SCALAR])
    scalar[0] &= 0xFC
    scalar[55] |= 0x80
    return bytes(scalar)


def montgomery_u(key: Ed448PublicKey) -> bytes:
    """Return the X448 public key of the same secret scalar: 56 bytes, little endian.

    The 4-isogeny of RFC 7748 clause 4.2 maps a point (x, y) of edwards448 to u = y²/x², the base point to the base
    point; the curve equation x² + y² = 1 + d·x²·y² gives x² from y. A point and its negative have the same u.
    Raises KeyMaterialError for the neutral element and the point of order two, which have no image.
    """
    y = int.from_bytes(key.public_bytes_raw(), "little") & ((1 << 455) - 1)
    square = y * y % _P448
    if square in (0, 1):
        raise KeyMaterialError("The contract certificate's key is a point of small order.")
    u = square * (_EDWARDS448_D * square - 1) * pow(square - 1, -1, _P448) % _P448
    return u.to_bytes(_X448_SCALAR, "little")


def _contract_key(plain: bytes, curve: EllipticCurve, certificate: Certificate) -> EllipticCurvePrivateKey:
    """Build the key from a big-endian scalar. Non-zero padding bits of a P-521 scalar have their own error sentence."""
    scalar = int.from_bytes(plain, "big")
    if scalar >> curve.key_size:
        raise KeyMaterialError("The bits in front of the decrypted contract key are not zero.")
    try:
        key = derive_private_key(scalar, curve)
    except ValueError as exc:  # zero, or not below the group order
        raise KeyMaterialError("The decrypted contract key is not a private key of its curve.") from exc
    expected = certificate.public_key
    if not isinstance(expected, EllipticCurvePublicKey) or expected != key.public_key():
        raise KeyMaterialError(f"The decrypted key does not belong to contract certificate {certificate.display_name}.")
    return key


def _contract_scalar(plain: bytes, certificate: Certificate) -> X448PrivateKey:
    """Build the key from a clamped little-endian scalar, whose public key must be the certificate's, up to sign."""
    if plain[0] & 0x03 or not plain[-1] & 0x80:
        raise KeyMaterialError("The decrypted contract key is not a private key of its curve.")
    key = X448PrivateKey.from_private_bytes(plain)
    expected = certificate.public_key
    if not isinstance(expected, Ed448PublicKey) or montgomery_u(expected) != key.public_key().public_bytes_raw():
        raise KeyMaterialError(f"The decrypted key does not belong to contract certificate {certificate.display_name}.")
    return key


def _agree(provisioning_key: object, curve: EllipticCurve) -> tuple[bytes, bytes]:
    """Generate an ephemeral key. Returns its public key as an uncompressed point, and the shared secret Z."""
    if not isinstance(provisioning_key, EllipticCurvePublicKey) or provisioning_key.curve.name != curve.name:
        raise KeyMaterialError(f"The provisioning certificate's key is not on {curve.name}.")
    ephemeral = generate_private_key(curve)
    point = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return point, ephemeral.exchange(ECDH(), provisioning_key)


def _agree_as_car(dh_public_key: bytes, provisioning_key: object, curve: EllipticCurve) -> bytes:
    _require_curve(provisioning_key, curve)
    assert isinstance(provisioning_key, EllipticCurvePrivateKey)
    length = 1 + 2 * ((curve.key_size + 7) // 8)  # an uncompressed point
    if len(dh_public_key) != length:
        raise KeyMaterialError(f"The DH public key has {len(dh_public_key)} bytes, not {length}.")
    try:
        point = EllipticCurvePublicKey.from_encoded_point(curve, dh_public_key)
    except ValueError as exc:
        raise KeyMaterialError(f"The DH public key is not a point on {curve.name}.") from exc
    return provisioning_key.exchange(ECDH(), point)


def _x448_public_key(data: bytes) -> X448PublicKey:
    if len(data) != _X448_SCALAR:
        raise KeyMaterialError(f"The DH public key has {len(data)} bytes, not {_X448_SCALAR}.")
    return X448PublicKey.from_public_bytes(data)


def _x448(private: X448PrivateKey, public: X448PublicKey) -> bytes:
    try:
        return private.exchange(public)
    except ValueError as exc:  # a point of small order makes the shared secret zero (RFC 7748 clause 6.2)
        raise KeyMaterialError("The DH public key is a point of small order.") from exc


def _require_curve(key: object, curve: EllipticCurve) -> None:
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name != curve.name:
        raise KeyMaterialError(f"A private key on {curve.name} is required.")


def _require_length(encrypted: bytes, length: int) -> None:
    if len(encrypted) != length:
        raise KeyMaterialError(f"The encrypted contract key has {len(encrypted)} bytes, not {length}.")


def _kdf_iso2(shared: bytes) -> bytes:
    return ConcatKDFHash(hashes.SHA256(), 16, _OTHER_INFO).derive(shared)


def _kdf_iso20(shared: bytes) -> bytes:
    return ConcatKDFHash(hashes.SHA512(), 32, _OTHER_INFO).derive(shared)
