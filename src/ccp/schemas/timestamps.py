"""RFC 3339 timestamps, as every API writes them."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(moment: datetime, timespec: str = "seconds") -> str:
    """Format an aware time in UTC, with `Z` for the zone.

    timespec: as for `datetime.isoformat`. What is finer is cut off, not rounded.
    """
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec=timespec) + "Z"
