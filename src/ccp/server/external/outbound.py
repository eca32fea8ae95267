"""HTTP client for all outbound calls, with protection against server-side request forgery (SSRF).

URLs from certificates and partners are untrusted: only http and https, no redirects, a limit on body bytes, a deadline
for the whole exchange, and no connection to an address that is not public. The address is checked after resolution,
when the connection is made, because a name that was checked earlier may resolve differently by then (DNS rebinding).
A URL that the operator configured may be at a private address; all other limits apply to it too.

Responses reach the parser in portions and within limits (`ccp.server.external.response_limits`), and names are resolved
in separate threads (`ccp.server.external.resolver`). So neither a server nor a name server can block the event loop or
other calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import SplitResult

import httpcore
import structlog

from ccp.errors import Unavailable, strip_tracebacks
from ccp.server.external.client_tls import ClientTLS
from ccp.server.external.egress import EgressBackend, OutboundCall, RefusedAddressError, client_tls_context, track_call
from ccp.server.external.host_limits import KeyedSlots
from ccp.server.external.resolver import ResolutionError, Resolver
from ccp.server.external.response_limits import ResponseLimitError
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.server.runtime.loop_budget import LoopBudget
from ccp.x509.http_urls import split_http_url

if TYPE_CHECKING:
    from ccp.server.tracing.spans import Spans

_log = structlog.get_logger("ccp.server.external.outbound")

DEFAULT_TIMEOUT: Final = 5.0
DEFAULT_MAX_BYTES: Final = 1_048_576
_REQUEST_COST: Final = 300  # Estimated microseconds of event loop time to send a request.
_MAX_PER_OWNER: Final = 48
_MAX_TRUNCATED_PIECES: Final = 32  # Pieces to read of a body that may be truncated.


class OutboundError(Unavailable):
    """An exchange failed. The message names the host and as much of the reason as partners may know.

    The message is the same for a host that may not be called, one whose name does not resolve and one that does not
    answer: the difference would reveal which names exist in the operator's network. The log has the reason.
    host_failed: whether the host itself failed; False if it was never contacted.
    """

    outcome = "outbound"

    def __init__(self, *messages: str, retry_after: int | None = None, host_failed: bool = True) -> None:
        super().__init__(*messages, retry_after=retry_after)
        self.host_failed = host_failed


class CallObserver(Protocol):
    """Called with the service, the outcome and the seconds of a request.

    outcome: see `outcome_of`; `no_answer`; `not_called` if the server was not contacted; `abandoned` if the caller did
    not wait.
    """

    def __call__(self, service: str, outcome: str, seconds: float, /) -> None: ...


def outcome_of(status: int) -> str:
    """The outcome of a request that was answered, by the status of the response."""
    return "ok" if status < 400 else "client_error" if status < 500 else "server_error"


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response, whatever its status. headers: names in lower case; of repeated ones the last."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        """The Content-Type without parameters, in lower case; empty if there is none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class OutboundClient:
    """HTTP client with separate connection pools: for untrusted URLs, for configured ones, and for each `ClientTLS`.

    Close it when done. Belongs to one event loop.
    """

    def __init__(
        self,
        allow: Iterable[str] = (),
        *,
        max_per_owner: int | None = _MAX_PER_OWNER,
        budget: LoopBudget | None = None,
        observe: CallObserver = lambda service, outcome, seconds: None,
        spans: Spans | None = None,
    ) -> None:
        """allow: networks (CIDR) of private addresses that may be called even with `block_private`.

        max_per_owner: concurrent exchanges of one owner, so that hosts that hang delay their owner's other calls only;
        None if callers limit themselves. budget: shared with other clients of the event loop. observe: called at the
        end of each request that names its service. spans: traces requests; None for none.
        """
        allowed = tuple(ipaddress.ip_network(network) for network in allow)
        self._observe = observe
        self._spans = spans
        self._budget = budget or LoopBudget()
        self._slots = None if max_per_owner is None else KeyedSlots(max_per_owner)
        # Separate resolvers: names from certificates must not delay the resolution of the operator's own services.
        self._public_backend = EgressBackend(Resolver(), self._budget, allowed)
        self.configured_backend: Final = EgressBackend(Resolver(), self._budget, None)
        self._limits: Final[dict[str, Any]] = {
            "max_connections": None,
            "max_keepalive_connections": 100,
            "keepalive_expiry": 15.0,
            "retries": 0,
        }
        self._public_pool = _LazyPool(client_tls_context, network_backend=self._public_backend, **self._limits)
        self._configured_pools: dict[ClientTLS, _LazyPool] = {}

    async def close(self) -> None:
        """Close all connections."""
        await self._public_pool.close()
        for pool in self._configured_pools.values():
            await pool.close()

    async def check_reachable(self, url: str, *, owner: str = "") -> None:
        """Check that a call with `block_private` may reach the URL: the host exists and its addresses may be called.

        A name that cannot be resolved at the moment passes. Raises OutboundError, with the same message for both cases.
        """
        host = host_of(url)
        try:
            with track_call(OutboundCall(owner)):
                await self._public_backend.check(host)
        except (ResolutionError, RefusedAddressError) as exc:
            if isinstance(exc, ResolutionError) and not exc.missing:
                return
            _log.info("outbound address refused", host=host, owner=owner, reason=str(exc))
            raise OutboundError(f"{host} cannot be reached.", host_failed=False) from exc

    async def request(
        self,
        method: str,
        url: str,
        *,
        block_private: bool,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109  covers the wait for a slot and for a connection too
        max_bytes: int = DEFAULT_MAX_BYTES,
        truncate: bool = False,
        owner: str = "",
        party: str = "",
        tls: ClientTLS = ClientTLS(),
        service: str = "",
    ) -> HttpResponse:
        """Send a request and return the response, whatever its status. Redirects are not followed.

        block_private: True for every URL that the operator did not configure. timeout: seconds for the whole exchange.
        max_bytes: limit of the response body. truncate: return a longer body truncated instead of raising, for callers
        that need the status only. owner: the party or issuer that the URL belongs to; resolver limits and the limit of
        concurrent exchanges count per owner. party: the party that causes the request, if that is not the owner.
        tls: CAs and client certificate for a URL that the operator configured; an untrusted URL gets no certificate.
        service: kind of the server, for metrics; one of a few constants.
        Raises OutboundError.
        """
        began, outcome = time.monotonic(), "abandoned"
        try:
            call = OutboundCall(owner, party)
            options = block_private, content, timeout, max_bytes, truncate, call, tls
            if self._spans is None:
                response = await self._exchange(method, url, headers, *options)
            else:
                response = await self._traced(self._spans, service, method, url, headers, options)
            outcome = outcome_of(response.status)
        except OutboundError as exc:
            outcome = "no_answer" if exc.host_failed else "not_called"
            raise
        finally:
            if service:
                self._observe(service, outcome, time.monotonic() - began)
        return response

    async def _traced(
        self, spans: Spans, service: str, method: str, url: str, headers: Mapping[str, str] | None, options: Any
    ) -> HttpResponse:
        """An exchange with a span, whose trace the request carries. The span names the host only where it is no secret
        of a partner: not for a webhook.
        """
        attributes = {"http.request.method": method, "ccp.service": service or "other"}
        if service != "webhook":
            attributes["server.address"] = host_of(url)
        with spans.outbound(f"{method} {service}".rstrip(), attributes) as span:
            try:
                response = await self._exchange(method, url, {**(headers or {}), **spans.headers()}, *options)
            except OutboundError as exc:
                spans.set_status(span, 0, "no_answer" if exc.host_failed else "not_called")
                raise
            status = response.status
            spans.set_status(span, status, str(status) if status >= 400 else None)
        return response

    async def _exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        block_private: bool,
        content: bytes,
        timeout: float,  # noqa: ASYNC109
        max_bytes: int,
        truncate: bool,
        call: OutboundCall,
        tls: ClientTLS,
    ) -> HttpResponse:
        """See `request`."""
        owner = call.owner
        parts = _split(url)
        host = str(parts.hostname)
        lazy = self._public_pool if block_private else self._configured_pool(tls)
        sent = {"Host": parts.netloc, "User-Agent": "opnc-ccp", "Accept-Encoding": "identity", **(headers or {})}
        if content or method in ("POST", "PUT"):
            sent["Content-Length"] = str(len(content))
        try:
            slot = self._slots.hold(owner) if owner and self._slots else contextlib.nullcontext()
            with track_call(call):
                async with asyncio.timeout(timeout), slot:
                    pool = await lazy.pool()
                    await self._budget.spend(_REQUEST_COST)
                    call.contacted = True
                    async with pool.stream(method, url, headers=list(sent.items()), content=content) as response:
                        body = await _read_body(response, host, max_bytes, truncate)
        except TimeoutError as exc:
            if not call.contacted:
                _log.info(
                    "outbound request failed", host=host, owner=owner, reason="The host was not contacted in time."
                )
                raise OutboundError(f"{host} cannot be reached.", host_failed=False) from strip_tracebacks(exc)
            raise OutboundError(f"{host} did not answer within {timeout:g} s.") from strip_tracebacks(exc)
        except ResponseLimitError as exc:
            raise OutboundError(f"{host} {exc}.") from strip_tracebacks(exc)
        except RefusedAddressError as exc:
            _log.warning("outbound address refused", host=host, owner=owner, reason=str(exc))
            raise OutboundError(f"{host} cannot be reached.", host_failed=False) from strip_tracebacks(exc)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, ssl.SSLError, OSError) as exc:
            _log.info("outbound request failed", host=host, owner=owner, reason=str(exc) or type(exc).__name__)
            raise OutboundError(f"{host} cannot be reached.", host_failed=call.contacted) from strip_tracebacks(exc)
        except (UnicodeError, httpcore.UnsupportedProtocol) as exc:  # for example a label that is too long for IDNA
            raise OutboundError(f"{host} is not a valid host name.", host_failed=False) from strip_tracebacks(exc)
        received = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        return HttpResponse(response.status, received, body)

    def _configured_pool(self, tls: ClientTLS) -> _LazyPool:
        pool = self._configured_pools.get(tls)
        if pool is None:
            pool = _LazyPool(tls.context, network_backend=self.configured_backend, **self._limits)
            self._configured_pools[tls] = pool
        return pool


