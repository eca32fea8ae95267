"""The published statuses of every operation, in both dialects.

The tables in docs/conformance-opnc.md and docs/conformance-opcp.md refer to these tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from ccp.server.domain.parties import PartyRole
from ccp.server.http import query_parameters
from ccp.server.http.routes.opnc import BASE
from ccp.server.storage.queries import peers
from ccp.server.storage.queries.peers import Peer
from ccp.testing.pki import PKI
from tests.scripted_server import Scripted, error, scripted
from tests.server.events.webhook_api import CREATED, URL
from tests.server.http.api.answers import sentences
from tests.server.pool.peers.requests import to, until_known
from tests.world import AT, ISO2, SESSION, Pool, new_emaid, new_pcid, party, post_body, start

EVENTS = "/opnc/v1/event/endpoints"
OPCP_WEBHOOKS = "/v1/webhook/endpoints"
WEBHOOK = {"url": URL, "enabledEvents": [CREATED]}


@dataclass(frozen=True)
class Operation:
    """An operation, by the party that may call it."""

    name: str
    party: str
    method: str
    path: str

    @property
    def is_routed(self) -> bool:
        """Whether it reads the OPNC headers."""
        return not self.path.startswith(OPCP_WEBHOOKS)

    def url(self, **ids: str) -> str:
        return self.path.format(**ids)


CONTRACTS = [
    Operation("opnc by emaid", "emsp", "GET", BASE + "/contractData/emaid/{emaid}"),
    Operation("opnc by pcid", "oem", "GET", BASE + "/contractData/pcid/{pcid}"),
    Operation("opnc deliver", "cpo", "POST", BASE + "/signedcontractdata"),
    Operation("opnc publish", "cps", "PUT", BASE + "/signedcontractdata"),
    Operation("opnc fetch", "oem", "GET", BASE + "/signedcontractdata/{emaid}/{pcid}"),
    Operation("opnc set default", "oem", "POST", BASE + "/signedcontractdata/{emaid}/{pcid}/setdefault"),
    Operation("opnc withdraw", "emsp", "DELETE", BASE + "/signedcontractdata/{emaid}"),
    Operation("opcp look up", "emsp", "GET", "/v1/ccp/lookupContract/{emaid}"),
    Operation("opcp list", "oem", "GET", "/v1/ccp/signedContractData/{pcid}"),
    Operation("opcp deliver", "cpo", "POST", "/v1/ccp/signedContractData"),
    Operation("opcp publish", "cps", "PUT", "/v1/ccp/signedContractData"),
    Operation("opcp provide", "oem", "GET", "/v1/ccp/provideSignedContractData/{emaid}/{pcid}"),
    Operation("opcp set default", "oem", "POST", "/v1/ccp/signedContractData/{pcid}/{emaid}/default"),
    Operation("opcp withdraw", "emsp", "DELETE", "/v1/ccp/signedContractData/{emaid}"),
]
ROOTS = [
    Operation("opcp roots", "cpo", "GET", "/v1/root/rootCerts"),
    Operation("opcp root", "cpo", "GET", "/v1/root/rootCerts/{root}"),
    Operation("opcp trust list", "cpo", "GET", "/v1/root/ctl"),
]
WEBHOOKS = [
    Operation("opnc add webhook", "oem", "POST", EVENTS),
    Operation("opnc list webhooks", "oem", "GET", EVENTS),
    Operation("opnc webhook", "oem", "GET", EVENTS + "/{webhook}"),
    Operation("opnc edit webhook", "oem", "PUT", EVENTS + "/{webhook}"),
    Operation("opnc remove webhook", "oem", "DELETE", EVENTS + "/{webhook}"),
    Operation("opcp add webhook", "oem", "POST", OPCP_WEBHOOKS),
    Operation("opcp list webhooks", "oem", "GET", OPCP_WEBHOOKS),
    Operation("opcp webhook", "oem", "GET", OPCP_WEBHOOKS + "/{webhook}"),
    Operation("opcp edit webhook", "oem", "PUT", OPCP_WEBHOOKS + "/{webhook}"),
    Operation("opcp remove webhook", "oem", "DELETE", OPCP_WEBHOOKS + "/{webhook}"),
]

OPERATIONS = [*CONTRACTS, *ROOTS, *WEBHOOKS]
every = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)
of_contracts = pytest.mark.parametrize("operation", CONTRACTS, ids=lambda one: one.name)


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool with a party that may call none of the operations but those of roots."""
    with start({"iso2": pkis["iso2"]}, [party("admin", PartyRole.ADMIN)]) as running:
        yield running


