"""Comparison of the audit trail with an earlier export: which rows lost their subject since, and by which erasure.

The chain holds a commitment to each subject, so a blanked row verifies as long as an erasure lists it. Write access to
the database is enough to add such an erasure. The export still has the subjects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ccp.errors import FieldError
from ccp.ids import EMAID, PCID
from ccp.server.audit.verification import BrokenRow, ChainVerifier, Erasure, LaneHead
from ccp.server.storage.queries.audit import AuditRow


@dataclass(frozen=True, slots=True)
class BlankedRow:
    """A row that lost its subject.

    earlier: the row in the export, with its subject. erasure: the erasure that lists it, if there is one.
    """

    earlier: AuditRow
    erasure: Erasure | None


def blanked_since(export: Iterable[AuditRow | LaneHead], verifier: ChainVerifier) -> list[BlankedRow]:
    """The rows that have a subject in an export, and none in the trail that the verifier was fed with."""
    blanked = verifier.blanked
    return [
        BlankedRow(part, blanked[part.lane, part.number])
        for part in export
        if isinstance(part, AuditRow) and part.subject is not None and (part.lane, part.number) in blanked
    ]


def contradictions(rows: Iterable[BlankedRow]) -> list[BrokenRow]:
    """Rows that `ccp erase` cannot have blanked: all rows of one erasure name the same contract or vehicle."""
    by_erasure: dict[Erasure, list[AuditRow]] = {}
    for row in rows:
        if row.erasure is not None:  # The verifier reports rows without one.
            by_erasure.setdefault(row.erasure, []).append(row.earlier)
    found = []
    for erasure, earlier in by_erasure.items():
        if not set.intersection(*(_ids(row.subject or "", erasure.kind) for row in earlier)):
            why = (
                f"its subject was removed, and the erasure in lane {erasure.lane}, row {erasure.number}, lists rows "
                f"that have no {_NAMES[erasure.kind]} in common"
            )
            found += [BrokenRow(row.lane, row.number, why) for row in earlier]
    return found


_NAMES: Final = {"emaid": "contract", "pcid": "vehicle"}
_WORD: Final = re.compile(r"(?<!\w)\w{14,36}(?!\w)", re.ASCII)


def _ids(subject: str, kind: str) -> set[str]:
    """The words of a subject that are ids of a kind, in canonical form, as `ccp erase` searches for them.

    Many PCIDs are also valid EMAIDs. The value of the other kind's member is therefore ignored.
    """
    other = "pcid" if kind == "emaid" else "emaid"
    try:
        members = {name: value for name, value in json.loads(subject).items() if name != other}
    except (ValueError, AttributeError, RecursionError):  # Not written by this software.
        return set()
    found: set[str] = set()
    for word in _WORD.findall(json.dumps(members)):
        try:
            found.add(EMAID.parse(word) if kind == "emaid" else PCID.parse(word))
        except FieldError:
            continue
    return found
