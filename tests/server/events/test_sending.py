"""Dispatcher over real sockets: receivers that accept, refuse, fail or hang."""

from __future__ import annotations

import base64
import itertools
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ccp.server.domain.subscriptions import Webhook
from ccp.server.storage.queries import webhooks
from ccp.server.storage.queries.contracts import microseconds
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.background_rounds import wait_for_round, wait_until_loaded
from tests.databases import sql
from tests.scripted_server import HANG
from tests.server.events.dead_deliveries import replay_dead
from tests.server.events.receiver import Receiver, Sent, receiving, states, webhook
from tests.waiting import wait_until
from tests.world import ISO20, Contract, Pool, start

QUICK: dict[str, Any] = {
    "event_dispatch": True,
    "event_allow_http": True,
    "egress_allow_networks": ("127.0.0.0/8",),
    "event_timeout": 1.5,
    "event_retries": 2,
    "event_retry_delay": 0.3,
}
CREATED, UPDATED, DELETED = (f"oem.contract.{what}" for what in ("created", "updated", "deleted"))
EMSP = tuple(
    f"emsp.contract.{what}"
    for what in (
        "delivered.to.oem", "created.sent.to.oem", "updated.sent.to.oem", "deleted.sent.to.oem", "rejected.by.oem",
        "queued.to.oem",
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def sending(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool that sends events, tries again soon, and looks often for what other processes changed."""
    with start(pkis, refresh_interval=0.1, **QUICK) as running:
        yield running


@contextmanager
def registered(pool: Pool, url: str, client_id: str = "oem", *names: str, **more: object) -> Iterator[Webhook]:
    """A webhook that the pool knows of, for as long as the block lasts."""
    made = webhook(url, client_id, *names, **more)
    pool.change(webhooks.put(made))
    try:
        yield made
    finally:
        pool.change(webhooks.remove(made.id))


def withdraw(pool: Pool, contract: Contract) -> None:
    assert pool.emsp.delete(f"/signedcontractdata/{contract.emaid}").status_code == 200


def of(car: Car, sent: list[Sent]) -> list[Sent]:
    return [each for each in sent if each.pcid == car.pcid]


def never_more(receiver: Receiver, path: str, count: int, seconds: float = 1.0) -> None:
    time.sleep(seconds)  # Longer than the delay of a retry and two polls of the dispatcher.
    assert len(receiver.asked(path)) == count, [each.kind for each in receiver.asked(path)]


def test_dispatcher_notifies_the_oem_in_order_with_signatures(sending: Pool, receiver: Receiver) -> None:
    car = sending.car()
    before = datetime.now(UTC)
    with registered(sending, receiver.url + "/life") as hook:
        # One after the other: an event carries what its contract is when it is sent.
        contract = sending.publish(car)
        receiver.wait("/life", 1)
        changed = sending.publish(car, contract.emaid)
        receiver.wait("/life", 2)
        withdraw(sending, contract)
        sent = receiver.wait("/life", 3)
        wait_until(lambda: [s for s, *_ in states(sending.settings.database, hook.id)] == ["delivered"] * 3)
    assert [each.kind for each in sent] == [CREATED, UPDATED, DELETED]
    for each in sent:
        assert each.is_signed()
        assert not each.is_signed("another secret")
        assert each.headers["content-type"] == "application/json"
        assert set(each.event) == {"timestamp", "eventId", "eventType", "xsdMsgDefNamespace", "payload"}
        assert each.event["xsdMsgDefNamespace"] == car.namespace
        assert each.event["payload"].keys() >= {"emaid", "pcid"}
        assert each.event["payload"]["emaid"] == contract.emaid
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", each.event["eventId"])
        assert before.replace(microsecond=0) <= datetime.fromisoformat(each.event["timestamp"]) <= datetime.now(UTC)
        assert each.event["timestamp"].endswith("Z")
    assert len({each.event["eventId"] for each in sent}) == 3
    certificates = [base64.b64decode(each.event["payload"]["contractCert"]) for each in sent[:2]]
    assert certificates == [contract.certificate, changed.certificate]
    root = sending.pki().v2g_root.certificate
    assert sent[0].event["payload"]["cpsSignerRootCommonName"] == root.subject_cn
    assert sent[2].event["payload"] == {"emaid": contract.emaid, "pcid": car.pcid}


def test_dispatcher_sends_the_edition_of_each_contract(sending: Pool, receiver: Receiver) -> None:
    car = sending.car("iso20")
    with registered(sending, receiver.url + "/edition"):
        sending.publish(car)
        (sent,) = receiver.wait("/edition", 1)
    assert sent.event["xsdMsgDefNamespace"] == ISO20


def test_dispatcher_retries_the_same_bytes_in_order(sending: Pool, receiver: Receiver) -> None:
    receiver.says("/again", 500, 503, 200)
    car = sending.car()
    with registered(sending, receiver.url + "/again") as hook:
        contract = sending.publish(car)
        withdraw(sending, contract)
        sent = receiver.wait("/again", 4)
        wait_until(lambda: states(sending.settings.database, hook.id) == [("delivered", 3, 200), ("delivered", 1, 200)])
    assert [each.kind for each in sent] == [CREATED, CREATED, CREATED, DELETED]
    assert len({each.body for each in sent[:3]}) == 1
    assert all(each.is_signed() for each in sent)
    gaps = [after.at - before.at for before, after in itertools.pairwise(sent[:3])]
    assert all(gap >= 0.28 for gap in gaps), gaps


def test_dispatcher_gives_up_and_replays_dead_deliveries(sending: Pool, receiver: Receiver) -> None:
    receiver.says("/dead", 500, 404, 500, 200)
    car = sending.car()
    with registered(sending, receiver.url + "/dead") as hook:
        contract = sending.publish(car)
        withdraw(sending, contract)
        receiver.wait("/dead", 4)
        wait_until(lambda: states(sending.settings.database, hook.id) == [("dead", 3, 500), ("delivered", 1, 200)])
        never_more(receiver, "/dead", 4)
        assert sending.change(replay_dead(datetime.now(UTC), webhook_id=hook.id)) == 1
        sent = receiver.wait("/dead", 5)
        wait_until(lambda: states(sending.settings.database, hook.id) == [("delivered", 1, 200), ("delivered", 1, 200)])
    assert [each.kind for each in sent] == [CREATED, CREATED, CREATED, DELETED, CREATED]
    assert sent[4].body == sent[0].body


@pytest.mark.parametrize("status", [400, 409])
def test_dispatcher_does_not_retry_rejected_events(sending: Pool, receiver: Receiver, status: int) -> None:
    path, provider = f"/reject-{status}", f"/provider-{status}"
    receiver.says(path, status, 200)
    car = sending.car()
    with (
        registered(sending, receiver.url + path) as hook,
        registered(sending, receiver.url + provider, "emsp", *EMSP),
    ):
        wait_for_refresh()
        contract = sending.publish(car)
        (rejected,) = receiver.wait(provider, 1)
        assert states(sending.settings.database, hook.id) == [("dead", 1, status)]
        withdraw(sending, contract)
        sent = receiver.wait(provider, 2)
        never_more(receiver, path, 2, 0.5)
    assert [each.kind for each in sent] == ["emsp.contract.rejected.by.oem", "emsp.contract.deleted.sent.to.oem"]
    assert rejected.event["payload"].items() >= {"emaid": contract.emaid, "pcid": car.pcid}.items()
    assert rejected.event["xsdMsgDefNamespace"] == car.namespace
    assert all(each.is_signed() for each in sent)


def wait_for_refresh() -> None:
    """Until the pool knows of a new webhook: what is caused on a subscriber's account begins then."""
    wait_until_loaded("subscribers")


def test_dispatcher_notifies_the_provider_once_per_outcome(sending: Pool, receiver: Receiver) -> None:
    receiver.says("/queued", 503, 200)
    car = sending.car()
    with (
        registered(sending, receiver.url + "/queued"),
        registered(sending, receiver.url + "/well"),
        registered(sending, receiver.url + "/new", "emsp", *EMSP),
        registered(sending, receiver.url + "/old", "emsp", *(name.replace("emsp.", "mo.") for name in EMSP)),
        registered(sending, receiver.url + "/foreign", "other_emsp", *EMSP),
    ):
        wait_for_refresh()
        contract = sending.publish(car)
        receiver.wait("/queued", 2)
        receiver.wait("/new", 2)
        sending.publish(car, contract.emaid)
        new = receiver.wait("/new", 3)
        old = receiver.wait("/old", 3)
        never_more(receiver, "/new", 3, 0.7)
    # Which of the maker's webhooks answered first is their affair.
    assert sorted(each.kind for each in new[:2]) == [
        "emsp.contract.created.sent.to.oem", "emsp.contract.queued.to.oem",
    ]  # fmt: skip
    assert new[2].kind == "emsp.contract.updated.sent.to.oem"
    assert [each.kind for each in old] == [each.kind.replace("emsp.", "mo.") for each in new]
    assert receiver.asked("/foreign") == []


def test_dispatcher_notifies_the_provider_of_deliveries(sending: Pool, receiver: Receiver) -> None:
    car, other = sending.car(), sending.car("iso20")
    contract, second = sending.publish(car), sending.publish(other)
    with registered(sending, receiver.url + "/given", "emsp", "emsp.contract.delivered.to.oem"):
        wait_for_refresh()
        sending.ask(car)
        receiver.wait("/given", 1)
        sending.ask(other)
        receiver.wait("/given", 2)
        assert sending.signed(contract.emaid, car).status_code == 200
        sent = receiver.wait("/given", 3)
        assert sending.post(sending.car()).status_code == 200  # a car for which there is nothing
        never_more(receiver, "/given", 3, 0.7)
    assert {each.kind for each in sent} == {"emsp.contract.delivered.to.oem"}
    given = [(each.event["payload"], each.event["xsdMsgDefNamespace"]) for each in sent]
    assert [(payload["emaid"], payload["pcid"], namespace) for payload, namespace in given] == [
        (held.emaid, whose.pcid, whose.namespace) for held, whose in ((contract, car), (second, other), (contract, car))
    ]


def test_outbox_stays_empty_without_subscribers(sending: Pool) -> None:
    wait_for_refresh()
    car = sending.car()
    sending.publish(car)
    sending.ask(car)
    wait_until(lambda: sending.sql("select count(*) from outbox") == [(0,)])
    wait_for_round("delivered_events")
    wait_until(lambda: sending.sql("select count(*) from outbox") == [(0,)])
    assert sending.sql("select count(*) from delivery where pcid = ?", str(car.pcid)) == [(0,)]
    assert sending.sql("select rev from vehicle where pcid = ?", str(car.pcid)) == [(1,)]


def test_dispatcher_isolates_failing_webhooks(pkis: dict[str, PKI], tmp_path: Path) -> None:
    """Thirty that hang have more attempts on their way than one connection pool or thread pool would hold.

    A stopping server writes its batched outcomes and releases the deliveries in flight.
    """
    url = f"sqlite:///{tmp_path / 'ccp.db'}"
    options = {**QUICK, "event_timeout": 60, "event_retry_delay": 3600, "database": url}
    with receiving() as receiver, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        hanging = [webhook(f"{receiver.url}/hang-{number}") for number in range(30)]
        for number in range(30):
            receiver.on(f"/hang-{number}", HANG)
        others = [
            webhook(f"http://127.0.0.1:{closed.getsockname()[1]}/down"),
            webhook(receiver.url + "/ill"),
            webhook(receiver.url + "/healthy"),
            webhook(receiver.url + "/given", "emsp", "emsp.contract.delivered.to.oem"),
        ]
        receiver.says("/ill", 500)
        with start(pkis, refresh_interval=0.1, **options) as pool:
            for hook in (*hanging, *others):
                pool.change(webhooks.put(hook))
            wait_for_refresh()
            cars = [pool.car() for _ in range(6)]
            for car in cars:
                pool.publish(car)
            # Each of those that hang would take a minute for its first attempt already.
            assert {each.pcid for each in receiver.wait("/healthy", 6, timeout=20)} == {car.pcid for car in cars}
            wait_until(lambda: all(len(receiver.asked(f"/hang-{number}")) == 4 for number in range(30)), 20)
            assert pool.sql("select count(*) from delivery where attempts > 0 and webhook_id = ?", hanging[0].id) == [
                (4,)
            ], "the cap of each webhook"
            pool.ask(cars[0])
            began = time.monotonic()
        assert time.monotonic() - began < 10
        stopped = microseconds(datetime.now(UTC))
        assert states(url, hanging[0].id) == [("waiting", 0, None)] * 6
        assert sql(url, "select max(lease_until) from delivery where webhook_id = ?", hanging[0].id)[0][0] <= stopped
        kept = sql(
            url, "select kind from outbox union all select kind from delivery where webhook_id = ?", others[3].id
        )
        assert kept == [("emsp.contract.delivered.to.oem",)]


def test_dispatcher_never_calls_private_addresses(
    pkis: dict[str, PKI],
) -> None:
    options = {
        **QUICK, "egress_allow_networks": (), "event_concurrency": 1, "event_retry_delay": 600, "event_max_age": 0.7,
    }  # fmt: skip
    with start(pkis, **options) as pool, receiving() as receiver:
        port = receiver.url.rpartition(":")[2]
        hooks = [webhook(receiver.url + "/private"), webhook(f"http://localhost:{port}/named")]
        for hook in hooks:
            pool.change(webhooks.put(hook))
        for _ in range(5):
            pool.publish(pool.car())
        for hook in hooks:
            wait_until(lambda hook=hook: [s for s, *_ in states(pool.settings.database, hook.id)] == ["dead"] * 5)  # type: ignore[misc]
            # The circuit opens after three failures; waiting deliveries have used no attempt.
            attempts = [count for _, count, _ in states(pool.settings.database, hook.id)]
            assert sum(attempts) == 3, attempts
        (error, *_) = pool.sql("select last_error from delivery where webhook_id = ? and attempts > 0", hooks[0].id)
        assert error == ("127.0.0.1 cannot be reached.",)
        assert receiver.received == []


def test_dispatcher_follows_no_redirect(sending: Pool, receiver: Receiver) -> None:
    receiver.says("/moved", 307)
    with registered(sending, receiver.url + "/moved") as hook:
        sending.publish(sending.car())
        wait_until(lambda: states(sending.settings.database, hook.id) == [("dead", 3, 307)])
    assert len(receiver.asked("/moved")) == 3


def test_dispatcher_pauses_disabled_webhooks_and_parties(sending: Pool, receiver: Receiver) -> None:
    receiver.says("/paused", 500, 200)
    car = sending.car()
    made = webhook(receiver.url + "/paused")
    sending.change(webhooks.put(made))
    try:
        sending.publish(car)
        receiver.wait("/paused", 1)
        sending.change(webhooks.put(webhook(made.url, id=made.id, enabled=False)))
        sending.publish(sending.car())
        never_more(receiver, "/paused", 1, 1.5)
        assert [state for state, *_ in states(sending.settings.database, made.id)] == ["waiting"]
        sending.change(webhooks.put(made))
        receiver.wait("/paused", 2)
    finally:
        sending.change(webhooks.remove(made.id))


def test_dispatcher_truncates_long_responses(
    sending: Pool,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def babble() -> None:
            peer, _ = listening.accept()
            with peer:
                peer.recv(65_536)
                with suppress(OSError):  # A client that has read enough disconnects.
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 200_000)
                    peer.recv(1)

        thread = threading.Thread(target=babble, daemon=True)
        thread.start()
        with registered(sending, f"http://127.0.0.1:{listening.getsockname()[1]}/") as hook:
            sending.publish(sending.car())
            wait_until(lambda: states(sending.settings.database, hook.id) == [("delivered", 1, 200)])
