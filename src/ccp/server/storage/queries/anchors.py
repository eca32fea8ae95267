"""Queries for trusted certificates: trust anchors and known intermediates, by the role they are trusted for.

Each change of a root writes its event, once for each role.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from ccp.errors import ChainError, NotFound
from ccp.server.domain.subscriptions import EventKind
from ccp.server.storage.engine.query import Query, Row, read_committed, retryable
from ccp.server.storage.queries.audit import Action, Entry
from ccp.server.storage.queries.contracts import instant, microseconds
from ccp.server.storage.queries.root_events import record_change
from ccp.x509.certificates import Certificate


@dataclass(frozen=True, slots=True)
class TrustedCertificate:
    """A certificate that is trusted for a role.

    role: "v2g", "emsp" or "oem". certificate: DER. source: the file name or the address of the pool it came from.
    """

    role: str
    fingerprint: str
    is_root: bool
    certificate: bytes
    label: str
    source: str
    added_at: datetime

    @property
    def is_synced(self) -> bool:
        """Whether it came from a Root Certificate Pool; otherwise an operator has added it."""
        return self.source.startswith(("http://", "https://"))


@read_committed
def list_all() -> Query[list[TrustedCertificate]]:
    """All trusted certificates."""
    select = """
    select role, fingerprint, is_root, certificate, label, source, added_at from trust_anchor
    order by role, label, fingerprint
    """
    rows = yield select, ()
    return [
        TrustedCertificate(role, fingerprint, bool(is_root), certificate, label, source, instant(added_at))
        for role, fingerprint, is_root, certificate, label, source, added_at in rows
    ]


@retryable
def add(trusted: TrustedCertificate) -> Query[bool]:
    """Trust a certificate for a role. Returns whether it was new."""
    insert = """
    insert into trust_anchor (role, fingerprint, is_root, certificate, label, source, added_at)
    values ($1, $2, $3, $4, $5, $6, $7) on conflict (role, fingerprint) do nothing returning role
    """
    added = yield (
        insert,
        (
            trusted.role,
            trusted.fingerprint,
            trusted.is_root,
            trusted.certificate,
            trusted.label,
            trusted.source,
            microseconds(trusted.added_at),
        ),
    )
    if added:
        kind = EventKind.ROOT_ADDED
        yield from record_change(kind, trusted.certificate, trusted.role, is_root=trusted.is_root, now=trusted.added_at)
    return bool(added)


@retryable
def add_by_operator(trusted: TrustedCertificate) -> Query[bool]:
    """Trust a certificate on an operator's decision. Returns whether it was new.

    A certificate that was trusted before gets the new label, source and time, so that synchronisation with the pool it
    came from no longer removes it.
    """
    if (yield from add(trusted)):
        return True
    update = "update trust_anchor set label = $1, source = $2, added_at = $3 where role = $4 and fingerprint = $5"
    yield (
        update,
        (trusted.label, trusted.source, microseconds(trusted.added_at), trusted.role, trusted.fingerprint),
    )
    return False


_REMOVED = "returning role, certificate, is_root, expiry_reported"


@retryable
def remove_synced(source: str, role: str, fingerprint: str, now: datetime) -> Query[bool]:
    """Stop trusting a certificate for a role if its source is still this one. Returns whether it was."""
    rows = yield (
        f"delete from trust_anchor where role = $1 and fingerprint = $2 and source = $3 {_REMOVED}",  # noqa: S608
        (role, fingerprint, source),
    )
    yield from _record_removals(rows, now)
    return bool(rows)


@retryable
def remove(fingerprint: str, role: str | None = None, *, now: datetime) -> Query[list[str]]:
    """Stop trusting a certificate for one role or for all. Returns the roles. Raises NotFound."""
    rows = yield (
        f"delete from trust_anchor where fingerprint = $1 and (role = $2 or $2 is null) {_REMOVED}",  # noqa: S608
        (fingerprint, role),
    )
    if not rows:
        raise NotFound(f"No certificate with the fingerprint {fingerprint} is trusted.")
    yield from _record_removals(rows, now)
    return sorted(row[0] for row in rows)


def _record_removals(rows: Iterable[Row], now: datetime) -> Query[None]:
    """Events of removed anchors. A root that has expired ends with that event, whether it was written before or not."""
    for role, certificate, is_root, expiry_reported in sorted(rows):
        is_news = bool(is_root) and not expiry_reported
        kind = EventKind.ROOT_EXPIRED if _has_expired(bytes(certificate), now) else EventKind.ROOT_REVOKED
        yield from record_change(kind, certificate, role, is_root=is_news, now=now)


def _has_expired(certificate: bytes, now: datetime) -> bool:
    try:
        return now.replace(microsecond=0) > Certificate.load(certificate).not_after
    except ChainError:
        return False


@retryable
def report_expiry(role: str, fingerprint: str, now: datetime) -> Query[bool]:
    """Write the event of a root that has expired. Returns False if it was written before, or if the root is gone."""
    rows = yield (
        "update trust_anchor set expiry_reported = true where role = $1 and fingerprint = $2 "
        "and is_root and not expiry_reported returning certificate",
        (role, fingerprint),
    )
    if rows:
        yield from record_change(EventKind.ROOT_EXPIRED, rows[0][0], role, is_root=True, now=now)
    return bool(rows)


def added_entry(trusted: TrustedCertificate, actor: str, now: datetime, *, new: bool = True) -> Entry:
    """The audit entry for a certificate that was added. new: it was not trusted before."""
    subject = {
        "role": trusted.role,
        "fingerprint": trusted.fingerprint,
        "label": trusted.label,
        "source": trusted.source,
        "new": new,
    }
    return Entry(now, actor, Action.ANCHOR_ADDED, subject)


def removed_entry(fingerprint: str, roles: Iterable[str], actor: str, now: datetime) -> Entry:
    """The audit entry for a certificate that was removed."""
    return Entry(now, actor, Action.ANCHOR_REMOVED, {"roles": list(roles), "fingerprint": fingerprint})
