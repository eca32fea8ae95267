"""The commands and programs of README.md run as printed."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ccp.ids import PCID, Namespace
from ccp.server import settings
from ccp.server.sandbox.local_pool import loopback, running
from ccp.server.sandbox.setup import create
from ccp.testing.partners import Car
from ccp.testing.pki import Credential
from ccp.verify import read_request

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("curl") is None, reason="the walk needs curl")
def test_readme_walk_through_all_seven_operations(tmp_path: Path) -> None:
    walk = re.search(r"<!-- walk: begin -->\n```bash\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert walk is not None
    with loopback() as (listening, base_url):
        create(tmp_path / ".sandbox", base_url, datetime.now(UTC), store_samples=True)
        script = walk[1].replace("http://127.0.0.1:8020", base_url)
        assert base_url in script
        with running(settings.load(tmp_path / ".sandbox" / "ccp.toml"), listening):
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("HTTP ")] == ["HTTP 201"] * 2 + ["HTTP 200"] * 6
    delivered = next(json.loads(line) for line in lines if "NLEXBC00000001" in line and "InstallationRes" in line)
    assert len(delivered["signedContractDataCollection"]) == 1


EXAMPLE = re.compile(r"<!-- example: ([a-z-]+) -->\n```python\n(.*?)```", re.DOTALL)


def test_readme_programs_are_short_and_run_in_order(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    examples = EXAMPLE.findall(text)
    assert [name for name, _ in examples] == ["example-emsp-a", "example-oem", "example-cpo", "messages"]
    assert len(examples) == text.count("```python")
    printed = {}
    with loopback() as (listening, base_url):
        world = create(tmp_path / ".sandbox", base_url, datetime.now(UTC), store_samples=True)
        secrets = {member.party.client_id: member.secret for member in world.members}
        with running(settings.load(tmp_path / ".sandbox" / "ccp.toml"), listening):
            for name, code in examples:
                assert len(code.splitlines()) == 10 if name in secrets else len(code.splitlines()) <= 10, name
                assert ("http://127.0.0.1:8020" in code) is (name in secrets)
                done = subprocess.run(
                    [sys.executable, "-c", code.replace("http://127.0.0.1:8020", base_url)],
                    cwd=tmp_path,
                    env={**os.environ, "CCP_SECRET": secrets.get(name, "")},
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                assert done.returncode == 0, done.stderr
                printed[name] = done.stdout.splitlines()
    assert printed["example-emsp-a"] == ["DEEXAC00000001 waits for WEX0SANDBOX000001"]
    assert printed["example-oem"][0].startswith("DEEXAC00000001 until ")
    assert printed["example-oem"][0].endswith("(default)")
    pcid, pki = PCID.parse("WEX0SANDBOX000001"), world.pkis["iso2"]
    car = Car.from_credential(pki, Credential.load(tmp_path / ".sandbox" / "vehicles" / "iso2", pcid), pcid)
    sample = json.loads((tmp_path / ".sandbox/samples/iso2/request_WEX0SANDBOX000001.json").read_text())
    request = read_request(base64.b64decode(sample["certificateInstallationReq"]), Namespace.ISO2)
    for name, session_id in (("example-oem", bytes.fromhex("0011223344556677")), ("example-cpo", request.session_id)):
        answer = base64.b64decode(printed[name][-1].rpartition(" ")[2], validate=True)
        assert car.install(answer, session_id, datetime.now(UTC))[0] == "NLEXBC00000001"  # The last of the list.
    assert printed["example-cpo"][0] == "a contract"
    assert printed["messages"][0].endswith(" True")


def _without_figures(line: str) -> str:
    """A line of the demo without times and sizes, which differ from run to run."""
    return re.sub(r"\s+", " ", re.sub(r"[\d.]+ ms$|in [\d.]+ s|\b\d{4} bytes", "", line)).strip()


def test_readme_shows_what_the_demo_prints() -> None:
    shown = re.search(r"<!-- demo: begin -->\n```\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert shown is not None
    command = [sys.executable, "-c", "from ccp.cli import main; main()", "demo"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    printed = [_without_figures(line) for line in done.stdout.splitlines()]
    lines = [_without_figures(line) for line in shown[1].splitlines()]
    assert len(lines) > 10
    assert [line for line in lines if line not in printed and line != "…"] == []


def test_readme_names_existing_paths_and_commands() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for path in re.findall(r"`(docs/[^`]+|src/ccp[^`,]*)`", text):
        assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)`?", text)) <= targets


def test_settings_table_is_complete() -> None:
    text = (ROOT / "docs/settings.md").read_text("utf-8")
    for name in settings.Settings.model_fields:
        assert f"`{name}`" in text, name
