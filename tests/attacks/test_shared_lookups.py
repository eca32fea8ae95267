"""Isolation of CAs and parties in name resolution."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ccp.server.external import resolver
from ccp.testing.pki import PKI, SUB_CA2, StatusURLs
from tests.scripted_server import Reply, Scripted, scripted
from tests.server.http.api.answers import sentences
from tests.server.http.api.responders import LOOPBACK, ocsp_response
from tests.server.trust.revocation.made import crl
from tests.waiting import wait_until
from tests.world import AT, Pool, start


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted() as running:
        yield running


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Names below ".silent" are not answered before this is set; all are this machine."""
    event = threading.Event()

    def lookup(host: str) -> list[str]:
        if host.endswith(".silent"):
            event.wait(30)
        return ["127.0.0.1"]

    monkeypatch.setattr(resolver, "system_lookup", lookup)
    yield event
    event.set()


def naming(pki: PKI, url: str) -> PKI:
    """The same CAs, whose next contracts name this responder."""
    return replace(pki, emsp_sub2=replace(pki.emsp_sub2, status_urls=StatusURLs(ocsp=url)))


def test_shared_lookup_of_a_host_is_separate_per_issuer(server: Scripted, released: threading.Event) -> None:
    """One CA's certificates name four silent domains, and then the responder of another CA."""
    port = server.url.rpartition(":")[2]
    host = f"http://ocsp.victim.test:{port}"
    victim, attacker = naming(PKI.generate(AT), f"{host}/victim"), PKI.generate(AT)
    server.on("/victim*", lambda request: Reply(body=ocsp_response(victim.emsp_sub2, request.body)))
    urls = [*(f"http://ocsp.d{n}.silent:{port}/" for n in range(4)), *[f"{host}/attacker"] * 4]
    with start({"iso2": victim, "attacker": attacker}, egress_allow_networks=LOOPBACK) as pool:
        contracts = [pool.contract(pool.car(), signer=naming(attacker, url)) for url in urls]
        pool.token("cps")
        with ThreadPoolExecutor(len(urls)) as threads:
            silent = [threads.submit(pool.put, contract) for contract in contracts[:4]]
            wait_until(lambda: lookups() == 4)
            waiting = [threads.submit(pool.put, contract) for contract in contracts[4:]]
            time.sleep(0.3)  # Until they wait for a thread, which nothing shows.
            pool.publish(pool.car())
            for one in (*silent, *waiting):
                assert "cannot be established now" in sentences(one.result(), 503)[0]


def test_shared_lookup_of_a_crl_is_retried_for_another_party(server: Scripted, released: threading.Event) -> None:
    """A party that has used up its lookups asks for a list of a CA that others use, too."""
    port = server.url.rpartition(":")[2]
    shared, attacker = PKI.generate(AT), PKI.generate(AT)
    sub2 = replace(shared.emsp_sub2, status_urls=StatusURLs(crl=f"http://crl.shared.test:{port}/list"))
    shared = replace(shared, emsp_sub2=sub2)
    server.on("/list*", crl(sub2))
    with start({"iso2": shared, "attacker": attacker}, egress_allow_networks=LOOPBACK) as pool:
        fill_lookups(pool, attacker, port)
        theirs, ours = pool.contract(pool.car()), pool.contract(pool.car())
        pool.token("small_cps")
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(pool.put, theirs)
            time.sleep(0.3)  # Until it waits for a thread, which nothing shows.
            answer = pool.client("small_cps").put("/signedcontractdata", json=ours.body)
            assert answer.status_code == 201, answer.text
            waiting.result()


def fill_lookups(pool: Pool, attacker: PKI, port: str) -> None:
    """Nine sub-CAs of one party, each of which names four silent hosts in two domains."""
    sub_cas = [attacker.emsp_sub1.issue(f"Sub2 CA {number}", SUB_CA2, now=AT) for number in range(9)]
    contracts = [
        pool.contract(
            pool.car(),
            signer=naming(replace(attacker, emsp_sub2=sub_ca), f"http://h{n}.d{number}-{n % 2}.silent:{port}/"),
        )
        for number, sub_ca in enumerate(sub_cas)
        for n in range(4)
    ]
    pool.token("cps")
    with ThreadPoolExecutor(len(contracts)) as threads:
        for answer in threads.map(lambda contract: pool.put(contract), contracts):
            assert "cannot be established now" in sentences(answer, 503)[0]


def test_shared_lookups_per_party_are_limited_across_issuers(server: Scripted, released: threading.Event) -> None:
    """A root of its own makes any number of sub-CAs, each of which names four silent hosts in two domains."""
    port = server.url.rpartition(":")[2]
    victim, attacker = naming(PKI.generate(AT), f"http://ocsp.victim.test:{port}/victim"), PKI.generate(AT)
    server.on("/victim*", lambda request: Reply(body=ocsp_response(victim.emsp_sub2, request.body)))
    with start({"iso2": victim, "attacker": attacker}, egress_allow_networks=LOOPBACK) as pool:
        fill_lookups(pool, attacker, port)
        assert lookups() == 12  # They are silent still.
        contract = pool.contract(pool.car())
        answer = pool.client("small_cps").put("/signedcontractdata", json=contract.body)
        assert answer.status_code == 201, answer.text


def lookups() -> int:
    return sum(thread.name == "lookup" for thread in threading.enumerate())
