"""Contract queries: effects of each write on vehicles, contracts and events."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ccp.errors import LimitExceeded, MismatchError, NotFound
from ccp.ids import EMAID, PCID, Namespace
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.default_contracts import VehicleRules
from ccp.server.pool import purging
from ccp.server.storage import connect
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import contracts, vehicles
from ccp.server.storage.queries import purging as purging_queries
from ccp.server.storage.queries.contracts import Published, instant, microseconds
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
    broken_invariants,
    candidates,
    published_by_previous_release,
    read,
    sql,
    variant,
    with_store,
    write,
)

UNKNOWN = EMAID("DEEXAS99999999")
FOREIGN, FOREIGN_TOO = EMAID("NLEXBS00000001"), EMAID("NLEXBS00000002")


def publish(url: str, *variants: SignedContract, now: datetime = AT) -> Published:
    published: Published = write(url, *(contracts.publish(each, now) for each in variants))
    return published


def default_of(url: str, pcid: PCID = CAR) -> str | None:
    """The default EMAID, which the vehicle and its variants have to agree on."""
    assert broken_invariants(url) == []
    default: str | None = sql(url, "select default_emaid from vehicle where pcid = ?", pcid)[0][0]
    stored = {contract.emaid for contract in read(url, contracts.by_vehicle(pcid)) if contract.is_default}
    assert stored == ({default} if default else set())
    return default


def events(url: str, pcid: PCID = CAR) -> list[tuple[str, str]]:
    """Kind and EMAID of a vehicle's events, in the order of its revisions."""
    rows = sql(url, "select rev, kind, emaid, payload from outbox where pcid = ? order by rev", pcid)
    assert len({row[0] for row in rows}) == len(rows)
    for _, _, emaid, payload in rows:
        payloads = json.loads(payload)
        assert payloads.pop("namespaces"), "an event has at least one namespace"
        assert payloads == {"emaid": emaid, "pcid": pcid}
    return [(kind.removeprefix("oem.contract."), emaid) for _, kind, emaid, _ in rows]


# --- Publishing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "contract",
    [
        variant(),
        variant(namespace=Namespace.ISO20, remaining_from_end=9, metadata="für später", root_serial=1),
        variant(certificate=bytes(range(256)), response=bytes(65_000), root_dn="", metadata=""),
        variant(valid_from=datetime(1950, 1, 1, tzinfo=UTC), valid_to=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        variant(EMAID("NLEXB" + "Z" * 28), PCID("WEX0STORE000000001"), root_serial=2**159 - 1),
    ],
)
def test_by_vehicle_returns_a_contract_as_published(url: str, contract: SignedContract) -> None:
    assert publish(url, contract) == Published(created=True, moved_from=None)
    stored = [contract._replace(is_default=True)]
    assert read(url, contracts.by_vehicle(contract.pcid)) == stored
    assert read(url, contracts.by_emaid(contract.emaid)) == stored


def test_by_vehicle_and_by_emaid_return_nothing_for_unknown_ids(url: str) -> None:
    assert read(url, contracts.by_vehicle(CAR)) == []
    assert read(url, contracts.by_emaid(FIRST)) == []


def test_publish_makes_the_first_contract_the_default_not_the_second(url: str) -> None:
    publish(url, variant(FIRST))
    publish(url, variant(SECOND_CONTRACT))
    assert default_of(url) == FIRST
    assert events(url) == [("created", FIRST), ("created", SECOND_CONTRACT)]


def test_publish_replaces_a_variant_and_keeps_its_creation_time(url: str) -> None:
    publish(url, variant())
    later = AT + SECOND
    newer = variant(
        response=b"newer",
        certificate=b"newer too",
        metadata="new",
        root_serial=7,
        root_dn="CN=Other",
        created_at=later,
        updated_at=later,
        valid_from=AT.replace(microsecond=0),
        valid_to=datetime(2030, 1, 1, tzinfo=UTC),
    )
    assert publish(url, newer, now=later) == Published(created=False, moved_from=None, replaced=True)
    kept = newer._replace(created_at=AT, is_default=True)
    assert read(url, contracts.by_vehicle(CAR)) == [kept]
    assert events(url) == [("created", FIRST), ("updated", FIRST)]


