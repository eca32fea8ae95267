"""Certificates: parsing, properties, extensions."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtensionOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from ccp.errors import ChainError
from ccp.testing.pki import CONTRACT, EXPLICIT_FALSE, Credential, build_certificate, build_root, subject_name
from ccp.x509 import certificates
from ccp.x509.certificate_extensions import _SignedCertificate
from ccp.x509.certificates import Certificate
from ccp.x509.names import names_match, parse_dn
from tests.x509.made import AT, DAY, added, chain, forge, replaced, tlv, without
from tests.x509.published import public_root, request_leaf, response_chains
from tests.x509.random_chains import random_chains

ROOT_NAME = x509.Name(
    [
        x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example GmbH"),
        x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "V2G"),
        x509.NameAttribute(NameOID.COMMON_NAME, "V2G Root CA X G1"),
    ]
)


@pytest.fixture(scope="module")
def issuer() -> Credential:
    return build_root("Root", now=AT)


def certificate_for(issuer: Credential, name: x509.Name) -> Certificate:
    return build_certificate(
        issuer.key.public_key(),
        subject=name,
        issuer=issuer.certificate,
        signer=issuer.key,
        template=CONTRACT,
        valid=(AT, AT + DAY),
    )


def common_name_by_cryptography(certificate: Certificate) -> str:
    """The slow way, which the quick one has to agree with; empty when any attribute of the name cannot be read."""
    try:
        values = certificate.x509.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError:
        return ""
    return str(values[0].value) if len(values) == 1 else ""


def test_certificates_that_are_published_are_read_with_all_their_parts() -> None:
    cps, sub2, _ = response_chains()["cps"]
    assert cps.subject_cn == "CPS 2024.4 QA"
    assert cps.subject_dn == "CN=CPS 2024.4 QA, DC=CPS, O=Hubject GmbH, C=EU"
    assert cps.domain_components() == {"CPS"}
    assert cps.authority_key_identifier == sub2.key_identifier
    assert response_chains()["contract"][0].subject_cn == "DEICECOPNCCERT"
    assert request_leaf().subject_cn == "hubjectopenpnc0001"
    assert request_leaf().subject_dn == "CN=hubjectopenpnc0001, O=hubject.com, OU=PnC, C=DE"


def test_certificates_that_are_not_der_are_read_and_cryptography_alone_does_not() -> None:
    for leaf in (response_chains()["cps"][0], response_chains()["contract"][0]):
        with pytest.raises(ValueError):
            _ = leaf.x509.extensions
        basic = leaf.extension(x509.BasicConstraints)
        assert basic is not None
        assert not basic.ca
        assert leaf.extension(x509.KeyUsage) is not None


def test_basic_constraints_tolerance_changes_nothing_but_the_five_bytes(issuer: Credential) -> None:
    plain = issuer.issue("A", CONTRACT, now=AT).certificate
    defect = forge(
        plain, issuer.key, lambda tbs: added(tbs, ExtensionOID.BASIC_CONSTRAINTS, EXPLICIT_FALSE.value, critical=True)
    )
    expected = [(one.oid, one.critical, one.value) for one in plain.extensions]
    found = [(one.oid, one.critical, one.value) for one in defect.extensions]
    assert found == [*expected, (ExtensionOID.BASIC_CONSTRAINTS, True, x509.BasicConstraints(False, None))]


@pytest.mark.parametrize(
    "encoded", ["3003010101", "300301017f", "3006010100020100", "30040101000000", "300401010005", "30030101", "0101ff"]
)
def test_basic_constraints_with_any_other_defect_are_refused(issuer: Credential, encoded: str) -> None:
    bad = forge(
        issuer.issue("A", CONTRACT, now=AT).certificate,
        issuer.key,
        lambda tbs: added(tbs, ExtensionOID.BASIC_CONSTRAINTS, bytes.fromhex(encoded), critical=True),
    )
    with pytest.raises(ChainError, match='extensions of certificate "A" cannot be read'):
        _ = bad.extensions


def test_basic_constraints_tolerance_does_not_cover_a_second_defect(issuer: Credential) -> None:
    def edit(tbs: Any) -> None:
        added(tbs, ExtensionOID.BASIC_CONSTRAINTS, EXPLICIT_FALSE.value)
        replaced(tbs, ExtensionOID.KEY_USAGE, b"\x03\x01")

    with pytest.raises(ChainError, match="cannot be read"):
        _ = forge(issuer.issue("A", CONTRACT, now=AT).certificate, issuer.key, edit).extensions


def test_basic_constraints_with_twice_the_tolerated_defect_are_refused(issuer: Credential) -> None:
    def edit(tbs: Any) -> None:
        for _ in range(2):
            added(tbs, ExtensionOID.BASIC_CONSTRAINTS, EXPLICIT_FALSE.value)

    with pytest.raises(ChainError, match="cannot be read"):
        _ = forge(issuer.issue("A", CONTRACT, now=AT).certificate, issuer.key, edit).extensions


def test_extensions_that_are_absent_are_none(issuer: Credential) -> None:
    bare = forge(
        issuer.certificate,
        issuer.key,
        lambda tbs: [
            without(tbs, oid) for oid in (ExtensionOID.SUBJECT_KEY_IDENTIFIER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER)
        ],
    )
    assert bare.key_identifier is None
    assert bare.authority_key_identifier is None
    assert bare.extension(x509.NameConstraints) is None


def test_certificate_equals_another_with_the_same_bytes(issuer: Credential) -> None:
    twin = Certificate.load(issuer.certificate.der)
    assert twin == issuer.certificate
    assert len({twin, issuer.certificate}) == 1
    assert twin != issuer.issue("A", CONTRACT, now=AT).certificate
    assert twin != twin.der
    assert twin.fingerprint == hashlib.sha256(twin.der).hexdigest()


def test_pem_goes_there_and_back(issuer: Credential) -> None:
    leaf = issuer.issue("A", CONTRACT, now=AT).certificate
    assert Certificate.load_pem(leaf.pem() + b"\n" + issuer.certificate.pem()) == (leaf, issuer.certificate)
    assert Certificate.load_pem(leaf.pem())[0].der == leaf.der
    for bad in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff\x00"):
        with pytest.raises(ChainError):
            Certificate.load_pem(bad)


def test_tbs_bytes_are_those_that_cryptography_signs_over(issuer: Credential) -> None:
    found = [issuer.certificate, *(one for made in response_chains().values() for one in made)]
    for algorithm in ("P-256", "P-521", "Ed448"):
        found.append(chain(algorithm=algorithm).leaf)
    for certificate in found:
        assert certificate._tbs_bytes == certificate.x509.tbs_certificate_bytes
        assert certificate.serial_number == certificate.x509.serial_number
        assert (certificate.not_before, certificate.not_after) == (
            certificate.x509.not_valid_before_utc,
            certificate.x509.not_valid_after_utc,
        )


@pytest.mark.parametrize("algorithm", ["P-256", "P-521", "Ed448"])
def test_signatures_are_judged_as_cryptography_judges_them(algorithm: Any) -> None:
    made, other = chain(algorithm=algorithm), chain(algorithm=algorithm)
    cases = [(made.leaf, made.sub2), (made.leaf, made.sub1), (made.leaf, other.sub2), (other.leaf, other.sub2)]
    for child, parent in cases:
        try:
            child.x509.verify_directly_issued_by(parent.certificate.x509)
        except Exception:
            with pytest.raises(ChainError, match="was not signed by"):
                child.verify_issued_by(parent.certificate)
        else:
            child.verify_issued_by(parent.certificate)


# --- Common names: the quick way agrees with cryptography ---

WEIRD_NAMES: dict[str, list[tuple[x509.ObjectIdentifier, str, _ASN1Type | None]]] = {
    "no common name": [(NameOID.ORGANIZATION_NAME, "O", None)],
    "two common names": [(NameOID.COMMON_NAME, "a", None), (NameOID.COMMON_NAME, "b", None)],
    "printable": [(NameOID.COMMON_NAME, "WP0ABC", _ASN1Type.PrintableString)],
    "universal": [(NameOID.COMMON_NAME, "äöü", _ASN1Type.UniversalString)],
    "bmp": [(NameOID.COMMON_NAME, "äöü", _ASN1Type.BMPString)],
    "ia5": [(NameOID.COMMON_NAME, "x@y", _ASN1Type.IA5String)],
    "t61": [(NameOID.COMMON_NAME, "abc", _ASN1Type.T61String)],
    "not ASCII": [(NameOID.COMMON_NAME, "Müller ☃ 𝄞", None)],
    "longest": [(NameOID.COMMON_NAME, "x" * 64, None)],
    "long adjacent attribute": [(NameOID.STREET_ADDRESS, "y" * 300, None), (NameOID.COMMON_NAME, "z", None)],
    "the OID inside another value": [(NameOID.ORGANIZATION_NAME, "\x06\x03U\x04\x03\x0c\x04evil", None)],
    "the OID inside its own value": [(NameOID.COMMON_NAME, "\x06\x03U\x04\x03\x0c\x04evil", None)],
    "a null": [(NameOID.COMMON_NAME, "a\x00b", None)],
    "serial number attribute": [(NameOID.SERIAL_NUMBER, "CN=x", None), (NameOID.COMMON_NAME, "y", None)],
}


@pytest.mark.parametrize("kind", WEIRD_NAMES)
def test_common_name_that_is_weird_is_read_as_cryptography_reads_it(issuer: Credential, kind: str) -> None:
    attributes = [x509.NameAttribute(oid, value, asn1) for oid, value, asn1 in WEIRD_NAMES[kind]]
    certificate = certificate_for(issuer, x509.Name(attributes))
    assert certificate.subject_cn == common_name_by_cryptography(certificate)
    assert bool(certificate.subject_cn) == (sum(one.oid == NameOID.COMMON_NAME for one in attributes) == 1)


def test_common_name_that_is_empty_or_multi_valued_is_read_as_cryptography_reads_it(issuer: Credential) -> None:
    both = x509.RelativeDistinguishedName(
        [x509.NameAttribute(NameOID.COMMON_NAME, "a"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "b")]
    )
    for name, expected in ((x509.Name([]), ""), (x509.Name([both]), "a")):
        certificate = certificate_for(issuer, name)
        assert certificate.subject_cn == common_name_by_cryptography(certificate) == expected
        assert "\n" not in certificate.display_name


@pytest.mark.filterwarnings("ignore:Attribute's length")
@pytest.mark.parametrize(
    ("tag", "content", "expected"),
    [
        (0x0C, b"\xff\xfe", ""),
        (0x13, b"a*b", "a*b"),
        (0x13, "ä".encode(), None),
        (0x16, b"\xe4", None),
        (0x1E, b"\x00", None),
        (0x0C, b"", None),
        (0x04, b"encoded", None),
    ],
)
def test_common_name_in_a_wrong_character_set_does_no_harm(
    issuer: Credential, tag: int, content: bytes, expected: str | None
) -> None:
    leaf = issuer.issue("A", CONTRACT, now=AT).certificate
    attribute = bytes.fromhex("0603550403") + bytes((tag, len(content))) + content
    inner = bytes((0x30, len(attribute))) + attribute

    def edit(tbs: Any) -> None:
        tbs.subject = tlv(0x30, bytes((0x31, len(inner))) + inner)

    try:
        odd = forge(leaf, issuer.key, edit)
    except ChainError:
        return
    if expected is not None:
        assert odd.subject_cn == expected
    assert odd.subject_cn == common_name_by_cryptography(odd)
    assert isinstance(odd.subject_dn, str)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.DOMAIN_COMPONENT]),
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=16),
        ),
        max_size=5,
    )
)
def test_common_name_of_any_kind_is_read_as_cryptography_reads_it(
    parts: list[tuple[x509.ObjectIdentifier, str]],
) -> None:
    name = x509.Name([x509.NameAttribute(oid, value, _ASN1Type.UTF8String) for oid, value in parts])
    certificate = certificate_for(_ISSUER, name)
    assert certificate.subject_cn == common_name_by_cryptography(certificate)
    expected = [str(one.value).upper() for one in name.get_attributes_for_oid(NameOID.DOMAIN_COMPONENT)]
    assert certificate.domain_components() == frozenset(expected)


_ISSUER = build_root("Root", now=AT)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_certificate_fields_equal_those_of_a_complete_parser() -> None:
    """On good certificates of every kind, on random ones, and on damaged ones that cryptography still reads."""
    source = random.Random(15118)
    ders = [one.der for made in response_chains().values() for one in made]
    for algorithm in ("P-256", "P-521", "Ed448"):
        made = chain(algorithm=algorithm)
        ders += [one.der for one in (made.leaf, made.sub2.certificate, made.sub1.certificate)]
    for one in random_chains(150, 15118):
        ders += [certificate.der for certificate in (one.leaf, *one.offered, one.root)]
    for _ in range(3000):
        encoded = bytearray(source.choice(ders[:15]))
        encoded[source.randrange(len(encoded))] = source.randrange(256)
        ders.append(bytes(encoded))
    compared = 0
    for der in ders:
        try:
            found = Certificate.load(der)
        except ChainError:
            continue
        compared += 1
        whole = asn1.decode_der(_SignedCertificate, der)
        key = bytes(whole.tbs.subject_public_key_info.data)
        assert found.serial_number == whole.tbs.serial_number
        assert found.issuer_name == bytes(whole.tbs.issuer.data)
        assert found.subject_name == bytes(whole.tbs.subject.data)
        assert key.startswith(found.public_key_algorithm)
        assert len(found.public_key_algorithm) == 2 + key[1]
        assert found._algorithms_agree is (bytes(whole.algorithm.data) == bytes(whole.tbs.signature.data))
        assert found._tbs_bytes == found.x509.tbs_certificate_bytes
    assert compared > 1500


def _extension_fields(certificate: Certificate) -> object:
    try:
        return (
            certificate.listed_extensions,
            certificate.status_urls,
            certificate.key_identifier,
            certificate.authority_key_identifier,
            *(certificate.extension(kind) for kind in (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage)),
        )
    except ChainError as exc:
        return str(exc)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_certificate_extension_cache_equals_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was read before: good chains, damaged ones, and damage to the extensions of one leaf in particular."""
    source = random.Random(20261128)
    ders = [c.der for one in random_chains(100, 15118) for c in (one.leaf, *one.offered, one.root)]
    leaf = chain().leaf
    start = leaf.der.index(leaf.key_identifier or b"?") - 200
    for _ in range(4000):
        encoded = bytearray(leaf.der)
        for _ in range(source.randint(1, 2)):
            encoded[source.randrange(start, len(encoded) - 80)] = source.randrange(256)
        ders.append(bytes(encoded))
    source.shuffle(ders)
    shared = compared = 0
    for der in (*ders, *ders[:500]):
        try:
            found = Certificate.load(der)
        except ChainError:
            continue
        shared += found._split_extensions[0] in certificates._KNOWN_EXTENSIONS
        fields = _extension_fields(found)
        with monkeypatch.context() as patch:
            patch.setattr(certificates, "_KNOWN_EXTENSIONS", {})
            assert fields == _extension_fields(Certificate.load(der))
        compared += 1
    assert compared > 1000
    assert shared > 200
    assert len(certificates._KNOWN_EXTENSIONS) <= certificates._MAX_KNOWN


