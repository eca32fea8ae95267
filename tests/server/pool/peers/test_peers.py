"""Pools that ask each other: real pools on loopback, and scripted ones that hang or send false answers."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from ccp import exi
from ccp.schemas.common import HOP_HEADER
from ccp.server.external.circuit_breaker import CircuitBreaker
from ccp.server.pool.delivery import Delivery
from ccp.server.pool.peers import RegisteredPeers
from ccp.server.storage.queries import peers
from ccp.server.storage.queries.peers import Peer
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.cli.run import ccp, ccp_ok
from tests.scripted_server import DROP, HANG, Connection, Reply, error, granted, json_reply, nowhere, scripted
from tests.server.http.api.answers import sentences
from tests.server.pool.peers.requests import ASK, PATH, deliver, to, until_known
from tests.world import AT, SESSION, Pool, read, response_bytes, start

NAMES = ("pool-a", "pool-b", "pool-c")
SECONDS = 0.5


@contextmanager
def watched_peers() -> Iterator[Callable[[int], None]]:
    """Yields a function that waits until each pool started in the context knows a number of peers."""
    made: list[RegisteredPeers] = []

    class Watched(RegisteredPeers):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            made.append(self)

    def wait(count: int) -> None:
        deadline = time.monotonic() + 30
        while not all(len(each._links) == count for each in made):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ccp.server.app.RegisteredPeers", Watched)
        yield wait


@pytest.fixture(scope="module")
def three(pkis: dict[str, PKI]) -> Iterator[dict[str, Pool]]:
    """Three pools. Each knows the other two, one over OPNC and one over OPCP."""
    with ExitStack() as stack:
        wait_for_peers = stack.enter_context(watched_peers())
        pools = {
            name: stack.enter_context(start(pkis, pool_id=name, peer_delivery_timeout=2 * SECONDS)) for name in NAMES
        }
        for name, pool in pools.items():
            for place, (other, there) in enumerate((n, p) for n, p in pools.items() if n != name):
                secret = there.world.member("peer").secret
                dialect = ("opnc", "opcp")[place]
                pool.change(peers.add(Peer(other, there.base_url, dialect, "peer", secret), AT))
        wait_for_peers(2)
        yield pools


@pytest.fixture
def deliveries(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for every request of a vehicle that any of the pools handles; they run in this process."""
    seen: list[Any] = []
    really = Delivery._find

    async def counted(self: Delivery, caller: Any, *args: Any, **options: Any) -> Any:
        seen.append(caller.party.client_id)
        return await really(self, caller, *args, **options)

    monkeypatch.setattr(Delivery, "_find", counted)
    return seen


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
@pytest.mark.parametrize("home", NAMES)
def test_broadcast_finds_a_contract_at_any_pool(
    three: dict[str, Pool], deliveries: list[Any], edition: str, home: str
) -> None:
    car = three[home].car(edition)
    contract = three[home].publish(car)
    for asked in NAMES:
        deliveries.clear()
        (item,) = deliver(three[asked], car)
        assert item["emaid"] == contract.emaid
        assert car.install(response_bytes(item), SESSION, AT)[0] == contract.emaid
        if asked == home:
            assert deliveries == ["cpo"]
        else:  # Both other pools are asked at once, and they ask no further pool.
            assert deliveries[0] == "cpo"
            assert set(deliveries[1:]) == {"peer"}
            # The answer does not wait for the slower of them, but the next round must not count it.
            deadline = time.monotonic() + 1
            while len(deliveries) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(deliveries) <= 3


def test_broadcast_of_an_unknown_vehicle_does_not_loop(three: dict[str, Pool], deliveries: list[Any]) -> None:
    car = three["pool-a"].car()
    began = time.monotonic()
    (item,) = deliver(three["pool-a"], car)
    assert time.monotonic() - began < SECONDS + 1
    assert item["metaData"] == "No contract is stored for the vehicle."
    assert sorted(deliveries) == ["cpo", "peer", "peer"]


