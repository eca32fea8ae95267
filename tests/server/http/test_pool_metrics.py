"""Metrics of the whole pool: contracts, vehicles, evidence, anchors, webhooks, services, and the expiry forecast."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from ccp import __version__
from ccp.server.domain.parties import PartyRole
from ccp.server.domain.statistics import (
    ContractStatistics,
    EvidenceStatistics,
    ExpiryForecast,
    WebhookBacklog,
    WebhookStatistics,
)
from ccp.server.metrics import Metrics, snapshot
from ccp.server.storage.engine.schema_version import HEAD
from ccp.server.storage.queries import webhooks
from ccp.testing.pki import PKI
from tests.cli.run import ccp_ok
from tests.cli.served_sandbox import free_port, own_certificate, serving
from tests.databases import Server
from tests.scripted_server import DROP, error, json_reply, scripted
from tests.server.events.receiver import receiving, webhook
from tests.server.http.metrics_reading import parse_metrics, read_metrics, sample
from tests.waiting import wait_until
from tests.world import AT, Pool, new_emaid, party, start

FAST = {"statistics_interval": 0.05}
ADMIN = [party("watcher", PartyRole.ADMIN)]


def contracts_are(pool: Pool, **expected: int) -> None:
    """Wait until the pool has counted these contracts by state."""

    def counted() -> dict[str, float]:
        found = read_metrics(pool.base_url)
        return {state: sample(found, "ccp_contracts", state=state) for state in expected}

    wait_until(lambda: counted() == expected, 10, counted)


def revoke(pool: Pool, emaid: str, status: str = "revoked", next_update: int = 2) -> None:
    """Store evidence about a contract's certificate."""
    ((issuer, serial),) = pool.sql("select certificate_issuer, certificate_serial from contract where emaid = ?", emaid)
    pool.sql("delete from evidence where issuer = ? and serial = ?", issuer, serial)
    pool.sql(
        "insert into evidence (issuer, serial, status, this_update, next_update, revoked_at, source) "
        "values (?, ?, ?, 1, ?, 1, 'test')",
        issuer, serial, status, next_update,
    )  # fmt: skip


def count_contracts_by_state(pkis: dict[str, PKI]) -> None:
    with start(pkis, ADMIN, **FAST) as pool:
        contracts_are(pool, valid=0, expired=0, revoked=0, no_evidence=0)
        cars = [pool.car() for _ in range(5)]
        published = [pool.publish(car) for car in cars]
        pool.publish(cars[0], new_emaid("NLEXB"), valid=(AT - timedelta(days=1), AT + timedelta(days=20)))
        answer = pool.oem.post(f"/signedcontractdata/{published[1].emaid}/{cars[1].pcid}/setdefault")
        assert answer.status_code == 200, answer.text
        pool.expire(published[3].emaid)
        revoke(pool, published[2].emaid)
        revoke(pool, published[4].emaid, "good", next_update=1_000_000)
        contracts_are(pool, valid=3, expired=1, revoked=1, no_evidence=1)
        found = read_metrics(pool.base_url)
        states = ("chosen", "automatic", "contested", "no_default")
        vehicles = {state: sample(found, "ccp_vehicles", state=state) for state in states}
        assert vehicles == {"chosen": 1, "automatic": 3, "contested": 1, "no_default": 0}
        for days, count in (("7", 0), ("30", 1), ("90", 1)):
            assert sample(found, "ccp_contracts_expiring", provider="NLEXB", days=days) == count
            assert sample(found, "ccp_contracts_expiring", provider="other", days=days) == 0
        age = datetime.now(UTC).timestamp() - sample(found, "ccp_statistics_timestamp_seconds", kind="contracts")
        assert 0 <= age < 10
        assert 0 < sample(found, "ccp_statistics_duration_seconds", kind="contracts") < 10

        # The same forecast for an administrator, and on the command line.
        headers = {"Authorization": f"Bearer {pool.token('watcher')}"}
        forecast = pool.http.get("/admin/v1/expiry", headers=headers).json()
        windows = [{"days": 7, "contracts": 0}, {"days": 30, "contracts": 1}, {"days": 90, "contracts": 1}]
        assert forecast["total"] == windows
        assert forecast["providers"] == [{"provider_id": "NLEXB", "expiring": windows}]
        arguments = ["--days", 30, "--days", 7, "--json"]
        printed = json.loads(ccp_ok("expiry", *arguments, env={"CCP_DATABASE": pool.settings.database}).out)
        assert printed["total"] == windows[:2]
        assert printed["providers"] == [{"provider_id": "NLEXB", "expiring": windows[:2]}]


