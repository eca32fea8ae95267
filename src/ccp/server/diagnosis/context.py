"""What the checks of one diagnosis share: settings, the store, threads for blocking calls, and clocks of servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Final, ParamSpec, TypeVar

from ccp.errors import CCPError
from ccp.server.external.client_tls import ClientTLS
from ccp.server.external.outbound import HttpResponse, OutboundClient, OutboundError
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.server.runtime.clock import Clock
from ccp.server.settings import Settings
from ccp.server.settings.examination import Examination
from ccp.server.storage import Store, connect
from ccp.server.storage.engine.time_limits import TimeLimits
from ccp.server.trust.anchors import TrustStore

P = ParamSpec("P")
T = TypeVar("T")

PROBE_TIMEOUT: Final = 4.0
"""Seconds for one request to another system."""
_OPEN_TIMEOUT: Final = 7.0
_CLOSE_TIMEOUT: Final = 2.0
_LIMITS: Final = TimeLimits(5.0, 5.0, 6.0, 6.0, connect=5.0, refuse_while_silent=False)
_MAX_PROBE_BYTES: Final = 1_024
_MAX_HTTP_AGE: Final = timedelta(days=1)


class StoreClosed(Exception):
    """The database cannot be opened; the check of the database has the finding."""


class Context:
    """Belongs to one event loop. Close it when done."""

    def __init__(self, examination: Examination, clock: Clock, store: Store | None) -> None:
        """store: an open one, which stays open; None to connect when the first check needs it."""
        self.examination: Final = examination
        self.settings: Final[Settings] = examination.settings
        self.clock: Final = clock
        self.outbound: Final = OutboundClient(self.settings.egress_allow_networks)
        self.clock_offsets: Final[dict[str, timedelta]] = {}
        """This machine's clock minus the Date header, by host."""
        self._given = store
        self._opening: asyncio.Task[Store] | None = None
        self._trust: asyncio.Task[TrustStore] | None = None

    async def blocking(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a blocking function in a thread of its own. Raises what it raises, and Unavailable."""
        calls = BlockingCalls("diagnosis", max_threads=1, timeout=_OPEN_TIMEOUT)
        return await calls.run(partial(function, *args, **kwargs))

    async def store(self) -> Store:
        """The open store. Raises StoreClosed, with the reason as its cause."""
        if self._given is not None:
            return self._given
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        try:
            return await asyncio.shield(self._opening)
        except (CCPError, OSError, TimeoutError) as exc:
            raise StoreClosed from exc

    async def _open(self) -> Store:
        store = connect(self.settings.database, 2, _LIMITS, self.settings.secrets_key_file)
        async with asyncio.timeout(_OPEN_TIMEOUT):
            await store.open()
        return store

    async def trust(self) -> TrustStore:
        """The trust anchors. Raises StoreClosed, Unavailable."""
        if self._trust is None:
            self._trust = asyncio.create_task(self._load_trust())
        return await asyncio.shield(self._trust)

    async def _load_trust(self) -> TrustStore:
        trust = TrustStore(await self.store())
        await trust.refresh()
        return trust

    async def probe(self, url: str, *, configured: bool, tls: ClientTLS = ClientTLS()) -> HttpResponse:
        """Send a GET, and note the clock of the server. Any status is an answer.

        configured: whether the operator chose the URL, which may then be at a private address. Raises OutboundError.
        """
        began = self.clock()
        response = await self.outbound.request(
            "GET", url, block_private=not configured, timeout=PROBE_TIMEOUT, max_bytes=_MAX_PROBE_BYTES, truncate=True,
            tls=tls,
        )  # fmt: skip
        self.note_date(url, response, began)
        return response

    async def note_clock(self, url: str, tls: ClientTLS = ClientTLS()) -> None:
        """Note the clock of a server at a URL that the operator chose, if it answers."""
        with contextlib.suppress(OutboundError):
            await self.probe(url, configured=True, tls=tls)

    def note_date(self, url: str, response: HttpResponse, began: datetime) -> None:
        """Note the difference between the clocks. A date is cut to the second, and half of the call was the way to it.

        A cache adds the age of its copy to an old date. Source: RFC 9110 clause 6.6.1, RFC 9111 clause 5.1.
        """
        try:
            date = parsedate_to_datetime(response.headers.get("date", ""))
            age = timedelta(seconds=int(response.headers.get("age", "0")))
        except (ValueError, OverflowError):
            return
        if date.tzinfo is None or not timedelta(0) <= age <= _MAX_HTTP_AGE:
            return
        middle = began + (self.clock() - began) / 2
        self.clock_offsets[url.split("/")[2]] = middle - (date.astimezone(UTC) + age + timedelta(seconds=0.5))

    async def close(self) -> None:
        """Close what was opened here, within seconds."""
        if self._trust is not None:
            self._trust.cancel()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self.outbound.close()
                if self._opening is not None:
                    if not self._opening.done():
                        self._opening.cancel()
                    elif not self._opening.cancelled() and self._opening.exception() is None:
                        await self._opening.result().close()
        except TimeoutError:
            pass  # The process ends soon, and with it the connections.
