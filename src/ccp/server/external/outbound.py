"""The one HTTP client, for addresses that we do not control.

An address out of a certificate, or one that a partner gave, is hostile until proven otherwise: only http and https, no
redirects, a byte cap, a deadline for the whole exchange, and no connection to an address that is not public, judged on
the resolved address at the moment of connecting (a name that was checked before may point elsewhere by then).
An address that the operator configured may be private; everything else holds for it too.

What a server sends reaches the parser in portions and within limits (`ccp.server.external.response_limits`), and names
are resolved in threads of their own (`ccp.server.external.resolver`): no server, and no name server, holds up the
event loop or other calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult

import httpcore
import structlog

from ccp.errors import Unavailable, without_frames
from ccp.server.external.egress import EgressBackend, Errand, RefusedAddressError, running, tls_context
from ccp.server.external.host_limits import KeyedSlots
from ccp.server.external.resolver import ResolutionError, Resolver
from ccp.server.external.response_limits import ResponseLimitError
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.server.runtime.loop_budget import LoopBudget
from ccp.x509.http_urls import split_http_url

_log = structlog.get_logger("ccp.server.external.outbound")

SECONDS: Final = 5.0
OCTETS: Final = 1_048_576
_REQUEST_COST: Final = 300  # Estimated microseconds of the event loop for sending a request.
_MAX_PER_OWNER: Final = 48
_CUT_PIECES: Final = 32  # Of a body that is of no interest.


class OutboundError(Unavailable):
    """An exchange failed. The message names the host, and as much of the reason as a partner may know.

    It is the same for a host that may not be called, one whose name does not resolve and one that does not answer: the
    difference would reveal which names exist in the operator's network. The log has the reason.
    blame: whether the host itself failed; False where it was never asked.
    """

    code = "outbound"

    def __init__(self, *messages: str, retry_after: int | None = None, blame: bool = True) -> None:
        super().__init__(*messages, retry_after=retry_after)
        self.blame = blame


@dataclass(frozen=True, slots=True)
class Answer:
    """headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Outbound:
    """A connection pool. Close it when done. It belongs to one event loop."""

    def __init__(
        self,
        allow: Iterable[str] = (),
        *,
        max_per_owner: int | None = _MAX_PER_OWNER,
        budget: LoopBudget | None = None,
    ) -> None:
        """allow: networks (CIDR) that are not public but may be reached all the same, by guarded calls too.

        max_per_owner: exchanges of one owner at a time, so that hosts that hang keep their owner's other calls waiting
        and no one else's; None where callers limit themselves. budget: shared with other clients of the event loop.
        """
        allowed = tuple(ipaddress.ip_network(network) for network in allow)
        self._budget = budget or LoopBudget()
        self._slots = None if max_per_owner is None else KeyedSlots(max_per_owner)
        # Names out of certificates must not keep the operator's own neighbours from being resolved.
        self._guard = EgressBackend(Resolver(), self._budget, allowed)
        self.configured_backend: Final = EgressBackend(Resolver(), self._budget, None)
        limits: dict[str, Any] = {
            "max_connections": None,
            "max_keepalive_connections": 100,
            "keepalive_expiry": 15.0,
            "retries": 0,
        }
        self._guarded = _LazyPool(tls_context, network_backend=self._guard, **limits)
        self._configured = _LazyPool(ssl.create_default_context, network_backend=self.configured_backend, **limits)

    async def close(self) -> None:
        await self._guarded.close()
        await self._configured.close()

    async def check_reachable(self, url: str, *, owner: str = "") -> None:
        """Refuse a URL that a guarded call cannot reach: its host does not exist, or is at an address that may not be
        called. The same sentence for both. A name that cannot be resolved at the moment passes.

        Raises OutboundError.
        """
        host = host_of(url)
        try:
            with running(Errand(owner)):
                await self._guard.check(host)
        except (ResolutionError, RefusedAddressError) as exc:
            if isinstance(exc, ResolutionError) and not exc.missing:
                return
            _log.info("outbound address refused", host=host, owner=owner, reason=str(exc))
            raise OutboundError(f"{host} cannot be reached.", blame=False) from exc

    async def request(
        self,
        method: str,
        url: str,
        *,
        guarded: bool,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        seconds: float = SECONDS,
        octets: int = OCTETS,
        cut: bool = False,
        owner: str = "",
        party: str = "",
    ) -> Answer:
        """One exchange, whatever status it ends with; a redirect is an answer like any other.

        guarded: True for every address that the operator did not configure. seconds: for the whole exchange.
        octets: most that is read of a body. cut: a longer body is left where it is, for callers who want the status.
        owner: whose address it is, a party or an issuer; its names share no limit of the resolver with others.
        party: who makes the pool ask, where that is another one.
        Raises OutboundError.
        """
        parts = _split(url)
        host = str(parts.hostname)
        errand = Errand(owner, party)
        lazy = self._guarded if guarded else self._configured
        sent = {"Host": parts.netloc, "User-Agent": "opnc-ccp", "Accept-Encoding": "identity", **(headers or {})}
        if content or method in ("POST", "PUT"):
            sent["Content-Length"] = str(len(content))
        try:
            slot = self._slots.hold(owner) if owner and self._slots else contextlib.nullcontext()
            with running(errand):
                async with asyncio.timeout(seconds), slot:
                    pool = await lazy.pool()
                    await self._budget.spend(_REQUEST_COST)
                    errand.asked = True
                    async with pool.stream(method, url, headers=list(sent.items()), content=content) as response:
                        body = await _read_body(response, host, octets, cut)
        except TimeoutError as exc:
            if not errand.asked:
                _log.info("outbound request failed", host=host, owner=owner, reason="The host was not asked in time.")
                raise OutboundError(f"{host} cannot be reached.", blame=False) from without_frames(exc)
            raise OutboundError(f"{host} did not answer within {seconds:g} s.") from without_frames(exc)
        except ResponseLimitError as exc:
            raise OutboundError(f"{host} {exc}.") from without_frames(exc)
        except RefusedAddressError as exc:
            _log.warning("outbound address refused", host=host, owner=owner, reason=str(exc))
            raise OutboundError(f"{host} cannot be reached.", blame=False) from without_frames(exc)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, ssl.SSLError, OSError) as exc:
            _log.info("outbound request failed", host=host, owner=owner, reason=str(exc) or type(exc).__name__)
            raise OutboundError(f"{host} cannot be reached.", blame=errand.asked) from without_frames(exc)
        except (UnicodeError, httpcore.UnsupportedProtocol) as exc:  # a label that is too long for IDNA, for one
            raise OutboundError(f"{host} is not a valid host name.", blame=False) from without_frames(exc)
        received = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        return Answer(response.status, received, body)


