"""What the pool tells of itself at /metrics: who may read it, and whether the numbers are right."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from ccp.server.domain.parties import PartyRole
from ccp.server.domain.statistics import (
    ContractStatistics,
    EvidenceStatistics,
    ExpiryForecast,
    WebhookBacklog,
    WebhookStatistics,
)
from ccp.server.events import dispatcher
from ccp.server.metrics import Metrics, snapshot
from ccp.server.storage.queries import peers, webhooks
from ccp.server.storage.queries.peers import Peer
from ccp.testing.pki import PKI
from tests.cli.run import ccp_ok
from tests.cli.served_sandbox import Sandbox, ask, free_port, serving
from tests.scripted_server import DROP, error, scripted
from tests.server.events.receiver import receiving, webhook
from tests.server.http.api.answers import sentences
from tests.server.http.metrics_reading import parse_metrics, read_metrics, sample, total
from tests.server.pool.peers.requests import PATH, deliver, to, until_known
from tests.waiting import wait_until
from tests.world import AT, Pool, party, start

DELIVER = "GetSignedContractDataByCertificateInstallationReq"
# --- Who may read them -----------------------------------------------------------------------------------------------

ADMIN = [party("watcher", PartyRole.ADMIN)]


def test_callers_on_this_machine_need_no_token(pool: Pool) -> None:
    pool.http.get("/health")
    answer = pool.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert sample(parse_metrics(answer.text), "ccp_requests_total", operation="none", status="200", outcome="ok") >= 1
    newer = pool.http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert newer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert newer.text.endswith("# EOF\n")
    assert pool.http.post("/metrics").status_code == 405


@pytest.mark.parametrize(
    "header",
    [
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-For": "203.0.113.7"},
        {"Forwarded": "for=127.0.0.1"},
        {"X-Real-IP": "127.0.0.1"},
        {"Via": "1.1 proxy"},
        {"X-Forwarded-Proto": "https"},
    ],
)
def test_metrics_through_a_proxy_need_an_admin_token(pkis: dict[str, PKI], header: dict[str, str]) -> None:
    with start(pkis, ADMIN) as pool:
        assert sentences(pool.http.get("/metrics", headers=header), 401) == ["A bearer token is needed."]
        cpo = {"Authorization": f"Bearer {pool.token('cpo')}"}
        assert sentences(pool.http.get("/metrics", headers=header | cpo), 403) == [
            "GetMetrics is for the role admin, metrics."
        ]
        watcher = {"Authorization": f"Bearer {pool.token('watcher')}"}
        assert pool.http.get("/metrics", headers=header | watcher).status_code == 200


def test_metrics_setting_restricts_to_admins_or_disables(pkis: dict[str, PKI]) -> None:
    with start(pkis, ADMIN, metrics="admin") as pool:
        assert sentences(pool.http.get("/metrics"), 401)
        watcher = {"Authorization": f"Bearer {pool.token('watcher')}"}
        assert pool.http.get("/metrics", headers=watcher).status_code == 200
    with start(pkis, ADMIN, metrics="off") as pool:
        watcher = {"Authorization": f"Bearer {pool.token('watcher')}"}
        for headers in ({}, watcher):
            assert sentences(pool.http.get("/metrics", headers=headers), 404) == ["There is nothing at this path."]


# --- Whether they are right ------------------------------------------------------------------------------------------


def test_requests_are_counted_by_operation_status_and_outcome_and_name_nobody(pkis: dict[str, PKI]) -> None:
    with start(pkis) as pool:
        car, stranger = pool.car(), pool.car()
        contract = pool.publish(car)
        for _ in range(3):
            pool.ask(car)
        assert pool.post(stranger).status_code == 200
        assert pool.post(stranger, headers={"alwaysReturnEXI": "false"}).status_code == 404
        assert pool.cpo.post("/signedcontractdata", content=b"{").status_code == 400
        assert pool.oem.delete(f"/signedcontractdata/{contract.emaid}").status_code == 403
        assert pool.client(None).get(f"/contractData/pcid/{car.pcid}").status_code == 401
        assert pool.http.get("/elsewhere").status_code == 404
        text = pool.http.get("/metrics").text
    found = parse_metrics(text)
    for operation, status, outcome, count in (
        (DELIVER, "200", "ok", 3),
        (DELIVER, "200", "no_contract", 1),
        (DELIVER, "404", "not_found", 1),
        (DELIVER, "400", "field", 1),
        ("AddSignedContractData", "201", "ok", 1),
        ("DeleteSignedContractDataByEmaid", "403", "not_authorised", 1),
        ("GetContractDataByPcid", "401", "not_authenticated", 1),
        ("none", "404", "refused", 1),
    ):
        assert sample(found, "ccp_requests_total", operation=operation, status=status, outcome=outcome) == count, (
            outcome
        )
    assert sample(found, "ccp_request_seconds_count", operation=DELIVER) == 6
    assert sample(found, "ccp_request_seconds_bucket", operation=DELIVER, le="+Inf") == 6
    assert 0 < sample(found, "ccp_request_seconds_sum", operation=DELIVER) < 6
    for secret in (car.pcid, stranger.pcid, contract.emaid, "WEX", "DEEXA", "127.0.0.1", *map(repr, ("cpo", "oem"))):
        assert str(secret) not in text
    assert "_created" not in text
    names = {label for _, labels in found for label, _ in labels}
    counted = {"operation", "status", "outcome", "limit", "peer", "task", "le", "class", "service", "queue", "state"}
    counted.add("problem")
    facts = {"version", "schema_revision", "python_version", "role", "fingerprint", "kind", "provider", "days"}
    assert names <= counted | facts | {"webhook", "party"}


def test_metrics_count_refusals_by_limit(pkis: dict[str, PKI]) -> None:
    limits = {
        "rate_limit_per_party": 1,
        "rate_limit_unauthenticated": 1,
        "login_failures_per_minute": 1,
        "max_connections_per_address": 3,
    }
    with start(pkis, trusted_proxies=(), **limits) as pool:
        answers = [pool.oem.get("/contractData/pcid/WEX00000000000000").status_code for _ in range(4)]
        assert answers.count(429) >= 1
        wrong = {"grant_type": "client_credentials", "client_id": "cpo", "client_secret": "wrong"}
        logins = [pool.http.post("/oauth/token", data=wrong).status_code for _ in range(3)]
        forged = {"Authorization": "Bearer x"}
        strangers = [pool.http.get("/opnc/v1/ccp/contractData/pcid/A", headers=forged).status_code for _ in range(40)]
        found = parse_metrics(pool.http.get("/metrics").text)
        assert sample(found, "ccp_limited_total", limit="party") == answers.count(429)
        assert sample(found, "ccp_limited_total", limit="login") == logins.count(429) >= 1
        assert sample(found, "ccp_limited_total", limit="failures") == strangers.count(429) >= 1
        clients = [httpx.Client(base_url=pool.base_url) for _ in range(3)]
        turned_away = [client.get("/health").status_code for client in clients].count(429)
        found = parse_metrics(pool.http.get("/metrics").text)
        assert sample(found, "ccp_limited_total", limit="connections_address") == turned_away >= 1
        for client in clients:
            client.close()


def test_metrics_count_requests_that_the_protocol_refuses(pkis: dict[str, PKI]) -> None:
    with start(pkis) as pool:
        answer = pool.http.get("/health", headers={"X-Long": "a" * 40_000})
        assert answer.status_code == 431
        found = parse_metrics(pool.http.get("/metrics").text)
        assert sample(found, "ccp_requests_total", operation="none", status="431", outcome="refused") == 1


def test_peer_metrics_count_outcomes_and_show_an_open_circuit(pkis: dict[str, PKI]) -> None:
    with scripted() as bad, start(pkis, pool_id="pool-b") as there:
        bad.on(PATH, error(404), DROP)
        with start(pkis, pool_id="pool-a", peer_delivery_timeout=1, peer_negative_ttl=0) as here:
            secret = there.world.member("peer").secret
            here.change(peers.add(Peer("pool-b", there.base_url, "opnc", "peer", secret), AT))
            here.change(peers.add(Peer("bad", bad.url, token="t"), AT))
            until_known(here, "bad")
            car = there.car()
            deliver(here, car)
            for _ in range(3):
                deliver(here, here.car())
            there.publish(car)
            deliver(here, car)
            headers = to("pool-b")
            sentences(here.oem.get(f"/contractData/pcid/{car.pcid}", headers=headers), 403)
            found = read_metrics(here.base_url)
            for peer, operation, outcome, count in (
                ("pool-b", DELIVER, "nothing", 4),
                ("pool-b", DELIVER, "found", 1),
                ("pool-b", "GetContractDataByPcid", "not_authorised", 1),
                ("bad", DELIVER, "not_found", 1),
                ("bad", DELIVER, "no_answer", 3),
            ):
                labels = {"peer": peer, "operation": operation, "outcome": outcome}
                assert sample(found, "ccp_peer_requests_total", **labels) == count, labels
            assert sample(found, "ccp_peer_request_seconds_count", peer="pool-b") == 6
            assert sample(found, "ccp_peer_request_seconds_count", peer="bad") == 4
            assert sample(found, "ccp_peer_circuit_open", peer="pool-b") == 0
            assert sample(found, "ccp_peer_circuit_open", peer="bad") == 1
            # Whom we do not call any more we do not leave alone either.
            here.change(peers.disable("bad"))
            wait_until(lambda: sample(read_metrics(here.base_url), "ccp_peer_circuit_open", peer="bad") == 0)


def test_operations_page_lists_all_metrics() -> None:
    document = (Path(__file__).resolve().parents[3] / "docs" / "operations.md").read_text("utf-8")
    document = document.partition("## Metrics")[2].partition("\n## ")[0]
    named = {re.sub("_bucket$", "", name) for name in re.findall(r"\bccp_[a-z_]+", document)}
    metrics = Metrics()
    metrics.request("Any", 200, "ok", 0.1)
    metrics.limited("any")
    metrics.forwarded_problem("any")
    metrics.peer_request_ended("any", "Any", "ok", 0.1)
    metrics.peer_circuit_changed("any", True)
    metrics.broadcast("any")
    metrics.event_attempted("any")
    metrics.requests_shed("any", "any", 1)
    metrics.requests_admitted("any", 1, 2, 3.0)
    metrics.events_pending(1, 2, 3, 4.0)
    metrics.task_failed("any")
    metrics.refusal_dropped("any")
    metrics.service_request_ended("any", "ok", 0.1)
    metrics.database_sampled(1, 2, 3)
    metrics.queue_sampled("any", 1)
    metrics.tls_certificate_used("cert.pem", 1.0)
    metrics.add_source(lambda: snapshot.build_info("1.0", "0001"))
    metrics.add_source(lambda: snapshot.anchors([snapshot.AnchorExpiry("v2g", "ab", 1.0)]))
    evidence = {"ocsp": EvidenceStatistics(1, 2, AT)}
    contracts = ContractStatistics(AT, 0.5, {"valid": 1}, {"chosen": 1}, evidence, ExpiryForecast.of(AT, (7,), {}))
    backlog = WebhookStatistics(AT, 0.1, (WebhookBacklog("id", "party", 2, 1, AT),))
    metrics.add_source(lambda: snapshot.statistics(contracts, backlog))
    there = {re.sub("_(bucket|count|sum)$", "", name) for name, _ in parse_metrics(metrics.render("")[0].decode())}
    assert named == there


def test_events_are_counted_by_what_came_of_them_and_by_what_they_wait_for(
    pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "_METRICS_INTERVAL", 0.1)
    more = {"event_dispatch": True, "event_allow_http": True, "event_retries": 1, "event_retry_delay": 0.2}
    with receiving() as receiver, start(pkis, egress_allow_networks=("127.0.0.0/8",), **more) as pool:
        receiver.says("/maker", 500, 200, 409, 500)
        pool.change(webhooks.put(webhook(f"{receiver.url}/maker", "oem")))
        for _ in range(3):
            pool.publish(pool.car())
        for outcome, count in (("delivered", 1), ("rejected", 1), ("given_up", 1), ("failed", 1)):
            wait_until(
                lambda: sample(read_metrics(pool.base_url), "ccp_event_attempts_total", outcome=outcome) == count,  # noqa: B023
            )
        wait_until(lambda: sample(read_metrics(pool.base_url), "ccp_events", state="dead") == 2)
        found = read_metrics(pool.base_url)
        assert sample(found, "ccp_events", state="outbox") == sample(found, "ccp_events", state="waiting") == 0
        assert sample(found, "ccp_events_oldest_seconds") == 0


# --- Several workers -------------------------------------------------------------------------------------------------


_ENDED_WORKERS = """
import os, sys, time
from pathlib import Path
from ccp.server.metrics import Metrics, worker_ended

