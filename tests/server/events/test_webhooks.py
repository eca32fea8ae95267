"""Event service over HTTP: creation, visibility and deliveries of webhooks."""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from ccp.errors import NotAuthorised
from ccp.schemas.event_types import EMSP, KNOWN, audience, canonical
from ccp.server.domain.parties import Caller, PartyRole
from ccp.server.domain.subscriptions import EventKind
from ccp.server.events.ping import Pinger
from ccp.server.events.sending import WebhookSender
from ccp.server.events.webhooks import MAX_WEBHOOKS, Webhooks, WebhookSpec
from ccp.server.external.outbound import OutboundClient
from ccp.server.runtime.clock import utc_now
from ccp.testing.pki import PKI
from tests.server.events.webhook_api import (
    BASE,
    CREATED,
    DELETED,
    UPDATED,
    URL,
    call,
    ok,
    subscribe,
    without_secret,
)
from tests.server.events.webhook_calls import CALLS, NOT_FOUND, UNKNOWN, ask
from tests.server.http.api.answers import sentences
from tests.world import Pool, opened, party, start

pytestmark = pytest.mark.usefixtures("forget")


def rows(pool: Pool) -> list[Any]:
    """Everything that a refused call must leave as it is."""
    return pool.sql("select * from webhook order by id")


# --- Subscribing -----------------------------------------------------------------------------------------------------


def test_webhook_is_created_by_an_oem_that_gets_its_secret(pool: Pool) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    body = {
        "url": URL,
        "enabledEvents": [CREATED, DELETED],
        "wmi": ["wex"],
        "description": "Example – für Verträge",
        "metadata": {"team": "backend", "tags": [1, 2.5, None, {"deep": "\u0000"}]},
        "status": "enabled",
        "apiVersion": "v1",
        "somethingNew": True,
    }
    answer = call(pool, "oem", "POST", json=body)
    made = ok(answer, 201)
    assert answer.headers["location"] == f"{BASE}/{made['id']}"
    assert str(uuid.UUID(made["id"])) == made["id"]
    assert type(made["created"]) is int
    assert before.timestamp() <= made["created"] <= datetime.now(UTC).timestamp()
    assert len(made["secret"]) >= 43
    assert set(made["secret"]) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert made == {
        "id": made["id"],
        "apiVersion": "v1",
        "created": made["created"],
        "description": "Example – für Verträge",
        "enabledEvents": [CREATED, DELETED],
        "events": [CREATED, DELETED],
        "metadata": body["metadata"],
        "status": "enabled",
        "url": URL,
        "secret": made["secret"],
        "wmis": ["WEX"],
        "userRole": "OEM",
        "userName": "oem",
        "signatureFormat": "sha256",
        "previousSecretsValidUntil": [],
    }
    assert ok(call(pool, "oem", "GET", f"/{made['id']}")) == without_secret(made)


def test_webhook_of_an_emsp_shows_provider_ids(pool: Pool) -> None:
    made = subscribe(pool, "emsp", "emsp.contract.rejected.by.oem", providerIds=["DE-EXA"])
    assert (made["providerIds"], made["userRole"], made["userName"]) == (["DEEXA"], "eMSP", "emsp")
    assert "wmis" not in made
    assert subscribe(pool, "emsp", "emsp.contract.rejected.by.oem")["providerIds"] == ["DEEXA"]


def test_webhook_role_follows_its_events(pool: Pool) -> None:
    for events, role in (
        ([CREATED], "OEM"),
        ([CREATED, "mo.contract.queued.to.oem"], "eMSP"),
        (["root.cert.added"], "eMSP"),
    ):
        made = subscribe(pool, "everything", *events)
        assert (made["userRole"], made["wmis"], made["providerIds"]) == (role, ["ALL"], ["DEALL"])


def test_webhook_secrets_differ_and_are_not_listed(pool: Pool) -> None:
    made = [subscribe(pool, "other_emsp", "root.cert.added") for _ in range(3)]
    assert len({each["secret"] for each in made}) == 3
    listed = ok(call(pool, "other_emsp", "GET"))
    assert listed == [without_secret(each) for each in made]
    changed = ok(call(pool, "other_emsp", "PUT", f"/{made[0]['id']}", json={"url": URL, "status": "disabled"}))
    assert "secret" not in changed


@pytest.mark.parametrize("member", ["enabledEvents", "events"])
@pytest.mark.parametrize("value", [[CREATED, UPDATED, CREATED], UPDATED])
def test_webhook_accepts_both_event_names_as_list_or_string(pool: Pool, member: str, value: Any) -> None:
    made = ok(call(pool, "oem", "POST", json={"url": URL, member: value}), 201)
    assert made["events"] == made["enabledEvents"] == ([UPDATED] if value == UPDATED else [CREATED, UPDATED])


