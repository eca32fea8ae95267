"""Network backend for httpcore: own name resolution, address filter, and paced reads.

    backend = EgressBackend(Resolver(), LoopBudget(), allowed=())       # URLs from certificates and partners
    httpcore.AsyncConnectionPool(network_backend=backend)

With `allowed=None` every address is permitted: for URLs that the operator configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import anyio
import anyio.abc
import httpcore
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSAttribute, TLSStream

from ccp.server.external.public_addresses import Network, may_connect
from ccp.server.external.resolver import ResolutionError, Resolver
from ccp.server.external.response_limits import ResponseFraming, ResponseLimitError, portion_cost
from ccp.server.runtime.loop_budget import LoopBudget

# Estimated cost in microseconds of event loop time.
_CONNECT_COST: Final = 400
_WRITE_COST: Final = 150
_HANDSHAKE_COST: Final = 1_000
_TLS_READ_COST: Final = 300
_READ_COST: Final = 40  # One wake-up, or one TLS record.
_TLS_READ_BYTES: Final = 16_384
_MAX_UNSENT: Final = 65_536
_MAX_ATTEMPTS: Final = 4  # Addresses of a name to try, one after another.


class RefusedAddressError(Exception):
    """The host has an address that may not be called. For the log only; partners get "cannot be reached"."""


@dataclass(slots=True)
class OutboundCall:
    """State of one outbound request, shared between the caller and the connections that it uses.

    owner: key for the limits of name resolution, see `Resolver.resolve`. party: the party that causes the request.
    contacted: False while the request waits for local resources or for the resolver; a timeout then is not the host's
    fault. loop_wait: seconds that the request waited for its share of the event loop, also not the host's fault.
    """

    owner: str = ""
    party: str = ""
    contacted: bool = False
    loop_wait: float = 0.0


_current_call: ContextVar[OutboundCall | None] = ContextVar("outbound_call", default=None)


@contextlib.contextmanager
def track_call(call: OutboundCall) -> Iterator[None]:
    """Attribute the connections and waits within the block to a call."""
    token = _current_call.set(call)
    try:
        yield
    finally:
        _current_call.reset(token)


def client_tls_context() -> ssl.SSLContext:
    """TLS client context for untrusted servers: the CAs of the system, key exchange over P-256 only.

    OpenSSL's defaults offer finite-field groups up to 8,192 bits, and a server that insists on one costs the client
    114 ms of computation per handshake. Over P-256, which every TLS 1.3 server must support, it is 0.7 ms.
    Source: RFC 8446 clause 9.1.
    """
    context = ssl.create_default_context()
    context.set_ciphers("@SECLEVEL=2:ECDH+AESGCM:ECDH+CHACHA20:ECDH+AES:!aNULL:!eNULL:!aDSS:!SHA1:!AESCCM")
    context.set_ecdh_curve("prime256v1")
    return context


class EgressBackend(httpcore.AsyncNetworkBackend):
    """Opens connections to addresses that may be called."""

    def __init__(self, resolver: Resolver, budget: LoopBudget, allowed: tuple[Network, ...] | None) -> None:
        """allowed: networks that may be called besides public addresses; None: every address may be called."""
        self._resolver = resolver
        self._budget = budget
        self._allowed = allowed

    async def check(self, host: str) -> list[str]:
        """Resolve a host and check its addresses without connecting. Returns those that a connection would try.

        Raises ResolutionError, RefusedAddressError.
        """
        return await self._addresses_of(host)

    async def _addresses_of(self, host: str) -> list[str]:
        call = _current_call.get() or OutboundCall()
        call.contacted = False
        addresses = await self._resolver.resolve(host, call.owner or host, call.party)
        call.contacted = True
        # One forbidden address refuses the name: a mix of both kinds is a sign of DNS rebinding.
        if self._allowed is not None and not all(may_connect(address, self._allowed) for address in addresses):
            raise RefusedAddressError(
                f"{host} is not at a public address, which egress_allow_networks does not permit."
            )
        return [str(address) for address in addresses[:_MAX_ATTEMPTS]]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that accepts. Raises RefusedAddressError besides httpcore's errors."""
        await _spend(self._budget, _CONNECT_COST)
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._addresses_of(host)
        except TimeoutError as exc:
            raise httpcore.ConnectTimeout(str(exc)) from exc
        except ResolutionError as exc:
            raise httpcore.ConnectError(str(exc)) from exc
        for address in addresses[:-1]:
            with contextlib.suppress(httpcore.ConnectError):
                return await self._connect(address, port, timeout, local_address, socket_options)
        return await self._connect(addresses[-1], port, timeout, local_address, socket_options)

    async def _connect(
        self,
        address: str,
        port: int,
        timeout: float | None,  # noqa: ASYNC109
        local_address: str | None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None,
    ) -> httpcore.AsyncNetworkStream:
        with _translate_errors(httpcore.ConnectTimeout, httpcore.ConnectError):
            async with asyncio.timeout(timeout):
                transport = await anyio.connect_tcp(address, port, local_host=local_address)
        for option in socket_options or ():
            transport.extra(SocketAttribute.raw_socket).setsockopt(*option)  # noqa: S610  anyio's, not Django's
        return EgressStream(transport, self._budget)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises RefusedAddressError."""
        raise RefusedAddressError("Unix domain sockets are not called.")

    async def sleep(self, seconds: float) -> None:
        """As httpcore asks for. seconds: httpcore's parameter name."""
        await asyncio.sleep(seconds)


