"""ccp trust: what each command does, says and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ccp import cli
from ccp.testing.pki import PKI
from ccp.verify.trust_folder import load_trust_directory
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import AnchorRole
from tests.cli.run import ccp_ok, ccp_process, environment
from tests.databases import sql, with_schema
from tests.scripted_server import Received, Reply, Scripted, json_reply, nowhere, scripted
from tests.server.trust.root_files import damaged, root, rsa_root, signed_by_another
from tests.world import AT, b64

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line as its entry point runs it: exit status, output, errors."""
    with_schema(f"sqlite:///{tmp_path / 'ccp.db'}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CCP_CONFIG", raising=False)

    def command(*arguments: str | Path, **settings: str) -> tuple[int, str, str]:
        for name, value in settings.items():
            monkeypatch.setenv(f"CCP_{name.upper()}", value)
        monkeypatch.setattr("sys.argv", ["ccp", *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return command


def pem(folder: Path, name: str, *certificates: Certificate) -> Path:
    path = folder / name
    path.write_bytes(b"".join(certificate.pem() for certificate in certificates))
    return path


def listed(run: Run) -> list[dict[str, Any]]:
    status, out, _ = run("trust", "list", "--json")
    assert status == 0
    found: list[dict[str, Any]] = json.loads(out)
    return found


# --- add ---


def test_trust_add_reads_pem_der_and_directories(run: Run, tmp_path: Path, pkis: dict[str, PKI]) -> None:
    folder = tmp_path / "certificates"
    folder.mkdir()
    one, two, three = root("One"), root("Two"), root("Three")
    sub = pkis["iso2"].oem_sub1.certificate
    pem(folder, "many.pem", one, two, sub)
    (folder / "three.CER").write_bytes(three.der)
    (folder / "notes.txt").write_text("not a certificate")
    status, out, err = run("trust", "add", folder, "--role", "v2g", "--role", "oem")
    assert (status, err) == (0, "")
    assert out.count("added") == 8
    found = listed(run)
    assert {(entry["role"], entry["label"], entry["kind"], entry["source"]) for entry in found} == {
        (role, label, kind, source)
        for role in ("v2g", "oem")
        for label, kind, source in (
            ("One", "root", "many.pem"), ("Two", "root", "many.pem"), ("Three", "root", "three.CER"),
            (sub.subject_cn, "intermediate", "many.pem"),
        )
    }  # fmt: skip
    for entry in found:
        assert abs(datetime.fromisoformat(entry["added_at"]) - AT) < timedelta(hours=1)
        assert entry["state"] == "valid"


def test_trust_add_replaces_the_label(run: Run, tmp_path: Path) -> None:
    certificate = root("One")
    path = pem(tmp_path, "one.pem", certificate, certificate)
    status, out, _ = run("trust", "add", path, "--role", "v2g", "--role", "v2g", "--label", "our first root")
    assert (status, out) == (0, f"added  v2g  root  our first root  {certificate.fingerprint}\n")
    status, out, _ = run("trust", "add", path, "--role", "v2g", "--label", "renamed")
    assert (status, out) == (0, f"known  v2g  root  renamed  {certificate.fingerprint}\n")
    assert [entry["label"] for entry in listed(run)] == ["renamed"]


def colons(fingerprint: str) -> str:
    return ":".join(fingerprint[place : place + 2] for place in range(0, 64, 2)).upper()


@pytest.mark.parametrize("form", [str, str.upper, colons, lambda text: f"sha256 Fingerprint={colons(text)}"])
def test_trust_add_takes_the_expected_fingerprint_only(run: Run, tmp_path: Path, form: Callable[[str], str]) -> None:
    one, two = root("One"), root("Two")
    path = pem(tmp_path, "one.pem", one)
    status, out, err = run("trust", "add", path, "--role", "v2g", "--expect-fingerprint", form(two.fingerprint))
    assert (status, out) == (1, "")
    assert f"the certificate's fingerprint is {one.fingerprint}, which is not expected. Nothing was added." in err
    assert listed(run) == []
    assert run("trust", "add", path, "--role", "v2g", "--expect-fingerprint", form(one.fingerprint))[0] == 0
    assert run("trust", "show", form(one.fingerprint))[0] == 0
    assert run("trust", "remove", form(one.fingerprint), "--yes")[0] == 0


def test_trust_add_needs_every_expected_certificate(run: Run, tmp_path: Path) -> None:
    one, two = root("One"), root("Two")
    expected = ("--expect-fingerprint", one.fingerprint, "--expect-fingerprint", two.fingerprint)
    status, _, err = run("trust", "add", pem(tmp_path, "one.pem", one), "--role", "v2g", *expected)
    assert status == 1
    assert f"No certificate has the expected fingerprint {two.fingerprint}." in err
    assert run("trust", "add", pem(tmp_path, "both.pem", one, two), "--role", "v2g", *expected)[0] == 0


def test_trust_add_refuses_a_leaf_certificate(run: Run, tmp_path: Path, pkis: dict[str, PKI]) -> None:
    leaf = pkis["iso2"].cps.certificate
    status, out, err = run("trust", "add", pem(tmp_path, "leaf.pem", leaf, root("Good")), "--role", "v2g")
    assert (status, out) == (1, "")
    assert "is not a CA certificate (basicConstraints)" in err
    assert listed(run) == []


def test_trust_add_warns_of_expiring_certificates(run: Run, tmp_path: Path) -> None:
    day = timedelta(days=1)
    ended, soon, later = root("Ended", (AT - day, AT)), root("Soon", (AT, AT + 60 * day)), root("Later")
    not_yet = root("Not yet", (AT + day, AT + 900 * day))
    path = pem(tmp_path, "roots.pem", ended, soon, later, not_yet)
    status, out, err = run("trust", "add", path, "--role", "v2g", "--role", "emsp")
    assert status == 0
    assert out.count("added") == 8
    assert err.splitlines() == [
        f'warning: Certificate "Ended" expired on {AT:%Y-%m-%d}.',
        f'warning: Certificate "Soon" expires on {AT + 60 * day:%Y-%m-%d}.',
        f'warning: Certificate "Not yet" is not valid before {AT + day:%Y-%m-%d}.',
    ]
    states = {entry["label"]: entry["state"] for entry in listed(run)}
    assert states == {"Ended": "expired", "Soon": "expires soon", "Later": "valid", "Not yet": "not valid yet"}
    _, out, err = run("trust", "list", "--role", "v2g")
    assert "expires" in next(line for line in out.splitlines() if "Soon" in line)
    assert err.splitlines() == [
        "warning: 1 certificate(s): expired.", "warning: 1 certificate(s): expires soon.",
        "warning: 1 certificate(s): not valid yet.",
    ]  # fmt: skip


CRASH = """
import os, signal
from ccp.server.storage.queries import anchors
begin = anchors.add_by_operator
calls = []
def crash(certificate):
    calls.append(certificate)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return begin(certificate)
anchors.add_by_operator = crash
from ccp.cli import main
main()
"""


def test_trust_add_that_is_killed_adds_none(tmp_path: Path, pkis: dict[str, PKI]) -> None:
    database = with_schema(f"sqlite:///{tmp_path / 'ccp.db'}")
    roots = tmp_path / "roots.pem"
    roots.write_bytes(pkis["iso2"].v2g_root.certificate.pem() + pkis["iso20"].v2g_root.certificate.pem())
    killed = subprocess.run(
        [sys.executable, "-c", CRASH, "trust", "add", str(roots), "--role", "v2g"],
        env=environment(CCP_DATABASE=database), capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert killed.returncode == -9, killed.stderr
    assert sql(database, "select count(*) from trust_anchor") == [(0,)]
    assert sql(database, "select count(*) from audit") == [(0,)]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: damaged(root("Damaged")), "its own signature does not hold"),
        (signed_by_another, "its own signature does not hold"),
        (rsa_root, "is not of a kind"),
    ],
)
def test_trust_add_refuses_an_invalid_root(
    run: Run, tmp_path: Path, make: Callable[[], Certificate], reason: str
) -> None:
    folder = tmp_path / "certificates"
    folder.mkdir()
    pem(folder, "bad.pem", make())
    pem(folder, "good.pem", root("Good"))
    status, out, err = run("trust", "add", folder, "--role", "v2g")
    assert (status, out) == (1, "")
    assert "bad.pem: " in err
    assert reason in err
    assert "Nothing was added." in err
    assert listed(run) == []


