"""OutboundClient: refused addresses, deadlines, limits of responses."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ccp.server.external import resolver
from ccp.server.external.outbound import HttpResponse, OutboundClient, OutboundError
from ccp.server.external.public_addresses import may_connect
from tests.scripted_server import ENDLESS, Reply, Scripted, dripped, scripted


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with scripted() as running:
        running.on("/", b"hello")
        yield running


def ask(
    url: str, *, allow: tuple[str, ...] = (), block_private: bool = True, method: str = "GET", **options: Any
) -> HttpResponse:
    async def whole() -> HttpResponse:
        outbound = OutboundClient(allow)
        try:
            async with asyncio.timeout(10):
                return await outbound.request(method, url, block_private=block_private, **options)
        finally:
            await outbound.close()

    return asyncio.run(whole())


def test_outbound_client_refuses_private_addresses_unless_allowed(server: Scripted) -> None:
    assert ask(server.url + "/", block_private=False).body == b"hello"
    assert ask(server.url + "/", allow=("127.0.0.0/8",)).body == b"hello"
    before = len(server.received)
    for allow in ((), ("10.0.0.0/8",)):
        with pytest.raises(OutboundError, match="cannot be reached"):
            ask(server.url + "/", allow=allow)
    assert len(server.received) == before


def test_outbound_request_sends_method_headers_and_body(server: Scripted) -> None:
    server.on("/echo", Reply(418, b"x", {"ETag": "1"}))
    answer = ask(server.url + "/echo", block_private=False, method="POST", content=b"body", headers={"X-One": "1"})
    assert (answer.status, answer.headers["etag"], answer.body) == (418, "1", b"x")
    seen = server.received[-1]
    assert (seen.method, seen.body, seen.headers["x-one"]) == ("POST", b"body", "1")
    assert seen.headers["host"] == server.url.removeprefix("http://")


def test_outbound_request_sends_one_host_header() -> None:
    """Two of them, once sent by this client, are refused by careful servers."""

    async def whole() -> bytes:
        received: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            received.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            outbound = OutboundClient()
            await outbound.request("GET", f"http://127.0.0.1:{port}/", block_private=False)
            await outbound.close()
        return received[0]

    assert asyncio.run(whole()).lower().count(b"\r\nhost:") == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://example.org/x",
        "file:///etc/passwd",
        "ldap://example.org",
        "http://",
        "http:///x",
        "http://user@example.org/",
        "http://user:secret@127.0.0.1/",
        "http://example.org:99999/",
        "http://exa mple.org/",
        "http://example.org/\r\nX: 1",
        "http://example.org\\@127.0.0.1/",
        "http://exämple.org/",
        "http://" + "a" * 64 + ".example/",
        "http://a..example/",
        "http://" + "x" * 3000,
        "http://[::1/",
    ],
)
def test_outbound_request_refuses_invalid_urls(url: str) -> None:
    for block_private in (True, False):
        with pytest.raises(OutboundError):
            ask(url, block_private=block_private)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "198.18.0.1", "[::1]", "[::]", "[fe80::1]", "[fc00::1]", "[fec0::1]", "[ff02::1]",
        "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]", "[2002:7f00:1::]",
        "[::7f00:1]", "2130706433", "0x7f.1", "127.1",
    ],
)  # fmt: skip
def test_outbound_client_refuses_every_spelling_of_private_addresses(host: str) -> None:
    began = time.monotonic()
    with pytest.raises(OutboundError, match="cannot be reached"):
        ask(f"http://{host}:9/")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_outbound_client_permits_public_addresses(address: str) -> None:
    assert may_connect(ipaddress.ip_address(address), ())


def test_name_that_resolves_to_loopback_is_refused(server: Scripted) -> None:
    port = server.url.rpartition(":")[2]
    with pytest.raises(OutboundError, match="localhost cannot be reached"):
        ask(f"http://localhost:{port}/")
    assert ask(f"http://localhost:{port}/", allow=("127.0.0.0/8", "::1/128")).body == b"hello"


def test_outbound_client_refuses_names_with_one_private_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver is not ours to control, so here it is the one thing that is not real."""

    monkeypatch.setattr(resolver, "system_lookup", lambda host: ["8.8.8.8", "10.0.0.1"])
    with pytest.raises(OutboundError, match="cannot be reached"):
        ask("http://mixed.example/")


def test_outbound_client_checks_the_address_when_connecting(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public for one connection and private for the next gets no second one."""
    answers = iter(["127.0.0.1", "10.0.0.1"])

    port = server.url.rpartition(":")[2]
    server.on("/close", Reply(body=b"x", headers={"Connection": "close"}))

    async def whole() -> None:
        outbound = OutboundClient(("127.0.0.0/8",))
        monkeypatch.setattr(resolver, "system_lookup", lambda host: [next(answers)])
        try:
            url = f"http://rebinding.example:{port}/close"
            assert (await outbound.request("GET", url, block_private=True)).body == b"x"
            with pytest.raises(OutboundError, match="cannot be reached"):
                await outbound.request("GET", url, block_private=True)
        finally:
            await outbound.close()

    asyncio.run(whole())


def test_outbound_request_returns_redirects(server: Scripted) -> None:
    server.on("/away", Reply(status=302, headers={"Location": server.url + "/"}))
    before = server.count("/")
    assert ask(server.url + "/away", block_private=False).status == 302
    assert server.count("/") == before


def test_outbound_request_limits_body_bytes(server: Scripted) -> None:
    server.on("/big", bytes(1000))
    server.on("/endless", ENDLESS)
    assert len(ask(server.url + "/big", block_private=False, max_bytes=1000).body) == 1000
    for path, max_bytes in (("/big", 999), ("/endless", 1_000_000)):
        with pytest.raises(OutboundError, match=f"more than {max_bytes} bytes"):
            ask(server.url + path, block_private=False, max_bytes=max_bytes)


@pytest.mark.parametrize("reply", [dripped(b"x" * 1000, 0.05), Reply(delay=5)], ids=["drip", "hanging"])
def test_outbound_timeout_covers_the_whole_exchange(server: Scripted, reply: Reply) -> None:
    server.on("/slow", reply)
    began = time.monotonic()
    with pytest.raises(OutboundError, match=r"did not answer within 0\.4 s"):
        ask(server.url + "/slow", block_private=False, timeout=0.4)
    assert time.monotonic() - began < 1.5


def test_outbound_error_is_the_same_for_no_server_and_no_http() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(OutboundError, match="cannot be reached"):
            ask(f"http://127.0.0.1:{closed.getsockname()[1]}/", block_private=False)

    async def whole() -> None:
        async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example ESMTP\r\n")
            writer.close()

        async with await asyncio.start_server(babble, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            outbound = OutboundClient()
            try:
                with pytest.raises(OutboundError, match="cannot be reached"):
                    await outbound.request("GET", f"http://127.0.0.1:{port}/", block_private=False)
            finally:
                await outbound.close()

    asyncio.run(whole())
