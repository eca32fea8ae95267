"""Events of trust anchors: added and removed by command and by synchronisation, expired; two servers, one database."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from ccp.server.domain.parties import PartyRole
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import anchors, outbox, parties, webhooks
from ccp.server.trust.anchors import trusted_certificate
from ccp.testing.pki import PKI, SUB_CA1, build_certificate, build_root
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import AnchorRole
from tests.background_rounds import wait_for_round, wait_until_loaded
from tests.cli.run import ccp_ok
from tests.databases import Server, sql
from tests.scripted_server import Reply, json_reply, scripted
from tests.server.events.receiver import Receiver, receiving, webhook
from tests.server.events.subscriptions import (
    EVERYONE,
    REFRESH,
    SETTINGS,
    everything,
    roots,
    second_server,
    settle,
    subscribed,
)
from tests.server.events.webhook_api import subscribe
from tests.server.storage.made import AT, new_database, write
from tests.waiting import wait_until
from tests.world import ISO2, ISO20, Pool, b64, party, start

ADDED, EXPIRED, REVOKED = (f"root.cert.{what}" for what in ("added", "expired", "revoked"))
DAY = timedelta(days=1)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def pool(request: pytest.FixtureRequest, pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool with two servers."""
    more = {} if request.param == "sqlite" else {"database": request.getfixturevalue("postgres").database()}
    with start({"iso2": pkis["iso2"]}, refresh_interval=REFRESH, **SETTINGS, **more) as running, second_server(running):
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


def new_root(name: str = "New Root", algorithm: str = "P-256", expires: datetime | None = None) -> Certificate:
    now = datetime.now(UTC)
    valid = (now - 10 * DAY, expires or now + 1000 * DAY)
    return build_root(name, now=now, algorithm=algorithm, valid=valid).certificate  # type: ignore[arg-type]


def command(pool: Pool, *arguments: object) -> None:
    ccp_ok("trust", *arguments, env={"CCP_DATABASE": pool.settings.database})


def add(pool: Pool, folder: Path, root: Certificate, *roles: str) -> None:
    path = folder / f"{root.fingerprint}.pem"
    path.write_bytes(root.pem())
    command(pool, "add", path, *(f"--role={role}" for role in roles))


def checked(pool: Pool) -> None:
    """Wait until both servers have compared their anchors with the clock, and every event has been delivered."""
    wait_until_loaded("anchors", servers=2)
    wait_for_round("anchor_expiry", servers=2)
    settle(pool)


def test_root_events_reach_every_subscriber_once(pool: Pool, receiver: Receiver, tmp_path: Path) -> None:
    root = new_root("Root One")
    with subscribed(pool, receiver, everything()):
        wait_until_loaded("subscribers", servers=2)
        add(pool, tmp_path, root, "v2g")
        wait_until(lambda: len(roots(root.fingerprint, receiver)) == len(EVERYONE))
        add(pool, tmp_path, root, "v2g")  # Known: no event.
        command(pool, "remove", root.fingerprint, "--yes")
        wait_until(lambda: len(roots(root.fingerprint, receiver)) == 2 * len(EVERYONE))
        settle(pool)
    sent = roots(root.fingerprint, receiver)
    assert Counter((each.path[1:], each.kind) for each in sent) == {
        (name, kind): 1 for name in EVERYONE for kind in (ADDED, REVOKED)
    }
    for name in EVERYONE:
        assert [each.kind for each in sent if each.path[1:] == name] == [ADDED, REVOKED]
    assert all(each.is_signed() for each in sent)
    (event,) = {each.body: each.event for each in sent if each.path == "/oem" and each.kind == ADDED}.values()
    assert event["payload"] == {
        "rootCertificateId": event["payload"]["rootCertificateId"],
        "distinguishedName": root.subject_dn,
        "commonName": "Root One",
        "rootType": "V2G",
        "rootSerialNumber": f"{root.serial_number:x}",
        "signatureAlgorithm": "secp256r1",
        "fingerprintSHA256": root.fingerprint,
    }
    assert event["xsdMsgDefNamespace"] == ISO2
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", event["eventId"])
    assert datetime.now(UTC) - datetime.fromisoformat(event["timestamp"]) < timedelta(minutes=1)