def test_contracts_and_vehicles_are_counted_by_state(pkis: dict[str, PKI]) -> None:
    count_contracts_by_state(pkis)


@pytest.mark.slow
def test_contracts_are_counted_by_state_on_postgres(
    pkis: dict[str, PKI], postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.world.fresh", lambda folder: postgres.database())
    count_contracts_by_state(pkis)


def test_build_and_anchors_are_shown(pkis: dict[str, PKI]) -> None:
    with start(pkis) as pool:
        text = pool.http.get("/metrics").text
        found = parse_metrics(text)
        labels = next(dict(labels) for name, labels in found if name == "ccp_build_info")
        assert (labels["version"], labels["schema_revision"]) == (__version__, HEAD)
        anchors = pool.sql("select role, fingerprint from trust_anchor where is_root")
        shown = {(dict(at)["role"], dict(at)["fingerprint"]) for name, at in found if "anchor_not_after" in name}
        assert shown == {(role, fingerprint) for role, fingerprint in anchors}
        root = pool.pki().v2g_root.certificate
        assert root.not_after.timestamp() in {value for (name, _), value in found.items() if "anchor_not_after" in name}
        assert sample(found, "ccp_anchors", role="v2g") == sum(role == "v2g" for role, _ in anchors)
        wait_until(lambda: sample(read_metrics(pool.base_url), "ccp_database_connections_max") > 0)
        found = read_metrics(pool.base_url)
        queues = {dict(at)["queue"] for name, at in found if name == "ccp_queue_length"}
        assert queues == {"database", "delivery_notices", "event_deliveries", "evidence_fetches", "refused_access"}
        assert "ccp_tls_certificate" not in " ".join(name for name, _ in found)


def test_requests_to_services_are_counted_by_outcome(pkis: dict[str, PKI]) -> None:
    with scripted() as pcp:
        pcp.on("*", error(404), error(500), DROP, json_reply({}))
        more = {"pcp_url": pcp.url, "require_known_vehicle": False}
        with start(pkis, **more) as pool:
            for _ in range(3):
                pool.post(pool.car())
            found = read_metrics(pool.base_url)
            counts = {
                dict(at)["outcome"]: value
                for (name, at), value in found.items()
                if name == "ccp_service_requests_total" and dict(at)["service"] == "pcp"
            }
            assert counts["client_error"] == 1
            assert counts["server_error"] == 1
            assert counts["no_answer"] == 1
            assert sample(found, "ccp_service_request_seconds_count", service="pcp") == sum(counts.values())
            assert pcp.url not in pool.http.get("/metrics").text


def test_event_backlog_is_shown_by_webhook(pkis: dict[str, PKI]) -> None:
    more = {"event_dispatch": True, "event_allow_http": True, "egress_allow_networks": ("127.0.0.0/8",), **FAST}
    with receiving() as receiver, start(pkis, **more) as pool:
        receiver.says("/maker", *[500] * 50)
        hook = webhook(f"{receiver.url}/maker?key=very-secret", "oem")
        pool.change(webhooks.put(hook))
        for _ in range(3):
            pool.publish(pool.car())
        labels = {"webhook": hook.id, "party": "oem"}
        wait_until(lambda: sample(read_metrics(pool.base_url), "ccp_webhook_events", **labels, state="waiting") == 3)
        found = read_metrics(pool.base_url)
        since = sample(found, "ccp_webhook_oldest_event_timestamp_seconds", **labels)
        assert 0 <= datetime.now(UTC).timestamp() - since < 60
        answered = {"service": "webhook", "outcome": "server_error"}
        wait_until(lambda: sample(read_metrics(pool.base_url), "ccp_service_requests_total", **answered) >= 1)
        text = pool.http.get("/metrics").text
        assert receiver.url not in text
        assert "very-secret" not in text


def test_metrics_are_read_without_a_query(pkis: dict[str, PKI]) -> None:
    """A scrape reads memory alone: it is answered while the database file is away."""
    with start(pkis, **FAST) as pool:
        pool.publish(pool.car())
        contracts_are(pool, valid=1)
        pool.sql("drop table contract")
        pool.sql("drop table statistics")
        for _ in range(3):
            assert sample(read_metrics(pool.base_url), "ccp_contracts", state="valid") == 1
        wait_until(lambda: sample(read_metrics(pool.base_url), "ccp_task_failures_total", task="statistics") >= 1)


def test_metrics_have_a_bounded_number_of_series() -> None:
    metrics = Metrics()
    providers = {f"DE{number:03d}": (1, 2, 3) for number in range(1000)}
    contracts = ContractStatistics(
        AT, 0.5, {"valid": 1}, {"chosen": 1}, {"ocsp": EvidenceStatistics(1, 2, AT)},
        ExpiryForecast.of(AT, (7, 30, 90), providers),
    )  # fmt: skip
    backlogs = tuple(WebhookBacklog(f"id-{number}", "party", 2, 1, AT) for number in range(1000))
    many = [snapshot.AnchorExpiry("v2g", f"{number:064x}", float(number)) for number in range(1000)]
    metrics.add_source(lambda: snapshot.anchors(many))
    metrics.add_source(lambda: snapshot.statistics(contracts, WebhookStatistics(AT, 0.1, backlogs)))
    found = parse_metrics(metrics.render("")[0].decode())
    series = {name: sum(each == name for each, _ in found) for name, _ in found}
    assert series["ccp_anchor_not_after_timestamp_seconds"] == snapshot.MAX_ANCHORS
    assert series["ccp_contracts_expiring"] == 3 * (snapshot.MAX_PROVIDERS + 1)
    assert series["ccp_webhook_events"] == 2 * (snapshot.MAX_WEBHOOKS + 1)
    assert sum(value for (name, _), value in found.items() if name == "ccp_contracts_expiring") == 6000
    assert sum(value for (name, _), value in found.items() if name == "ccp_webhook_events") == 3000


def test_statistics_survive_their_stored_form() -> None:
    evidence = {"ocsp": EvidenceStatistics(1, 2, AT), "crl": EvidenceStatistics(0, 0, None)}
    expiry = ExpiryForecast.of(AT, (7, 30), {"DEEXA": (1, 2)})
    counted = ContractStatistics(AT, 0.5, {"valid": 1}, {"chosen": 1}, evidence, expiry)
    assert ContractStatistics.from_json(AT, counted.to_json()) == counted
    waiting, dead = WebhookBacklog("id", "party", 2, 1, AT), WebhookBacklog("id2", "party", 0, 1, None)
    backlog = WebhookStatistics(AT, 0.1, (waiting, dead))
    assert WebhookStatistics.from_json(AT, backlog.to_json()) == backlog


def test_metrics_pass_the_check_of_promtool(pkis: dict[str, PKI], tmp_path: Path) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed")
    with start(pkis, **FAST) as pool:
        pool.publish(pool.car())
        pool.post(pool.car())
        contracts_are(pool, valid=1)
        text = httpx.get(f"{pool.base_url}/metrics").text
    checked = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_metrics_show_the_end_of_the_tls_certificate(tmp_path: Path) -> None:
    certificate, key = own_certificate(tmp_path)
    context = ssl.create_default_context(cafile=str(certificate))
    port = free_port()
    arguments = ["--port", port, "--tls-cert", certificate, "--tls-key", key]
    with serving(f"https://127.0.0.1:{port}", *arguments, verify=context, log=tmp_path / "log", cwd=tmp_path) as http:
        not_after = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp()
        name = "ccp_tls_certificate_not_after_timestamp_seconds"
        wait_until(lambda: sample(parse_metrics(http.get("/metrics").text), name, file="cert.pem") == not_after)
