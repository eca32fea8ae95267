"""Trust anchors: read from files or a Root Certificate Pool, kept in the store, held in memory as a snapshot."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final

import structlog

from ccp.errors import ChainError, ConfigurationError
from ccp.server.external.root_pool import RootCertificatePool, RootList
from ccp.server.runtime.background import PeriodicTask
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import anchors, audit, unknown_values
from ccp.server.storage.queries.anchors import TrustedCertificate
from ccp.verify.trust_folder import from_directory, is_self_issued, read_files
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import Role, TrustAnchors, check_root

__all__ = [
    "Expiry", "Synchronised", "Trust", "add_anchor", "expiry_warning", "expiry_warnings", "export", "from_directory",
    "is_self_issued", "read_files", "remove_anchor", "synchronise", "synchronising", "trusted",
]  # fmt: skip

_log = structlog.get_logger("ccp.server.trust.anchors")

EXPIRES_SOON: Final = timedelta(days=90)
"""A new root has to reach every pool and vehicle before the old one ends; that takes months, not days."""


class Trust:
    """The current snapshot. A request takes it once and sees no other."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.anchors = TrustAnchors.build([])

    async def refresh(self) -> None:
        """Take over what the store holds now. A row that this release cannot read is not trusted."""
        roots: list[tuple[Role, Certificate]] = []
        intermediates: list[tuple[Role, Certificate]] = []
        for trusted in await self._store.read(anchors.list_all()):
            row = f"{trusted.role} {trusted.fingerprint}"
            role = unknown_values.known(Role, trusted.role, "trust_anchor.role", row)
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
        """Why a worker is not ready, as far as anchors go."""
        return [] if self.anchors.version > 0 else ["Trust anchors are not loaded yet."]


def trusted(
    certificate: Certificate, role: Role, source: str, at: datetime, label: str | None = None
) -> TrustedCertificate:
    """A certificate as the store keeps it. label: a name for people, the common name if none is given."""
    return TrustedCertificate(
        role.value,
        certificate.fingerprint,
        is_self_issued(certificate),
        certificate.der,
        label or certificate.subject_cn,
        source,
        at,
    )


class Expiry(StrEnum):
    """Where a certificate stands in its time."""

    VALID = "valid"
    SOON = "expires soon"
    EXPIRED = "expired"
    NOT_YET = "not valid yet"

    @classmethod
    def of(cls, certificate: Certificate, at: datetime) -> Expiry:
        if at.replace(microsecond=0) > certificate.not_after:
            return cls.EXPIRED
        if at < certificate.not_before:
            return cls.NOT_YET
        # Some roots end in the last year that can be written, where no time can be added.
        return cls.SOON if certificate.not_after - at < EXPIRES_SOON else cls.VALID


def expiry_warning(certificate: Certificate, at: datetime) -> str | None:
    """A sentence about a certificate that ends soon, has ended or has not begun."""
    label = certificate.label
    match Expiry.of(certificate, at):
        case Expiry.EXPIRED:
            return f"Certificate {label} expired on {certificate.not_after:%Y-%m-%d}."
        case Expiry.SOON:
            return f"Certificate {label} expires on {certificate.not_after:%Y-%m-%d}."
        case Expiry.NOT_YET:
            return f"Certificate {label} is not valid before {certificate.not_before:%Y-%m-%d}."
        case _:
            return None


def expiry_warnings(snapshot: TrustAnchors, at: datetime) -> list[str]:
    """A sentence for every anchor that ends soon, has ended or has not begun."""
    return list(filter(None, (expiry_warning(anchor.certificate, at) for anchor in snapshot.anchors)))


