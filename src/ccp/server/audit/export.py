"""Exports of the audit trail: JSON Lines, a header followed by the rows and heads of all lanes.

What the stream has written to a file can be read too: rows alone, lanes mixed, some of them repeated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final, TypeAlias

from ccp.errors import ConfigurationError
from ccp.server.audit.verification import LaneHead
from ccp.server.storage.queries.audit import GENESIS_HASH, SHARDS, AuditRow, ChainHead

FORMAT: Final = "opnc-ccp audit 1"
"""Value of `format` in the first line."""

Line: TypeAlias = dict[str, Any]


def export_header(now: datetime) -> Line:
    """The first line of an export."""
    return {"format": FORMAT, "lanes": SHARDS, "exported_at": now.isoformat()}


def export_line(part: AuditRow | LaneHead) -> Line | None:
    """The line of a row or of a lane's head; None for a head that is missing."""
    if isinstance(part, AuditRow):
        return part.members()
    return None if part.head is None else {"end_of": part.lane, "number": part.head.number, "hash": part.head.hash}


def read_export(lines: Iterable[str]) -> Iterator[AuditRow | LaneHead]:
    """Parse the rows and heads of an export, or of the files of a stream one after the other.

    Of a stream, repeated rows are left out, and the last row of each lane counts as its head. Raises ConfigurationError
    for any other text.
    """
    first, streamed = True, None
    for place, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            if first and "lane" in line and "format" not in line:
                streamed = _StreamedLanes()
                first = False
            if streamed is not None:
                row = _row(line)
                if streamed.is_new(row):
                    yield row
            elif first:
                if line["format"] != FORMAT or line["lanes"] != SHARDS:
                    raise ValueError("format")
                first = False
            elif "end_of" in line:
                yield LaneHead(_integer(line["end_of"]), ChainHead(_integer(line["number"]), _text(line["hash"])))
            else:
                yield _row(line)
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise ConfigurationError(f"Line {place} is not a line of an audit export.") from exc
    if first:
        raise ConfigurationError("The file is empty; an audit export begins with a header line.")
    if streamed is not None:
        yield from streamed.heads()


class _StreamedLanes:
    """What was read of each lane of a stream."""

    _REMEMBERED: Final = 256
    """Rows of each lane. More than a batch has, and only the last batch can be repeated."""

    def __init__(self) -> None:
        self._recent: dict[int, dict[int, AuditRow]] = {lane: {} for lane in range(SHARDS)}
        self._last = {lane: ChainHead(0, GENESIS_HASH) for lane in range(SHARDS)}

    def is_new(self, row: AuditRow) -> bool:
        """Whether a row was not read before. Another row with the number of one that was read is new."""
        recent = self._recent.setdefault(row.lane, {})
        if recent.get(row.number) == row:
            return False
        recent[row.number] = row
        if len(recent) > self._REMEMBERED:
            del recent[next(iter(recent))]
        self._last[row.lane] = ChainHead(row.number, row.hash)
        return True

    def heads(self) -> Iterator[LaneHead]:
        """The last row of each lane."""
        for lane, last in self._last.items():
            yield LaneHead(lane, last, of_stream=True)


def _row(line: Line) -> AuditRow:
    return AuditRow(
        _integer(line["lane"]),
        _integer(line["number"]),
        _integer(line["at"]),
        _text(line["actor"]),
        _text(line["action"]),
        _text(line["outcome"]),
        None if line["trace_id"] is None else _text(line["trace_id"]),
        None if line["subject"] is None else _text(line["subject"]),
        None if line["salt"] is None else _text(line["salt"]),
        _text(line["commitment"]),
        _text(line["hash"]),
    )


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("not an integer")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value
