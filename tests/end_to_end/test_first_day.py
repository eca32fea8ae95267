"""The first day of an operator, see `first_day`; docs/first-day.md has its steps."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.databases import NOT_HERE, binaries
from tests.deploy.tools import tool
from tests.end_to_end.first_day import PAGE, run
from tests.end_to_end.operators_machine import NotPossible, service_user


@pytest.mark.timeout(600)
def test_first_day_from_the_wheel_to_an_upgrade() -> None:
    if binaries() is None:
        pytest.skip(NOT_HERE)
    for name in ("nginx", "promtool"):
        tool(name)
    # Not below pytest's own folder, which is private: the service's user has to enter it.
    with tempfile.TemporaryDirectory(prefix="ccp-first-day-") as folder, ExitStack() as stack:
        root = Path(folder)
        root.chmod(0o755)
        user = stack.enter_context(service_user(root / "home"))
        try:
            machine = run(root, user, stack)
        except NotPossible as exc:
            pytest.skip(str(exc))
    steps = [
        line.split(" | ")[0].removeprefix("| ") for line in PAGE.read_text("utf-8").splitlines() if line[:2] == "| "
    ]
    assert [step.name for step in machine.steps] == [step for step in steps if step not in ("step", "**together**")]
