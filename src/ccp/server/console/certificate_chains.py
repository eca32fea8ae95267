"""Certificate chains as a page shows them: from the leaf to the root, with validity, trust and revocation state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ccp.errors import ChainError
from ccp.server.console.parts import ConsoleParts
from ccp.server.storage.queries import revocation as evidence
from ccp.server.trust.anchors import Expiry
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors, VerifiedChain
from ccp.x509.revocation_evidence import certificate_ref, certificate_refs
from ccp.x509.revocation_policy import RevocationPolicy, RevocationState


@dataclass(frozen=True, slots=True)
class Verdict:
    """A badge and what it means. kind: class of the style sheet."""

    kind: str
    label: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class ChainLink:
    """One certificate of a chain. level: leaf, CA or root. serial: hexadecimal."""

    level: str
    subject: str
    issuer: str
    serial: str
    fingerprint: str
    not_before: datetime
    not_after: datetime
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain, leaf first. is_complete: it ends in a certificate that the pool trusts."""

    name: str
    links: tuple[ChainLink, ...]
    is_complete: bool


async def load_chains(
    parts: ConsoleParts,
    paths: Sequence[tuple[str, Sequence[bytes]]],
    verified: Sequence[VerifiedChain],
    now: datetime,
) -> tuple[Chain, ...]:
    """Return the chains of a message with their stored revocation state.

    paths: name of each path and its certificates as sent, leaf first, DER. verified: those that end in an anchor.
    """
    anchors, policy = parts.trust.anchors, parts.revocation.rules
    state = await parts.store.read(evidence.load(certificate_refs(verified), policy))
    by_leaf = {chain.leaf.der: chain for chain in verified}
    return tuple(
        verified_chain(name, by_leaf[ders[0]], anchors, state, policy, now)
        if ders[0] in by_leaf
        else unverified_chain(name, ders, anchors, now)
        for name, ders in paths
    )


def verified_chain(
    name: str,
    chain: VerifiedChain,
    anchors: TrustAnchors,
    state: RevocationState,
    policy: RevocationPolicy,
    now: datetime,
) -> Chain:
    """Return a chain that ends in an anchor, with the revocation state of each certificate below it."""
    certificates = chain.certificates
    links = []
    for place, certificate in enumerate(certificates):
        issuer = certificates[place + 1] if place + 1 < len(certificates) else None
        verdicts = [_validity(certificate, now)]
        if issuer is None:
            verdicts.append(_trust(certificate, anchors))
        else:
            verdicts.append(_revocation(certificate, issuer, state, policy, now))
        links.append(_link(certificate, place, verdicts))
    return Chain(name, tuple(links), True)


def unverified_chain(name: str, ders: Sequence[bytes], anchors: TrustAnchors, now: datetime) -> Chain:
    """Return the certificates of a message in their order; one that cannot be read is left out."""
    links = []
    for place, der in enumerate(ders):
        try:
            certificate = Certificate.load(der)
        except ChainError:
            continue
        verdicts = [_validity(certificate, now)]
        if anchors.by_fingerprint(certificate.fingerprint) is not None:
            verdicts.append(_trust(certificate, anchors))
        links.append(_link(certificate, place, verdicts))
    return Chain(name, tuple(links), False)


def _link(certificate: Certificate, place: int, verdicts: Sequence[Verdict]) -> ChainLink:
    level = "Root" if certificate.is_self_issued else "Leaf" if place == 0 else "Sub-CA"
    return ChainLink(
        level,
        certificate.subject_dn,
        certificate.issuer_dn,
        f"{certificate.serial_number:x}",
        certificate.fingerprint,
        certificate.not_before,
        certificate.not_after,
        tuple(verdicts),
    )


def _validity(certificate: Certificate, now: datetime) -> Verdict:
    expiry = Expiry.of(certificate, now)
    return Verdict({Expiry.VALID: "ok", Expiry.SOON: "warn"}.get(expiry, "bad"), expiry.value)


def _trust(certificate: Certificate, anchors: TrustAnchors) -> Verdict:
    anchor = anchors.by_fingerprint(certificate.fingerprint)
    if anchor is None:
        return Verdict("bad", "not trusted", "The pool has no such trust anchor.")
    names = {"v2g": "V2G", "emsp": "eMSP", "oem": "OEM"}
    roles = ", ".join(sorted(names.get(role.value, role.value) for role in anchor.roles))
    return Verdict("ok", f"trusted: {roles}")


def _revocation(
    certificate: Certificate, issuer: Certificate, state: RevocationState, policy: RevocationPolicy, now: datetime
) -> Verdict:
    try:
        ref = certificate_ref(certificate, issuer)
    except ChainError as exc:
        return Verdict("warn", "revocation unknown", str(exc))
    if (revoked := state.find_revoked(ref)) is not None:
        at = f" since {revoked.revoked_at:%Y-%m-%d %H:%M} UTC" if revoked.revoked_at else ""
        return Verdict("bad", "revoked", f"{revoked.source}{at}")
    if (good := state.find_good(ref, policy, now)) is not None:
        source = getattr(good, "source", None) or f"CRL {getattr(good, 'url', '')}"
        return Verdict("ok", "not revoked", f"{source}, valid until {good.next_update:%Y-%m-%d %H:%M} UTC")
    if not certificate.status_urls.present and not policy.crls_for(ref):
        return Verdict("quiet", "not checked", "The certificate names neither a CRL nor an OCSP responder.")
    return Verdict("warn", "revocation unknown", "There is no current CRL or OCSP response.")
