"""Certificates with one bit turned over: whatever is read of them is a value or an error of ours, nothing else.

OPNC_CCP_BIT_FLIPS: how many of the bits are tried (0: all), as in test_bit_flips.py.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509

from ccp.errors import CCPError, ChainError, NotAuthenticated
from ccp.exi.iso2 import X509IssuerSerial
from ccp.ids import PCID
from ccp.schemas.common import encode_base64
from ccp.server.external.provisioning_pool import _parse_chain, key_fingerprint
from ccp.server.external.root_pool import RootCertificatePool
from ccp.server.http.client_certificate import SCOPE_KEY, ClientCertificates
from ccp.server.trust.anchors import trusted_certificate
from ccp.server.trust.root_sync import _select_usable
from ccp.testing.pki import CONTRACT, PKI
from ccp.verify import InstallationRequest, lint
from ccp.verify.trust_folder import is_self_issued
from ccp.x509 import crl_ocsp
from ccp.x509.certificate_checks import validate_root
from ccp.x509.certificates import Certificate
from ccp.x509.distribution_points import distribution_point_names
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import AnchorRole, Profile, Usage
from tests.x509.made import AT, der, forge, replaced, tlv
from tests.x509.rich import rich_extensions, rich_pki

pytestmark = pytest.mark.slow

COUNT = int(os.environ.get("OPNC_CCP_BIT_FLIPS", "500"))
URL = "http://pki.example/a.crl"


def flipped(encoded: bytes, bit: int) -> bytes:
    changed = bytearray(encoded)
    changed[bit // 8] ^= 0x80 >> bit % 8
    return bytes(changed)


def readings(certificate: Certificate, issuer: Certificate) -> Iterator[Callable[[], Any]]:
    """Everything that any part of the pool reads of a certificate."""
    names = (
        "subject_cn display_name subject_dn issuer_dn public_key extensions listed_extensions status_urls "
        "key_identifier authority_key_identifier canonical_issuer canonical_subject is_self_issued "
        "self_signature_error issuer_key_id canonical_issuer_key_id"
    )
    for name in names.split():
        yield lambda name=name: getattr(certificate, name)
    yield from (certificate.pem, certificate.domain_components, certificate.validate_subject)
    yield lambda: certificate.extension(x509.KeyUsage)
    yield lambda: certificate.authority_mismatch(issuer)
    yield lambda: certificate.verify_issued_by(issuer)
    yield lambda: issuer.verify_issued_by(certificate)
    yield lambda: certificate.subject_matches("CN=Sub2")
    yield lambda: key_fingerprint(certificate)
    yield lambda: distribution_point_names(certificate, URL)
    yield lambda: validate_root(certificate)
    yield lambda: crl_ocsp.build_ocsp_request(certificate, issuer)
    yield lambda: crl_ocsp.build_ocsp_request(issuer, certificate, sha256=True)
    yield lambda: crl_ocsp.read_crl(b"0", certificate, AT)
    for usage in Usage:
        yield lambda usage=usage: TrustAnchors.build([(AnchorRole.V2G, issuer)]).verify(
            certificate, (certificate,), usage=usage, now=AT, profile=Profile.ISO20
        )


def read_all(encoded: bytes, issuer: Certificate) -> bool:
    """Read what there is to read. Raises whatever is no error of ours. Returns whether it is a certificate."""
    try:
        certificate = Certificate.load(encoded)
    except CCPError:
        return False
    for read in readings(certificate, issuer):
        with contextlib.suppress(CCPError):
            read()
    return True


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


PKIS: dict[str, Callable[[], PKI]] = {
    "P-256": lambda: rich_pki(AT),
    "P-521": lambda: rich_pki(AT, "P-521", full=True),
    "Ed448": lambda: rich_pki(AT, "Ed448", full=True),
}


@pytest.mark.parametrize("name", PKIS)
def test_flipped_certificate_of_a_chain_is_a_certificate_or_an_error_of_ours(name: str) -> None:
    pki = PKIS[name]()
    leaf = pki.vehicle("WEX0TEST000000001", now=AT)
    chain = (leaf.certificate, *leaf.sub_cas, pki.oem_root.certificate, pki.cps.certificate)
    bits = [(each, bit) for each in chain for bit in range(8 * len(each.der))]
    # An odd step meets every bit of a byte.
    step = 1 if not COUNT else max(1, len(bits) // COUNT - 1) | 1
    read = sum(read_all(flipped(each.der, bit), pki.oem_sub2.certificate) for each, bit in bits[::step])
    assert read > 0


def test_certificate_with_a_flipped_extension_bit_raises_only_ccp_errors() -> None:
    pki = PKI.generate(AT)
    leaf = pki.emsp_sub2.issue("DEABCC00000001", replace(CONTRACT, extra=rich_extensions(full=True)), now=AT)
    issuer = pki.emsp_sub2.certificate
    first, _, last = leaf.certificate._extensions_at or (0, 0, 0)
    assert last - first > 500
    for bit in range(8 * first, 8 * last, 5 if COUNT else 1):
        read_all(flipped(leaf.certificate.der, bit), issuer)


@pytest.mark.parametrize("tag", [0x02, 0x03, 0x04, 0x0A, 0x17, 0x30], ids=hex)
def test_anchor_whose_name_cannot_be_read_matches_no_root_of_a_vehicle(tag: int) -> None:
    root = PKI.generate(AT).v2g_root
    odd = der(0x31, der(0x30, bytes.fromhex("0603550403") + der(tag, der(0x0C, b"x") if tag == 0x30 else b"\0CPS")))
    forged = forge(root.certificate, root.key, lambda tbs: setattr(tbs, "subject", tlv(0x30, odd)))
    assert not forged.subject_matches("CN=V2G Root CA SIM")
    request = InstallationRequest(
        None,
        None,
        b"",
        b"",
        (),
        (X509IssuerSerial("CN=V2G Root CA SIM", forged.serial_number),),
        (),
        1,  # type: ignore[arg-type]
    )
    warnings_of = lint.lint_request(request, TrustAnchors.build([(AnchorRole.V2G, forged)]))
    assert len(warnings_of) == 1
    assert "is not known here" in warnings_of[0]
    child = forge(root.certificate, root.key, lambda tbs: setattr(tbs, "issuer", tlv(0x30, odd)))
    with contextlib.suppress(ChainError):  # Some types cryptography reads.
        assert child.issuer_dn
    assert trusted_certificate(forged, AnchorRole.V2G, "test", AT).is_root == is_self_issued(forged)


def test_extension_with_a_feature_that_no_list_has_is_unreadable() -> None:
    """For an unknown TLS feature `cryptography` raises KeyError."""
    pki = PKI.generate(AT)
    leaf = pki.emsp_sub2.issue("DEABCC00000001", replace(CONTRACT, extra=rich_extensions(full=True)), now=AT)
    feature = x509.TLSFeature.oid
    forged = forge(leaf.certificate, pki.emsp_sub2.key, lambda tbs: replaced(tbs, feature, bytes.fromhex("3003020107")))
    with pytest.raises(KeyError):
        forged.x509.extensions  # noqa: B018
    with pytest.raises(ChainError, match=r"The extensions of certificate .* cannot be read"):
        forged.status_urls  # noqa: B018


def test_flipped_certificate_of_a_provisioning_pool_is_an_error_of_ours() -> None:
    pki = rich_pki(AT, "P-521", full=True)
    pcid = PCID.parse("WEX0TEST000000001")
    whole = pki.vehicle(pcid, now=AT).certificate.der
    for bit in range(0, 8 * len(whole), 5):
        for sent in (
            {"certificate": encode_base64(flipped(whole, bit))},
            {"certificate": flipped(encode_base64(whole).encode(), bit // 8 * 8).decode("latin-1")},
        ):
            with contextlib.suppress(CCPError):
                _parse_chain({"provisioningCertificateChain": sent}, pcid)


def test_flipped_certificate_of_a_root_pool_is_an_error_of_ours_or_a_certificate() -> None:
    root = rich_pki(AT, "P-521", full=True).v2g_root.certificate.der
    step = 17 if COUNT else 1
    entries = [
        {"caCertificate": encode_base64(flipped(root, bit)), "rootType": "V2G"} for bit in range(0, 8 * len(root), step)
    ]
    found = RootCertificatePool._parse(SimpleNamespace(url="x"), {AnchorRole.V2G: entries})  # type: ignore[arg-type]
    usable, unusable = _select_usable(found, AT)
    assert usable == []
    assert len(unusable) > 0


def test_flipped_certificate_of_a_client_is_refused_or_bound() -> None:
    whole = rich_pki(AT, "P-521", full=True).vehicle("WEX0TEST000000001", now=AT).certificate.der
    certificates = ClientCertificates()
    for bit in range(0, 8 * len(whole), 5 if COUNT else 1):
        with contextlib.suppress(NotAuthenticated):
            assert certificates.thumbprint_to_bind({SCOPE_KEY: flipped(whole, bit)})
