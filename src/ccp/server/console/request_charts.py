"""Charts of requests, deliveries and refusals by reason, from the stored counters of requests by hour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from ccp.errors.codes import ErrorCode
from ccp.server.audit.refused_deliveries import OPERATIONS
from ccp.server.console.charts import Series
from ccp.server.domain.authorization import VEHICLE_OPERATIONS
from ccp.server.request_counts import Dialect
from ccp.server.storage.queries.request_counts import CountedRequests

_MAX_REASONS: Final = 4
"""Reasons that have a colour of their own; the others are one series."""
_KINDS: Final = ("bad", "warn", "other", "quiet")
_DELIVERIES: Final = frozenset(operation.value for operation in VEHICLE_OPERATIONS)


class ChartPeriod(StrEnum):
    """What the charts cover: 24 hours by hour, or 30 days by day (UTC)."""

    DAY = "24h"
    MONTH = "30d"

    @property
    def words(self) -> str:
        """For a title."""
        return "24 hours" if self is ChartPeriod.DAY else "30 days"

    @property
    def step(self) -> timedelta:
        """Length of a bar."""
        return timedelta(hours=1) if self is ChartPeriod.DAY else timedelta(days=1)

    def begins(self, now: datetime) -> list[datetime]:
        """The begin of each bar, oldest first. The last bar is not over."""
        seconds = int(self.step.total_seconds())
        last = datetime.fromtimestamp(int(now.timestamp()) // seconds * seconds, UTC)
        count = 24 if self is ChartPeriod.DAY else 30
        return [last - self.step * place for place in reversed(range(count))]

    def label(self, begin: datetime) -> str:
        """Name of a bar."""
        return f"{begin:%H:%M}" if self is ChartPeriod.DAY else f"{begin:%Y-%m-%d}"


@dataclass(frozen=True, slots=True)
class Chart:
    """A stacked bar chart, as `parts.chart` shows it. none: a sentence that stands for an empty chart."""

    title: str
    labels: tuple[str, ...]
    series: tuple[Series, ...]
    none: str


@dataclass(frozen=True, slots=True)
class Reason:
    """A code and its requests in the period. recorded: refused deliveries, which the page of refusals lists.

    code: None for one that this release does not know; then name is all that is known of it.
    """

    name: str
    code: ErrorCode | None
    requests: int
    recorded: int


@dataclass(frozen=True, slots=True)
class RequestCharts:
    """What the overview shows of a period. reasons: most frequent first."""

    period: ChartPeriod
    requests: Chart
    deliveries: Chart
    refusals: Chart
    reasons: tuple[Reason, ...]

    @property
    def charts(self) -> tuple[Chart, ...]:
        """In the order of the page."""
        return self.deliveries, self.refusals, self.requests


def request_charts(counted: Iterable[CountedRequests], period: ChartPeriod, now: datetime) -> RequestCharts:
    """Build the charts. counted: of the period, by its step.

    Answered requests that are of no API, such as those of health checks and of this console, do not count.
    """
    begins = period.begins(now)
    requests: Counter[tuple[datetime, bool]] = Counter()
    deliveries: Counter[tuple[datetime, bool]] = Counter()
    by_code: Counter[tuple[datetime, str]] = Counter()
    codes: Counter[str] = Counter()
    recorded: Counter[str] = Counter()
    for each in counted:
        if each.code or each.dialect != Dialect.OTHER:
            requests[each.begin, bool(each.code)] += each.number
        if each.operation in _DELIVERIES:
            deliveries[each.begin, bool(each.code)] += each.number
        if each.code:
            codes[each.code] += each.number
            if each.operation in OPERATIONS:
                by_code[each.begin, each.code] += each.number
                recorded[each.code] += each.number
    labels = tuple(period.label(begin) for begin in begins)
    main = [code for code, _ in recorded.most_common(_MAX_REASONS)]
    lines = [
        Series(code, kind, [by_code[begin, code] for begin in begins]) for code, kind in zip(main, _KINDS, strict=False)
    ]
    rest = [code for code in recorded if code not in main]
    if rest:
        others = [sum(by_code[begin, code] for code in rest) for begin in begins]
        lines.append(Series("other reasons", "ok", others))

    def chart(title: str, counts: Counter[tuple[datetime, bool]], good: str, none: str) -> Chart:
        series = (
            Series(good, "ok", [counts[begin, False] for begin in begins]),
            Series("refused", "bad", [counts[begin, True] for begin in begins]),
        )
        return Chart(f"{title}, {period.words}", labels, series, f"{none} in {period.words}.")

    return RequestCharts(
        period,
        chart("All requests", requests, "answered", "No request"),
        chart("Requests of vehicles", deliveries, "delivered", "No vehicle asked"),
        Chart(
            f"Refused deliveries by reason, {period.words}",
            labels,
            tuple(lines),
            f"No delivery was refused in {period.words}.",
        ),
        tuple(Reason(code, _CODES.get(code), count, recorded[code]) for code, count in codes.most_common()),
    )


_CODES: Final = {code.value: code for code in ErrorCode}
