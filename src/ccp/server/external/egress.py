"""Connections to remote servers: resolved by our resolver, checked by address, and read in portions.

    backend = EgressBackend(Resolver(), LoopBudget(), allowed=())       # addresses from certificates and partners
    httpcore.AsyncConnectionPool(network_backend=backend)

`allowed` None permits every address: for URLs that the operator configured. Everything else applies to both.
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

# Estimated microseconds.
_CONNECT_COST: Final = 400
_WRITE_COST: Final = 150
_HANDSHAKE_COST: Final = 1_000
_TLS_READ_COST: Final = 300
_READ_COST: Final = 40  # One wake-up, or one TLS record.
_TLS_READ_BYTES: Final = 16_384
_MAX_UNSENT: Final = 65_536
_MAX_ATTEMPTS: Final = 4  # Addresses of a name that are tried, one after another.


class RefusedAddressError(Exception):
    """A host is at an address that may not be called. For the log; partners read that it cannot be reached."""


@dataclass(slots=True)
class Errand:
    """What one request is about: whose lookups it makes, for which party, and whether the host is asked by now.

    asked: False while the request waits for something of ours, or for the resolver; a timeout then is no fault of the
    host. waited: seconds that the request has waited for its share of the event loop, which is none of it either.
    """

    owner: str = ""
    party: str = ""
    asked: bool = False
    waited: float = 0.0


_errand: ContextVar[Errand | None] = ContextVar("errand", default=None)


@contextlib.contextmanager
def running(errand: Errand) -> Iterator[None]:
    """Connections that are made within belong to this errand."""
    token = _errand.set(errand)
    try:
        yield
    finally:
        _errand.reset(token)


def tls_context() -> ssl.SSLContext:
    """For servers of others: the system's CAs, and key exchange over P-256 alone.

    OpenSSL's defaults offer finite-field groups up to 8,192 bits, and a server that insists on one costs this side
    114 ms of computing for each handshake; over P-256, which every server of TLS 1.3 has to know, it is 0.7 ms.
    Source: RFC 8446 clause 9.1.
    """
    context = ssl.create_default_context()
    context.set_ciphers("@SECLEVEL=2:ECDH+AESGCM:ECDH+CHACHA20:ECDH+AES:!aNULL:!eNULL:!aDSS:!SHA1:!AESCCM")
    context.set_ecdh_curve("prime256v1")
    return context


class EgressBackend(httpcore.AsyncNetworkBackend):
    def __init__(self, resolver: Resolver, budget: LoopBudget, allowed: tuple[Network, ...] | None) -> None:
        """allowed: networks that may be called besides public addresses; None: all may be called."""
        self._resolver = resolver
        self._budget = budget
        self._allowed = allowed

    async def check(self, host: str) -> None:
        """Resolve a host and judge its addresses, as connecting would. Raises ResolutionError, RefusedAddressError."""
        await self._addresses_of(host)

    async def _addresses_of(self, host: str) -> list[str]:
        errand = _errand.get() or Errand()
        errand.asked = False
        addresses = await self._resolver.resolve(host, errand.owner or host, errand.party)
        errand.asked = True
        # One forbidden address refuses the name: mixing both kinds is a sign of DNS rebinding.
        if self._allowed is not None and not all(may_connect(each, self._allowed) for each in addresses):
            raise RefusedAddressError(
                f"{host} is not at a public address, which egress_allow_networks does not permit."
            )
        return [str(each) for each in addresses[:_MAX_ATTEMPTS]]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  the interface's own
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
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
        seconds: float | None,
        local_address: str | None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None,
    ) -> httpcore.AsyncNetworkStream:
        with _translated(httpcore.ConnectTimeout, httpcore.ConnectError):
            async with asyncio.timeout(seconds):
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
        raise RefusedAddressError("Sockets of this machine are not called.")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class EgressStream(httpcore.AsyncNetworkStream):
    """A connection whose responses reach the parser in portions, within limits and within the loop's budget."""

    def __init__(self, transport: anyio.abc.ByteStream, budget: LoopBudget) -> None:
        self._transport = transport
        self._budget = budget
        self._framing = ResponseFraming()
        self._received = bytearray()
        self._unsent = bytearray()
        self._ended = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """The next portion; empty at the end. Raises ResponseLimitError besides what httpcore's streams raise."""
        if self._unsent:
            with contextlib.suppress(httpcore.WriteError):  # A server may close early, and have answered before.
                await self._flush(timeout)
        while True:
            if self._received:
                length, cost = self._framing.next_portion(self._received)
                if length or self._ended:
                    # At the end of the stream the parser gets what is incomplete, and says so.
                    length = length or len(self._received)
                    await _spend(self._budget, cost)
                    portion = bytes(memoryview(self._received)[:length])
                    del self._received[:length]
                    return portion
            if self._ended:
                return b""
            try:
                with _translated(httpcore.ReadTimeout, httpcore.ReadError):
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
        """Head and body of a request come one after the other; they are sent together, when the answer is read."""
        if not buffer:
            return
        if self._received:
            # No request is under way: it would be taken for the answer to this one.
            raise ResponseLimitError("has sent more than its answer")
        self._framing.begin()
        self._unsent += buffer
        if len(self._unsent) > _MAX_UNSENT:
            await self._flush(timeout)

    async def _flush(self, seconds: float | None) -> None:
        unsent, self._unsent = bytes(self._unsent), bytearray()
        await _spend(self._budget, _WRITE_COST)
        with _translated(httpcore.WriteTimeout, httpcore.WriteError):
            async with asyncio.timeout(seconds):
                await self._transport.send(unsent)

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        await _spend(self._budget, _HANDSHAKE_COST)
        try:
            with _translated(httpcore.ConnectTimeout, httpcore.ConnectError):
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
        match info:
            case "ssl_object":
                return self._transport.extra(TLSAttribute.ssl_object, None)  # noqa: S610
            case "is_readable":
                return bool(self._received) or _is_readable(self._transport.extra(SocketAttribute.raw_socket, None))  # noqa: S610
        return None


async def _spend(budget: LoopBudget, cost: int) -> None:
    """Wait for a share of the event loop, and note in the errand how long that took."""
    waited = await budget.spend(cost)
    if waited and (errand := _errand.get()) is not None:
        errand.waited += waited


class _PacedTransport(anyio.abc.ByteStream):
    """What TLS reads from: little at a time, and paid for, since records and handshake messages are work too."""

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
def _translated(late: type[Exception], failed: type[Exception]) -> Iterator[None]:
    """What a stream raises, as an exception of httpcore's; the end of a stream stays what it is."""
    try:
        yield
    except TimeoutError as exc:
        raise late(str(exc)) from exc
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError, OSError) as exc:
        raise failed(str(exc)) from exc


def _is_readable(connection: socket.socket | None) -> bool:
    """Whether an idle connection has something to read: its end, or what was not asked for."""
    if connection is None or connection.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
