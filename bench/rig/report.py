"""Tables for the terminal and the documents, and a description of the machine of a run."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.backends.openssl import backend

ROOT: Final = Path(__file__).parents[2]
CORES: Final = len(os.sched_getaffinity(0))
DOCUMENT: Final = ROOT / "docs" / "performance.md"


@dataclass(frozen=True, slots=True)
class Aim:
    """measured: None if this run did not measure it. most: whether the limit is an upper one."""

    what: str
    limit: float
    measured: float | None
    unit: str
    most: bool
    wish: float | None = None

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.limit if self.most else self.measured >= self.limit

    def row(self) -> list[str]:
        sign = "≤" if self.most else "≥"
        limit = f"{sign} {self.limit:g}{self.unit}"
        if self.wish is not None:
            limit += f" (wish {self.wish:g}{self.unit})"
        verdict = {True: "pass", False: "**missed**", None: "not measured"}[self.met]
        return [self.what, limit, "" if self.measured is None else f"{self.measured:.3g}{self.unit}", verdict]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of `bench/hold.py`. met: None if the figure is only reported. note: a line below the table."""

    what: str
    aim: str
    figure: str
    met: bool | None
    note: str = ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown table; the first column is text, the others are right-aligned."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def machine(busy: Busy, *more: tuple[str, str]) -> str:
    """Machine and versions of a run, as a table."""
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    rows = [
        ("date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {busy.commit}"),
        ("processor", f"{_processor()}, {CORES} cores"),
        ("memory", f"{int(memory[1]) / 1048576:.0f} GiB" if memory else "unknown"),
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("Python", platform.python_version()),
        ("SQLite", sqlite3.sqlite_version),
        ("OpenSSL (of cryptography)", backend.openssl_version_text()),
        *more,
        ("quiet?", busy.summary),
    ]
    return "| run | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def short_machine(busy: Busy) -> str:
    """The same in one sentence."""
    return (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC at commit {busy.commit} on {_processor()}, {CORES} cores, "
        f"Python {platform.python_version()}; {busy.summary}."
    )


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return found[1] if found else platform.processor() or "unknown processor"


def commit() -> str:
    """The measured commit; with a plus sign if files differ from it."""
    found = _git("rev-parse", "--short", "HEAD")
    return found + ("+" if _git("status", "--porcelain", "--untracked-files=no", "src", "bench") else "") or "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


class Busy:
    """Created at the start of a run: its commit and time, and the CPU share of other processes until `summary` is read.

    By then every process that the run has started must have ended.
    """

    def __init__(self) -> None:
        self.commit = commit()
        self._began = self._times()
        self._own = self._used()

    @staticmethod
    def _times() -> list[int]:
        return [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]

    @staticmethod
    def _used() -> float:
        """CPU seconds of this process and of the ended processes that it has started."""
        return sum(os.times()[:4])

    @property
    def summary(self) -> str:
        spent = [now - before for now, before in zip(self._times(), self._began, strict=True)]
        total = max(1, sum(spent))
        busy = (total - spent[3] - spent[4] - spent[7]) / os.sysconf("SC_CLK_TCK")
        others = 100 * max(0.0, busy - (self._used() - self._own)) / (total / os.sysconf("SC_CLK_TCK"))
        return (
            f"other processes used {others:.0f} % of the processors' time, other machines on the same host "
            f"{100 * spent[7] / total:.1f} %"
        )


def write(name: str, text: str, path: Path = DOCUMENT) -> None:
    """Put a table between its two comments in a document."""
    document = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, found, rest = document.partition(begin)
    if not found or end not in rest:
        raise SystemExit(f"docs/{path.name} has no place for {name}.")
    path.write_text(before + begin + "\n" + text + "\n\n" + end + rest.partition(end)[2], encoding="utf-8")
