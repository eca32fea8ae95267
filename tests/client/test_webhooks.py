"""Webhook management by the client library: both clients, both dialects, a pool and a receiver on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ccp.client import (
    BadRequestError,
    Dialect,
    MalformedResponseError,
    NotFoundError,
    RemovedWebhook,
    RetryPolicy,
    UnavailableError,
)
from ccp.client.errors import NoResponseError
from ccp.errors import FieldError
from ccp.testing.pki import PKI
from tests.client.either import KINDS, EitherClient, connect, credentials
from tests.scripted_server import DROP, Reply, json_reply, scripted
from tests.server.events.receiver import Receiver, receiving
from tests.server.events.verifiers import Verifying, java_style
from tests.world import Pool, start

pytestmark = pytest.mark.parametrize("kind", KINDS)
CREATED, DELETED = "oem.contract.created", "oem.contract.deleted"
PATHS = {Dialect.OPNC: "/opnc/v1/event/endpoints", Dialect.OPCP: "/v1/webhook/endpoints"}


@pytest.fixture(scope="module")
def hooked(pkis: dict[str, PKI]) -> Iterator[Pool]:
    options: dict[str, Any] = {"event_allow_http": True, "egress_allow_networks": ("127.0.0.0/8",)}
    with start({"iso2": pkis["iso2"]}, event_pings_per_minute=0, **options) as running:
        yield running


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


def scripted_client(kind: str, url: str, dialect: Dialect = Dialect.OPNC) -> EitherClient:
    return EitherClient(kind, url, token="a-token", dialect=dialect, retry=RetryPolicy(max_retries=2, backoff=0.01))


@pytest.mark.parametrize("dialect", list(Dialect))
def test_client_manages_webhooks(hooked: Pool, receiver: Receiver, kind: str, dialect: Dialect) -> None:
    url = f"{receiver.url}/{kind}/{dialect}"
    with connect(kind, hooked.base_url, credentials=credentials(hooked, "oem"), dialect=dialect) as oem:
        made = oem.create_webhook(
            url, [CREATED], wmis=["WEX"], description="ours", metadata={"a": [1]}, signature_format="bare"
        )
        assert made.secret is not None
        assert made.secret not in repr(made)
        assert (made.url, made.events, made.wmis, made.enabled) == (url, (CREATED,), ("WEX",), True)
        assert (made.signature_format, made.role, made.owner) == ("bare", "OEM", "oem")
        assert (made.description, made.metadata) == ("ours", {"a": [1]})
        assert abs(datetime.now(UTC) - made.created) < timedelta(minutes=1)

        shown = oem.get_webhook(made.id)
        assert shown.secret is None
        assert oem.list_webhooks() == (shown,)
        changed = oem.change_webhook(
            made.id, url, events=[CREATED, DELETED], enabled=False, signature_format="sha256", description=""
        )
        assert (changed.events, changed.enabled, changed.signature_format) == ((CREATED, DELETED), False, "sha256")
        assert oem.change_webhook(made.id, url) == changed

        partner = Verifying(java_style, made.secret)
        receiver.decides(f"/{kind}/{dialect}", partner)
        pinged = oem.ping_webhook(made.id)
        assert (pinged.delivered, pinged.status, pinged.error, pinged.previous_secret) == (True, 200, None, False)
        assert partner.accepted[-1].event["eventId"] == pinged.event_id

        new = oem.rotate_webhook_secret(made.id, overlap=60)
        assert new.secret not in repr(new)
        (until,) = new.previous_valid_until
        assert timedelta(seconds=50) < until - datetime.now(UTC) <= timedelta(seconds=60)
        assert oem.get_webhook(made.id).previous_secrets_valid_until == (until,)
        assert oem.ping_webhook(made.id).previous_secret
        partner.secret = new.secret
        assert not oem.ping_webhook(made.id).previous_secret
        assert oem.rotate_webhook_secret(made.id, overlap=0).previous_valid_until == ()
        failed = oem.ping_webhook(made.id)
        assert (failed.delivered, failed.status, failed.error) == (False, 401, "127.0.0.1 answered 401.")

        assert oem.remove_webhook(made.id) == RemovedWebhook(confirmed=True)
        assert oem.list_webhooks() == ()
        for call in (oem.get_webhook, oem.remove_webhook, oem.ping_webhook, oem.rotate_webhook_secret):
            with pytest.raises(NotFoundError):
                call(made.id)


def test_client_says_what_is_wrong_with_a_webhook(hooked: Pool, kind: str) -> None:
    with connect(kind, hooked.base_url, credentials=credentials(hooked, "oem")) as oem:
        with pytest.raises(BadRequestError, match="is for a role that the caller does not have"):
            oem.create_webhook("https://hooks.example/x", ["emsp.contract.rejected.by.oem"])
        for wrong in (
            {"events": CREATED},
            {"events": [CREATED], "wmis": "WEX"},
            {"events": [], "provider_ids": "DEEXA"},
        ):
            with pytest.raises(FieldError, match="must be a list, not one text"):
                oem.create_webhook("https://hooks.example/x", **wrong)
        for webhook_id in ("", ".", "..", "a\nb", "x" * 201):
            with pytest.raises(FieldError, match="webhook_id"):
                oem.get_webhook(webhook_id)
        with pytest.raises(NotFoundError):
            oem.get_webhook("../../ccp/contractData?a=b#c")


def test_client_creates_and_rotates_at_most_once(kind: str) -> None:
    """Another attempt could create a second webhook, or replace a secret that was never seen."""
    with scripted() as server:
        client = scripted_client(kind, server.url)
        for path, call in (
            (PATHS[Dialect.OPNC], lambda: client.create_webhook("https://hooks.example/x", [CREATED])),
            (PATHS[Dialect.OPNC] + "/a/secret", lambda: client.rotate_webhook_secret("a")),
            (PATHS[Dialect.OPNC] + "/a/ping", lambda: client.ping_webhook("a")),
        ):
            for reply, error in ((DROP, NoResponseError), (Reply(503), UnavailableError)):
                before = len(server.asked(path))
                server.on(path, reply)
                with pytest.raises(error):
                    call()
                assert len(server.asked(path)) == before + 1
        client.close()


def test_client_removes_once_more_after_a_lost_response(kind: str) -> None:
    with scripted() as server:
        server.on(f"{PATHS[Dialect.OPNC]}/a", DROP, Reply(404))
        client = scripted_client(kind, server.url)
        assert client.remove_webhook("a") == RemovedWebhook(confirmed=False)
        client.close()


def test_client_reads_what_the_descriptions_require(kind: str) -> None:
    """Another server's webhook: the required members, and the events under either name."""
    least = {"id": "xyzedjds", "created": 1623760573, "url": "https://mywebhooks.example/payload"}
    with scripted() as server:
        client = scripted_client(kind, server.url, Dialect.OPCP)
        for names in ({"enabledEvents": [CREATED]}, {"events": [CREATED]}):
            server.on(f"{PATHS[Dialect.OPCP]}/xyzedjds", json_reply({**least, **names}))
            found = client.get_webhook("xyzedjds")
            assert (found.id, found.events, found.enabled, found.secret) == ("xyzedjds", (CREATED,), True, None)
        client.close()


@pytest.mark.parametrize(
    "body",
    [
        {"id": "a"},
        [],
        {"id": "a", "created": 10**30, "url": "x", "enabledEvents": []},
        {"id": "a", "created": 1, "url": "x", "enabledEvents": ["x"] * 10_000},
        {"id": "a", "created": 1, "url": "x", "enabledEvents": [], "previousSecretsValidUntil": ["soon"]},
    ],
)
def test_client_refuses_malformed_webhooks(kind: str, body: Any) -> None:
    with scripted() as server:
        server.on(f"{PATHS[Dialect.OPNC]}/a", json_reply(body))
        server.on(PATHS[Dialect.OPNC], json_reply([body]))
        client = scripted_client(kind, server.url)
        for call in (lambda: client.get_webhook("a"), client.list_webhooks):
            with pytest.raises(MalformedResponseError):
                call()
        client.close()
