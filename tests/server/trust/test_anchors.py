"""Trust anchors: read from files, stored, loaded as a snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccp.errors import ChainError, ConfigurationError
from ccp.server.storage import Store
from ccp.server.storage.queries import anchors
from ccp.server.trust.anchors import TrustStore, trusted_certificate
from ccp.testing.pki import PKI
from ccp.verify.trust_folder import is_self_issued, load_trust_directory, read_certificate_files
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import AnchorRole, Profile, Usage
from tests.server.storage.made import new_database, with_store
from tests.world import AT


@pytest.fixture
def pki(pkis: dict[str, PKI]) -> PKI:
    return pkis["iso2"]


def verify_car(snapshot: TrustAnchors, pki: PKI) -> None:
    car = pki.vehicle("WEX0TRUST00000001", now=AT)
    snapshot.verify(car.certificate, (), usage=Usage.OEM_PROVISIONING, now=AT, profile=Profile.ISO2)


def test_trust_store_refresh_replaces_the_snapshot(tmp_path: Path, pki: PKI) -> None:
    async def use(store: Store) -> None:
        trust = TrustStore(store)
        before = trust.anchors
        for credential in (pki.oem_root, pki.oem_sub1, pki.oem_sub2):
            await store.write(anchors.add(trusted_certificate(credential.certificate, AnchorRole.OEM, "file.pem", AT)))
        await trust.refresh()
        after = trust.anchors
        verify_car(after, pki)
        with pytest.raises(ChainError):
            verify_car(before, pki)
        assert after.version == before.version + 1
        assert after.by_role(AnchorRole.OEM) == (pki.oem_root.certificate,)
        await store.write(anchors.remove(pki.oem_root.certificate.fingerprint, now=AT))
        await trust.refresh()
        with pytest.raises(ChainError):
            verify_car(trust.anchors, pki)
        verify_car(after, pki)

    with_store(new_database(tmp_path), use)


def test_trust_store_keeps_roles_separate(tmp_path: Path, pki: PKI) -> None:
    async def use(store: Store) -> TrustAnchors:
        for role in (AnchorRole.V2G, AnchorRole.EMSP):
            await store.write(anchors.add(trusted_certificate(pki.v2g_root.certificate, role, "", AT)))
        trust = TrustStore(store)
        await trust.refresh()
        return trust.anchors

    snapshot = with_store(new_database(tmp_path), use)
    assert [len(snapshot.by_role(role)) for role in (AnchorRole.V2G, AnchorRole.EMSP, AnchorRole.OEM)] == [1, 1, 0]


def test_trusted_certificate_has_kind_and_label(pki: PKI) -> None:
    root, sub = pki.oem_root.certificate, pki.oem_sub1.certificate
    assert (is_self_issued(root), is_self_issued(sub)) == (True, False)
    kept = trusted_certificate(sub, AnchorRole.OEM, "file.pem", AT)
    assert (kept.role, kept.is_root, kept.label, kept.certificate) == ("oem", False, "OEM Sub1 CA SIM", sub.der)
    assert kept.fingerprint == sub.fingerprint


def test_anchor_files_may_be_pem_bundles_and_der(tmp_path: Path, pki: PKI) -> None:
    root, sub = pki.oem_root.certificate, pki.oem_sub1.certificate
    (tmp_path / "a.pem").write_bytes(b"Some words before.\n" + root.pem() + b"\nand between\n" + sub.pem())
    (tmp_path / "b.der").write_bytes(root.der)
    (tmp_path / "c.CER").write_bytes(sub.der)
    (tmp_path / "d.txt").write_bytes(b"passed over")
    (tmp_path / "below.pem").mkdir()
    assert [(file.name, found) for file, found in read_certificate_files(tmp_path)] == [
        ("a.pem", root), ("a.pem", sub), ("b.der", root), ("c.CER", sub),
    ]  # fmt: skip
    # A file that is named is read whatever its name.
    (tmp_path / "root").write_bytes(root.der)
    assert [found for _, found in read_certificate_files(tmp_path / "root")] == [root]


@pytest.mark.parametrize("data", [b"", b"text", b"-----BEGIN CERTIFICATE-----\n", b"\x30\x03\x02\x01\x01"])
def test_anchor_file_that_is_no_certificate_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "odd.pem").write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"odd\.pem holds no certificate"):
        list(read_certificate_files(tmp_path))


def test_anchor_files_with_missing_paths_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="There is no file or directory"):
        list(read_certificate_files(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="There is no directory"):
        load_trust_directory(tmp_path / "none")


def test_from_directory_reads_roles_from_folders(tmp_path: Path, pki: PKI) -> None:
    assert load_trust_directory(tmp_path).anchors == ()
    (tmp_path / "everything.pem").write_bytes(pki.v2g_root.certificate.pem())
    (tmp_path / "oem").mkdir()
    for name in ("oem_root", "oem_sub1", "oem_sub2"):
        (tmp_path / "oem" / f"{name}.pem").write_bytes(getattr(pki, name).certificate.pem())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "emsp.pem").write_bytes(pki.emsp_root.certificate.pem())
    snapshot = load_trust_directory(tmp_path)
    assert {role: {c.subject_cn for c in snapshot.by_role(role)} for role in AnchorRole} == {
        AnchorRole.V2G: {"V2G Root CA SIM"},
        AnchorRole.EMSP: {"V2G Root CA SIM"},
        AnchorRole.OEM: {"V2G Root CA SIM", "OEM Root CA SIM"},
    }
    verify_car(snapshot, pki)
