"""Vehicles' requests addressed to another pool that cannot answer now: the failure is temporary."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from ccp.server.storage.queries import peers
from ccp.server.storage.queries.peers import Peer
from ccp.testing.pki import PKI
from tests.scripted_server import DROP, HANG, Reply, Scripted, error, json_reply, scripted
from tests.server.http.api.answers import sentences
from tests.server.http.opcp.requests import call
from tests.server.pool.peers.requests import PATH, to, until_known
from tests.world import AT, SESSION, Pool, post_body, read, start

OPEN = "The pool other has not answered lately; try again later."
SILENT = "The pool other does not answer now; try again later."
NOTHING = "The pool that the request is for has nothing for the vehicle now."


@contextmanager
def beside(pkis: dict[str, PKI], peer_delivery_timeout: float = 0.4) -> Iterator[tuple[Pool, Scripted]]:
    with scripted() as peer, start(pkis, pool_id="pool-x", peer_delivery_timeout=peer_delivery_timeout) as pool:
        pool.change(peers.add(Peer("other", peer.url, token="t"), AT))
        until_known(pool, "other")
        yield pool, peer


def ask(pool: Pool, edition: str = "iso2", *, always: str = "true") -> httpx.Response:
    return pool.post(pool.car(edition), headers={**to("other"), "alwaysReturnEXI": always})


def temporary(answer: httpx.Response) -> tuple[str, int]:
    """`metaData` and Retry-After of a FAILED response."""
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["signedContractDataCollection"]
    assert read(item).response_code == "FAILED"
    kind, _, sentence = item["metaData"].partition(": ")
    assert kind == "temporary", item["metaData"]
    return sentence, int(answer.headers["Retry-After"])


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_addressed_vehicle_request_peer_timeout_is_temporary(pkis: dict[str, PKI], edition: str) -> None:
    with beside(pkis) as (pool, peer):
        peer.on(PATH, HANG)
        reported = [temporary(ask(pool, edition)) for _ in range(3)]
        assert reported == [(SILENT, 2)] * 3
        while reported[-1][0] != OPEN:  # On a busy machine a request may be cut off before it counts as a failure.
            assert len(reported) < 20
            reported.append(temporary(ask(pool, edition)))
        asked = len(peer.asked(PATH))
        assert 2 < reported[-1][1] <= 15
        assert temporary(ask(pool, edition))[0] == OPEN
        refused = ask(pool, edition, always="false")
        assert sentences(refused, 503) == [OPEN]
        assert 1 <= int(refused.headers["Retry-After"]) <= 15
        # In the other dialect as well.
        car = pool.car(edition)
        body = post_body(car.request(SESSION, AT), str(car.namespace))
        for always, status in (("true", 200), ("false", 503)):
            headers = {**to("other"), "alwaysReturnEXI": always}
            answer = call(pool, "cpo", "POST", "/ccp/signedContractData", json=body, headers=headers)
            assert answer.status_code == status
            assert f"{'temporary: ' if status == 200 else ''}{OPEN}" in answer.text
            assert int(answer.headers["Retry-After"]) >= 1
        assert len(peer.asked(PATH)) == asked
        text = pool.http.get("/metrics").text
        assert any('outcome="unavailable"' in line for line in text.splitlines() if "GetSignedContractDataBy" in line)


def test_addressed_vehicle_request_peer_errors_are_classified(pkis: dict[str, PKI]) -> None:
    with beside(pkis, peer_delivery_timeout=4) as (pool, peer):  # Each answers at once, as fast as the machine is.
        for reply, after in (
            (error(503, "Not now.", Retry_After="7"), 7),
            (error(429, "Too often.", Retry_After="9"), 9),
            (error(500), 2),
            (DROP, 2),
        ):
            peer.on(PATH, reply)
            assert temporary(ask(pool)) == (SILENT, after)
            peer.on(PATH, error(404))  # It answers, so its circuit stays closed.
            answer = ask(pool)
            (item,) = answer.json()["signedContractDataCollection"]
            assert item["metaData"] == NOTHING
            assert read(item).response_code == "FAILED_NoCertificateAvailable"
            assert "Retry-After" not in answer.headers
            assert sentences(ask(pool, always="false"), 404) == [NOTHING]


def test_addressed_vehicle_request_beyond_the_share_is_refused(
    pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccp.server.pool.peer_links.VEHICLE_REQUESTS", (4, 1))
    arrived, released = threading.Event(), threading.Event()

    def wait(connection: object) -> None:
        arrived.set()
        released.wait(20)

    with scripted() as peer, start(pkis, pool_id="pool-x", peer_delivery_timeout=4) as pool:
        pool.change(peers.add(Peer("other", peer.url, token="t"), AT))
        until_known(pool, "other")
        peer.on(PATH, Reply(act=wait), json_reply({"signedContractDataCollection": []}))
        with ThreadPoolExecutor(1) as threads:
            under_way = threads.submit(ask, pool)
            assert arrived.wait(10)
            sentence = "Too many requests to the pool other are under way."
            assert temporary(ask(pool)) == (sentence, 1)
            assert sentences(ask(pool, always="false"), 503) == [sentence]
            released.set()
            assert temporary(under_way.result()) == (SILENT, 2)
        assert len(peer.asked(PATH)) == 1
