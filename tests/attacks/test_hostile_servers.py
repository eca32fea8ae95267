"""Endless and oversized responses of remote servers, in every HTTP framing."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ccp.client import AsyncClient, MalformedResponseError, NoResponseError
from ccp.server.external.outbound import OutboundClient, OutboundError
from ccp.server.runtime.loop_budget import LoopBudget
from ccp.server.storage.queries import webhooks
from ccp.testing.partners import Car
from ccp.testing.pki import PKI, StatusURLs
from tests.attacks.hostile import BEHAVIOURS, SLOW, hostile_server
from tests.scripted_server import Reply, scripted, unused_port
from tests.server.events.receiver import webhook
from tests.server.http.api.responders import LOOPBACK
from tests.world import AT, Pool, start

ENDLESS = {
    "interim": "sends more interim answers than are accepted",
    "hints": "sends more interim answers than are accepted",
    "chunks": "sends its answer in too many small chunks",
    "extensions": "sends a longer chunk line than is accepted",
    "trailers": "sends more trailers than are accepted",
    "headers": "sends more header",
    "header": "sends more header bytes than are accepted",
    "folded": "sends more header bytes than are accepted",
    "body": "sent more than 131072 bytes",
    "drip": "did not answer within 1 s",
}
"""What is said of each; "bytes" depends on how they arrive."""


@pytest.fixture(scope="module")
def hostile() -> Iterator[str]:
    with hostile_server() as url:
        yield url


async def _longest_turn(stop: asyncio.Event) -> float:
    """The longest turn of the event loop until the event, in seconds of processor time of this thread."""
    longest, before = 0.0, time.thread_time()
    while not stop.is_set():
        await asyncio.sleep(0)
        now = time.thread_time()
        longest, before = max(longest, now - before), now
    return longest


def during(calls: Callable[[OutboundClient], list[asyncio.Task[str]]]) -> tuple[list[str], float]:
    """What calls end with, and the longest turn of the event loop meanwhile."""

    async def whole() -> tuple[list[str], float]:
        async with asyncio.timeout(30):
            outbound = OutboundClient()
            # What is imported and loaded once is not what is measured.
            await asyncio.gather(*calls(outbound))
            stop = asyncio.Event()
            watching = asyncio.create_task(_longest_turn(stop))
            outcomes = await asyncio.gather(*calls(outbound))
            stop.set()
            await outbound.close()
            return list(outcomes), await watching

    return asyncio.run(whole())


@pytest.mark.parametrize("kind", [*BEHAVIOURS, *SLOW])
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "status"])
def test_hostile_server_responses_do_not_block_the_event_loop(hostile: str, kind: str, cut: bool) -> None:
    """Eight at a time. Before, a turn took 100 ms for interim answers and 300 ms for chunks of one byte."""

    async def call(outbound: OutboundClient) -> str:
        try:
            answer = await outbound.request(
                "POST",
                f"{hostile}/{kind}",
                block_private=False,
                content=b"x",
                timeout=1,
                max_bytes=131_072,
                truncate=cut,
            )
        except OutboundError as exc:
            return str(exc)
        return str(answer.status)

    outcomes, longest = during(lambda outbound: [asyncio.create_task(call(outbound)) for _ in range(8)])
    if not cut and kind in ENDLESS:
        assert all(ENDLESS[kind] in outcome for outcome in outcomes), outcomes
    # Of bodies most is the system's own work: copying what arrives as fast as a machine can send to itself.
    assert longest < (0.1 if kind == "body" else 0.03), longest


@pytest.mark.parametrize("kind", ["interim", "chunks", "headers", "trailers", "drip"])
def test_peer_responses_have_the_same_limits(hostile: str, kind: str) -> None:
    async def test() -> float:
        outbound = OutboundClient()
        client = AsyncClient(f"{hostile}/{kind}", token="x", network_backend=outbound.configured_backend)
        stop = asyncio.Event()
        watching = asyncio.create_task(_longest_turn(stop))
        try:
            with pytest.raises(NoResponseError):
                await client.contracts_of_pcid("WEX0TEST000000001", timeout=1)
        finally:
            stop.set()
            await client.close()
            await outbound.close()
        return await watching

    asyncio.run(test())
    assert asyncio.run(test()) < 0.03


@pytest.mark.parametrize("item", [b"1", b"{}", b'"x"', b"[]", b"null"])
def test_peer_list_is_rejected_at_its_first_invalid_item(item: bytes) -> None:
    """262,144 bytes of them took 1.2 s, a megabyte of them 9 s."""
    body = b'{"contractDataCollection":[' + b",".join([item] * (260_000 // (len(item) + 1))) + b"]}"

    async def test(url: str) -> float:
        client = AsyncClient(url, token="x")
        stop = asyncio.Event()
        watching = asyncio.create_task(_longest_turn(stop))
        try:
            with pytest.raises(MalformedResponseError):
                await client.contracts_of_pcid("WEX0TEST000000001")
        finally:
            stop.set()
            await client.close()
        return await watching

    with scripted() as peer:
        peer.on("/opnc/v1/ccp/contractData/pcid/WEX0TEST000000001", Reply(200, body))
        assert asyncio.run(test(peer.url)) < 0.1


@contextlib.contextmanager
def tls_server(folder: Path, groups: str) -> Iterator[str]:
    """OpenSSL's own server, which agrees on keys over these groups alone. Its certificate is its own CA's."""
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem"]
    make = ["openssl", "req", "-x509", *key, "-out", "cert.pem", "-days", "1", *name]
    subprocess.run(make, cwd=folder, check=True, capture_output=True)
    port = unused_port()
    serve = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-key", "key.pem", "-cert", "cert.pem", "-www"]
    process = subprocess.Popen([*serve, "-groups", groups], cwd=folder, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    try:
        assert process.stdout is not None
        while b"ACCEPT" not in process.stdout.readline():
            assert process.poll() is None
        yield f"https://127.0.0.1:{port}/"
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("groups", "answers"), [("P-256", True), ("ffdhe8192", False)])
def test_tls_client_refuses_costly_key_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, answers: bool
) -> None:
    """Before, one handshake over ffdhe8192 held the loop for 114 ms, and the server chooses."""
    with tls_server(tmp_path, groups) as url:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))

        async def test() -> float:
            outbound = OutboundClient(LOOPBACK)
            stop = asyncio.Event()
            watching = asyncio.create_task(_longest_turn(stop))
            sentence = "200"
            try:
                assert (await outbound.request("GET", url, block_private=True)).status == 200
            except OutboundError as exc:
                sentence = str(exc)
            stop.set()
            await outbound.close()
            assert sentence == ("200" if answers else "127.0.0.1 cannot be reached.")
            return await watching

        asyncio.run(test())
        assert asyncio.run(test()) < 0.05


def test_outbound_client_reads_every_ordinary_framing(hostile: str) -> None:
    """A megabyte with a length, in chunks, until the end, and behind interim answers."""
    body = bytes(range(256)) * 4096
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part) for part in (body[at : at + 9_000] for at in range(0, len(body), 9_000))
    )
    heads = {
        "length": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
        "end": b"HTTP/1.1 200 OK\r\n\r\n" + body,
        "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nX-Trailer: 1\r\n\r\n",
        "interim": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3
        + b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body,
        "lines": b"HTTP/1.1 200 OK\nContent-Length: 1048576\n\n" + body,
    }

    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            name = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].strip(b"/").decode()
            for at in range(0, len(heads[name]), 7_001):
                writer.write(heads[name][at : at + 7_001])
                await writer.drain()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            outbound = OutboundClient()
            for name in heads:
                answer = await outbound.request(
                    "GET", f"http://127.0.0.1:{port}/{name}", block_private=False, timeout=20
                )
                assert (name, answer.status, answer.body == body) == (name, 200, True)
            await outbound.close()

    asyncio.run(test())


def test_hostile_server_response_before_a_request_is_not_used_for_the_next_one() -> None:
    """A server that sends two answers at once would otherwise answer what it was never asked."""

    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            one = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n%s"
            writer.write(one % b"one" + one % b"two")
            with contextlib.suppress(asyncio.CancelledError):
                await reader.read()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
            url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
            outbound = OutboundClient()
            for _ in range(3):
                assert (await outbound.request("GET", url, block_private=False, timeout=2)).body == b"one"
            await outbound.close()

    asyncio.run(test())


# --- A whole pool ----------------------------------------------------------------------------------------------------


def served(pool: Pool) -> Car:
    """A car that another party has published for."""
    car = pool.car()
    pool.publish(car)
    pool.ask(car)
    return car


def _others(pool: Pool, car: Car, busy: Callable[[], bool]) -> list[float]:
    """How long other callers wait meanwhile, in seconds: a probe, and another car. Both at least once."""
    took = []
    with httpx.Client(base_url=pool.base_url, timeout=30) as probing:
        while busy() or not took:
            began = time.monotonic()
            assert probing.get("/health/live").status_code == 200
            took.append(time.monotonic() - began)
            began = time.monotonic()
            pool.ask(car)
            took.append(time.monotonic() - began)
    return took


@pytest.mark.parametrize("kind", ["interim", "chunks", "headers"])
def test_webhook_responses_without_end_do_not_delay_deliveries(
    pkis: dict[str, object], hostile: str, kind: str
) -> None:
    """Twenty webhooks of one party. Before, one car waited for ten seconds."""
    options = {
        "event_dispatch": True,
        "event_allow_http": True,
        "egress_allow_networks": LOOPBACK,
        "event_timeout": 2.0,
    }
    with start(pkis, **options) as pool:  # type: ignore[arg-type]
        hooks = [webhook(f"{hostile}/{kind}/{number}") for number in range(20)]
        for hook in hooks:
            pool.change(webhooks.put(hook))
        car = served(pool)
        for _ in range(4):
            pool.publish(pool.car())

        def busy() -> bool:
            tried = pool.sql("select count(*) from delivery where attempts > 0")[0][0]
            return bool(tried < 20 and time.monotonic() < ends)

        ends = time.monotonic() + 20
        took = _others(pool, car, busy)
        assert not busy()
        assert time.monotonic() < ends, "The webhooks were not called."
    assert max(took) < 1.5, (len(took), statistics.median(took), max(took))


@pytest.mark.parametrize("kind", ["interim", "chunks"])
def test_ocsp_and_crl_responses_without_end_do_not_delay_deliveries(hostile: str, kind: str) -> None:
    """Six PUTs whose certificates name such a server. Before, one car waited for almost six seconds."""
    addresses = StatusURLs(ocsp=f"{hostile}/{kind}", crl=f"{hostile}/{kind}")
    evil = PKI.generate(AT, status_urls=lambda ca: addresses if ca == "eMSP Sub2 CA SIM" else StatusURLs())
    with start({"iso2": PKI.generate(AT), "evil": evil}, egress_allow_networks=LOOPBACK) as pool:
        contracts = [pool.contract(pool.car(), signer="evil") for _ in range(6)]
        car = served(pool)
        with ThreadPoolExecutor(6) as threads:
            under_way = [threads.submit(pool.put, contract) for contract in contracts]
            took = _others(pool, car, lambda: not all(one.done() for one in under_way))
            assert {one.result().status_code for one in under_way} == {503}
    assert max(took) < 1.5, (len(took), statistics.median(took), max(took))


def test_loop_budget_queues_work_in_order() -> None:
    async def test() -> None:
        budget, order, turns = LoopBudget(1_000), list[int](), list[int]()
        turn = 0

        async def work(number: int) -> None:
            await budget.spend(600)
            order.append(number)
            turns.append(turn)

        tasks = [asyncio.create_task(work(number)) for number in range(20)]
        tasks[5].cancel()
        while not all(task.done() for task in tasks):
            turn += 1
            await asyncio.sleep(0)
        assert order == [number for number in range(20) if number != 5]
        assert max(turns.count(each) for each in turns) <= 2

    asyncio.run(test())
