"""ccp doctor: exit status, text and JSON, where settings come from, and what still works when much is broken."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from ccp.server.diagnosis import CODES, Diagnosis, Severity
from ccp.server.diagnosis.context import Context
from ccp.server.diagnosis.finding import CheckResult
from ccp.server.diagnosis.run import Check, run_checks
from ccp.server.settings.examination import examine
from tests.cli.run import ccp, ccp_ok
from tests.diagnoses import configuration, doctor
from tests.documents import DOCS, table

SECRET = "hunter2-of-the-pool"


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    """The configuration file of a sandbox, in which nothing is wrong."""
    ccp_ok("sandbox", tmp_path / "made", "--port", "1")
    return tmp_path / "made" / "ccp.toml"


def test_doctor_finds_nothing_in_a_sandbox(sandbox: Path) -> None:
    report = doctor("--config", sandbox)
    assert (report.status, report.codes) == (0, set())
    assert (report.members["severity"], report.members["exit_status"], report.members["offline"]) == ("ok", 0, False)
    assert report.members["configuration"]["file"] == str(sandbox)
    done = ccp("doctor", "--config", sandbox)
    assert done.status == 0
    assert done.lines[0].split() == ["ok", "Configuration"]
    assert done.lines[-1].startswith("Nothing was found; ")


def test_doctor_prints_each_finding_with_what_to_do(tmp_path: Path) -> None:
    path = configuration(tmp_path, 'revocation = "off"\n')
    ccp_ok("db", "upgrade", "--config", path)
    done = ccp("doctor", "--config", path)
    assert done.status == 2, "no certificate is trusted"
    place = next(n for n, line in enumerate(done.lines) if "configuration.laboratory" in line)
    assert done.lines[place].split()[0] == "warning"
    assert "revocation = off: revoked certificates are accepted." in done.lines[place]
    assert done.lines[place + 1].strip() == f"→ {CODES['configuration.laboratory'].action}"
    assert done.lines[-2].startswith("1 failure, 2 warnings; ")
    assert done.lines[-1] == "Every code: docs/doctor.md"


def test_doctor_exit_status_is_that_of_the_worst_finding(tmp_path: Path, sandbox: Path) -> None:
    assert doctor("--config", sandbox).status == 0
    warned = doctor("--config", sandbox, CCP_REVOCATION="off")
    assert (warned.status, warned.codes) == (1, {"configuration.laboratory"})
    failed = doctor("--config", sandbox, CCP_REVOCATION="off", CCP_DATABASE=f"sqlite:///{tmp_path}/none.db")
    assert failed.status == 2
    assert "database.unreachable" in failed.codes


def test_doctor_names_the_source_of_each_value(tmp_path: Path) -> None:
    text = f'workers = 2\ntoken_lifetime = 600\n[rcp]\nurl = "https://rcp.example"\ntoken = "{SECRET}"\n'
    path = configuration(tmp_path, text)
    report = doctor("--config", path, "--offline", "--workers", "3", CCP_TOKEN_LIFETIME="900", CCP_RCP_DIALECT="opcp")
    assert report.source("workers") == (3, "command line")
    assert report.source("token_lifetime") == (900, "environment")
    assert report.source("port") == (1, "file")
    assert report.source("host") == ("127.0.0.1", "default")
    assert report.source("rcp_url") == ("https://rcp.example", "file")
    assert report.source("rcp_dialect") == ("opcp", "environment")
    assert report.source("rcp_audience") == (None, "default")
    assert report.source("rcp_token")[1] == "file"
    lines = ccp("doctor", "--config", path, "--offline", "--verbose").lines
    assert [line.split() for line in lines if line.startswith("token_lifetime ")] == [["token_lifetime", "600", "file"]]
    assert any(line.startswith("drain_period ") and line.endswith("default") for line in lines)
    assert SECRET not in report.text + "".join(lines)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("workers = \n", "is not TOML"),
        ("wokers = 4\n", "wokers is not a setting; did you mean workers"),
        ('workers = "many"\nrevocation = "perhaps"\n', "workers: Input should be a valid integer"),
        ('tls_cert = "cert.pem"\n', "tls_cert and tls_key belong together."),
        ('[rcp]\ntoken = "x"\n', "rcp_url is missing"),
        ("workers = 4\n[rcp]\nurl = 7\n", "rcp_url: Input should be a valid string"),
    ],
)
def test_doctor_works_with_a_broken_configuration(tmp_path: Path, text: str, sentence: str) -> None:
    path = configuration(tmp_path)
    ccp_ok("db", "upgrade", "--config", path)
    configuration(tmp_path, text)
    report = doctor("--config", path)
    assert report.status == 2
    messages = [finding["message"] for finding in report.findings("configuration.invalid")]
    assert any(sentence in message for message in messages), messages
    if "TOML" not in sentence:  # What is valid counts for the other checks.
        assert str(tmp_path / "ccp.db") in report.facts("database")
        assert "schema 0" in report.facts("database")
    assert "check.failed" not in report.codes


def test_doctor_drops_invalid_settings_and_keeps_the_valid_ones(tmp_path: Path) -> None:
    path = configuration(tmp_path, 'workers = "many"\ntoken_lifetime = 700\nnonsense = 1\n')
    report = doctor("--config", path, "--offline", CCP_MAX_BODY="x", CCP_TRUSTED_PROXIES="10.0.0.0/8")
    messages = {finding["message"] for finding in report.findings("configuration.invalid")}
    assert 'The environment variable CCP_TRUSTED_PROXIES is not JSON; a list is written as ["…", "…"].' in messages
    assert any(message.startswith("nonsense is not a setting") for message in messages)
    assert report.source("workers")[0] == 1
    assert report.source("token_lifetime") == (700, "file")


def test_doctor_without_a_configuration_file_says_so(tmp_path: Path) -> None:
    missing = doctor("--config", tmp_path / "none.toml", CCP_DATABASE=f"sqlite:///{tmp_path}/none.db")
    assert "cannot be read: No such file" in missing.finding("configuration.invalid")["message"]
    assert missing.finding("file.missing")["subject"] == "configuration"


def test_doctor_with_an_unknown_database_url_shows_no_password(tmp_path: Path) -> None:
    for url in (f"mysql://ccp:{SECRET}@db/ccp", f"{SECRET}", f"postgresql://ccp:{SECRET}@127.0.0.1:1/ccp"):
        report = doctor("--offline", CCP_DATABASE=url, CCP_PORT="1")
        assert "database.unreachable" in report.codes, url
        assert "check.failed" not in report.codes, url
        assert SECRET not in report.text.replace(f'"value": "{SECRET}"', ""), url


def test_doctor_offline_leaves_network_checks_out(sandbox: Path) -> None:
    report = doctor("--config", sandbox, "--offline")
    left_out = [check["check"] for check in report.members["checks"] if check["skipped"] == "left out: --offline"]
    assert left_out == ["public-url", "revocation", "services", "peers", "audit-stream", "openid"]
    assert report.members["offline"] is True


def test_doctor_changes_no_file(sandbox: Path) -> None:
    def state() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sandbox.parent.rglob("*") if path.is_file()}

    before = state()
    doctor("--config", sandbox)
    assert {path: data for path, data in state().items() if not path.endswith(("-wal", "-shm"))} == before


# --- Limits of checks ------------------------------------------------------------------------------------------------


def diagnosed(*checks: Check, timeout: float = 20) -> Diagnosis:
    return asyncio.run(run_checks(checks, examine(), timeout=timeout))


async def broken(context: Context, result: CheckResult) -> None:
    result.note("begun")
    raise RuntimeError(SECRET)


async def endless(context: Context, result: CheckResult) -> None:
    result.add("disk.low", "Little is left.")
    await context.blocking(time.sleep, 30)


async def quick(context: Context, result: CheckResult) -> None:
    result.note("done")


def test_diagnosis_goes_on_after_an_error_in_a_check() -> None:
    found = diagnosed(Check("broken", "Broken", broken), Check("quick", "Quick", quick))
    first, second = found.results
    (finding,) = first.findings
    assert (finding.code, finding.severity, finding.subject) == ("check.failed", Severity.FAILURE, "broken")
    assert "RuntimeError" in finding.message
    assert SECRET not in str(found.members())
    assert (first.facts, second.facts, second.severity) == (["begun"], ["done"], Severity.OK)


def test_diagnosis_ends_a_check_that_takes_too_long_and_keeps_what_it_found() -> None:
    began = time.monotonic()
    found = diagnosed(Check("endless", "Endless", endless), Check("quick", "Quick", quick, last=True), timeout=0.4)
    assert time.monotonic() - began < 5
    assert [finding.code for finding in found.results[0].findings] == ["disk.low", "check.timed-out"]
    assert found.results[1].facts == ["done"]
    assert found.severity is Severity.WARNING


# --- Codes and documents ---------------------------------------------------------------------------------------------


def test_document_of_findings_lists_every_code_with_meaning_and_action() -> None:
    rows = {row[0].strip("`"): row for row in table((DOCS / "doctor.md").read_text("utf-8")) if row[0].startswith("`")}
    assert {code: (row[1], row[2], row[3]) for code, row in rows.items() if "." in code and len(row) == 4} == {
        code: (kind.severity.value, kind.meaning, kind.action) for code, kind in CODES.items()
    }


def test_codes_are_reported_by_checks_and_have_whole_sentences() -> None:
    sources = "".join(path.read_text("utf-8") for path in Path("src/ccp/server/diagnosis").glob("*.py"))
    for code, kind in CODES.items():
        assert sources.count(f'"{code}"') >= 2, code
        assert kind.action.endswith(".")
        assert kind.meaning.endswith(".")
        assert kind.severity is not Severity.OK
