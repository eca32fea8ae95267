"""Processes as an operator runs them: the sandbox, its server, TLS, several workers, and the demo."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from ccp.ids import PCID, Namespace
from ccp.server import settings
from ccp.server.storage.engine import schema
from ccp.testing.partners import Car
from ccp.testing.pki import PKI, Credential
from tests.cli.run import ccp, ccp_error, ccp_ok, ccp_process
from tests.cli.served_sandbox import BASE, Sandbox, ask, free_port, own_certificate, serving
from tests.server.storage.made import broken_invariants, sql
from tests.waiting import wait_until

EDITIONS = {"iso2": Namespace.ISO2, "iso20": Namespace.ISO20}


def walk(http: httpx.Client, sandbox: Sandbox) -> list[dict[str, Any]]:
    """Publish every sample, post every request; all of it has to be answered positively. Returns the items."""
    cps, cpo = sandbox.token(http, "cps"), sandbox.token(http, "cpo")
    for body in sandbox.samples("publish"):
        answer = http.put(f"{BASE}/signedcontractdata", json=body, headers=cps)
        assert (answer.status_code, answer.content) == (201, b""), answer.text
    return ask(http, sandbox, cpo)


# --- The sandbox -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A sandbox that no test changes."""
    directory = tmp_path_factory.mktemp("sandbox") / "DIR"
    assert f"{directory}/ccp.toml" in ccp_ok("sandbox", directory, "--port", 8123).out
    return Sandbox(directory)


def test_sandbox_creates_the_documented_files(laid_out: Sandbox) -> None:
    directory = laid_out.directory
    assert {path.name for path in directory.iterdir()} == {
        "ccp.toml", "ccp.db", "ccp.db-writelock", "console.txt", "credentials.json", "pki", "samples", "trust",
        "vehicles",
    }  # fmt: skip
    for number, edition in enumerate(EDITIONS):
        cars = [f"WEX0SANDBOX{2 * number + place:06d}" for place in (1, 2)]
        contracts = [f"{provider}C{2 * number + place:08d}" for provider in ("DEEXA", "NLEXB") for place in (1, 2)]
        assert {path.name for path in (directory / "samples" / edition).iterdir()} == {
            *(f"request_{pcid}.json" for pcid in cars),
            *(f"publish_{emaid}.json" for emaid in contracts),
        }
        assert {path.name for path in (directory / "vehicles" / edition).iterdir()} == {
            f"{pcid}{ending}" for pcid in cars for ending in (".pem", ".key.pem")
        }


def test_sandbox_credentials_are_complete(laid_out: Sandbox) -> None:
    credentials = laid_out.credentials
    assert list(credentials) == ["base_url", "token_url", "parties"]
    assert (credentials["base_url"], credentials["token_url"]) == (
        "http://127.0.0.1:8123", "http://127.0.0.1:8123/oauth/token",
    )  # fmt: skip
    for party in credentials["parties"]:
        assert list(party) == ["name", "role", "client_id", "client_secret", "provider_ids", "wmis"]
        assert len(party["client_secret"]) >= 43
    parties = {party["name"]: (party["role"], party["provider_ids"], party["wmis"]) for party in credentials["parties"]}
    assert parties == {
        "Example eMSP A": ("emsp", ["DEEXA"], []),
        "Example eMSP B": ("emsp", ["NLEXB"], []),
        "Example CPO": ("cpo", [], []),
        "Example OEM": ("oem", [], ["WEX"]),
        "Example CPS": ("cps", [], []),
        "Example admin": ("admin", [], []),
    }


def test_sandbox_samples_are_complete_and_stored(laid_out: Sandbox) -> None:
    for body in laid_out.samples("publish"):
        assert set(body) == {
            "certificateInstallationRes", "emaid", "pcid", "xsdMsgDefNamespace", "cpsV2GRootCertificateFingerprint",
            "cpsRootDistinguishedName",
        }  # fmt: skip
    for body in laid_out.samples("request"):
        assert set(body) == {"certificateInstallationReq", "xsdMsgDefNamespace"}
    url = settings.load(laid_out.directory / "ccp.toml").database
    assert sql(url, "select count(*) from contract") == [(len(laid_out.samples("publish")),)]