def export(entries: Iterable[TrustedCertificate], directory: Path) -> list[Path]:
    """Write certificates as `from_directory` reads them: one PEM file each, in `v2g`, `emsp` and `oem`.

    directory: new or empty, because whatever else lies there would be trusted too. Raises ConfigurationError.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigurationError(f"{directory} is not an empty directory; everything in it would be trusted.")
    written = []
    for entry in entries:
        role = unknown_values.known(Role, entry.role, "trust_anchor.role", entry.fingerprint)
        if role is None:
            continue
        name = re.sub(r"[^a-z0-9]+", "-", entry.label.lower()).strip("-")[:60] or "certificate"
        path = directory / role.value / f"{name}-{entry.fingerprint[:16]}.pem"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Certificate.load(entry.certificate).pem())
        written.append(path)
    return written


# --- Synchronisation with a Root Certificate Pool --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Synchronised:
    """What came of it. gone: taken from this pool once and not listed there any more. unusable: sentences."""

    added: tuple[TrustedCertificate, ...]
    gone: tuple[TrustedCertificate, ...]
    pruned: bool
    unusable: tuple[str, ...]


async def synchronise(
    store: Store, rcp: RootCertificatePool, at: datetime, *, prune: bool = False, actor: str = audit.POOL
) -> Synchronised:
    """Trust what the Root Certificate Pool lists, each certificate for what the pool said of it and no more.

    prune: remove what came from this very pool and is gone from it; otherwise that is told and stays. What an operator
    added by hand is never touched. A list with entries that cannot be read prunes nothing: what seems to be gone may be
    one of them. actor: who has it done, for the audit trail. Raises UpstreamError, Unavailable.
    """
    offered = await rcp.list_roots()
    known = await store.read(anchors.list_all())
    usable, unusable = _usable(offered, at)
    present = {(entry.role, entry.fingerprint) for entry in known}
    new = [entry for entry in usable if (entry.role, entry.fingerprint) not in present]
    listed = {(role.value, root.certificate.fingerprint) for root in offered.roots for role in root.roles}
    gone = [
        entry for entry in known if entry.source == offered.source and (entry.role, entry.fingerprint) not in listed
    ]
    pruned = prune and offered.complete
    added = [entry for entry in new if await store.write(add_anchor(entry, actor, at))]
    if pruned:
        for entry in gone:
            await store.write(remove_anchor(entry, actor, at))
    if prune and not pruned and gone:
        unusable.append("Nothing was removed, because the list has entries that cannot be read.")
    return Synchronised(tuple(added), tuple(gone), pruned, tuple(unusable))


def add_anchor(entry: TrustedCertificate, actor: str, at: datetime) -> Query[bool]:
    """Trust a certificate, with a row in the audit trail if it was not known. Returns whether it was not."""
    return audit.with_audit(anchors.add(entry), lambda new: [anchors.added_entry(entry, actor, at)] * new)


def remove_anchor(entry: TrustedCertificate, actor: str, at: datetime) -> Query[bool]:
    """Trust a certificate no longer that came from this source, with a row in the audit trail."""
    return audit.with_audit(
        anchors.remove_synced(entry.source, entry.role, entry.fingerprint),
        lambda was: [anchors.removed_entry(entry.fingerprint, [entry.role], actor, at)] * was,
    )


def _usable(offered: RootList, at: datetime) -> tuple[list[TrustedCertificate], list[str]]:
    """What may be trusted, and a sentence for everything that may not."""
    usable: list[TrustedCertificate] = []
    unusable = list(offered.unusable)
    for root in offered.roots:
        certificate = root.certificate
        try:
            if not is_self_issued(certificate):
                raise ChainError(f"Certificate {certificate.label} is not a root certificate.")
            check_root(certificate)
        except ChainError as exc:
            unusable.extend(exc.messages)
            continue
        if root.roles and Expiry.of(certificate, at) is Expiry.EXPIRED:
            unusable.append(f"Certificate {certificate.label} expired on {certificate.not_after:%Y-%m-%d}.")
            continue
        usable += [trusted(certificate, role, offered.source, at) for role in Role if role in root.roles]
    return usable, unusable


_FIRST_SECONDS: Final = 10.0  # Workers start together; they need not call together.
_SPREAD: Final = 0.1  # … nor come together again later.
_RETRY_SECONDS: Final = 60.0  # After a failure, doubled each time up to the interval.


def synchronising(
    store: Store, rcp: RootCertificatePool, interval: float, clock: Callable[[], datetime]
) -> PeriodicTask:
    """Take over additions on a schedule; what is gone is only reported.

    interval: seconds. Every worker runs this: the second that comes with an addition finds it known. Not critical: the
    pool goes on with the anchors it has while the Root Certificate Pool is away.
    """

    async def run() -> None:
        _tell(await synchronise(store, rcp, clock()), rcp.url)

    return PeriodicTask(
        "root_synchronisation",
        run,
        interval,
        jitter=_SPREAD,
        first_delay=random.uniform(0, _FIRST_SECONDS),  # noqa: S311  no secret
        retry_delay=min(_RETRY_SECONDS, interval),
        max_retry_delay=interval,
    )


def _tell(done: Synchronised, source: str) -> None:
    _log.info("anchors synchronised", source=source, added=len(done.added), gone=len(done.gone))
    for entry in done.added:
        _log.warning("anchor added", source=source, role=entry.role, label=entry.label, fingerprint=entry.fingerprint)
    for entry in done.gone:
        _log.warning("anchor gone", source=source, role=entry.role, label=entry.label, fingerprint=entry.fingerprint)
    for sentence in done.unusable:
        _log.warning("anchor not usable", source=source, reason=sentence)
