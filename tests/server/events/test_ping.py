"""Ping over real sockets: what it sends, what it shows, and what it must not make possible."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ccp.errors import TooManyRequests
from ccp.server.access.rate_limits import RateLimits
from ccp.server.access.token_bucket import SharedTokenBucket
from ccp.server.settings import Settings
from ccp.server.storage.queries import webhooks
from ccp.testing.pki import PKI
from tests.scripted_server import Reply, scripted
from tests.server.events.receiver import HANG, Receiver, states
from tests.server.events.receiver import webhook as made_webhook
from tests.server.events.webhook_api import call, ok, subscribe
from tests.server.http.api.answers import sentences
from tests.waiting import wait_until
from tests.world import Pool, start

QUICK: dict[str, Any] = {
    "event_dispatch": True, "event_allow_http": True, "egress_allow_networks": ("127.0.0.0/8",), "event_timeout": 5,
    "event_pings_per_minute": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start({"iso2": pkis["iso2"]}, **QUICK) as running:
        yield running


def ping(pool: Pool, made: dict[str, Any], party: str = "oem") -> dict[str, Any]:
    answer: dict[str, Any] = ok(call(pool, party, "POST", f"/{made['id']}/ping"))
    return answer


@pytest.mark.parametrize("status", ["enabled", "disabled"])
def test_ping_sends_a_signed_test_event_now(pool: Pool, receiver: Receiver, status: str) -> None:
    made = subscribe(pool, url=f"{receiver.url}/ping/{status}", status=status)
    shown = ping(pool, made)
    assert {**shown, "durationMs": 0} == {
        "eventId": shown["eventId"],
        "delivered": True,
        "status": 200,
        "durationMs": 0,
        "error": None,
        "previousSecret": False,
    }
    assert 0 < shown["durationMs"] < 5000
    (sent,) = receiver.asked(f"/ping/{status}")
    assert sent.is_signed(made["secret"])
    assert sent.event == {
        "timestamp": sent.event["timestamp"],
        "eventId": shown["eventId"],
        "eventType": "webhook.ping",
        "payload": {"endpointId": made["id"]},
    }
    assert ok(call(pool, "oem", "GET", f"/{made['id']}/deliveries"))["deliveries"] == []
    trail = [json.loads(s) for (s,) in pool.sql("select subject from audit where action = 'webhook.pinged'")]
    expected = {"endpoint": made["id"], "party": "oem", "event_id": shown["eventId"], "status": 200}
    assert expected in trail


def test_ping_shows_a_refusal_without_the_body(pool: Pool) -> None:
    with scripted() as server:
        server.on("/refusing", Reply(418, b"a secret of the host", {"Content-Type": "text/plain"}))
        made = subscribe(pool, url=f"{server.url}/refusing")
        answer = call(pool, "oem", "POST", f"/{made['id']}/ping")
    assert answer.json() == {
        **answer.json(),
        "delivered": False,
        "status": 418,
        "error": "127.0.0.1 answered 418.",
    }
    assert "secret of the host" not in answer.text


def test_ping_does_not_follow_redirects(pool: Pool, receiver: Receiver) -> None:
    receiver.says("/moved", 302)
    shown = ping(pool, subscribe(pool, url=receiver.url + "/moved"))
    assert (shown["status"], shown["delivered"]) == (302, False)
    assert len(receiver.asked("/moved")) == 1


def test_ping_ends_after_the_timeout(pkis: dict[str, PKI], receiver: Receiver) -> None:
    receiver.says("/hanging", HANG)
    with start({}, **{**QUICK, "event_timeout": 0.3}) as pool:
        shown = ping(pool, subscribe(pool, url=receiver.url + "/hanging"))
    assert (shown["status"], shown["error"]) == (None, "127.0.0.1 did not answer within 0.3 s.")
    assert 300 <= shown["durationMs"] < 3000


def test_ping_tells_nothing_of_private_addresses(receiver: Receiver) -> None:
    """An address that was allowed once, or that a name resolves to only now: the same sentence for open and closed."""
    with start({}, **{**QUICK, "egress_allow_networks": ()}) as pool:
        answers = []
        for url in (receiver.url + "/private", "http://127.0.0.1:1/closed", "http://127.0.0.1:1/closed"):
            hook = made_webhook(url)
            pool.change(webhooks.put(hook))
            answers.append(ping(pool, {"id": hook.id}))
    assert {(each["status"], each["error"]) for each in answers} == {(None, "127.0.0.1 cannot be reached.")}
    assert receiver.asked("/private") == []


def test_ping_is_for_the_owner_only(pool: Pool, receiver: Receiver) -> None:
    made = subscribe(pool, url=receiver.url + "/owner")
    for party in ("other_oem", "emsp"):
        refused = call(pool, party, "POST", f"/{made['id']}/ping")
        assert sentences(refused, 404) == ["There is no endpoint with this id."]
    assert receiver.asked("/owner") == []


def test_ping_is_limited_per_party_and_minute(receiver: Receiver) -> None:
    with start({}, **{**QUICK, "event_pings_per_minute": 3}) as pool:
        made, another = (subscribe(pool, url=f"{receiver.url}/limited/{number}") for number in range(2))
        others = subscribe(pool, "emsp", "root.cert.added", url=receiver.url + "/limited/emsp")
        for hook in (made, another, made):
            ping(pool, hook)
        refused = call(pool, "oem", "POST", f"/{another['id']}/ping")
        assert sentences(refused, 429) == ["Too many pings of this party."]
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        ping(pool, others, "emsp")
    assert len([sent for sent in receiver.received if sent.path.startswith("/limited/")]) == 4


def test_ping_limit_is_shared_by_the_workers_of_a_machine(tmp_path: Path) -> None:
    SharedTokenBucket.prepare(tmp_path / "limits")
    config = Settings(event_pings_per_minute=2, rate_limit_file=tmp_path / "limits")
    one, other = RateLimits(config), RateLimits(config)
    one.check_ping("oem")
    other.check_ping("oem")
    for worker in (one, other):
        with pytest.raises(TooManyRequests):
            worker.check_ping("oem")
        worker.check_ping("emsp")


def test_ping_of_a_party_is_one_at_a_time(pool: Pool, receiver: Receiver) -> None:
    receiver.says("/one", HANG)
    made = subscribe(pool, url=receiver.url + "/one")
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(ping, pool, made)
        receiver.wait("/one", 1)
        refused = call(pool, "oem", "POST", f"/{made['id']}/ping")
        assert sentences(refused, 429) == ["Another ping of this party is under way."]
        assert first.result()["error"] == "127.0.0.1 did not answer within 5 s."
    assert len(receiver.asked("/one")) == 1


def test_ping_that_hangs_delays_no_delivery(pool: Pool, receiver: Receiver) -> None:
    receiver.says("/stuck", HANG)
    stuck = subscribe(pool, url=receiver.url + "/stuck", status="disabled")
    hooks = [subscribe(pool, url=f"{receiver.url}/flowing/{number}") for number in range(2)]
    with ThreadPoolExecutor(1) as thread:
        hanging = thread.submit(ping, pool, stuck)
        receiver.wait("/stuck", 1)
        before = time.monotonic()
        pool.publish(pool.car())
        for hook in hooks:
            wait_until(lambda hook=hook: states(pool.settings.database, hook["id"]) == [("delivered", 1, 200)])  # type: ignore[misc]
        assert not hanging.done(), f"the deliveries took {time.monotonic() - before} s"
        assert hanging.result()["status"] is None
