"""Queries for revocation data: evidence, CRLs, and certificates to check again.

Two rules are enforced within the transaction: a revocation is never undone, and no evidence is replaced by evidence
with an older thisUpdate. Rows of revoked certificates stay; those of a certificate that was only watched are deleted
when it has expired.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, Final

from ccp.server.storage.engine.query import Query, T, batchable, long_write, read_committed, retryable
from ccp.server.storage.queries import unknown_values
from ccp.server.storage.queries.contracts import instant, microseconds
from ccp.x509.revocation_evidence import (
    CertificateKey,
    CertificateRef,
    Evidence,
    LoadedCRL,
    RevocationList,
    RevocationStatus,
)
from ccp.x509.revocation_policy import RevocationPolicy, RevocationState

_EVIDENCE = "issuer, serial, status, this_update, next_update, revoked_at, source"
# Statements stay prepared, so there are only a few sizes; shorter lists are padded.
_KEYS = (2, 6, 12)  # Leaves of a vehicle and its contract; all certificates of a contract; of both.
_CACHE_SECONDS = 1.0
_STATUS = {status.value: status for status in RevocationStatus}
_ENTRIES = (400, 20, 1)

# Not `(issuer, serial) in (values …)`, for which SQLite scans the whole table.
_SELECT_EVIDENCE = {
    size: f"select {_EVIDENCE} from evidence where "  # noqa: S608  constants
    + " or ".join(f"(issuer = ${2 * n + 1} and serial = ${2 * n + 2})" for n in range(size))
    for size in _KEYS
}
_SELECT_CRLS = {
    size: "select issuer, url, number, this_update, next_update from crl "  # noqa: S608
    f"where issuer in ({', '.join(f'${n + 1}' for n in range(size))})"
    for size in _KEYS
}

_STORE_EVIDENCE = f"""
insert into evidence ({_EVIDENCE}) values ($1, $2, $3, $4, $5, $6, $7)
on conflict (issuer, serial) do update set
    status = excluded.status, this_update = excluded.this_update, next_update = excluded.next_update,
    revoked_at = excluded.revoked_at, source = excluded.source
where evidence.status <> 'revoked' and (excluded.status = 'revoked' or excluded.this_update >= evidence.this_update)
returning status
"""  # noqa: S608  constants


@dataclass(frozen=True, slots=True)
class WatchedCertificate:
    """A certificate that is checked again periodically, with its issuer's; DER."""

    certificate: bytes
    issuer_certificate: bytes


@dataclass(frozen=True, slots=True)
class StoredCRL:
    """Data for a conditional request and the comparison with the next list. number: None without a CRL number."""

    number: int | None
    this_update: datetime
    next_update: datetime
    etag: str | None
    last_modified: str | None


@dataclass(frozen=True, slots=True)
class DueCRL:
    """names: keys (`ccp.x509.distribution_points`) of the other names of the list's distribution point."""

    url: str
    issuer_certificate: bytes
    names: frozenset[str]


class RevocationCache:
    """Cache for one second of revocation data that many requests share.

    Certificates of CAs and provisioning services are the same for all vehicles of an OEM and all contracts of a
    provider. Each worker has one cache, so evidence that another worker stores takes effect here a second later.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = 0.0
        self.invalidate()

    def invalidate(self) -> None:
        """Invalidate. Queries in progress keep filling the old dicts, which are no longer referenced."""
        self.evidence: dict[CertificateKey, Evidence | None] = {}
        self.crls: dict[str, Sequence[LoadedCRL]] = {}

    def expire(self) -> None:
        """Invalidate the cache if it is older than a second."""
        now = self._clock()
        if now >= self._until:
            self._until = now + _CACHE_SECONDS
            self.invalidate()


def load(keys: Iterable[CertificateRef], rules: RevocationPolicy) -> Query[RevocationState]:
    """The stored revocation data of certificates."""
    return _load(*_sought(keys, rules))


def load_cached(
    own: Iterable[CertificateRef], shared: Sequence[CertificateRef], rules: RevocationPolicy, recent: RevocationCache
) -> Query[RevocationState]:
    """As `load`. shared: certificates for which cached data is accepted."""
    recent.expire()
    held, held_crls = recent.evidence, recent.crls
    missing = [key for key in shared if (key.issuer, key.serial) not in held]
    asked, listed = _sought((*own, *missing), rules)
    unlisted = tuple([issuer for issuer in listed if issuer not in held_crls])
    found = yield from _load(asked, unlisted)
    for issuer in unlisted:
        held_crls[issuer] = found.crls.get(issuer, ())
    for key in missing:
        held[key.issuer, key.serial] = found.evidence.get((key.issuer, key.serial))
    evidence = dict(found.evidence)
    for key in shared:
        if (each := held[key.issuer, key.serial]) is not None:
            evidence[key.issuer, key.serial] = each
    return RevocationState(evidence, held_crls)


def _sought(
    keys: Iterable[CertificateRef], rules: RevocationPolicy
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Issuer and serial number of each certificate as stored, and the issuers whose CRLs are needed."""
    asked: dict[tuple[str, str], None] = {}
    listed: dict[str, None] = {}
    for key in keys:
        asked[key.issuer, f"{key.serial:x}"] = None
        if key.crls or (rules.crl_urls and rules.configured_crl(key)):
            listed[key.issuer] = None
    return tuple(asked), tuple(sorted(listed))


