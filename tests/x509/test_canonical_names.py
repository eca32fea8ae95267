"""Names compared by value (RFC 5280 clause 7.1), and the AuthorityKeyIdentifier that names one issuer certificate."""

from __future__ import annotations

import base64
import contextlib
import random
from typing import Any

import pytest
from cryptography.x509.oid import ExtensionOID

from ccp.errors import ChainError
from ccp.testing.pki import subject_name
from ccp.verify.trust_folder import is_self_issued
from ccp.x509 import canonical_names
from ccp.x509.canonical_names import canonical_name, fold, same_name
from ccp.x509.certificates import Certificate
from ccp.x509.der import DERError
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import AnchorRole, Profile, Usage
from tests.x509.made import AT, Chain, added, chain, content, der, forge, respelled, tlv, without

util = pytest.importorskip("OpenSSL._util", reason="pyOpenSSL is not installed")

COMMON_NAME, ORGANISATION, UNIQUE_ID = (bytes.fromhex(oid) for oid in ("0603550403", "060355040a", "060355042d"))
VALUES = ("Sub CA", "sub ca", " Sub  CA ", "SUB\tCA", "Süb", "SÜB", "süb", "", "a", " ", "€x", "x\0y")
TAGS = (0x0C, 0x13, 0x14, 0x16, 0x1A, 0x1C, 0x1E, 0x0C, 0x13, 0x02, 0x03, 0x04, 0x12, 0x17, 0x30)


def random_name(source: random.Random) -> bytes:
    return b"".join(
        der(0x31, b"".join(random_attribute(source) for _ in range(source.choice((1, 1, 1, 2)))))
        for _ in range(source.choice((1, 1, 1, 2)))
    )


def random_attribute(source: random.Random) -> bytes:
    tag = source.choice(TAGS)
    value = source.choice(VALUES).encode({0x1C: "utf-32-be", 0x1E: "utf-16-be"}.get(tag, "utf-8"))
    if tag == 0x03:
        value = b"\0" + value
    elif tag == 0x30:
        value = der(0x0C, value)
    if source.random() < 0.1:
        value = source.randbytes(source.randrange(6))
    return der(0x30, source.choice((COMMON_NAME, COMMON_NAME, ORGANISATION, UNIQUE_ID)) + der(tag, value))


def openssl_name(name: bytes) -> Any:
    encoded = util.ffi.new("unsigned char[]", der(0x30, name))
    found = util.lib.d2i_X509_NAME(util.ffi.NULL, util.ffi.new("unsigned char **", encoded), len(encoded) - 1)
    return None if found == util.ffi.NULL else util.ffi.gc(found, util.lib.X509_NAME_free)


def test_names_are_the_same_exactly_where_they_are_for_openssl() -> None:
    source = random.Random(15118)
    names = [(name, openssl_name(name)) for name in (random_name(source) for _ in range(300))]
    readable = []
    for name, theirs in names:
        if theirs is None:
            with pytest.raises(DERError):
                canonical_name(name)
        else:
            readable.append((name, theirs))
    same = 0
    for one, theirs in readable:
        for other, others in readable:
            verdict = util.lib.X509_NAME_cmp(theirs, others) == 0
            assert same_name(one, other) == verdict, (one.hex(), other.hex())
            same += verdict and one != other
    util.lib.ERR_clear_error()
    assert same > 50
    assert 50 < len(readable) < 300


def test_canonical_name_is_never_read_from_an_invalid_one() -> None:
    name = subject_name("Sub2").public_bytes()[2:]
    for end in range(1, len(name)):
        with contextlib.suppress(DERError):
            assert canonical_name(name[:end]) != canonical_name(name)
    for raw in (b"\0", b"\x31\x80", name + b"\x31", der(0x31, der(0x30, b"\x06\x01")), b"\x1f\x01\x00"):
        with pytest.raises(DERError):
            canonical_name(raw)


def test_canonical_names_are_remembered_in_bounded_number() -> None:
    for number in range(canonical_names._MAX_KNOWN + 10):
        canonical_name(subject_name(str(number)).public_bytes()[2:])
    assert len(canonical_names._KNOWN) <= canonical_names._MAX_KNOWN


def test_canonical_name_keeps_letters_that_are_not_ascii() -> None:
    assert fold("  Sub\t2  CA\n") == "sub 2 ca"
    assert fold("SÜB") == "sÜb"


# --- Chains ---


def issued_by(whole: Chain, which: str, issuer: bytes) -> None:
    """Exchange the issuer's name in a certificate of a chain. issuer: DER contents."""

    def edit(tbs: Any) -> None:
        tbs.issuer = tlv(0x30, issuer)

    if which == "leaf":
        whole.leaf = forge(whole.leaf, whole.sub2.key, edit)
    else:
        whole.offered[0] = forge(whole.offered[0], whole.sub1.key, edit)


