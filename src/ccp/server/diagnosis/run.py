"""Runs the checks: all at the same time, each with a time limit, none able to end the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import structlog

from ccp.errors import CCPError
from ccp.server.diagnosis.context import Context, StoreClosed
from ccp.server.diagnosis.finding import CheckResult, Diagnosis, Stopwatch
from ccp.server.runtime.clock import Clock, utc_now
from ccp.server.settings.examination import Examination
from ccp.server.storage import Store

_log = structlog.get_logger("ccp.server.diagnosis")

TIMEOUT: Final = 20.0
"""Seconds for a whole diagnosis."""
_LAST: Final = 2.0
"""Seconds of it that are kept for the checks that need the results of others."""

Run: TypeAlias = Callable[[Context, CheckResult], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Check:
    """name: of the results, and the first part of the codes. network: whether it calls other systems than the database.

    last: whether it needs what other checks found.
    """

    name: str
    title: str
    run: Run
    network: bool = False
    last: bool = False


async def run_checks(
    checks: Sequence[Check],
    examination: Examination,
    *,
    offline: bool = False,
    store: Store | None = None,
    clock: Clock = utc_now,
    timeout: float = TIMEOUT,  # noqa: ASYNC109  a result, not an error
) -> Diagnosis:
    """Run checks and return what they found; raises nothing for failures, and changes nothing.

    offline: leave out checks that call other systems than the database. store: an open one to use. timeout: seconds in
    all.
    """
    watch, at = Stopwatch(), clock()
    context = Context(examination, clock, store)
    results = {check.name: CheckResult(check.name, check.title) for check in checks}
    try:
        for last in (False, True):
            limit = max(0.1, timeout - watch.seconds - (0.0 if last else min(_LAST, timeout / 4)))
            chosen = [check for check in checks if check.last is last]
            await asyncio.gather(*(_run(check, context, results[check.name], offline, limit) for check in chosen))
    finally:
        await context.close()
    named = examination.file
    return Diagnosis(
        at,
        offline,
        None if named is None else str(named.absolute()),
        tuple(results.values()),
        tuple(examination.values()),
        watch.seconds,
    )


async def _run(check: Check, context: Context, result: CheckResult, offline: bool, limit: float) -> None:
    if offline and check.network:
        result.skip("left out: --offline")
        return
    watch = Stopwatch()
    try:
        async with asyncio.timeout(limit) as timer:
            await check.run(context, result)
    except StoreClosed:
        result.skip("not checked: the database cannot be opened")
    except TimeoutError as exc:
        if timer.expired():
            result.add("check.timed-out", f"The check did not end within {limit:.0f} seconds.", subject=check.name)
        else:
            _failed(check, result, exc)
    except Exception as exc:
        _failed(check, result, exc)
    finally:
        result.seconds = watch.seconds


def _failed(check: Check, result: CheckResult, exc: Exception) -> None:
    """A CCPError has sentences for operators. Of any other error only the type is shown, and the log has the rest."""
    if isinstance(exc, CCPError):
        reason = str(exc)
    else:
        _log.error("diagnosis check failed", check=check.name, exc_info=exc)
        reason = f"{type(exc).__name__}."
    result.add("check.failed", f"The check ended with an error: {reason}", subject=check.name)
