"""Soak test: half an hour of hostile and honest load; memory must level off, and containers keep their bounds."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ccp.server import logging, settings
from ccp.server.app import build_services
from ccp.server.sandbox import setup
from ccp.server.settings import Settings
from ccp.server.storage.engine import schema
from ccp.testing.pki import PKI
from request import token_of
from rig import bounds, inspection, processes, world
from rig.containers import Size
from rig.hostility import Hostility
from rig.open_loop import UNANSWERED, Outcome, Stream, running
from rig.processes import Server
from rig.report import Row

AIMS: Final = (
    "Hostile callers (flipped bits in publications and requests, unknown vehicles, garbage, wrong tokens and "
    "secrets, large bodies, slow clients, certificates that each name a new responder with wrong answers) beside "
    "honest ones, for half an hour. Aims: the memory of each worker is constant after ten minutes; every container "
    "stays within its bound in [memory](memory.md); no response is a 500; honest callers get the expected response."
)

MINUTES: Final = 30
_WARM: Final = 10
"""Minutes after which memory has to be flat: the caches are full by then, as far as this load fills them."""
_SHORT_SECONDS: Final = 8.0
_SAMPLE_DELAY: Final = 2.0
_MAX_GROWTH: Final = 2.0  # MiB
_MAX_SLOPE: Final = 1.0  # MiB in ten minutes
_HONEST: Final = {
    "post": (6.0, 200),
    "post-20": (2.0, 200),
    "put": (2.0, 201),
    "by-emaid": (1.0, 200),
    "signed": (1.0, 200),
}
"""Requests a second, and the status of each answer."""
_MISTAKES: Final = ('"outcome": "crashed"', '"outcome":"crashed"', "Traceback (most recent call last)", "panicked at")


@dataclass(slots=True)
class Series:
    """Memory of each worker during the run. at: minutes since its start. mib: resident memory, by process id."""

    at: list[float] = field(default_factory=list)
    mib: dict[int, list[float]] = field(default_factory=dict)

    def note(self, now: float, found: dict[int, float]) -> None:
        self.at.append(now)
        for pid, mib in found.items():
            self.mib.setdefault(pid, []).append(mib)

    @property
    def largest(self) -> int:
        """The worker with the most memory at the end."""
        return max(self.mib, key=lambda pid: self.mib[pid][-1])

    def minutes(self, pid: int) -> list[float]:
        """The minimum of each minute: checks of secrets use 19 MiB each for less than that."""
        lowest: dict[int, float] = {}
        for at, mib in zip(self.at, self.mib[pid], strict=True):
            lowest[int(at)] = min(mib, lowest.get(int(at), mib))
        return list(lowest.values())

    def growth(self, pid: int) -> float:
        """MiB from the maximum of the first half to the maximum of the second half after `_WARM`."""
        found = self.minutes(pid)[_WARM:]
        half = len(found) // 2
        return max(found[half:]) - max(found[:half])

    def slope(self, pid: int) -> float:
        """MiB per ten minutes after `_WARM`, by least squares."""
        found = self.minutes(pid)[_WARM:]
        middle, mean = (len(found) - 1) / 2, sum(found) / len(found)
        spread = sum((place - middle) ** 2 for place in range(len(found)))
        return 10 * sum((place - middle) * (mib - mean) for place, mib in enumerate(found)) / spread


def run(short: bool, folder: Path, minutes: float = MINUTES, rate: float = 1.0) -> Iterator[Row]:
    """minutes: duration of the long form. rate: factor for the rates of all callers."""
    at = datetime.now(UTC).replace(microsecond=0)
    config, database = folder / "ccp.toml", f"sqlite:///{folder / 'ccp.db'}"
    config.write_text(f'base_url = "{world.BASE_URL}"\negress_allow_networks = ["127.0.0.0/8"]\nlog_level = "error"\n')
    schema.upgrade(database)
    loaded = settings.load(config, database=database)
    logging.configure(loaded)
    made, evil = world.build(at, {"iso2": 16, "iso20": 16} if short else {"iso2": 128, "iso20": 64}), PKI.generate(at)
    asyncio.run(world.fill(loaded, made))
    asyncio.run(_trust(loaded, evil, at))
    sockets, log = folder / "s", folder / "server.log"
    sockets.mkdir()
    seconds = _SHORT_SECONDS if short else 60 * minutes
    with inspection.inspected(sockets), processes.serving(config, database, 1 if short else 2, log) as server:
        tokens = _tokens(server, made)
        with (
            Hostility(server.port, made, tokens, evil, rate) as hostile,
            running(server.port, _honest(made, tokens, seconds, rate)) as load,
        ):
            series, longest = _watch(server, sockets, seconds)
            honest = load.result()
        yield from _judged(hostile.statuses, honest, longest, log)
    if not short:
        yield from _flat(series)


def _flat(series: Series) -> Iterator[Row]:
    pid = series.largest
    growth, slope = series.growth(pid), series.slope(pid)
    lines = " / ".join(" ".join(f"{mib:.0f}" for mib in series.minutes(each)) for each in series.mib)
    print(lines, flush=True)
    yield Row(
        "growth of the largest worker from the second to the third ten minutes (RSS)",
        f"≤ {_MAX_GROWTH:g} MiB",
        f"{growth:+.1f} MiB",
        growth <= _MAX_GROWTH,
        f"MiB at each minute, worker by worker: {lines}",
    )
    yield Row(
        "its slope over these twenty minutes",
        f"≤ {_MAX_SLOPE:g} MiB in ten minutes",
        f"{slope:+.2f} MiB",
        slope <= _MAX_SLOPE,
    )


def _judged(
    hostile: dict[str, Counter[int]], honest: dict[str, Outcome], longest: dict[str, Size], log: Path
) -> Iterator[Row]:
    total = sum(sum(statuses.values()) for statuses in hostile.values())
    failed = sum(statuses[500] for statuses in hostile.values())
    summary = "; ".join(
        f"{name} " + ", ".join(f"{status or 'no answer'}: {count}" for status, count in sorted(statuses.items()))
        for name, statuses in hostile.items()
    )
    yield Row("hostile requests that got a 500", "0", f"{failed} of {total}", failed == 0, summary)
    idle = [name for name, statuses in hostile.items() if not statuses]
    yield Row("kinds of hostile callers that were active", f"{len(hostile)}", f"{len(hostile) - len(idle)}", not idle)
    mistakes = sum(log.read_text("utf-8", "replace").count(word) for word in _MISTAKES)
    yield Row("crashes, tracebacks and panics in the log", "0", f"{mistakes}", mistakes == 0)
    right = {name: outcome.statuses()[_HONEST[name][1]] for name, outcome in honest.items()}
    answers = {name: len(outcome.answers) for name, outcome in honest.items()}
    wrong = {
        name: others
        for name, outcome in honest.items()
        if (others := {s: n for s, n in outcome.statuses().items() if s not in (_HONEST[name][1], UNANSWERED, 503)})
    }
    yield Row("honest requests with a wrong answer", "0", f"{wrong or 0} of {sum(answers.values())}", not wrong)
    share = sum(right.values()) / max(1, sum(answers.values()))
    yield Row("honest requests with the expected answer", "none", f"{100 * share:.2f} %", None)
    over = bounds.exceeded(longest)
    watched = sum(name in bounds.stated() for name in longest)
    yield Row(f"containers beyond their bound, of {watched}", "0", f"{len(over)}", not over, "; ".join(over))


async def _trust(loaded: Settings, pki: PKI, at: datetime) -> None:
    built = build_services(loaded)
    await built.open()
    try:
        await setup.register(built.store, setup.World({"evil": pki}, ()), at)
    finally:
        await built.close()


def _tokens(server: Server, made: world.World) -> world.Tokens:
    url = f"http://127.0.0.1:{server.port}/oauth/token"
    return {who: token_of(url, member.party.client_id, member.secret) for who, member in made.members.items()}


def _honest(made: world.World, tokens: world.Tokens, seconds: float, rate: float) -> list[Stream]:
    operations = world.operations(made, tokens)
    return [Stream(name, operations[name].messages, each * rate, seconds, 4) for name, (each, _) in _HONEST.items()]


def _watch(server: Server, sockets: Path, seconds: float) -> tuple[Series, dict[str, Size]]:
    """Sample memory every few seconds, and the largest container sizes every five minutes and at the end."""
    workers = server.workers()  # Once: a process that is looked into has a copy for that moment.
    series, longest = Series(), dict[str, Size]()
    began = looked = time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        series.note((now - began) / 60, {pid: processes.memory(pid)[0] for pid in workers})
        if now - looked > 300:
            looked = now
            _look(workers, sockets, longest)
        time.sleep(min(_SAMPLE_DELAY, max(0.0, began + seconds - time.monotonic())))
    _look(workers, sockets, longest)
    return series, longest


def _look(workers: list[int], sockets: Path, longest: dict[str, Size]) -> None:
    for pid in workers:
        for name, size in inspection.sizes(sockets, pid).items():
            longest[name] = max(size, longest.get(name, size))
    print(json.dumps({pid: round(processes.memory(pid)[0], 1) for pid in workers}), flush=True)
