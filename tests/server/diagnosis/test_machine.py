"""Checks of this machine: files, certificates of the server, disk, clock, memory, and the server that runs here."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from ccp.server.diagnosis import processes
from ccp.testing.pki import PKI
from tests.cli.run import COMMAND, ccp_ok, environment
from tests.cli.served_sandbox import free_port, serving
from tests.cli.server_certificates import certificate
from tests.diagnoses import configuration, doctor, doctor_process
from tests.scripted_server import Reply, scripted
from tests.tls_files import PrivateCA
from tests.world import start

YEAR = timedelta(days=365)
FAKETIME = shutil.which("faketime")


# --- Files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> str:
    """Lines of settings with a valid certificate and its key."""
    cert, key = certificate(tmp_path, "ccp.example.com", start=-YEAR, end=YEAR)
    key.chmod(0o600)
    return f'tls_cert = "{cert}"\ntls_key = "{key}"\n'


def test_machine_files_that_hold_keys_are_private(tmp_path: Path, pair: str) -> None:
    path = configuration(tmp_path, pair)
    assert "file.readable-by-others" not in doctor("--config", path, "--offline").codes
    (tmp_path / "key.pem").chmod(0o644)
    finding = doctor("--config", path, "--offline").finding("file.readable-by-others")
    assert (finding["severity"], finding["subject"]) == ("failure", "tls_key")
    assert "0644" in finding["message"]
    in_pod = doctor("--config", path, "--offline", KUBERNETES_SERVICE_HOST="10.0.0.1")
    assert "file.readable-by-others" not in in_pod.codes
    assert "0644, as Secret volumes of Kubernetes have" in in_pod.facts("files")
    (tmp_path / "key.pem").chmod(0o640)  # For the group of the service.
    assert "file.readable-by-others" not in doctor("--config", path, "--offline").codes


def test_machine_server_that_requires_client_certificates_is_not_called_absent(tmp_path: Path) -> None:
    ca = PrivateCA(tmp_path)
    files = ca.issue("ccp")
    with scripted(ca.server(mutual=True)) as server:
        path = configuration(tmp_path)
        lines = f'tls_cert = "{files.cert}"\ntls_key = "{files.key}"\ntls_client_ca = "{ca.ca}"\n'
        path.write_text(f'database = "sqlite:///ccp.db"\nport = {server.url.rpartition(":")[2]}\n{lines}')
        report = doctor("--config", path, "--offline")
    assert "requires a client certificate (tls_client_ca)" in report.facts("server")
    assert "requires a client certificate" in report.facts("proxies")
    assert "no pool answers" in doctor("--config", path, "--offline").facts("server")


def test_machine_files_of_the_database_are_private(tmp_path: Path) -> None:
    path = configuration(tmp_path)
    ccp_ok("db", "upgrade", "--config", path)
    (tmp_path / "ccp.db").chmod(0o644)
    assert doctor("--config", path, "--offline").finding("file.readable-by-others")["subject"] == "database"


def test_configuration_with_a_secret_is_private(tmp_path: Path) -> None:
    harmless = configuration(tmp_path, mode=0o644)
    assert "file.readable-by-others" not in doctor("--config", harmless, "--offline").codes
    for text in ('log_pseudonym_key = "0123456789abcdef"\n', '[rcp]\nurl = "https://r.example"\ntoken = "t"\n'):
        path = configuration(tmp_path, text, mode=0o644)
        assert doctor("--config", path, "--offline").finding("file.readable-by-others")["subject"] == "configuration"


def test_machine_files_that_are_missing_or_writable_by_others(tmp_path: Path, pair: str) -> None:
    text = pair + '[rcp]\nurl = "https://r.example"\ntoken_file = "rcp-token"\nca = "ca.pem"\n'
    path = configuration(tmp_path, text)
    report = doctor("--config", path, "--offline")
    assert {each["subject"] for each in report.findings("file.missing")} == {"rcp_token_file", "rcp_ca"}
    (tmp_path / "cert.pem").chmod(0o666)
    tmp_path.chmod(0o777)
    found = {each["subject"] for each in doctor("--config", path, "--offline").findings("file.writable-by-others")}
    assert found == {"tls_cert", str(tmp_path)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_machine_files_of_another_user_are_named(tmp_path: Path, pair: str) -> None:
    path = configuration(tmp_path, pair)
    os.chown(tmp_path / "key.pem", 4711, 0)
    finding = doctor("--config", path, "--offline").finding("file.wrong-owner")
    assert (finding["subject"], "belongs to 4711" in finding["message"]) == ("tls_key", True)


# --- TLS -------------------------------------------------------------------------------------------------------------


def tls_codes(folder: Path, cert: Path, key: Path, more: str = "") -> set[str]:
    path = configuration(folder, f'tls_cert = "{cert}"\ntls_key = "{key}"\n{more}')
    return {code for code in doctor("--config", path, "--offline").codes if code.startswith("tls.")}


def test_tls_certificate_validity_and_name(tmp_path: Path) -> None:
    day = timedelta(days=1)
    for start_, end, expected in (
        (-YEAR, YEAR, set()),
        (-YEAR, -day, {"tls.expired"}),
        (-YEAR, 10 * day, {"tls.expires-soon"}),
        (day, YEAR, {"tls.not-yet-valid"}),
    ):
        pair = certificate(tmp_path, "*.example.com", start=start_, end=end)
        assert tls_codes(tmp_path, *pair, 'base_url = "https://ccp.example.com"\n') == expected
    assert tls_codes(tmp_path, *pair, 'base_url = "https://ccp.example.org"\n') == {
        "tls.not-yet-valid",
        "tls.wrong-name",
    }


def test_tls_files_that_do_not_belong_together_or_are_no_certificate(tmp_path: Path) -> None:
    cert, _ = certificate(tmp_path, "a.example", start=-YEAR, end=YEAR)
    other = tmp_path / "other"
    other.mkdir()
    _, key = certificate(other, "a.example", start=-YEAR, end=YEAR)
    assert tls_codes(tmp_path, cert, key) == {"tls.unusable"}
    cert.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert tls_codes(tmp_path, cert, key) == {"tls.unusable"}
    assert tls_codes(tmp_path, tmp_path / "none.pem", key) == {"tls.unusable"}


def test_tls_chain_that_is_incomplete_or_in_a_wrong_order(tmp_path: Path) -> None:
    ca, stranger = PrivateCA(tmp_path, "Private CA"), PrivateCA(tmp_path, "Other CA")
    files = ca.issue("server")
    leaf = files.cert.read_bytes()
    assert tls_codes(tmp_path, files.cert, files.key) == {"tls.chain-incomplete"}
    files.cert.write_bytes(leaf + ca.ca.read_bytes())
    assert tls_codes(tmp_path, files.cert, files.key) == set()
    files.cert.write_bytes(leaf + stranger.ca.read_bytes())
    assert tls_codes(tmp_path, files.cert, files.key) == {"tls.chain-order"}


def test_tls_of_the_public_url_is_verified(tmp_path: Path) -> None:
    ca = PrivateCA(tmp_path)
    with scripted(ca.server()) as server:
        report = doctor("--config", configuration(tmp_path, f'base_url = "{server.url}"\n'))
        assert "unable to get local issuer certificate" in report.finding("public-url.tls")["message"]
    report = doctor("--config", configuration(tmp_path, f'base_url = "{server.url}"\n'))
    assert "Connection refused" in report.finding("public-url.unreachable")["message"]


def test_public_url_that_does_not_answer_in_time_is_unreachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccp.server.diagnosis.context._OPEN_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        report = doctor("--config", configuration(tmp_path, f'base_url = "{url}"\n'))
    assert report.finding("public-url.unreachable")["message"].endswith(": no answer in time.")
    assert "check.failed" not in report.codes


# --- The running server ----------------------------------------------------------------------------------------------


def test_server_presents_another_certificate_than_its_file(tmp_path: Path) -> None:
    port, renewed = free_port(), tmp_path / "renewed"
    renewed.mkdir()
    cert, key = certificate(tmp_path, "localhost", start=-YEAR, end=YEAR)
    text = f'tls_cert = "{cert}"\ntls_key = "{key}"\n'
    path = configuration(tmp_path, text)
    url = f"https://127.0.0.1:{port}"
    with serving(url, "--config", path, "--port", port, verify=False):
        report = doctor("--config", path, "--offline", "--port", port)
        assert "tls.not-reloaded" not in report.codes
        assert f"the pool at 127.0.0.1:{port} is ready" in report.facts("server")
        assert "1 process(es) of the pool use" in report.facts("memory")
        other = certificate(renewed, "localhost", start=-YEAR, end=YEAR)
        report = doctor("--config", path, "--offline", "--port", port, "--tls-cert", other[0], "--tls-key", other[1])
        assert report.finding("tls.not-reloaded")["severity"] == "warning"


def settings_of(pool: Any) -> dict[str, str]:
    return {"CCP_DATABASE": pool.settings.database, "CCP_PORT": pool.base_url.rpartition(":")[2]}


def test_machine_proxies_that_are_not_trusted_are_counted_by_the_server(pkis: dict[str, PKI]) -> None:
    with start({"iso2": pkis["iso2"]}, trusted_proxies=("10.0.0.0/8",)) as pool:
        report = doctor("--offline", **settings_of(pool))
        assert "proxies.untrusted" not in report.codes
        assert "nothing unexpected has arrived" in report.facts("proxies")
        for _ in range(3):
            httpx.get(pool.base_url + "/health/live", headers={"X-Forwarded-For": "192.0.2.1"})
        finding = doctor("--offline", **settings_of(pool)).finding("proxies.untrusted")
        assert finding["message"].startswith("3 requests with X-Forwarded-For")


def test_machine_proxies_without_the_header_are_counted_by_the_server(pkis: dict[str, PKI]) -> None:
    with start({"iso2": pkis["iso2"]}) as pool:
        httpx.get(pool.base_url + "/opnc/v1/ccp/nothing")
        assert "proxies.no-address" in doctor("--offline", **settings_of(pool)).codes


def test_machine_proxies_are_unknown_without_metrics(pkis: dict[str, PKI], tmp_path: Path) -> None:
    with start({"iso2": pkis["iso2"]}, metrics="off") as pool:
        assert "not known: the server does not show its metrics here" in doctor("--offline", **settings_of(pool)).facts(
            "proxies"
        )
    assert "no pool answers" in doctor("--offline", "--config", configuration(tmp_path)).facts("proxies")


def test_server_that_is_not_ready_gives_its_reasons(tmp_path: Path) -> None:
    with scripted() as server:
        body = b'{"status": "not ready", "reasons": ["The database does not answer."]}'
        server.on("/health/ready", Reply(503, body))
        port = server.url.rpartition(":")[2]
        report = doctor("--offline", "--config", configuration(tmp_path), "--port", port)
        assert report.finding("server.not-ready")["message"] == "The database does not answer."
        for strange in (b"[]", b"\xff", b'{"reasons": 1}', b'{"reasons": [1]}'):
            server.on("/health/ready", Reply(503, strange))
            report = doctor("--offline", "--config", configuration(tmp_path), "--port", port)
            assert report.finding("server.not-ready")["message"] == "GET /health/ready: 503."


# --- Clock, disk, memory ---------------------------------------------------------------------------------------------


@contextmanager
def peer_clock(folder: Path, date: str) -> Iterator[Path]:
    """A configuration with an external service whose clock is at a date."""
    with scripted() as server:
        server.on("/*", Reply(404, b'{"errorMessages": ["No."]}', {"Content-Type": "application/json", "Date": date}))
        yield configuration(folder, f'[pcp]\nurl = "{server.url}"\n')


@pytest.mark.skipif(FAKETIME is None, reason="faketime is not installed")
def test_clock_that_is_wrong_is_found_by_http_dates(tmp_path: Path) -> None:
    with scripted() as server:
        server.on("/*", Reply(404, b'{"errorMessages": ["No."]}', {"Content-Type": "application/json"}))
        path = configuration(tmp_path, f'[pcp]\nurl = "{server.url}"\n')
        right = doctor("--config", path)
        assert "clock.differs-from-http" not in right.codes
        assert "(median of 1)" in right.facts("clock")
        done = subprocess.run(
            [str(FAKETIME), "-f", "+1h", *COMMAND, "doctor", "--json", "--config", str(path)],
            env=environment(), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        codes = {each["code"]: each for check in json.loads(done.stdout)["checks"] for each in check["findings"]}
        assert "+360" in codes["clock.differs-from-http"]["message"] or "+359" in str(codes)


def test_clock_ignores_dates_of_caches_and_nonsense(tmp_path: Path) -> None:
    for date in ("yesterday", "Thu, 01 Jan 1970 00:00:00", ""):
        with peer_clock(tmp_path, date) as path:
            assert "clock.differs-from-http" not in doctor("--config", path).codes


def test_machine_disk_that_is_nearly_full_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = configuration(tmp_path)
    for free, code in ((10**8, "disk.full"), (5 * 10**8, "disk.low"), (5 * 10**9, None)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(total=10**10, free=free))
        found = {each for each in doctor("--config", path, "--offline").codes if each.startswith("disk.")}
        assert found == ({code} if code else set())


def test_machine_memory_limit_is_compared_with_use_and_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroups, proc = tmp_path / "cgroup", tmp_path / "proc"
    (cgroups / "system.slice" / "ccp.service").mkdir(parents=True)
    (cgroups / "system.slice" / "ccp.service" / "memory.max").write_text("max\n")
    (cgroups / "system.slice" / "memory.max").write_text("524288000\n")
    (proc / "net").mkdir(parents=True)
    (proc / "self").mkdir()
    (proc / "self" / "status").write_text("")
    (proc / "net" / "tcp").write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:0001 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100\n"
    )
    for pid, kilobytes in ((11, 230_000), (12, 230_000)):
        (proc / str(pid) / "fd").mkdir(parents=True)
        (proc / str(pid) / "fd" / "3").symlink_to("socket:[4242]")
        (proc / str(pid) / "smaps_rollup").write_text(f"Rss: 999999 kB\nPss:            {kilobytes} kB\n")
        (proc / str(pid) / "cgroup").write_text("0::/system.slice/ccp.service\n")
    monkeypatch.setattr(processes, "_PROC", proc)
    monkeypatch.setattr(processes, "_CGROUPS", cgroups)
    use = processes.memory_use(1)
    assert use is not None
    assert (use.processes, use.total, use.limit) == ((11, 12), 460_000 * 1024, 524_288_000)
    path = configuration(tmp_path, "workers = 2\n")
    report = doctor("--config", path, "--offline")
    assert report.finding("memory.limit-near")["message"] == "The pool uses 471 MB of 524 MB."
    assert "memory.limit-low" not in report.codes
    path = configuration(tmp_path, "workers = 3\n")
    assert "memory.limit-low" in doctor("--config", path, "--offline").codes


def test_doctor_runs_as_a_process_and_ends_in_time(tmp_path: Path) -> None:
    report = doctor_process("--config", configuration(tmp_path), "--offline", timeout=60)
    assert report.status == 2
    assert report.members["seconds"] < 20
