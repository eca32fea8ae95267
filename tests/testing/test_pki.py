"""The test PKI: its certificates resemble those in production."""

from __future__ import annotations

import stat
from dataclasses import fields
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey, X448PublicKey

from ccp.errors import ChainError, KeyMaterialError
from ccp.testing.pki import (
    CONTRACT,
    PKI,
    SUBJECT_ALT_PUBLIC_KEY_INFO,
    Algorithm,
    Credential,
    agreement_public_key,
    algorithm_of,
)
from ccp.x509.profiles import Profile, Usage
from tests.x509.made import AT, added, forge

ALGORITHMS: list[Algorithm] = ["P-256", "P-521", "Ed448"]


@pytest.fixture(scope="module", params=ALGORITHMS)
def pki(request: pytest.FixtureRequest) -> PKI:
    return PKI.generate(AT, algorithm=request.param)


def edition(pki: PKI) -> Profile:
    return Profile.ISO2 if algorithm_of(pki.cps.key) == "P-256" else Profile.ISO20


def test_pki_leaf_chains_to_its_root(pki: PKI) -> None:
    anchors = pki.anchors(version=4)
    contract, car = pki.contract("DEABCC00000001", now=AT), pki.vehicle("WP0ABC00000000001", now=AT)
    assert anchors.version == 4
    for leaf, usage, root in (
        (pki.cps, Usage.CPS, pki.v2g_root),
        (contract, Usage.CONTRACT, pki.emsp_root),
        (car, Usage.OEM_PROVISIONING, pki.oem_root),
    ):
        found = anchors.verify(leaf.certificate, leaf.sub_cas, usage=usage, now=AT, profile=edition(pki))
        assert found.certificates == (leaf.certificate, *leaf.sub_cas, root.certificate)


def test_vehicle_leaf_alone_verifies_against_known_oem_sub_cas(pki: PKI) -> None:
    car = pki.vehicle("WP0ABC00000000001", now=AT)
    pki.anchors().verify(car.certificate, (), usage=Usage.OEM_PROVISIONING, now=AT, profile=edition(pki))


def test_pki_leaf_has_its_id_as_common_name(pki: PKI) -> None:
    assert pki.contract("DEABCC00000001", now=AT).certificate.subject_cn == "DEABCC00000001"
    car = pki.vehicle("WP0ABC00000000001", now=AT).certificate
    assert car.subject_cn == "WP0ABC00000000001"
    assert car.domain_components() == {"OEM"}
    assert pki.cps.certificate.domain_components() == {"CPS"}


def test_pki_certificates_are_within_the_limits_of_the_messages(pki: PKI) -> None:
    limit = 800 if edition(pki) is Profile.ISO2 else 1600
    issued = [getattr(pki, field.name) for field in fields(PKI)]
    issued += [pki.contract("DEABCC00000001", now=AT), pki.vehicle("WP0ABC00000000001X", now=AT)]
    for credential in issued:
        certificate = credential.certificate
        assert len(certificate.der) <= limit
        assert certificate.key_identifier is not None
        assert len(certificate.key_identifier) == 8
        assert 0 < certificate.serial_number < 1 << 128


def test_pki_serial_numbers_are_random(pki: PKI) -> None:
    numbers = {pki.contract("DEABCC00000001", now=AT).certificate.serial_number for _ in range(20)}
    assert len(numbers) == 20
    assert max(numbers) > 1 << 100


def test_pki_key_usages_are_those_of_production_certificates(pki: PKI) -> None:
    usage = pki.contract("DEABCC00000001", now=AT).certificate.extension(x509.KeyUsage)
    assert usage is not None
    assert usage.digital_signature
    assert usage.content_commitment
    assert usage.key_encipherment
    assert usage.key_agreement
    assert not usage.key_cert_sign