def test_sandbox_prints_how_to_log_in_to_the_console(tmp_path: Path) -> None:
    printed = ccp_ok("sandbox", tmp_path / "DIR", "--port", 8123, "--no-store").out
    admin = next(one for one in Sandbox(tmp_path / "DIR").credentials["parties"] if one["role"] == "admin")
    lines = (tmp_path / "DIR" / "console.txt").read_text()
    assert lines in printed
    assert lines.split() == [
        *("The", "console:", "http://127.0.0.1:8123/console/", "client", "id", admin["client_id"]),
        *("client", "secret", admin["client_secret"], "a", "sample", "car", "WEX0SANDBOX000001"),
    ]
    assert sql(f"sqlite:///{tmp_path}/DIR/ccp.db", "select count(*) from contract") == [(0,)]


def test_sandbox_secrets_are_readable_by_the_owner_only(laid_out: Sandbox) -> None:
    endings = (".key.pem", "credentials.json", "console.txt", ".db")
    secret = [path for path in laid_out.directory.rglob("*") if path.name.endswith(endings)]
    assert len(secret) > 20
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}


def test_sandbox_keys_and_certificates_are_usable(laid_out: Sandbox) -> None:
    for edition, namespace in EDITIONS.items():
        pki = PKI.load(laid_out.directory / "pki" / edition)
        (name,) = {path.name[:17] for path in (laid_out.directory / "vehicles" / edition).glob("*1.pem")} | {
            path.name[:17] for path in (laid_out.directory / "vehicles" / edition).glob("*3.pem")
        }
        credential = Credential.load(laid_out.directory / "vehicles" / edition, name)
        car = Car.from_credential(pki, credential, PCID(name))
        assert car.namespace is namespace
        assert (laid_out.directory / "trust" / "v2g" / f"{edition}-v2g-root-ca-sim.pem").read_bytes() == (
            pki.v2g_root.certificate.pem()
        )


def test_sandbox_messages_verify_under_its_trust_directory(laid_out: Sandbox) -> None:
    for path in sorted(laid_out.directory.glob("samples/*/*1.json")):
        ccp_ok("verify", path, "--trust", laid_out.directory / "trust")


@pytest.mark.parametrize("there", ["file", "directory", "hidden"])
def test_sandbox_refuses_a_directory_with_files(tmp_path: Path, there: str) -> None:
    directory = tmp_path / "DIR"
    if there == "file":
        directory.write_text("mine")
    else:
        directory.mkdir()
        (directory / (".hidden" if there == "hidden" else "mine")).write_text("mine")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert ccp_error("sandbox", directory) == f"{directory} is not an empty directory; a sandbox needs an empty one."
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_sandbox_ignores_the_configured_database(tmp_path: Path) -> None:
    """Its test roots must not become trusted in a pool that is in use."""
    (tmp_path / "own").mkdir()
    ccp_ok("db", "upgrade", env={"CCP_DATABASE": f"sqlite:///{tmp_path}/own/ccp.db"})
    ccp_ok("sandbox", tmp_path / "DIR", env={"CCP_DATABASE": f"sqlite:///{tmp_path}/own/ccp.db"})
    assert sql(f"sqlite:///{tmp_path}/own/ccp.db", "select count(*) from trust_anchor") == [(0,)]
    assert sql(f"sqlite:///{tmp_path}/DIR/ccp.db", "select count(*) > 0 from trust_anchor") == [(1,)]


# --- Serving ---------------------------------------------------------------------------------------------------------


def test_sandbox_server_accepts_every_sample(tmp_path: Path) -> None:
    port = free_port()
    done = ccp_process("sandbox", tmp_path / "DIR", "--port", port)
    assert done.returncode == 0, done.stderr
    sandbox = Sandbox(tmp_path / "DIR")
    # From another directory: what the file names lies beside the file.
    with serving(sandbox.url, "--config", sandbox.directory / "ccp.toml", cwd=tmp_path, log=tmp_path / "log") as http:
        items = walk(http, sandbox)
    assert {item["emaid"][:5] for item in items} == {"DEEXA", "NLEXB"}
    assert len(items) == 2 + 4, "one for each car of the first edition, all for each of the second"
    url = f"sqlite:///{sandbox.directory}/ccp.db"
    assert sql(url, "select count(*) from contract") == [(8,)]
    assert broken_invariants(url) == []
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    for party in sandbox.credentials["parties"]:
        assert party["client_secret"] not in log
    assert not (tmp_path / "ccp.db").exists()