def test_broadcast_requires_the_callers_permission(three: dict[str, Pool], deliveries: list[Any]) -> None:
    car = three["pool-b"].car()
    three["pool-b"].publish(car)
    (item,) = deliver(three["pool-a"], car, {})
    assert item["emaid"] == "ZZZZZ000000000"
    assert deliveries == ["cpo"]


def test_broadcast_of_a_forwarded_request_is_not_sent(three: dict[str, Pool], deliveries: list[Any]) -> None:
    pool, car = three["pool-a"], three["pool-b"].car()
    three["pool-b"].publish(car)
    # By its role, and, where a pool is registered as something else, by the header.
    for caller, headers in (("peer", ASK), ("cpo", {**ASK, HOP_HEADER: "pool-z"})):
        deliveries.clear()
        answer = pool.post(car, caller=caller, headers={**headers, "alwaysReturnEXI": "false"})
        assert answer.status_code == 404
        assert deliveries == [caller]


def test_broadcast_in_the_opcp_dialect_is_the_default(three: dict[str, Pool]) -> None:
    car = three["pool-c"].car("iso20")
    first = three["pool-c"].publish(car)
    three["pool-c"].publish(car)
    body = {
        "certificateInstallationReq": base64.b64encode(car.request(SESSION, AT)).decode(),
        "xsdMsgDefNamespace": str(car.namespace),
    }
    headers = {"Authorization": f"Bearer {three['pool-a'].token('cpo')}"}
    answer = three["pool-a"].http.post("/v1/ccp/signedContractData", json=body, headers=headers)
    (content,) = answer.json()["CCPResponse"]["emaidContent"]
    item = {**content["messageDef"], "xsdMsgDefNamespace": str(car.namespace)}
    assert item["emaid"] == first.emaid
    assert read(item).parsed.message.RemainingContractCertificateChains == 0
    assert car.install(response_bytes(item), SESSION, AT)[0] == first.emaid


def test_broadcast_returns_all_iso20_contracts_of_a_peer(three: dict[str, Pool]) -> None:
    car = three["pool-b"].car("iso20")
    contracts = [three["pool-b"].publish(car).emaid for _ in range(3)]
    items = deliver(three["pool-a"], car)  # By OPNC; the older dialect brings one.
    assert [item["emaid"] for item in items] == contracts
    left = [read(item).parsed.message.RemainingContractCertificateChains for item in items]
    assert left == [2, 1, 0]
    for item in items:
        car.install(response_bytes(item), SESSION, AT)


# --- Addressed -------------------------------------------------------------------------------------------------------


def test_peer_answers_an_addressed_vehicle_request(three: dict[str, Pool], deliveries: list[Any]) -> None:
    car = three["pool-b"].car()
    here, there = three["pool-a"].publish(car), three["pool-b"].publish(car)
    assert deliver(three["pool-a"], car, {})[0]["emaid"] == here.emaid
    assert deliver(three["pool-a"], car, to("pool-a"))[0]["emaid"] == here.emaid
    deliveries.clear()
    assert deliver(three["pool-a"], car, to("pool-b"))[0]["emaid"] == there.emaid
    assert deliveries == ["cpo", "peer"]
    (item,) = deliver(three["pool-a"], car, to("pool-c"))
    assert item["metaData"] == "The pool that the request is for has nothing for the vehicle now."


def test_peer_that_is_unknown_is_404_for_an_addressed_vehicle_request(three: dict[str, Pool]) -> None:
    pool, car = three["pool-a"], three["pool-a"].car()
    assert sentences(pool.post(car, headers=to("pool-z")), 404)
    assert sentences(pool.oem.get(f"/contractData/pcid/{car.pcid}", headers=to("pool-z")), 404)
    # And pools pass on nothing for pools.
    assert sentences(pool.post(car, caller="peer", headers=to("pool-b")), 404)
    assert sentences(pool.oem.get(f"/contractData/pcid/{car.pcid}", headers=to("pool-a")), 404) == [
        "No contract for the given PCID found."
    ]


