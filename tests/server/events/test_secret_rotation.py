"""Rotation of a webhook's secret, with receivers that verify signatures in every published way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ccp.server.storage.queries import webhooks
from ccp.testing.pki import PKI
from tests.server.events.receiver import Receiver, states
from tests.server.events.verifiers import (
    Verifying,
    any_signature,
    go_style,
    hubject_signature,
    java_style,
    payload_signature,
)
from tests.server.events.webhook_api import call, ok, subscribe
from tests.server.http.api.answers import sentences
from tests.waiting import wait_until
from tests.world import Pool, start

QUICK: dict[str, Any] = {
    "event_dispatch": True, "event_allow_http": True, "egress_allow_networks": ("127.0.0.0/8",), "event_timeout": 5,
    "event_retries": 2, "event_retry_delay": 0.3, "event_secret_overlap": 3600, "event_pings_per_minute": 0,
}  # fmt: skip
STYLES = {
    "java": (java_style, "sha256"),
    "go": (go_style, "bare"),
    "payload-signature": (payload_signature, "bare"),
    "X-Hubject-Signature": (hubject_signature, "sha256"),
    "all": (any_signature, "sha256"),
    "all, bare": (any_signature, "bare"),
}


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start({"iso2": pkis["iso2"]}, **QUICK) as running:
        yield running


@pytest.fixture(autouse=True)
def forget(pool: Pool) -> Iterator[None]:
    yield
    for made in ok(call(pool, "oem", "GET")):
        assert call(pool, "oem", "DELETE", f"/{made['id']}").status_code == 200


def rotate(pool: Pool, made: dict[str, Any], **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = ok(call(pool, "oem", "POST", f"/{made['id']}/secret", json=body))
    return answer


def delivered(pool: Pool, made: dict[str, Any], count: int) -> None:
    wait_until(lambda: [state for state, *_ in states(pool.settings.database, made["id"])] == ["delivered"] * count)


def live(pool: Pool, made: dict[str, Any]) -> list[str]:
    shown: list[str] = ok(call(pool, "oem", "GET", f"/{made['id']}"))["previousSecretsValidUntil"]
    return shown


def expire(pool: Pool, made: dict[str, Any]) -> None:
    """Let the previous secrets have ended a moment ago."""
    stored = pool.change(webhooks.find(made["id"]))
    past = datetime.now(UTC) - timedelta(milliseconds=1)
    ended = tuple(replace(each, valid_until=past) for each in stored.previous_secrets)
    pool.change(webhooks.put(replace(stored, previous_secrets=ended)))
    ok(call(pool, "oem", "PUT", f"/{made['id']}", json={"url": made["url"]}))  # After it the pool reads webhooks again.


@pytest.mark.parametrize("style", STYLES)
def test_rotation_reaches_receivers_with_either_secret(pool: Pool, receiver: Receiver, style: str) -> None:
    verifier, signature_format = STYLES[style]
    path = f"/rotation/{len(style)}{verifier.__name__}"
    made = subscribe(pool, url=receiver.url + path, signatureFormat=signature_format)
    partner = Verifying(verifier, made["secret"])
    receiver.decides(path, partner)
    pool.publish(pool.car())
    delivered(pool, made, 1)

    before = datetime.now(UTC)
    new = rotate(pool, made)
    assert new["secret"] != made["secret"]
    (valid_until,) = [datetime.fromisoformat(each) for each in new["previousValidUntil"]]
    assert abs(valid_until - before - timedelta(seconds=3600)) < timedelta(seconds=5)
    pool.publish(pool.car())
    delivered(pool, made, 2)  # The partner still has the previous secret.

    partner.secret = new["secret"]
    pool.publish(pool.car())
    delivered(pool, made, 3)
    assert len(partner.accepted) == 3
    assert all(attempts == 1 for _, attempts, _ in states(pool.settings.database, made["id"]))
    # A receiver that looks among all signatures refuses nothing. Another one refuses one request of one event.
    assert len(partner.refused) == (0 if verifier is any_signature else 1)

    expire(pool, made)
    pool.publish(pool.car())
    delivered(pool, made, 4)
    assert not any_signature(partner.accepted[-1], made["secret"])
    assert any_signature(partner.accepted[-1], new["secret"])


@pytest.mark.parametrize("refusal", [400, 401, 403, 422, 500])
def test_rotation_loses_no_event_whatever_refuses_a_signature(pool: Pool, receiver: Receiver, refusal: int) -> None:
    path = f"/refusal/{refusal}"
    made = subscribe(pool, url=receiver.url + path)
    partner = Verifying(java_style, made["secret"], refusal)
    receiver.decides(path, partner)
    rotate(pool, made)
    pool.publish(pool.car())
    delivered(pool, made, 1)
    assert len(partner.refused) == 1


def test_rotation_ends_the_previous_secret_in_time(pool: Pool, receiver: Receiver) -> None:
    made = subscribe(pool, url=receiver.url + "/late")
    partner = Verifying(java_style, made["secret"])
    receiver.decides("/late", partner)
    rotate(pool, made)
    assert len(live(pool, made)) == 1
    expire(pool, made)
    assert live(pool, made) == []
    pool.publish(pool.car())
    wait_until(lambda: len(partner.refused) >= 3)  # An attempt and two retries, each with one request.
    wait_until(lambda: [row[::2] for row in states(pool.settings.database, made["id"])] == [("dead", 401)])
    assert not any(any_signature(sent, made["secret"]) for sent in partner.refused)


def test_rotation_twice_keeps_both_previous_secrets(pool: Pool, receiver: Receiver) -> None:
    made = subscribe(pool, url=receiver.url + "/twice")
    partner = Verifying(java_style, made["secret"])
    receiver.decides("/twice", partner)
    second, third = rotate(pool, made, overlap=60), rotate(pool, made)
    assert len(third["previousValidUntil"]) == 2
    assert third["previousValidUntil"] == live(pool, made)
    assert third["previousValidUntil"][1] == second["previousValidUntil"][0]
    for number, secret in enumerate((made["secret"], second["secret"], third["secret"]), 1):
        partner.secret = secret
        pool.publish(pool.car())
        delivered(pool, made, number)
        assert len(partner.accepted[-1].headers["x-operator-signatures"].split(", ")) == 3

    (sentence,) = sentences(call(pool, "oem", "POST", f"/{made['id']}/secret"), 400)
    assert sentence == (
        f"2 previous secrets are still valid, one until {second['previousValidUntil'][0]}. "
        "Rotate after that, or with overlap 0, which ends them at once."
    )
    last = rotate(pool, made, overlap=0)
    assert last["previousValidUntil"] == live(pool, made) == []
    partner.secret = last["secret"]
    pool.publish(pool.car())
    delivered(pool, made, 4)
    assert partner.accepted[-1].headers["x-operator-signatures"] == partner.accepted[-1].headers["x-operator-signature"]


def test_rotation_by_concurrent_requests_keeps_every_announced_secret(pool: Pool, receiver: Receiver) -> None:
    made = subscribe(pool, url=receiver.url + "/race")
    receiver.decides("/race", Verifying(java_style, made["secret"]))

    def one(_: int) -> Any:
        return call(pool, "oem", "POST", f"/{made['id']}/secret")

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(one, range(8)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, *[400] * 6]
    known = {made["secret"], *(answer.json()["secret"] for answer in answers if answer.status_code == 200)}
    stored = pool.change(webhooks.find(made["id"]))
    assert set(stored.valid_secrets(datetime.now(UTC))) == known


def test_event_that_is_rejected_counts_during_a_rotation(pool: Pool, receiver: Receiver) -> None:
    """A receiver with the previous secret that knows its own mind: 403 for a signature, 409 for the event."""
    made = subscribe(pool, url=receiver.url + "/rejects")
    receiver.decides("/rejects", lambda sent: 409 if java_style(sent, made["secret"]) else 403)
    rotate(pool, made)
    pool.publish(pool.car())
    wait_until(lambda: states(pool.settings.database, made["id"]) == [("dead", 1, 409)])


def test_failure_is_retried_during_a_rotation(pool: Pool, receiver: Receiver) -> None:
    """A 503 for the event is not hidden by the 400 for the other signature."""
    made = subscribe(pool, url=receiver.url + "/fails")
    receiver.decides("/fails", lambda sent: 503 if java_style(sent, made["secret"]) else 400)
    rotate(pool, made)
    pool.publish(pool.car())
    wait_until(lambda: [row[1:] for row in states(pool.settings.database, made["id"])] == [(3, 503)])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"overlap": -1}, "overlap : must be at least 0"),
        ({"overlap": 3601}, "overlap : must be 0 to 3600 seconds"),
        ({"overlap": 10**30}, "overlap : must be 0 to 3600 seconds"),
        ({"overlap": "60"}, "overlap : must be an integer"),
        ({"overlap": 1.5}, "overlap : must be an integer"),
        ([], "The body is not a JSON object: it is an array."),
    ],
)
def test_rotation_refuses_bad_bodies(pool: Pool, body: Any, expected: str) -> None:
    made = subscribe(pool)
    (sentence,) = sentences(call(pool, "oem", "POST", f"/{made['id']}/secret", json=body), 400)
    assert sentence == expected
    assert pool.change(webhooks.find(made["id"])).secret == made["secret"]


def test_rotation_is_audited_and_its_secrets_appear_once(pool: Pool) -> None:
    made = subscribe(pool)
    new = rotate(pool, made, overlap=60)
    shown = [call(pool, "oem", "GET", path).text for path in ("", f"/{made['id']}", f"/{made['id']}/deliveries")]
    found = pool.sql("select actor, subject from audit where action = 'webhook.secret.rotated'")
    (entry,) = [json.loads(subject) for actor, subject in found if actor == "oem" and made["id"] in subject]
    assert entry == {"endpoint": made["id"], "party": "oem", "older_until": new["previousValidUntil"]}
    whole = str(pool.sql("select subject from audit"))
    for secret in (made["secret"], new["secret"]):
        assert secret not in whole
        assert all(secret not in text for text in shown)