@pytest.mark.parametrize("other", [{"namespace": Namespace.ISO20}, {"root_fingerprint": OTHER_ROOT}])
def test_publish_adds_a_variant_that_shares_the_default_flag(url: str, other: dict[str, str]) -> None:
    publish(url, variant())
    publish(url, variant(SECOND_CONTRACT))
    assert publish(url, variant(**other)) == Published(created=False, moved_from=None)
    assert publish(url, variant(SECOND_CONTRACT, **other)) == Published(created=False, moved_from=None)
    found = read(url, contracts.by_vehicle(CAR))
    assert sorted((c.emaid, c.is_default) for c in found) == [(FIRST, True)] * 2 + [(SECOND_CONTRACT, False)] * 2
    assert len(read(url, contracts.by_emaid(FIRST))) == 2
    assert [kind for kind, _ in events(url)] == ["created", "created", "updated", "updated"]


def test_publish_of_a_replacement_does_not_change_the_default(url: str) -> None:
    publish(url, variant(FIRST), variant(FOREIGN))
    write(url, contracts.withdraw(FIRST, AT))
    publish(url, variant(FOREIGN, response=b"newer"))
    assert default_of(url) is None


def test_publish_by_the_remembered_provider_fills_a_vacant_default(url: str) -> None:
    publish(url, variant(FIRST), variant(SECOND_CONTRACT), variant(FOREIGN))
    write(url, contracts.withdraw(FIRST, AT))
    assert default_of(url) is None
    publish(url, variant(SECOND_CONTRACT, response=b"newer"))
    assert default_of(url) == SECOND_CONTRACT


def test_publish_after_the_loss_of_all_contracts_sets_the_default(url: str) -> None:
    publish(url, variant(FIRST))
    write(url, contracts.withdraw(FIRST, AT))
    publish(url, variant(SECOND_CONTRACT))
    assert default_of(url) == SECOND_CONTRACT


# --- Moving ----------------------------------------------------------------------------------------------------------


def test_publish_for_another_vehicle_moves_the_contract(url: str) -> None:
    publish(url, variant(), variant(namespace=Namespace.ISO20), variant(root_fingerprint=OTHER_ROOT))
    moved = variant(pcid=OTHER_CAR, response=b"moved")
    assert publish(url, moved) == Published(created=True, moved_from=CAR)
    assert read(url, contracts.by_vehicle(CAR)) == []
    assert read(url, contracts.by_emaid(FIRST)) == [moved._replace(is_default=True)]
    assert default_of(url, CAR) is None
    assert default_of(url, OTHER_CAR) == FIRST


@pytest.mark.parametrize(("old", "new"), [(CAR, OTHER_CAR), (OTHER_CAR, CAR)])
def test_move_writes_a_deleted_and_a_created_event(url: str, old: PCID, new: PCID) -> None:
    publish(url, variant(pcid=old))
    publish(url, variant(pcid=new))
    assert events(url, old) == [("created", FIRST), ("deleted", FIRST)]
    assert events(url, new) == [("created", FIRST)]


def test_move_to_a_vehicle_with_contracts_keeps_its_default(url: str) -> None:
    publish(url, variant(FIRST, CAR), variant(SECOND_CONTRACT, CAR), variant(THIRD, OTHER_CAR))
    publish(url, variant(FIRST, OTHER_CAR))
    assert default_of(url, CAR) is None
    assert default_of(url, OTHER_CAR) == THIRD


def test_move_of_a_contract_that_is_not_the_default_keeps_the_default(url: str) -> None:
    publish(url, variant(FIRST, CAR), variant(SECOND_CONTRACT, CAR))
    publish(url, variant(SECOND_CONTRACT, OTHER_CAR))
    assert default_of(url, CAR) == FIRST
    assert default_of(url, OTHER_CAR) == SECOND_CONTRACT


def test_move_there_and_back_writes_events_in_order(url: str) -> None:
    publish(url, variant(FIRST, CAR), variant(FIRST, OTHER_CAR), variant(FIRST, CAR))
    assert events(url, CAR) == [("created", FIRST), ("deleted", FIRST), ("created", FIRST)]
    assert events(url, OTHER_CAR) == [("created", FIRST), ("deleted", FIRST)]


