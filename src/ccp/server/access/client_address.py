"""Client addresses: the connection's peer, or what trusted proxies report in `X-Forwarded-For`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network


@dataclass(frozen=True, slots=True)
class RemoteAddress:
    """The address of a client.

    address: as far as it is known. rate_limit_key: key for limits by address; None for the address of a trusted proxy
    itself, because counting it would throttle all clients behind the proxy together.
    """

    address: str | None
    rate_limit_key: bytes | None


class TrustedProxies:
    """The proxies whose `X-Forwarded-For` header is evaluated.

    `contains(peer)` tells whether the peer of a connection is one of them; `resolve(peer, forwarded)` returns the
    `RemoteAddress` of a request.
    """

    def __init__(self, trusted: Iterable[str]) -> None:
        """trusted: networks in CIDR notation."""
        self._networks = tuple(map(ip_network, trusted))
        # Parsing an address takes some microseconds, and the same few clients call again and again.
        self.contains = lru_cache(4096)(self._contains)
        self.resolve = lru_cache(4096)(self._resolve)

    def _contains(self, peer: str | None) -> bool:
        address = _address(peer or "")
        return address is not None and self._trusts(address)

    def _resolve(self, peer: str | None, forwarded: str) -> RemoteAddress:
        """The client address of a request.

        peer: of the connection. forwarded: all `X-Forwarded-For` headers of the request, in order. Each proxy appends
        the address that it was called from, so the list is read from the right: the first address that is not a
        trusted proxy is the client. Everything to the left of it was sent by the client and is ignored.
        """
        found = _address(peer or "")
        if found is None:
            return RemoteAddress(peer, None)
        if not self._trusts(found):
            return RemoteAddress(str(found), _rate_limit_key(found))
        for text in reversed(forwarded.split(",")):
            hop = _address(text.strip())
            if hop is None:
                break
            found = hop
            if not self._trusts(hop):
                return RemoteAddress(str(hop), _rate_limit_key(hop))
        return RemoteAddress(str(found), None)

    def _trusts(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks if network.version == address.version)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an address with or without a port, an IPv4-mapped IPv6 address as IPv4; None for anything else."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _rate_limit_key(address: IPv4Address | IPv6Address) -> bytes:
    """The IPv4 address, or the /64 network of an IPv6 client, which could use another address for every call."""
    return address.packed if address.version == 4 else address.packed[:8]