@pytest.mark.parametrize("content", [b"", b"text", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_trust_add_refuses_a_file_without_certificate(run: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pem").write_bytes(content)
    status, _, err = run("trust", "add", tmp_path / "file.pem", "--role", "v2g")
    assert status == 1
    assert "holds no certificate" in err


# --- remove ---


def test_trust_remove_for_one_role_or_for_all(run: Run, tmp_path: Path) -> None:
    certificate = root("One")
    run("trust", "add", pem(tmp_path, "one.pem", certificate), "--role", "v2g", "--role", "oem", "--role", "emsp")
    assert (
        run("trust", "remove", "--yes", certificate.fingerprint.upper(), "--role", "oem")[1]
        == "removed for 1 role(s)\n"
    )
    assert run("trust", "remove", "--yes", certificate.fingerprint)[1] == "removed for 2 role(s)\n"
    status, _, err = run("trust", "remove", "--yes", certificate.fingerprint)
    assert status == 1
    assert certificate.fingerprint in err


# --- export ---


def test_trust_export_is_read_by_verify(run: Run, tmp_path: Path, pkis: dict[str, PKI]) -> None:
    v2g, sub = root("One"), pkis["iso2"].oem_sub1.certificate
    run("trust", "add", pem(tmp_path, "one.pem", v2g), "--role", "v2g", "--role", "emsp")
    run("trust", "add", pem(tmp_path, "sub.pem", sub), "--role", "oem")
    status, out, _ = run("trust", "export", tmp_path / "out")
    assert status == 0
    assert "3 file(s)" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["emsp", "oem", "v2g"]
    assert load_trust_directory(tmp_path / "out").by_role(AnchorRole.V2G) == (v2g,)
    assert run("trust", "export", tmp_path / "out")[0] == 1
    status, out, _ = run("trust", "export", tmp_path / "only", "--role", "oem")
    assert status == 0
    assert [path.name for path in (tmp_path / "only").iterdir()] == ["oem"]


def test_trust_export_prints_one_role_as_pem(run: Run, tmp_path: Path) -> None:
    one, two = root("One"), root("Two")
    run("trust", "add", pem(tmp_path, "one.pem", one, two), "--role", "v2g")
    run("trust", "add", pem(tmp_path, "three.pem", root("Three")), "--role", "oem")
    status, out, err = run("trust", "export", "--role", "v2g")
    assert (status, err) == (0, "")
    assert Certificate.load_pem(out.encode()) == (one, two)
    assert run("trust", "export", "--role", "emsp")[0] == 1
    assert run("trust", "export")[0] == 1


# --- sync ---


@pytest.fixture
def rcp() -> Iterator[Scripted]:
    with scripted() as fake:
        yield fake


def lists(rcp: Scripted, *certificates: Certificate, extra: tuple[Any, ...] = ()) -> None:
    def answer(call: Received) -> Reply:
        assert call.headers["authorization"] == "Bearer a token"
        entries = [{"caCertificate": b64(one.der), "rootTypeList": ["V2G"]} for one in certificates]
        return json_reply({"rootCertificateCollection": [*entries, *extra]})

    rcp.on("/opnc/v1/rcp/rootcertificates", answer)


def test_trust_sync_reports_added_delisted_and_unusable_roots(run: Run, rcp: Scripted) -> None:
    settings = {"rcp_url": rcp.url + "/opnc/v1/rcp", "rcp_token": "a token"}
    one, two = root("One"), root("\x1b[31mTwo")
    lists(rcp, one, two)
    status, out, err = run("trust", "sync", **settings)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        f"added  v2g  root  One  {one.fingerprint}",
        rf"added  v2g  root  \x1b[31mTwo  {two.fingerprint}",
    ]
    assert run("trust", "sync")[1] == "no changes\n"
    assert {entry["source"] for entry in listed(run)} == {settings["rcp_url"]}
    lists(rcp, one, extra=({"commonName": "Bad", "caCertificate": "AAAA"},))
    status, out, err = run("trust", "sync")
    assert status == 0
    assert out.startswith(r"no longer listed, still trusted (--prune removes it)  v2g  root  \x1b[31mTwo")
    assert "not used: An entry (Bad) holds no certificate" in err
    assert len(listed(run)) == 2
    lists(rcp, one)
    status, out, _ = run("trust", "sync", "--prune", "--json")
    result = json.loads(out)
    assert result["pruned"] is True
    assert [entry["fingerprint"] for entry in result["gone"]] == [two.fingerprint]
    assert [entry["fingerprint"] for entry in listed(run)] == [one.fingerprint]


def test_trust_sync_failure_changes_nothing(run: Run, rcp: Scripted) -> None:
    rcp.on("*", Reply(500))
    status, out, err = run("trust", "sync", rcp_url=rcp.url)
    assert (status, out) == (1, "")
    assert err == "ccp: The Root Certificate Pool answered 500; nothing was changed.\n"


def test_trust_sync_logs_to_standard_error_only(tmp_path: Path) -> None:
    settings = {
        "CCP_DATABASE": f"sqlite:///{tmp_path}/ccp.db", "CCP_RCP_URL": nowhere(), "CCP_RCP_TOKEN_URL": nowhere(),
        "CCP_RCP_CLIENT_ID": "pool", "CCP_RCP_CLIENT_SECRET": "hunter2",
    }  # fmt: skip
    ccp_ok("db", "upgrade", env=settings)
    # A process of its own: loggers keep the stream that they were configured with.
    done = ccp_process("trust", "sync", "--json", env=environment(**settings))
    assert (done.returncode, done.stdout) == (1, "")
    assert "access token not obtained" in done.stderr
    assert "There is no access token for the Root Certificate Pool now; nothing was changed." in done.stderr
    assert "hunter2" not in done.stderr


def test_trust_sync_needs_a_root_certificate_pool(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CCP_RCP_URL", raising=False)
    status, _, err = run("trust", "sync")
    assert status == 1
    assert "rcp_url is not set" in err
