"""The service unit: systemd reads it, and its exposure is what the file says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.deploy.tools import DEPLOY, run, tool

UNIT = DEPLOY / "systemd" / "ccp.service"


def complaints(unit: Path) -> list[str]:
    """What systemd has to say about the unit; not about other units of the machine."""
    command = [tool("systemd-analyze"), "verify", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if unit.name in line]


def test_systemd_unit_is_read_by_systemd_without_a_complaint(tmp_path: Path) -> None:
    unit = tmp_path / "ccp.service"
    text = UNIT.read_text("utf-8").replace("/opt/ccp/bin/ccp", "/bin/true")  # The program has to exist.
    unit.write_text(text.replace("PrivateTmp=yes", "PrivateTemp=yes"))
    assert complaints(unit), "a misspelt directive is noticed"
    unit.write_text(text)
    assert complaints(unit) == []


def test_systemd_unit_with_credentials_is_read_by_systemd_without_a_complaint(tmp_path: Path) -> None:
    unit = tmp_path / "ccp.service"
    text = re.sub(r"^#(LoadCredential|Environment)=", r"\1=", UNIT.read_text("utf-8"), flags=re.MULTILINE)
    assert text.count("LoadCredential=") == 2
    names = set(re.findall(r"CCP_(\w+)=%d/", text))
    assert names == {"SECRETS_KEY_FILE", "DATABASE_FILE"}
    unit.write_text(text.replace("/opt/ccp/bin/ccp", "/bin/true"))
    assert complaints(unit) == []


def test_systemd_unit_has_the_exposure_that_it_states() -> None:
    output = run("systemd-analyze", "security", "--offline=true", "--no-pager", UNIT)
    measured = re.search(r"exposure level for ccp.service: ([\d.]+)", output)
    stated = re.search(r"an exposure of ([\d.]+)", UNIT.read_text("utf-8"))
    assert measured
    assert stated
    assert float(measured[1]) <= float(stated[1])


def test_systemd_unit_starts_the_pool_again_whatever_ended_its_start() -> None:
    # An unreachable database ends the start with the same status as an invalid configuration.
    lines = UNIT.read_text("utf-8").splitlines()
    assert {"Restart=on-failure", "StartLimitIntervalSec=0"} <= set(lines)
    assert not any(line.startswith("RestartPreventExitStatus") for line in lines)
