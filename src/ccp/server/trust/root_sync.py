"""Synchronisation of trust anchors with a Root Certificate Pool."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import structlog

from ccp.errors import ChainError
from ccp.server.external.root_pool import RootCertificatePool, RootList
from ccp.server.runtime.background import PeriodicTask
from ccp.server.storage import Store
from ccp.server.storage.queries import anchors, audit
from ccp.server.storage.queries.anchors import TrustedCertificate
from ccp.server.trust.anchors import Expiry, add_anchor, remove_anchor, trusted_certificate
from ccp.verify.trust_folder import is_self_issued
from ccp.x509.certificate_checks import validate_root
from ccp.x509.profiles import AnchorRole

_log = structlog.get_logger("ccp.server.trust.root_sync")

_MAX_FIRST_DELAY: Final = 10.0  # Workers start together; their first requests are spread over this time.
_JITTER: Final = 0.1  # Keeps the later requests of workers apart.
_RETRY_DELAY: Final = 60.0  # After a failure; doubled each time.
_MAX_RETRY_DELAY: Final = 900.0  # A change may have been announced meanwhile.
_WAKE_DELAY: Final = 0.2  # Announcements come several at a time.
_MIN_GAP: Final = 5.0  # Between two synchronisations that were requested out of turn.
_FOLLOW_UP: Final = 10.0  # Workers of a pool like this one list a new anchor a second after it was added.


@dataclass(frozen=True, slots=True)
class RootSyncResult:
    """What a synchronisation changed.

    delisted: anchors that came from this pool and are no longer listed there. pruned: whether these were removed.
    unusable: a sentence for each entry that was not accepted.
    """

    added: tuple[TrustedCertificate, ...]
    delisted: tuple[TrustedCertificate, ...]
    pruned: bool
    unusable: tuple[str, ...]


async def sync_roots(
    store: Store,
    rcp: RootCertificatePool,
    now: datetime,
    *,
    roles: Iterable[AnchorRole] = AnchorRole,
    prune: bool = False,
    actor: str = audit.POOL,
) -> RootSyncResult:
    """Trust what the Root Certificate Pool lists, each certificate only for the roles that the pool names.

    roles: those for which the pool is believed; it counts as not listing a root for any other role.
    prune: remove anchors that came from this pool and are no longer listed; otherwise they are only reported. Anchors
    from other sources are never changed. A list with unreadable entries prunes nothing, because an anchor that seems to
    be missing may be one of them. actor: who started it, for the audit trail. Raises UpstreamError, Unavailable.
    """
    root_list = _restrict(await rcp.list_roots(), frozenset(roles))
    known = await store.read(anchors.list_all())
    usable, unusable = _select_usable(root_list, now)
    present = {(entry.role, entry.fingerprint) for entry in known}
    new = [entry for entry in usable if (entry.role, entry.fingerprint) not in present]
    listed = {(role.value, root.certificate.fingerprint) for root in root_list.roots for role in root.roles}
    delisted = [
        entry for entry in known if entry.source == root_list.source and (entry.role, entry.fingerprint) not in listed
    ]
    pruned = prune and root_list.complete
    added = [entry for entry in new if await store.write(add_anchor(entry, actor, now))]
    if pruned:
        for entry in delisted:
            await store.write(remove_anchor(entry, actor, now))
    if prune and not pruned and delisted:
        unusable.append("Nothing was removed, because the list has entries that cannot be read.")
    return RootSyncResult(tuple(added), tuple(delisted), pruned, tuple(unusable))


class SyncTrigger:
    """Requests synchronisations out of turn: one soon, and one `_FOLLOW_UP` seconds after the last request.

    However many are requested, there is at most one in `_MIN_GAP` seconds. The later one is for a Root Certificate Pool
    that announces a change before all of its servers list it.
    """

    def __init__(self) -> None:
        self.wake: Final = asyncio.Event()
        self._allowed_at = 0.0
        self._follow_up_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def request(self) -> None:
        """Request a synchronisation: at once, or when the pause after the previous one is over."""
        now = asyncio.get_running_loop().time()
        self._follow_up_at = now + _FOLLOW_UP
        self._schedule(now)

    def close(self) -> None:
        """Forget what was requested."""
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self, at: float) -> None:
        """Start a synchronisation at a time of the event loop's clock, unless one starts before."""
        at = max(at, self._allowed_at)
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(at, self._fire)

    def _fire(self) -> None:
        now = asyncio.get_running_loop().time()
        self._timer, self._allowed_at = None, now + _MIN_GAP
        self.wake.set()
        if self._follow_up_at > now:
            self._schedule(self._follow_up_at)


def root_sync_task(
    store: Store,
    rcp: RootCertificatePool,
    interval: float,
    clock: Callable[[], datetime],
    roles: Iterable[AnchorRole] = AnchorRole,
    wake: asyncio.Event | None = None,
) -> PeriodicTask:
    """Background task that adds new anchors on a schedule and reports those that are no longer listed.

    interval: seconds. wake: starts a round out of turn, see `SyncTrigger`. Every worker runs it; for an addition, the
    second worker finds it stored. The task is not critical: without the Root Certificate Pool the pool continues with
    the anchors that it has.
    """

    async def run() -> None:
        _log_result(await sync_roots(store, rcp, clock(), roles=roles), rcp.url)

    return PeriodicTask(
        "root_synchronisation",
        run,
        interval,
        jitter=_JITTER,
        first_delay=random.uniform(0, _MAX_FIRST_DELAY),  # noqa: S311  no secret
        wake=wake,
        wake_delay=_WAKE_DELAY,
        retry_delay=min(_RETRY_DELAY, interval),
        max_retry_delay=min(_MAX_RETRY_DELAY, interval),
    )


def _restrict(root_list: RootList, roles: frozenset[AnchorRole]) -> RootList:
    return replace(root_list, roots=tuple(replace(root, roles=root.roles & roles) for root in root_list.roots))


def _select_usable(root_list: RootList, now: datetime) -> tuple[list[TrustedCertificate], list[str]]:
    """The entries that may be trusted, and a sentence for each of the others."""
    usable: list[TrustedCertificate] = []
    unusable = list(root_list.unusable)
    for root in root_list.roots:
        certificate = root.certificate
        try:
            if not is_self_issued(certificate):
                raise ChainError(f"Certificate {certificate.display_name} is not a root certificate.")
            validate_root(certificate)
        except ChainError as exc:
            unusable.extend(exc.messages)
            continue
        if root.roles and Expiry.of(certificate, now) is Expiry.EXPIRED:
            unusable.append(f"Certificate {certificate.display_name} expired on {certificate.not_after:%Y-%m-%d}.")
            continue
        usable += [
            trusted_certificate(certificate, role, root_list.source, now) for role in AnchorRole if role in root.roles
        ]
    return usable, unusable


def _log_result(result: RootSyncResult, source: str) -> None:
    _log.info("anchors synchronised", source=source, added=len(result.added), delisted=len(result.delisted))
    for entry in result.added:
        _log.warning("anchor added", source=source, role=entry.role, label=entry.label, fingerprint=entry.fingerprint)
    for entry in result.delisted:
        fields = {"role": entry.role, "label": entry.label, "fingerprint": entry.fingerprint}
        _log.warning("anchor no longer listed", source=source, **fields)
    for reason in result.unusable:
        _log.warning("root list entry rejected", source=source, reason=reason)
