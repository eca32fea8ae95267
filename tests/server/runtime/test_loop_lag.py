"""LoopLag: with an injected clock, and in a blocked event loop."""

from __future__ import annotations

import asyncio
import time

import pytest

from ccp.server.metrics import Metrics
from ccp.server.runtime.background import BackgroundTasks
from ccp.server.runtime.loop_lag import PROBE_INTERVAL, LoopLag


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_loop_lag_is_the_time_from_when_the_probe_was_due() -> None:
    clock, seen = Clock(), list[tuple[float, float]]()
    lag = LoopLag(lambda *values: seen.append(values), clock)
    lag.expect(0.05)
    clock.now += 0.08
    lag.record()
    assert lag.current == pytest.approx(0.03)
    assert seen == [(pytest.approx(0.03), pytest.approx(0.03))]


def test_probe_that_is_overdue_counts_before_it_runs() -> None:
    clock = Clock()
    lag = LoopLag(clock=clock)
    lag.expect(0.05)
    clock.now += 0.04
    assert (lag.current, lag.recent_max, lag.total) == (0, 0, 0)
    clock.now += 0.51
    assert (lag.current, lag.recent_max) == (pytest.approx(0.5), pytest.approx(0.5))


def test_loop_lag_maximum_halves_with_every_second() -> None:
    clock = Clock()
    lag = LoopLag(clock=clock)
    lag.expect(0)
    clock.now += 0.8
    lag.record()
    clock.now += 1
    assert lag.recent_max == pytest.approx(0.4)
    lag.expect(0.0)
    clock.now += 0.1
    lag.record()  # Smaller than what is left of the largest one.
    assert lag.recent_max == pytest.approx(0.8 * 0.5**1.1)
    clock.now += 1.9
    lag.expect(0.0)
    clock.now += 0.3
    lag.record()
    assert lag.recent_max == pytest.approx(0.3)


def test_loop_lags_add_up_and_an_overdue_probe_counts_among_them() -> None:
    clock = Clock()
    lag = LoopLag(clock=clock)
    for late in (0.3, 0.0, 0.2):
        lag.expect(0.05)
        clock.now += 0.05 + late
        lag.record()
    began = lag.total
    assert began == pytest.approx(0.5)
    lag.expect(0.05)
    clock.now += 0.15
    assert lag.total - began == pytest.approx(0.1)
    lag.record()
    assert lag.total - began == pytest.approx(0.1)


def test_loop_lag_without_a_probe_is_zero() -> None:
    lag = LoopLag()
    assert (lag.current, lag.recent_max, lag.total) == (0, 0, 0)


def test_loop_that_is_blocked_lags_and_metrics_show_it() -> None:
    metrics = Metrics()
    lag = LoopLag(metrics.loop_probed)

    async def run() -> None:
        background = BackgroundTasks(metrics.task_failed)
        background.add(lag.probe_task())
        await asyncio.sleep(PROBE_INTERVAL / 2)
        time.sleep(0.4)  # noqa: ASYNC251  on purpose: no other task runs meanwhile
        assert lag.current >= 0.3  # Within the turn that takes so long.
        await asyncio.sleep(2 * PROBE_INTERVAL)
        assert lag.total >= 0.3
        await background.close()

    asyncio.run(run())
    shown = metrics.render("")[0].decode().splitlines()
    number = {line.split()[0]: float(line.split()[1]) for line in shown if not line.startswith("#")}
    assert number["ccp_loop_lag_recent_max_seconds"] > 0
    assert number['ccp_loop_lag_seconds_bucket{le="0.25"}'] < number["ccp_loop_lag_seconds_count"]
    assert not [name for name in number if name.startswith("ccp_task_failures")]