def test_root_event_has_the_id_of_the_published_list(pool: Pool, receiver: Receiver, tmp_path: Path) -> None:
    root = new_root("Root Two", "P-521")
    with subscribed(pool, receiver, [ADDED], ["cpo"]):
        add(pool, tmp_path, root, "oem", "emsp")
        sent = receiver.wait("/cpo", 2)

        def listed() -> dict[str, str]:
            found = pool.client("cpo").get(pool.settings.public_url + "/v1/root/rootCerts").json()
            certificates = found["RootCertificateCollection"]["rootCertificates"]
            mine = [each for each in certificates if each["commonName"] == "Root Two"]
            return {each["rootType"]: each["rootCertificateId"] for each in mine}

        wait_until(lambda: len(listed()) == 2)
        ids = listed()
    assert {each.event["payload"]["rootType"]: each.event["payload"]["rootCertificateId"] for each in sent} == ids
    assert ids.keys() == {"MO", "OEM"}
    assert {each.event["payload"]["signatureAlgorithm"] for each in sent} == {"secp521r1"}
    assert {each.event["xsdMsgDefNamespace"] for each in sent} == {ISO20}


def test_root_that_loses_all_its_roles_is_sent_for_each(pool: Pool, receiver: Receiver, tmp_path: Path) -> None:
    root = new_root("Root of all", "P-521")
    with subscribed(pool, receiver, [REVOKED], ["cpo"]):
        add(pool, tmp_path, root, "v2g", "oem", "emsp")
        command(pool, "remove", root.fingerprint, "--yes")
        sent = receiver.wait("/cpo", 3)
        settle(pool)
    assert [each.event["payload"]["rootType"] for each in sent] == ["MO", "OEM", "V2G"]


def test_root_expiry_is_sent_once_by_two_servers(pool: Pool, receiver: Receiver, tmp_path: Path) -> None:
    root = new_root("Short Root", "Ed448", datetime.now(UTC) + timedelta(seconds=4))
    with subscribed(pool, receiver, everything(), ["emsp", "other_oem"]):
        add(pool, tmp_path, root, "oem")
        wait_until(lambda: len(roots(root.fingerprint, receiver)) == 4)
        with second_server(pool):  # Started after the expiry.
            wait_for_round("anchor_expiry", servers=3)
        command(pool, "remove", root.fingerprint, "--yes")  # The end of its trust is known already.
        checked(pool)
    sent = roots(root.fingerprint, receiver)
    assert Counter((each.path[1:], each.kind) for each in sent) == {
        (name, kind): 1 for name in ("emsp", "other_oem") for kind in (ADDED, EXPIRED)
    }
    (payload,) = [each.event["payload"] for each in sent if each.path == "/emsp" and each.kind == EXPIRED]
    assert "signatureAlgorithm" not in payload, "it has no published name"
    assert {each.event["xsdMsgDefNamespace"] for each in sent} == {ISO20}


def test_root_expiry_is_sent_again_after_a_root_was_added_again(pool: Pool, receiver: Receiver) -> None:
    """Removed and added in one transaction: no server has a snapshot without the root."""
    root = new_root("Old Root", expires=datetime.now(UTC) - DAY)
    row = trusted_certificate(root, AnchorRole.OEM, "test", datetime.now(UTC))

    def add_again() -> Query[None]:
        yield from anchors.remove(root.fingerprint, now=row.added_at)
        yield from anchors.add(row)

    with subscribed(pool, receiver, everything(), ["emsp"]):
        pool.change(anchors.add(row))
        wait_until(lambda: len(roots(root.fingerprint, receiver)) == 2)
        checked(pool)  # Every server has seen that it was sent.
        pool.change(add_again())
        wait_until(lambda: len(roots(root.fingerprint, receiver)) == 4)
        pool.change(anchors.remove(root.fingerprint, now=row.added_at))
        settle(pool)
    assert [each.kind for each in roots(root.fingerprint, receiver)] == [ADDED, EXPIRED, ADDED, EXPIRED]


