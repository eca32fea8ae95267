"""Check of the clock against the database server's and against those of the servers that other checks called."""

from __future__ import annotations

from datetime import timedelta
from statistics import median
from typing import Final

from ccp.errors import CCPError
from ccp.server.diagnosis.context import Context, StoreClosed
from ccp.server.diagnosis.finding import CheckResult
from ccp.server.runtime.clock import TOLERANCE

_DRIFT: Final = timedelta(seconds=10)
_HTTP_DIFFERENCE: Final = timedelta(minutes=1)
_SHOWN: Final = 5


async def check_clock(context: Context, result: CheckResult) -> None:
    """Compare clocks. Positive differences: this machine is ahead."""
    await _compare_with_database(context, result)
    offsets = context.clock_offsets
    if not offsets:
        result.note("no server has sent a Date header")
        return
    middle = timedelta(seconds=median(offset.total_seconds() for offset in offsets.values()))
    hosts = sorted(offsets, key=lambda host: abs(offsets[host] - middle))[:_SHOWN]
    text = f"{_seconds(middle)} from {', '.join(hosts)} (median of {len(offsets)})"
    result.note(text)
    if abs(middle) > _HTTP_DIFFERENCE:
        result.add("clock.differs-from-http", f"The clock of this machine differs by {text}.")


async def _compare_with_database(context: Context, result: CheckResult) -> None:
    try:
        store = await context.store()
        before = context.clock()
        theirs = await store.time()
        after = context.clock()
    except (StoreClosed, CCPError):
        result.note("not compared with the database server's: it does not answer")
        return
    if theirs is None:
        result.note("the database has no clock of its own")
        return
    offset = before + (after - before) / 2 - theirs
    result.note(f"{_seconds(offset)} from the database server")
    if abs(offset) > TOLERANCE:
        message = f"The clock of this machine differs by {_seconds(offset)} from the database server's."
        result.add("clock.differs-from-database", message)
    elif abs(offset) > _DRIFT:
        message = f"The clock of this machine differs by {_seconds(offset)} from the database server's."
        result.add("clock.drifts-from-database", message)


def _seconds(offset: timedelta) -> str:
    return f"{offset.total_seconds():+.1f} s"
