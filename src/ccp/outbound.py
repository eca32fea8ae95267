"""The one HTTP client, for addresses that we do not control.

An address out of a certificate, or one that a partner gave, is hostile until proven otherwise: only http and https, no
redirects, a byte cap, a deadline for the whole exchange, and no connection to an address that is not public, judged on
the resolved address at the moment of connecting (a name that was checked before may point elsewhere by then).
An address that the operator configured may be private; everything else holds for it too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import httpcore

from ccp.errors import Unavailable

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

SECONDS: Final = 5.0
OCTETS: Final = 1_048_576
_STREAM: Final = socket.SOCK_STREAM
_ADDRESS: Final = re.compile(r"[!-~]{1,2048}")
# The well-known prefix of translators to IPv4 (RFC 6052 clause 2.1): the last four octets are the address it means.
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


class OutboundError(Unavailable):
    """An exchange that did not come about. The message names the host, and what was wrong."""

    code = "outbound"


@dataclass(frozen=True, slots=True)
class Answer:
    """headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Outbound:
    """A connection pool. Close it when done."""

    def __init__(self, allow: Iterable[str] = (), *, connections: int | None = 100, lookups: int | None = None) -> None:
        """allow: networks (CIDR) that are not public but may be reached all the same, by guarded calls too.

        connections: the most that are open; None where callers limit themselves. lookups: names that guarded calls look
        up at a time, in threads of their own; None: in those that the whole process shares.
        """
        allowed = tuple(ipaddress.ip_network(network) for network in allow)
        context = ssl.create_default_context()
        limits: dict[str, Any] = {
            "ssl_context": context,
            "max_connections": connections,
            "max_keepalive_connections": 100,
            "keepalive_expiry": 15.0,
            "retries": 0,
        }
        self._threads = None if lookups is None else ThreadPoolExecutor(lookups, thread_name_prefix="lookup")
        self._guarded = httpcore.AsyncConnectionPool(network_backend=_Guard(allowed, self._threads), **limits)
        self._configured = httpcore.AsyncConnectionPool(**limits)

    async def close(self) -> None:
        await self._guarded.aclose()
        await self._configured.aclose()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

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
    ) -> Answer:
        """One exchange, whatever status it ends with; a redirect is an answer like any other.

        guarded: True for every address that the operator did not configure. seconds: for the whole exchange.
        octets: most that is read of a body. cut: a longer body is left where it is, for callers who want the status.
        Raises OutboundError.
        """
        host = host_of(url)
        pool = self._guarded if guarded else self._configured
        sent = {"Host": _authority_of(url), "User-Agent": "opnc-ccp", "Accept-Encoding": "identity", **(headers or {})}
        if content or method in ("POST", "PUT"):
            sent["Content-Length"] = str(len(content))
        try:
            async with (
                asyncio.timeout(seconds),
                pool.stream(method, url, headers=list(sent.items()), content=content) as response,
            ):
                body = bytearray()
                async for chunk in response.aiter_stream():
                    if len(body) + len(chunk) > octets:
                        if cut:
                            break
                        raise OutboundError(f"{host} sent more than {octets} octets.")
                    body += chunk
                received = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
                return Answer(response.status, received, bytes(body))
        except TimeoutError as exc:
            raise OutboundError(f"{host} did not answer within {seconds:g} s.") from exc
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, ssl.SSLError, OSError) as exc:
            raise OutboundError(f"{host} cannot be reached.") from exc
        except (UnicodeError, httpcore.UnsupportedProtocol) as exc:  # a label that is too long for IDNA, for one
            raise OutboundError(f"{host} is no name of a host.") from exc


def _split(url: str) -> Any:
    # Parsers differ on everything else (blanks, line ends, other alphabets); an address in a certificate is IA5String.
    if not _ADDRESS.fullmatch(url):
        raise OutboundError("That is no address.")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as exc:
        raise OutboundError("That is no address.") from exc
    return parts


def host_of(url: str) -> str:
    """The host of an address that may be called at all. Raises OutboundError."""
    parts = _split(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OutboundError("Only http and https addresses are called.")
    if parts.username is not None or parts.password is not None:
        raise OutboundError("Addresses with credentials in them are not called.")
    host: str = parts.hostname
    return host


def _authority_of(url: str) -> str:
    netloc: str = _split(url).netloc
    return netloc


class _Guard(httpcore.AsyncNetworkBackend):
    """Resolves names itself and connects only to addresses that are public or allowed."""

    def __init__(self, allowed: tuple[Network, ...], threads: ThreadPoolExecutor | None = None) -> None:
        self._allowed = allowed
        self._threads = threads
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  the interface's own
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        found = await self._look_up(host, port)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        # One address that is not public taints the name: a resolver that mixes both is playing games.
        if not addresses or not all(
            self._may_reach(ipaddress.ip_address(each.partition("%")[0])) for each in addresses
        ):
            raise OutboundError(f"{host} is not at a public address, which outbound_allow does not permit.")
        for address in addresses[:-1]:
            with contextlib.suppress(httpcore.ConnectError):
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
        return await self._backend.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def _look_up(self, host: str, port: int) -> list[Any]:
        loop = asyncio.get_running_loop()
        if self._threads is None:
            return list(await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        # A lookup cannot be called off: where name servers of partners hang, only threads of ours hang with them.
        return await loop.run_in_executor(self._threads, partial(socket.getaddrinfo, host, port, type=_STREAM))

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise OutboundError("Sockets of this machine are not called.")

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)

    def _may_reach(self, address: Address) -> bool:
        if isinstance(address, ipaddress.IPv6Address):
            inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
            if inner is None and address in _NAT64:
                inner = ipaddress.IPv4Address(address.packed[-4:])
            if inner is not None:
                return self._may_reach(inner)
        if any(address in network for network in self._allowed):
            return True
        # ipaddress calls some addresses global that are not: multicast, ::/8 and the old site-local range.
        site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
        return address.is_global and not (address.is_multicast or address.is_reserved or site_local)