@batchable
def _load(asked: Sequence[tuple[str, str]], listed: Sequence[str]) -> Query[RevocationState]:
    # Lists first. If a new list is stored in between, its revocations are read all the same. In the other order the new
    # list would be read without its revocations, and a revoked certificate would pass as good.
    crls: dict[str, list[LoadedCRL]] = {}
    for issuers in _parts(listed, _KEYS):
        for issuer, url, number, this_update, next_update in (yield _SELECT_CRLS[len(issuers)], tuple(issuers)):
            crls.setdefault(issuer, []).append(
                LoadedCRL(issuer, url, _number(number), instant(this_update), instant(next_update))
            )
    evidence: dict[CertificateKey, Evidence] = {}
    for part in _parts(asked, _KEYS):
        for row in (yield _SELECT_EVIDENCE[len(part)], _flat(part)):
            found = _evidence(row)
            evidence[found.issuer, found.serial] = found
    return RevocationState(evidence, crls)


@retryable
def store_evidence(evidence: Evidence) -> Query[bool]:
    """Store evidence on a certificate. Returns False if a revocation or newer evidence is stored already."""
    rows = yield (
        _STORE_EVIDENCE,
        (
            evidence.issuer, f"{evidence.serial:x}", evidence.status, microseconds(evidence.this_update),
            microseconds(evidence.next_update), evidence.revoked_at and microseconds(evidence.revoked_at),
            evidence.source,
        ),
    )  # fmt: skip
    return bool(rows)


def watch(
    key: CertificateKey, certificate: bytes, issuer_certificate: bytes, not_after: datetime, refresh_at: datetime
) -> Query[None]:
    """Check a certificate again at a time. certificate, issuer_certificate: DER."""
    insert = """
    insert into watched_certificate (issuer, serial, certificate, issuer_certificate, not_after, refresh_at)
    values ($1, $2, $3, $4, $5, $6)
    on conflict (issuer, serial) do update set
        issuer_certificate = excluded.issuer_certificate, refresh_at = excluded.refresh_at
    """
    parameters = (key[0], f"{key[1]:x}", certificate, issuer_certificate, int(not_after.timestamp()))
    yield insert, (*parameters, microseconds(refresh_at))


def unwatch(key: CertificateKey) -> Query[None]:
    """Stop checking a certificate."""
    yield "delete from watched_certificate where issuer = $1 and serial = $2", (key[0], f"{key[1]:x}")


@read_committed
def find_crl(issuer: str, url: str) -> Query[StoredCRL | None]:
    """The stored list of an issuer from an address."""
    rows = yield (
        "select number, this_update, next_update, etag, last_modified from crl where issuer = $1 and url = $2",
        (issuer, url),
    )
    if not rows:
        return None
    number, this_update, next_update, etag, last_modified = rows[0]
    return StoredCRL(_number(number), instant(this_update), instant(next_update), etag, last_modified)


@long_write
def store_crl(
    revocations: RevocationList,
    *,
    url: str,
    issuer_certificate: bytes,
    etag: str | None,
    last_modified: str | None,
    now: datetime,
    refresh_at: datetime,
    names: Iterable[str] = (),
) -> Query[bool]:
    """Store a whole list. Returns False if a newer one is stored already.

    names: of its distribution point, for `DueCRL`. Serial numbers that the previous list had and this one lacks
    (expired certificates, released holds) stay revoked. Known revocations are not written again.
    """
    issuer = revocations.issuer
    kept = yield from find_crl(issuer, url)
    if kept is not None and (
        kept.this_update > revocations.this_update
        or (kept.number is not None and (revocations.number is None or revocations.number < kept.number))
    ):
        return False
    this_update, next_update = microseconds(revocations.this_update), microseconds(revocations.next_update)
    # In one order, so that two writers of lists of the same issuer cannot deadlock.
    entries = sorted((f"{serial:x}", microseconds(when)) for serial, when in revocations.revoked.items())
    shared = (issuer, this_update, next_update, f"CRL {url}")
    offset = 0
    for size in _ENTRIES:
        while len(entries) - offset >= size:
            part = entries[offset : offset + size]
            yield _revoke(size), (*shared, *_flat(part))
            offset += size
    insert = """
    insert into crl (
        issuer, url, issuer_certificate, number, this_update, next_update, etag, last_modified, fetched_at, refresh_at,
        names
    )
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    on conflict (issuer, url) do update set
        issuer_certificate = excluded.issuer_certificate, number = excluded.number,
        this_update = excluded.this_update, next_update = excluded.next_update, etag = excluded.etag,
        last_modified = excluded.last_modified, fetched_at = excluded.fetched_at, refresh_at = excluded.refresh_at,
        names = excluded.names
    """
    number = None if revocations.number is None else str(revocations.number)
    yield (
        insert,
        (
            issuer, url, issuer_certificate, number, this_update, next_update, etag, last_modified,
            microseconds(now), microseconds(refresh_at), json.dumps(sorted(names)),
        ),
    )  # fmt: skip
    return True