@pytest.mark.parametrize("which", ["leaf", "sub2"])
def test_issuer_in_another_string_type_and_letter_case_is_the_same(which: str) -> None:
    whole = chain(Usage.OEM_PROVISIONING)
    above = whole.sub2 if which == "leaf" else whole.sub1
    issued_by(whole, which, respelled(above.certificate.subject_name))
    assert whole.verify().leaf == whole.leaf
    # Also where the vehicle sends its leaf alone and the sub-CAs are known.
    known = whole.anchors(known=whole.offered)
    assert known.verify(whole.leaf, [], usage=whole.usage, now=AT, profile=Profile.ISO2).leaf == whole.leaf


def test_root_that_is_trusted_is_found_by_value() -> None:
    whole = chain(Usage.CPS)
    issuer = respelled(whole.root.certificate.subject_name)
    whole.offered[1] = forge(whole.offered[1], whole.root.key, lambda tbs: setattr(tbs, "issuer", tlv(0x30, issuer)))
    assert whole.verify().root == whole.root.certificate


def test_root_whose_issuer_is_written_otherwise_is_a_root() -> None:
    root = chain().root
    renamed = forge(
        root.certificate,
        root.key,
        lambda tbs: setattr(tbs, "issuer", tlv(0x30, respelled(root.certificate.subject_name))),
    )
    assert renamed.issuer_name != renamed.subject_name
    assert renamed.is_self_issued
    assert is_self_issued(renamed)


def test_canonical_name_of_another_name_is_another_name() -> None:
    whole = chain(Usage.CPS)
    issued_by(whole, "leaf", subject_name("Sub 2").public_bytes()[2:])
    with pytest.raises(ChainError, match='The issuer of certificate "DEABCC00000001" is neither trusted, known nor'):
        whole.verify()


def test_ca_is_one_issuer_however_its_name_is_written() -> None:
    whole = chain()
    certificate = whole.sub2.certificate
    renamed = forge(
        certificate, whole.sub1.key, lambda tbs: setattr(tbs, "subject", tlv(0x30, respelled(content(tbs.subject))))
    )
    assert renamed.canonical_issuer_key_id == certificate.canonical_issuer_key_id
    assert renamed.canonical_issuer_key_id != whole.sub1.certificate.canonical_issuer_key_id
    assert (
        chain().sub2.certificate.canonical_issuer_key_id != certificate.canonical_issuer_key_id
    )  # The same name with another key.


@pytest.mark.parametrize("tag", [0x02, 0x03, 0x04], ids=["INTEGER", "BIT STRING", "OCTET STRING"])
@pytest.mark.parametrize("field", ["issuer", "subject"])
def test_name_with_a_strange_value_is_a_chain_error(tag: int, field: str) -> None:
    """In a common name, where cryptography raises TypeError for some of them."""
    whole = chain(Usage.CPS)
    name = der(0x31, der(0x30, COMMON_NAME + der(tag, b"\0Sub2")))
    strange = forge(whole.leaf, whole.sub2.key, lambda tbs: setattr(tbs, field, tlv(0x30, name)))
    assert isinstance(strange.subject_dn + strange.display_name, str)
    with pytest.raises(ChainError):
        whole.anchors().verify(strange, whole.offered, usage=Usage.CPS, now=AT, profile=Profile.ISO2)
    sub_ca = forge(whole.offered[0], whole.sub1.key, lambda tbs: setattr(tbs, field, tlv(0x30, name)))
    with pytest.raises(ChainError):
        whole.anchors().verify(whole.leaf, [sub_ca, whole.offered[1]], usage=Usage.CPS, now=AT, profile=Profile.ISO2)


def test_anchor_whose_name_cannot_be_read_does_not_take_the_others_with_it() -> None:
    whole = chain(Usage.CPS)
    name = der(0x31, der(0x30, COMMON_NAME + der(0x02, b"\x07")))
    strange = forge(whole.root.certificate, whole.root.key, lambda tbs: setattr(tbs, "subject", tlv(0x30, name)))
    anchors = TrustAnchors.build([(AnchorRole.V2G, strange), (AnchorRole.V2G, whole.root.certificate)])
    assert whole.verify(anchors).root == whole.root.certificate
    assert not is_self_issued(strange)


# --- AuthorityKeyIdentifier with issuer and serial number ---


def authority(issuer: bytes, serial: int) -> bytes:
    number = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
    return der(0x30, der(0xA1, der(0xA4, der(0x30, issuer))) + der(0x82, number))


def with_authority(whole: Chain, value: bytes) -> Certificate:
    def edit(tbs: Any) -> None:
        without(tbs, ExtensionOID.AUTHORITY_KEY_IDENTIFIER)
        added(tbs, ExtensionOID.AUTHORITY_KEY_IDENTIFIER, value)

    return forge(whole.leaf, whole.sub2.key, edit)


