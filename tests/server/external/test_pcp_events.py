"""Webhook of the Provisioning Certificate Pool: signatures, and which contracts an event removes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import sqlite3
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from ccp.errors import CCPError
from ccp.ids import EMAID, PCID, Namespace
from ccp.server.access.authorization_server import AuthorizationServer
from ccp.server.app import build_services
from ccp.server.audit.pseudonyms import Pseudonyms
from ccp.server.audit.refusals import AccessDenialRecorder
from ccp.server.domain.contracts import SignedContract
from ccp.server.external.provisioning_pool import key_fingerprint
from ccp.server.http import errors
from ccp.server.http.middleware.tracing import TraceMiddleware
from ccp.server.http.request_context import RequestContext
from ccp.server.http.routes.pcp_webhook import PATH, pcp_route
from ccp.server.metrics import Metrics
from ccp.server.pool.peers import NoPeers
from ccp.server.sandbox.local_pool import loopback
from ccp.server.settings import LogIdentifiers, Settings
from ccp.server.storage import Store, connect
from ccp.server.storage.queries import contracts as queries
from ccp.testing.pki import PKI, Credential
from tests.databases import with_schema
from tests.scripted_server import CLOSE, Reply, Scripted, error, json_reply, scripted
from tests.server.external.examples import HAPPENED, chain_body, provisioning_event, stored_contract
from tests.server.http.api.answers import sentences
from tests.world import AT, ISO2, ISO20, new_emaid, new_pcid

SECRET = "a secret of the webhook"
BEFORE, AFTER = AT - timedelta(hours=1), AT - timedelta(minutes=1)
DELETED, UPDATED = "emsp.prov.cert.deleted", "emsp.prov.cert.updated"
RESET = "emsp.prov.cert.factory.reset"


@dataclass
class Receiver:
    """A server with nothing but the webhook, its database, and the pool that it asks for keys."""

    url: str
    database: Path
    pcp: Scripted
    templates: Mapping[str, SignedContract]
    http: httpx.Client

    def post(self, body: bytes, signature: str | None = None, header: str = "X-Operator-Signature") -> httpx.Response:
        """signature: None for the right one."""
        sent = (
            "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest() if signature is None else signature
        )
        headers = {b"Content-Type": b"application/json", **({header.encode(): sent.encode()} if sent else {})}
        return self.http.post(self.url + PATH, content=body, headers=headers)

    def tell(self, kind: str, pcid: str, at: datetime = HAPPENED, namespace: str | None = None) -> httpx.Response:
        return self.post(provisioning_event(kind, pcid, at, namespace))

    def publish(
        self, pcid: PCID, at: datetime, *, key: str | None = None, emaid: EMAID | None = None, edition: str = "iso2"
    ) -> EMAID:
        """Store a contract for a vehicle at a time. key: the fingerprint of the provisioning key it is bound to."""
        emaid = emaid or new_emaid()
        contract = self.templates[edition]._replace(emaid=emaid, pcid=pcid)

        async def write() -> None:
            async with opened(self.database) as store:
                await store.write(queries.publish(contract, at))

        asyncio.run(write())
        if key is not None:
            update = "update contract set provisioning_key = ? where pcid = ? and emaid = ? and namespace = ?"
            self.sql(update, key, pcid, emaid, contract.namespace.value)
        return emaid

    def left(self, pcid: PCID) -> list[tuple[str, str]]:
        """The vehicle's contracts: EMAID and namespace."""
        rows = self.sql("select emaid, namespace from contract where pcid = ? order by emaid, namespace", pcid)
        return [(row[0], row[1]) for row in rows]

    def emaids(self, pcid: PCID) -> list[str]:
        return [emaid for emaid, _ in self.left(pcid)]

    def maker_events(self, pcid: PCID) -> list[tuple[str, str]]:
        """The maker's events about the vehicle, in order, without those of publishing."""
        rows = self.sql("select kind, emaid from outbox where pcid = ? order by rev", pcid)
        return [(kind, emaid) for kind, emaid in rows if kind.startswith("oem.") and kind != "oem.contract.created"]

    def knows(self, vehicle: Credential) -> str:
        """Let the Provisioning Certificate Pool hold this certificate. Returns its key's fingerprint."""
        self.pcp.on(f"/provisioningcertificates/{vehicle.certificate.subject_cn}", json_reply(chain_body(vehicle)))
        return key_fingerprint(vehicle.certificate)

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.database, timeout=5)) as connection, connection:
            return connection.execute(statement, parameters).fetchall()


