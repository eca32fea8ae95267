"""Classification of IP addresses as public, by IANA's registries and independent of the Python version's copy.

Source: IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890), Multicast Address Space, IPv6 Global Unicast
Address Assignments. An address is public if it is global unicast and in no special-purpose range. That includes ranges
that a registry calls "globally reachable" (anycast services, AS112): none of them hosts an HTTP server of a partner.
"""

from __future__ import annotations

import ipaddress
from typing import Final, TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_SPECIAL_IPV4: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # "This network" (RFC 791)
            "10.0.0.0/8",  # Private use (RFC 1918)
            "100.64.0.0/10",  # Shared address space of carriers (RFC 6598)
            "127.0.0.0/8",  # Loopback (RFC 1122)
            "169.254.0.0/16",  # Link local (RFC 3927), cloud metadata services
            "172.16.0.0/12",  # Private use (RFC 1918)
            "192.0.0.0/24",  # IETF protocol assignments (RFC 6890)
            "192.0.2.0/24",  # Documentation (RFC 5737)
            "192.31.196.0/24",  # AS112 (RFC 7535)
            "192.52.193.0/24",  # AMT relays (RFC 7450)
            "192.88.99.0/24",  # 6to4 relay anycast, deprecated (RFC 7526)
            "192.168.0.0/16",  # Private use (RFC 1918)
            "192.175.48.0/24",  # AS112 (RFC 7534)
            "198.18.0.0/15",  # Benchmarking (RFC 2544)
            "198.51.100.0/24",  # Documentation (RFC 5737)
            "203.0.113.0/24",  # Documentation (RFC 5737)
            "224.0.0.0/4",  # Multicast (RFC 1112)
            "240.0.0.0/4",  # Reserved (RFC 1112), limited broadcast (RFC 919)
        ),
    )
)
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")  # All assigned addresses; local ranges are outside.
_SPECIAL_IPV6: Final = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # IETF protocol assignments: Teredo, benchmarking, ORCHID (RFC 2928)
            "2001:db8::/32",  # Documentation (RFC 3849)
            "2002::/16",  # 6to4 (RFC 3056)
            "2620:4f:8000::/48",  # AS112 (RFC 7534)
            "3ffe::/16",  # The former 6bone, returned (RFC 3701)
            "3fff::/20",  # Documentation (RFC 9637)
            "5f00::/16",  # SRv6 segment identifiers (RFC 9602); outside 2000::/3 too
        ),
    )
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_TEREDO: Final = ipaddress.IPv6Network("2001::/32")
_6TO4: Final = ipaddress.IPv6Network("2002::/16")
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")


def embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that packets to an IPv6 address reach; None if the address embeds none.

    Source: RFC 4291 clause 2.5.5.2 (mapped), RFC 6052 clause 2.1 (well-known NAT64 prefix), RFC 3056 (6to4), RFC 4380
    clause 4 (Teredo, the client's address inverted). 64:ff9b:1::/48 is for local use: the position of the IPv4 address
    in it is up to the network, so it counts as not public.
    """
    packed = address.packed
    if address in _MAPPED or address in _NAT64:
        return ipaddress.IPv4Address(packed[12:])
    if address in _6TO4:
        return ipaddress.IPv4Address(packed[2:6])
    if address in _TEREDO:
        return ipaddress.IPv4Address(bytes(byte ^ 0xFF for byte in packed[12:]))
    return None


def is_public(address: Address) -> bool:
    """Whether an address is global unicast and in no special-purpose range. An embedded IPv4 address decides."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _SPECIAL_IPV4)
    inner = embedded_ipv4(address)
    if inner is not None:
        return is_public(inner)
    return address in _GLOBAL_UNICAST and not any(address in network for network in _SPECIAL_IPV6)


def may_connect(address: Address, allowed: tuple[Network, ...]) -> bool:
    """Whether an address is public, or it or its embedded IPv4 address is in a network that the operator allows."""
    inner = embedded_ipv4(address) if isinstance(address, ipaddress.IPv6Address) else None
    if any(address in network or (inner is not None and inner in network) for network in allowed):
        return True
    return is_public(address)
