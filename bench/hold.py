"""Reliability experiments: real servers are hung, killed, flooded and starved; each result is compared with its aim.

    python bench/hold.py [--only SUBJECT ...] [--short] [--write]

Each module of `bench/holds` is a subject. Its servers are real (`ccp serve`), on loopback, and are ended by process id.
Each row of a subject's table has the action, the aim, the measured figure and whether the aim is met. `--write` puts
the tables into docs/reliability.md. `--short` is the form for continuous integration: smaller, with aims that a busy
machine meets too. The exit status is 1 if an aim is missed or an experiment failed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Final

sys.path.insert(1, str(Path(__file__).parents[1]))  # For the servers of the tests.

from rig import processes, report
from rig.report import Busy, Row

HERE: Final = Path(__file__).parent
DOCUMENT: Final = HERE.parent / "docs" / "reliability.md"
SUBJECTS: Final = sorted(path.stem for path in (HERE / "holds").glob("[a-z]*.py"))
_VERDICTS: Final = {True: "met", False: "**missed**", None: "reported"}


def main() -> int:
    options = argparse.ArgumentParser(description="Reliability experiments, compared with their aims.")
    options.add_argument("--only", nargs="+", choices=SUBJECTS, default=SUBJECTS, metavar="SUBJECT")
    options.add_argument("--short", action="store_true", help="the form that continuous integration runs")
    options.add_argument("--write", action="store_true", help="put the tables into docs/reliability.md")
    given = options.parse_args()
    if given.short and given.write:
        options.error("the figures of --short do not belong into the document")
    processes.end_in_order()
    missed = False
    for subject in given.only:
        rows, failed = _run(subject, given.short, given.write)
        missed = missed or failed or not rows or any(row.met is False for row in rows)
    return 1 if missed else 0


def _run(subject: str, short: bool, write: bool) -> tuple[list[Row], bool]:
    """The rows of a subject, and whether its experiment failed."""
    module = importlib.import_module(f"holds.{subject}")
    print(f"\n## {subject}\n\n{module.AIMS}\n", flush=True)
    busy, rows, failed = Busy(), [], False
    with tempfile.TemporaryDirectory(prefix="ccp-hold-") as folder:
        try:
            for row in module.run(short, Path(folder)):
                rows.append(row)
                print(" | ".join(_cells(row)), flush=True)
        except Exception:
            failed = True
            traceback.print_exc()
    if write and not failed and rows:
        text = [report.table(("what", "aim", "figure", "verdict"), map(_cells, rows))]
        text += [f"- {row.what}: {row.note}" for row in rows if row.note]
        parts = (text[0], "\n".join(text[1:]), report.short_machine(busy))
        report.write(subject, "\n\n".join(part for part in parts if part), DOCUMENT)
    return rows, failed


def _cells(row: Row) -> list[str]:
    return [row.what, row.aim, row.figure, _VERDICTS[row.met]]


if __name__ == "__main__":
    sys.exit(main())