def test_sandbox_store_is_served_by_several_workers(tmp_path: Path) -> None:
    port = free_port()
    ccp_ok("sandbox", tmp_path / "DIR", "--port", port, "--store")
    sandbox = Sandbox(tmp_path / "DIR")
    with serving(sandbox.url, "--config", sandbox.directory / "ccp.toml", "--workers", 2, log=tmp_path / "log") as http:
        cpo = sandbox.token(http, "cpo")
        assert len(ask(http, sandbox, cpo)) == 6
        # New connections meet both workers; a token of one is valid for the other, and publishing again replaces.
        for _ in range(12):
            answer = httpx.get(f"{sandbox.url}/health", timeout=10)
            assert answer.json() == {"status": "ok"}
        for body in sandbox.samples("request"):
            answer = httpx.post(f"{sandbox.url}{BASE}/signedcontractdata", json=body, headers=cpo, timeout=10)
            assert answer.status_code == 200
        assert len(walk(http, sandbox)) == 6
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert broken_invariants(f"sqlite:///{sandbox.directory}/ccp.db") == []


def test_serve_creates_the_database_with_several_workers(tmp_path: Path) -> None:
    port = free_port()
    with serving(
        f"http://127.0.0.1:{port}", "--port", port, "--workers", 3, cwd=tmp_path, log=tmp_path / "log"
    ) as http:
        assert http.get("/health").json() == {"status": "ok"}
        wait_until(lambda: (tmp_path / "log").read_text().count('"worker ready"') == 3)
    assert schema.revision(f"sqlite:///{tmp_path}/ccp.db") == schema.head()
    assert sql(f"sqlite:///{tmp_path}/ccp.db", "select count(*) from token_key") == [(1,)]
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "died" not in log


def test_serve_speaks_tls(tmp_path: Path) -> None:
    certificate, _ = own_certificate(tmp_path)
    port = free_port()
    trusting = ssl.create_default_context(cafile=str(certificate))
    arguments = ["--port", port, "--tls-cert", "cert.pem", "--tls-key", "key.pem"]
    with serving(f"https://127.0.0.1:{port}", *arguments, verify=trusting, cwd=tmp_path, log=tmp_path / "log") as http:
        assert http.get("/health").json() == {"status": "ok"}
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=5)
    assert f"https://127.0.0.1:{port}" in (tmp_path / "log").read_text()


def test_serve_refuses_unusable_tls_files_before_it_starts(tmp_path: Path) -> None:
    certificate, key = own_certificate(tmp_path)
    (tmp_path / "garbage.pem").write_text("no certificate")
    (tmp_path / "other").mkdir()
    _, other_key = own_certificate(tmp_path / "other")
    for pair, reason in (
        ((tmp_path / "none.pem", key), "No such file or directory"),
        ((certificate, tmp_path / "none.pem"), "No such file or directory"),
        ((tmp_path / "garbage.pem", key), ""),
        ((certificate, other_key), "mismatch"),
    ):
        env = {"CCP_DATABASE": f"sqlite:///{tmp_path}/ccp.db"}
        sentence = ccp_error("serve", "--port", free_port(), "--tls-cert", pair[0], "--tls-key", pair[1], env=env)
        assert sentence.startswith(f"The TLS certificate {pair[0]} and key {pair[1]} cannot be used: ")
        assert reason in sentence.lower() or reason in sentence


# --- The demo --------------------------------------------------------------------------------------------------------


def test_demo_runs_every_step_in_both_editions(tmp_path: Path) -> None:
    done = ccp_process("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for edition in ("ISO 15118-2 ", "ISO 15118-20 "):
        steps = [line for line in done.stdout.splitlines() if line.startswith(f"✓ {edition}")]
        assert len(steps) == 12
        assert any("installed NLEXBD" in line for line in steps)
    assert "FAILED_NoCertificateAvailable" in done.stdout
    assert "WARNING_NoContractMatchingPCIDFound" in done.stdout
    assert not any(tmp_path.iterdir())


def test_demo_runs_in_any_width_and_without_colours() -> None:
    done = ccp("demo", env={"COLUMNS": "20", "NO_COLOR": "1"})
    assert done.status == 0
    assert sum(line.startswith("✓") for line in done.lines) == 25
