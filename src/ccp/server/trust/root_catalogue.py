"""The trusted roots as other systems list them: one entry for each root and role, with a stable id.

The catalogue belongs to one snapshot of the trust anchors, and is built when it is first asked for.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ccp.errors import ChainError
from ccp.ids import Namespace
from ccp.server.domain.root_certificates import edition_of, is_own_issuer, key_curve, root_id
from ccp.x509 import der
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import ROOT_TYPES, AnchorRole

_ISSUED_TO: Final = 0xA0
_ISSUED_BY: Final = 0xA1


@dataclass(frozen=True, slots=True)
class ListedRoot:
    """A trusted root in one of its roles.

    id: derived from fingerprint and role, so it is the same in every pool. key: its curve, `secp256r1`, `secp521r1` or
    `ed448`; None for another one. edition: of ISO 15118, which determines the curve; None with `key`. fingerprint_sha1:
    hexadecimal. cross_certificates: CertificatePair, DER; None if the pool holds none.
    """

    id: uuid.UUID
    role: AnchorRole
    certificate: Certificate
    key: str | None
    edition: Namespace | None
    fingerprint_sha1: str
    cross_certificates: bytes | None

    @property
    def root_type(self) -> str:
        """`V2G`, `MO` or `OEM`."""
        return ROOT_TYPES[self.role]


class RootCatalogue:
    """The listed roots of a snapshot of the trust anchors, in an order that depends on the certificates alone.

    An anchor that another root has issued ends no path, so it is not listed.
    """

    def __init__(self, anchors: TrustAnchors) -> None:
        self.anchors: Final = anchors
        pairs = cross_certificates(anchors)
        roots = (
            _listed(anchor.certificate, role, pairs.get(anchor.certificate))
            for anchor in anchors.anchors
            for role in anchor.roles
            if is_own_issuer(anchor.certificate)
        )
        self.roots: Final = tuple(sorted(roots, key=_order))
        self._by_id: Final = {root.id: root for root in self.roots}

    def by_id(self, root_id: uuid.UUID) -> ListedRoot | None:
        """Return the root with an id."""
        return self._by_id.get(root_id)


class CurrentRootCatalogue:
    """The catalogue of the current snapshot, rebuilt when the anchors have changed."""

    def __init__(self) -> None:
        self._catalogue = RootCatalogue(TrustAnchors.build([]))

    def of(self, anchors: TrustAnchors) -> RootCatalogue:
        """Return the catalogue of a snapshot."""
        if self._catalogue.anchors is not anchors:
            self._catalogue = RootCatalogue(anchors)
        return self._catalogue


def _order(root: ListedRoot) -> tuple[str, ...]:
    return root.root_type, root.key or "", root.certificate.subject_cn, root.certificate.fingerprint


def cross_certificates(anchors: TrustAnchors) -> dict[Certificate, bytes]:
    """Return the CertificatePair (DER) of each root that a known certificate links to another root.

    A cross-certificate has name and key of one root, and another root has issued it. If both have the same name, as two
    generations of a root can, it is stored as an anchor. Of several for one root the one that is valid longest counts.
    Source: ITU-T X.509 clause 11.2.3, RFC 4523 clause 2.4.
    """
    if not anchors.intermediates and all(is_own_issuer(anchor.certificate) for anchor in anchors.anchors):
        return {}
    roots: dict[str, Certificate] = {}
    known = {certificate for _, certificate in anchors.intermediates}
    for anchor in anchors.anchors:
        certificate = anchor.certificate
        if is_own_issuer(certificate):
            roots[certificate.canonical_issuer_key_id] = certificate
        else:
            known.add(certificate)
    to: dict[Certificate, Certificate] = {}
    by: dict[Certificate, Certificate] = {}
    for certificate in sorted(known, key=lambda one: (one.not_after, one.fingerprint)):
        with suppress(ChainError):  # An intermediate that cannot be read in full is no cross-certificate.
            subject = roots.get(certificate.canonical_issuer_key_id)
            issuer = _issuer(certificate, roots.values()) if subject is not None else None
            if subject is not None and issuer is not None and issuer != subject:
                to[subject] = by[issuer] = certificate
    return {root: _pair(to.get(root), by.get(root)) for root in (*to, *by)}


def _issuer(certificate: Certificate, roots: Iterable[Certificate]) -> Certificate | None:
    for root in roots:
        with suppress(ChainError):
            certificate.verify_issued_by(root)
            return root
    return None


def _pair(to: Certificate | None, by: Certificate | None) -> bytes:
    content = b"".join(
        der.encode_header(tag, len(certificate.der)) + certificate.der
        for tag, certificate in ((_ISSUED_TO, to), (_ISSUED_BY, by))
        if certificate is not None
    )
    return der.encode_header(der.SEQUENCE, len(content)) + content


def _listed(certificate: Certificate, role: AnchorRole, pair: bytes | None) -> ListedRoot:
    curve = key_curve(certificate)
    sha1 = hashlib.sha1(certificate.der, usedforsecurity=False).hexdigest()
    return ListedRoot(root_id(certificate.fingerprint, role), role, certificate, curve, edition_of(curve), sha1, pair)