def test_webhook_accepts_every_published_event_name(pool: Pool) -> None:
    older = [name for name in KNOWN if not name.startswith("emsp.")]
    newer = [name for name in KNOWN if not name.startswith("mo.")]
    for family in (older, newer):
        names = [name for name in family if "updated.factory" not in name]
        assert subscribe(pool, "everything", *names)["events"] == names
        deprecated = [name for name in family if "updated.factory" in name]
        assert subscribe(pool, "everything", *deprecated)["events"] == deprecated
    assert {audience(name) for name in KNOWN} == {"oem", "emsp", None}
    # What the pool really tells is among them, for the role that it is for.
    assert {kind.value for kind in EventKind} < set(KNOWN)
    assert all(audience(kind) == kind.role and canonical(kind) == kind for kind in EventKind)
    assert {canonical(name) for name in KNOWN if name.startswith("mo.")} == set(EMSP)


KNOWN_ARE = f"known are {', '.join(KNOWN)}"


WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"url": None}, ["url : must not be null"]),
    ({"url": 5}, ["url : must be a string"]),
    ({"enabledEvents": None}, ["enabledEvents : must not be null"]),
    ({"enabledEvents": []}, ["enabledEvents : must name at least one event"]),
    ({"enabledEvents": [5]}, ["enabledEvents : must be a list of events' names"]),
    ({"enabledEvents": {"a": 1}}, ["enabledEvents : must be a list of events' names"]),
    ({"enabledEvents": ["contract.created"]}, [f'enabledEvents : unknown "contract.created"; {KNOWN_ARE}']),
    ({"enabledEvents": ["OEM.contract.created"]}, [f'enabledEvents : unknown "OEM.contract.created"; {KNOWN_ARE}']),
    (
        {"enabledEvents": ["\u001b[1m", "b", "c" * 60, "d"]},
        [f'enabledEvents : unknown "\\u001b[1m", "b", "{"c" * 50}" and others; {KNOWN_ARE}'],
    ),
    ({"events": [UPDATED]}, ["enabledEvents and events : must be the same where both are given"]),
    ({"wmi": ["WEX"], "wmis": []}, ["wmi and wmis : must be the same where both are given"]),
    ({"wmis": ["WEX0"]}, ['wmi : must match "^[a-zA-Z0-9]{3}$"']),
    ({"wmis": "WEX"}, ["wmis : must be an array"]),
    ({"wmis": ["WEX"] * 1001}, ["wmis : must have at most 1000 items"]),
    ({"providerIds": ["DE"]}, [r'providerId : must match "^[A-Za-z]{2}[-]?\w{3}$"']),
    ({"description": "x" * 1001}, ["description : must have at most 1000 characters"]),
    ({"description": "\u0000"}, ["description : must not contain U+0000"]),
    ({"metadata": []}, ["metadata : must be an object"]),
    ({"metadata": {"a": "x" * 4096}}, ["metadata : must be at most 4096 bytes of JSON"]),
    ({"metadata": {"a": 2**64}}, ["metadata : has a number or a text that JSON cannot carry"]),
    ({"status": "on"}, ["status : must be 'enabled' or 'disabled'"]),
    ({"apiVersion": "v2"}, ["apiVersion : must be v1, since events have no other form"]),
    ({"url": 5, "metadata": 5}, ["url : must be a string", "metadata : must be an object"]),
]


@pytest.mark.parametrize(("members", "expected"), WRONG)
def test_webhook_errors_are_reported_and_nothing_is_stored(
    pool: Pool, members: dict[str, Any], expected: list[str]
) -> None:
    before = rows(pool)
    body = {"url": URL, "enabledEvents": [CREATED], **members}
    assert sentences(call(pool, "oem", "POST", json=body), 400) == expected
    assert rows(pool) == before


HTTPS = "url : must be an https address"


