"""Checks of other systems: trusted certificates, responders, external services, peers and webhooks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding

from ccp.server.diagnosis import trust
from ccp.server.storage.queries import webhooks
from ccp.testing.pki import PKI
from tests.cli.run import ccp_ok
from tests.databases import sql
from tests.diagnoses import configuration, doctor
from tests.scripted_server import HANG, Reply, error, granted, json_reply, nowhere, scripted
from tests.server.events.receiver import receiving
from tests.server.events.receiver import webhook as webhook_of
from tests.waiting import wait_until
from tests.world import start

SECRET = "hunter2-of-the-pool"
DELIVER = "/opnc/v1/ccp/signedcontractdata"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration of an empty pool."""
    path = configuration(tmp_path)
    ccp_ok("db", "upgrade", "--config", path)
    return path


def database_of(config: Path) -> str:
    return f"sqlite:///{config.parent / 'ccp.db'}"


# --- Trusted certificates --------------------------------------------------------------------------------------------


def test_anchors_that_are_missing_are_failures(config: Path, pkis: dict[str, PKI]) -> None:
    assert doctor("--config", config, "--offline").codes >= {"anchors.none", "parties.none"}
    root = config.parent / "root.pem"
    root.write_bytes(pkis["iso2"].v2g_root.certificate.pem())
    ccp_ok("trust", "add", root, "--role", "v2g", "--config", config)
    codes = doctor("--config", config, "--offline").codes
    assert ("anchors.none" in codes, "anchors.no-v2g" in codes, "anchors.no-oem" in codes) == (False, False, True)
    lenient = doctor("--config", config, "--offline", CCP_VEHICLE_TRUST="signature").codes
    assert "anchors.no-oem" not in lenient


