"""Traces of requests: their spans, what they carry, and what happens when their receiver is away."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ccp.server import tracing
from ccp.server.storage.queries import peers, webhooks
from ccp.server.storage.queries.peers import Peer
from ccp.testing.pki import PKI
from tests.cli.run import ccp_ok, environment
from tests.cli.served_sandbox import Sandbox, ask, free_port, serving
from tests.scripted_server import error, scripted
from tests.server.events.receiver import receiving, webhook
from tests.server.pool.peers.requests import until_known
from tests.server.tracing.collector import Collector, collecting
from tests.waiting import wait_until
from tests.world import AT, start

DELIVER = "GetSignedContractDataByCertificateInstallationReq"
CALLER_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{CALLER_TRACE}-00f067aa0ba902b7-01"
FAST_EXPORT = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as receiver:
        for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, **FAST_EXPORT}.items():
            monkeypatch.setenv(name, value)
        yield receiver


def hexadecimal(trace_id: str) -> str:
    return uuid.UUID(trace_id).hex


def test_traces_have_a_span_for_each_request_with_its_parts(pkis: dict[str, PKI], collector: Collector) -> None:
    with start(pkis) as pool:
        car = pool.car()
        contract = pool.publish(car)
        answer = pool.post(car, headers={"traceparent": TRACEPARENT})
        assert answer.status_code == 200
        (span,) = collector.wait(f"POST {DELIVER}")
        spans = collector.of_trace(CALLER_TRACE)

        # The caller's trace continues, and its id is the API's.
        assert (span.trace_id, span.parent) == (CALLER_TRACE, "00f067aa0ba902b7")
        assert hexadecimal(answer.headers["x-trace-id"]) == CALLER_TRACE
        attributes = span.attributes
        assert attributes["http.request.method"] == "POST"
        assert attributes["http.response.status_code"] == 200
        assert attributes["url.scheme"] == "http"
        assert attributes["ccp.operation"] == DELIVER
        assert attributes["ccp.caller"] == "cpo"
        assert "error.type" not in attributes
        assert span.resource["service.name"] == "opnc-ccp"

        children = {each.name: each for each in spans if each is not span}
        verification, read = children["verify request"], children["read _contracts_with_revocation"]
        assert verification.parent == read.parent == span.span_id
        assert (read.attributes["db.system.name"], read.attributes["db.operation.name"]) == ("sqlite", "read")
        for child in (verification, read):
            assert span.span.start_time_unix_nano <= child.span.start_time_unix_nano
            assert child.span.end_time_unix_nano <= span.span.end_time_unix_nano

        collector.wait("verify response")
        assert [each for each in collector.spans if each.name.startswith("write ")]
        secrets = (car.pcid, contract.emaid, pool.token("cpo"), pool.token("cps"), pool.base_url)
        for secret in map(str, secrets):
            assert not [body for body in collector.bodies if secret.encode() in body], secret


def test_traces_without_a_valid_traceparent_begin_with_the_request(pkis: dict[str, PKI], collector: Collector) -> None:
    with start(pkis) as pool:
        wrong = (
            "nonsense",
            "00-xyz-1-01",
            f"00-{'0' * 32}-00f067aa0ba902b7-01",
            f"ff-{CALLER_TRACE}-00f067aa0ba902b7-01",
        )
        for number, header in enumerate(wrong, 1):
            answer = pool.http.get("/nothing", headers={"traceparent": header, "X-Trace-Id": "my-own-id"})
            shown = hexadecimal(answer.json()["traceId"])
            assert shown == hexadecimal(answer.headers["x-trace-id"]) != CALLER_TRACE
            spans = collector.wait("GET", number)
            assert shown in {each.trace_id for each in spans}
        repeated = pool.http.get("/nothing", headers=[("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)])
        assert hexadecimal(repeated.json()["traceId"]) != CALLER_TRACE
        own = hexadecimal(repeated.json()["traceId"])
        (failed,) = [each for each in collector.wait("GET", 5) if each.trace_id == own]
        assert failed.attributes["http.response.status_code"] == 404
        assert failed.attributes["error.type"] == repeated.headers["x-error-code"]


def test_traces_name_the_refusal_of_a_vehicle(pkis: dict[str, PKI], collector: Collector) -> None:
    with start(pkis) as pool:
        answer = pool.post(pool.car())
        (span,) = collector.wait(f"POST {DELIVER}")
        assert span.attributes["error.type"] == answer.headers["x-error-code"]
        assert span.attributes["http.response.status_code"] == 200


def test_traces_are_passed_on_to_services_peers_and_webhooks(pkis: dict[str, PKI], collector: Collector) -> None:
    more = {"event_dispatch": True, "event_allow_http": True, "egress_allow_networks": ("127.0.0.0/8",)}
    with scripted() as other, receiving() as receiver:
        other.on("*", error(404))
        with start(pkis, pcp_url=f"{other.url}/pcp", require_known_vehicle=False, peer_negative_ttl=0, **more) as pool:
            pool.change(peers.add(Peer("far", other.url + "/far", token="t"), AT))
            until_known(pool, "far")
            hook = webhook(f"{receiver.url}/maker", "oem")
            pool.change(webhooks.put(hook))
            car = pool.car()
            pool.post(car, headers={"traceparent": TRACEPARENT, "broadcast": "true"})
            named = f"POST {DELIVER}"
            wait_until(lambda: [each for each in collector.of_trace(CALLER_TRACE) if each.name == named])
            names = {each.name for each in collector.of_trace(CALLER_TRACE)}
            assert {"GET pcp", "ask peer"} <= names, names
            asked = [one for one in other.received if _header(one, "traceparent")]
            paths = {one.path.split("/")[1]: _header(one, "traceparent") for one in asked}
            assert {"pcp", "far"} <= paths.keys()
            ids = {each.span_id for each in collector.of_trace(CALLER_TRACE)}
            for value in paths.values():
                _, trace_id, parent, _ = value.split("-")
                assert trace_id == CALLER_TRACE
                assert parent in ids

            pool.publish(pool.car())
            wait_until(lambda: receiver.sent)
            carried = receiver.sent[0].headers["traceparent"].split("-")[1]
            collector.wait("POST webhook")
            assert carried in {each.trace_id for each in collector.named("POST webhook")}
            assert not [body for body in collector.bodies if b"/maker" in body]


def test_traces_are_dropped_when_their_receiver_is_away(
    pkis: dict[str, PKI], collector: Collector, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    collector.status = 400
    with start(pkis, log_level="warning") as pool:
        for _ in range(200):
            assert pool.http.get("/health/live").status_code == 200
        wait_until(lambda: len(collector.paths) >= 3)
        assert set(collector.paths) == {"/v1/traces"}
        collector.status = 200
        wait_until(lambda: collector.spans or not pool.http.get("/health/live").status_code)
    written = capfd.readouterr().err
    assert written.count("trace export failed") == 1
    assert "Traceback" not in written
    assert len(written.splitlines()) <= 2, written


def test_traces_are_exported_only_if_the_environment_names_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: list[str] = []
    monkeypatch.setattr(tracing._log, "warning", lambda event, reason: reasons.append(reason), raising=False)
    assert tracing.start("1", {}) is None
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    assert tracing.start("1", {**endpoint, "OTEL_SDK_DISABLED": "true"}) is None
    assert tracing.start("1", {**endpoint, "OTEL_TRACES_EXPORTER": "none"}) is None
    assert reasons == []
    assert tracing.start("1", {**endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}) is None
    assert tracing.start("1", {**endpoint, "OTEL_TRACES_EXPORTER": "zipkin"}) is None
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    assert tracing.start("1", endpoint) is None
    assert reasons == [
        "The OTLP protocol is grpc; the pool exports with http/protobuf only.",
        "OTEL_TRACES_EXPORTER is zipkin; the pool exports with otlp only.",
        "The libraries are not installed; install opnc-ccp[otel].",
    ]


def test_server_without_tracing_imports_nothing_of_it(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom ccp.server.app import create_app\nfrom ccp.server.settings import Settings\n"
        f"create_app(Settings(database='sqlite:///{tmp_path}/ccp.db', metrics='off'))\n"
        "used = ('opentelemetry.sdk', 'opentelemetry.exporter', 'opentelemetry.proto', 'ccp.server.tracing.spans')\n"
        "print([name for name in sys.modules if name.startswith(used)])"
    )
    env = {name: value for name, value in environment().items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_traces_come_from_each_worker(tmp_path: Path, collector: Collector) -> None:
    ccp_ok("sandbox", tmp_path / "DIR", "--port", free_port(), "--store")
    sandbox = Sandbox(tmp_path / "DIR")
    with serving(sandbox.url, "--config", sandbox.directory / "ccp.toml", "--workers", 2, log=tmp_path / "log") as http:
        cpo = sandbox.token(http, "cpo")

        def workers() -> set[int]:
            with httpx.Client(base_url=sandbox.url, timeout=10) as client:
                ask(client, sandbox, cpo)
            return {each.resource["process.pid"] for each in collector.named(f"POST {DELIVER}")}

        wait_until(lambda: len(workers()) == 2, 30)
    # What was queued at the end is exported too.
    instances = {each.resource["service.instance.id"] for each in collector.spans}
    assert len(instances) >= 2


def _header(received: object, name: str) -> str:
    headers = {key.lower(): value for key, value in received.headers.items()}  # type: ignore[attr-defined]
    return str(headers.get(name, ""))