ADDRESS = f"{HTTPS} without blanks and credentials"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://hooks.example/x", HTTPS),
        ("ftp://hooks.example/x", ADDRESS),
        ("file:///etc/passwd", ADDRESS),
        ("https:///x", ADDRESS),
        ("hooks.example", ADDRESS),
        ("", ADDRESS),
        ("https://user:secret@hooks.example/x", ADDRESS),
        ("https://user@hooks.example/x", ADDRESS),
        ("https://hooks.example/a b", ADDRESS),
        ("https://hooks.example/\r\nX: y", ADDRESS),
        ("https://hööks.example/", ADDRESS),
        ("https://hooks.example:port/", ADDRESS),
        ("https://[::1/", ADDRESS),
        ("https://hooks.example/#part", "url : must not have a fragment, which is never sent"),
        ("https://hooks.example/" + "x" * 2027, "url : must have at most 2048 characters"),
    ],
)
def test_webhook_refuses_urls_that_cannot_be_called(pool: Pool, url: str, expected: str) -> None:
    made = subscribe(pool)
    body = {"url": url, "enabledEvents": [CREATED]}
    assert sentences(call(pool, "oem", "POST", json=body), 400) == [expected]
    assert sentences(call(pool, "oem", "PUT", f"/{made['id']}", json=body), 400) == [expected]
    assert ok(call(pool, "oem", "GET", f"/{made['id']}"))["url"] == URL


def test_webhook_accepts_the_longest_url(pool: Pool) -> None:
    url = "https://hooks.example/" + "x" * 2026
    assert subscribe(pool, url=url)["url"] == url


def test_webhook_accepts_http_urls_if_allowed(pkis: dict[str, PKI]) -> None:
    with start({}, event_dispatch=False, event_allow_http=True, egress_allow_networks=("127.0.0.0/8",)) as lax:
        made = subscribe(lax, url="http://127.0.0.1:9/x")
        assert made["url"] == "http://127.0.0.1:9/x"
        body = {"url": "http://user@127.0.0.1:9/x", "enabledEvents": [CREATED]}
        assert sentences(call(lax, "oem", "POST", json=body), 400) == [ADDRESS]


def test_body_that_is_no_json_object_is_refused(pool: Pool) -> None:
    for content in (b"", b"[]", b"null", b"{", b"\xff", b'{"url": NaN', b"[" * 5000):
        (sentence,) = sentences(call(pool, "oem", "POST", content=content), 400)
        assert sentence.startswith(
            ("The body is not JSON: ", "The body is not a JSON object: it is ", "The body is empty.")
        )
    assert call(pool, "oem", "POST", content=b"{" + b" " * 300_000).status_code == 413


def test_webhook_refuses_events_of_other_roles(pool: Pool) -> None:
    for caller, foreign, own in (
        ("oem", ["emsp.contract.rejected.by.oem", "mo.prov.cert.deleted"], CREATED),
        ("emsp", [CREATED], "mo.contract.rejected.by.oem"),
        ("cpo", [CREATED, "emsp.prov.cert.deleted"], "root.cert.added"),
        ("cps", ["mo.contract.rejected.by.oem"], "root.cert.revoked"),
        ("peer", [CREATED], "root.cert.expired"),
    ):
        made = subscribe(pool, caller, own)
        expected = [f"enabledEvents : {', '.join(foreign)} is for a role that the caller does not have"]
        body = {"url": URL, "enabledEvents": [own, *foreign]}
        assert sentences(call(pool, caller, "POST", json=body), 400) == expected
        assert sentences(call(pool, caller, "PUT", f"/{made['id']}", json=body), 400) == expected


def test_webhook_refuses_one_event_under_both_names(pool: Pool) -> None:
    body = {"url": URL, "events": ["mo.contract.queued.to.oem", "emsp.contract.queued.to.oem"]}
    assert sentences(call(pool, "emsp", "POST", json=body), 400) == [
        "enabledEvents : names the same event twice, as emsp.… and mo.… or by its deprecated name"
    ]


@pytest.mark.parametrize(
    ("caller", "event", "members", "expected"),
    [
        ("oem", CREATED, {"wmi": ["WEX", "WXB"]}, ["The WMI WXB is not registered for the caller."]),
        ("oem", CREATED, {"providerIds": ["DEEXA"]}, ["The provider id DEEXA is not registered for the caller."]),
        ("emsp", "root.cert.added", {"wmis": ["WEX"]}, ["The WMI WEX is not registered for the caller."]),
        (
            *("emsp", "root.cert.added", {"providerIds": ["NLEXB", "DEEXA", "nlexc"]}),
            [f"The provider id {each} is not registered for the caller." for each in ("NLEXB", "NLEXC")],
        ),
    ],
)
def test_webhook_refuses_filters_on_foreign_ids(
    pool: Pool, caller: str, event: str, members: dict[str, Any], expected: list[str]
) -> None:
    made, before = subscribe(pool, caller, event), rows(pool)
    assert len(before) > 0
    body = {"url": URL, "enabledEvents": [event], **members}
    assert sentences(call(pool, caller, "POST", json=body), 403) == expected
    assert sentences(call(pool, caller, "PUT", f"/{made['id']}", json=body), 403) == expected
    assert rows(pool) == before