@asynccontextmanager
async def opened(database: Path) -> AsyncIterator[Store]:
    store = connect(f"sqlite:///{database}")
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def receiving(database: Path, pcp_url: str | None, secret: str | None) -> Iterator[str]:
    """Serve the webhook. Returns the server's address."""
    built = build_services(Settings(database=f"sqlite:///{database}", pcp_url=pcp_url))
    store = built.store
    context = RequestContext(
        AuthorizationServer(store, issuer="http://pool", lifetime=60), NoPeers(), lambda: datetime.now(UTC), 65_536
    )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await built.open()
        yield
        await built.close()

    route = pcp_route(context, built.pool, SecretStr(secret) if secret is not None else None)
    app = Starlette(routes=[route], lifespan=lifespan)
    pseudonyms = Pseudonyms(Settings(log_identifiers=LogIdentifiers.OWNER))
    app.add_middleware(TraceMiddleware, pseudonyms=pseudonyms, refusals=AccessDenialRecorder(store), metrics=Metrics())
    app.add_exception_handler(CCPError, errors.handle_ccp_error)
    app.add_exception_handler(HTTPException, errors.handle_http_exception)
    with loopback() as (listening, url):
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(10)


@pytest.fixture(scope="module")
def receiver(pkis: dict[str, PKI]) -> Iterator[Receiver]:
    templates = {edition: stored_contract(pkis[edition]) for edition in ("iso2", "iso20")}
    with tempfile.TemporaryDirectory(prefix="ccp-test-") as folder, scripted() as pcp:
        database = Path(folder) / "ccp.db"
        with_schema(f"sqlite:///{database}")
        with receiving(database, pcp.url, SECRET) as url, httpx.Client(timeout=10) as http:
            yield Receiver(url, database, pcp, templates, http)


# --- Who is believed ---


def test_pcp_event_accepts_each_published_signature_form(receiver: Receiver) -> None:
    for header in ("X-Operator-Signature", "payload-signature", "X-Hubject-Signature"):
        for prefix in ("sha256=", ""):
            pcid = new_pcid()
            receiver.publish(pcid, BEFORE)
            body = provisioning_event(DELETED, pcid)
            digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
            assert receiver.post(body, prefix + digest, header).status_code == 200
            assert receiver.left(pcid) == []


@pytest.mark.parametrize("signature", ["", "sha256=", "sha256=" + "0" * 64, "0" * 64, "sha1=" + "0" * 40, "ä"])
def test_pcp_event_with_wrong_signature_is_refused(receiver: Receiver, signature: str) -> None:
    pcid = new_pcid()
    receiver.publish(pcid, BEFORE)
    body = provisioning_event(DELETED, pcid)
    answer = receiver.post(body, signature)
    assert sentences(answer, 403) == ["The signature of the event is missing or wrong."]
    changed = receiver.post(body + b" ", hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest())
    assert changed.status_code == 403
    assert len(receiver.left(pcid)) == 1


