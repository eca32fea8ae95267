"""Queries for the counters of requests by hour."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from ccp.server.request_counts import Counted
from ccp.server.storage.engine.query import Query, long_read, retryable

HOUR: Final = 3600
KEPT: Final = timedelta(days=35)
_ROWS: Final = 100  # In one statement.


class CountedRequests(NamedTuple):
    """Requests of a period that begins at `begin`. code: empty without a refusal."""

    begin: datetime
    dialect: str
    operation: str
    code: str
    number: int


def hour_of(moment: datetime) -> int:
    """Return the begin of an hour, seconds since 1970."""
    seconds = int(moment.timestamp())
    return seconds - seconds % HOUR


@retryable
def add(counts: Mapping[tuple[int, Counted], int]) -> Query[None]:
    """Add to the counters. counts: by begin of the hour and what is counted."""
    rows = sorted((hour, *counted, number) for (hour, counted), number in counts.items())  # Always in this lock order.
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        places = ", ".join(
            "(" + ", ".join(f"${5 * row + column}" for column in range(1, 6)) + ")" for row in range(len(part))
        )
        yield (
            f"insert into request_count (hour, dialect, operation, code, number) values {places} "  # noqa: S608  places
            "on conflict (hour, dialect, operation, code) "
            "do update set number = request_count.number + excluded.number",
            tuple(value for row in part for value in row),
        )


@long_read
def read(since: datetime, until: datetime, period: timedelta = timedelta(hours=1)) -> Query[list[CountedRequests]]:
    """Read the requests of whole hours, oldest first.

    since, until: the hour that contains `since` counts, that of `until` too. period: whole hours, by which they are
    summed up; periods begin at multiples of it since 1970, so a day begins at midnight UTC.
    """
    rows = yield (
        "select hour - (hour % $1), dialect, operation, code, sum(number) from request_count "
        "where hour >= $2 and hour <= $3 group by 1, 2, 3, 4 order by 1, 2, 3, 4",
        (int(period.total_seconds()), hour_of(since), int(until.timestamp())),
    )
    return [
        CountedRequests(datetime.fromtimestamp(int(row[0]), UTC), row[1], row[2], row[3], int(row[4])) for row in rows
    ]


@retryable
def remove_before(moment: datetime) -> Query[None]:
    """Remove the counters of hours that began before a time."""
    yield "delete from request_count where hour < $1", (hour_of(moment),)
