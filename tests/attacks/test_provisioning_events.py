"""Provisioning events: accepted names, and effects of late events."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from structlog.testing import CapturingLogger

from ccp.server.domain.subscriptions import SignatureFormat
from ccp.server.events.signatures import build_headers
from ccp.server.http.routes.pcp_webhook import PATH
from ccp.testing.pki import PKI
from tests.attacks.provisioning_events import SECRET, send_event
from tests.server.events.receiver import receiving
from tests.server.http.api.answers import sentences
from tests.world import Pool, new_emaid, start

RESETS = [
    f"{owner}.prov.cert.{name}" for owner in ("mo", "emsp") for name in ("factory.reset", "updated.factory.reset")
]


@pytest.fixture(scope="module")
def around(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start(pkis, pcp_webhook_secret=SECRET) as pool:
        yield pool


@pytest.mark.parametrize("event_type", RESETS)
def test_provisioning_event_factory_reset_invalidates_contracts_under_both_names(around: Pool, event_type: str) -> None:
    car = around.car()
    around.publish(car)
    assert send_event(around, event_type, car.pcid).status_code == 200
    assert around.listed(car) == []


@pytest.mark.parametrize(
    "event_type",
    ["mo.prov.cert.reset", "emsp.prov.cert.created", "oem.prov.cert.deleted", "prov.cert.deleted",
     "MO.PROV.CERT.DELETED",
     "mo.prov.cert.factoryReset", "mo.prov.cert.factory.reset ", "mo.prov.cert.", "mo.provcert.deleted",
     "mo.factory.reset"],
)  # fmt: skip
def test_provisioning_event_with_an_unknown_name_is_refused(
    around: Pool, event_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    car = around.car()
    around.publish(car)
    log = CapturingLogger()
    monkeypatch.setattr("ccp.server.http.inbound_events._log", log)
    answer = send_event(around, event_type, car.pcid)
    (sentence,) = sentences(answer, 400)
    assert sentence.startswith(
        "eventType : unknown; the events of provisioning certificates are emsp.prov.cert.deleted, "
    )
    assert "mo.prov.cert.factory.reset" in sentence
    (call,) = log.calls
    assert (call.method_name, *call.args) == ("warning", "provisioning event unknown")
    assert call.kwargs == {"event_type": event_type}
    assert len(around.listed(car)) == 1


@pytest.mark.parametrize("event_type", RESETS)
def test_subscription_to_factory_resets_works_under_both_names(around: Pool, event_type: str) -> None:
    headers = {"Authorization": f"Bearer {around.token('emsp')}"}
    body = {"url": "https://provider.example/events", "enabledEvents": [event_type]}
    made = around.http.post("/opnc/v1/event/endpoints", headers=headers, json=body)
    assert made.status_code in (200, 201), made.text
    assert made.json()["enabledEvents"] == [event_type]
    other = "emsp.prov.cert.factory.reset" if "updated" in event_type else "emsp.prov.cert.updated.factory.reset"
    body["enabledEvents"] = [event_type, other]
    twice = around.http.post("/opnc/v1/event/endpoints", headers=headers, json=body)
    assert sentences(twice, 400) == [
        "enabledEvents : names the same event twice, as emsp.… and mo.… or by its deprecated name"
    ]


def test_provisioning_event_notifies_affected_providers_only(pkis: dict[str, PKI]) -> None:
    options = {"pcp_webhook_secret": SECRET, "event_dispatch": True, "event_allow_http": True}
    with start(pkis, egress_allow_networks=("127.0.0.0/8",), **options) as pool, receiving() as receiver:
        names = {"emsp": "mo.prov.cert.updated.factory.reset", "other_emsp": "emsp.prov.cert.factory.reset"}
        for party, name in names.items():
            headers = {"Authorization": f"Bearer {pool.token(party)}"}
            body = {"url": f"{receiver.url}/{party}", "enabledEvents": [name]}
            assert pool.http.post("/opnc/v1/event/endpoints", headers=headers, json=body).status_code == 201
        car, other = pool.car(), pool.car()
        mine, foreign = pool.publish(car), pool.publish(other, new_emaid("NLEXB"))
        assert send_event(pool, "mo.prov.cert.factory.reset", car.pcid).status_code == 200
        assert send_event(pool, "emsp.prov.cert.deleted", other.pcid).status_code == 200  # No subscription matches.
        (sent,) = receiver.wait("/emsp", 1)
        assert sent.event["eventType"] == names["emsp"]
        assert sent.event["payload"] == {"emaid": mine.emaid, "pcid": car.pcid}
        pool.publish(other, foreign.emaid)
        assert send_event(pool, "mo.prov.cert.factory.reset", other.pcid).status_code == 200
        (sent,) = receiver.wait("/other_emsp", 1)
        assert sent.event["eventType"] == names["other_emsp"]
        assert sent.event["payload"] == {"emaid": foreign.emaid, "pcid": other.pcid}
        assert len(receiver.asked("/emsp")) == 1


def test_provisioning_event_fits_its_description_during_a_rotation(around: Pool) -> None:
    """Another pool sends the signatures of all valid secrets in one header."""
    headers = build_headers(b"{}", ["new", "old"], SignatureFormat.SHA256)
    described = around.http.get("/openapi.json").json()["paths"][PATH]["post"]["parameters"]
    assert {each["name"] for each in described} == headers.keys() - {"Content-Type"}
    assert all(re.search(each["schema"]["pattern"], headers[each["name"]]) for each in described)
