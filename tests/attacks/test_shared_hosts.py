"""Isolation of CAs and parties that share a host."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.x509 import ocsp

from ccp.server.external import resolver
from ccp.server.external.outbound import OutboundClient, OutboundError
from ccp.server.trust.revocation_client import RevocationClient
from ccp.testing.pki import PKI, StatusURLs
from ccp.x509.certificates import Certificate
from tests.scripted_server import Reply, Scripted, scripted
from tests.server.http.api.answers import sentences
from tests.server.http.api.responders import LOOPBACK, ocsp_response
from tests.waiting import wait_until
from tests.world import AT, Contract, Pool, start

SUB2 = "eMSP Sub2 CA SIM"
_SILENT = threading.Event()


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with scripted() as running:
        yield running


def naming(url: str) -> PKI:
    return PKI.generate(AT, status_urls=lambda ca: StatusURLs(ocsp=url) if ca == SUB2 else StatusURLs())


@pytest.fixture(scope="module")
def names() -> Iterator[None]:
    """Names below ".silent" have a silent name server, those below ".test" are this machine."""

    def lookup(host: str) -> list[str]:
        if host.endswith(".silent"):
            _SILENT.wait(40)
        return ["127.0.0.1"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolver, "system_lookup", lookup)
        yield
        _SILENT.set()


@pytest.fixture(scope="module")
def pool(server: Scripted, names: None) -> Iterator[Pool]:
    port = server.url.rpartition(":")[2]
    pkis = {
        "iso2": naming(f"{server.url}/victim"),
        "tls": naming(f"https://127.0.0.1:{port}/a"),
        "failing": naming(f"{server.url}/failing"),
        "named": naming(f"http://ocsp.good.test:{port}/victim-named"),
        **{f"silent {n}": naming(f"http://ocsp.d{n // 2}.silent:{port}/{n}") for n in range(6)},
    }
    with start(pkis, egress_allow_networks=LOOPBACK) as running:
        server.on("/victim*", lambda request: Reply(body=ocsp_response(running.pki().emsp_sub2, request.body)))
        server.on(
            "/victim-named*", lambda request: Reply(body=ocsp_response(running.pki("named").emsp_sub2, request.body))
        )
        server.on("/failing*", lambda request: Reply(status=500))
        yield running


@pytest.mark.parametrize("attacker", ["tls", "failing"])
def test_circuits_of_one_host_are_separate_per_issuer(pool: Pool, server: Scripted, attacker: str) -> None:
    """StatusURLs on the victim's host, under another scheme or path, that fail again and again."""
    for _ in range(6):
        answer = pool.put(pool.contract(pool.car(), signer=attacker))
        assert answer.status_code == 503, answer.text
    assert "failed several times" in answer.text
    pool.publish(pool.car())


def test_dry_runs_of_one_party_do_not_delay_another(pool: Pool, server: Scripted) -> None:
    contracts = [pool.contract(pool.car()) for _ in range(80)]
    mine = pool.contract(pool.car())

    def dry_run(contract: Contract) -> int:
        return pool.cps.put("/signedcontractdata", json=contract.body, params={"dryRun": "true"}).status_code

    pool.token("cps"), pool.token("small_cps")
    begun = len(server.received)
    with ThreadPoolExecutor(80) as threads:
        under_way = [threads.submit(dry_run, contract) for contract in contracts]
        wait_until(lambda: len(server.received) - begun >= 22)  # The burst is spent, the rest waits for its turn.
        answer = pool.client("small_cps").put("/signedcontractdata", json=mine.body)
        assert answer.status_code == 201, answer.text
        assert pool.stored(mine.emaid) == 1
        assert {one.result() for one in under_way} == {200}
    wait_until(lambda: len(server.received) - begun == 81)
    asked = [ocsp.load_der_ocsp_request(request.body).serial_number for request in server.received[begun:]]
    # It did not wait for all those that were there before it.
    assert asked.index(serial_of(mine)) < 70


def serial_of(contract: Contract) -> int:
    return Certificate.load(contract.certificate).serial_number


def test_shared_host_name_servers_that_are_silent_delay_only_their_names(pool: Pool, server: Scripted) -> None:
    """Three domains without an answer, asked for by six PUTs at the same time; a responder with a name goes on."""
    blocked = [pool.contract(pool.car(), signer=f"silent {n}") for n in range(6)]
    with ThreadPoolExecutor(6) as threads:
        pool.token("cps")
        under_way = [threads.submit(pool.put, contract) for contract in blocked]
        wait_until(lambda: lookups() >= 3)
        for _ in range(3):
            pool.publish(pool.car(), signer="named")
        for one in under_way:
            (sentence,) = sentences(one.result(), 503)
            assert "cannot be reached" in sentence
    assert lookups() <= 6  # Those who ask again wait for the same threads.


def lookups() -> int:
    return sum(thread.name == "lookup" for thread in threading.enumerate())


def test_requests_that_were_not_sent_do_not_open_a_circuit(server: Scripted, names: None) -> None:
    """A name that does not resolve, and an address that may not be called: said each time, and nothing counted."""

    async def test() -> None:
        outbound = OutboundClient()
        fetcher = RevocationClient(outbound)
        try:
            for _ in range(5):
                with pytest.raises(OutboundError, match="cannot be reached"):
                    await fetcher.ocsp(server.url + "/victim", b"x", issuer="a")
            for _ in range(5):
                with pytest.raises(OutboundError, match="cannot be reached"):
                    await fetcher.ocsp("http://new.silent/", b"x", issuer="a")
        finally:
            await outbound.close()

    asyncio.run(test())