class Caller:
    """Calls an operation for a new car with a contract, and with a new webhook."""

    def __init__(self, pool: Pool, *, publish: bool = True) -> None:
        self.pool = pool
        self.car = pool.car()
        self.contract = pool.publish(self.car) if publish else pool.contract(self.car)
        self.ids = {"emaid": self.contract.emaid, "pcid": self.car.pcid, "webhook": "x", "root": "x"}

    def with_root(self) -> Caller:
        roots = self.send("cpo", "GET", "/v1/root/rootCerts").json()["RootCertificateCollection"]["rootCertificates"]
        self.ids["root"] = roots[0]["rootCertificateId"]
        return self

    def with_webhook(self) -> Caller:
        self.ids["webhook"] = self.send("oem", "POST", EVENTS, json=WEBHOOK).json()["id"]
        return self

    def body(self, operation: Operation) -> dict[str, Any]:
        if operation.name.endswith("deliver"):
            return {"json": post_body(self.car.request(SESSION, AT), ISO2)}
        if operation.name.endswith("publish"):
            return {"json": self.contract.body}
        if operation.name.endswith(("add webhook", "edit webhook")):
            return {"json": WEBHOOK}
        return {}

    def send(self, party: str | None, method: str, url: str, **options: Any) -> httpx.Response:
        headers = {**({"Authorization": f"Bearer {self.pool.token(party)}"} if party else {})}
        headers |= options.pop("headers", {})
        return self.pool.http.request(method, url, headers=headers, **options)

    def call(self, operation: Operation, party: str | None = "", **options: Any) -> httpx.Response:
        caller = operation.party if party == "" else party
        return self.send(caller, operation.method, operation.url(**self.ids), **{**self.body(operation), **options})


@every
def test_status_of_a_request_that_succeeds(pool: Pool, operation: Operation) -> None:
    answer = Caller(pool).with_root().with_webhook().call(operation)
    created = operation.name.endswith(("publish", "add webhook"))
    if operation.name == "opcp trust list":
        assert sentences(answer, 404)
    else:
        assert answer.status_code == (201 if created else 200), answer.text
        empty = operation.name.endswith(("publish", "withdraw", "set default", "remove webhook"))
        assert (answer.content == b"") == empty


@every
def test_status_400_is_for_a_wrong_request(pool: Pool, operation: Operation) -> None:
    caller = Caller(pool, publish=False)
    if operation.is_routed:
        assert sentences(caller.call(operation, headers={"OPNC-to-party-type": "nothing"}), 400)
    if not operation.name.endswith("deliver"):  # A vehicle's request has no query that could be wrong.
        assert sentences(caller.call(operation, params=[("a", "b")] * 51), 400)
    if operation in CONTRACTS:
        if operation.name.endswith(("deliver", "publish")):
            answers = [caller.call(operation, json={}), caller.call(operation, content=b"not JSON", json=None)]
        else:
            caller.ids |= {"emaid": "nothing", "pcid": "nothing"}
            answers = [caller.call(operation)]
        for answer in answers:
            assert sentences(answer, 400)
    if operation.name.endswith(("add webhook", "edit webhook")):
        assert sentences(caller.call(operation, json={"url": 5}), 400)