def test_pcids_of_17_and_18_characters_are_different_vehicles(url: str) -> None:
    longer = PCID(CAR + "0")
    publish(url, variant(FIRST, CAR), variant(SECOND_CONTRACT, longer))
    assert default_of(url, CAR) == FIRST
    assert default_of(url, longer) == SECOND_CONTRACT


# --- Withdrawing -----------------------------------------------------------------------------------------------------


def test_withdraw_removes_all_variants_and_sets_no_other_default(url: str) -> None:
    publish(url, variant(), variant(namespace=Namespace.ISO20), variant(SECOND_CONTRACT))
    assert write(url, contracts.withdraw(FIRST, AT)).pcid == CAR
    assert [contract.emaid for contract in read(url, contracts.by_vehicle(CAR))] == [SECOND_CONTRACT]
    assert read(url, contracts.by_emaid(FIRST)) == []
    assert default_of(url) is None
    assert events(url)[-1] == ("deleted", FIRST)


def test_withdraw_of_another_contract_keeps_the_default(url: str) -> None:
    publish(url, variant(FIRST), variant(SECOND_CONTRACT))
    write(url, contracts.withdraw(SECOND_CONTRACT, AT))
    assert default_of(url) == FIRST


def test_withdraw_of_an_unknown_contract_raises_not_found(url: str) -> None:
    publish(url, variant())
    write(url, contracts.withdraw(FIRST, AT))
    before = sql(url, "select * from vehicle"), events(url)
    for emaid in (UNKNOWN, FIRST):
        with pytest.raises(NotFound, match=r"^The contract for the given EMAID not found\.$"):
            write(url, contracts.withdraw(emaid, AT))
    assert (sql(url, "select * from vehicle"), events(url)) == before


def test_withdraw_frees_the_emaid_for_any_vehicle(url: str) -> None:
    publish(url, variant(FIRST, CAR))
    write(url, contracts.withdraw(FIRST, AT))
    assert publish(url, variant(FIRST, OTHER_CAR)) == Published(created=True, moved_from=None)
    assert default_of(url, OTHER_CAR) == FIRST


def test_purge_removes_a_contract_when_all_variants_have_expired(url: str) -> None:
    publish(url, variant(valid_to=AT - SECOND), variant(namespace=Namespace.ISO20, valid_to=AT + SECOND))
    publish(url, variant(SECOND_CONTRACT, valid_to=AT - SECOND))
    assert set(candidates(url, AT)) == {FIRST, SECOND_CONTRACT}
    assert read(url, purging_queries.purge_reason(FIRST, AT)) is None
    assert write(url, purging_queries.purge(FIRST, AT, AT)) is None
    assert read(url, purging_queries.purge_reason(SECOND_CONTRACT, AT)) == (CAR, "expired")
    gone = write(url, purging_queries.purge(SECOND_CONTRACT, AT, AT))
    assert (gone.pcid, gone.reason) == (CAR, "expired")
    assert read(url, purging_queries.purge_reason(UNKNOWN, AT)) is None
    assert [contract.emaid for contract in read(url, contracts.by_vehicle(CAR))] == [FIRST] * 2
    assert events(url)[-1] == ("deleted", SECOND_CONTRACT)


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


# --- Events and times ------------------------------------------------------------------------------------------------


def test_event_has_the_time_of_its_change_and_is_due(url: str) -> None:
    publish(url, variant())
    assert sql(url, "select created_at, lease_until, attempts from outbox") == [(microseconds(AT), 0, 0)]


def test_instant_keeps_microseconds() -> None:
    for at in (
        AT,
        AT + timedelta(microseconds=1),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, tzinfo=UTC),
    ):
        assert instant(microseconds(at)) == at
    assert microseconds(AT) == int(AT.timestamp()) * 1_000_000 + 250_000
    elsewhere = AT.astimezone(datetime.fromisoformat("2026-01-01T00:00:00+05:30").tzinfo)
    assert microseconds(elsewhere) == microseconds(AT)


def stamps(url: str, pcid: PCID = CAR) -> list[int]:
    return [at for (at,) in sql(url, "select created_at from outbox where pcid = ? order by rev", pcid)]


