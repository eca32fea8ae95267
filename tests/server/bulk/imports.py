"""Runs of `ccp import`: their summaries, their reports of rejected lines, and the processes that use a folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.cli.run import CommandResult, ccp
from tests.server.bulk.fleet import Database


def imported(
    target: Database, source: Path, *options: object, status: int = 0, more: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run `ccp import --json` and return its summary. more: settings in the environment."""
    done: CommandResult = ccp("import", source, "--json", "--workers", 2, *options, env={**target.env, **(more or {})})
    assert done.status == status, done.err
    summary: dict[str, Any] = json.loads(done.out)
    return summary


def counts(summary: dict[str, Any]) -> dict[str, int]:
    names = ("created", "updated", "moved", "unchanged", "refused")
    return {name: summary[name] for name in names if summary[name]}


def reports(path: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in path.read_text().splitlines()]


def users_of(folder: Path) -> list[int]:
    """The processes that have a file of the folder open, such as an import and its workers."""
    found = set()
    for each in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if each.readlink().is_relative_to(folder):
                found.add(int(each.parts[2]))
    return sorted(found)
