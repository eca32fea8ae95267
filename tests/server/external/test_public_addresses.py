"""Public addresses against IANA's special-purpose registries, as they stood on 2025-10-09."""

from __future__ import annotations

import ipaddress

import pytest

from ccp.server.external.public_addresses import is_public, may_connect

# Every range of both registries, and multicast, former and unassigned space. Python 3.11 calls some of them global.
IPV4 = """0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
192.0.0.0/29 192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24 192.31.196.0/24
192.52.193.0/24
192.88.99.0/24 192.88.99.2/32 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24
224.0.0.0/4 240.0.0.0/4 255.255.255.255/32""".split()  # noqa: SIM905
IPV6 = """::1/128 ::/128 ::ffff:0:0/112 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001:1::1/128 2001:1::2/128
2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28 2001:30::/28 2001:db8::/32
2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8 ::/96 4000::/3 3ffe::/16""".split()  # noqa: SIM905


@pytest.mark.parametrize("text", [*IPV4, *IPV6])
def test_is_public_refuses_special_purpose_ranges(text: str) -> None:
    network = ipaddress.ip_network(text)
    last = network.network_address + (network.num_addresses - 1)
    middle = network.network_address + network.num_addresses // 2
    for address in (network.network_address, middle, last):
        assert not is_public(address), address


@pytest.mark.parametrize(
    "text",
    [
        "1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "128.0.0.1", "172.15.255.255",
        "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.0.3.0", "192.88.98.1", "192.88.100.1", "192.167.255.255",
        "192.169.0.0", "198.17.255.255", "198.20.0.0", "203.0.112.1", "203.0.114.1", "223.255.255.255",
        "2001:200::1", "2001:4860::8888", "2606:4700::1", "2a00::1", "3000::1", "2620:4f:8001::1", "2001:db9::1",
        "64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::1", "2001:0:808:808::f7f7:f7f7",
    ],
)  # fmt: skip
def test_is_public_accepts_addresses_next_to_special_ranges(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text",
    ["64:ff9b::a9fe:a9fe", "::ffff:10.0.0.1", "2002:7f00:1::", "2001:0:808:808::80ff:fffe", "::ffff:192.0.0.10"],
)
def test_is_public_refuses_embedded_special_addresses(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


def test_may_connect_allows_networks_in_plain_and_embedded_form() -> None:
    allowed = (ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8"))
    for text, may in {
        "10.1.2.3": True,
        "::ffff:10.1.2.3": True,
        "10.2.0.1": False,
        "fd00::1": True,
        "fc00::1": False,
    }.items():
        assert may_connect(ipaddress.ip_address(text), allowed) is may