class EgressStream(httpcore.AsyncNetworkStream):
    """A connection that hands its response to the parser in portions, within size limits and the event loop budget."""

    def __init__(self, transport: anyio.abc.ByteStream, budget: LoopBudget) -> None:
        self._transport = transport
        self._budget = budget
        self._framing = ResponseFraming()
        self._received = bytearray()
        self._unsent = bytearray()
        self._ended = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Read the next portion; empty at the end of the stream. Raises ResponseLimitError and httpcore's errors."""
        if self._unsent:
            with contextlib.suppress(httpcore.WriteError):  # The server may answer before it has read everything.
                await self._flush(timeout)
        while True:
            if self._received:
                length, cost = self._framing.next_portion(self._received)
                if length or self._ended:
                    # At the end of the stream the parser gets the incomplete rest and reports it.
                    length = length or len(self._received)
                    await _spend(self._budget, cost)
                    portion = bytes(memoryview(self._received)[:length])
                    del self._received[:length]
                    return portion
            if self._ended:
                return b""
            try:
                with _translate_errors(httpcore.ReadTimeout, httpcore.ReadError):
                    async with asyncio.timeout(timeout):
                        data = await self._transport.receive(max_bytes)
            except anyio.EndOfStream:
                self._ended = True
                continue
            await _spend(self._budget, _READ_COST)
            self._framing.count_read(len(data))
            if not self._received and self._framing.is_plain:
                await _spend(self._budget, portion_cost(len(data)))
                return data
            self._received += data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Buffer the bytes; they are sent when the response is read, so that head and body leave in one write."""
        if not buffer:
            return
        if self._received:
            # Received before this request was sent: the parser would take it for the response to this one.
            raise ResponseLimitError("sent more than one response")
        self._framing.begin()
        self._unsent += buffer
        if len(self._unsent) > _MAX_UNSENT:
            await self._flush(timeout)

    async def _flush(self, timeout: float | None) -> None:  # noqa: ASYNC109
        unsent, self._unsent = bytes(self._unsent), bytearray()
        await _spend(self._budget, _WRITE_COST)
        with _translate_errors(httpcore.WriteTimeout, httpcore.WriteError):
            async with asyncio.timeout(timeout):
                await self._transport.send(unsent)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._transport.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        """Perform the TLS handshake; its reads are paced too. Raises httpcore.ConnectError, ConnectTimeout."""
        await _spend(self._budget, _HANDSHAKE_COST)
        try:
            with _translate_errors(httpcore.ConnectTimeout, httpcore.ConnectError):
                async with asyncio.timeout(timeout):
                    secured = await TLSStream.wrap(
                        _PacedTransport(self._transport, self._budget),
                        ssl_context=ssl_context,
                        hostname=server_hostname,
                        standard_compatible=False,
                        server_side=False,
                    )
        except anyio.EndOfStream as exc:
            raise httpcore.ConnectError(str(exc)) from exc
        except BaseException:
            await self.aclose()
            raise
        return EgressStream(secured, self._budget)

    def get_extra_info(self, info: str) -> Any:
        """ "ssl_object" and "is_readable", which httpcore's connection pool asks for; None for anything else."""
        match info:
            case "ssl_object":
                return self._transport.extra(TLSAttribute.ssl_object, None)  # noqa: S610
            case "is_readable":
                return bool(self._received) or _is_readable(self._transport.extra(SocketAttribute.raw_socket, None))  # noqa: S610
        return None


async def _spend(budget: LoopBudget, cost: int) -> None:
    """Wait for a share of the event loop and add the wait to the current call."""
    waited = await budget.spend(cost)
    if waited and (call := _current_call.get()) is not None:
        call.loop_wait += waited


class _PacedTransport(anyio.abc.ByteStream):
    """Transport below TLS with small, budgeted reads: records and handshake messages cost event loop time too."""

    def __init__(self, inner: anyio.abc.ByteStream, budget: LoopBudget) -> None:
        self._inner = inner
        self._budget = budget

    async def receive(self, max_bytes: int = _TLS_READ_BYTES) -> bytes:
        data = await self._inner.receive(min(max_bytes, _TLS_READ_BYTES))
        await _spend(self._budget, _TLS_READ_COST + len(data) // 16)
        return data

    async def send(self, item: bytes) -> None:
        await self._inner.send(item)

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def aclose(self) -> None:
        await self._inner.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._inner.extra_attributes


@contextlib.contextmanager
def _translate_errors(timeout_error: type[Exception], io_error: type[Exception]) -> Iterator[None]:
    """Raise anyio's and the system's errors as httpcore's. The end of a stream (anyio.EndOfStream) passes unchanged."""
    try:
        yield
    except TimeoutError as exc:
        raise timeout_error(str(exc)) from exc
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError, OSError) as exc:
        raise io_error(str(exc)) from exc


def _is_readable(connection: socket.socket | None) -> bool:
    """Whether an idle connection has something to read: its end, or an unsolicited response."""
    if connection is None or connection.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