own, folder = Metrics(), Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
for number in range(1, 41):
    pid = os.fork()
    if not pid:
        Metrics().request("op", 200, "ok", 0.02)
        os._exit(0)
    os.waitpid(pid, 0)
    worker_ended(pid)
    lines = own.render("text/plain")[0].decode().splitlines()
    assert f'ccp_requests_total{{operation="op",outcome="ok",status="200"}} {number}.0' in lines, lines
    (count,) = [line for line in lines if line.startswith("ccp_request_seconds_count")]
    assert count.endswith(f" {number}.0"), count
print(len(list(folder.glob("*.db"))))
"""


def test_metrics_of_many_ended_workers_are_in_as_many_files_as_those_of_one(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _ENDED_WORKERS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 10


def test_metrics_of_any_worker_include_all_workers_and_dead_ones(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    ccp_ok("sandbox", tmp_path / "DIR", "--port", free_port(), "--store")
    sandbox = Sandbox(tmp_path / "DIR")
    config = sandbox.directory / "ccp.toml"
    ccp_ok("peer", "add", "gone", "http://127.0.0.1:9", "--config", config, env={"CCP_PEER_SECRET": "t"})
    serve = serving(sandbox.url, "--config", config, "--workers", 2, log=tmp_path / "log", temporary=tmp_path / "tmp")
    with serve as http:
        cpo = sandbox.token(http, "cpo")
        for _ in range(4):
            # Connections of their own meet both workers, sooner or later.
            with httpx.Client(base_url=sandbox.url, timeout=10) as client:
                ask(client, sandbox, cpo)
        wanted = 4 * len(sandbox.samples("request"))
        for _ in range(8):
            assert total(read_metrics(sandbox.url), "ccp_requests_total", operation=DELIVER) == wanted
        assert sample(read_metrics(sandbox.url), "ccp_peer_circuit_open", peer="gone") == 0

        # Each worker that cannot reach a peer opens its own circuit for it.
        samples = sandbox.directory / "samples" / "iso2"
        for emaid in samples.glob("publish_*"):
            party = "example-emsp-a" if "DEEXA" in emaid.name else "example-emsp-b"
            token = _token(http, sandbox, party)
            answer = http.delete(
                f"/opnc/v1/ccp/signedcontractdata/{emaid.stem.removeprefix('publish_')}", headers=token
            )
            assert answer.status_code == 200, answer.text
        body = sandbox.samples("request")[0]
        for _ in range(16):
            httpx.post(f"{sandbox.url}{PATH}", json=body, headers={**cpo, "broadcast": "true"}, timeout=10)
        before = read_metrics(sandbox.url)
        assert sample(before, "ccp_peer_circuit_open", peer="gone") == 1

        (folder,) = (tmp_path / "tmp").glob("opnc-ccp-*/metrics")
        workers = _workers(folder)
        assert len(workers) == 2
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(_runs(pid) for pid in workers), 20)
        wait_until(lambda: len(_workers(folder) - workers) == 2 and _answers(sandbox.url), 30)
        after = read_metrics(sandbox.url)
        assert total(after, "ccp_requests_total", operation=DELIVER) == wanted + 16
        assert sample(after, "ccp_peer_circuit_open", peer="gone") == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert not list((tmp_path / "tmp").glob("opnc-ccp-*"))


def _token(http: httpx.Client, sandbox: Sandbox, client_id: str) -> dict[str, str]:
    secret = next(one["client_secret"] for one in sandbox.credentials["parties"] if one["client_id"] == client_id)
    answer = http.post("/oauth/token", data={"grant_type": "client_credentials"}, auth=(client_id, secret))
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def _workers(folder: Path) -> set[int]:
    """The processes that have counted something."""
    named = {file.stem.rpartition("_")[2] for file in folder.glob("*.db")}
    return {int(name) for name in named - {"ended"}}


def _runs(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state) and not state.startswith("Z")


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
