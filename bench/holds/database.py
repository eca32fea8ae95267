"""A PostgreSQL server that becomes silent during deliveries and publications."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rig import postgres
from rig.open_loop import UNANSWERED, Answer, Outcome, Run, Stream, running
from rig.postgres import databases
from rig.report import Row

AIMS: Final = (
    "Vehicles send 60 requests a second and publishers 3 contracts a second, while the database server is stopped "
    "(SIGSTOP), its packets are delayed until the network is back, its packets are lost and its standby is "
    "promoted, or its synchronous standby hangs. Aims: every vehicle has an answer within 4 seconds, a message with "
    "its contract or a temporary failure; every publisher has one within 6 seconds; requests are served again 2 "
    "seconds after the database is back."
)

IN_TIME: Final = 4.0
PUT_IN_TIME: Final = 6.0
_LABELS: Final = (("temporary", b'"metaData":"temporary: '), ("contract", b"cpsV2GRootCertificateFingerprint"))
_STANDBY: Final = (("standby", b"waits for its synchronous standby"),)


@dataclass(frozen=True, slots=True)
class Plan:
    """Times in seconds, rates in requests per second. back: aim for the time from the end of the outage to service."""

    before: float
    outage: float
    after: float
    vehicles: float
    publishers: float
    contracts: int
    share: float
    back: float


LONG: Final = Plan(5, 30, 10, vehicles=60, publishers=3, contracts=480, share=1.0, back=2.0)
SHORT: Final = Plan(0.5, 3, 2, vehicles=20, publishers=1, contracts=32, share=0.98, back=4.0)


def run(short: bool, folder: Path) -> Iterator[Row]:
    plan = SHORT if short else LONG
    if not postgres.available():
        yield Row("all", "", "skipped", None, postgres.SKIPPED)
        return
    with ExitStack() as stack:
        primary, standby, name = stack.enter_context(databases.replicated(durable=True))
        network = stack.enter_context(postgres.network(primary.url(name)))
        pool = postgres.PoolOn(folder / "pool", primary.url(name), plan.contracts)
        two_hosts = postgres.both(network.port, standby.port, name)
        with pool.serving(two_hosts if short else network.url, 1 if short else 2) as server:
            rig = Rig(plan, pool, server.port)
            yield from rig.outage("stopped (SIGSTOP)", primary.pause, primary.resume)
            yield from rig.hanging_standby(standby)
            if not short:
                yield from rig.outage("delayed packets", network.hold, network.let_go)
                yield from rig.outage("swallowed packets", network.swallow, lambda: network.swallow(False))
                server = stack.enter_context(pool.serving(two_hosts, 2))
            rig = Rig(plan, pool, server.port)
            yield from rig.outage("swallowed packets, two hosts, the second promoted", network.swallow, standby.promote)


class Rig:
    def __init__(self, plan: Plan, pool: postgres.PoolOn, port: int) -> None:
        self.plan, self.pool, self.port = plan, pool, port

    def streams(self) -> tuple[Stream, Stream]:
        plan = self.plan
        seconds = plan.before + plan.outage + plan.after
        post, put = (self.pool.operations[name].messages for name in ("post", "put"))
        return (
            Stream("vehicles", post, plan.vehicles, seconds, 400, labels=_LABELS, open_first=False),
            Stream("publishers", put, plan.publishers, seconds, 60, patience=10, labels=_STANDBY, open_first=False),
        )

    def load(self, begin: Callable[[], None], end: Callable[[], None]) -> tuple[dict[str, Outcome], float, float]:
        """Run a load around an outage. Returns its responses, and the begin and end of the outage."""
        with running(self.port, self.streams()) as load:
            _sleep_until(load, self.plan.before)
            begin()
            began = load.elapsed
            _sleep_until(load, began + self.plan.outage)
            end()
            over = load.elapsed
            return load.result(), began, over

    def outage(self, what: str, begin: Callable[[], None], end: Callable[[], None]) -> Iterator[Row]:
        plan = self.plan
        found, began, over = self.load(begin, end)
        vehicles, publishers = found["vehicles"], found["publishers"]
        share = vehicles.share(IN_TIME)
        slowest = max(answer.latency for answer in vehicles.answers)
        statuses = vehicles.statuses()
        yield Row(
            f"{what}: vehicles with an answer within {IN_TIME:g} s",
            f"≥ {plan.share:.0%}",
            f"{share:.1%} of {len(vehicles.answers)}, the slowest after {slowest:.2f} s",
            share >= plan.share,
            f"Of the requests during the outage {_labels(vehicles, began, over)}; status "
            + ", ".join(f"{status or 'none'}: {count}" for status, count in sorted(statuses.items())),
        )
        late = max((answer.latency for answer in publishers.answers), default=0.0)
        unanswered = publishers.statuses()[UNANSWERED]
        yield Row(
            f"{what}: publishers with an answer within {PUT_IN_TIME:g} s",
            f"≥ {plan.share:.0%}",
            f"{publishers.share(PUT_IN_TIME):.1%} of {len(publishers.answers)}, the slowest after {late:.2f} s",
            publishers.share(PUT_IN_TIME) >= plan.share and not unanswered,
        )
        yield self._back(what, "first contract handed out", vehicles, over, "contract")
        yield self._last(what, vehicles, over)

    def _back(self, what: str, first: str, found: Outcome, over: float, label: str) -> Row:
        """Seconds from the end of the outage to the first served request."""
        ends = [a.due + a.latency - over for a in found.answers if a.label == label and a.due + a.latency >= over]
        seconds = min(ends, default=float("nan"))
        aim = f"≤ {self.plan.back:g} s"
        return Row(f"{what}: {first} after it is back", aim, f"{seconds:.2f} s", seconds <= self.plan.back)

    def _last(self, what: str, found: Outcome, over: float) -> Row:
        """Seconds from the end of the outage to the last request that was not served."""
        failed = [a.due + a.latency - over for a in found.answers if a.label != "contract"]
        seconds = max(0.0, *failed) if failed else 0.0
        aim = f"≤ {self.plan.back:g} s"
        return Row(f"{what}: last failure after it is back", aim, f"{seconds:.2f} s", seconds <= self.plan.back)

    def hanging_standby(self, standby: databases.Server) -> Iterator[Row]:
        what = "synchronous standby hangs"
        found, began, over = self.load(standby.pause, standby.resume)
        vehicles, publishers = found["vehicles"], found["publishers"]
        served = vehicles.good(IN_TIME, label="contract")
        yield Row(
            f"{what}: vehicles that get their contract within {IN_TIME:g} s",
            f"≥ {self.plan.share:.0%}",
            f"{served / len(vehicles.answers):.1%} of {len(vehicles.answers)}",
            served >= self.plan.share * len(vehicles.answers),
        )
        refused = [answer for answer in publishers.due(began + 0.5, over - PUT_IN_TIME) if answer.status == 503]
        labelled = sum(answer.label == "standby" for answer in refused)
        if refused:
            yield Row(
                f"{what}: publishers that learn that the database waits for it",
                "all",
                f"{labelled} of {len(refused)}",
                labelled == len(refused),
            )
        ends = [_end(a) - over for a in publishers.answers if a.status == 201 and _end(a) >= over]
        first = min(ends, default=float("nan"))
        yield Row(f"{what}: first contract stored after it is back", "≤ 2 s", f"{first:.2f} s", first <= 2)


def _end(answer: Answer) -> float:
    return answer.due + answer.latency


def _sleep_until(load: Run, seconds: float) -> None:
    time.sleep(max(0.0, seconds - load.elapsed))


def _labels(found: Outcome, start: float, end: float) -> str:
    answers = found.due(start, end)
    kinds = {"contract": 0, "temporary": 0, "": 0}
    for answer in answers:
        kinds[answer.label if answer.label in kinds else ""] += 1
    return (
        f"{kinds['contract']} got their contract, {kinds['temporary']} the message of a temporary failure, "
        f"{kinds['']} neither"
    )