def test_stamps_of_a_vehicle_only_increase(url: str) -> None:
    publish(url, variant(FIRST), now=AT)
    publish(url, variant(SECOND_CONTRACT), now=AT - SECOND)
    gone = write(url, contracts.withdraw(FIRST, AT - timedelta(hours=23)))
    first = microseconds(AT)
    assert stamps(url) == [first, first + 1, first + 2]
    assert microseconds(gone.at) == first + 2
    (left,) = read(url, contracts.by_vehicle(CAR))
    assert microseconds(left.created_at) == microseconds(left.updated_at) == first + 1
    publish(url, variant(THIRD), now=AT + SECOND)
    assert stamps(url)[-1] == microseconds(AT + SECOND)
    assert broken_invariants(url) == []


def test_stamp_more_than_a_day_ahead_is_ignored(url: str) -> None:
    publish(url, variant(FIRST), now=AT + timedelta(days=400))
    publish(url, variant(SECOND_CONTRACT), now=AT)
    assert stamps(url)[1] == microseconds(AT)


def test_stamp_is_read_again_after_a_wait_for_the_lock(url: str) -> None:
    times = [AT, AT + SECOND, AT + SECOND]
    publish(url, variant())
    write(url, contracts.withdraw(FIRST, lambda: times.pop(0)))
    assert stamps(url)[1] == microseconds(AT + SECOND)
    assert sql(url, "select stamped_at from vehicle") == [(microseconds(AT + SECOND),)]


def test_move_has_a_later_stamp_at_both_vehicles(url: str) -> None:
    publish(url, variant(FIRST, CAR), now=AT + SECOND)
    publish(url, variant(SECOND_CONTRACT, OTHER_CAR), now=AT + 2 * SECOND)
    moved = publish(url, variant(FIRST, OTHER_CAR), now=AT)
    assert stamps(url, CAR)[-1] == microseconds(AT + SECOND) + 1
    assert stamps(url, OTHER_CAR)[-1] == microseconds(moved.at) == microseconds(AT + 2 * SECOND) + 1


# --- Limits ----------------------------------------------------------------------------------------------------------

RULES = VehicleRules(max_contracts=3, max_contracts_of_provider=2)


def test_publish_at_the_limit_accepts_replacements_only(url: str) -> None:
    for emaid in (FIRST, SECOND_CONTRACT, FOREIGN):
        write(url, contracts.publish(variant(emaid), AT, RULES))
    write(url, contracts.publish(variant(THIRD, OTHER_CAR), AT, RULES))
    before = sql(url, "select * from vehicle order by pcid"), sql(url, "select count(*) from outbox")
    for emaid, of in ((THIRD, "2 contracts of this provider"), (FOREIGN_TOO, "as many contracts as this pool keeps")):
        with pytest.raises(LimitExceeded, match=of):
            write(url, contracts.publish(variant(emaid), AT, RULES))
    assert (sql(url, "select * from vehicle order by pcid"), sql(url, "select count(*) from outbox")) == before
    assert [each.pcid for each in read(url, contracts.by_emaid(THIRD))] == [OTHER_CAR], "a refused move moves nothing"
    write(url, contracts.publish(variant(FIRST), AT, RULES))
    write(url, contracts.publish(variant(FIRST, namespace=Namespace.ISO20), AT, RULES))
    write(url, contracts.publish(variant(FIRST, OTHER_CAR), AT, RULES))  # A move out makes room.
    write(url, contracts.publish(variant(FOREIGN_TOO), AT, RULES))
    assert broken_invariants(url) == []


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
    publish(url, variant(FOREIGN))
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


# --- Locks -----------------------------------------------------------------------------------------------------------


def recorded(change: Query[Any], seen: list[tuple[str, str]]) -> Query[Any]:
    """The change, with the first words of each statement and its first parameter written down."""
    statement = next(change)
    try:
        while True:
            seen.append((" ".join(statement[0].split()[:3]), str(statement[1][0])))
            statement = change.send((yield statement))
    except StopIteration as stop:
        return stop.value


@pytest.mark.parametrize(("old", "new"), [(CAR, OTHER_CAR), (OTHER_CAR, CAR)])
def test_move_locks_the_emaid_then_both_vehicles_in_order(url: str, old: PCID, new: PCID) -> None:
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
