"""Questions about revocation evidence: what is known, what was learnt, and what to ask about again.

Two rules are held here, inside the transaction: a revocation is never taken back, and nothing is replaced by a
statement with an older thisUpdate. Rows of revoked certificates stay; those of a certificate that was only watched go
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
from ccp.x509.revocation_evidence import CertificateRef, Evidence, LoadedCRL, RevocationList, RevocationStatus
from ccp.x509.revocation_policy import RevocationPolicy, RevocationState

_EVIDENCE = "issuer, serial, status, this_update, next_update, revoked_at, source"
# Statements are kept prepared, so there are few different ones: places in a statement are filled up.
_KEYS = (2, 6, 12)  # The leaves of a vehicle and its contract; all of a contract's; all of both.
_CACHE_SECONDS = 1.0
_STATUS = {status.value: status for status in RevocationStatus}
_ENTRIES = (400, 20, 1)

# Not `(issuer, serial) in (values …)`, for which SQLite reads the whole table.
_SELECT_EVIDENCE = {
    size: f"select {_EVIDENCE} from evidence where "  # noqa: S608  columns are ours
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
"""  # noqa: S608  columns are ours


@dataclass(frozen=True, slots=True)
class WatchedCertificate:
    """A certificate that is asked about again, with its issuer's; DER."""

    certificate: bytes
    issuer_certificate: bytes


@dataclass(frozen=True, slots=True)
class StoredCRL:
    """What a conditional request and a check against the list before need. number: None where that one had none."""

    number: int | None
    this_update: datetime
    next_update: datetime
    etag: str | None
    last_modified: str | None


@dataclass(frozen=True, slots=True)
class DueCRL:
    """names: keys (`ccp.x509.distribution_points`) of other names of the place that the list comes from."""

    url: str
    issuer_certificate: bytes
    names: frozenset[str]