def test_webhook_limit_holds_for_concurrent_requests(pool: Pool) -> None:
    pool.token("full")

    def one(_: int) -> int:
        return call(pool, "full", "POST", json={"url": URL, "events": CREATED}).status_code

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(one, range(MAX_WEBHOOKS + 8)))
    assert sorted(statuses) == [201] * MAX_WEBHOOKS + [400] * 8
    body = {"url": URL, "events": CREATED}
    assert sentences(call(pool, "full", "POST", json=body), 400) == [f"A party has at most {MAX_WEBHOOKS} webhooks."]
    listed = ok(call(pool, "full", "GET"))
    assert len(listed) == MAX_WEBHOOKS
    assert call(pool, "full", "DELETE", f"/{listed[7]['id']}").status_code == 200
    assert one(0) == 201


MAY = {"oem", "emsp", "cpo", "cps", "peer", "everything"}


# --- Whose they are --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("caller", [None, "admin", *sorted(MAY)])
@pytest.mark.parametrize("operation", CALLS)
def test_webhooks_are_for_every_role_with_events(pool: Pool, operation: str, caller: str | None) -> None:
    if caller in MAY:
        made = subscribe(pool, caller, "root.cert.added")
        assert ask(pool, caller, operation, made["id"]).status_code == (201 if operation == "PostEndpoint" else 200)
        return
    made, before = subscribe(pool), rows(pool)
    answer = ask(pool, caller, operation, made["id"])
    if caller is None:
        assert sentences(answer, 401) == ["A bearer token is needed."]
    else:
        assert sentences(answer, 403) == [f"{operation} is for the role emsp, oem, cpo, cps, ccp."]
        assert sentences(call(pool, caller, CALLS[operation][0], CALLS[operation][1], content=b"?"), 403)
    assert rows(pool) == before


@pytest.mark.parametrize("operation", [name for name, (_, path, _) in CALLS.items() if path])
@pytest.mark.parametrize("caller", ["other_oem", "emsp", "everything"])
def test_webhooks_of_other_parties_are_not_found(pool: Pool, operation: str, caller: str) -> None:
    made, before = subscribe(pool), rows(pool)
    for webhook_id in (made["id"], UNKNOWN, "x", "%00", "%F0%9F%98%80", made["id"].upper(), made["id"] + "%20"):
        assert sentences(ask(pool, caller, operation, webhook_id), 404) == NOT_FOUND
    assert rows(pool) == before
    assert made["id"] not in call(pool, caller, "GET").text


def test_webhooks_refuse_callers_without_registration(pool: Pool) -> None:
    """Who may be told what is judged from the register, where such a caller is not."""
    stranger = party("idp.example:maker", PartyRole.OEM, wmis="WEX")

    async def run() -> None:
        async with opened(pool.settings) as store:
            pinger = Pinger(WebhookSender(store, OutboundClient(), utc_now, 1.0))
            webhooks = Webhooks(store, pinger=pinger, allow_http=False, max_overlap=60)
            caller, at = Caller(stranger), datetime.now(UTC)
            for attempt in (webhooks.add(caller, WebhookSpec(URL, (CREATED,)), at), webhooks.list_all(caller)):
                with pytest.raises(
                    NotAuthorised, match=r"^Webhooks are for parties that are registered at this pool\.$"
                ):
                    await attempt

    before = rows(pool)
    asyncio.run(run())
    assert rows(pool) == before


def test_webhooks_check_routing_headers(pool: Pool) -> None:
    made = subscribe(pool)
    for operation in CALLS:
        own = {"OPNC-from-party-type": "oem", "OPNC-from-party-id": "WEX"}
        foreign = {**own, "OPNC-from-party-id": "WXB"}
        assert ask(pool, "oem", operation, made["id"], headers=foreign).status_code == 403
        elsewhere = {"OPNC-to-party-type": "ccp", "OPNC-to-party-id": "another"}
        assert ask(pool, "oem", operation, made["id"], headers=elsewhere).status_code == 404
        assert ask(pool, "oem", operation, made["id"], headers=own).is_success
    assert sentences(call(pool, "oem", "GET", f"/{made['id']}"), 404) == NOT_FOUND, "the last one has deleted it"


def test_webhooks_path_is_case_insensitive(pool: Pool) -> None:
    made = subscribe(pool)
    headers = {"Authorization": f"Bearer {pool.token('oem')}"}
    for path in (f"/OPNC/V1/Event/EndPoints/{made['id']}", f"/opnc/v1/EVENT/endpoints/{made['id']}/Deliveries"):
        assert pool.http.get(path, headers=headers).status_code == 200
    assert sentences(call(pool, "oem", "PATCH", f"/{made['id']}"), 405)
