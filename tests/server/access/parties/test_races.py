"""Party registry under concurrent changes by several processes."""

from __future__ import annotations

import asyncio
import multiprocessing
from dataclasses import replace
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from ccp.errors import CCPError
from ccp.ids import WMI
from ccp.server.access.party_registry import PartyRegistry
from ccp.server.domain.actor import Actor
from ccp.server.domain.parties import Party, PartyRole
from tests.server.storage.made import AT, new_database, opened, sql, with_store

SPAWN = multiprocessing.get_context("spawn")
ROUNDS = 8
BY = Actor("cli:test")


def oem(name: str, wmi: str) -> Party:
    return Party(name.lower(), name, frozenset({PartyRole.OEM}), wmis=frozenset({WMI.parse(wmi)}))


def compete(url: str, number: int, barrier: Any, outcomes: Queue[tuple[int, int, str]]) -> None:
    """In each round all want the same WMI: two for a new party, one for a party that there is."""

    async def run() -> None:
        async with opened(url) as store:
            register = PartyRegistry(store)
            for turn in range(ROUNDS):
                wanted = WMI.parse(f"W{turn:02d}")
                barrier.wait(30)
                try:
                    if number == 0:
                        await register.edit("keeper", lambda p, w=wanted: replace(p, wmis=p.wmis | {w}), BY, AT)  # type: ignore[misc]
                    else:
                        await register.add(oem(f"P{number}-{turn}", wanted), BY, AT, "secret")
                    outcomes.put((turn, number, "had"))
                except CCPError as exc:
                    outcomes.put((turn, number, str(exc)))

    asyncio.run(run())


def test_party_id_that_processes_contest_goes_to_one_and_is_named_to_the_others(
    tmp_path: Path,
) -> None:
    url = new_database(tmp_path)
    with_store(url, lambda store: PartyRegistry(store).add(oem("keeper", "KEP"), BY, AT))
    barrier, outcomes = SPAWN.Barrier(3), SPAWN.Queue()
    processes = [SPAWN.Process(target=compete, args=(url, number, barrier, outcomes)) for number in range(3)]
    for process in processes:
        process.start()
    results = [outcomes.get(timeout=60) for _ in range(3 * ROUNDS)]
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    for turn in range(ROUNDS):
        of_turn = {number: outcome for place, number, outcome in results if place == turn}
        (winner,) = [number for number, outcome in of_turn.items() if outcome == "had"]
        name = "keeper" if winner == 0 else f"P{winner}-{turn}"
        losers = {outcome for number, outcome in of_turn.items() if number != winner}
        assert losers == {f"The WMI W{turn:02d} belongs to {name} already."}
        assert sql(url, "select client_id from party_owns where id = ?", f"W{turn:02d}") == [(name.lower(),)]
    # One row of the audit trail for each change that was made, none for one that was refused.
    assert sql(url, "select count(*) from audit where outcome = 'ok'") == [(1 + ROUNDS,)]