class RevocationCache:
    """What was read within the last second of certificates that many requests have in common.

    Those of CAs and provisioning services are the same for all vehicles of a maker and all contracts of a provider. One
    for each worker; what another learns counts here a second later.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = 0.0
        self.invalidate()

    def invalidate(self) -> None:
        """Something was learnt here. A question that is under way notes what it finds where nobody looks any more."""
        self.evidence: dict[tuple[str, int], Evidence | None] = {}
        self.crls: dict[str, Sequence[LoadedCRL]] = {}

    def expire(self) -> None:
        now = self._clock()
        if now >= self._until:
            self._until = now + _CACHE_SECONDS
            self.invalidate()


def load(keys: Iterable[CertificateRef], rules: RevocationPolicy) -> Query[RevocationState]:
    """What there is about these certificates."""
    return _load(*_sought(keys, rules))


def load_cached(
    own: Iterable[CertificateRef], shared: Sequence[CertificateRef], rules: RevocationPolicy, recent: RevocationCache
) -> Query[RevocationState]:
    """What there is about certificates. shared: those of which what was read within the last second will do."""
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
    """Issuer and serial number of each, as they are stored, and the issuers whose lists count."""
    asked: dict[tuple[str, str], None] = {}
    listed: dict[str, None] = {}
    for key in keys:
        asked[key.issuer, f"{key.serial:x}"] = None
        if key.crls or (rules.crl_urls and rules.configured_crl(key)):
            listed[key.issuer] = None
    return tuple(asked), tuple(sorted(listed))


@batchable
def _load(asked: Sequence[tuple[str, str]], listed: Sequence[str]) -> Query[RevocationState]:
    # Lists first: with the next one, which is taken over in between, the evidence on a certificate may come that the
    # list before did not revoke. The other way round it would pass for good.
    crls: dict[str, list[LoadedCRL]] = {}
    for issuers in _parts(listed, _KEYS):
        for issuer, url, number, this_update, next_update in (yield _SELECT_CRLS[len(issuers)], tuple(issuers)):
            crls.setdefault(issuer, []).append(
                LoadedCRL(issuer, url, _number(number), instant(this_update), instant(next_update))
            )
    evidence: dict[tuple[str, int], Evidence] = {}
    for part in _parts(asked, _KEYS):
        for row in (yield _SELECT_EVIDENCE[len(part)], _flat(part)):
            found = _evidence(row)
            evidence[found.issuer, found.serial] = found
    return RevocationState(evidence, crls)


@retryable
def store_evidence(evidence: Evidence) -> Query[bool]:
    """Keep what was said of a certificate. Returns False where something final or newer stands already."""
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
    key: tuple[str, int], certificate: bytes, issuer_certificate: bytes, not_after: datetime, refresh_at: datetime
) -> Query[None]:
    """Ask about a certificate again at that time. certificate, issuer_certificate: DER."""
    insert = """
    insert into watched_certificate (issuer, serial, certificate, issuer_certificate, not_after, refresh_at)
    values ($1, $2, $3, $4, $5, $6)
    on conflict (issuer, serial) do update set
        issuer_certificate = excluded.issuer_certificate, refresh_at = excluded.refresh_at
    """
    parameters = (key[0], f"{key[1]:x}", certificate, issuer_certificate, int(not_after.timestamp()))
    yield insert, (*parameters, microseconds(refresh_at))


def unwatch(key: tuple[str, int]) -> Query[None]:
    yield "delete from watched_certificate where issuer = $1 and serial = $2", (key[0], f"{key[1]:x}")


@read_committed
def find_crl(issuer: str, url: str) -> Query[StoredCRL | None]:
    """The last list of an issuer from an address."""
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
    """Take over a whole list at once. Returns False where a newer one stands already.

    names: of the place that it comes from, for `DueCRL`.

    Serial numbers that the list before had and this one has not (certificates that expired, holds that were released)
    stay revoked. Those that are known to be revoked are not written again.
    """
    issuer = revocations.issuer
    kept = yield from find_crl(issuer, url)
    if kept is not None and (
        kept.this_update > revocations.this_update
        or (kept.number is not None and (revocations.number is None or revocations.number < kept.number))
    ):
        return False
    this_update, next_update = microseconds(revocations.this_update), microseconds(revocations.next_update)
    # In one order, so that two that take over lists of the same issuer wait for each other and do not deadlock.
    entries = sorted((f"{serial:x}", microseconds(when)) for serial, when in revocations.revoked.items())
    shared = (issuer, this_update, next_update, f"CRL {url}")
    at_place = 0
    for size in _ENTRIES:
        while len(entries) - at_place >= size:
            part = entries[at_place : at_place + size]
            yield _revoke(size), (*shared, *_flat(part))
            at_place += size
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
    """Parameters: issuer, thisUpdate, nextUpdate, source, then a serial number and a time for each certificate."""
    rows = ", ".join(f"(${2 * n + 5}, cast(${2 * n + 6} as bigint))" for n in range(size))
    return f"""
    insert into evidence ({_EVIDENCE})
    select $1, column1, 'revoked', cast($2 as bigint), cast($3 as bigint), column2, $4 from (values {rows}) as entry
    where true
    on conflict (issuer, serial) do update set
        status = excluded.status, this_update = excluded.this_update, next_update = excluded.next_update,
        revoked_at = excluded.revoked_at, source = excluded.source
    where evidence.status <> 'revoked'
    """  # noqa: S608  `where true` tells SQLite that the conflict clause is none of the select's


def keep_crl(issuer: str, url: str, now: datetime, refresh_at: datetime) -> Query[None]:
    """The server says that the list is still the same. Its validity stays what it was."""
    yield (
        "update crl set fetched_at = $1, refresh_at = $2 where issuer = $3 and url = $4",
        (microseconds(now), microseconds(refresh_at), issuer, url),
    )


MAX_REFRESH: Final = timedelta(days=1)
"""The longest time from one look at a list or a certificate to the next."""

# What was to be looked at again later than that was written by a clock that had jumped ahead; it is due now.
_BEYOND: Final = "select {} from {} where refresh_at > $1 order by refresh_at desc limit $2 for update skip locked"


def _horizon(now: datetime) -> int:
    return microseconds(now + MAX_REFRESH + timedelta(hours=1))


@retryable
def due_crls(now: datetime, retry_at: datetime, limit: int) -> Query[list[DueCRL]]:
    """Lists to fetch again. They are not due again before `retry_at`, so several workers do not fetch the same one."""
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
    """Certificates to ask about again; see `due_crls`. Those that have expired meanwhile are forgotten."""
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
            # Not one statement with a subquery for all, for which SQLite reads the whole table.
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
    """The items by so many; the last part is filled up with its last item. sizes: ascending."""
    for start in range(0, len(items), sizes[-1]):
        part = list(items[start : start + sizes[-1]])
        size = next(size for size in sizes if size >= len(part))
        yield part + part[-1:] * (size - len(part))


def _flat(pairs: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    return tuple(chain.from_iterable(pairs))


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def _unknown(status: str) -> RevocationStatus:
    """What a status is taken for that this release does not know: it says neither that a certificate is good nor that
    it is revoked.
    """
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
