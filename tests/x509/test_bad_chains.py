"""Invalid chains: each defect is refused for that reason and no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from ccp.errors import ChainError, ExpiredError
from ccp.testing.pki import (
    CONTRACT,
    CPS,
    OEM_PROVISIONING,
    ROOT,
    SUB_CA1,
    SUB_CA2,
    Template,
    build_certificate,
    build_root,
    subject_name,
)
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import AnchorRole, Profile, Usage
from tests.x509.made import (
    AT,
    DAY,
    ECDSA_SHA1,
    ECDSA_SHA384,
    ECDSA_SHA512,
    Chain,
    added,
    chain,
    der,
    forge,
    replaced,
    tampered,
    tlv,
    without,
)

OVER = (AT - 2 * DAY, AT - DAY)
TO_COME = (AT + DAY, AT + 9 * DAY)


def leaf_with(edit: Callable[..., object], **more: object) -> Callable[[], Chain]:
    def make() -> Chain:
        made = chain()
        made.leaf = forge(made.leaf, made.sub2.key, edit, **more)  # type: ignore[arg-type]
        return made

    return make


def sub1_with(edit: Callable[..., object]) -> Callable[[], Chain]:
    def make() -> Chain:
        made = chain()
        made.offered[1] = forge(made.sub1.certificate, made.root.key, edit)
        return made

    return make


def root_with(edit: Callable[..., object]) -> Callable[[], Chain]:
    def make() -> Chain:
        made = chain()
        made.root = replace(made.root, certificate=forge(made.root.certificate, made.root.key, edit))
        return made

    return make


def with_extra(template: Template, extension: x509.ExtensionType, critical: bool) -> Template:
    return replace(template, extra=((extension, critical),))


def serial(number: int) -> Callable[..., None]:
    def edit(tbs: object) -> None:
        tbs.serial_number = number  # type: ignore[attr-defined]

    return edit


def version_1(tbs: object) -> None:
    tbs.version, tbs.extensions = 0, None  # type: ignore[attr-defined]


def other_authority_key(tbs: object) -> None:
    replaced(tbs, ExtensionOID.AUTHORITY_KEY_IDENTIFIER, bytes.fromhex("300a80080102030405060708"))


def unknown_critical(tbs: object) -> None:
    added(tbs, x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00", critical=True)


def basic_constraints(encoded: str) -> Callable[..., None]:
    def edit(tbs: object) -> None:
        without(tbs, ExtensionOID.BASIC_CONSTRAINTS)
        added(tbs, ExtensionOID.BASIC_CONSTRAINTS, bytes.fromhex(encoded))

    return edit


def signed_by_a_stranger() -> Chain:
    made = chain()
    made.leaf = forge(made.leaf, chain().sub2.key)
    return made


def with_tampered_leaf() -> Chain:
    made = chain()
    made.leaf = tampered(made.leaf)
    return made


def with_tampered_sub() -> Chain:
    made = chain()
    made.offered[1] = tampered(made.offered[1])
    return made


def of_another_issuer() -> Chain:
    made = chain()
    made.leaf = build_root("Unrelated Root", now=AT).issue("DEABCC00000001", CONTRACT, now=AT).certificate
    return made


def without_subs() -> Chain:
    made = chain()
    made.offered = []
    return made


def without_sub1() -> Chain:
    made = chain()
    del made.offered[1]
    return made


def under_an_unknown_root() -> Chain:
    made = chain()
    made.root = build_root("Root of others", now=AT)
    return made


def under_a_root_of_the_same_name() -> Chain:
    made = chain()
    impostor = forge(build_root("Root", now=AT).certificate, made.leaf_key, lambda tbs: without_identifiers(tbs))
    made.root = replace(made.root, certificate=impostor)
    return made


def with_a_damaged_root() -> Chain:
    made = chain()
    made.root = replace(made.root, certificate=tampered(made.root.certificate))
    return made


def with_a_sub_ca_as_root() -> Chain:
    made = chain()
    made.root = made.sub1
    return made


def without_identifiers(tbs: object) -> None:
    without(tbs, ExtensionOID.SUBJECT_KEY_IDENTIFIER)
    without(tbs, ExtensionOID.AUTHORITY_KEY_IDENTIFIER)


def with_five_intermediates() -> Chain:
    made = chain()
    made.offered = [*made.offered, *made.offered, made.offered[0]]
    return made


def with_three_levels_of_subs() -> Chain:
    made = chain(sub1=replace(SUB_CA1, path_length=None), sub2=replace(SUB_CA2, path_length=None))
    third = made.sub2.issue("Sub3", SUB_CA2, now=AT)
    made.leaf = third.issue("DEABCC00000001", CONTRACT, now=AT).certificate
    made.offered = [third.certificate, *made.offered]
    return made


def with_a_root_between() -> Chain:
    made = chain()
    lonely = build_root("Sub2", now=AT, template=replace(ROOT, path_length=None))
    made.leaf = lonely.issue("DEABCC00000001", CONTRACT, now=AT).certificate
    made.offered = [lonely.certificate]
    return made


def issued_by_a_leaf() -> Chain:
    made = chain(leaf=replace(CONTRACT, key_usage=CONTRACT.key_usage | {"key_cert_sign"}))
    issuer = made.sub2.issue("Leaf", CONTRACT, now=AT)
    made.leaf = issuer.issue("DEABCC00000001", CONTRACT, now=AT).certificate
    made.offered = [issuer.certificate, made.sub2.certificate, made.sub1.certificate]
    return made


def with_a_p384_leaf() -> Chain:
    made = chain()
    made.leaf = build_certificate(
        generate_private_key(SECP384R1()).public_key(),
        subject=subject_name("DEABCC00000001"),
        issuer=made.sub2.certificate,
        signer=made.sub2.key,
        template=CONTRACT,
        valid=(AT, AT + DAY),
    )
    return made


def with_explicit_curve_parameters() -> Chain:
    """The right curve, spelled out instead of named: two ways to say a curve are one too many."""
    made = chain()
    point = made.leaf.x509.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)  # type: ignore[call-arg]
    field = bytes.fromhex("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff")
    a = bytes.fromhex("ffffffff00000001000000000000000000000000fffffffffffffffffffffffc")
    b = bytes.fromhex("5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b")
    base = bytes.fromhex(
        "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
        "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
    )
    order = bytes.fromhex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551")

    parameters = (
        bytes.fromhex("020101")
        + der(0x30, bytes.fromhex("06072a8648ce3d0101") + der(0x02, b"\0" + field))
        + der(0x30, der(0x04, a) + der(0x04, b))
        + der(0x04, base)
        + der(0x02, b"\0" + order)
        + bytes.fromhex("020101")
    )
    algorithm = der(0x30, bytes.fromhex("06072a8648ce3d0201") + der(0x30, parameters))

    def edit(tbs: object) -> None:
        tbs.subject_public_key_info = tlv(0x30, algorithm + der(0x03, b"\0" + point))  # type: ignore[attr-defined]

    made.leaf = forge(made.leaf, made.sub2.key, edit)
    return made


def mixed_algorithm_identifiers() -> Chain:
    made = chain()
    made.leaf = forge(made.leaf, made.sub2.key, inner_algorithm=ECDSA_SHA384)
    return made


def signed_with_sha512_by_p256() -> Chain:
    made = chain()
    made.leaf = forge(made.leaf, made.sub2.key, algorithm=ECDSA_SHA512, digest=hashes.SHA512())
    return made


def leaf_template(usage: Usage = Usage.CONTRACT, **changes: object) -> Callable[[], Chain]:
    base = {Usage.CONTRACT: CONTRACT, Usage.CPS: CPS, Usage.OEM_PROVISIONING: OEM_PROVISIONING}[usage]
    return lambda: chain(usage, leaf=replace(base, **changes))  # type: ignore[arg-type]


def usages(*names: str) -> frozenset[str]:
    return frozenset(names)


RESPONDER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
NAMES = x509.NameConstraints([x509.DirectoryName(subject_name("x"))], None)
CAUSES: dict[str, tuple[Callable[[], Chain], str]] = {
    "expired leaf": (lambda: chain(Usage.CPS, valid={"leaf": OVER}), '"DEABCC00000001" expired at 2026-02-28'),
    "expired contract": (
        lambda: chain(valid={"leaf": OVER}),
        r"^The validUntil date of contract certificate is in the past\.$",
    ),
    "expired sub-CA 2": (lambda: chain(valid={"sub2": OVER}), '"Sub2" expired'),
    "expired sub-CA 1": (lambda: chain(valid={"sub1": OVER}), '"Sub1" expired'),
    "expired root": (lambda: chain(valid={"root": OVER}), '"Root" expired'),
    "leaf not valid yet": (lambda: chain(valid={"leaf": TO_COME}), '"DEABCC00000001" is not valid before 2026-03-02'),
    "sub-CA 2 not valid yet": (lambda: chain(valid={"sub2": TO_COME}), '"Sub2" is not valid before'),
    "sub-CA 1 not valid yet": (lambda: chain(valid={"sub1": TO_COME}), '"Sub1" is not valid before'),
    "root not valid yet": (lambda: chain(valid={"root": TO_COME}), '"Root" is not valid before'),
    "another issuer": (of_another_issuer, 'issuer of certificate "DEABCC00000001" is neither'),
    "no sub-CA": (without_subs, 'issuer of certificate "DEABCC00000001" is neither'),
    "sub-CA 1 missing": (without_sub1, 'issuer of certificate "Sub2" is neither'),
    "unknown root": (under_an_unknown_root, 'issuer of certificate "Sub1" is neither'),
    "another root of the same name": (under_a_root_of_the_same_name, '"Sub1" was not signed by "Root"'),
    "damaged root": (with_a_damaged_root, '"Root" was not signed by "Root"'),
    "root with another authority key": (root_with(other_authority_key), '"Root" is trusted as a root but is not'),
    "a sub-CA trusted as a root": (with_a_sub_ca_as_root, '"Sub1" is trusted as a root but is not one'),
    "signature of a stranger": (signed_by_a_stranger, '"DEABCC00000001" was not signed by "Sub2"'),
    "leaf tampered with": (with_tampered_leaf, '"DEABCC00000001" was not signed by "Sub2"'),
    "sub-CA tampered with": (with_tampered_sub, '"Sub1" was not signed by "Root"'),
    "five intermediates": (with_five_intermediates, "5 intermediate certificates; four"),
    "three levels of sub-CAs": (with_three_levels_of_subs, "third intermediate"),
    "untrusted root between": (with_a_root_between, '"Sub2" is a root certificate that is not trusted'),
    "issued by a leaf": (issued_by_a_leaf, '"Leaf" is used as an issuer but is not a CA'),
    "leaf is a CA": (leaf_template(ca=True), "is a CA certificate"),
    "leaf has keyCertSign": (leaf_template(key_usage=CONTRACT.key_usage | {"key_cert_sign"}), "key usage .* contract"),
    "contract cannot sign": (leaf_template(key_usage=usages("key_agreement")), "key usage .* contract"),
    "CPS cannot sign": (leaf_template(Usage.CPS, key_usage=usages("key_agreement")), "key usage .* CPS"),
    "vehicle cannot agree on keys": (
        leaf_template(Usage.OEM_PROVISIONING, key_usage=usages("digital_signature")),
        "key usage .* OEM provisioning",
    ),
    "leaf of an OCSP responder": (lambda: chain(leaf=with_extra(CONTRACT, RESPONDER, False)), "OCSP responder"),
    "CPS without a domain component": (leaf_template(Usage.CPS, domain_component=None), r"\(none\) does not fit CPS"),
    "contract as CPS": (leaf_template(Usage.CPS, domain_component="MO"), r"\(MO\) does not fit CPS"),
    "CPS as contract": (leaf_template(domain_component="CPS"), r"\(CPS\) does not fit contract"),
    "CPS as vehicle": (leaf_template(Usage.OEM_PROVISIONING, domain_component="CPS"), r"\(CPS\) does not fit OEM"),
    "sub-CA is no CA": (lambda: chain(sub1=replace(SUB_CA1, ca=False)), '"Sub1" is used as an issuer but is not a CA'),
    "sub-CA says it is no CA": (
        lambda: chain(sub2=with_extra(replace(SUB_CA2, ca=False), x509.BasicConstraints(False, None), True)),
        '"Sub2" is used as an issuer but is not a CA',
    ),
    "root is no CA": (lambda: chain(root=replace(ROOT, ca=False)), '"Root" is used as an issuer but is not a CA'),
    "sub-CA without keyCertSign": (lambda: chain(sub2=replace(SUB_CA2, key_usage=usages("crl_sign"))), "lacks"),
    "sub-CA without key usage": (lambda: chain(sub2=replace(SUB_CA2, key_usage=usages())), "lacks"),
    "root without keyCertSign": (lambda: chain(root=replace(ROOT, key_usage=usages("crl_sign"))), '"Root" .*lacks'),
    "path length of sub-CA 1 exceeded": (lambda: chain(sub1=replace(SUB_CA1, path_length=0)), 'length .*"Sub1" is exc'),
    "path length of the root exceeded": (lambda: chain(root=replace(ROOT, path_length=1)), 'length .*"Root" is exc'),
    "unknown critical extension in the leaf": (leaf_with(unknown_critical), r"critical extension 1\.2\.3\.4"),
    "unknown critical extension in a sub-CA": (sub1_with(unknown_critical), r'"Sub1" has the critical extension'),
    "unknown critical extension in the root": (root_with(unknown_critical), r'"Root" has the critical extension'),
    "critical extended key usage": (
        lambda: chain(leaf=with_extra(CONTRACT, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), True)),
        "critical extension",
    ),
    "name constraints": (lambda: chain(sub1=with_extra(SUB_CA1, NAMES, True)), '"Sub1" has name constraints'),
    "name constraints, not critical": (lambda: chain(sub1=with_extra(SUB_CA1, NAMES, False)), "has name constraints"),
    "policy constraints": (
        lambda: chain(sub1=with_extra(SUB_CA1, x509.PolicyConstraints(0, None), True)),
        '"Sub1" has policy constraints',
    ),
    "inhibitAnyPolicy": (lambda: chain(sub2=with_extra(SUB_CA2, x509.InhibitAnyPolicy(0), True)), "inhibitAnyPolicy"),
    "P-384": (with_a_p384_leaf, "key of certificate .* ISO 15118-2 allows"),
    "explicit curve parameters": (with_explicit_curve_parameters, "key of certificate .* ISO 15118-2 allows"),
    "P-521 in ISO-2": (lambda: chain(algorithm="P-521"), "key of certificate .* ISO 15118-2 allows"),
    "P-521 leaf in ISO-2": (lambda: chain(leaf_algorithm="P-521"), "key of certificate .* ISO 15118-2 allows"),
    "Ed448 in ISO-2": (lambda: chain(algorithm="Ed448"), "key of certificate .* ISO 15118-2 allows"),
    "SHA-384": (
        leaf_with(lambda tbs: None, algorithm=ECDSA_SHA384, digest=hashes.SHA384()),
        "signed with an algorithm that ISO 15118-2 does not allow",
    ),
    "SHA-1": (leaf_with(lambda tbs: None, algorithm=ECDSA_SHA1, digest=hashes.SHA1()), "signed with an algorithm"),
    "two signature algorithms": (mixed_algorithm_identifiers, "was not signed by"),
    "version 1": (leaf_with(version_1), "not of X.509 version 3"),
    "version 1 in a sub-CA": (sub1_with(version_1), '"Sub1" is not of X.509 version 3'),
    "serial number zero": (leaf_with(serial(0)), "serial number"),
    "negative serial number": (leaf_with(serial(-7)), "serial number"),
    "serial number of 21 bytes": (leaf_with(serial(1 << 160)), "serial number"),
    "serial number of 21 bytes because of its sign byte": (leaf_with(serial(1 << 159)), "serial number"),
    "another authority key identifier": (leaf_with(other_authority_key), 'key identifier .* is not that of "Sub2"'),
    "basic constraints of a CA": (leaf_with(basic_constraints("30060101ff020100")), "is a CA certificate"),
    "basic constraints of a wrong boolean": (leaf_with(basic_constraints("3003010101")), "extensions .* cannot be"),
    "explicit FALSE and more": (leaf_with(basic_constraints("3006010100020100")), "extensions .* cannot be"),
    "an extension twice": (
        leaf_with(lambda tbs: added(tbs, ExtensionOID.KEY_USAGE, bytes.fromhex("03020780"))),
        "extensions .* cannot be",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("cause", CAUSES)
def test_bad_chain_is_refused_with_its_reason(cause: str) -> None:
    make, reason = CAUSES[cause]
    with pytest.raises(ChainError, match=reason) as caught:
        make().verify()
    assert len(caught.value.messages) == 1
    assert isinstance(caught.value, ExpiredError) == ("expired" in cause)


def test_chain_with_sha512_and_a_p256_key_is_refused_even_where_both_are_allowed() -> None:
    with pytest.raises(ChainError, match="does not fit the key of its issuer"):
        signed_with_sha512_by_p256().verify(profile=Profile.ISO20)


@pytest.mark.parametrize(
    ("usage", "role"),
    [
        (Usage.CPS, AnchorRole.EMSP),
        (Usage.CPS, AnchorRole.OEM),
        (Usage.CONTRACT, AnchorRole.OEM),
        (Usage.OEM_PROVISIONING, AnchorRole.V2G),
        (Usage.OEM_PROVISIONING, AnchorRole.EMSP),
    ],
)
def test_root_that_is_trusted_for_something_else_is_an_unknown_root(usage: Usage, role: AnchorRole) -> None:
    made = chain(usage)
    with pytest.raises(ChainError, match='issuer of certificate "Sub1" is neither'):
        made.verify(made.anchors(role=role))


def test_sub_ca_that_is_known_is_not_trusted_by_itself() -> None:
    made = chain()
    made.offered = []
    anchors = TrustAnchors.build(
        [], [(AnchorRole.EMSP, made.sub1.certificate), (AnchorRole.EMSP, made.sub2.certificate)]
    )
    with pytest.raises(ChainError, match='issuer of certificate "Sub1" is neither'):
        made.verify(anchors)


def test_sub_ca_known_for_another_role_is_not_used() -> None:
    made = chain(Usage.OEM_PROVISIONING)
    made.offered = []
    subs = (made.sub1.certificate, made.sub2.certificate)
    anchors = TrustAnchors.build([(AnchorRole.OEM, made.root.certificate)], [(AnchorRole.V2G, one) for one in subs])
    with pytest.raises(ChainError, match='issuer of certificate "DEABCC00000001" is neither'):
        made.verify(anchors)


def test_names_in_a_message_are_short_and_printable() -> None:
    made = chain()
    hostile = build_certificate(
        made.leaf_key.public_key(),
        subject=subject_name("evil\n\x1b[31m" + "x" * 50),
        issuer=made.sub2.certificate,
        signer=made.sub2.key,
        template=CONTRACT,
        valid=OVER,
    )
    made.leaf, made.usage = hostile, Usage.OEM_PROVISIONING
    with pytest.raises(ExpiredError) as caught:
        made.verify()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 150


def test_certificate_with_trailing_bytes_or_cut_anywhere_is_not_a_certificate() -> None:
    der = chain().leaf.der
    for encoded in (der + b"\0", *(der[:end] for end in range(0, len(der)))):
        with pytest.raises(ChainError, match="not an X"):
            Certificate.load(encoded)


def test_time_without_a_zone_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="aware"):
        chain().verify(now=AT.replace(tzinfo=None))


def test_chain_is_too_late_a_moment_after_its_last_second() -> None:
    made = chain(valid={"leaf": (AT - DAY, AT)})
    made.verify(now=AT)
    made.verify(now=AT + timedelta(microseconds=999_999))
    with pytest.raises(ExpiredError):
        made.verify(now=AT + timedelta(seconds=1))