def test_root_that_is_removed_after_its_end_has_expired(pkis: dict[str, PKI], receiver: Receiver) -> None:
    """A Root Certificate Pool delists expired roots, mostly before this pool has looked for them."""
    now = datetime.now(UTC)
    root = new_root("Old Root", expires=now - DAY)
    with (
        start({"iso2": pkis["iso2"]}, **{**SETTINGS, "event_check_interval": 600}) as pool,
        subscribed(pool, receiver, everything(), ["emsp"]),
    ):
        pool.change(anchors.add(trusted_certificate(root, AnchorRole.OEM, "test", now)))
        pool.change(anchors.remove(root.fingerprint, now=now))
        wait_until(lambda: len(roots(root.fingerprint, receiver)) == 2)
        settle(pool)
    assert [each.kind for each in roots(root.fingerprint, receiver)] == [ADDED, EXPIRED]


def test_root_event_of_a_cross_certificate_is_not_sent(pool: Pool, pkis: dict[str, PKI], receiver: Receiver) -> None:
    """Stored as a root, because both generations have one name; the list of roots does not have it."""
    old, new = (pkis[name].v2g_root for name in ("iso2", "other_iso2"))
    crossed = build_certificate(
        new.certificate.x509.public_key(),
        subject=new.certificate.x509.subject,
        issuer=old.certificate,
        signer=old.key,
        template=SUB_CA1,
        valid=(datetime.now(UTC) - DAY, datetime.now(UTC) + DAY),
    )
    row = trusted_certificate(crossed, AnchorRole.V2G, "test", datetime.now(UTC))
    assert row.is_root
    marker = new_root("Marker")
    with subscribed(pool, receiver, everything(), ["emsp"]):
        pool.change(anchors.add(row))
        pool.change(anchors.remove(crossed.fingerprint, now=row.added_at))
        pool.change(anchors.add(trusted_certificate(marker, AnchorRole.V2G, "test", row.added_at)))
        receiver.wait("/emsp", 1)
        settle(pool)
    assert [each.event["payload"]["commonName"] for each in receiver.sent] == ["Marker"]
    pool.change(anchors.remove(marker.fingerprint, now=row.added_at))


def test_root_expiry_of_a_valid_root_is_not_sent(pool: Pool, receiver: Receiver, tmp_path: Path) -> None:
    root = new_root("Long Root")
    with subscribed(pool, receiver, everything(), ["emsp"]):
        add(pool, tmp_path, root, "v2g")
        wait_until(lambda: len(roots(root.fingerprint, receiver)) == 1)
        checked(pool)
    assert [each.kind for each in roots(root.fingerprint, receiver)] == [ADDED]


def test_root_events_of_intermediates_are_not_sent(pool: Pool, receiver: Receiver, tmp_path: Path) -> None:
    sub = pool.pki().oem_sub1.certificate
    command(pool, "list")
    with subscribed(pool, receiver, everything(), ["emsp"]):
        command(pool, "remove", sub.fingerprint, "--yes")
        add(pool, tmp_path, sub, "oem")
        checked(pool)
    assert receiver.received == []


