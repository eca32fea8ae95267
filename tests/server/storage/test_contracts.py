"""Contract queries: effects of each write on vehicles, contracts and events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ccp.errors import LimitExceeded, NotFound
from ccp.ids import EMAID, PCID, Namespace
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.default_contracts import VehicleRules
from ccp.server.storage.queries import contracts
from ccp.server.storage.queries import purging as purging_queries
from ccp.server.storage.queries.contracts import Published, instant, microseconds
from tests.server.storage.contract_changes import UNKNOWN, default_of, events, publish
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
    read,
    sql,
    variant,
    write,
)

FOREIGN, FOREIGN_TOO = EMAID("NLEXBS00000001"), EMAID("NLEXBS00000002")


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
def test_contract_that_moves_writes_a_deleted_and_a_created_event(url: str, old: PCID, new: PCID) -> None:
    publish(url, variant(pcid=old))
    publish(url, variant(pcid=new))
    assert events(url, old) == [("created", FIRST), ("deleted", FIRST)]
    assert events(url, new) == [("created", FIRST)]


def test_contract_that_moves_to_a_vehicle_with_contracts_keeps_its_default(url: str) -> None:
    publish(url, variant(FIRST, CAR), variant(SECOND_CONTRACT, CAR), variant(THIRD, OTHER_CAR))
    publish(url, variant(FIRST, OTHER_CAR))
    assert default_of(url, CAR) is None
    assert default_of(url, OTHER_CAR) == THIRD


def test_contract_that_moves_and_is_not_the_default_keeps_the_default(url: str) -> None:
    publish(url, variant(FIRST, CAR), variant(SECOND_CONTRACT, CAR))
    publish(url, variant(SECOND_CONTRACT, OTHER_CAR))
    assert default_of(url, CAR) == FIRST
    assert default_of(url, OTHER_CAR) == SECOND_CONTRACT


def test_contract_that_moves_there_and_back_writes_events_in_order(url: str) -> None:
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


# --- Events and times ------------------------------------------------------------------------------------------------


def test_event_has_the_time_of_its_change_and_is_due(url: str) -> None:
    publish(url, variant())
    assert sql(url, "select created_at, lease_until, attempts from outbox") == [(microseconds(AT), 0, 0)]


def test_created_at_keeps_microseconds() -> None:
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


def test_vehicle_stamps_only_increase(url: str) -> None:
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


def test_vehicle_stamp_more_than_a_day_ahead_is_ignored(url: str) -> None:
    publish(url, variant(FIRST), now=AT + timedelta(days=400))
    publish(url, variant(SECOND_CONTRACT), now=AT)
    assert stamps(url)[1] == microseconds(AT)


def test_vehicle_stamp_is_read_again_after_a_wait_for_the_lock(url: str) -> None:
    times = [AT, AT + SECOND, AT + SECOND]
    publish(url, variant())
    write(url, contracts.withdraw(FIRST, lambda: times.pop(0)))
    assert stamps(url)[1] == microseconds(AT + SECOND)
    assert sql(url, "select stamped_at from vehicle") == [(microseconds(AT + SECOND),)]


def test_vehicle_stamp_is_later_at_both_ends_of_a_move(url: str) -> None:
    publish(url, variant(FIRST, CAR), now=AT + SECOND)
    publish(url, variant(SECOND_CONTRACT, OTHER_CAR), now=AT + 2 * SECOND)
    moved = publish(url, variant(FIRST, OTHER_CAR), now=AT)
    assert stamps(url, CAR)[-1] == microseconds(AT + SECOND) + 1
    assert stamps(url, OTHER_CAR)[-1] == microseconds(moved.at) == microseconds(AT + 2 * SECOND) + 1


RULES = VehicleRules(max_contracts=3, max_contracts_of_provider=2)


# --- Limits ----------------------------------------------------------------------------------------------------------


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
