"""Encryption of contract keys for a car, and the car's decryption: `ccp.testing.contract_keys`."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDH,
    SECP256R1,
    SECP384R1,
    SECP521R1,
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
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from ccp.errors import KeyMaterialError
from ccp.testing.contract_keys import (
    Curve,
    EncryptedKey,
    associated_data,
    decrypt_contract_key_iso2,
    encrypt_contract_key_iso2,
    encrypt_contract_key_iso20,
    montgomery_u,
    secret_scalar,
)
from ccp.testing.pki import agreement_public_key
from tests.testing.parties import (
    PCID,
    Party,
    decrypted_iso2,
    decrypted_iso20,
    ec_key,
    ec_public,
    encrypted_iso2,
    encrypted_iso20,
    flipped,
    party,
)
from tests.x509.made import AT, forge, replaced, without

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.fixture(scope="module")
def iso2() -> Party:
    return party("P-256")


@pytest.fixture(scope="module", params=["SECP521", "X448"])
def iso20(request: pytest.FixtureRequest) -> tuple[Curve, Party]:
    return request.param, party("P-521" if request.param == "SECP521" else "Ed448")


# --- ISO 15118-2 ---


def test_iso2_key_is_decrypted_by_the_car(iso2: Party) -> None:
    sent = encrypted_iso2(iso2)
    assert (len(sent.dh_public_key), len(sent.encrypted)) == (65, 48)
    assert sent.dh_public_key[0] == 4
    assert decrypted_iso2(iso2, sent).private_numbers() == ec_key(iso2.contract).private_numbers()


def test_iso2_encryptions_of_one_key_share_no_bytes(iso2: Party) -> None:
    one, two = encrypted_iso2(iso2), encrypted_iso2(iso2)
    assert one.dh_public_key != two.dh_public_key
    assert one.encrypted[:16] != two.encrypted[:16]
    assert one.encrypted[16:] != two.encrypted[16:]


def test_iso2_encryption_follows_the_documented_steps(iso2: Party) -> None:
    sent = encrypted_iso2(iso2)
    point = EllipticCurvePublicKey.from_encoded_point(SECP256R1(), sent.dh_public_key)
    shared = ec_key(iso2.car).exchange(ECDH(), point)
    key = hashlib.sha256(b"\0\0\0\1" + shared + b"\x01\x55\x56").digest()[:16]
    cipher = Cipher(AES(key), CBC(sent.encrypted[:16])).decryptor()
    plain = cipher.update(sent.encrypted[16:]) + cipher.finalize()
    assert int.from_bytes(plain, "big") == ec_key(iso2.contract).private_numbers().private_value


@pytest.mark.parametrize("position", range(48))
def test_iso2_key_with_any_changed_byte_is_rejected(iso2: Party, position: int) -> None:
    sent = encrypted_iso2(iso2)
    with pytest.raises(KeyMaterialError):
        decrypted_iso2(iso2, EncryptedKey(sent.dh_public_key, flipped(sent.encrypted, position)))


@pytest.mark.parametrize("position", [0, 1, 32, 33, 64])
def test_iso2_dh_key_with_any_changed_byte_is_rejected(iso2: Party, position: int) -> None:
    sent = encrypted_iso2(iso2)
    with pytest.raises(KeyMaterialError):
        decrypted_iso2(iso2, EncryptedKey(flipped(sent.dh_public_key, position), sent.encrypted))


def test_iso2_key_for_another_car_or_contract_is_rejected(iso2: Party) -> None:
    sent = encrypted_iso2(iso2)
    other = party("P-256")
    with pytest.raises(KeyMaterialError):
        decrypted_iso2(Party(iso2.pki, iso2.contract, other.car), sent)
    with pytest.raises(KeyMaterialError, match="does not belong to contract certificate"):
        decrypted_iso2(Party(iso2.pki, other.contract, iso2.car), sent)


@pytest.mark.parametrize("length", [0, 32, 47, 49, 64])
def test_iso2_key_of_wrong_length_is_rejected(iso2: Party, length: int) -> None:
    sent = encrypted_iso2(iso2)
    with pytest.raises(KeyMaterialError, match=f"{length} bytes, not 48"):
        decrypted_iso2(iso2, EncryptedKey(sent.dh_public_key, (sent.encrypted * 2)[:length]))
    with pytest.raises(KeyMaterialError, match=f"{length} bytes, not 65"):
        decrypted_iso2(iso2, EncryptedKey((sent.dh_public_key * 2)[:length], sent.encrypted))


@pytest.mark.parametrize("scalar", [0, P256_ORDER, P256_ORDER + 1, (1 << 256) - 1])
def test_iso2_scalar_outside_the_group_is_rejected(iso2: Party, scalar: int) -> None:
    ephemeral = generate_private_key(SECP256R1())
    shared = ephemeral.exchange(ECDH(), ec_public(iso2.car.certificate))
    key = hashlib.sha256(b"\0\0\0\1" + shared + b"\x01\x55\x56").digest()[:16]
    cipher = Cipher(AES(key), CBC(bytes(16))).encryptor()
    encrypted = bytes(16) + cipher.update(scalar.to_bytes(32, "big")) + cipher.finalize()
    point = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    with pytest.raises(KeyMaterialError, match="not a private key of its curve"):
        decrypted_iso2(iso2, EncryptedKey(point, encrypted))


def test_iso2_scalar_with_leading_zeros_has_32_bytes(iso2: Party) -> None:
    small = derive_private_key(7, SECP256R1())
    sent = encrypt_contract_key_iso2(small, ec_public(iso2.car.certificate))
    assert len(sent.encrypted) == 48


def test_iso2_keys_of_another_curve_are_rejected(iso2: Party) -> None:
    other = generate_private_key(SECP384R1())
    with pytest.raises(KeyMaterialError, match="private key on secp256r1"):
        encrypt_contract_key_iso2(other, ec_public(iso2.car.certificate))
    with pytest.raises(KeyMaterialError, match="not on secp256r1"):
        encrypt_contract_key_iso2(ec_key(iso2.contract), other.public_key())
    sent = encrypted_iso2(iso2)
    with pytest.raises(KeyMaterialError, match="private key on secp256r1"):
        decrypt_contract_key_iso2(sent.dh_public_key, sent.encrypted, other, iso2.contract.certificate)


# --- ISO 15118-20 ---


def test_iso20_key_is_decrypted_by_the_car(iso20: tuple[Curve, Party]) -> None:
    curve, who = iso20
    sent = encrypted_iso20(curve, who)
    assert (len(sent.dh_public_key), len(sent.encrypted)) == ((133, 94) if curve == "SECP521" else (56, 84))
    key = decrypted_iso20(curve, who, sent)
    if isinstance(key, EllipticCurvePrivateKey):
        assert key.private_numbers() == ec_key(who.contract).private_numbers()
    else:
        assert isinstance(who.contract.key, Ed448PrivateKey)
        assert key.private_bytes_raw() == secret_scalar(who.contract.key)


def test_iso20_encryption_follows_the_documented_steps(iso20: tuple[Curve, Party]) -> None:
    curve, who = iso20
    sent = encrypted_iso20(curve, who)
    if curve == "SECP521":
        point = EllipticCurvePublicKey.from_encoded_point(SECP521R1(), sent.dh_public_key)
        shared = ec_key(who.car).exchange(ECDH(), point)
    else:
        assert who.car.agreement_key is not None
        shared = who.car.agreement_key.exchange(X448PublicKey.from_public_bytes(sent.dh_public_key))
    key = hashlib.sha512(b"\0\0\0\1" + shared + b"\x01\x55\x56").digest()[:32]
    identifier = who.contract.certificate.key_identifier
    assert identifier is not None
    associated = PCID.encode() + identifier.hex().upper().encode()
    assert len(associated) == 17 + 16
    plain = AESGCM(key).decrypt(sent.encrypted[:12], sent.encrypted[12:], associated)
    assert len(plain) == (66 if curve == "SECP521" else 56)
    if curve == "SECP521":
        assert plain[0] >> 1 == 0
        assert int.from_bytes(plain, "big") == ec_key(who.contract).private_numbers().private_value


def test_iso20_key_with_any_changed_byte_is_rejected(iso20: tuple[Curve, Party]) -> None:
    curve, who = iso20
    sent = encrypted_iso20(curve, who)
    for position in range(0, len(sent.encrypted)):
        with pytest.raises(KeyMaterialError):
            decrypted_iso20(curve, who, EncryptedKey(sent.dh_public_key, flipped(sent.encrypted, position)))
    for position in (0, 1, 20, len(sent.dh_public_key) - 1):
        with pytest.raises(KeyMaterialError):
            decrypted_iso20(curve, who, EncryptedKey(flipped(sent.dh_public_key, position), sent.encrypted))


def test_iso20_key_is_bound_to_vehicle_and_contract(iso20: tuple[Curve, Party]) -> None:
    curve, who = iso20
    sent = encrypted_iso20(curve, who)
    with pytest.raises(KeyMaterialError, match="is not for this vehicle and contract"):
        decrypted_iso20(curve, who, sent, pcid="WP0ABC00000000002")
    renewed = forge(
        who.contract.certificate,
        who.pki.emsp_sub2.key,
        lambda tbs: replaced(tbs, ExtensionOID.SUBJECT_KEY_IDENTIFIER, bytes.fromhex("04080102030405060708")),
    )
    with pytest.raises(KeyMaterialError, match="is not for this vehicle and contract"):
        decrypted_iso20(curve, who, sent, certificate=renewed)
    another = who.pki.contract("DEABCC00000002", now=AT).certificate
    with pytest.raises(KeyMaterialError, match="does not belong to contract certificate"):
        decrypted_iso20(curve, who, encrypted_iso20(curve, who, certificate=another), certificate=another)


@pytest.mark.parametrize("length", [0, 83, 93, 95, 206])
def test_iso20_key_of_wrong_length_is_rejected(iso20: tuple[Curve, Party], length: int) -> None:
    curve, who = iso20
    sent = encrypted_iso20(curve, who)
    with pytest.raises(KeyMaterialError, match="bytes, not"):
        decrypted_iso20(curve, who, EncryptedKey(sent.dh_public_key, (sent.encrypted * 3)[:length]))
    with pytest.raises(KeyMaterialError, match="bytes, not"):
        decrypted_iso20(curve, who, EncryptedKey((sent.dh_public_key * 4)[:length], sent.encrypted))


def test_contract_key_of_p521_with_padding_bits_set_is_rejected() -> None:
    who = party("P-521")
    ephemeral = generate_private_key(SECP521R1())
    shared = ephemeral.exchange(ECDH(), ec_public(who.car.certificate))
    key = hashlib.sha512(b"\0\0\0\1" + shared + b"\x01\x55\x56").digest()[:32]
    scalar = ec_key(who.contract).private_numbers().private_value
    point = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    associated = associated_data(PCID, who.contract.certificate)
    for bit in range(521, 528):
        plain = (scalar | 1 << bit).to_bytes(66, "big")
        with pytest.raises(KeyMaterialError, match="bits in front"):
            decrypted_iso20(
                "SECP521", who, EncryptedKey(point, bytes(12) + AESGCM(key).encrypt(bytes(12), plain, associated))
            )
    for wrong in (0, (1 << 521) - 1):
        plain = wrong.to_bytes(66, "big")
        with pytest.raises(KeyMaterialError, match="not a private key"):
            decrypted_iso20(
                "SECP521", who, EncryptedKey(point, bytes(12) + AESGCM(key).encrypt(bytes(12), plain, associated))
            )


def test_contract_key_of_x448_without_clamping_is_rejected() -> None:
    who = party("Ed448")
    ephemeral = X448PrivateKey.generate()
    provisioning = agreement_public_key(who.car.certificate)
    assert isinstance(provisioning, X448PublicKey)
    assert isinstance(who.contract.key, Ed448PrivateKey)
    key = hashlib.sha512(b"\0\0\0\1" + ephemeral.exchange(provisioning) + b"\x01\x55\x56").digest()[:32]
    scalar = secret_scalar(who.contract.key)
    associated = associated_data(PCID, who.contract.certificate)
    for plain in (flipped(scalar, 0), scalar[:-1] + bytes((scalar[-1] & 0x7F,))):
        encrypted = bytes(12) + AESGCM(key).encrypt(bytes(12), plain, associated)
        with pytest.raises(KeyMaterialError, match="not a private key"):
            decrypted_iso20("X448", who, EncryptedKey(ephemeral.public_key().public_bytes_raw(), encrypted))


@pytest.mark.parametrize("point", [bytes(56), b"\1" + bytes(55)])
def test_contract_key_of_x448_of_small_order_is_rejected(point: bytes) -> None:
    who = party("Ed448")
    with pytest.raises(KeyMaterialError, match="small order"):
        decrypted_iso20("X448", who, EncryptedKey(point, encrypted_iso20("X448", who).encrypted))


def test_iso20_keys_of_another_curve_are_rejected(iso2: Party, iso20: tuple[Curve, Party]) -> None:
    curve, who = iso20
    for key, provisioning in (
        (iso2.contract.key, agreement_public_key(who.car.certificate)),
        (who.contract.key, agreement_public_key(iso2.car.certificate)),
    ):
        with pytest.raises(KeyMaterialError):
            encrypt_contract_key_iso20(
                key, provisioning, curve=curve, pcid=PCID, contract_certificate=who.contract.certificate
            )
    sent = encrypted_iso20(curve, who)
    with pytest.raises(KeyMaterialError):
        decrypted_iso20(curve, Party(iso2.pki, who.contract, iso2.car), sent)


def test_contract_keys_of_ed448_and_x448_of_one_scalar_match() -> None:
    for _ in range(30):
        key = Ed448PrivateKey.generate()
        public = X448PrivateKey.from_private_bytes(secret_scalar(key)).public_key()
        assert montgomery_u(key.public_key()) == public.public_bytes_raw()


def test_montgomery_u_maps_the_base_point_of_rfc_8032_to_that_of_rfc_7748() -> None:
    y = 298819210078481492676017930443930673437544040154080242095928241372331506189835876003536878655418784733982303233503462500531545062832660  # noqa: E501
    base = Ed448PublicKey.from_public_bytes(y.to_bytes(57, "little"))
    assert int.from_bytes(montgomery_u(base), "little") == 5


@pytest.mark.parametrize("y", [0, 1, 2**448 - 2**224 - 2])
def test_contract_key_of_ed448_of_small_order_is_rejected(y: int) -> None:
    with pytest.raises(KeyMaterialError, match="small order"):
        montgomery_u(Ed448PublicKey.from_public_bytes(y.to_bytes(57, "little")))


def test_associated_data_is_upper_case_pcid_and_whole_key_identifier(iso2: Party) -> None:
    contract, key = iso2.contract.certificate, iso2.pki.emsp_sub2.key
    long = forge(
        contract, key, lambda tbs: replaced(tbs, ExtensionOID.SUBJECT_KEY_IDENTIFIER, b"\x04\x14" + bytes(range(20)))
    )
    assert (
        associated_data("wp0abc0000000000Ab", long) == b"WP0ABC0000000000AB" + bytes(range(20)).hex().upper().encode()
    )
    without_identifier = forge(contract, key, lambda tbs: without(tbs, ExtensionOID.SUBJECT_KEY_IDENTIFIER))
    with pytest.raises(KeyMaterialError, match="no subject key identifier"):
        associated_data(PCID, without_identifier)
    for pcid in ("", "WP0-ABC", "WP0ABC0000000000ß"):
        with pytest.raises(KeyMaterialError, match="PCID"):
            associated_data(pcid, contract)