def test_root_synchronisation_of_two_servers_sends_one_event(
    pkis: dict[str, PKI], receiver: Receiver, tmp_path: Path
) -> None:
    root, other = new_root("Listed Root"), new_root("Other Root")
    with scripted() as rcp:
        listed = [{"caCertificate": b64(each.der), "rootTypeList": ["V2G"]} for each in (root, other)]
        rcp.on("/rcp/rootcertificates", Reply(503))  # A server may synchronise before the webhooks are there.
        options = {**SETTINGS, "rcp_url": rcp.url + "/rcp", "rcp_interval": 60}
        with (
            start({"iso2": pkis["iso2"]}, refresh_interval=REFRESH, **options) as pool,
            second_server(pool),
            subscribed(pool, receiver, everything(), ["oem", "cps"]),
        ):
            env = {"CCP_DATABASE": pool.settings.database, "CCP_RCP_URL": rcp.url + "/rcp"}
            rcp.on("/rcp/rootcertificates", json_reply({"rootCertificateCollection": listed}))
            ccp_ok("trust", "sync", env=env)
            wait_until(lambda: len(receiver.received) == 4)
            del listed[0]
            rcp.on("/rcp/rootcertificates", json_reply({"rootCertificateCollection": listed}))
            ccp_ok("trust", "sync", env=env)  # Delisted, but still trusted.
            ccp_ok("trust", "sync", "--prune", env=env)
            wait_until(lambda: len(receiver.received) == 6)
            ccp_ok("trust", "sync", "--prune", env=env)
            settle(pool)
    for name in ("/oem", "/cps"):
        kinds = [(each.kind, each.event["payload"]["commonName"]) for each in receiver.asked(name)]
        assert sorted(kinds[:2]) == [(ADDED, "Listed Root"), (ADDED, "Other Root")]
        assert kinds[2:] == [(REVOKED, "Listed Root")]


def test_root_event_is_listed_among_the_deliveries(pool: Pool, receiver: Receiver, tmp_path: Path) -> None:
    root = new_root("Root Three")
    hook = webhook(receiver.url + "/oem", "oem", ADDED)
    pool.change(webhooks.put(hook))
    add(pool, tmp_path, root, "v2g")
    receiver.wait("/oem", 1)
    settle(pool)
    token = {"Authorization": f"Bearer {pool.token('oem')}"}
    answer = pool.http.get(f"/opnc/v1/event/endpoints/{hook.id}/deliveries", headers=token)
    assert answer.status_code == httpx.codes.OK, answer.text
    (delivery,) = answer.json()["deliveries"]
    assert (delivery["eventType"], delivery["pcid"], delivery["emaid"]) == (ADDED, None, None)
    assert delivery["xsdMsgDefNamespace"] == ISO2
    shown = ccp_ok("events", "list", "--state", "delivered", env={"CCP_DATABASE": pool.settings.database}).out
    assert delivery["eventId"] in shown
    pool.change(webhooks.remove(hook.id))


@pytest.mark.parametrize("name", ["oem", "emsp", "cpo", "cps", "peer"])
def test_root_events_reach_a_subscriber_of_each_role(pool: Pool, receiver: Receiver, tmp_path: Path, name: str) -> None:
    """Subscribed to by the party itself, through the event service."""
    made = subscribe(pool, name, ADDED, REVOKED, url=f"{receiver.url}/{name}")
    root = new_root("Root Four")
    add(pool, tmp_path, root, "v2g")
    command(pool, "remove", root.fingerprint, "--yes")
    sent = receiver.wait(f"/{name}", 2)
    assert [each.kind for each in sent] == [ADDED, REVOKED]
    assert all(each.is_signed(made["secret"]) for each in sent)
    pool.change(webhooks.remove(made["id"]))


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_root_event_fan_out_serves_webhooks_in_pages(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: Server | None = request.getfixturevalue("postgres") if engine == "postgresql" else None
    url = new_database(tmp_path) if server is None else server.emptied()
    write(url, *(parties.add(party(f"oem{n}", PartyRole.OEM, wmis=f"W{n:02d}"), "hash", AT) for n in range(5)))
    hooks = [webhook("http://one.example/", f"oem{n % 5}", ADDED, REVOKED) for n in range(230)]
    for each in hooks:
        write(url, webhooks.put(each))
    write(url, webhooks.put(webhook("http://one.example/", "oem1", "oem.contract.created")))
    write(url, webhooks.put(webhook("http://one.example/", "oem1", ADDED, enabled=False)))
    root = new_root()
    write(url, anchors.add(trusted_certificate(root, AnchorRole.V2G, "test", AT)))
    write(url, anchors.remove(root.fingerprint, now=AT))
    steps = [write(url, outbox.fan_out(AT, 7)) for _ in range(4)]
    assert steps == [7, 7, 2, 0]
    rows = sql(url, "select kind, count(*), count(distinct webhook_id) from delivery group by kind order by kind")
    assert rows == [(ADDED, 230, 230), (REVOKED, 230, 230)]
