"""The service unit: systemd reads it, and its exposure is what the file says."""

from __future__ import annotations

import re
from pathlib import Path

from tests.deploy.tools import DEPLOY, run

UNIT = DEPLOY / "systemd" / "ccp.service"


def test_unit_is_read_by_systemd_without_a_warning(tmp_path: Path) -> None:
    # `verify` wants the program to be there.
    unit = tmp_path / "ccp.service"
    unit.write_text(UNIT.read_text("utf-8").replace("/opt/ccp/bin/ccp", "/bin/true"))
    assert run("systemd-analyze", "verify", unit).strip() == ""


def test_unit_has_the_exposure_that_it_states() -> None:
    output = run("systemd-analyze", "security", "--offline=true", "--no-pager", UNIT)
    measured = re.search(r"exposure level for ccp.service: ([\d.]+)", output)
    stated = re.search(r"an exposure of ([\d.]+)", UNIT.read_text("utf-8"))
    assert measured
    assert stated
    assert float(measured[1]) <= float(stated[1])


def test_unit_starts_the_pool_again_whatever_ended_its_start() -> None:
    # An unreachable database ends the start with the same status as an invalid configuration.
    lines = UNIT.read_text("utf-8").splitlines()
    assert {"Restart=on-failure", "StartLimitIntervalSec=0"} <= set(lines)
    assert not any(line.startswith("RestartPreventExitStatus") for line in lines)