def test_authority_by_issuer_and_serial_number_names_the_issuer_certificate() -> None:
    whole = chain(Usage.CPS)
    sub2 = whole.sub2.certificate
    whole.leaf = with_authority(whole, authority(sub2.issuer_name, sub2.serial_number))
    assert whole.verify().leaf == whole.leaf
    whole.leaf = with_authority(whole, authority(respelled(sub2.issuer_name), sub2.serial_number))
    assert whole.verify().leaf == whole.leaf


def test_sub_ca_renewed_with_the_same_key_is_not_the_one_that_is_named() -> None:
    """OpenSSL: unable to get local issuer certificate."""
    whole = chain(Usage.CPS)
    old = whole.sub2.certificate
    whole.leaf = with_authority(whole, authority(old.issuer_name, old.serial_number))
    renewed = forge(old, whole.sub1.key, lambda tbs: setattr(tbs, "serial_number", old.serial_number + 1))
    first = whole.offered[1]
    whole.offered = [renewed, first]
    with pytest.raises(ChainError, match='names a certificate of its issuer with another serial number than "Sub2"'):
        whole.verify()
    whole.offered = [renewed, old, first]
    assert whole.verify().certificates[1] == old


def test_authority_with_another_issuer_is_refused() -> None:
    whole = chain(Usage.CPS)
    sub2 = whole.sub2.certificate
    whole.leaf = with_authority(whole, authority(subject_name("Sub2").public_bytes()[2:], sub2.serial_number))
    with pytest.raises(ChainError, match='names a certificate of its issuer with another issuer than "Sub2"'):
        whole.verify()


def test_root_that_names_another_certificate_as_its_issuer_is_no_root() -> None:
    whole = chain(Usage.CPS)
    root = whole.root.certificate
    value = authority(root.issuer_name, root.serial_number + 1)
    cross = forge(root, whole.root.key, lambda tbs: added(tbs, ExtensionOID.AUTHORITY_KEY_IDENTIFIER, value))
    anchors = TrustAnchors.build([(AnchorRole.V2G, cross)])
    with pytest.raises(ChainError):
        whole.verify(anchors)


# --- What the sentence says ---


def test_extension_with_an_explicit_critical_false_is_named() -> None:
    leaf = chain(Usage.CPS).leaf
    plain = bytes.fromhex("0603551d0e04")
    explicit = bytes.fromhex("0603551d0e01010004")
    assert plain in leaf.der
    raw = _lengthened(leaf.der, leaf.der.index(plain), plain, explicit)
    with pytest.raises(ChainError, match=r"^These \d+ bytes are not DER: critical is FALSE explicitly\.$"):
        Certificate.load(raw)
    pem = leaf.pem() + _armoured(raw)
    with pytest.raises(ChainError, match="not DER: critical is FALSE explicitly"):
        Certificate.load_pem(pem)


def test_chain_error_names_other_causes() -> None:
    leaf = chain(Usage.CPS).leaf
    with pytest.raises(ChainError, match=r"not an X\.509 certificate: 2 bytes follow its end"):
        Certificate.load(leaf.der + b"\0\0")
    with pytest.raises(ChainError, match=r"not an X\.509 certificate in DER but PEM"):
        Certificate.load(leaf.pem())


def _lengthened(encoded: bytes, at: int, old: bytes, new: bytes) -> bytes:
    """Exchange bytes inside a certificate and mend the length of everything around them."""
    starts = [start for start, content_at, end in _around(encoded, at)]
    encoded = encoded[:at] + new + encoded[at + len(old) :]
    for start in reversed(starts):
        size = encoded[start + 1]
        if size & 0x80:
            count = size & 0x7F
            grown = int.from_bytes(encoded[start + 2 : start + 2 + count], "big") + len(new) - len(old)
            encoded = encoded[: start + 2] + grown.to_bytes(count, "big") + encoded[start + 2 + count :]
        else:
            assert size + len(new) - len(old) < 0x80
            encoded = encoded[: start + 1] + bytes((size + len(new) - len(old),)) + encoded[start + 2 :]
    return encoded


def _around(encoded: bytes, at: int) -> list[tuple[int, int, int]]:
    found = []
    start, end = 0, len(encoded)
    while start < at:
        size, content_at = encoded[start + 1], start + 2
        if size & 0x80:
            content_at += size & 0x7F
            size = int.from_bytes(encoded[start + 2 : content_at], "big")
        if content_at + size <= at:
            start = content_at + size
        else:
            found.append((start, content_at, content_at + size))
            start, end = content_at, content_at + size
    assert start == at < end
    return found


def _armoured(raw: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(raw) + b"-----END CERTIFICATE-----\n"
