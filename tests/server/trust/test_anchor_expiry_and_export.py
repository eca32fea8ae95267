"""Trust anchors: accepted roots, expiry states, export to files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ccp.errors import ChainError, ConfigurationError
from ccp.server.trust.anchors import Expiry, expiry_warning, expiry_warnings, export_certificates, trusted_certificate
from ccp.testing.pki import PKI
from ccp.verify.trust_folder import load_trust_directory
from ccp.x509.certificate_checks import validate_root
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import AnchorRole
from tests.server.trust.root_files import damaged, leaf_that_names_itself, root, rsa_root, signed_by_another
from tests.world import AT


@pytest.mark.parametrize("edition", ["iso2", "iso20", "ed448"])
def test_validate_root_accepts_roots_of_every_edition(pkis: dict[str, PKI], edition: str) -> None:
    for credential in (pkis[edition].v2g_root, pkis[edition].emsp_root, pkis[edition].oem_root):
        validate_root(credential.certificate)


def test_validate_root_refuses_an_invalid_self_signature() -> None:
    for certificate in (damaged(root()), signed_by_another()):
        with pytest.raises(ChainError, match="its own signature does not hold"):
            validate_root(certificate)


def test_validate_root_refuses_unusable_roots() -> None:
    with pytest.raises(ChainError, match="not of a kind"):
        validate_root(rsa_root())
    with pytest.raises(ChainError, match="not a CA certificate"):
        validate_root(leaf_that_names_itself())


@pytest.mark.parametrize(
    ("begins", "ends", "expiry", "expected"),
    [
        (-10, 200, Expiry.VALID, None),
        (-10, 90, Expiry.VALID, None),
        (-10, 89, Expiry.SOON, "expires on"),
        (-10, 0, Expiry.SOON, "expires on"),
        (-10, -1, Expiry.EXPIRED, "expired on"),
        (1, 200, Expiry.NOT_YET, "is not valid before"),
    ],
)
def test_expiry_states(begins: int, ends: int, expiry: Expiry, expected: str | None) -> None:
    certificate = root("Root", (AT + timedelta(days=begins), AT + timedelta(days=ends)))
    assert Expiry.of(certificate, AT) is expiry
    warning = expiry_warning(certificate, AT)
    assert warning is None if expected is None else expected in str(warning)


def test_expiry_of_last_second_and_year_9999() -> None:
    certificate = root("Root", (AT - timedelta(days=1), AT))
    assert Expiry.of(certificate, AT.replace(microsecond=999_999)) is Expiry.SOON
    assert Expiry.of(certificate, AT + timedelta(seconds=1)) is Expiry.EXPIRED
    forever = root("Root", (datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)))
    assert Expiry.of(forever, AT) is Expiry.VALID


def test_expiry_warnings_name_each_certificate_once() -> None:
    soon = root("Soon", (AT, AT + timedelta(days=30)))
    snapshot = TrustAnchors.build([(AnchorRole.V2G, soon), (AnchorRole.OEM, soon), (AnchorRole.V2G, root("Later"))])
    assert expiry_warnings(snapshot, AT) == [f'Certificate "Soon" expires on {soon.not_after:%Y-%m-%d}.']


def test_export_certificates_round_trip(pkis: dict[str, PKI], tmp_path: Path) -> None:
    pki = pkis["iso2"]
    twins = [root("Twin"), root("Twin"), root("../../etc/passwd"), root("*")]
    entries = [
        trusted_certificate(pki.v2g_root.certificate, AnchorRole.V2G, "a", AT),
        trusted_certificate(pki.v2g_root.certificate, AnchorRole.EMSP, "a", AT),
        trusted_certificate(pki.oem_root.certificate, AnchorRole.OEM, "a", AT),
        trusted_certificate(pki.oem_sub1.certificate, AnchorRole.OEM, "a", AT),
        *(trusted_certificate(certificate, AnchorRole.EMSP, "a", AT) for certificate in twins),
    ]
    folder = tmp_path / "out"
    written = export_certificates(entries, folder)
    assert len(set(written)) == len(entries)
    assert all(path.resolve().is_relative_to(folder.resolve()) for path in written)
    found = load_trust_directory(folder)
    assert found.by_role(AnchorRole.V2G) == (pki.v2g_root.certificate,)
    assert set(found.by_role(AnchorRole.EMSP)) == {pki.v2g_root.certificate, *twins}
    assert found.by_role(AnchorRole.OEM) == (pki.oem_root.certificate,)
    anchor = found.by_fingerprint(pki.v2g_root.certificate.fingerprint)
    assert anchor is not None
    assert anchor.roles == {AnchorRole.V2G, AnchorRole.EMSP}


def test_export_certificates_requires_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigurationError, match="not an empty directory"):
        export_certificates([trusted_certificate(root(), AnchorRole.V2G, "a", AT)], tmp_path)
    with pytest.raises(ConfigurationError, match="not an empty directory"):
        export_certificates([trusted_certificate(root(), AnchorRole.V2G, "a", AT)], tmp_path / "notes.txt")