def test_leaves_that_differ_in_their_key_identifier_alone_keep_it(issuer: Credential) -> None:
    one, other = (issuer.issue(name, CONTRACT, now=AT).certificate for name in ("A", "B"))
    assert one._split_extensions[0] == other._split_extensions[0]
    assert one.key_identifier != other.key_identifier
    for certificate in (one, other):
        expected = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        assert certificate.key_identifier == expected.digest


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_certificate_load_of_damaged_bytes_gives_a_certificate_or_chain_error() -> None:
    source = random.Random(20260301)
    good = chain().leaf.der
    reads: list[Callable[[Certificate], object]] = [
        lambda one: one.subject_cn,
        lambda one: one.subject_dn,
        lambda one: one.display_name,
        lambda one: one.domain_components(),
        lambda one: one.public_key_algorithm,
        lambda one: one.not_before,
        lambda one: one.not_after,
        lambda one: one._tbs_bytes,
        lambda one: one.public_key,
        lambda one: one.extensions,
        lambda one: one.verify_issued_by(_ISSUER.certificate),
    ]
    loaded = 0
    for _ in range(4000):
        encoded = bytearray(good)
        for _ in range(source.randint(1, 3)):
            encoded[source.randrange(len(encoded))] = source.randrange(256)
        try:
            certificate = Certificate.load(bytes(encoded))
        except ChainError:
            continue
        loaded += 1
        # Where another attribute is damaged, cryptography reads none; the common name may still be read.
        assert certificate.subject_cn == (common_name_by_cryptography(certificate) or certificate.subject_cn)
        for read in reads:
            with suppress(ChainError):
                read(certificate)
    assert loaded > 500