def _revoke(size: int) -> str:
    """A statement for `size` revocations.

    Parameters: issuer, thisUpdate, nextUpdate, source, then serial number and time of each.
    """
    rows = ", ".join(f"(${2 * n + 5}, cast(${2 * n + 6} as bigint))" for n in range(size))
    return f"""
    insert into evidence ({_EVIDENCE})
    select $1, column1, 'revoked', cast($2 as bigint), cast($3 as bigint), column2, $4 from (values {rows}) as entry
    where true
    on conflict (issuer, serial) do update set
        status = excluded.status, this_update = excluded.this_update, next_update = excluded.next_update,
        revoked_at = excluded.revoked_at, source = excluded.source
    where evidence.status <> 'revoked'
    """  # noqa: S608  `where true` keeps SQLite from parsing `on conflict` as a join


def keep_crl(issuer: str, url: str, now: datetime, refresh_at: datetime) -> Query[None]:
    """Record that the server answered that a list is unchanged. Its validity stays the same."""
    yield (
        "update crl set fetched_at = $1, refresh_at = $2 where issuer = $3 and url = $4",
        (microseconds(now), microseconds(refresh_at), issuer, url),
    )


MAX_REFRESH: Final = timedelta(days=1)
"""Maximum time between two checks of a list or a certificate."""

# A later refresh time was written by a clock that had jumped ahead; the row is due now.
_BEYOND: Final = "select {} from {} where refresh_at > $1 order by refresh_at desc limit $2 for update skip locked"


def _horizon(now: datetime) -> int:
    return microseconds(now + MAX_REFRESH + timedelta(hours=1))


@retryable
def due_crls(now: datetime, retry_at: datetime, limit: int) -> Query[list[DueCRL]]:
    """Lists to fetch again. They are due again after `retry_at`, so that only one worker fetches each."""
    select = """
    select issuer, url, issuer_certificate, names from crl where refresh_at <= $1 order by refresh_at limit $2
    for update skip locked
    """
    rows = yield select, (microseconds(now), limit)
    if len(rows) < limit:
        rows = [*rows, *(yield _BEYOND.format("issuer, url, issuer_certificate, names", "crl"), (_horizon(now), limit))]
    for issuer, url, _, _ in rows:
        yield "update crl set refresh_at = $1 where issuer = $2 and url = $3", (microseconds(retry_at), issuer, url)
    return [DueCRL(url, certificate, frozenset(json.loads(names or "[]"))) for _, url, certificate, names in rows]


@retryable
def due_certificates(now: datetime, retry_at: datetime, limit: int) -> Query[list[WatchedCertificate]]:
    """Certificates to check again, see `due_crls`. Expired ones are deleted."""
    select = """
    select issuer, serial, certificate, issuer_certificate, not_after from watched_certificate
    where refresh_at <= $1 order by refresh_at limit $2 for update skip locked
    """
    due = []
    rows = yield select, (microseconds(now), limit)
    if len(rows) < limit:
        columns = "issuer, serial, certificate, issuer_certificate, not_after"
        rows = [*rows, *(yield _BEYOND.format(columns, "watched_certificate"), (_horizon(now), limit))]
    for issuer, serial, certificate, issuer_certificate, not_after in rows:
        if not_after >= int(now.timestamp()):
            # Not one statement with a subquery, for which SQLite scans the whole table.
            yield (
                "update watched_certificate set refresh_at = $1 where issuer = $2 and serial = $3",
                (microseconds(retry_at), issuer, serial),
            )
            due.append(WatchedCertificate(certificate, issuer_certificate))
        else:
            yield from unwatch((issuer, int(serial, 16)))
            yield "delete from evidence where issuer = $1 and serial = $2 and status <> 'revoked'", (issuer, serial)
    return due


def _parts(items: Sequence[T], sizes: Sequence[int]) -> Iterator[list[T]]:
    """Split items into parts of the given sizes (ascending); the last part is padded with its last item."""
    for start in range(0, len(items), sizes[-1]):
        part = list(items[start : start + sizes[-1]])
        size = next(size for size in sizes if size >= len(part))
        yield part + part[-1:] * (size - len(part))


def _flat(pairs: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    return tuple(chain.from_iterable(pairs))


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def _unknown(status: str) -> RevocationStatus:
    """The status for a value that this release does not know: neither good nor revoked."""
    unknown_values.warn("evidence.status", status)
    return RevocationStatus.UNKNOWN


def _evidence(row: tuple[Any, ...]) -> Evidence:
    issuer, serial, status, this_update, next_update, revoked_at, source = row
    return Evidence(
        issuer,
        int(serial, 16),
        _STATUS.get(status) or _unknown(status),
        instant(this_update),
        instant(next_update),
        None if revoked_at is None else instant(revoked_at),
        source,
    )
