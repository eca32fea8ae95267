"""Valid chains, and how path validation finds them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from ccp.errors import ChainError, ExpiredError
from ccp.testing.pki import (
    CONTRACT,
    CPS,
    EXPLICIT_FALSE,
    OEM_PROVISIONING,
    ROOT,
    SUB_CA1,
    SUB_CA2,
    Algorithm,
    Credential,
    build_certificate,
    build_root,
    subject_name,
)
from ccp.x509 import path_validation
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors, VerifiedChain
from ccp.x509.profiles import AnchorRole, Profile, Usage
from tests.x509.made import AT, DAY, LEAVES, chain, forge, without
from tests.x509.published import public_root, response_chains

PUBLISHED_AT = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("name", "usage"), [("cps", Usage.CPS), ("contract", Usage.CONTRACT)])
def test_verify_accepts_the_chains_of_the_published_response(name: str, usage: Usage) -> None:
    root = public_root()
    leaf, *subs = response_chains()[name]
    anchors = TrustAnchors.build([(AnchorRole.V2G, root)])
    found = anchors.verify(leaf, subs, usage=usage, now=PUBLISHED_AT, profile=Profile.ISO2)
    assert found.certificates == (leaf, *subs, root)
    assert found.leaf is leaf
    assert found.root.fingerprint == "4e05b8922d43923cdf20b202cdd0d849770b50038c39f104f506d7f1030ff809"
    assert (found.usage, found.verified_at) == (usage, PUBLISHED_AT)


def test_verify_refuses_the_published_contract_after_not_after() -> None:
    leaf, *subs = response_chains()["contract"]
    anchors = TrustAnchors.build([(AnchorRole.V2G, public_root())])
    with pytest.raises(ExpiredError) as caught:
        anchors.verify(leaf, subs, usage=Usage.CONTRACT, now=datetime(2026, 7, 2, tzinfo=UTC), profile=Profile.ISO2)
    assert str(caught.value) == "The validUntil date of contract certificate is in the past."


@pytest.mark.parametrize("name", ["cps", "contract"])
def test_verify_refuses_every_changed_bit_of_a_published_leaf(name: str) -> None:
    """The extensions are read from a repaired copy; the signature must not be."""
    leaf, *subs = response_chains()[name]
    anchors = TrustAnchors.build([(AnchorRole.V2G, public_root())])
    usage = Usage.CPS if name == "cps" else Usage.CONTRACT
    defect = leaf.der.index(bytes.fromhex("3003010100"))
    emptied = leaf.der[: defect + 4] + b"\xff" + leaf.der[defect + 5 :]
    for encoded in (emptied, leaf.der[:-1] + bytes((leaf.der[-1] ^ 1,))):
        with pytest.raises(ChainError):
            anchors.verify(Certificate.load(encoded), subs, usage=usage, now=PUBLISHED_AT, profile=Profile.ISO2)


@pytest.mark.parametrize("algorithm", ["P-256", "P-521", "Ed448"])
@pytest.mark.parametrize("usage", list(Usage))
def test_chain_of_every_kind_is_found(usage: Usage, algorithm: Algorithm) -> None:
    template = LEAVES[usage]
    if algorithm == "Ed448":
        template = replace(template, key_usage=frozenset({"digital_signature"}))
    made = chain(usage, algorithm=algorithm, leaf=template)
    found = made.verify(profile=Profile.ISO20)
    assert found.certificates == (made.leaf, *made.offered, made.root.certificate)


def test_leaf_of_p256_may_stand_under_p521_issuers_in_iso20() -> None:
    chain(algorithm="P-521", leaf_algorithm="P-256").verify(profile=Profile.ISO20)


def test_contract_may_lead_to_a_v2g_root() -> None:
    made = chain()
    made.verify(made.anchors(role=AnchorRole.V2G))


def test_root_may_be_trusted_for_several_roles() -> None:
    made = chain()
    root = made.root.certificate
    anchors = TrustAnchors.build([(AnchorRole.V2G, root), (AnchorRole.EMSP, root)], version=3)
    assert made.verify(anchors).root == root
    assert anchors.version == 3
    found = anchors.by_fingerprint(root.fingerprint)
    assert found is not None
    assert found.roles == {AnchorRole.V2G, AnchorRole.EMSP}
    assert anchors.by_role(AnchorRole.V2G) == (root,)
    assert anchors.by_role(AnchorRole.OEM) == ()
    assert anchors.by_fingerprint("0" * 64) is None


def test_path_validation_takes_intermediates_in_any_order_with_root_and_strangers() -> None:
    made = chain()
    stranger = chain().sub2.certificate
    for offered in permutations([made.sub1.certificate, made.sub2.certificate, made.root.certificate, stranger]):
        made.offered = list(offered)
        assert len(made.verify().certificates) == 4


def test_leaf_alone_is_completed_from_the_known_intermediates() -> None:
    made = chain(Usage.OEM_PROVISIONING)
    made.offered = []
    anchors = made.anchors(known=[made.sub1.certificate, made.sub2.certificate])
    for _ in range(2):
        assert made.verify(anchors).certificates[1:3] == (made.sub2.certificate, made.sub1.certificate)


def test_chains_with_one_sub_ca_and_with_none_are_found() -> None:
    root = build_root("Root", now=AT)
    sub = root.issue("Sub", SUB_CA2, now=AT)
    anchors = TrustAnchors.build([(AnchorRole.V2G, root.certificate)])
    for issuer, offered in ((sub, [sub.certificate]), (root, [])):
        leaf = issuer.issue("CPS", CPS, now=AT).certificate
        for _ in range(2):
            found = anchors.verify(leaf, offered, usage=Usage.CPS, now=AT, profile=Profile.ISO2)
            assert found.certificates == (leaf, *offered, root.certificate)


@pytest.mark.parametrize("identifier", [ExtensionOID.AUTHORITY_KEY_IDENTIFIER, ExtensionOID.SUBJECT_KEY_IDENTIFIER])
def test_key_identifiers_may_be_absent(identifier: x509.ObjectIdentifier) -> None:
    made = chain()
    made.leaf = forge(made.leaf, made.sub2.key, lambda tbs: without(tbs, identifier))
    made.offered[0] = forge(made.sub2.certificate, made.sub1.key, lambda tbs: without(tbs, identifier))
    made.verify()


def test_leaf_without_key_usage_or_with_the_defect_of_the_field_is_accepted() -> None:
    chain(leaf=replace(CONTRACT, key_usage=frozenset())).verify()
    chain(leaf=replace(CONTRACT, extra=((EXPLICIT_FALSE, True),))).verify()
    chain(leaf=replace(CONTRACT, extra=((x509.BasicConstraints(False, None), True),))).verify()


def test_extensions_of_real_roots_are_accepted() -> None:
    policies = x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("1.3.6.1.4.1.1"), None)])
    responder = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
    chain(root=replace(ROOT, extra=((policies, False), (responder, False)))).verify()


def test_sub_ca_that_may_sign_other_things_too_is_accepted() -> None:
    chain(sub2=replace(SUB_CA2, key_usage=SUB_CA2.key_usage | {"digital_signature", "content_commitment"})).verify()


def test_root_valid_from_1970_to_9999_is_accepted() -> None:
    forever = (datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
    chain(valid={"root": forever}).verify()


def test_domain_component_nobody_here_knows_does_not_matter() -> None:
    chain(leaf=replace(CONTRACT, domain_component="example")).verify()
    chain(Usage.OEM_PROVISIONING, leaf=replace(OEM_PROVISIONING, domain_component=None)).verify()


def _cross_signed(sub: Credential, by: Credential) -> Certificate:
    """The same name and key under another root."""
    return build_certificate(
        sub.key.public_key(),
        subject=sub.certificate.x509.subject,
        issuer=by.certificate,
        signer=by.key,
        template=SUB_CA1,
        valid=(AT - DAY, AT + DAY),
    )


def test_sub_ca_that_is_cross_signed_is_followed_to_the_root_that_is_trusted() -> None:
    made = chain()
    other = build_root("Root of others", now=AT)
    crossed = _cross_signed(made.sub1, other)
    for offered in ([made.sub2.certificate, made.sub1.certificate, crossed], [made.sub2.certificate, crossed]):
        made.offered = offered
        anchors = TrustAnchors.build([(AnchorRole.EMSP, other.certificate)])
        assert made.verify(anchors).root == other.certificate
    made.offered = [made.sub2.certificate, crossed, made.sub1.certificate]
    assert made.verify().root == made.root.certificate


def test_root_that_is_found_does_not_depend_on_what_was_asked_before() -> None:
    made = chain()
    other = build_root("Root of others", now=AT)
    crossed = _cross_signed(made.sub1, other)
    anchors = TrustAnchors.build([(AnchorRole.EMSP, made.root.certificate), (AnchorRole.EMSP, other.certificate)])
    for _ in range(2):
        made.offered = [made.sub2.certificate, made.sub1.certificate]
        assert made.verify(anchors).root == made.root.certificate
        made.offered = [made.sub2.certificate, crossed]
        assert made.verify(anchors).root == other.certificate
        made.offered = [made.sub2.certificate]
        with pytest.raises(ChainError, match='issuer of certificate "Sub2"'):
            made.verify(anchors)


def test_path_length_does_not_count_a_self_issued_certificate() -> None:
    """A sub-CA has rolled its key over: same name, old key vouches for the new one."""
    root = build_root("Root", now=AT)
    old = root.issue("Sub", SUB_CA2, now=AT)
    new = old.issue("Sub", SUB_CA2, now=AT)
    leaf = new.issue("CPS", CPS, now=AT).certificate
    anchors = TrustAnchors.build([(AnchorRole.V2G, root.certificate)])
    found = anchors.verify(leaf, [old.certificate, new.certificate], usage=Usage.CPS, now=AT, profile=Profile.ISO2)
    assert found.certificates == (leaf, new.certificate, old.certificate, root.certificate)


def test_sub_ca_twin_that_expired_is_passed_over() -> None:
    made = chain()
    renewed = made.offered[1]
    expired = build_certificate(
        made.sub1.key.public_key(),
        subject=made.sub1.certificate.x509.subject,
        issuer=made.root.certificate,
        signer=made.root.key,
        template=SUB_CA1,
        valid=(AT - 3 * DAY, AT - timedelta(hours=1)),
    )
    made.offered = [made.offered[0], expired, renewed]
    assert made.verify().certificates[2] == renewed
    assert made.verify(now=AT - timedelta(hours=2)).certificates[2] == expired
    made.offered = [made.offered[0], expired]
    with pytest.raises(ExpiredError, match='"Sub1" expired'):
        made.verify()


def test_path_validation_ends_at_many_namesakes_and_does_not_explode() -> None:
    """Every key of this family claims to be every other's issuer; only the number of attempts ends that."""
    name = subject_name("Same")
    family = [build_root("Same", now=AT) for _ in range(40)]
    known = [
        build_certificate(
            one.key.public_key(),
            subject=name,
            issuer=None,
            signer=other.key,
            template=ROOT,
            valid=(AT - DAY, AT + DAY),
        )
        for one, other in zip(family, family[1:] + family[:1], strict=True)
    ]
    leaf = build_root("Same", now=AT).issue("DEABCC00000001", CONTRACT, now=AT).certificate
    leaf = forge(leaf, family[0].key, lambda tbs: without(tbs, ExtensionOID.AUTHORITY_KEY_IDENTIFIER))
    anchors = TrustAnchors.build([], [(AnchorRole.EMSP, one) for one in known])
    with pytest.raises(ChainError):
        anchors.verify(leaf, [], usage=Usage.CONTRACT, now=AT, profile=Profile.ISO2)