def test_anchors_that_expire_or_are_unusable_are_named(config: Path) -> None:
    now = datetime.now(UTC)
    for number, (end, code) in enumerate(
        ((now - timedelta(days=1), "anchors.expired"), (now + timedelta(days=20), "anchors.expires-soon"))
    ):
        key = generate_private_key(SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"Root {number}")])
        builder = x509.CertificateBuilder(name, name, key.public_key(), number + 1, now - timedelta(days=900), end)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(x509.BasicConstraints(True, None), True).add_extension(usage, True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        path = config.parent / f"root{number}.pem"
        path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
        ccp_ok("trust", "add", path, "--role", "v2g", "--config", config)
        finding = doctor("--config", config, "--offline").finding(code)
        assert f'"Root {number}"' in finding["message"]
        assert len(finding["subject"]) == 64
    sql(
        database_of(config),
        "insert into trust_anchor (role, fingerprint, is_root, certificate, label, source, added_at) "
        "values ('oem', 'ab', true, ?, 'Broken', 'by hand', 0)", b"\x30\x00",
    )  # fmt: skip
    assert doctor("--config", config, "--offline").finding("anchors.unusable")["subject"] == "ab"


# --- Responders ------------------------------------------------------------------------------------------------------


def watch(config: Path, issuer: str, certificate: bytes, count: int = 1) -> None:
    for serial in range(count):
        sql(
            database_of(config),
            "insert into watched_certificate values (?, ?, ?, ?, 0, 0)", issuer, f"{serial:x}", certificate, b"",
        )  # fmt: skip


def with_status_urls(ocsp: str, crl: str) -> bytes:
    now, key = datetime.now(UTC), generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "leaf")])
    access = x509.AccessDescription(x509.oid.AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(ocsp))
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl)], None, None, None)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=9))
    builder = builder.add_extension(x509.AuthorityInformationAccess([access]), False)
    builder = builder.add_extension(x509.CRLDistributionPoints([point]), False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_revocation_hosts_of_stored_certificates_are_called_once(config: Path) -> None:
    with scripted() as server:
        away = nowhere().replace("https:", "http:")
        watch(config, "aa", with_status_urls(f"{server.url}/ocsp", f"{server.url}/a.crl"), count=3)
        watch(config, "bb", with_status_urls(f"{server.url}/other", f"{away}/b.crl"))
        report = doctor("--config", config, CCP_EGRESS_ALLOW_NETWORKS='["127.0.0.0/8"]')
        assert [(one.method, one.target) for one in server.received] == [("GET", "/")]
        assert report.finding("revocation.host-unreachable")["subject"] == away
        assert f"{server.url} answers (404)" in report.facts("revocation")
        assert f"from {server.url.removeprefix('http://')}" in report.facts("clock")


def test_revocation_hosts_at_private_addresses_are_not_called(config: Path) -> None:
    with scripted() as server:
        watch(config, "aa", with_status_urls(f"{server.url}/ocsp", f"{server.url}/a.crl"))
        finding = doctor("--config", config).finding("revocation.host-refused")
        assert (finding["subject"], server.received) == (server.url, [])
        assert "egress_allow_networks" in finding["action"]
        configured = doctor("--config", config, CCP_CRL_URLS=f'{{"Some CA": "{server.url}/x.crl"}}')
        assert "revocation.host-refused" not in configured.codes, "the operator chose the address"
        skipped = doctor("--config", config, CCP_REVOCATION="off")
        assert skipped.facts("revocation") == "not checked: revocation is off"


def test_revocation_hosts_are_bounded(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "MAX_HOSTS", 2)
    monkeypatch.setattr(trust, "MAX_ISSUERS", 4)
    for number in range(6):
        url = f"http://127.0.0.1:{number + 1}"
        watch(config, f"a{number}", with_status_urls(f"{url}/ocsp", f"{url}/crl"))
    report = doctor("--config", config)
    assert len(report.findings("revocation.host-refused")) == 2
    assert "4 host(s)" in report.facts("revocation")
    assert "2 of them were not called" in report.facts("revocation")
    assert "more than 4 issuers" in report.facts("revocation")


# --- External services -----------------------------------------------------------------------------------------------


def test_services_that_fail_come_with_the_advice_of_their_check(tmp_path: Path) -> None:
    with scripted() as server:
        server.on("/rootcertificates", error(401, "Who?"))
        text = f'[rcp]\nurl = "{server.url}"\ntoken = "{SECRET}"\n[pcp]\nurl = "{nowhere()}"\n'
        text += f'[cps]\nurl = "{server.url}"\ntoken_file = "none"\n'
        report = doctor("--config", configuration(tmp_path, text))
        found = {each["subject"]: each for each in report.findings("service.failed")}
        assert found.keys() == {"rcp", "pcp"}
        assert "answered 401: Who?" in found["rcp"]["message"]
        assert "credentials of rcp" in found["rcp"]["action"]
        assert "refuses the connection" in found["pcp"]["message"]
        assert "cps_token_file" in report.finding("service.unusable")["message"]
        assert SECRET not in report.text


# --- Peers -----------------------------------------------------------------------------------------------------------


def add_peer(config: Path, name: str, url: str) -> None:
    ccp_ok("peer", "add", name, url, "--client-id", "us", "--config", config, env={"CCP_PEER_SECRET": SECRET})


@pytest.mark.parametrize(
    ("token", "answer", "code"),
    [
        (json_reply({"error": "invalid_client"}, 401), error(400), "peer.refuses-credentials"),
        (granted(), error(401, "Who?"), "peer.refuses-credentials"),
        (granted(), error(403, "Not you."), "peer.refuses-credentials"),
        (granted(), error(503, "Later."), "peer.unreachable"),
        (granted(), Reply(200, b"<html>", {"Content-Type": "text/html"}), "peer.unexpected-answer"),
        (granted(), Reply(404), "peer.unexpected-answer"),
        (granted(), error(400, "EXI format is invalid!"), None),
    ],
)
def test_peers_are_asked_for_a_malformed_delivery(config: Path, token: Reply, answer: Reply, code: str | None) -> None:
    with scripted() as server:
        server.on("/oauth/token", token)
        server.on(DELIVER, answer)
        add_peer(config, "pool-b", server.url)
        report = doctor("--config", config)
        assert {each for each in report.codes if each.startswith("peer.")} == ({code} if code else set())
        assert SECRET not in report.text
        if code:
            assert report.finding(code)["subject"] == "pool-b"


def test_peers_that_hang_or_are_away_delay_no_other(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccp.server.diagnosis.partners.PROBE_TIMEOUT", 0.5)
    with scripted() as server:
        server.on("/*", HANG)
        add_peer(config, "hangs", server.url)
        add_peer(config, "away", nowhere())
        add_peer(config, "disabled", nowhere())
        ccp_ok("peer", "disable", "disabled", "--config", config)
        report = doctor("--config", config)
        assert {each["subject"] for each in report.findings("peer.unreachable")} == {"hangs", "away"}
        assert report.members["seconds"] < 15


# --- Webhooks --------------------------------------------------------------------------------------------------------


def deliver(
    database: str, webhook: str, number: int, *, state: str, attempts: int, error: str | None, queued: datetime
) -> None:
    microseconds = int(queued.timestamp() * 1_000_000)
    sql(
        database,
        "insert into delivery (pcid, rev, part, webhook_id, event_id, kind, emaid, namespace, payload, created_at, "
        "queued_at, lease_until, attempts, state, last_status, last_error) "
        "values (?, ?, 0, ?, ?, 'oem.contract.created', 'E', '', '{}', ?, ?, ?, ?, ?, null, ?)",
        f"PCID{number}", number, webhook, f"event-{number}", microseconds, microseconds, microseconds, attempts, state,
        error,
    )  # fmt: skip


@pytest.fixture
def webhook(config: Path) -> Callable[[str], None]:
    """Adds a webhook with an id."""

    def add(name: str) -> None:
        sql(
            database_of(config),
            "insert into webhook (id, client_id, url, description, events, wmis, provider_ids, metadata, api_version, "
            "enabled, secret, created_at, updated_at) values (?, 'oem', 'https://user:pw@oem.example/hook', '', '[]', "
            "'[]', '[]', '{}', '1.0', true, 's', 0, 0)", name,
        )  # fmt: skip

    return add


def test_webhooks_that_fail_are_named_with_the_reason(config: Path, webhook: Callable[[str], None]) -> None:
    now, database = datetime.now(UTC), database_of(config)
    for name in ("failing", "dead", "idle", "fine"):
        webhook(name)
    deliver(database, "failing", 1, state="waiting", attempts=2, error="hook did not answer within 10 s.", queued=now)
    deliver(database, "failing", 2, state="waiting", attempts=0, error=None, queued=now)
    deliver(database, "dead", 3, state="dead", attempts=4, error="status 500", queued=now)
    deliver(database, "dead", 4, state="dead", attempts=4, error="status 500", queued=now)
    deliver(database, "idle", 5, state="waiting", attempts=0, error=None, queued=now - timedelta(hours=3))
    deliver(database, "fine", 6, state="waiting", attempts=0, error=None, queued=now)
    report = doctor("--config", config, "--offline")
    failing = report.finding("webhook.fails")
    assert failing["subject"] == "failing"
    assert "2 events wait; the last attempt failed: hook did not answer within 10 s." in failing["message"]
    assert "2 events were given up" in report.finding("webhook.dead-events")["message"]
    assert report.finding("webhook.backlog")["subject"] == "idle"
    assert "user:pw" not in report.text


def test_webhook_of_a_partner_that_answers_500_is_found_after_its_delivery(pkis: dict[str, PKI]) -> None:
    options = {"event_dispatch": True, "event_allow_http": True, "egress_allow_networks": ("127.0.0.0/8",)}
    with start({"iso2": pkis["iso2"]}, **options) as pool, receiving() as receiver:
        receiver.says("/hook", 500)
        hook = webhook_of(f"{receiver.url}/hook")
        pool.change(webhooks.put(hook))
        pool.publish(pool.car())
        receiver.wait("/hook", 1)
        env = {"CCP_DATABASE": pool.settings.database, "CCP_PORT": "1"}
        wait_until(lambda: "webhook.fails" in doctor("--offline", **env).codes)
        assert hook.id in doctor("--offline", **env).finding("webhook.fails")["message"]
