"""Addressed requests, every operation except a vehicle's: real pools on loopback, and scripted peers that misbehave."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from ccp import exi
from ccp.ids import EMAID, PCID
from ccp.server.domain.parties import PartyRole
from ccp.server.storage.queries import peers
from ccp.server.storage.queries.peers import Peer
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.scripted_server import DROP, HANG, TRACE_ID, Reply, Scripted, error, json_reply, nowhere, scripted
from tests.server.http.api.answers import sentences
from tests.server.pool.peers.requests import to, until_known
from tests.world import AT, SESSION, Contract, Pool, new_emaid, new_pcid, party, response_bytes, start

SECONDS = 1.5
OPERATIONS = ("publish", "by emaid", "by pcid", "fetch", "set default", "withdraw")
CHANGING = ("publish", "set default", "withdraw")
PARTY = {"publish": "far_cps", "by emaid": "far_emsp", "withdraw": "far_emsp"}
FROM = {
    "publish": {"opnc-from-party-type": "cps"},
    "by emaid": {"opnc-from-party-type": "emsp", "opnc-from-party-id": "NLEXF"},
    "by pcid": {"opnc-from-party-type": "oem", "opnc-from-party-id": "WFX"},
}
FROM |= {"fetch": FROM["by pcid"], "set default": FROM["by pcid"], "withdraw": FROM["by emaid"]}

# Partners of pool-a, and pool-a as the others have registered it: for these partners it may act.
FAR = [
    party("far_emsp", PartyRole.EMSP, providers="NLEXF"),
    party("far_cps", PartyRole.CPS, providers="NLEXF"),
    party("far_oem", PartyRole.OEM, wmis="WFX"),
]
GATEWAY = party("gateway", PartyRole.CCP, PartyRole.EMSP, PartyRole.OEM, providers="NLEXF", wmis="WFX")


@dataclass(frozen=True)
class Request:
    party: str
    method: str
    path: str
    options: dict[str, Any]

    def send(self, pool: Pool, caller: str | None = None, **headers: str) -> httpx.Response:
        client = pool.client(caller or self.party)
        return client.request(self.method, self.path, headers=headers, **self.options)


def request(operation: str, emaid: EMAID, pcid: PCID, body: dict[str, Any] | None = None) -> Request:
    method, path, options = {
        "publish": ("PUT", "/signedcontractdata", {"json": body or {}}),
        "by emaid": ("GET", f"/contractData/emaid/{emaid}", {}),
        "by pcid": ("GET", f"/contractData/pcid/{pcid}", {}),
        "fetch": ("GET", f"/signedcontractdata/{emaid}/{pcid}", {"params": {"sessionID": SESSION.hex()}}),
        "set default": ("POST", f"/signedcontractdata/{emaid}/{pcid}/setdefault", {}),
        "withdraw": ("DELETE", f"/signedcontractdata/{emaid}", {}),
    }[operation]
    return Request(PARTY.get(operation, "far_oem"), method, path, options)


def car_of(pool: Pool) -> Car:
    return pool.car(wmi="WFX")


def contract_of(pool: Pool, car: Car) -> Contract:
    return pool.contract(car, new_emaid("NLEXF"))


# --- Three real pools ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pools(pkis: dict[str, PKI]) -> Iterator[dict[str, Pool]]:
    """pool-a calls pool-b (OPNC) and pool-c (OPCP) as acting for others, and pool-d with the pool role only."""
    with ExitStack() as stack:
        here = stack.enter_context(start(pkis, FAR, pool_id="pool-a"))
        found = {"pool-a": here}
        for name, dialect, caller in (
            ("pool-b", "opnc", "gateway"),
            ("pool-c", "opcp", "gateway"),
            ("pool-d", "opnc", "peer"),
        ):
            there = stack.enter_context(start(pkis, [GATEWAY], pool_id=name))
            secret = there.world.member(caller).secret
            here.change(peers.add(Peer(name, there.base_url, dialect, caller, secret), AT))
            found[name] = there
        found["pool-b"].change(peers.add(Peer("onward", nowhere(), token="t"), AT))
        until_known(here, "pool-d")
        until_known(found["pool-b"], "onward")
        yield found


@pytest.mark.parametrize("name", ["pool-b", "pool-c"])
def test_addressed_request_is_executed_by_the_target_pool(pools: dict[str, Pool], name: str) -> None:
    here, there = pools["pool-a"], pools[name]
    car = car_of(here)
    first, second = contract_of(here, car), contract_of(here, car)

    def call(operation: str, contract: Contract) -> httpx.Response:
        answer = request(operation, contract.emaid, car.pcid, contract.body).send(here, **to(name))
        assert answer.is_success, answer.text
        return answer

    for contract in (first, second):
        assert call("publish", contract).status_code == 201
        assert (here.stored(contract.emaid), there.stored(contract.emaid)) == (0, 1)

    (reported,) = call("by emaid", first).json()["contractDataCollection"]
    assert (reported["emaid"], reported["pcid"], reported["defaultContract"]) == (first.emaid, car.pcid, True)
    assert base64.b64decode(reported["contractCertificate"]) == first.certificate
    # As its own callers see it.
    own = request("by emaid", first.emaid, car.pcid).send(there, "gateway").json()["contractDataCollection"][0]
    assert reported == own

    call("set default", second)
    items = call("by pcid", first).json()["contractDataCollection"]
    assert {item["emaid"]: item["defaultContract"] for item in items} == {first.emaid: False, second.emaid: True}

    (item,) = call("fetch", second).json()["signedContractDataCollection"]
    assert car.install(response_bytes(item), SESSION, AT)[0] == second.emaid
    assert (
        item
        == request("fetch", second.emaid, car.pcid).send(there, "gateway").json()["signedContractDataCollection"][0]
    )

    assert call("withdraw", first).content == b""
    assert there.stored(first.emaid) == 0
    assert sentences(request("by emaid", first.emaid, car.pcid).send(here, **to(name)), 404)


@pytest.mark.parametrize("name", ["pool-b", "pool-c"])
def test_addressed_publication_of_xml_is_passed_on_as_exi(pools: dict[str, Pool], name: str) -> None:
    here, there = pools["pool-a"], pools[name]
    car = car_of(here)
    contract = contract_of(here, car)
    document = base64.b64encode(exi.to_xml(exi.decode(contract.message))).decode()
    body = {**contract.body, "certificateInstallationRes": document}
    answer = request("publish", contract.emaid, car.pcid, body).send(here, **to(name))
    assert answer.status_code == 201, answer.text
    ((stored,),) = there.sql("select response from contract where emaid = ?", str(contract.emaid))
    assert bytes(stored) == contract.message
    wrong = {**body, "certificateInstallationRes": base64.b64encode(b"<x/>").decode()}
    answer = request("publish", contract.emaid, car.pcid, wrong).send(here, **to(name))
    assert "is none of the messages" in sentences(answer, 400)[1]


@pytest.mark.parametrize("name", ["pool-b", "pool-c"])
def test_addressed_fetch_returns_an_iso20_contract(pools: dict[str, Pool], name: str) -> None:
    here, there = pools["pool-a"], pools[name]
    car = here.car("iso20", wmi="WFX")
    contract = there.publish(car, new_emaid("NLEXF"))
    path = f"/signedcontractdata/{contract.emaid}/{car.pcid}"
    query = {"sessionID": SESSION.hex(), "xsdMsgDefNamespace": str(car.namespace)}
    answer = here.client("far_oem").get(path, params=query, headers=to(name))
    (item,) = answer.json()["signedContractDataCollection"]
    assert car.install(response_bytes(item), SESSION, AT)[0] == contract.emaid


@pytest.mark.parametrize("name", ["pool-b", "pool-c"])
def test_addressed_request_in_the_opcp_dialect_is_forwarded(pools: dict[str, Pool], name: str) -> None:
    here, there = pools["pool-a"], pools[name]
    car = car_of(here)
    first, second = contract_of(here, car), contract_of(here, car)

    def call(who: str, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {here.token(who)}", **to(name)}
        answer = here.http.request(method, f"/v1/ccp{path}", headers=headers, **options)
        assert answer.is_success, answer.text
        return answer

    for contract in (first, second):
        call("far_cps", "PUT", "/signedContractData", json=contract.body)
        assert (here.stored(contract.emaid), there.stored(contract.emaid)) == (0, 1)
    call("far_oem", "POST", f"/signedContractData/{car.pcid}/{second.emaid}/default")
    listed = call("far_oem", "GET", f"/signedContractData/{car.pcid}").json()["XMLContracts"]
    assert {item["emaid"]: item["priority"] for item in listed} == {first.emaid: 2, second.emaid: 1}
    (found,) = call("far_emsp", "GET", f"/lookupContract/{first.emaid}").json()["XMLContracts"]
    assert (found["emaid"], found["priority"]) == (first.emaid, 2)
    path = f"/provideSignedContractData/{second.emaid}/{car.pcid}?sessionID={SESSION.hex()}"
    assert car.install(response_bytes(call("far_oem", "GET", path).json()), SESSION, AT)[0] == second.emaid
    call("far_emsp", "DELETE", f"/signedContractData/{second.emaid}")
    assert there.stored(second.emaid) == 0


@pytest.mark.parametrize("operation", OPERATIONS)
def test_peer_with_the_pool_role_alone_may_only_deliver(pools: dict[str, Pool], operation: str) -> None:
    here, there = pools["pool-a"], pools["pool-d"]
    car = car_of(here)
    contract = contract_of(here, car)
    answer = request(operation, contract.emaid, car.pcid, contract.body).send(here, **to("pool-d"))
    (sentence,) = sentences(answer, 403)
    assert " is for the role " in sentence
    assert there.stored(contract.emaid) == 0


@pytest.mark.parametrize("operation", OPERATIONS)
def test_peer_acting_for_a_party_has_only_its_rights(pools: dict[str, Pool], operation: str) -> None:
    here, there = pools["pool-a"], pools["pool-b"]
    car = there.car()
    contract = there.publish(car)
    # The party may do it at pool-a; pool-a may not do it at pool-b.
    who = {"far_cps": "cps", "far_emsp": "emsp", "far_oem": "oem"}[request(operation, contract.emaid, car.pcid).party]
    answer = request(operation, contract.emaid, car.pcid, contract.body).send(here, who, **to("pool-b"))
    (sentence,) = sentences(answer, 403)
    assert sentence.endswith("is not registered for the caller.")
    assert there.stored(contract.emaid) == 1


@pytest.mark.parametrize("operation", OPERATIONS)
def test_addressed_request_of_a_pool_is_not_forwarded_again(pools: dict[str, Pool], operation: str) -> None:
    pool, car = pools["pool-b"], car_of(pools["pool-b"])
    contract = contract_of(pool, car)
    asked = request(operation, contract.emaid, car.pcid, contract.body)
    reported = sentences(asked.send(pool, "gateway", **to("onward")), 400 if operation == "set default" else 404)
    assert reported == ["A request of another pool is not passed on."]


def test_dry_run_is_not_forwarded(pools: dict[str, Pool]) -> None:
    here, there = pools["pool-a"], pools["pool-b"]
    contract = contract_of(here, car_of(here))
    answer = here.client("far_cps").put(
        "/signedcontractdata", params={"dryRun": "true"}, json=contract.body, headers=to("pool-b")
    )
    assert sentences(answer, 400)[0].startswith("dryRun : ")
    assert there.stored(contract.emaid) == 0


def test_addressed_publication_error_has_the_target_pools_messages(pools: dict[str, Pool]) -> None:
    here = pools["pool-a"]
    car = car_of(here)
    contract = contract_of(here, car)
    broken = {**contract.body, "emaid": new_emaid("NLEXF")}
    asked = request("publish", contract.emaid, car.pcid, broken)
    assert sentences(asked.send(here, **to("pool-b")), 400) == sentences(asked.send(here), 400)
    unreadable = request("publish", contract.emaid, car.pcid, {**contract.body, "certificateInstallationRes": "A"})
    assert sentences(unreadable.send(here, **to("pool-b")), 400) == sentences(unreadable.send(here), 400)


def test_addressed_request_for_roots_is_refused(pools: dict[str, Pool]) -> None:
    here = pools["pool-a"]
    headers = {"Authorization": f"Bearer {here.token('cpo')}"}
    assert here.http.get("/v1/root/rootCerts", headers=headers | to("pool-a")).status_code == 200
    assert sentences(here.http.get("/v1/root/rootCerts", headers=headers | to("pool-b")), 404)


# --- A peer that does as it is told ----------------------------------------------------------------------------------


class Other:
    """A pool with one scripted peer."""

    def __init__(self, pool: Pool, peer: Scripted) -> None:
        self.pool, self.peer = pool, peer
        self.car = car_of(pool)
        self.contract = contract_of(pool, self.car)

    def ask(self, operation: str, *replies: Reply, caller: str | None = None, **headers: str) -> httpx.Response:
        """Send a request; the peer answers with `reply` on any path."""
        asked = request(operation, self.contract.emaid, self.car.pcid, self.contract.body)
        self.peer.received.clear()
        self.peer.on("/opnc/v1/ccp" + asked.path, *replies)
        return asked.send(self.pool, caller, **to("other"), **headers)

    def recover(self) -> None:
        """Let the peer answer each caller successfully, which closes all circuits."""
        for operation in ("by pcid", "by emaid", "publish"):
            sentences(self.ask(operation, error(404)), 404)
        self.peer.received.clear()


@pytest.fixture(scope="module")
def other(pkis: dict[str, PKI]) -> Iterator[Other]:
    with (
        scripted() as peer,
        start(pkis, [*FAR, GATEWAY_HERE], pool_id="pool-x", peer_request_timeout=SECONDS) as pool,
    ):
        pool.change(peers.add(Peer("other", peer.url, token="t"), AT))
        until_known(pool, "other")
        yield Other(pool, peer)


GATEWAY_HERE = party("gateway", PartyRole.CCP, PartyRole.EMSP, PartyRole.OEM, providers="NLEXG", wmis="WGX")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_addressed_request_has_routing_and_hop_headers(other: Other, operation: str) -> None:
    sentences(other.ask(operation, error(403)), 403)
    (received,) = other.peer.received
    reported = {name: value for name, value in received.headers.items() if name.startswith(("opnc", "x-ccp"))}
    wanted = {"opnc-to-party-type": "ccp", "opnc-to-party-id": "other", "x-ccp-hop": "pool-x"}
    assert reported == wanted | FROM[operation]
    assert received.headers["authorization"] == "Bearer t"
    if operation == "publish":
        statement = {"OPNC-from-party-type": "cps", "OPNC-from-party-id": "0" * 64}
        sentences(other.ask(operation, error(403), **statement), 403)
        assert other.peer.received[0].headers["opnc-from-party-id"] == "0" * 64


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 422])
def test_addressed_request_error_keeps_the_peers_messages(other: Other, operation: str, status: int) -> None:
    answer = other.ask(operation, error(status, "First.", "Second."))
    here = status if status in (403, 404) else 400
    assert sentences(answer, 400 if (operation, here) == ("set default", 404) else here) == ["First.", "Second."]
    assert len(other.peer.received) == 1
    assert answer.json()["traceId"] != TRACE_ID


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("reply", "status", "sentence", "after"),
    [
        (error(503, "Not now.", Retry_After="7"), 503, "Not now.", "7"),
        (error(503, "Not now.", Retry_After="999999"), 503, "Not now.", "3600"),
        (error(429, "Too often.", Retry_After="9"), 503, "The pool other is asked too often just now.", "9"),
        (error(502, "The PKI failed."), 502, "The PKI failed.", None),
        (error(401), 502, "The pool other does not take this pool's credentials.", None),
    ],
)
def test_addressed_request_peer_failures_are_translated(
    other: Other, operation: str, reply: Reply, status: int, sentence: str, after: str | None
) -> None:
    answer = other.ask(operation, reply)
    assert sentences(answer, status) == [sentence]
    assert answer.headers.get("retry-after") == after
    assert len(other.peer.received) == 1


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "reply",
    [HANG, DROP, error(500), Reply(503, b"<html>"), Reply(302, headers={"Location": "http://127.0.0.1:9/"})],
    ids=["hangs", "drops", "500", "a proxy's 503", "redirects"],
)
def test_addressed_request_to_a_failing_peer_is_503_without_retry(other: Other, operation: str, reply: Reply) -> None:
    other.recover()
    began = time.monotonic()
    answer = other.ask(operation, reply)
    assert time.monotonic() - began < SECONDS + 4  # And not ten seconds, which is the default.
    reported = sentences(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1
    assert len(other.peer.received) == 1
    assert any("is not known" in sentence for sentence in reported) is (operation in CHANGING)


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one not in CHANGING])
@pytest.mark.parametrize("reply", [Reply(200, b"<html>"), json_reply({}), json_reply([])])
def test_addressed_request_malformed_answer_is_503(other: Other, operation: str, reply: Reply) -> None:
    other.recover()
    sentences(other.ask(operation, reply), 503)


@pytest.mark.parametrize("operation", ["publish", "fetch"])
def test_addressed_request_repeated_failures_open_the_circuit(other: Other, operation: str) -> None:
    other.recover()
    for _ in range(3):
        sentences(other.ask(operation, DROP), 503)
        assert len(other.peer.received) == 1
    answer = other.ask(operation, error(404))
    assert sentences(answer, 503) == ["The pool other has not answered lately; try again later."]
    assert 1 <= int(answer.headers["retry-after"]) <= 15
    assert not other.peer.received
    # Registered anew, it starts anew.
    other.pool.change(peers.disable("other"))
    _until(lambda: other.ask("by pcid", error(404)).json()["errorMessages"][0].startswith("No pool"))
    other.pool.sql("update peer set enabled = true where party_id = 'other'")
    other.pool.sql("update change_count set number = number + 1 where topic = 'peers'")
    until_known(other.pool, "other")


def test_addressed_request_client_errors_keep_the_circuit_closed(other: Other) -> None:
    other.recover()
    for _ in range(5):
        sentences(other.ask("publish", error(503, "Evidence cannot be had now.")), 503)
        assert len(other.peer.received) == 1


@pytest.mark.parametrize("operation", OPERATIONS)
def test_addressed_request_without_local_authorization_is_not_sent(other: Other, operation: str) -> None:
    other.recover()
    stranger = {"far_cps": "small_cps", "far_emsp": "emsp", "far_oem": "oem"}
    asked = request(operation, other.contract.emaid, other.car.pcid)
    (sentence,) = sentences(other.ask(operation, error(404), caller=stranger[asked.party]), 403)
    assert sentence.endswith("is not registered for the caller.")
    assert " is for the role " in sentences(other.ask(operation, error(404), caller="cpo"), 403)[0]
    lied = other.ask(operation, error(404), **{"OPNC-from-party-type": "cpo"})
    assert sentences(lied, 403)
    assert not other.peer.received


@pytest.mark.parametrize("operation", OPERATIONS)
def test_addressed_request_of_a_pool_is_not_sent(other: Other, operation: str) -> None:
    other.recover()
    status = 400 if operation == "set default" else 404
    # By its role, and, where a pool is registered as something else, by the header.
    for caller, headers in (("gateway", {}), (None, {"X-CCP-Hop": "pool-z"})):
        answer = other.ask(operation, error(404), caller=caller, **headers)
        assert sentences(answer, status) == ["A request of another pool is not passed on."]
    assert not other.peer.received


# --- What is handed on -----------------------------------------------------------------------------------------------


def test_addressed_fetch_answer_must_match_the_request(other: Other) -> None:
    pool, car, contract = other.pool, other.car, other.contract
    another = contract_of(pool, car)
    message = exi.replace_header_fields(contract.message, session_id=SESSION)

    def item(data: bytes = message, **members: Any) -> Reply:
        reported = {**contract.body, "certificateInstallationRes": base64.b64encode(data).decode(), **members}
        return json_reply({"signedContractDataCollection": [reported]})

    changed = bytearray(message)
    changed[len(changed) // 2] ^= 1
    stranger = pool.contract(car, contract.emaid, signer="stranger")
    lies = {
        "nothing": json_reply({"signedContractDataCollection": []}),
        "another session": item(contract.message),
        "another contract": item(exi.replace_header_fields(another.message, session_id=SESSION), emaid=another.emaid),
        "another contract under the name": item(exi.replace_header_fields(another.message, session_id=SESSION)),
        "another vehicle": item(pcid=str(new_pcid("WFX"))),
        "another edition": item(xsdMsgDefNamespace="urn:iso:15118:20:2020:MsgDef"),
        "no message": item(b"\x80\x98\0"),
        "a vehicle's request": item(car.request(SESSION, AT)),
    }
    distrusted = {
        "untrusted roots": item(exi.replace_header_fields(stranger.message, session_id=SESSION)),
    }
    for what, reply in {**lies, **distrusted}.items():
        other.recover()
        answer = other.ask("fetch", reply)
        assert answer.status_code == (502 if what in distrusted else 503), (what, answer.text)
    other.recover()
    assert other.ask("fetch", item(bytes(changed))).status_code in (502, 503)
    other.recover()
    (handed,) = other.ask("fetch", item()).json()["signedContractDataCollection"]
    assert car.install(response_bytes(handed), SESSION, AT)[0] == contract.emaid


def test_addressed_query_answer_must_match_the_request(other: Other) -> None:
    state = {
        "pcid": str(other.car.pcid),
        "emaid": str(other.contract.emaid),
        "xsdMsgDefNamespace": "urn:iso:15118:2:2013:MsgDef",
        "contractCertificate": base64.b64encode(other.contract.certificate).decode(),
        "defaultContract": True,
        "certValidFrom": "2026-01-01T00:00:00Z",
        "certValidTo": "2028-01-01T00:00:00Z",
        "undeliverable": "It is revoked.",
    }
    for operation, wrong in (("by emaid", {"emaid": "NLEXFT99999999"}), ("by pcid", {"pcid": "WFX0TEST999999999"})):
        for reply in (
            json_reply({"contractDataCollection": [state, {**state, **wrong}]}),
            json_reply({"contractDataCollection": [{**state, "xsdMsgDefNamespace": "urn:iso:15118:20:2020:MsgDef"}]}),
            json_reply({"contractDataCollection": []}),
        ):
            other.recover()
            sentences(other.ask(operation, reply), 503)
        other.recover()
        answer = other.ask(operation, json_reply({"contractDataCollection": [state]}))
        shown = state if operation == "by emaid" else {k: v for k, v in state.items() if k != "undeliverable"}
        assert answer.json() == {"contractDataCollection": [shown]}


def test_peer_token_endpoint_at_a_wrong_address_is_an_error(pkis: dict[str, PKI]) -> None:
    with scripted() as peer, start(pkis, FAR, pool_id="pool-x") as pool:
        peer.on("/oauth/token", error(404, "No contract for the given PCID found."))
        pool.change(peers.add(Peer("other", peer.url, "opnc", "us", "secret"), AT))
        until_known(pool, "other")
        car = car_of(pool)
        sentences(request("by pcid", new_emaid("NLEXF"), car.pcid).send(pool, **to("other")), 503)


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
