"""Whether the pool is alive, and whether it should be sent requests: for supervisors and load balancers.

`/health/live` says that the process answers. `/health/ready` says that it can do its work: the database answers, its
schema is new enough, the threads that read and write it run, anchors are loaded, the background tasks that access and
trust depend on succeed, no signal to stop has come. `/health` is the older form: the database answers, and its threads
run.

Other parts add reasons of their own: `health.add(check)`, where check returns a sentence for each problem it sees now.

When SIGTERM comes, readiness goes at once and everything else goes on for `drain_period`, so that a load balancer has
noticed before connections are refused. Then the server closes in order: requests under way are answered first.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ccp.errors import Unavailable
from ccp.server.storage import Store
from ccp.server.storage.engine import schema_version
from ccp.server.storage.engine.query import Query

_log = structlog.get_logger("ccp.health")

_RETRY_AFTER: Final = {"Retry-After": "2"}


Check: TypeAlias = Callable[[], Iterable[str]]
"""Returns a sentence for each reason why this worker is not ready now. It must not wait, and it names no secret."""


class Health:
    """One for each worker. checks: see `add`."""

    def __init__(self, store: Store, drain_period: float, *checks: Check) -> None:
        self._store = store
        self._checks = list(checks)
        self._drain_period = drain_period
        self.stopping = False

    def add(self, check: Check) -> None:
        """Ask this too, each time that readiness is asked for."""
        self._checks.append(check)

    def routes(self) -> list[Route]:
        return [
            Route("/health", self._answering),
            Route("/health/live", self._alive),
            Route("/health/ready", self._ready),
        ]

    async def problems(self) -> list[str]:
        """What keeps it from working; nothing where it is ready."""
        found = []
        if self.stopping:
            found.append("The pool is being stopped.")
        try:
            if not schema_version.is_enough(await self._store.read(_revision())):
                found.append("The database schema is older than this release needs.")
        except Unavailable:
            found.append("The database does not answer.")
        found += self._store.reasons()
        for check in self._checks:
            found += check()
        return found

    async def _answering(self, request: Request) -> Response:
        try:
            await self._store.read(_revision())
        except Unavailable:
            return _answer(503, {"status": "unavailable"})
        if self._store.reasons():
            return _answer(503, {"status": "unavailable"})
        return _answer(200, {"status": "ok"})

    async def _alive(self, request: Request) -> Response:
        return _answer(200, {"status": "alive"})

    async def _ready(self, request: Request) -> Response:
        if problems := await self.problems():
            return _answer(503, {"status": "not ready", "reasons": problems})
        return _answer(200, {"status": "ready"})

    @contextmanager
    def drain_on_sigterm(self) -> Iterator[None]:
        """Put the delay in front of what the server does at SIGTERM. SIGINT stops it at once, as it always does.

        Signals are the main thread's business; a server that runs in another one is not told by them.
        """
        before = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            yield
            return
        loop = asyncio.get_running_loop()
        server: Callable[[int, Any], Any] = before

        def stop(number: int, frame: Any) -> None:
            # A supervisor may tell the whole group and its parent tell it once more: that hastens nothing.
            if not self.stopping:
                self.stopping = True
                loop.call_soon_threadsafe(self._drain, lambda: server(number, None))

        signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _drain(self, stop: Callable[[], Any]) -> None:
        _log.info("shutdown started", drain_period=self._drain_period)
        asyncio.get_running_loop().call_later(self._drain_period, stop)


def _revision() -> Query[str | None]:
    rows = yield "select version_num from alembic_version", ()
    return rows[0][0] if rows else None


def _answer(status: int, members: dict[str, Any]) -> Response:
    headers = _RETRY_AFTER if status == 503 else None
    return Response(orjson.dumps(members), status, headers, media_type="application/json")