# --- Distinguished names as text ---

SENT = {
    "RFC 4514": "CN=V2G Root CA X G1,DC=V2G,O=Example GmbH,C=DE",
    "any order, blanks": "C=DE, DC = V2G ,  CN=V2G  Root CA X G1 , O= Example GmbH",
    "OpenSSL one line": "/C=DE/O=Example GmbH/DC=V2G/CN=V2G Root CA X G1",
    "OpenSSL with blanks": "C = DE, O = Example GmbH, DC = V2G, CN = V2G Root CA X G1",
    "a Python repr": "<Name(CN=V2G Root CA X G1,DC=V2G,O=Example GmbH,C=DE)>",
    "types in lower case": "cn=V2G Root CA X G1,dc=V2G,o=Example GmbH,c=DE",
    "OIDs": "2.5.4.3=V2G Root CA X G1;OID.2.5.4.10=Example GmbH;0.9.2342.19200300.100.1.25=V2G;2.5.4.6=DE",
    "long names": "commonName=V2G Root CA X G1, domainComponent=V2G, organizationName=Example GmbH, countryName=DE",
    "quotes": 'CN="V2G Root CA X G1",DC=V2G,O="Example GmbH",C=DE',
    "escapes": r"CN=V2G\20Root CA X\ G1,DC=V2G,O=Example GmbH,C=DE",
    "multi-valued": "CN=V2G Root CA X G1+DC=V2G,O=Example GmbH,C=DE",
}