def test_validity_is_checked_again_for_a_remembered_chain() -> None:
    made = chain(valid={"sub1": (AT - DAY, AT + DAY)})
    anchors = made.anchors()
    made.verify(anchors)
    with pytest.raises(ExpiredError, match='"Sub1" expired'):
        made.verify(anchors, now=AT + 2 * DAY)
    made.verify(anchors)


def test_signature_of_the_leaf_is_checked_again_for_a_remembered_chain() -> None:
    made = chain()
    anchors = made.anchors()
    made.verify(anchors)
    made.leaf = forge(made.leaf, made.leaf_key)
    with pytest.raises(ChainError, match="was not signed by"):
        made.verify(anchors)


def test_chain_cache_is_separate_by_usage_and_edition() -> None:
    made = chain(algorithm="P-521")
    anchors = made.anchors()
    made.verify(anchors, profile=Profile.ISO20)
    with pytest.raises(ChainError, match="ISO 15118-2 allows"):
        made.verify(anchors, profile=Profile.ISO2)
    with pytest.raises(ChainError, match="does not fit CPS"):
        made.verify(anchors, profile=Profile.ISO20, usage=Usage.CPS)


def test_trust_anchors_chain_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_validation, "_MAX_CACHED", 3)
    root = build_root("Root", now=AT)
    anchors = TrustAnchors.build([(AnchorRole.EMSP, root.certificate)])
    for _ in range(8):
        sub = root.issue("Sub", SUB_CA2, now=AT)
        leaf = sub.issue("DEABCC00000001", CONTRACT, now=AT).certificate
        anchors.verify(leaf, [sub.certificate], usage=Usage.CONTRACT, now=AT, profile=Profile.ISO2)
        assert len(anchors._chain_cache) <= 3


def test_verified_chain_is_created_only_by_verify() -> None:
    made = chain()
    found = made.verify()
    with pytest.raises(TypeError, match="TrustAnchors"):
        VerifiedChain(found.certificates, found.usage, found.verified_at, object())
    with pytest.raises((TypeError, ValueError)):
        replace(found, certificates=())
    with pytest.raises(AttributeError):
        found.usage = Usage.CPS  # type: ignore[misc]


def test_verify_refuses_the_leaf_of_every_other_usage() -> None:
    for made_for, asked_for in permutations(Usage, 2):
        made = chain(made_for, leaf=replace(LEAVES[made_for], domain_component=_DOMAINS[made_for]))
        anchors = TrustAnchors.build([(role, made.root.certificate) for role in AnchorRole])
        with pytest.raises(ChainError):
            made.verify(anchors, usage=asked_for)


_DOMAINS = {Usage.CPS: "CPS", Usage.CONTRACT: "MO", Usage.OEM_PROVISIONING: "OEM"}
