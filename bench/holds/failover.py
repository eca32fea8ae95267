"""Failover: a PostgreSQL primary is killed during publications, and its synchronous standby is promoted."""

from __future__ import annotations

import http.client
import json
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ccp.server.domain.parties import PartyRole
from figures import token_of
from rig import postgres
from rig.postgres import databases
from rig.processes import Server
from rig.report import Row
from rig.world import PATH, Contract

AIMS: Final = (
    "In each round, publishers send contracts over a few connections, the primary is killed (SIGKILL), and the "
    "synchronous standby, the second host of the URL, is promoted. Aims: no acknowledged contract is missing; no "
    "contract is stored that was neither acknowledged nor reported as unconfirmed; the first contract is stored "
    "within a second of the promotion."
)

ROUNDS: Final = 20
_PUBLISHERS: Final = 4
_CONTRACTS: Final = 2000
_FIRST_WITHIN: Final = 1.0
_SHORT_FIRST_WITHIN: Final = 5.0
"""On a machine whose cores are busy."""


@dataclass(slots=True)
class Round:
    acknowledged: int
    lost: int
    unexpected: int
    first: float
    """Seconds from the promotion to the first acknowledgement of a publication that was sent after it."""


@dataclass(slots=True)
class Published:
    """The outcome of each publication by EMAID, and when it was sent and acknowledged (monotonic)."""

    acknowledged: dict[str, tuple[float, float]] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)


def run(short: bool, folder: Path) -> Iterator[Row]:
    if not postgres.available():
        yield Row("all", "", "skipped", None, postgres.SKIPPED)
        return
    wanted = 1 if short else ROUNDS
    rounds = [_round(folder / f"round{number}", 300 if short else _CONTRACTS, short) for number in range(wanted)]
    name = f"{len(rounds)} round{'s' * (len(rounds) > 1)} of kill -9"
    total = sum(each.acknowledged for each in rounds)
    lost = sum(each.lost for each in rounds)
    yield Row(f"{name}: acknowledged and lost", "0", f"{lost} of {total}", lost == 0 and total > 0)
    unexpected = sum(each.unexpected for each in rounds)
    yield Row(f"{name}: stored, though the answer says that nothing was", "0", str(unexpected), unexpected == 0)
    first = [each.first for each in rounds]
    within = _SHORT_FIRST_WITHIN if short else _FIRST_WITHIN
    yield Row(
        f"{name}: first contract stored after the promotion",
        f"≤ {within:g} s",
        f"{statistics.median(first):.2f} s at the median, {max(first):.2f} s at most",
        max(first) <= within,
    )


def _round(folder: Path, contracts: int, short: bool) -> Round:
    with ExitStack() as stack:
        primary, standby, name = stack.enter_context(databases.replicated(durable=True))
        pool = postgres.PoolOn(folder, primary.url(name), contracts, published=False)
        url = postgres.both(primary.port, standby.port, name)
        server = stack.enter_context(pool.serving(url, 1 if short else 2))
        found, over = Published(), threading.Event()
        parts = [pool.world.fleets["iso2"].contracts[place::_PUBLISHERS] for place in range(_PUBLISHERS)]
        threads = [threading.Thread(target=_publish, args=(pool, server, part, found, over)) for part in parts]
        for thread in threads:
            thread.start()
        try:
            time.sleep(0.7 if short else 1.5)
            primary.kill()
            time.sleep(0.3)
            standby.promote()
            promoted = time.monotonic()
            deadline = promoted + 30
            while not _since(found, promoted) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.3)
        finally:
            over.set()
            for thread in threads:
                thread.join(30)
        stored = {row[0] for row in databases.sql(standby.url(name), "select emaid from contract")}
        first = min(_since(found, promoted), default=float("inf"))
        acknowledged = set(found.acknowledged)
        return Round(
            len(acknowledged), len(acknowledged - stored), len(stored - acknowledged - found.unsure), first - promoted
        )


def _since(found: Published, promoted: float) -> list[float]:
    return [ended for sent, ended in tuple(found.acknowledged.values()) if sent >= promoted]


def _publish(
    pool: postgres.PoolOn, server: Server, contracts: Sequence[Contract], found: Published, over: threading.Event
) -> None:
    """Publish contracts sequentially. A publication that gets 503 is repeated, as a publisher would do."""
    base = f"http://127.0.0.1:{server.port}/oauth/token"
    tokens = {
        letter: token_of(base, member.party.client_id, member.secret)
        for (role, letter), member in pool.world.members.items()
        if role is PartyRole.CPS
    }
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=15)
    for contract in contracts:
        headers = {"Authorization": f"Bearer {tokens[contract.letter]}", "Content-Type": "application/json"}
        body = json.dumps(contract.publication)
        while not over.is_set():
            sent = time.monotonic()
            try:
                connection.request("PUT", PATH + "/signedcontractdata", body, headers)
                answer = connection.getresponse()
                text = answer.read().decode()
            except (OSError, http.client.HTTPException):
                found.unsure.add(contract.emaid)
                connection.close()
                continue
            if answer.status == 201:
                found.acknowledged[contract.emaid] = sent, time.monotonic()
                break
            if answer.status != 503:
                raise RuntimeError(f"A publication was answered {answer.status}: {text[:300]}")
            if "may have been made" in text:
                found.unsure.add(contract.emaid)
            time.sleep(0.02)  # Sooner than `Retry-After` says: what is measured is the pool's time.
    connection.close()
