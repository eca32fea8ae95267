"""Events of systems that the pool has subscribed to: who may send them, and what they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from ccp.testing.pki import PKI
from tests.scripted_server import json_reply
from tests.server.http.api.answers import sentences
from tests.server.pool.subscriptions.system import (
    OPCP,
    OPNC,
    TOKEN,
    EventSystem,
    event_body,
    event_system,
    post_event,
    subscribe,
)
from tests.waiting import wait_until
from tests.world import Pool, b64, start

ROOT_PAYLOAD = {"rootCertificateId": "b1b86334-7c74-4ccc-b78d-d4f773d3b559", "commonName": "Root", "rootType": "V2G"}


@dataclass
class Subscribed:
    pool: Pool
    rcp: EventSystem
    pcp: EventSystem


@pytest.fixture(scope="module")
def subscribed(pkis: dict[str, PKI]) -> Iterator[Subscribed]:
    """A pool that gets the events of a Root Certificate Pool (OPCP) and of a Provisioning Certificate Pool (OPNC)."""
    with ExitStack() as stack:
        rcp, pcp = stack.enter_context(event_system(OPCP)), stack.enter_context(event_system(OPNC))
        rcp.on("/v1/root/rootCerts", json_reply(root_list(pkis["iso2"])))
        options: dict[str, Any] = {
            "rcp_url": rcp.url, "rcp_dialect": "opcp", "rcp_token": TOKEN,
            "pcp_url": f"{pcp.url}/opnc/v1/pcp", "pcp_dialect": "opnc", "pcp_token": TOKEN,
            "require_known_vehicle": False,
        }  # fmt: skip
        pool = stack.enter_context(start(pkis, refresh_interval=0.05, **options))
        for name, system in (("rcp", rcp), ("pcp", pcp)):
            subscribe(pool, name)
            wait_until(lambda system=system: system.send("webhook.ping", {}).status_code == 200)  # type: ignore[misc]
        yield Subscribed(pool, rcp, pcp)


def root_list(*pkis: PKI) -> dict[str, Any]:
    """The list of a Root Certificate Pool in OPCP."""
    roots = [
        {"caCertificate": b64(root.certificate.der), "rootType": kind}
        for pki in pkis
        for root, kind in ((pki.v2g_root, "V2G"), (pki.emsp_root, "MO"), (pki.oem_root, "OEM"))
    ]
    return {"RootCertificateCollection": {"rootCertificates": roots}}


@pytest.mark.parametrize(
    ("header", "form"),
    [
        ("X-Operator-Signature", "sha256={}"),
        ("X-Operator-Signature", "{}"),
        ("payload-signature", "{}"),
        ("X-Hubject-Signature", "{}"),
        ("X-Hubject-Signature", "sha256={}"),
        ("X-Operator-Signatures", "sha256=" + "0" * 64 + ", sha256={}"),
    ],
)
def test_event_is_accepted_with_the_signature_in_any_header(subscribed: Subscribed, header: str, form: str) -> None:
    assert subscribed.pcp.send("webhook.ping", {}, header=header, form=form).status_code == 200


def test_event_with_a_wrong_signature_or_address_is_refused(subscribed: Subscribed) -> None:
    webhook, body = subscribed.pcp.webhook, event_body("webhook.ping", {})
    for form in ("sha256=" + "0" * 64, "", "é" * 64):
        answer = httpx.post(webhook["url"], content=body, headers={"X-Operator-Signature": form.encode()})
        assert sentences(answer, 403) == ["The signature of the event is missing or wrong."]
    assert post_event(webhook["url"], subscribed.rcp.webhook["secret"], body).status_code == 403
    assert post_event(webhook["url"][:-1] + "x", webhook["secret"], body).status_code == 404
    assert post_event(webhook["url"], webhook["secret"], body + b" " * 70_000).status_code == 413
    assert httpx.get(webhook["url"]).status_code == 405


@pytest.mark.parametrize(
    ("age", "sentence"),
    [
        (timedelta(days=8, minutes=1), "timestamp : must not be older than 8 days"),
        (-timedelta(minutes=6), "timestamp : must not be in the future"),
    ],
)
@pytest.mark.parametrize("kind", ["mo.prov.cert.deleted", "root.cert.added", "webhook.ping"])
def test_event_is_refused_beyond_its_age(subscribed: Subscribed, age: timedelta, sentence: str, kind: str) -> None:
    car = subscribed.pool.car()
    contract = subscribed.pool.publish(car)
    at = datetime.now(UTC) - age
    answer = subscribed.pcp.send(kind, {"pcid": str(car.pcid), "emaid": str(contract.emaid)}, at)
    assert sentences(answer, 400) == [sentence]
    assert subscribed.pool.stored(contract.emaid) == 1


def test_event_without_its_members_is_refused(subscribed: Subscribed) -> None:
    webhook = subscribed.pcp.webhook
    for body in (b"", b"[]", b'{"eventType": "root.cert.added"}', b'{"timestamp": "2026-01-01T00:00:00Z"}', b"\xff"):
        assert post_event(webhook["url"], webhook["secret"], body).status_code == 400
    assert subscribed.pcp.send("mo.prov.cert.deleted", {}).status_code == 400


@pytest.mark.parametrize("kind", ["mo.prov.cert.deleted", "emsp.prov.cert.factory.reset"])
def test_provisioning_event_removes_the_contracts_of_the_vehicle(subscribed: Subscribed, kind: str) -> None:
    car = subscribed.pool.car()
    contract = subscribed.pool.publish(car)
    assert subscribed.pcp.send(kind, {"pcid": str(car.pcid)}).status_code == 200
    assert subscribed.pool.stored(contract.emaid) == 0
    assert subscribed.pcp.send(kind, {"pcid": str(car.pcid)}).status_code == 200
    kinds = {row[0] for row in subscribed.pool.sql("select kind from outbox where pcid = ?", str(car.pcid))}
    assert "oem.contract.deleted" in kinds


def test_provisioning_event_of_another_system_is_refused(subscribed: Subscribed) -> None:
    car = subscribed.pool.car()
    contract = subscribed.pool.publish(car)
    answer = subscribed.rcp.send("mo.prov.cert.deleted", {"pcid": str(car.pcid)})
    assert sentences(answer, 400) == ["eventType : events of provisioning certificates come from their pool only"]
    assert subscribed.pool.stored(contract.emaid) == 1


def test_event_of_unknown_kind_is_acknowledged_but_for_provisioning(subscribed: Subscribed) -> None:
    assert subscribed.pcp.send("mo.prov.cert.stolen", {"pcid": "WEX00000000000000"}).status_code == 400
    assert subscribed.pcp.send("something.new", {}).status_code == 200
    assert subscribed.pcp.send("oem.contract.created", {}).status_code == 200


def test_root_events_lead_to_one_synchronisation(subscribed: Subscribed) -> None:
    path = "/v1/root/rootCerts"
    wait_until(lambda: subscribed.rcp.count(path) > 0)  # That of the subscription.
    before = subscribed.rcp.count(path)
    for number in range(100):
        kind = ("root.cert.added", "root.cert.expired", "root.cert.revoked")[number % 3]
        assert subscribed.rcp.send(kind, ROOT_PAYLOAD).status_code == 200
    subscribed.rcp.wait(path, before + 1)
    assert subscribed.rcp.count(path) <= before + 3


def test_root_event_lets_the_pool_trust_a_new_root(subscribed: Subscribed, pkis: dict[str, PKI]) -> None:
    pool, stranger = subscribed.pool, pkis["stranger"]
    car = pool.car()
    contract = pool.contract(car, signer="stranger")
    assert pool.put(contract).status_code == 400
    subscribed.rcp.on("/v1/root/rootCerts", json_reply(root_list(pkis["iso2"], stranger)))
    assert subscribed.rcp.send("root.cert.added", ROOT_PAYLOAD).status_code == 200
    wait_until(lambda: pool.put(contract).status_code == 201)
