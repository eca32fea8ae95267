"""Liveness and readiness, for supervisors and load balancers; graceful shutdown.

- `/health/live`: the process answers.
- `/health/ready`: the worker can do its work. The database answers, its schema is new enough, the database threads run,
  trust anchors are loaded, the critical background tasks succeed, and no shutdown has started.
- `/health`: the older form. The database answers and its threads run.

Other parts add checks with `health.add(check)`.

At SIGTERM, readiness fails at once, and everything else continues for `drain_period`, so that load balancers notice
before connections are refused. Then the server shuts down and completes the requests in progress.
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

from ccp.errors import DatabaseUnavailable, Unavailable
from ccp.errors.codes import ErrorCode
from ccp.server.http.middleware.tracing import trace_of
from ccp.server.storage import Store
from ccp.server.storage.engine import schema_version
from ccp.server.storage.engine.query import Query

_log = structlog.get_logger("ccp.health")

_SILENT: Final = "The database does not answer."
_RETRY_AFTER: Final = {"Retry-After": "2"}


Check: TypeAlias = Callable[[], Iterable[str]]
"""Returns a sentence for each reason why the worker is not ready. Must not block, and must not name secrets."""


class Health:
    """The health of one worker. drain_period: seconds. checks: see `add`."""

    def __init__(self, store: Store, drain_period: float, *checks: Check) -> None:
        self._store = store
        self._checks = list(checks)
        self._drain_period = drain_period
        self.stopping = False

    def add(self, check: Check) -> None:
        """Add a check of readiness."""
        self._checks.append(check)

    def routes(self) -> list[Route]:
        """Return the routes of the health API."""
        return [
            Route("/health", self._get_health),
            Route("/health/live", self._get_live),
            Route("/health/ready", self._get_ready),
        ]

    async def problems(self) -> list[str]:
        """Return the reasons why the worker is not ready; empty if it is."""
        found = []
        if self.stopping:
            found.append("The pool is being stopped.")
        try:
            if not schema_version.is_enough(await self._store.read(_schema_revision())):
                found.append("The database schema is older than this release needs.")
        except Unavailable:
            found.append(_SILENT)
        found += self._store.reasons()
        for check in self._checks:
            found += check()
        return found

    async def _get_health(self, request: Request) -> Response:
        reasons = self._store.reasons()
        try:
            await self._store.read(_schema_revision())
        except Unavailable:
            reasons = [_SILENT, *reasons]
        if reasons:
            trace_of(request.scope).failure = DatabaseUnavailable(*reasons)
            return _not_ready(request, {"status": "unavailable"})
        return _response(200, {"status": "ok"})

    async def _get_live(self, request: Request) -> Response:
        return _response(200, {"status": "alive"})

    async def _get_ready(self, request: Request) -> Response:
        if problems := await self.problems():
            # For the log: why a probe failed.
            kind = DatabaseUnavailable if _SILENT in problems else Unavailable
            trace_of(request.scope).failure = kind(*problems)
            return _not_ready(request, {"status": "not ready", "reasons": problems})
        return _response(200, {"status": "ready"})

    @contextmanager
    def drain_on_sigterm(self) -> Iterator[None]:
        """Delay the server's own reaction to SIGTERM by the drain period. SIGINT still stops it at once.

        Only the main thread receives signals; a server in another thread is unaffected.
        """
        before = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            yield
            return
        loop = asyncio.get_running_loop()
        server: Callable[[int, Any], Any] = before

        def stop(number: int, frame: Any) -> None:
            # A supervisor may signal the whole process group, and the parent once more. Repeats have no effect.
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


def _schema_revision() -> Query[str | None]:
    rows = yield "select version_num from alembic_version", ()
    return rows[0][0] if rows else None


def _not_ready(request: Request, members: dict[str, Any]) -> Response:
    trace_of(request.scope).code = ErrorCode.NOT_READY
    return _response(503, members, _RETRY_AFTER)


def _response(status: int, members: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(members), status, headers, media_type="application/json")
