"""Peers that are changed while the pool runs: admin API over HTTP, calls to scripted peers, and the audit trail."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import pytest

from ccp.server.domain.actor import Actor
from ccp.server.domain.parties import PartyRole
from ccp.server.http.admin_operations import BASE
from ccp.server.metrics import Metrics
from ccp.server.pool.peer_registry import PeerRegistry
from ccp.server.pool.peers import RegisteredPeers
from ccp.server.storage.queries import subscriptions
from ccp.server.storage.queries.subscriptions import Subscription
from ccp.testing.pki import PKI
from ccp.x509.path_validation import TrustAnchors, VerifiedChain
from tests.scripted_server import Reply, Scripted, error, json_reply, scripted
from tests.server.access.parties.admin_calls import call, ok, within_five_seconds
from tests.server.http.api.answers import sentences
from tests.server.pool.peers.requests import to
from tests.waiting import wait_until
from tests.world import AT, Pool, new_emaid, opened, party, start

ADMIN = party("admin", PartyRole.ADMIN)
SECRET, NEXT = "first-secret", "second-secret"
ASKED = "/opnc/v1/ccp/contractData/emaid/*"


@dataclass
class Place:
    """A pool, and two servers at which a peer may be."""

    pool: Pool
    old: Scripted
    new: Scripted

    def add(self, party_id: str, **members: Any) -> dict[str, Any]:
        body = {"party_id": party_id, "base_url": self.old.url, "secret": SECRET, **members}
        return ok(call(self.pool, "POST", "/peers", json=body), 201)

    def ask(self, party_id: str) -> httpx.Response:
        """A request that is addressed to a peer, which has nothing."""
        return self.pool.emsp.get(f"/contractData/emaid/{new_emaid()}", headers=to(party_id))

    def until_asked(self, server: Scripted, party_id: str, token: str = SECRET) -> None:
        """Ask a peer until a server gets the request with a token."""

        def asked() -> bool:
            server.received.clear()
            self.ask(party_id)
            found = [each.headers["authorization"] for each in server.received if each.path.startswith(ASKED[:-1])]
            return found == [f"Bearer {token}"]

        within_five_seconds(asked)

    def recorded(self, party_id: str) -> list[tuple[str, str, dict[str, Any]]]:
        rows = self.pool.sql("select action, actor, subject from audit where action like 'peer.%' order by at, number")
        found = [(action, actor, json.loads(subject)) for action, actor, subject in rows]
        return [row for row in found if row[2]["peer"] == party_id]


@pytest.fixture(scope="module")
def place(pkis: dict[str, PKI]) -> Iterator[Place]:
    with ExitStack() as stack:
        pool = stack.enter_context(start({"iso2": pkis["iso2"]}, [ADMIN], pool_id="pool-a", refresh_interval=0.1))
        servers = [stack.enter_context(scripted()) for _ in range(2)]
        for server in servers:
            server.on(ASKED, error(404))
        yield Place(pool, *servers)


def test_peer_is_asked_changed_rotated_disabled_and_removed_without_a_restart(place: Place) -> None:
    pool, name = place.pool, "pool-b"
    added = place.add(name)
    assert added == {
        "party_id": name, "base_url": place.old.url, "dialect": "opnc", "client_id": None, "token_url": None,
        "audience": None, "v2g_roots": [], "provider_ids": [], "enabled": True,
    }  # fmt: skip
    place.until_asked(place.old, name)
    changed = ok(call(pool, "PATCH", f"/peers/{name}", json={"base_url": place.new.url, "provider_ids": ["de-exa"]}))
    assert changed == {**added, "base_url": place.new.url, "provider_ids": ["DEEXA"]}
    place.until_asked(place.new, name)
    assert ok(call(pool, "POST", f"/peers/{name}/rotate-secret", json={"secret": NEXT})) == changed
    place.until_asked(place.new, name, NEXT)
    unknown = "No pool with the id in OPNC-to-party-id is known here."
    assert ok(call(pool, "POST", f"/peers/{name}/disable"))["enabled"] is False
    within_five_seconds(lambda: place.ask(name).json()["errorMessages"] == [unknown])
    assert ok(call(pool, "POST", f"/peers/{name}/enable")) == changed
    place.until_asked(place.new, name, NEXT)
    source = f"peer:{name}"
    pool.change(
        subscriptions.put(Subscription("s-1", source, place.new.url, "w", "hmac", ("root.cert.added",), AT, AT))
    )
    assert ok(call(pool, "DELETE", f"/peers/{name}")) == changed
    within_five_seconds(lambda: place.ask(name).json()["errorMessages"] == [unknown])
    assert sentences(call(pool, "GET", f"/peers/{name}"), 404) == [f"There is no peer {name}."]
    assert pool.sql("select count(*) from subscription") == [(0,)]
    rows = place.recorded(name)
    assert [(action, actor) for action, actor, _ in rows] == [
        (f"peer.{what}", "admin") for what in ("added", "edited", "edited", "disabled", "enabled", "removed")
    ]
    assert rows[1][2] == {
        "peer": name, "changed": ["base_url", "provider_ids"],
        "before": {"base_url": place.old.url, "provider_ids": []},
        "after": {"base_url": place.new.url, "provider_ids": ["DEEXA"]},
    }  # fmt: skip
    assert rows[2][2] == {"peer": name, "changed": ["token"], "before": {}, "after": {}}
    assert "subscription.removed" in {row[0] for row in pool.sql("select action from audit")}


@pytest.mark.parametrize("change", ["moved", "rotated", "disabled", "removed"])
def test_peer_change_does_not_break_a_call_in_progress(place: Place, change: str) -> None:
    pool, name = place.pool, f"busy-{change}"
    method, path, body = {
        "moved": ("PATCH", f"/peers/{name}", {"base_url": place.new.url}),
        "rotated": ("POST", f"/peers/{name}/rotate-secret", {"secret": NEXT}),
        "disabled": ("POST", f"/peers/{name}/disable", None),
        "removed": ("DELETE", f"/peers/{name}", None),
    }[change]
    place.add(name)
    place.until_asked(place.old, name)
    place.old.received.clear()
    place.old.on(ASKED, Reply(404, error(404, "Late.").body, error(404).headers, delay=1.5))
    try:
        with ThreadPoolExecutor(1) as one:
            asked = one.submit(place.ask, name)
            wait_until(lambda: bool(place.old.received))
            ok(call(pool, method, path, json=body))
            # The worker has the change when it answers by it, which is long before the call ends.
            gone = change in ("disabled", "removed")
            if gone:
                within_five_seconds(lambda: "No pool with the id" in place.ask(name).text)
            else:
                server = place.new if change == "moved" else place.old
                place.until_asked(server, name, SECRET if change == "moved" else NEXT)
            assert sentences(asked.result(), 404) == ["Late."]
    finally:
        place.old.on(ASKED, error(404))


def test_peer_secrets_are_in_no_answer_and_in_no_audit_row(place: Place) -> None:
    pool, name = place.pool, "quiet"
    secret = "a-very-secret-secret"
    body = {"party_id": name, "base_url": place.old.url, "client_id": "us", "secret": secret}
    answers = [call(pool, "POST", "/peers", json=body), call(pool, "POST", "/peers", json=body)]
    answers += [call(pool, "POST", "/peers", json={**body, "party_id": "other", "secret": f"{secret}\n"})]
    answers += [call(pool, "POST", "/peers", json={**body, "party_id": "other", "secret": [secret]})]
    answers += [call(pool, "POST", f"/peers/{name}/rotate-secret", json={"secret": f"{secret}-2", "client_id": "we"})]
    answers += [call(pool, "GET", path) for path in ("/peers", f"/peers/{name}")]
    assert [answer.status_code for answer in answers] == [201, 400, 400, 400, 200, 200, 200]
    assert pool.sql("select client_id, secret from peer where party_id = ?", name) == [("we", f"{secret}-2")]
    shown = [answer.text for answer in answers] + [str(row) for row in pool.sql("select * from audit")]
    assert not [text for text in shown if secret in text]
    assert sentences(answers[1], 400) == [f"There is a peer {name} already."]


URL = "The URL of a pool consists of http or https, a host, and optionally a port and a path."


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"base_url": "b.example"}, f"base_url : {URL}"),
        ({"base_url": "https://b.example/?a=b"}, f"base_url : {URL}"),
        ({"base_url": "https://u:p@b.example"}, "base_url : The URL of a pool must not contain credentials."),
        ({"base_url": "https://b.example", "client_id": "us", "token_url": "ftp://b.example"}, f"token_url : {URL}"),
        ({"token_url": "https://b.example"}, None),
        ({"party_id": "a/b"}, 'party_id : must match "^[A-Za-z0-9][A-Za-z0-9*._:-]{0,63}$"'),
        ({"party_id": "\u0440ool-b"}, 'party_id : must match "^[A-Za-z0-9][A-Za-z0-9*._:-]{0,63}$"'),
        ({"party_id": "pcp"}, "party_id : pcp is the name of a service"),
        ({"secret": ""}, "secret : must be 1 to 4096 printable characters"),
        ({"secret": "s" * 4097}, "secret : must be 1 to 4096 printable characters"),
        ({"secret": "two words"}, None),
        ({"dialect": "ocpp"}, None),
        ({"v2g_roots": ["ab"]}, 'v2g_roots : must match "^[0-9a-fA-F]{64}$"'),
        ({"enabled": False}, "enabled : unknown member"),
        ({"base_url": None}, "base_url : must not be null"),
    ],
)
def test_peer_that_cannot_be_called_is_refused(place: Place, members: dict[str, Any], sentence: str | None) -> None:
    body = {"party_id": "refused", "base_url": "https://b.example", "secret": SECRET, **members}
    refused = sentences(call(place.pool, "POST", "/peers", json=body), 400)
    assert sentence is None or refused == [sentence]
    assert len(refused) == 1
    assert place.pool.sql("select count(*) from peer where party_id = 'refused'") == [(0,)]


def test_peer_ids_that_differ_in_case_only_are_refused(place: Place) -> None:
    place.add("Case-B")
    body = {"party_id": "case-b", "base_url": "https://b.example", "secret": SECRET}
    assert sentences(call(place.pool, "POST", "/peers", json=body), 400) == [
        "The party id case-b could be taken for that of the peer Case-B."
    ]


def test_peer_change_with_an_old_etag_is_refused(place: Place) -> None:
    pool, name = place.pool, "tagged"
    place.add(name)
    tag = call(pool, "GET", f"/peers/{name}").headers["etag"]
    renewed = call(pool, "PATCH", f"/peers/{name}", json={"dialect": "opcp"})
    assert renewed.headers["etag"] == call(pool, "GET", f"/peers/{name}").headers["etag"] != tag
    for method, path, body in (
        ("PATCH", "", {"dialect": "opnc"}),
        ("DELETE", "", None),
        ("POST", "/disable", None),
        ("POST", "/rotate-secret", {"secret": NEXT}),
    ):
        refused = pool.http.request(
            method, f"{BASE}/peers/{name}{path}", json=body,
            headers={"Authorization": f"Bearer {pool.token('admin')}", "If-Match": tag},
        )  # fmt: skip
        assert sentences(refused, 412) == ["The peer is not as If-Match says; read it again."]
    assert ok(call(pool, "GET", f"/peers/{name}"))["dialect"] == "opcp"


def test_peer_list_is_ordered_and_has_peers_with_client_credentials(place: Place) -> None:
    place.old.on("/oauth/token", json_reply({"access_token": "granted", "token_type": "Bearer", "expires_in": 60}))
    place.add("with-client", client_id="us")
    place.until_asked(place.old, "with-client", "granted")
    listed = ok(call(place.pool, "GET", "/peers"))["peers"]
    assert [peer["party_id"] for peer in listed] == sorted(peer["party_id"] for peer in listed)
    assert [peer["client_id"] for peer in listed if peer["party_id"] == "with-client"] == ["us"]


def test_peer_links_that_were_replaced_are_closed_after_their_calls(place: Place) -> None:
    """The task that closes them runs every five seconds; here it is called."""

    async def run() -> None:
        async with opened(place.pool.settings) as store:
            peers = RegisteredPeers(
                store, lambda: TrustAnchors.build([]), not_revoked, place.pool.settings, Metrics()
            )  # fmt: skip
            await peers.refresh()
            link = peers._links["replaced"]
            link.addressed_shares._take("caller")
            await PeerRegistry(store).disable("replaced", Actor("cli:tester"), AT)
            await peers.refresh()
            assert [retired for _, retired in peers._retired] == [link]
            await peers._close_retired()
            assert len(peers._retired) == 1  # A broadcast may still hold it.
            peers._retired = [(time.monotonic() - 30, link)]
            await peers._close_retired()
            assert len(peers._retired) == 1
            link.addressed_shares.release("caller")
            await peers._close_retired()
            assert peers._retired == []
            await peers.close()

    place.add("replaced")
    asyncio.run(run())


async def not_revoked(chain: VerifiedChain, now: datetime) -> None:
    """No chain is revoked."""
