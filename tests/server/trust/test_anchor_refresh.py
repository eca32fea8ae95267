"""Changes of anchors reach the workers of a running pool."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

import ccp as package
from ccp.ids import EMAID, PCID
from ccp.server.sandbox import setup
from ccp.server.sandbox.local_pool import loopback
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.server.trust.root_files import root

WORKERS = 2
# The same code as this process runs, wherever the current directory is.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(package.__file__).parents[1]),
    "CCP_WORKERS": str(WORKERS),
    "CCP_DOCUMENTATION": "false",
}


def command_line(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ccp.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=30, check=False)


@contextmanager
def serving(folder: Path, base_url: str) -> Iterator[None]:
    command = [sys.executable, "-c", "from ccp.cli import main; main()", "serve"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 30
            while True:
                assert server.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                try:
                    if httpx.get(base_url + "/health", timeout=2).status_code == 200:
                        break
                except httpx.HTTPError:
                    time.sleep(0.1)
            yield
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(10)


def answers(base_url: str, token: str, body: dict[str, str]) -> list[int]:
    """Statuses of many PUTs, each over a connection of its own, so that every worker gets some."""
    headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
    url = base_url + "/opnc/v1/ccp/signedcontractdata"
    with httpx.Client(headers=headers, timeout=10) as client:
        return [client.put(url, json=body).status_code for _ in range(10)]


def test_anchor_changes_of_commands_reach_all_workers(tmp_path: Path) -> None:
    at = datetime.now(UTC)
    with loopback() as (listening, base_url):
        port = listening.getsockname()[1]
    folder = tmp_path / "pool"
    world = setup.create(folder, f"http://127.0.0.1:{port}", at, store_samples=False)
    stranger = PKI.generate(at)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "v2g.pem").write_bytes(stranger.v2g_root.certificate.pem())
    (tmp_path / "new" / "emsp.der").write_bytes(stranger.emsp_root.certificate.der)
    car = Car.generate(world.pkis["iso2"], PCID.parse("WEX0SANDBOX999999"), at)
    body = setup.publish_body(stranger, EMAID.parse("DEEXAC99999999"), car, at)
    cps = world.member("Example CPS")
    soon = root("Soon", (at - timedelta(days=1), at + timedelta(days=60)))
    (tmp_path / "soon.pem").write_bytes(soon.pem())
    assert command_line(folder, "trust", "add", str(tmp_path / "soon.pem"), "--role", "oem").returncode == 0
    with serving(folder, base_url):
        form = {"grant_type": "client_credentials", "client_id": cps.party.client_id, "client_secret": cps.secret}
        token = httpx.post(base_url + "/oauth/token", data=form, timeout=10).json()["access_token"]
        assert answers(base_url, token, body) == [400] * 10

        added = command_line(
            folder, "trust", "add", str(tmp_path / "new"), "--role", "v2g", "--role", "emsp", "--label", "new"
        )
        assert added.returncode == 0, added.stderr
        assert added.stdout.count("added") == 4
        _until(lambda: answers(base_url, token, body), [201] * 10)

        removed = command_line(folder, "trust", "remove", "--yes", stranger.v2g_root.certificate.fingerprint)
        assert removed.stdout == "removed for 2 role(s)\n"
        _until(lambda: answers(base_url, token, body), [400] * 10)
    # Each worker says at its start which anchors end soon.
    warned = f"expires on {soon.not_after:%Y-%m-%d}."
    assert (folder / "log").read_text().count(warned) == WORKERS


def _until(ask: Callable[[], list[int]], expected: list[int]) -> None:
    """Every worker answers as expected, and does so within five seconds."""
    began = time.monotonic()
    while (statuses := ask()) != expected:
        assert time.monotonic() - began < 5, statuses
    assert time.monotonic() - began < 5
