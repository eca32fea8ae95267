"""The webhook service of OPCP: other paths and shapes for the webhooks of the OPNC event service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ccp.testing.pki import PKI
from tests.server.events import webhook_api
from tests.server.events.receiver import Receiver, states
from tests.server.events.verifiers import Verifying, hubject_signature
from tests.server.events.webhook_api import URL, ok, subscribe, without_secret
from tests.server.http.api.answers import sentences
from tests.waiting import wait_until
from tests.world import Pool, start

BASE = "/v1/webhook/endpoints"
SENT = "mo.contract.created.sent.to.oem"

pytestmark = pytest.mark.usefixtures("forget")


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    options: dict[str, Any] = {"egress_allow_networks": ("127.0.0.0/8",), "event_allow_http": True}
    with start({"iso2": pkis["iso2"]}, event_dispatch=True, **options) as running:
        yield running


def call(pool: Pool, party: str, method: str, path: str = "", **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {pool.token(party)}"}
    return pool.http.request(method, BASE + path, headers=headers, **options)


def made_by(pool: Pool, party: str, *events: str, **members: Any) -> dict[str, Any]:
    body = {"url": URL, "enabledEvents": list(events), **members}
    made: dict[str, Any] = ok(call(pool, party, "POST", json=body), 201)
    return made


def test_opcp_webhook_has_the_published_members(pool: Pool) -> None:
    body = {
        "description": "This is a test", "enabledEvents": [SENT], "status": "enabled", "url": URL,
        "metadata": {"key": "value"}, "apiVersion": "v1",
    }  # fmt: skip
    answer = call(pool, "emsp", "POST", json=body)
    made = ok(answer, 201)
    assert answer.headers["location"] == f"{BASE}/{made['id']}"
    assert made == {
        **body,
        "id": made["id"],
        "created": made["created"],
        "events": [SENT],
        "secret": made["secret"],
        "providerIds": ["DEEXA"],
        "userRole": "MO",
        "userName": "emsp",
        "signatureFormat": "sha256",
        "previousSecretsValidUntil": [],
    }
    assert ok(call(pool, "emsp", "GET", f"/{made['id']}")) == without_secret(made)
    assert ok(call(pool, "emsp", "GET")) == [without_secret(made)]
    changed = ok(call(pool, "emsp", "PUT", f"/{made['id']}", json={"url": URL, "status": "disabled"}))
    assert changed == {**without_secret(made), "status": "disabled"}
    assert call(pool, "emsp", "DELETE", f"/{made['id']}").status_code == 200
    assert sentences(call(pool, "emsp", "GET", f"/{made['id']}"), 404) == ["There is no endpoint with this id."]


def test_opcp_webhooks_are_those_of_opnc(pool: Pool) -> None:
    opcp = made_by(pool, "oem", "oem.contract.created")
    opnc = subscribe(pool, "oem", "oem.contract.deleted")
    expected = [opcp["id"], opnc["id"]]
    assert [each["id"] for each in ok(call(pool, "oem", "GET"))] == expected
    assert [each["id"] for each in ok(webhook_api.call(pool, "oem", "GET"))] == expected
    emsp = made_by(pool, "emsp", SENT)
    shown = ok(webhook_api.call(pool, "emsp", "GET", f"/{emsp['id']}"))
    assert (shown["enabledEvents"], shown["userRole"]) == ([SENT], "eMSP")
    rotated = ok(call(pool, "oem", "POST", f"/{opnc['id']}/secret"))
    until_text = ok(webhook_api.call(pool, "oem", "GET", f"/{opnc['id']}"))["previousSecretsValidUntil"]
    assert until_text == rotated["previousValidUntil"]
    assert call(pool, "oem", "DELETE", f"/{opnc['id']}").status_code == 200
    assert [each["id"] for each in ok(webhook_api.call(pool, "oem", "GET"))] == [opcp["id"]]


def test_opcp_webhook_gets_events_with_its_signature(pool: Pool, receiver: Receiver) -> None:
    made = made_by(pool, "oem", "oem.contract.created", url=receiver.url + "/opcp")
    partner = Verifying(hubject_signature, made["secret"])
    receiver.decides("/opcp", partner)
    pool.publish(pool.car())
    wait_until(lambda: states(pool.settings.database, made["id"]) == [("delivered", 1, 200)])
    assert ok(call(pool, "oem", "POST", f"/{made['id']}/ping"))["delivered"] is True
    assert [sent.kind for sent in partner.accepted] == ["oem.contract.created", "webhook.ping"]
    (delivery,) = ok(call(pool, "oem", "GET", f"/{made['id']}/deliveries"))["deliveries"]
    assert delivery["state"] == "delivered"


@pytest.mark.parametrize(
    ("caller", "role"), [("oem", "OEM"), ("emsp", "MO"), ("cpo", "CPO"), ("cps", "CPS"), ("peer", "CCP")]
)
def test_opcp_webhooks_take_root_events_of_every_role(pool: Pool, caller: str, role: str) -> None:
    roots = ["root.cert.added", "root.cert.expired"]
    made = made_by(pool, caller, *roots)
    assert (made["enabledEvents"], made["userRole"]) == (roots, role)


def test_opcp_webhooks_refuse_bad_requests(pool: Pool) -> None:
    made = made_by(pool, "oem", "oem.contract.created")
    for body, expected in (
        ({"url": URL}, "enabledEvents : is missing"),
        ({"enabledEvents": ["oem.contract.created"]}, "url : is missing"),
        ({"url": URL, "enabledEvents": [SENT]}, f"enabledEvents : {SENT} is for a role that the caller does not have"),
        ({"url": URL, "enabledEvents": []}, "enabledEvents : must name at least one event"),
    ):
        assert sentences(call(pool, "oem", "POST", json=body), 400) == [expected]
    assert sentences(call(pool, "oem", "PUT", f"/{made['id']}", json={"status": "disabled"}), 400) == [
        "url : is missing"
    ]
    assert pool.http.get(BASE).status_code == 401
    assert sentences(call(pool, "oem", "POST", f"/{made['id']}"), 405)
    assert ok(call(pool, "oem", "GET", f"/{made['id']}"))["enabledEvents"] == ["oem.contract.created"]


def test_opcp_webhook_paths_ignore_case(pool: Pool) -> None:
    made = made_by(pool, "oem", "oem.contract.created")
    headers = {"Authorization": f"Bearer {pool.token('oem')}"}
    assert pool.http.get(f"/V1/WebHook/Endpoints/{made['id']}", headers=headers).status_code == 200


def test_opcp_webhooks_are_absent_without_opcp(pkis: dict[str, PKI]) -> None:
    with start({}, opcp=False) as pool:
        assert call(pool, "oem", "GET").status_code == 404
        body = {"url": URL, "enabledEvents": ["oem.contract.created"]}
        assert call(pool, "oem", "POST", json=body).status_code == 404
