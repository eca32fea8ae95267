"""Trust anchors of a worker: loaded from the store as an immutable snapshot; expiry warnings; export to files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final

from cryptography import x509

from ccp.errors import ChainError, ConfigurationError
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import anchors, audit, unknown_values
from ccp.server.storage.queries.anchors import TrustedCertificate
from ccp.verify.trust_folder import is_self_issued
from ccp.x509.certificate_checks import validate_root
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import AnchorRole

EXPIRES_SOON: Final = timedelta(days=90)
"""A successor must reach every pool and vehicle before the root expires; that takes months."""


class TrustStore:
    """Holds the current snapshot of the anchors. A request reads `anchors` once and uses that snapshot throughout."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.anchors = TrustAnchors.build([])

    async def refresh(self) -> None:
        """Replace the snapshot by the contents of the store. A row that this release cannot read is not trusted."""
        roots: list[tuple[AnchorRole, Certificate]] = []
        intermediates: list[tuple[AnchorRole, Certificate]] = []
        for trusted in await self._store.read(anchors.list_all()):
            row = f"{trusted.role} {trusted.fingerprint}"
            role = unknown_values.known(AnchorRole, trusted.role, "trust_anchor.role", row)
            if role is None:
                continue
            try:
                certificate = Certificate.load(trusted.certificate)
            except ChainError as exc:
                unknown_values.warn("trust_anchor.certificate", str(exc), row)
                continue
            (roots if trusted.is_root else intermediates).append((role, certificate))
        self.anchors = TrustAnchors.build(roots, intermediates, self.anchors.version + 1)

    def reasons(self) -> list[str]:
        """Readiness problems: a sentence if no anchors have been loaded yet."""
        return [] if self.anchors.version > 0 else ["Trust anchors are not loaded yet."]


def trusted_certificate(
    certificate: Certificate, role: AnchorRole, source: str, now: datetime, label: str | None = None
) -> TrustedCertificate:
    """Build the row that the store keeps. label: display name; the common name if it is None."""
    return TrustedCertificate(
        role.value,
        certificate.fingerprint,
        is_self_issued(certificate),
        certificate.der,
        label or certificate.subject_cn,
        source,
        now,
    )


def refusal(certificate: Certificate) -> str | None:
    """Why a certificate is never trusted; None if it may be. Its validity period is no reason: time passes."""
    if not is_self_issued(certificate):
        basic = certificate.extension(x509.BasicConstraints)
        if basic is None or not basic.ca:
            return f"{certificate.subject_dn} is not a CA certificate (basicConstraints), and the pool trusts only CAs."
        return None
    try:
        validate_root(certificate)
    except ChainError as exc:
        return str(exc)
    return None


class Expiry(StrEnum):
    """Expiry state of a certificate."""

    VALID = "valid"
    SOON = "expires soon"
    EXPIRED = "expired"
    NOT_YET = "not valid yet"

    @classmethod
    def of(cls, certificate: Certificate, now: datetime) -> Expiry:
        """The state at a time. A certificate is valid until the end of its last second."""
        if now.replace(microsecond=0) > certificate.not_after:
            return cls.EXPIRED
        if now < certificate.not_before:
            return cls.NOT_YET
        # not_after may be the last representable time (year 9999), so nothing can be added to it.
        return cls.SOON if certificate.not_after - now < EXPIRES_SOON else cls.VALID


def expiry_warning(certificate: Certificate, now: datetime) -> str | None:
    """A sentence about a certificate that expires soon, has expired or is not valid yet; otherwise None."""
    label = certificate.display_name
    match Expiry.of(certificate, now):
        case Expiry.EXPIRED:
            return f"Certificate {label} expired on {certificate.not_after:%Y-%m-%d}."
        case Expiry.SOON:
            return f"Certificate {label} expires on {certificate.not_after:%Y-%m-%d}."
        case Expiry.NOT_YET:
            return f"Certificate {label} is not valid before {certificate.not_before:%Y-%m-%d}."
        case _:
            return None


def expiry_warnings(snapshot: TrustAnchors, now: datetime) -> list[str]:
    """The warnings of all anchors of a snapshot."""
    return list(filter(None, (expiry_warning(anchor.certificate, now) for anchor in snapshot.anchors)))


def export_certificates(entries: Iterable[TrustedCertificate], directory: Path) -> list[Path]:
    """Write certificates as `load_trust_directory` reads them: one PEM file each, in `v2g`, `emsp` and `oem`.

    directory: new or empty, because any other file in it would be trusted too. Returns the files. Raises
    ConfigurationError.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigurationError(f"{directory} is not an empty directory; everything in it would be trusted.")
    written = []
    for entry in entries:
        role = unknown_values.known(AnchorRole, entry.role, "trust_anchor.role", entry.fingerprint)
        if role is None:
            continue
        name = re.sub(r"[^a-z0-9]+", "-", entry.label.lower()).strip("-")[:60] or "certificate"
        path = directory / role.value / f"{name}-{entry.fingerprint[:16]}.pem"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Certificate.load(entry.certificate).pem())
        written.append(path)
    return written


def add_anchor(entry: TrustedCertificate, actor: str, now: datetime) -> Query[bool]:
    """Add an anchor, with an audit entry if it is new. Returns whether it is new."""
    return audit.with_audit(anchors.add(entry), lambda new: [anchors.added_entry(entry, actor, now)] * new)


def remove_anchor(entry: TrustedCertificate, actor: str, now: datetime) -> Query[bool]:
    """Remove an anchor that came from this source, with an audit entry. Returns whether it was stored."""
    return audit.with_audit(
        anchors.remove_synced(entry.source, entry.role, entry.fingerprint, now),
        lambda was: [anchors.removed_entry(entry.fingerprint, [entry.role], actor, now)] * was,
    )