# --- Peers that misbehave --------------------------------------------------------------------------------------------


@contextmanager
def beside(pkis: dict[str, PKI], **others: str) -> Iterator[Pool]:
    """A pool with peers at these addresses."""
    settings = {
        "pool_id": "pool-x",
        "peer_delivery_timeout": SECONDS,
        "peer_negative_ttl": 0,
    }  # Each is asked every time.
    with watched_peers() as wait_for_peers, start(pkis, **settings) as pool:
        for name, url in others.items():
            pool.change(peers.add(Peer(name, url, token="t"), AT))
        wait_for_peers(len(others))
        yield pool


def lies(honest: Pool, car: Car) -> dict[str, Reply]:
    """Answers that must not reach the vehicle, made from answers that are valid for something else."""
    honest.publish(car)
    other = honest.car()
    honest.publish(other)

    def answered(response: httpx.Response) -> Any:
        assert response.status_code == 200
        return response.json()

    good_one = answered(honest.post(car))
    (item,) = good_one["signedContractDataCollection"]

    def with_item(**members: Any) -> Reply:
        return json_reply({"signedContractDataCollection": [{**item, **members}]})

    data = bytearray(response_bytes(item))
    data[len(data) // 2] ^= 1
    stranger = Car.from_credential(honest.pki("stranger"), car.provisioning, car.pcid)
    foreign = honest.contract(stranger, signer="stranger").message
    return {
        "another session": json_reply(answered(honest.post(car, b"\x09" * 8))),
        "another vehicle": json_reply(answered(honest.post(other))),
        "a changed message": with_item(certificateInstallationRes=base64.b64encode(data).decode()),
        "another EMAID": with_item(emaid="DEEXAZ99999999"),
        "untrusted roots": with_item(
            certificateInstallationRes=base64.b64encode(exi.replace_header_fields(foreign, session_id=SESSION)).decode()
        ),
        "the newer edition": with_item(xsdMsgDefNamespace="urn:iso:15118:20:2020:MsgDef"),
        "the request itself": with_item(certificateInstallationRes=base64.b64encode(car.request(SESSION, AT)).decode()),
        "nothing": json_reply({"signedContractDataCollection": []}),
        "no JSON": Reply(200, b"<html>"),
        "a negative message": json_reply(answered(honest.post(honest.car()))),
        "an error": error(500),
        "no answer": DROP,
        "a redirect": Reply(302, headers={"Location": "http://127.0.0.1:9/"}),
        "not found": error(404),
        "unauthorised": error(401),
    }


def test_broadcast_ignores_hanging_and_malicious_peers(pkis: dict[str, PKI], three: dict[str, Pool]) -> None:
    honest = three["pool-b"]
    with scripted() as hung, scripted() as liar:
        hung.on(PATH, HANG)
        with beside(pkis, hung=hung.url, liar=liar.url, gone=nowhere()) as pool:
            token = honest.token("peer")
            car = honest.car()
            for what, lie in lies(honest, car).items():
                liar.on(PATH, lie)
                before = len(liar.received)
                (item,) = deliver(pool, car)
                assert len(liar.received) == before + 1, what
                assert item.get("metaData") == "No contract is stored for the vehicle.", what
                assert read(item).response_code == "FAILED_NoCertificateAvailable", what
                # A successful answer closes the circuit, so that earlier failures do not open it.
                liar.on(PATH, error(404))
                deliver(pool, car)
            # And with an honest one beside them the car gets its contract.
            liar.on(PATH, json_reply({"signedContractDataCollection": []}))
            pool.change(peers.add(Peer("pool-b", honest.base_url, token=token), AT))
            until_known(pool, "pool-b")
            (item,) = deliver(pool, car)
            assert car.install(response_bytes(item), SESSION, AT)[0] == item["emaid"]


def test_broadcast_skips_a_peer_with_an_open_circuit(pkis: dict[str, PKI]) -> None:
    with scripted() as hung:
        hung.on(PATH, HANG)
        with beside(pkis, hung=hung.url) as pool:
            times = []
            for _ in range(5):
                began = time.monotonic()
                deliver(pool, pool.car())
                times.append(time.monotonic() - began)
            assert len(hung.asked(PATH)) == 3
            assert all(SECONDS <= each < SECONDS + 1 for each in times[:3])
            assert all(each < SECONDS for each in times[3:])


def test_broadcast_request_has_routing_and_hop_headers(pkis: dict[str, PKI]) -> None:
    with scripted() as peer:
        peer.on(PATH, error(404))
        with beside(pkis, peer=peer.url) as pool:
            deliver(pool, pool.car())
            (received,) = peer.asked(PATH)
            reported = {name: value for name, value in received.headers.items() if name.startswith(("opnc", "x-ccp"))}
            assert reported == {
                "opnc-from-party-type": "cpo",
                "opnc-from-party-id": "DEEXC",
                "opnc-to-party-type": "ccp",
                "opnc-to-party-id": "peer",
                "x-ccp-hop": "pool-x",
            }
            assert received.headers["broadcast"] == "false"
            assert received.headers["authorization"] == "Bearer t"


def test_broadcast_skips_a_peer_with_other_roots(pkis: dict[str, PKI]) -> None:
    with scripted() as right, scripted() as wrong:
        for peer in (right, wrong):
            peer.on(PATH, error(404))
        with start(pkis, pool_id="pool-x", peer_delivery_timeout=SECONDS) as pool:
            for name, server, pki in (("right", right, "iso2"), ("wrong", wrong, "iso20")):
                root = pkis[pki].v2g_root.certificate.fingerprint
                pool.change(peers.add(Peer(name, server.url, token="t", v2g_roots=frozenset({root})), AT))  # type: ignore[arg-type]
            until_known(pool, "wrong")
            deliver(pool, pool.car())
            assert (len(right.received), len(wrong.received)) == (1, 0)


def test_broadcast_returns_the_first_answer_without_waiting(pkis: dict[str, PKI], three: dict[str, Pool]) -> None:
    honest = three["pool-b"]
    both, met = threading.Barrier(2), []

    def meet(connection: Connection) -> None:
        """Answer once the other peer is asked too."""
        met.append(both.wait(3))
        connection.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    with scripted() as one, scripted() as another, start(pkis, pool_id="pool-x", peer_delivery_timeout=4) as pool:
        for name, server in (("one", one), ("another", another)):
            server.on(PATH, Reply(act=meet), HANG)
            pool.change(peers.add(Peer(name, server.url, token="t"), AT))
        until_known(pool, "another")
        deliver(pool, honest.car())
        assert sorted(met) == [0, 1]
        # They hang from now on, which does not delay what an honest one has.
        car = honest.car()
        contract = honest.publish(car)
        pool.change(peers.add(Peer("pool-b", honest.base_url, token=honest.token("peer")), AT))
        until_known(pool, "pool-b")
        began = time.monotonic()
        (item,) = deliver(pool, car)
        assert item["emaid"] == contract.emaid
        assert time.monotonic() - began < 3.5
        assert len(one.asked(PATH)) == len(another.asked(PATH)) == 2


def test_peer_token_is_requested_once(pkis: dict[str, PKI]) -> None:
    with scripted() as peer, start(pkis, pool_id="pool-x") as pool:
        peer.on("/oauth/token", granted("first"), granted("second"))
        peer.on(PATH, error(404), error(404), error(401), error(404))
        pool.change(peers.add(Peer("peer", peer.url, "opnc", "us", "secret"), AT))
        until_known(pool, "peer")
        for _ in range(4):
            deliver(pool, pool.car())
        assert len(peer.asked("/oauth/token")) == 2
        # A token that is refused before its time is replaced within the same request.
        tokens = [one.headers["authorization"] for one in peer.asked(PATH)]
        assert tokens == ["Bearer first"] * 3 + ["Bearer second"] * 2


def test_circuit_breaker_delay_doubles_until_it_closes() -> None:
    now = [0.0]
    breaker = CircuitBreaker(lambda: now[0])
    for _ in range(2):
        breaker.record_failure()
        assert breaker.allow()
    breaker.record_failure()
    assert not breaker.allow()
    for rest in (15.0, 30.0, 60.0, 120.0, 240.0, 300.0, 300.0):
        now[0] += rest - 0.1
        assert not breaker.allow()
        now[0] += 0.1
        assert breaker.allow()
        assert not breaker.allow()  # One tries, the others wait for it.
        breaker.record_failure()
    now[0] += 300.0
    assert breaker.allow()
    breaker.record_success()
    assert breaker.allow()
    breaker.record_failure()
    assert breaker.allow()


def test_circuit_breaker_ignores_calls_begun_before_it_opened() -> None:
    now = [0.0]
    breaker = CircuitBreaker(lambda: now[0])
    for _ in range(8):
        assert breaker.allow()
    for _ in range(7):  # A peer that was away for a moment.
        breaker.record_failure()
    breaker.release()
    now[0] += 14.9
    assert not breaker.allow()
    now[0] += 0.1
    assert breaker.allow()
    breaker.release()
    assert breaker.allow()
    breaker.record_failure()
    now[0] += 29.9
    assert not breaker.allow()


# --- Commands --------------------------------------------------------------------------------------------------------


def test_peer_commands_register_test_list_and_disable(
    three: dict[str, Pool], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = three["pool-b"]
    monkeypatch.chdir(tmp_path)
    ccp_ok("db", "upgrade")
    secret = pool.world.member("peer").secret
    env = {"CCP_PEER_SECRET": secret}
    done = ccp("peer", "add", "pool-b", pool.base_url, "--client-id", "peer", env=env)
    assert (done.status, done.lines[0]) == (0, "pool-b is a peer. Test it with 'ccp peer test pool-b'.")
    assert ccp("peer", "add", "pool-b", pool.base_url, env=env).err == "ccp: There is a peer pool-b already.\n"
    assert ccp_ok("peer", "test", "pool-b").out == "pool-b answers, and accepts our vehicle requests.\n"
    listed = ccp_ok("peer", "list", "--json").out
    assert '"base_url": "' + pool.base_url in listed
    assert secret not in listed + ccp_ok("peer", "list").out
    gone = nowhere()
    assert ccp("peer", "add", "gone", gone, env=env).status == 0
    assert ccp("peer", "test", "gone").err == f"ccp: {gone.removeprefix('http://')} refuses the connection.\n"
    assert ccp("peer", "add", "wrong", pool.base_url, "--client-id", "peer", env={"CCP_PEER_SECRET": "x"}).status == 0
    assert "No access token" in ccp("peer", "test", "wrong").err
    # Registered under a wrong id, or with a role that may not deliver.
    assert ccp("peer", "add", "pool-d", pool.base_url, "--client-id", "peer", env=env).status == 0
    assert "No pool with the id in OPNC-to-party-id is known here." in ccp("peer", "test", "pool-d").err
    emsp = {"CCP_PEER_SECRET": pool.token("emsp")}
    ccp_ok("peer", "disable", "pool-b")
    assert ccp("peer", "test", "missing").err == "ccp: There is no peer missing.\n"
    assert ccp("peer", "add", "as-emsp", pool.base_url, "--dialect", "opcp", env=emsp).status == 0
    assert ccp("peer", "test", "as-emsp").status == 1
    assert "The URL of a pool" in ccp("peer", "add", "bad", "pool.example", env=env).err
    assert ccp_ok("peer", "disable", "pool-b").out == "pool-b is disabled.\n"
    assert ccp("peer", "disable", "missing").err == "ccp: There is no peer missing.\n"
    assert "disabled" in next(line for line in ccp_ok("peer", "list").lines if line.startswith("pool-b"))