def test_agreement_public_key_is_the_vehicles_own_or_its_x448_key(pki: PKI) -> None:
    car = pki.vehicle("WP0ABC00000000001", now=AT)
    key = agreement_public_key(car.certificate)
    if algorithm_of(pki.cps.key) == "Ed448":
        assert isinstance(key, X448PublicKey)
        assert car.agreement_key is not None
        assert key == car.agreement_key.public_key()
        extension = car.certificate.extensions.get_extension_for_oid(SUBJECT_ALT_PUBLIC_KEY_INFO)
        assert not extension.critical
    else:
        assert isinstance(key, EllipticCurvePublicKey)
        assert key == car.certificate.public_key
        assert car.agreement_key is None


def test_agreement_public_key_requires_such_a_key() -> None:
    pki = PKI.generate(AT, algorithm="Ed448")
    contract = pki.contract("DEABCC00000001", now=AT).certificate
    with pytest.raises(KeyMaterialError, match="no key for key agreement"):
        agreement_public_key(contract)
    broken = forge(contract, pki.emsp_sub2.key, lambda tbs: added(tbs, SUBJECT_ALT_PUBLIC_KEY_INFO, b"\x30\x00"))
    with pytest.raises(KeyMaterialError, match=r"alternative key .* cannot be read"):
        agreement_public_key(broken)


def test_pki_is_saved_and_loaded(pki: PKI, tmp_path: Path) -> None:
    pki.save(tmp_path)
    pki.save(tmp_path)
    loaded = PKI.load(tmp_path)
    for field in fields(PKI):
        saved, read = getattr(pki, field.name), getattr(loaded, field.name)
        assert read.certificate == saved.certificate
        assert read.sub_cas == saved.sub_cas
        assert read.key.public_key() == saved.key.public_key()
    again = loaded.contract("DEABCC00000002", now=AT)
    pki.anchors().verify(again.certificate, again.sub_cas, usage=Usage.CONTRACT, now=AT, profile=edition(pki))
    assert (tmp_path / "v2g" / "root.pem").exists()
    for key in tmp_path.rglob("*.key.pem"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_credential_is_saved_and_loaded_with_both_keys(pki: PKI, tmp_path: Path) -> None:
    car = pki.vehicle("WP0ABC00000000001", now=AT)
    car.save(tmp_path, "car")
    read = Credential.load(tmp_path, "car")
    assert (read.certificate, read.sub_cas) == (car.certificate, car.sub_cas)
    assert (read.agreement_key is None) == (car.agreement_key is None)
    if read.agreement_key and car.agreement_key:
        assert read.agreement_key.private_bytes_raw() == car.agreement_key.private_bytes_raw()


def test_credential_load_rejects_other_files(tmp_path: Path) -> None:
    pki = PKI.generate(AT, algorithm="Ed448")
    car = pki.vehicle("WP0ABC00000000001", now=AT)
    car.save(tmp_path, "car")
    (tmp_path / "car.x448.pem").write_bytes((tmp_path / "car.key.pem").read_bytes())
    with pytest.raises(ValueError, match="no X448 key"):
        Credential.load(tmp_path, "car")
    (tmp_path / "car.pem").write_bytes(b"nothing")
    with pytest.raises(ChainError):
        Credential.load(tmp_path, "car")
    with pytest.raises(OSError):
        Credential.load(tmp_path, "missing")


def test_issue_with_another_algorithm_for_the_new_key() -> None:
    pki = PKI.generate(AT, algorithm="P-521")
    leaf = pki.emsp_sub2.issue("DEABCC00000001", CONTRACT, now=AT, algorithm="P-256")
    pki.anchors().verify(leaf.certificate, leaf.sub_cas, usage=Usage.CONTRACT, now=AT, profile=Profile.ISO20)


def test_issue_with_an_alternative_key() -> None:
    pki = PKI.generate(AT)
    beside = X448PrivateKey.generate()
    leaf = pki.oem_sub2.issue("WP0ABC00000000001", CONTRACT, now=AT, agreement_key=beside)
    assert agreement_public_key(leaf.certificate) == beside.public_key()