class _LazyPool:
    """A connection pool that is made for its first request, and its TLS context in a thread.

    To load the CAs of the system takes 30 ms of the processor, which a start need not wait for, nor an event loop.
    """

    def __init__(self, tls: Callable[[], ssl.SSLContext], **options: Any) -> None:
        self._tls = tls
        self._options = options
        self._pool: httpcore.AsyncConnectionPool | None = None
        self._making = asyncio.Lock()
        self._loading = BlockingCalls("loading of certificates", max_threads=1, timeout=5.0)

    async def pool(self) -> httpcore.AsyncConnectionPool:
        if self._pool is None:
            async with self._making:
                if self._pool is None:
                    try:
                        context = await self._loading.run(self._tls)
                    except Unavailable as exc:
                        raise OutboundError(str(exc), blame=False) from exc
                    self._pool = httpcore.AsyncConnectionPool(ssl_context=context, **self._options)
        return self._pool

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()


async def _read_body(response: httpcore.Response, host: str, max_bytes: int, cut: bool) -> bytes:
    """Raises OutboundError for a body that is too long, unless it may be cut."""
    body, pieces = bytearray(), 0
    async for piece in response.aiter_stream():
        pieces += 1
        if cut and (pieces > _CUT_PIECES or len(body) + len(piece) > max_bytes):
            break
        if len(body) + len(piece) > max_bytes:
            raise OutboundError(f"{host} sent more than {max_bytes} octets.")
        body += piece
    return bytes(body)


def host_of(url: str) -> str:
    """The host of an address that may be called at all. Raises OutboundError."""
    return str(_split(url).hostname)


def _split(url: str) -> SplitResult:
    try:
        return split_http_url(url)
    except ValueError as exc:
        raise OutboundError(str(exc), blame=False) from exc
