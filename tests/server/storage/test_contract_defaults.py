"""Defaults of vehicles, provisioning events and locks of contract changes."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from typing import Any

import pytest

from ccp.errors import MismatchError, NotFound
from ccp.ids import EMAID, PCID, Namespace
from ccp.server.domain.contracts import SignedContract
from ccp.server.pool import purging
from ccp.server.storage import connect
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import contracts, vehicles
from ccp.server.storage.queries import purging as purging_queries
from tests.server.storage.contract_changes import UNKNOWN, default_of, events, publish
from tests.server.storage.counting import CountingStore
from tests.server.storage.made import (
    AT,
    CAR,
    FIRST,
    OTHER_CAR,
    OTHER_ROOT,
    SECOND,
    SECOND_CONTRACT,
    THIRD,
    published_by_previous_release,
    read,
    sql,
    variant,
    with_store,
    write,
)

FOREIGN, FOREIGN_TOO = EMAID("NLEXBS00000001"), EMAID("NLEXBS00000002")


# --- Defaults --------------------------------------------------------------------------------------------------------


def test_set_default_moves_the_flag_with_all_variants(url: str) -> None:
    publish(url, variant(FIRST), variant(SECOND_CONTRACT), variant(SECOND_CONTRACT, namespace=Namespace.ISO20))
    write(url, contracts.set_default(SECOND_CONTRACT, CAR, AT))
    assert default_of(url) == SECOND_CONTRACT
    assert [c.is_default for c in read(url, contracts.by_emaid(SECOND_CONTRACT))] == [True, True]


def test_set_default_is_idempotent_and_writes_no_event(url: str) -> None:
    publish(url, variant(FIRST), variant(SECOND_CONTRACT))
    before = events(url)
    for _ in range(2):
        write(url, contracts.set_default(SECOND_CONTRACT, CAR, AT))
    assert default_of(url) == SECOND_CONTRACT
    assert events(url) == before


def test_set_default_works_for_a_vehicle_without_one(url: str) -> None:
    publish(url, variant(FIRST), variant(SECOND_CONTRACT), variant(THIRD))
    write(url, contracts.withdraw(FIRST, AT), contracts.set_default(THIRD, CAR, AT))
    assert default_of(url) == THIRD


@pytest.mark.parametrize(("emaid", "pcid"), [(UNKNOWN, CAR), (FIRST, OTHER_CAR), (THIRD, CAR), (FIRST, PCID("X" * 17))])
def test_set_default_needs_a_contract_of_the_vehicle(url: str, emaid: EMAID, pcid: PCID) -> None:
    publish(url, variant(FIRST, CAR), variant(SECOND_CONTRACT, CAR), variant(THIRD, OTHER_CAR))
    with pytest.raises(NotFound, match="The contract for the given EMAID and PCID not found"):
        write(url, contracts.set_default(emaid, pcid, AT))
    assert default_of(url, CAR) == FIRST
    assert sql(url, "select count(*) from vehicle") == [(2,)]


def test_publish_of_the_default_contract_keeps_the_default(url: str) -> None:
    publish(url, variant(FIRST), variant(SECOND_CONTRACT))
    write(url, contracts.set_default(SECOND_CONTRACT, CAR, AT))
    publish(url, variant(SECOND_CONTRACT), variant(SECOND_CONTRACT, root_fingerprint=OTHER_ROOT))
    assert default_of(url) == SECOND_CONTRACT


# --- Defaults that are remembered ------------------------------------------------------------------------------------


def test_default_returns_to_a_provider_that_deletes_and_puts(url: str) -> None:
    publish(url, variant(FIRST), variant(FOREIGN))
    write(url, contracts.withdraw(FIRST, AT))
    publish(url, variant(FOREIGN_TOO))
    assert default_of(url) is None
    publish(url, variant(SECOND_CONTRACT))
    assert default_of(url) == SECOND_CONTRACT


def test_default_chosen_by_the_oem_stays(url: str) -> None:
    publish(url, variant(FIRST), variant(FOREIGN))
    write(url, contracts.withdraw(FIRST, AT), contracts.set_default(FOREIGN, CAR, AT))
    publish(url, variant(FIRST))
    assert default_of(url) == FOREIGN
    write(url, contracts.withdraw(FOREIGN, AT))
    publish(url, variant(SECOND_CONTRACT))
    assert default_of(url) is None
    publish(url, variant(FOREIGN))
    assert default_of(url) == FOREIGN


def test_default_of_the_previous_release_is_remembered(url: str) -> None:
    write(url, published_by_previous_release(variant(FIRST), AT - SECOND))
    publish(url, variant(FOREIGN))
    assert default_of(url) == FIRST
    write(url, contracts.withdraw(FIRST, AT))
    publish(url, variant(FOREIGN_TOO), variant(SECOND_CONTRACT))
    assert default_of(url) == SECOND_CONTRACT


def test_default_that_expired_is_replaced_as_after_a_purge(url: str) -> None:
    for purged in (False, True):
        pcid = PCID(f"WEX0STORE0000010{purged:d}")
        old, new, foreign = (
            EMAID(f"{owner}S0001{purged:d}00{n}") for owner, n in (("DEEXA", 1), ("DEEXA", 2), ("NLEXB", 1))
        )
        publish(url, variant(old, pcid, valid_to=AT - SECOND), variant(foreign, pcid))
        if purged:
            write(url, purging_queries.purge(old, AT, AT))
        publish(url, variant(new, pcid))
        assert default_of(url, pcid) == new, purged


def test_set_default_of_the_default_records_the_choice(url: str) -> None:
    publish(url, variant(FIRST))
    assert write(url, contracts.set_default(FIRST, CAR, AT)) is not None
    assert write(url, contracts.set_default(FIRST, CAR, AT)) is None
    assert publish(url, variant(FOREIGN)).contesting_providers == frozenset()


def test_publish_by_a_second_provider_marks_the_event_as_contested(url: str) -> None:
    publish(url, variant(FIRST), variant(SECOND_CONTRACT))
    done = publish(url, variant(FOREIGN))
    assert (done.default_provider, done.contesting_providers) == ("DEEXA", {"NLEXB"})
    rows = sql(url, "select kind, emaid, payload from outbox order by rev")
    assert [(kind, emaid, json.loads(payload).get("members")) for kind, emaid, payload in rows] == [
        ("oem.contract.created", FIRST, None),
        ("oem.contract.created", SECOND_CONTRACT, None),
        ("oem.contract.created", FOREIGN, {"contested": True}),
        ("oem.vehicle.contested", FOREIGN, {"contested": True}),
        ("emsp.contract.undeliverable", FOREIGN, {"reason": "contested"}),
    ]


def contest_events(url: str) -> list[tuple[str, str]]:
    rows = sql(url, "select kind, emaid from outbox order by rev")
    return [(kind, emaid) for kind, emaid in rows if kind in ("oem.vehicle.contested", "emsp.contract.undeliverable")]


def test_contest_is_reported_once_until_it_ends(url: str) -> None:
    contested, undeliverable = "oem.vehicle.contested", "emsp.contract.undeliverable"
    publish(url, variant(FIRST), variant(FOREIGN))
    expected = [(contested, FOREIGN), (undeliverable, FOREIGN)]
    assert contest_events(url) == expected
    # Again, also by the holder of the default: nothing new.
    publish(url, variant(FOREIGN), variant(FIRST), variant(FOREIGN, root_fingerprint=OTHER_ROOT))
    assert contest_events(url) == expected
    # Another contract of the same provider: known to the OEM, new to the provider.
    other = EMAID("NLEXBS00000077")
    publish(url, variant(other))
    expected += [(undeliverable, other)]
    assert contest_events(url) == expected
    # The OEM chooses, and the contest ends; withdrawing the choice does not make anything automatic again.
    write(url, contracts.set_default(FOREIGN, CAR, AT))
    assert sql(url, "select contested from vehicle") == [(None,)]
    publish(url, variant(FIRST), variant(FOREIGN))
    assert contest_events(url) == expected


def test_contest_ends_with_the_default_and_begins_with_its_renewal(url: str) -> None:
    publish(url, variant(FIRST), variant(FOREIGN))
    write(url, contracts.withdraw(FIRST, AT))
    assert sql(url, "select contested from vehicle") == [(None,)]
    publish(url, variant(FIRST))
    assert contest_events(url) == [("oem.vehicle.contested", FOREIGN), ("emsp.contract.undeliverable", FOREIGN)] * 2


def test_contest_of_a_withdrawn_contract_is_forgotten(url: str) -> None:
    publish(url, variant(FIRST), variant(FOREIGN))
    write(url, contracts.withdraw(FOREIGN, AT))
    assert sql(url, "select contested from vehicle") == [(None,)]
    publish(url, variant(FOREIGN))
    assert contest_events(url) == [("oem.vehicle.contested", FOREIGN), ("emsp.contract.undeliverable", FOREIGN)] * 2


def test_contest_leaves_contracts_of_iso20_deliverable(url: str) -> None:
    publish(url, variant(FIRST, namespace=Namespace.ISO20), variant(FOREIGN, namespace=Namespace.ISO20))
    assert contest_events(url) == [("oem.vehicle.contested", FOREIGN)]
    publish(url, variant(FIRST))
    assert contest_events(url) == [("oem.vehicle.contested", FOREIGN)]
    publish(url, variant(FOREIGN))
    assert contest_events(url) == [("oem.vehicle.contested", FOREIGN), ("emsp.contract.undeliverable", FOREIGN)]


def test_contest_with_a_default_of_the_other_edition_waits_for_its_variant(url: str) -> None:
    """An ISO 15118-2 vehicle gets the only contract of its edition."""
    publish(url, variant(FIRST, namespace=Namespace.ISO20), variant(FOREIGN))
    assert contest_events(url) == [("oem.vehicle.contested", FOREIGN)]
    publish(url, variant(FIRST), variant(FIRST), variant(FOREIGN))
    assert contest_events(url) == [("oem.vehicle.contested", FOREIGN), ("emsp.contract.undeliverable", FOREIGN)]


def statements_of(url: str, *steps: SignedContract) -> list[int]:
    """How many statements the publication of each takes, without those of the audit trail."""

    async def run() -> list[int]:
        store = connect(url)
        await store.open()
        try:
            found = []
            for each in steps:
                counting = CountingStore(store)
                await counting.write(contracts.publish(each, AT))
                found.append(len(counting.seen))
            return found
        finally:
            await store.close()

    return asyncio.run(run())


def test_publish_takes_no_statement_for_events_that_it_does_not_cause(url: str) -> None:
    """Claim, lock, read, store, event; a first contract sets the default too, a new contest has two events more."""
    assert statements_of(url, variant(FIRST), variant(FIRST), variant(FIRST, root_fingerprint=OTHER_ROOT)) == [6, 5, 5]
    contest = statements_of(url, variant(FOREIGN), variant(FOREIGN), variant(FIRST))
    assert contest[0] == 11
    assert contest[1:] == [5, 5]
    write(url, contracts.set_default(FOREIGN, CAR, AT))
    assert statements_of(url, variant(FOREIGN), variant(FIRST)) == [5, 5]


# --- Provisioning events ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_publish_begun_before_a_provisioning_event_is_refused(url: str, known: bool) -> None:
    if known:
        publish(url, variant(SECOND_CONTRACT), now=AT - SECOND)
    write(url, vehicles.invalidate(CAR, AT))
    for began in (AT - SECOND, AT):
        with pytest.raises(MismatchError, match="provisioning certificate changed while"):
            write(url, contracts.publish(variant(created_at=began), AT + SECOND))
    assert read(url, contracts.by_vehicle(CAR)) == []
    assert sql(url, "select count(*) from emaid_claim") == [(0,)]
    publish(url, variant(created_at=AT + SECOND), now=AT + SECOND)
    assert default_of(url) == FIRST


def test_publish_ignores_a_provisioning_event_far_in_the_future(url: str) -> None:
    write(url, vehicles.invalidate(CAR, AT + timedelta(hours=10)))
    publish(url, variant(), now=AT)
    assert default_of(url) == FIRST


def purge_idle(url: str, before: datetime) -> int:
    """Returns how many rows went."""
    (had,) = sql(url, "select count(*) from vehicle")[0]
    with_store(url, lambda store: purging.remove_idle_vehicles(store, before))
    (left,) = sql(url, "select count(*) from vehicle")[0]
    return int(had) - int(left)


def test_idle_vehicles_are_purged(url: str) -> None:
    write(url, vehicles.invalidate(CAR, AT), vehicles.invalidate(OTHER_CAR, AT))
    publish(url, variant(created_at=AT + SECOND), now=AT + SECOND)
    assert purge_idle(url, AT) == 0
    assert purge_idle(url, AT + SECOND) == 1
    assert sql(url, "select pcid from vehicle") == [(CAR,)]
    write(url, contracts.withdraw(FIRST, AT + SECOND))
    assert purge_idle(url, AT + 2 * SECOND) == 0, "the provider of its default is remembered"


def recorded(change: Query[Any], seen: list[tuple[str, str]]) -> Query[Any]:
    """The change, with the first words of each statement and its first parameter written down."""
    statement = next(change)
    try:
        while True:
            seen.append((" ".join(statement[0].split()[:3]), str(statement[1][0])))
            statement = change.send((yield statement))
    except StopIteration as stop:
        return stop.value


# --- Locks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [(CAR, OTHER_CAR), (OTHER_CAR, CAR)])
def test_contract_that_moves_locks_the_emaid_then_both_vehicles_in_order(url: str, old: PCID, new: PCID) -> None:
    """SQLite has one writer and does not care; where rows are locked another order is a deadlock some day."""
    publish(url, variant(pcid=old))
    seen: list[tuple[str, str]] = []
    write(url, recorded(contracts.publish(variant(pcid=new), AT), seen))
    assert seen[:3] == [
        ("insert into emaid_claim", FIRST), ("insert into vehicle", CAR), ("insert into vehicle", OTHER_CAR),
    ]  # fmt: skip


@pytest.mark.parametrize(("change", "parameters"), [(contracts.withdraw, ()), (contracts.set_default, (CAR,))])
def test_writes_take_their_locks_in_one_order(url: str, change: Any, parameters: tuple[PCID]) -> None:
    publish(url, variant())
    seen: list[tuple[str, str]] = []
    write(url, recorded(change(FIRST, *parameters, AT), seen))
    assert seen[:2] == [("select pcid from", FIRST), ("insert into vehicle", CAR)]