class _LazyPool:
    """A connection pool that is created for the first request, with its TLS context loaded in a thread.

    Loading the CAs of the system takes 30 ms of processor time. Neither start-up nor the event loop waits for it.
    """

    def __init__(self, tls: Callable[[], ssl.SSLContext], **options: Any) -> None:
        self._tls = tls
        self._options = options
        self._pool: httpcore.AsyncConnectionPool | None = None
        self._creating = asyncio.Lock()
        self._loading = BlockingCalls("loading of certificates", max_threads=1, timeout=5.0)

    async def pool(self) -> httpcore.AsyncConnectionPool:
        if self._pool is None:
            async with self._creating:
                if self._pool is None:
                    try:
                        context = await self._loading.run(self._tls)
                    except Unavailable as exc:
                        raise OutboundError(str(exc), host_failed=False) from exc
                    self._pool = httpcore.AsyncConnectionPool(ssl_context=context, **self._options)
        return self._pool

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()


async def _read_body(response: httpcore.Response, host: str, max_bytes: int, truncate: bool) -> bytes:
    """Raises OutboundError for a body that is too long, unless it may be truncated."""
    body, pieces = bytearray(), 0
    async for piece in response.aiter_stream():
        pieces += 1
        if truncate and (pieces > _MAX_TRUNCATED_PIECES or len(body) + len(piece) > max_bytes):
            break
        if len(body) + len(piece) > max_bytes:
            raise OutboundError(f"{host} sent more than {max_bytes} bytes.")
        body += piece
    return bytes(body)


def host_of(url: str) -> str:
    """Return the host of a URL. Raises OutboundError for a URL that can never be called."""
    return str(_split(url).hostname)


def _split(url: str) -> SplitResult:
    try:
        return split_http_url(url)
    except ValueError as exc:
        raise OutboundError(str(exc), host_failed=False) from exc
