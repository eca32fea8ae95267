"""Event service over HTTP: creation, visibility and deliveries of webhooks."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
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
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import webhooks as webhook_queries
from ccp.server.storage.queries.delivery_queue import AttemptOutcome
from ccp.testing.pki import PKI
from tests.cli.run import ccp_ok
from tests.server.events.webhook_api import (
    BASE,
    CREATED,
    DELETED,
    UPDATED,
    URL,
    call,
    copied,
    fanned_out,
    ok,
    subscribe,
    tried,
    without_secret,
)
from tests.server.http.api.answers import sentences
from tests.world import Pool, new_emaid, opened, party, start

UNKNOWN = "00000000-0000-4000-8000-000000000000"
NOT_FOUND = ["There is no endpoint with this id."]


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool without event delivery. Each test creates its webhooks."""
    too = [
        party("admin", PartyRole.ADMIN),
        party("fresh_oem", PartyRole.OEM, wmis="WFA WFB"),
        party("full", PartyRole.OEM, wmis="FUL"),
    ]
    with start({"iso2": pkis["iso2"]}, too, event_dispatch=False) as running:
        yield running


@pytest.fixture(autouse=True)
def forget(pool: Pool) -> Iterator[None]:
    """A party may have so many webhooks only, and no test wants those of another."""
    yield
    for table in ("webhook", "delivery", "outbox"):
        pool.sql(f"delete from {table}")


def rows(pool: Pool) -> list[Any]:
    """Everything that a refused call must leave as it is."""
    return pool.sql("select * from webhook order by id")


# --- Subscribing -----------------------------------------------------------------------------------------------------


def test_oem_creates_a_webhook_and_gets_its_secret(pool: Pool) -> None:
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


def test_emsp_webhook_shows_provider_ids(pool: Pool) -> None:
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


def test_what_is_no_json_object_is_refused(pool: Pool) -> None:
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


# --- Whose they are --------------------------------------------------------------------------------------------------

CALLS = {
    "PostEndpoint": ("POST", "", {"url": URL, "enabledEvents": ["root.cert.added"]}),
    "GetEndpoints": ("GET", "", None),
    "GetEndpointById": ("GET", "/{id}", None),
    "UpdateEndpointById": ("PUT", "/{id}", {"url": URL}),
    "GetEndpointDeliveries": ("GET", "/{id}/deliveries", None),
    "RotateEndpointSecret": ("POST", "/{id}/secret", None),
    "PingEndpoint": ("POST", "/{id}/ping", None),
    "DeleteEndpointById": ("DELETE", "/{id}", None),
}
MAY = {"oem", "emsp", "cpo", "cps", "peer", "everything"}


def ask(pool: Pool, caller: str | None, operation: str, webhook_id: str, **options: Any) -> httpx.Response:
    method, path, body = CALLS[operation]
    return call(pool, caller, method, path.replace("{id}", webhook_id), json=body, **options)


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


# --- Changing and removing -------------------------------------------------------------------------------------------


def test_webhook_edit_changes_given_fields_and_keeps_the_secret(pool: Pool) -> None:
    created = subscribe(pool, "fresh_oem", CREATED, DELETED, wmi=["WFA"], description="first", metadata={"a": 1})
    path, made = f"/{created['id']}", without_secret(created)

    def put(**members: Any) -> dict[str, Any]:
        members = {"url": URL, **members}
        answer = ok(call(pool, "fresh_oem", "PUT", path, json=members))
        after: dict[str, Any] = ok(call(pool, "fresh_oem", "GET", path))
        assert answer == after
        assert pool.sql("select secret from webhook where id = ?", created["id"]) == [(created["secret"],)]
        return after

    assert sentences(call(pool, "fresh_oem", "PUT", path, json={"status": "disabled"}), 400) == ["url : is missing"]
    assert put() == made
    assert put(description=None, metadata=None, status=None, events=None, wmis=None) == made
    assert put(status="disabled") == {**made, "status": "disabled"}
    assert put(url="https://hooks.example/new", status="enabled") == {**made, "url": "https://hooks.example/new"}
    assert put(wmis=["WFB"]) == {**made, "wmis": ["WFB"]}
    assert put(wmi=[]) == {**made, "wmis": ["WFA", "WFB"]}
    assert put(metadata={}, description="") == {**made, "wmis": ["WFA", "WFB"], "metadata": {}, "description": ""}
    assert put(enabledEvents=[UPDATED])["events"] == [UPDATED]
    assert put(signatureFormat="bare")["signatureFormat"] == "bare"
    assert put()["signatureFormat"] == "bare"
    assert put(signatureFormat="sha256")["signatureFormat"] == "sha256"
    refused = call(pool, "fresh_oem", "PUT", path, json={"url": URL, "signatureFormat": "md5"})
    assert sentences(refused, 400) == ["signatureFormat : must be 'sha256' or 'bare'"]