@pytest.mark.parametrize("kind", SENT)
def test_name_is_recognised_in_every_form_that_is_sent(kind: str) -> None:
    expected = {("CN", "V2G Root CA X G1"), ("DC", "V2G"), ("O", "Example GmbH"), ("C", "DE")}
    assert parse_dn(SENT[kind]) == expected
    assert names_match(SENT[kind], ROOT_NAME)


def test_name_that_cryptography_prints_is_recognised() -> None:
    for name in (ROOT_NAME, public_root().x509.subject, response_chains()["cps"][0].x509.issuer):
        for text in (str(name), repr(name), name.rfc4514_string()):
            assert names_match(text, name)


def test_subject_dn_as_we_print_it_is_recognised(issuer: Credential) -> None:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, 'a, b + "c" <d>; \\e'),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example, Inc."),
        ]
    )
    certificate = certificate_for(issuer, name)
    assert certificate.subject_dn == r"CN=a\, b \+ \"c\" \<d\>\; \\e, O=Example\, Inc."
    assert parse_dn(certificate.subject_dn) == {("CN", 'a, b + "c" <d>; \\e'), ("O", "Example, Inc.")}
    assert names_match(certificate.subject_dn, name)


def test_subject_dn_with_an_unescaped_comma_keeps_it_in_its_value() -> None:
    assert parse_dn("O=Example, Inc., CN=x") == {("O", "Example, Inc."), ("CN", "x")}


