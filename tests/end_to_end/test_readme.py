"""What the README shows works, as it stands there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ccp import settings
from ccp.sim.sandbox import create
from ccp.sim.server import loopback, running

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("curl") is None, reason="the walk needs curl")
def test_the_walk_through_all_seven_operations_works(tmp_path: Path) -> None:
    walk = re.search(r"<!-- walk: begin -->\n```bash\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert walk is not None
    with loopback() as (listening, base_url):
        create(tmp_path / ".sandbox", base_url, datetime.now(UTC), store_samples=False)
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


def test_every_path_and_command_that_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for path in re.findall(r"`(docs/[^`]+|src/ccp[^`,]*)`", text):
        assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)`?", text)) <= targets


def test_the_table_of_settings_is_complete() -> None:
    text = (ROOT / "docs/settings.md").read_text("utf-8")
    for name in settings.Settings.model_fields:
        assert f"`{name}`" in text, name