@pytest.mark.parametrize("secret", [None, ""])
def test_pcp_event_path_is_absent_without_a_secret(receiver: Receiver, secret: str | None) -> None:
    pcid = new_pcid()
    receiver.publish(pcid, BEFORE)
    with receiving(receiver.database, None, secret) as url:
        body = provisioning_event(DELETED, pcid)
        signature = hmac.new(b"", body, hashlib.sha256).hexdigest()
        answer = httpx.post(url + PATH, content=body, headers={"X-Operator-Signature": signature})
    sentences(answer, 404)
    assert len(receiver.left(pcid)) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        provisioning_event(DELETED, "short"),
        provisioning_event(DELETED, None),
        provisioning_event(DELETED, 5),
        provisioning_event(DELETED, "WEX0TEST000000001", None),
        provisioning_event(DELETED, "WEX0TEST000000001", "yesterday"),
        provisioning_event(DELETED, "WEX0TEST000000001", "0001-01-01T00:00:00+23:00"),
        provisioning_event(DELETED, "WEX0TEST000000001", "2999-01-01T00:00:00Z"),
        provisioning_event(DELETED, "WEX0TEST000000001", HAPPENED, "urn:iso:15118:3"),
    ],
)
def test_pcp_event_that_cannot_be_parsed_is_400(receiver: Receiver, body: bytes) -> None:
    sentences(receiver.post(body), 400)


@pytest.mark.parametrize("kind", ["root.cert.added", "emsp.contract.delivered.to.oem", "oem.contract.deleted", "x"])
def test_pcp_event_of_another_kind_is_accepted_without_effect(receiver: Receiver, kind: str) -> None:
    pcid = new_pcid()
    receiver.publish(pcid, BEFORE)
    assert receiver.tell(kind, pcid).status_code == 200
    assert len(receiver.left(pcid)) == 1


# --- Which contracts go ---


@pytest.mark.parametrize("owner", ["emsp", "mo"])
@pytest.mark.parametrize("what", ["prov.cert.deleted", "prov.cert.factory.reset", "prov.cert.updated.factory.reset"])
def test_pcp_event_deleted_or_reset_removes_all_contracts(receiver: Receiver, owner: str, what: str) -> None:
    pcid, other = new_pcid(), new_pcid()
    emaids = [receiver.publish(pcid, BEFORE) for _ in range(3)]
    receiver.publish(pcid, BEFORE, emaid=emaids[0], edition="iso20")
    receiver.publish(other, BEFORE)
    receiver.sql("delete from outbox where pcid = ?", pcid)
    answer = receiver.tell(f"{owner}.{what}", pcid.lower())
    assert (answer.status_code, answer.content) == (200, b"")
    assert receiver.left(pcid) == []
    assert len(receiver.left(other)) == 1
    assert receiver.maker_events(pcid) == [("oem.contract.deleted", emaid) for emaid in sorted(emaids)]
    assert receiver.sql("select 1 from emaid_claim where pcid = ?", pcid) == []
    assert receiver.sql("select default_emaid from vehicle where pcid = ?", pcid) == [(None,)]


def test_pcp_event_that_is_repeated_has_no_further_effect(receiver: Receiver) -> None:
    pcid = new_pcid()
    receiver.publish(pcid, BEFORE)
    for _ in range(3):
        assert receiver.tell(DELETED, pcid).status_code == 200
    assert len(receiver.maker_events(pcid)) == 1


@pytest.mark.parametrize("kind", [DELETED, RESET, UPDATED])
def test_pcp_event_replayed_keeps_later_publications(receiver: Receiver, kind: str) -> None:
    pcid = new_pcid()
    old, new = receiver.publish(pcid, BEFORE), receiver.publish(pcid, AFTER)
    for _ in range(2):
        assert receiver.tell(kind, pcid).status_code == 200
        assert receiver.emaids(pcid) == [new]
    assert receiver.maker_events(pcid) == [("oem.contract.deleted", old)]


def test_pcp_event_keeps_the_edition_that_was_published_later(receiver: Receiver) -> None:
    pcid = new_pcid()
    emaid = receiver.publish(pcid, BEFORE, edition="iso20")
    receiver.publish(pcid, AFTER, emaid=emaid)
    receiver.sql("delete from outbox where pcid = ?", pcid)
    assert receiver.tell(DELETED, pcid).status_code == 200
    assert receiver.left(pcid) == [(emaid, ISO2)]
    assert receiver.maker_events(pcid) == [("oem.contract.updated", emaid)]
    assert receiver.sql("select default_emaid from vehicle where pcid = ?", pcid) == [(emaid,)]