def test_subject_dn_types_that_are_unknown_do_not_spoil_the_rest() -> None:
    assert parse_dn("CN=x,UID=7,1.2.3.4=#0403,C=DE") == {("CN", "x"), ("C", "DE")}


@pytest.mark.parametrize(
    "text",
    [
        "CN=V2G Root CA X G2,DC=V2G,O=Example GmbH,C=DE",
        "CN=V2G Root CA X G1,DC=CPS,O=Example GmbH,C=DE",
        "CN=V2G Root CA X G1,OU=More",
        "DC=V2G,O=Example GmbH,C=DE",
        "V2G Root CA X G1",
        "",
        "=",
        ",,,",
    ],
)
def test_subject_dn_of_another_name_does_not_match(text: str) -> None:
    assert not names_match(text, ROOT_NAME)


def test_subject_dn_in_part_matches_if_the_common_name_is_in_it() -> None:
    assert names_match("CN=V2G Root CA X G1", ROOT_NAME)
    assert names_match("O=EXAMPLE gmbh, cn=v2g root ca x g1", ROOT_NAME)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.text('CNDCO=,;/+\\"<>()# 0aF.', max_size=200))
def test_subject_dn_of_any_text_does_not_make_the_reader_fail(text: str) -> None:
    assert isinstance(parse_dn(text), frozenset)
    names_match(text, ROOT_NAME)


def test_subject_dn_that_is_very_long_is_read_in_reasonable_time() -> None:
    for text in ("CN=" + "a" * 10**6, "," * 10**6, "CN=x," * 10**5, " " * 10**6, "\\" * 10**6, "a" * 10**6 + "="):
        parse_dn(text)


def test_subject_name_and_issuer_name_are_the_bytes_of_the_names(issuer: Credential) -> None:
    leaf = issuer.issue("A", CONTRACT, now=AT).certificate
    assert leaf.issuer_name == issuer.certificate.subject_name
    whole = subject_name("A").public_bytes()
    assert whole.endswith(leaf.subject_name)
    assert len(whole) - len(leaf.subject_name) == 2
    assert leaf.x509.public_bytes(Encoding.DER) == leaf.der
