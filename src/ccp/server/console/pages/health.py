"""Health: what keeps this worker from being ready, and the checks of `ccp doctor`, which an admin starts."""

from __future__ import annotations

from starlette.responses import Response

from ccp.errors import TooManyRequests
from ccp.server.console.application import Console
from ccp.server.console.forms import Form
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.visit import Visit
from ccp.server.diagnosis import Diagnosis, Severity, diagnose
from ccp.server.settings.examination import Examination


def register(console: Console, parts: ConsoleParts) -> None:
    """Register the page and its action."""
    running = False

    async def page(visit: Visit, diagnosis: Diagnosis | None) -> Response:
        return visit.render(
            "health.html",
            problems=await parts.health.problems(),
            diagnosis=diagnosis,
            kinds=KINDS,
            tasks=parts.background.states(),
        )

    @console.page("/health", "Health", navigation=True)
    async def show(visit: Visit) -> Response:
        return await page(visit, None)

    @console.action("/health/examine", title="Health")
    async def examine(visit: Visit, form: Form) -> Response:
        nonlocal running
        if running:
            raise TooManyRequests("An examination is under way. It takes some seconds.", retry_after=5)
        running = True
        try:
            examination = Examination(parts.config, (), None, {})
            found = await diagnose(examination, store=parts.store, clock=parts.context.clock)
        finally:
            running = False
        return await page(visit, found)


KINDS = {Severity.OK: "ok", Severity.WARNING: "warn", Severity.FAILURE: "bad"}
"""Class of the style sheet by severity."""
