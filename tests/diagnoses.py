"""Runs `ccp doctor` for tests and reads its report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cli.run import ccp, ccp_process


@dataclass(frozen=True)
class Report:
    """status: exit status. members: the JSON. text: the whole output, to look for secrets."""

    status: int
    members: dict[str, Any]
    text: str

    @property
    def codes(self) -> set[str]:
        """The codes of all findings."""
        return {finding["code"] for check in self.members["checks"] for finding in check["findings"]}

    def check(self, name: str) -> dict[str, Any]:
        """One check."""
        (found,) = [check for check in self.members["checks"] if check["check"] == name]
        result: dict[str, Any] = found
        return result

    def finding(self, code: str) -> dict[str, Any]:
        """The only finding with a code."""
        (found,) = self.findings(code)
        return found

    def findings(self, code: str) -> list[dict[str, Any]]:
        """The findings with a code."""
        return [each for check in self.members["checks"] for each in check["findings"] if each["code"] == code]

    def facts(self, name: str) -> str:
        """The facts of a check, one a line, and why it was skipped."""
        check = self.check(name)
        return "\n".join([*check["facts"], *([check["skipped"]] if check["skipped"] else [])])

    def source(self, name: str) -> tuple[Any, str]:
        """Value and source of a setting."""
        (found,) = [each for each in self.members["configuration"]["settings"] if each["name"] == name]
        return found["value"], found["source"]


def doctor(*arguments: object, **env: str) -> Report:
    """Run the command in this process. env: variables."""
    done = ccp("doctor", "--json", *arguments, env=env)
    assert done.out, done.err
    return Report(done.status, json.loads(done.out), done.out + done.err)


def doctor_process(*arguments: object, **how: Any) -> Report:
    """Run the command as a process of its own. how: parameters of `subprocess.run`."""
    done = ccp_process("doctor", "--json", *arguments, **how)
    assert done.stdout, done.stderr
    return Report(done.returncode, json.loads(done.stdout), done.stdout + done.stderr)


def configuration(folder: Path, text: str = "", mode: int = 0o600) -> Path:
    """Write `ccp.toml` with a database beside it, port 1 (where no pool listens), and more lines."""
    path = folder / "ccp.toml"
    path.write_text(f'database = "sqlite:///ccp.db"\nport = 1\n{text}')
    path.chmod(mode)
    return path
