"""Verification of the audit trail in the background: one at a time for all workers, with its progress in the database.

The trail is read in portions, and requests run between them. A worker that ends takes its verification with it; the
lease on the stored row then ends, and an admin starts again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ccp.errors import TooManyRequests
from ccp.server.audit.verification import ChainVerifier, verify_trail
from ccp.server.domain.actor import Actor
from ccp.server.runtime.background import BackgroundTasks
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import audit, statistics
from ccp.server.storage.queries.audit import Action, Entry
from ccp.server.storage.queries.statistics import Stored

_NAME: Final = "audit_verification"
_LEASE: Final = timedelta(seconds=60)
_REPORT: Final = timedelta(seconds=1)
_PORTION: Final = 250
"""Rows between two turns of the event loop: some 3 milliseconds."""
_PAUSE: Final = 0.005
"""Seconds for other work after each portion."""
_SHOWN: Final = 20
"""Broken rows that are stored; there is at most one for each shard."""


@dataclass(frozen=True, slots=True)
class VerificationProgress:
    """The newest verification. expected: rows when it began. broken: sentences. is_running: False after a worker ended.

    finished_at: None if it runs, or was interrupted.
    """

    by: str
    started_at: datetime
    rows: int
    expected: int
    erased: int
    broken: tuple[str, ...]
    is_running: bool
    finished_at: datetime | None


class AuditVerification:
    """Starts verifications in this worker, and reads the progress of any worker's."""

    def __init__(self, store: Store, background: BackgroundTasks, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._background = background
        self._clock = clock

    async def progress(self, now: datetime) -> VerificationProgress | None:
        """The newest verification; None before the first one."""
        stored = await self._stored()
        if stored is None or not isinstance(stored.payload, dict):
            return None
        payload = stored.payload
        return VerificationProgress(
            str(payload["by"]),
            datetime.fromtimestamp(payload["started"], UTC),
            int(payload["rows"]),
            int(payload["expected"]),
            int(payload["erased"]),
            tuple(map(str, payload["broken"])),
            stored.leased_until > now,
            datetime.fromtimestamp(payload["finished"], UTC) if payload["finished"] else None,
        )

    async def start(self, by: Actor, now: datetime) -> None:
        """Start a verification, and record it in the trail. Raises TooManyRequests while one runs, in any worker."""
        stored = await self._stored()
        counted_at = stored.counted_at if stored is not None else None
        lengths = await self._store.read(audit.shard_lengths())
        payload = {
            "by": by.name, "started": now.timestamp(), "rows": 0, "expected": sum(lengths.values()), "erased": 0,
            "broken": [], "finished": None,
        }  # fmt: skip

        def change() -> Query[bool]:
            if not (yield from statistics.claim(_NAME, counted_at, now, _LEASE)):
                return False
            yield from statistics.renew(_NAME, now + _LEASE, payload)
            entry = Entry(now, by.name, Action.AUDIT_VERIFICATION_STARTED, {}, trace_id=by.trace_id)
            yield from audit.record(entry)
            return True

        if not await self._store.write(change()):
            raise TooManyRequests("A verification is under way.", retry_after=5)
        self._background.spawn("audit_verification", self._run(payload))

    async def _run(self, payload: dict[str, Any]) -> None:
        verifier, rows, reported = ChainVerifier(), 0, self._clock()
        async for part in verify_trail(self._store, verifier):
            if not isinstance(part, audit.AuditRow):
                continue
            rows += 1
            if rows % _PORTION:
                continue
            await asyncio.sleep(_PAUSE)
            now = self._clock()
            if now - reported >= _REPORT:
                reported = now
                await self._store.write(statistics.renew(_NAME, now + _LEASE, {**payload, "rows": rows}))
        result, now = verifier.result(), self._clock()
        broken = [f"Shard {each.lane}, row {each.number}: {each.why}." for each in result.broken[:_SHOWN]]
        found = {"rows": result.rows, "erased": result.erased, "broken": broken, "finished": now.timestamp()}
        await self._store.write(statistics.store(_NAME, now, {**payload, **found}))

    async def _stored(self) -> Stored | None:
        return next((row for row in await self._store.read(statistics.load_all()) if row.name == _NAME), None)
