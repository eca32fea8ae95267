"""One round of refreshing revocation evidence: host by host, bounded."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from ccp.errors import ChainError
from ccp.server.storage.queries import unknown_values
from ccp.x509.certificates import Certificate

_log = structlog.get_logger("ccp.server.trust.revocation")

_HOST_SECONDS: Final = 30.0  # The longest that one list may take.


async def refresh_in_order(host: str, jobs: Sequence[Callable[[], Awaitable[None]]]) -> tuple[int, int]:
    """Do what there is to do at a host. Returns how much was done and how much was not.

    It stops after a while: a host that takes long for each answer must not hold up the next round of all others. What
    is left falls due again.
    """
    done = failed = 0
    ends = asyncio.get_running_loop().time() + _HOST_SECONDS
    reasons: dict[str, int] = {}
    for job in jobs:
        if asyncio.get_running_loop().time() > ends:
            _log.warning("evidence refresh failed", host=host, reasons={"The host is slow.": len(jobs) - done - failed})
            break
        try:
            await job()
            done += 1
        except Exception as exc:
            failed += 1
            reasons[str(exc)] = reasons.get(str(exc), 0) + 1
    if reasons:
        _log.warning("evidence refresh failed", host=host, reasons=reasons)
    return done, failed


def stored_certificate(certificate: bytes, table: str) -> Certificate | None:
    """A stored certificate, None for one that this release cannot read."""
    try:
        return Certificate.load(certificate)
    except ChainError as exc:
        unknown_values.warn(f"{table}.certificate", str(exc), hashlib.sha256(certificate).hexdigest())
        return None
