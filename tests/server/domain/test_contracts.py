"""Selection of contracts for a vehicle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ccp.errors import NoContract, NotFound, NothingDeliverable
from ccp.ids import EMAID, Namespace
from ccp.server.domain.contracts import NoDefaultPolicy, RootMatch, SignedContract, select_for_iso2, select_for_iso20
from tests.server.storage.made import OTHER_ROOT, ROOT, variant

AT = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
ISO2, ISO20 = Namespace.ISO2, Namespace.ISO20
LENIENT, STRICT = RootMatch.LENIENT, RootMatch.STRICT
SOLE, NONE = NoDefaultPolicy.SOLE, NoDefaultPolicy.NONE

NO_CONTRACT = "No contract is stored for the vehicle."
WRONG_EDITION = "No contract of the vehicle is signed for its version of ISO 15118."
NOT_NOW = "No contract of the vehicle is valid now."
NOT_LISTED = "No contract of the vehicle is valid now and signed under a V2G root that it lists."
DEFAULT_CANNOT = "The default contract of the vehicle cannot be delivered now."
NO_DEFAULT = "None of the vehicle's contracts is its default."
NONE_WANTED = "The vehicle asks for no contract certificate chain."


def emaid(letter: str) -> EMAID:
    return EMAID(f"DEEXAC0000000{letter}")


def made(letter: str, namespace: Namespace = ISO2, **changes: Any) -> SignedContract:
    """A contract named by a letter, which is its response too."""
    return variant(emaid(letter), namespace=namespace, response=letter.encode(), **changes)


EXPIRED = {"valid_from": AT - 2 * DAY, "valid_to": AT - DAY}
FUTURE = {"valid_from": AT + DAY, "valid_to": AT + 2 * DAY}
DEFAULT = {"is_default": True}
OTHER = {"root_fingerprint": OTHER_ROOT}


def lists(*roots: str) -> Callable[[SignedContract], bool]:
    return lambda contract: contract.root_fingerprint in roots


def only(letters: str) -> Callable[[SignedContract], bool]:
    """Deliverable contracts by their letters: the others are stale or revoked."""
    return lambda contract: contract.response.decode() in letters


def updated(days: int) -> dict[str, datetime]:
    return {"updated_at": AT - 100 * DAY + days * DAY}


def created(days: int) -> dict[str, datetime]:
    return {"created_at": AT - 100 * DAY + days * DAY}


BOTH = lists(ROOT, OTHER_ROOT)


@dataclass
class One:
    """expected: the response of the contract that is chosen, or the sentence of the refusal."""

    title: str
    stored: Sequence[SignedContract]
    expected: str
    listed: Callable[[SignedContract], bool] = BOTH
    no_default: NoDefaultPolicy = SOLE
    root_match: RootMatch = LENIENT
    good: Callable[[SignedContract], bool] = lambda contract: True


A, B = made("A"), made("B")
DEFAULT_A, DEFAULT_B = made("A", **DEFAULT), made("B", **DEFAULT)

ONE = [
    One("nothing stored", [], NO_CONTRACT),
    One("the default", [A, DEFAULT_B], "B"),
    One("the default whatever its place", [DEFAULT_A, B], "A"),
    One("the default under the policy none too", [DEFAULT_A, B], "A", no_default=NONE),
    One("the only one without a default", [A], "A"),
    One("the only one without a default, policy none", [A], NO_DEFAULT, no_default=NONE),
    One("two without a default", [A, B], NO_DEFAULT),
    One("two without a default, policy none", [A, B], NO_DEFAULT, no_default=NONE),
    One("the only one that is valid", [A, made("B", **EXPIRED)], "A"),
    One("expired default alone", [made("A", **DEFAULT, **EXPIRED)], NOT_NOW),
    One("expired default beside a valid one", [made("A", **DEFAULT, **EXPIRED), B], "B"),
    One("expired default, policy none", [made("A", **DEFAULT, **EXPIRED), B], DEFAULT_CANNOT, no_default=NONE),
    One("expired default beside two valid ones", [made("A", **DEFAULT, **EXPIRED), B, made("C")], DEFAULT_CANNOT),
    One("default that is not valid yet beside a valid one", [made("A", **DEFAULT, **FUTURE), B], "B"),
    One("undeliverable default beside a valid one", [DEFAULT_A, B], "B", good=only("B")),
    One("undeliverable default beside two valid ones", [DEFAULT_A, B, made("C")], DEFAULT_CANNOT, good=only("BC")),
    One("undeliverable default, policy none", [DEFAULT_A, B], DEFAULT_CANNOT, good=only("B"), no_default=NONE),
    One("expired", [made("A", **EXPIRED)], NOT_NOW),
    One("not valid yet", [made("A", **FUTURE)], NOT_NOW),
    One("valid from this second", [made("A", valid_from=AT, valid_to=AT + DAY)], "A"),
    One("valid to this second", [made("A", valid_from=AT - DAY, valid_to=AT)], "A"),
    One("ended a second ago", [made("A", valid_from=AT - DAY, valid_to=AT - timedelta(seconds=1))], NOT_NOW),
    One("the other edition alone", [made("A", ISO20)], WRONG_EDITION),
    One("the other edition alone, default", [made("A", ISO20, **DEFAULT)], WRONG_EDITION),
    One("a default of the other edition only", [made("A", ISO20, **DEFAULT), B], "B"),
    One("a default of the other edition only beside two", [made("A", ISO20, **DEFAULT), B, made("C")], DEFAULT_CANNOT),
    One("default of the other edition, policy none", [made("A", ISO20, **DEFAULT), B], DEFAULT_CANNOT, no_default=NONE),
    One("both editions of the default", [made("A", ISO20, **DEFAULT), DEFAULT_A, B], "A"),
    One("a root that is not listed, lenient", [DEFAULT_A], "A", lists()),
    One("a root that is not listed, strict", [DEFAULT_A], NOT_LISTED, lists(), root_match=STRICT),
    One("the only one that is listed, strict", [A, made("B", **OTHER)], "B", lists(OTHER_ROOT), root_match=STRICT),
    One("the only one that is listed, lenient", [A, made("B", **OTHER)], NO_DEFAULT, lists(OTHER_ROOT)),
    One(
        "a default that is not listed beside one that is, strict",
        [DEFAULT_A, made("B", **OTHER)], "B", lists(OTHER_ROOT), root_match=STRICT,
    ),
    One("an expired one that is listed, strict", [made("A", **EXPIRED)], NOT_NOW, root_match=STRICT),
]  # fmt: skip


@pytest.mark.parametrize("case", ONE, ids=lambda case: case.title)
@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
def test_iso2_vehicle_gets_its_default_contract_or_is_told_why_not(case: One, turned: bool) -> None:
    def choose() -> SignedContract:
        stored = list(reversed(case.stored)) if turned else list(case.stored)
        return select_for_iso2(
            stored,
            AT,
            root_listed=case.listed,
            deliverable=case.good,
            no_default=case.no_default,
            root_match=case.root_match,
        )

    if len(case.expected) == 1:
        assert choose().response.decode() == case.expected
    else:
        with pytest.raises(NotFound) as caught:
            choose()
        assert str(caught.value) == case.expected
        assert type(caught.value) is (NoContract if case.expected == NO_CONTRACT else NothingDeliverable)


def with_response(contract: SignedContract, response: str, **changes: Any) -> SignedContract:
    return variant(contract.emaid, namespace=contract.namespace, **{"response": response.encode(), **changes})


OLD_ROOT = with_response(A, "old", **updated(1), **DEFAULT)
NEW_OTHER = with_response(A, "new other", **updated(2), **OTHER, **DEFAULT)
NEWEST_EXPIRED = with_response(
    A, "newest expired", **updated(3), root_fingerprint="0" * 64, **EXPIRED, **DEFAULT
)  # fmt: skip


@pytest.mark.parametrize(
    ("listed", "root_match", "expected"),
    [
        (lists(ROOT), LENIENT, "old"),
        (lists(ROOT), STRICT, "old"),
        (lists(OTHER_ROOT), STRICT, "new other"),
        (lists(ROOT, OTHER_ROOT), STRICT, "new other"),
        (lists(), LENIENT, "new other"),
        (lists("0" * 64), LENIENT, "new other"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_select_for_iso2_takes_the_newest_valid_variant_with_a_listed_root(
    listed: Callable[[SignedContract], bool], root_match: RootMatch, expected: str, turned: bool
) -> None:
    stored = [OLD_ROOT, NEW_OTHER, NEWEST_EXPIRED]
    stored = stored[::-1] if turned else stored
    assert select_for_iso2(stored, AT, root_listed=listed, root_match=root_match).response.decode() == expected


# --- ISO 15118-20 ----------------------------------------------------------------------------------------------------


def twenty(letter: str, days: int = 0, **changes: Any) -> SignedContract:
    return made(letter, ISO20, **created(days), **changes)


OLD, MIDDLE, YOUNG = twenty("A", 1), twenty("B", 2), twenty("C", 3)
THREE = [YOUNG, OLD, MIDDLE]
THREE_WITH_DEFAULT = [twenty("C", 3, **DEFAULT), OLD, MIDDLE]


@dataclass
class Many:
    """expected: the letters in order, or the sentence of the refusal. prioritised: letters."""

    title: str
    stored: Sequence[SignedContract]
    expected: str
    maximum: int = 10
    prioritised: str = ""
    listed: Callable[[SignedContract], bool] = BOTH
    root_match: RootMatch = LENIENT


MANY = [
    Many("the oldest first", THREE, "ABC"),
    Many("the default before the oldest", THREE_WITH_DEFAULT, "CAB"),
    Many("what the vehicle prioritises before the default", THREE_WITH_DEFAULT, "BCA", prioritised="B"),
    Many("prioritised in the vehicle's order", THREE_WITH_DEFAULT, "BAC", prioritised="BA"),
    Many("all prioritised", THREE_WITH_DEFAULT, "BAC", prioritised="BAC"),
    Many("unknown ones prioritised", THREE, "CAB", prioritised="XCYZ"),
    Many("prioritised twice counts where it stands first", THREE, "CBA", prioritised="CBC"),
    Many("no more than the vehicle takes", THREE_WITH_DEFAULT, "CA", maximum=2),
    Many("one", THREE, "A", maximum=1),
    Many("one prioritised", THREE, "C", maximum=1, prioritised="C"),
    Many("more than there are", THREE, "ABC", maximum=255),
    Many("none wanted", THREE, NONE_WANTED, maximum=0),
    Many("nothing stored and none wanted", [], NO_CONTRACT, maximum=0),
    Many("nothing stored", [], NO_CONTRACT),
    Many("an expired one is left out", [twenty("A", 1, **EXPIRED), MIDDLE], "B"),
    Many("a prioritised one that is expired is left out", [twenty("A", 1, **EXPIRED), MIDDLE], "B", prioritised="A"),
    Many("an expired default is left out", [twenty("A", 1, **DEFAULT, **EXPIRED), MIDDLE], "B"),
    Many("all expired", [twenty("A", 1, **EXPIRED)], NOT_NOW),
    Many("not valid yet", [twenty("A", 1, **FUTURE)], NOT_NOW),
    Many("the other edition alone", [DEFAULT_A], WRONG_EDITION),
    Many("the other edition is left out", [DEFAULT_A, MIDDLE], "B"),
    Many("roots that are not listed, lenient", THREE, "ABC", listed=lists()),
    Many("roots that are not listed, strict", THREE, NOT_LISTED, listed=lists(), root_match=STRICT),
    Many("one is listed, strict", [OLD, twenty("B", 2, **OTHER)], "B", listed=lists(OTHER_ROOT), root_match=STRICT),
    Many("two of the same age in order of EMAIDs", [twenty("B", 1), twenty("A", 1)], "AB"),
]


@pytest.mark.parametrize("case", MANY, ids=lambda case: case.title)
@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
def test_iso20_vehicle_gets_its_contracts_in_order_with_the_number_left(case: Many, turned: bool) -> None:
    def choose() -> list[tuple[SignedContract, int]]:
        return select_for_iso20(
            list(reversed(case.stored)) if turned else list(case.stored),
            AT,
            root_listed=case.listed,
            prioritized_emaids=map(emaid, case.prioritised),
            max_chains=case.maximum,
            root_match=case.root_match,
        )

    if len(case.expected) <= 3:
        chosen = choose()
        assert "".join(contract.response.decode() for contract, _ in chosen) == case.expected
        assert [left for _, left in chosen] == list(range(len(chosen)))[::-1]
    else:
        with pytest.raises(NotFound) as caught:
            choose()
        assert str(caught.value) == case.expected
        assert type(caught.value) is (NoContract if case.expected == NO_CONTRACT else NothingDeliverable)


def test_contracts_are_delivered_once_each_in_their_best_variant() -> None:
    stored = [
        with_response(OLD, "a", **updated(1)),
        with_response(OLD, "b", **updated(2), **OTHER),
        with_response(MIDDLE, "c", **updated(1)),
    ]
    chosen = select_for_iso20(stored, AT, root_listed=lists(ROOT), max_chains=9)
    assert [contract.response for contract, _ in chosen] == [b"a", b"c"]
    chosen = select_for_iso20(stored, AT, root_listed=lists(), max_chains=9)
    assert [contract.response for contract, _ in chosen] == [b"b", b"c"]


def test_select_for_iso20_changes_nothing_of_what_is_stored() -> None:
    stored = [*THREE_WITH_DEFAULT, DEFAULT_A]
    before = list(stored)
    select_for_iso20(stored, AT, root_listed=lists(), prioritized_emaids=[emaid("B")], max_chains=2)
    select_for_iso2(stored, AT, root_listed=lists())
    assert stored == before


def test_contract_is_as_old_as_its_first_variant_whichever_is_delivered() -> None:
    stored = [
        with_response(OLD, "expired first variant", **created(0), **EXPIRED, **OTHER),
        with_response(OLD, "a", **created(9)),
        with_response(MIDDLE, "b", **created(5)),
    ]
    chosen = select_for_iso20(stored, AT, root_listed=lists(ROOT), max_chains=9)
    assert [contract.response for contract, _ in chosen] == [b"a", b"b"]