def test_pcp_event_time_without_fraction_covers_the_second(receiver: Receiver) -> None:
    pcid = new_pcid()
    second = HAPPENED.replace(microsecond=0)
    receiver.publish(pcid, second + timedelta(milliseconds=300))
    assert receiver.post(provisioning_event(DELETED, pcid, second.strftime("%Y-%m-%dT%H:%M:%SZ"))).status_code == 200
    assert receiver.left(pcid) == []


@pytest.mark.parametrize("kind", [DELETED, RESET, UPDATED])
def test_pcp_event_for_an_unknown_vehicle_is_accepted(receiver: Receiver, kind: str) -> None:
    """What stays is the time of the event, for a publication that is under way."""
    pcid = new_pcid()
    assert receiver.tell(kind, pcid).status_code == 200
    rows = receiver.sql("select rev, default_emaid, provisioned_at is null from vehicle where pcid = ?", pcid)
    assert rows == [(1, None, 0)]
    assert receiver.sql("select 1 from outbox where pcid = ?", pcid) == []


def test_pcp_event_renewal_with_the_same_key_removes_nothing(receiver: Receiver, pkis: dict[str, PKI]) -> None:
    pcid = new_pcid()
    key = receiver.knows(pkis["iso2"].vehicle(pcid, now=AT))
    receiver.publish(pcid, BEFORE, key=key)
    assert receiver.tell(UPDATED, pcid, namespace=ISO2).status_code == 200
    assert len(receiver.left(pcid)) == 1


def test_pcp_event_new_key_removes_contracts_for_the_old_key(receiver: Receiver, pkis: dict[str, PKI]) -> None:
    pcid = new_pcid()
    new = receiver.knows(pkis["iso2"].vehicle(pcid, now=AT))
    receiver.publish(pcid, BEFORE, key="0" * 64)
    receiver.publish(pcid, AFTER, key="0" * 64)
    stays = receiver.publish(pcid, BEFORE, key=new)
    assert receiver.tell(UPDATED, pcid).status_code == 200
    assert receiver.emaids(pcid) == [stays]


def test_pcp_event_without_known_key_removes_earlier_contracts(receiver: Receiver, pkis: dict[str, PKI]) -> None:
    for answer in (None, Reply(404), Reply(403)):
        pcid = new_pcid()
        if answer is None:
            receiver.knows(pkis["iso2"].vehicle(pcid, now=AT))
        else:
            receiver.pcp.on(f"/provisioningcertificates/{pcid}", answer)
        receiver.publish(pcid, BEFORE, key=None if answer is None else "0" * 64)
        stays = receiver.publish(pcid, AFTER)
        assert receiver.tell(UPDATED, pcid).status_code == 200
        assert receiver.emaids(pcid) == [stays]


def test_pcp_event_update_affects_one_edition_only(receiver: Receiver) -> None:
    pcid = new_pcid()
    emaid = receiver.publish(pcid, BEFORE)
    receiver.publish(pcid, BEFORE, emaid=emaid, edition="iso20")
    assert receiver.tell(UPDATED, pcid, namespace="urn:iso:15118:20:2022:MsgDef").status_code == 200
    assert receiver.left(pcid) == [(emaid, ISO2)]
    assert ISO20 == Namespace.ISO20


def test_pcp_event_update_is_503_while_the_pool_is_unavailable(receiver: Receiver) -> None:
    for answer in (Reply(503), CLOSE, error(500, "no")):
        pcid = new_pcid()
        receiver.pcp.on(f"/provisioningcertificates/{pcid}", answer)
        receiver.publish(pcid, BEFORE)
        response = receiver.tell(UPDATED, pcid)
        sentences(response, 503)
        assert response.headers["retry-after"]
        assert len(receiver.left(pcid)) == 1


def test_body_that_is_too_large_is_refused(receiver: Receiver) -> None:
    sentences(receiver.post(b" " * 70_000), 413)
