"""The blocks "Try it" of docs/how-to run as printed, against a sandbox."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ccp.server import settings
from ccp.server.sandbox.local_pool import loopback, running
from ccp.server.sandbox.setup import create
from tests.cli.run import environment
from tests.documents import DOCS, ROOT

TRY = re.compile(r"<!-- try: begin -->\n```bash\n(.*?)```\n<!-- try: end -->", re.DOTALL)
CCP = f"ccp() {{ {sys.executable} -c 'from ccp.cli import main; main()' \"$@\"; }}\n"
EXPECTED = {
    "connect-a-csms": ["HTTP 200"] * 2,
    "connect-an-emsp": ["HTTP 200", "HTTP 201", "HTTP 200"],
    "connect-an-oem": ["HTTP 200"] * 3,
    "rotate": ["HTTP 200", "HTTP 200", "HTTP 200", "HTTP 401"],
}


def run(script: str, folder: Path) -> str:
    """Run a script of a page in a folder, and return what it prints. It must succeed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", CCP + script],
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT / "src")),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def block(page: str) -> str:
    (found,) = TRY.findall((DOCS / "how-to" / f"{page}.md").read_text("utf-8"))
    return str(found)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the pages use curl")
@pytest.mark.parametrize("page", EXPECTED)
def test_how_to_page_can_be_tried_in_a_sandbox(page: str, tmp_path: Path) -> None:
    with loopback() as (listening, base_url):
        create(tmp_path / ".sandbox", base_url, datetime.now(UTC), store_samples=True)
        script = block(page).replace("http://127.0.0.1:8020", base_url).replace("sleep 1", "sleep 0.2")
        assert base_url in script
        with running(settings.load(tmp_path / ".sandbox" / "ccp.toml"), listening, refresh_interval=0.05):
            printed = run(script, tmp_path)
    assert [line for line in printed.splitlines() if line.startswith("HTTP ")] == EXPECTED[page]
    if page == "connect-a-csms":
        assert '"emaid":"DEEXAC00000001"' in printed
        assert '"status":"Accepted"' in printed


def test_how_to_restore_can_be_tried_and_lists_what_it_undoes(tmp_path: Path) -> None:
    printed = run(block("restore"), tmp_path)
    assert "Changes after the backup, undone by it (1); repeat what still applies:" in printed
    assert "party.disabled" in printed
    assert "The trail is whole." in printed
