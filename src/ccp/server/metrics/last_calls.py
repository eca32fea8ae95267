"""The newest responses of each peer and external service, and the newest events from them, as one worker knows them.

Metrics count the calls of all workers; this says what the newest calls of this worker ended with, for the console.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

PEER: Final = "peer"
SERVICE: Final = "service"
EVENTS: Final = "events"
"""Events of a system that this pool has subscribed to, by the source of the subscription."""
_MAX_KNOWN: Final = 1000
"""Peers and services. A peer that was removed is forgotten at the next start."""
_ANSWERED: Final = frozenset({"ok", "found", "nothing", "not_found"})
_WITHOUT_RESULT: Final = frozenset({"limited", "overtaken", "abandoned"})
"""Outcomes that say nothing about the other side: not sent, or not waited for."""


class EndedCall(NamedTuple):
    """The end of a call. outcome: as in the metrics `ccp_peer_requests_total` and `ccp_service_requests_total`."""

    at: datetime
    outcome: str
    seconds: float


@dataclass(slots=True)
class CallRecord:
    """The newest call that was answered as expected, and the newest other one; None without one."""

    success: EndedCall | None = None
    failure: EndedCall | None = None

    @property
    def is_failing(self) -> bool:
        """Whether the newest call failed."""
        return self.failure is not None and (self.success is None or self.failure.at > self.success.at)


class LastCalls:
    """The newest calls of each peer and service. A call writes one entry in memory and waits for nothing."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """clock: seconds since 1970."""
        self._clock = clock
        self._records: dict[tuple[str, str], CallRecord] = {}

    def record(self, kind: str, name: str, outcome: str, seconds: float) -> None:
        """Record the end of a call. kind: PEER, SERVICE or EVENTS. name: party id, prefix of settings, or source."""
        if outcome in _WITHOUT_RESULT:
            return
        found = self._records.get((kind, name))
        if found is None:
            if len(self._records) >= _MAX_KNOWN:
                return
            found = self._records[kind, name] = CallRecord()
        ended = EndedCall(datetime.fromtimestamp(self._clock(), UTC), outcome, seconds)
        # The Provisioning Certificate Pool answers 404 for a vehicle that it does not know.
        if outcome in _ANSWERED or (outcome == "client_error" and name == "pcp"):
            found.success = ended
        else:
            found.failure = ended

    def of(self, kind: str, name: str) -> CallRecord:
        """The newest calls of a peer or service; empty if this worker made none."""
        return self._records.get((kind, name)) or CallRecord()