def test_webhook_edit_with_unchanged_ids_sets_no_filter(pool: Pool) -> None:
    made = subscribe(pool, "fresh_oem")
    assert made["wmis"] == ["WFA", "WFB"]
    again = ok(call(pool, "fresh_oem", "PUT", f"/{made['id']}", json={**made, "description": "the same otherwise"}))
    assert again["wmis"] == ["WFA", "WFB"]
    assert pool.sql("select wmis from webhook where id = ?", made["id"]) == [("[]",)]
    pinned = subscribe(pool, "fresh_oem", wmis=["WFB", "WFA"])
    assert json.loads(pool.sql("select wmis from webhook where id = ?", pinned["id"])[0][0]) == ["WFA", "WFB"]


def test_webhook_remove_deletes_deliveries_in_batches(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    made, kept = subscribe(pool), subscribe(pool, "other_oem")
    fanned_out(pool, pool.publish(pool.car()))
    copied(pool, 2500)
    before: list[int] = []
    whole = webhook_queries.remove

    def measured(id: str) -> Query[bool]:
        before.append((yield "select count(*) from delivery where webhook_id = $1", (id,))[0][0])
        return (yield from whole(id))

    monkeypatch.setattr(webhook_queries, "remove", measured)
    assert call(pool, "other_oem", "DELETE", f"/{made['id']}").status_code == 404
    assert pool.sql("select count(*) from delivery where webhook_id = ?", made["id"]) == [(2501,)]
    assert call(pool, "oem", "DELETE", f"/{made['id']}").status_code == 200
    assert before == [0]
    assert pool.sql("select count(*) from delivery where webhook_id = ?", made["id"]) == [(0,)]
    assert call(pool, "other_oem", "GET", f"/{kept['id']}").status_code == 200


def test_webhook_changes_are_audited_without_secret_and_path(pool: Pool) -> None:
    def trail() -> list[tuple[str, str, str, dict[str, Any]]]:
        found = pool.sql("select actor, action, trace_id, subject from audit order by at")
        return [(*row[:3], json.loads(row[3])) for row in found if made["id"] in row[3]]

    made = subscribe(pool, "oem", CREATED)
    body = {"url": URL + "&more", "status": "disabled"}
    edited = call(pool, "oem", "PUT", f"/{made['id']}", json=body)
    assert edited.status_code == call(pool, "oem", "PUT", f"/{made['id']}", json=body).status_code == 200
    call(pool, "other_oem", "PUT", f"/{made['id']}", json=body)
    removed = call(pool, "oem", "DELETE", f"/{made['id']}")
    shown = {
        "endpoint": made["id"],
        "party": "oem",
        "host": "https://hooks.example",
        "events": [CREATED],
        "wmis": [],
        "provider_ids": [],
        "signature_format": "sha256",
    }
    change = {"changed": ["url", "enabled"], "before": {"enabled": True}, "after": {"enabled": False}}
    added, *others = trail()
    assert added[:2] + added[3:] == ("oem", "webhook.added", {**shown, "enabled": True})
    assert others == [
        (*("oem", "webhook.edited", edited.headers["x-trace-id"]), {"endpoint": made["id"], "party": "oem", **change}),
        ("oem", "webhook.removed", removed.headers["x-trace-id"], {**shown, "enabled": False}),
    ]
    whole = str(pool.sql("select subject from audit"))
    assert made["secret"] not in whole
    assert "in-the-address" not in whole
    assert ccp_ok("audit", "verify", env={"CCP_DATABASE": pool.settings.database}).status == 0


def test_webhook_remove_deletes_pending_deliveries(pool: Pool) -> None:
    made = subscribe(pool, "other_oem", CREATED)
    other = subscribe(pool, "other_oem", CREATED)
    fanned_out(pool, pool.publish(pool.car(wmi="WXB")))
    count = "select count(*) from delivery where webhook_id = ?"
    assert [pool.sql(count, each["id"]) for each in (made, other)] == [[(1,)], [(1,)]]
    answer = call(pool, "other_oem", "DELETE", f"/{made['id']}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert [pool.sql(count, each["id"]) for each in (made, other)] == [[(0,)], [(1,)]]
    for operation in ("GetEndpointById", "UpdateEndpointById", "GetEndpointDeliveries", "DeleteEndpointById"):
        assert sentences(ask(pool, "other_oem", operation, made["id"]), 404) == NOT_FOUND
    assert call(pool, "other_oem", "DELETE", f"/{other['id']}").status_code == 200


def test_webhook_is_active_at_once_in_its_own_process(pool: Pool) -> None:
    """Other processes see it within about a second. Delivery events are written only while a webhook subscribes."""
    event = "emsp.contract.delivered.to.oem"
    pool.sql("delete from outbox")
    cars = [pool.car() for _ in range(5)]
    for car in cars:
        pool.publish(car)
    pool.ask(cars[0])  # No webhook subscribes to this event.
    for car in cars:
        made = subscribe(pool, "emsp", event)
        pool.ask(car)
        assert call(pool, "emsp", "DELETE", f"/{made['id']}").status_code == 200
    pool.ask(cars[0])  # Nor of this, any more.
    deadline = time.monotonic() + 30
    select = "select pcid from outbox where kind = ? order by pcid"
    while len(found := pool.sql(select, event)) < len(cars):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    time.sleep(0.5)  # Time for what must not come.
    assert pool.sql(select, event) == [(car.pcid,) for car in cars]


# --- Deliveries ------------------------------------------------------------------------------------------------------


def deliveries(pool: Pool, webhook: dict[str, Any], caller: str = "oem", **query: Any) -> dict[str, Any]:
    page: dict[str, Any] = ok(call(pool, caller, "GET", f"/{webhook['id']}/deliveries", params=query))
    assert set(page) == {"deliveries", "nextCursor"}
    return page


def test_webhook_deliveries_show_each_outcome(pool: Pool) -> None:
    made = subscribe(pool)
    assert deliveries(pool, made) == {"deliveries": [], "nextCursor": None}
    car = pool.car()
    contract = pool.publish(car)
    fanned_out(pool, contract)
    (item,) = deliveries(pool, made)["deliveries"]
    assert str(uuid.UUID(item["eventId"])) == item["eventId"]
    times = {name: datetime.fromisoformat(item[name]) for name in ("timestamp", "nextAttempt")}
    assert all(timedelta() <= datetime.now(UTC) - each < timedelta(seconds=30) for each in times.values())
    waiting = {
        "eventId": item["eventId"],
        "eventType": CREATED,
        "pcid": car.pcid,
        "emaid": contract.emaid,
        "xsdMsgDefNamespace": "urn:iso:15118:2:2013:MsgDef",
        "timestamp": item["timestamp"],
        "state": "waiting",
        "attempts": 0,
        "nextAttempt": item["nextAttempt"],
        "lastStatus": None,
        "lastError": None,
        "finishedAt": None,
    }
    assert item == waiting

    assert tried(pool, made["id"], AttemptOutcome.FAILED, error="hooks.example cannot be reached.") == 1
    (item,) = deliveries(pool, made)["deliveries"]
    again = datetime.fromisoformat(item.pop("nextAttempt")) - datetime.now(UTC)
    assert timedelta(minutes=59) < again <= timedelta(hours=1)
    failed = {**waiting, "attempts": 1, "lastError": "hooks.example cannot be reached."}
    assert item == {name: value for name, value in failed.items() if name != "nextAttempt"}

    pool.sql("update delivery set lease_until = 0 where event_id = ?", item["eventId"])
    assert tried(pool, made["id"], AttemptOutcome.REJECTED, 409, "It answered 409.") == 1
    (item,) = deliveries(pool, made)["deliveries"]
    assert datetime.now(UTC) - datetime.fromisoformat(item["finishedAt"]) < timedelta(seconds=30)
    assert (item["state"], item["attempts"], item["nextAttempt"]) == ("dead", 2, None)
    assert (item["lastStatus"], item["lastError"]) == (409, "It answered 409.")


def test_webhook_deliveries_are_paged_and_filtered(pool: Pool) -> None:
    made = subscribe(pool, "oem", CREATED, DELETED)
    published = [pool.publish(pool.car(), new_emaid()) for _ in range(3)]
    fanned_out(pool, *published)
    assert tried(pool, made["id"], AttemptOutcome.DELIVERED, 200) == 3
    for contract in published[:2]:
        assert pool.emsp.delete(f"/signedcontractdata/{contract.emaid}").status_code == 200
    fanned_out(pool)
    published.append(pool.publish(pool.car()))
    assert tried(pool, made["id"], AttemptOutcome.REJECTED, 400, "It answered 400.") == 2
    fanned_out(pool)

    whole = deliveries(pool, made)
    states = [item["state"] for item in whole["deliveries"]]
    assert states == ["waiting", "dead", "dead", "delivered", "delivered", "delivered"]
    assert whole["nextCursor"] is None
    times = [item["timestamp"] for item in whole["deliveries"]]
    assert times == sorted(times, reverse=True)
    for limit in (1, 2, 4, 6):
        pages, cursor = [], {}
        while True:
            page = deliveries(pool, made, limit=limit, **cursor)
            pages.append(page["deliveries"])
            if page["nextCursor"] is None:
                break
            cursor = {"cursor": page["nextCursor"]}
        assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
        assert [item for page in pages for item in page] == whole["deliveries"]
    for state in ("waiting", "delivered", "dead"):
        found = deliveries(pool, made, state=state, limit=1000)["deliveries"]
        assert found == [item for item in whole["deliveries"] if item["state"] == state]
    dead = deliveries(pool, made, state="dead", limit=1)
    assert deliveries(pool, made, state="dead", cursor=dead["nextCursor"])["deliveries"] == whole["deliveries"][2:3]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"state": "lost"}, "state : must be 'waiting', 'delivered' or 'dead'"),
        ({"limit": "0"}, "limit : must be at least 1"),
        ({"limit": "1001"}, "limit : must be at most 1000"),
        ({"limit": "x"}, "limit : must be an integer"),
        ({"cursor": "x"}, r'cursor : must match "^[0-9]{1,16}\.[0-9a-f-]{36}$"'),
    ],
)
def test_webhook_deliveries_refuse_invalid_pages(pool: Pool, query: dict[str, str], expected: str) -> None:
    made = subscribe(pool)
    assert sentences(call(pool, "oem", "GET", f"/{made['id']}/deliveries", params=query), 400) == [expected]


def test_webhook_deliveries_accept_extreme_cursors(pool: Pool) -> None:
    made = subscribe(pool)
    fanned_out(pool, pool.publish(pool.car()))
    for start_at, found in (("9" * 16, 1), ("0", 0)):
        assert len(deliveries(pool, made, cursor=f"{start_at}.{UNKNOWN}")["deliveries"]) == found