@every
def test_status_401_is_for_a_caller_without_a_token(pool: Pool, operation: Operation) -> None:
    caller = Caller(pool, publish=False)
    assert sentences(caller.call(operation, None), 401)
    assert sentences(caller.call(operation, None, headers={"Authorization": "Bearer nothing"}), 401)


@every
def test_status_403_is_for_a_caller_without_the_right(pool: Pool, operation: Operation) -> None:
    caller = Caller(pool, publish=False)
    if operation.is_routed:
        assert sentences(caller.call(operation, headers={"OPNC-from-party-type": "ccp"}), 403)
    if operation not in ROOTS:  # Roots are for every party.
        (sentence,) = sentences(caller.call(operation, "admin"), 403)
        assert " is for the role " in sentence


@every
def test_status_404_is_for_what_is_not_there(pool: Pool, operation: Operation) -> None:
    caller = Caller(pool, publish=False)
    # The published operations that choose a default know no 404.
    status = 400 if operation.name.endswith("set default") else 404
    if operation.is_routed:
        assert sentences(caller.call(operation, headers=to("nowhere")), status)
    if operation.name.endswith("deliver"):
        assert sentences(caller.call(operation, headers={"alwaysReturnEXI": "false"}), 404)
    elif re.search(r"\{\w+\}", operation.path):
        caller.ids |= {"emaid": new_emaid(), "pcid": new_pcid()}
        assert sentences(caller.call(operation), status)


@every
def test_status_500_is_for_a_mistake_of_the_pool(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, operation: Operation
) -> None:
    caller = Caller(pool, publish=False)
    pool.token(operation.party)

    def fail(scope: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(query_parameters, "check_routed", fail)  # On the path of every request.
    assert sentences(caller.call(operation), 500) == ["Something went wrong here; the trace id finds it in the log."]


@pytest.fixture(scope="module")
def beside(pkis: dict[str, PKI]) -> Iterator[tuple[Pool, Scripted]]:
    """A pool beside another one that does not take its credentials."""
    with scripted() as peer, start(pkis, pool_id="pool-x") as pool:
        pool.change(peers.add(Peer("other", peer.url, token="t"), AT))
        until_known(pool, "other")
        peer.default = error(401)  # type: ignore[misc]
        yield pool, peer


@of_contracts
def test_status_502_is_for_another_pool_that_cannot_do_it(beside: tuple[Pool, Scripted], operation: Operation) -> None:
    answer = Caller(beside[0], publish=False).call(operation, headers={**to("other"), "alwaysReturnEXI": "false"})
    # Of a pool that fails a vehicle's request gets no contract, because a station can do nothing with a 502.
    assert sentences(answer, 404 if operation.name.endswith("deliver") else 502)


@pytest.fixture(scope="module")
def silent(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool whose tables of contracts, claims and webhooks cannot be reached."""
    with start({"iso2": pkis["iso2"]}, log_level="error") as running:
        for caller in ("emsp", "cpo", "oem", "cps"):
            running.token(caller)
        for table in ("emaid_claim", "contract", "webhook"):
            running.sql(f"alter table {table} rename to elsewhere_{table}")
        yield running


@pytest.mark.parametrize("operation", ROOTS, ids=lambda one: one.name)
def test_roots_are_served_without_database_and_other_servers(silent: Pool, operation: Operation) -> None:
    """So their published 502 is never sent, and their 503 only under overload."""
    caller = Caller(silent, publish=False).with_root()
    assert caller.call(operation).status_code == (404 if operation.name == "opcp trust list" else 200)


@pytest.mark.parametrize("operation", [*CONTRACTS, *WEBHOOKS], ids=lambda one: one.name)
def test_status_503_is_for_a_database_that_does_not_answer(silent: Pool, operation: Operation) -> None:
    answer = Caller(silent, publish=False).call(operation, headers={"alwaysReturnEXI": "false"})
    (sentence,) = sentences(answer, 503)
    assert sentence.startswith("The database ")
    assert int(answer.headers["Retry-After"]) > 0
