"""Every published event of a contract is sent, with every published member, under either name of its family.

The tables in docs/conformance-opnc.md and docs/conformance-opcp.md refer to these tests.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.attacks.provisioning_events import SECRET, send_event
from tests.server.events.receiver import Receiver, Sent, receiving
from tests.server.events.subscriptions import SETTINGS
from tests.server.events.webhook_api import subscribe
from tests.world import Contract, Pool, b64, start

OEM = tuple(f"oem.contract.{what}" for what in ("created", "updated", "deleted"))
OUTCOMES = ("created.sent.to.oem", "updated.sent.to.oem", "deleted.sent.to.oem", "rejected.by.oem", "queued.to.oem")


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start({name: pkis[name] for name in ("iso2", "iso20")}, pcp_webhook_secret=SECRET, **SETTINGS) as running:
        yield running


@pytest.fixture(autouse=True)
def forget(pool: Pool) -> Iterator[None]:
    yield
    for webhook in pool.http.get(EVENTS, headers=bearer(pool, "oem")).json():
        pool.http.delete(f"{EVENTS}/{webhook['id']}", headers=bearer(pool, "oem"))
    for webhook in pool.http.get(EVENTS, headers=bearer(pool, "emsp")).json():
        pool.http.delete(f"{EVENTS}/{webhook['id']}", headers=bearer(pool, "emsp"))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


EVENTS = "/opnc/v1/event/endpoints"


def bearer(pool: Pool, party: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {pool.token(party)}"}


def check_envelope(pool: Pool, sent: Sent, kind: str, car: Car, secret: str) -> None:
    """The members beside the payload, and the headers."""
    event = sent.event
    assert set(event) == {"timestamp", "eventId", "eventType", "xsdMsgDefNamespace", "payload"}
    assert event["eventType"] == kind
    assert event["xsdMsgDefNamespace"] == str(car.namespace)
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", event["eventId"])
    assert abs(datetime.now(UTC) - datetime.fromisoformat(event["timestamp"])) < timedelta(minutes=1)
    assert sent.headers["content-type"] == "application/json"
    signature = hmac.new(secret.encode(), sent.body, hashlib.sha256).hexdigest()
    assert sent.headers["x-operator-signature"] == f"sha256={signature}"
    assert sent.headers["payload-signature"] == sent.headers["x-hubject-signature"] == signature


def cause(pool: Pool, car: Car, what: str) -> Contract:
    """Publish a contract, and replace or withdraw it where that is what the event is about."""
    contract = pool.publish(car)
    if what.startswith("updated"):
        pool.publish(car, contract.emaid)
    if what.startswith("deleted"):
        assert pool.emsp.delete(f"/signedcontractdata/{contract.emaid}").status_code == 200
    return contract


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
@pytest.mark.parametrize("name", OEM)
def test_event_of_a_contract_is_sent_to_its_oem(pool: Pool, receiver: Receiver, name: str, edition: str) -> None:
    car = pool.car(edition)
    made = subscribe(pool, "oem", name, url=f"{receiver.url}/oem")
    contract = cause(pool, car, name.rpartition(".")[2])
    (sent,) = receiver.wait("/oem", 1)
    check_envelope(pool, sent, name, car, made["secret"])
    payload = sent.event["payload"]
    assert (payload["emaid"], payload["pcid"]) == (contract.emaid, car.pcid)
    if name != "oem.contract.deleted":
        root = pool.pki(edition).v2g_root.certificate
        assert payload["cpsSignerRootCommonName"] == root.subject_cn
        assert payload["cpsSignerRootFingerprint"] == root.fingerprint
        (stored,) = pool.sql("select certificate from contract where emaid = ?", str(contract.emaid))
        assert payload["contractCert"] == b64(stored[0])


@pytest.mark.parametrize("family", ["emsp", "mo"])
@pytest.mark.parametrize("what", OUTCOMES)
def test_event_of_an_outcome_is_sent_to_the_emsp(pool: Pool, receiver: Receiver, what: str, family: str) -> None:
    """The OEM's webhook accepts the event, rejects it with the published 400, or fails at first."""
    name, car = f"{family}.contract.{what}", pool.car()
    made = subscribe(pool, "emsp", name, url=f"{receiver.url}/emsp")
    subscribe(pool, "oem", *OEM, url=f"{receiver.url}/oem")
    receiver.says("/oem", *{"rejected.by.oem": [400], "queued.to.oem": [503, 200]}.get(what, [200]))
    contract = cause(pool, car, what)
    (sent,) = receiver.wait("/emsp", 1)
    check_envelope(pool, sent, name, car, made["secret"])
    assert (sent.event["payload"]["emaid"], sent.event["payload"]["pcid"]) == (contract.emaid, car.pcid)


@pytest.mark.parametrize("family", ["emsp", "mo"])
def test_event_of_a_delivery_is_sent_to_the_emsp(pool: Pool, receiver: Receiver, family: str) -> None:
    name, car = f"{family}.contract.delivered.to.oem", pool.car()
    made = subscribe(pool, "emsp", name, url=f"{receiver.url}/emsp")
    contract = pool.publish(car)
    pool.ask(car)
    (sent,) = receiver.wait("/emsp", 1)
    check_envelope(pool, sent, name, car, made["secret"])
    assert (sent.event["payload"]["emaid"], sent.event["payload"]["pcid"]) == (contract.emaid, car.pcid)


@pytest.mark.parametrize(
    "caused",
    [
        *("mo.prov.cert.deleted", "emsp.prov.cert.updated", "mo.prov.cert.factory.reset"),
        "mo.prov.cert.updated.factory.reset",  # Its deprecated name, which a subscriber to it gets too.
    ],
)
@pytest.mark.parametrize("family", ["emsp", "mo"])
def test_event_of_a_provisioning_certificate_is_sent_to_the_emsp(
    pool: Pool, receiver: Receiver, family: str, caused: str
) -> None:
    """Caused by an event of the Provisioning Certificate Pool that removes the vehicle's contract."""
    name, car = f"{family}.{caused.partition('.')[2]}", pool.car()
    made = subscribe(pool, "emsp", name, url=f"{receiver.url}/emsp")
    contract = pool.publish(car)
    assert send_event(pool, caused, car.pcid).status_code == 200
    assert pool.stored(contract.emaid) == 0
    (sent,) = receiver.wait("/emsp", 1)
    check_envelope(pool, sent, name, car, made["secret"])
    assert sent.event["payload"] == {"emaid": contract.emaid, "pcid": car.pcid}
