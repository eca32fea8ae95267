"""Default contracts, contesting providers, and the limits on a vehicle's contracts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ccp.errors import LimitExceeded
from ccp.ids import EMAID, ProviderId
from ccp.server.domain.default_contracts import (
    AutomaticDefault,
    Default,
    VehicleRules,
    check_capacity,
    contesting_providers,
    default_after_publication,
)

A1, A2, B1, B2, C1 = (
    EMAID(f"{provider}C0000000{number}")
    for provider, number in (("DEEXA", 1), ("DEEXA", 2), ("NLEXB", 1), ("NLEXB", 2), ("FREXC", 1))
)
A, B = ProviderId("DEEXA"), ProviderId("NLEXB")
NOTHING = Default()
VACANT_A, CHOSEN_VACANT_A = Default(None, A), Default(None, A, chosen=True)
AUTOMATIC_A, CHOSEN_A = Default(A1, A), Default(A1, A, chosen=True)
FILLED_BY_B, CHOSEN_FILLED_BY_B = Default(B1, A), Default(B1, A, chosen=True)
CHOSEN_B = Default(B1, B, chosen=True)
NONE = AutomaticDefault.NONE


@dataclass
class Case:
    title: str
    before: Default
    emaid: EMAID
    after: Default
    first: bool = False
    automatic: AutomaticDefault = AutomaticDefault.FIRST
    wanted: bool | None = None


CASES = [
    Case("the first contract", NOTHING, A1, AUTOMATIC_A, first=True),
    Case("the first contract where none is automatic", NOTHING, A1, NOTHING, first=True, automatic=NONE),
    Case("not the first contract", NOTHING, A1, NOTHING),
    Case("the default itself again", AUTOMATIC_A, A1, AUTOMATIC_A),
    Case("another contract of the default's provider", AUTOMATIC_A, A2, AUTOMATIC_A),
    Case("another provider's contract", AUTOMATIC_A, B1, AUTOMATIC_A),
    Case("renewed by DELETE and PUT", VACANT_A, A2, Default(A2, A)),
    Case("renewed while another provider is there", VACANT_A, A1, AUTOMATIC_A, first=False),
    Case("another provider while the default is vacant", VACANT_A, B1, VACANT_A),
    Case("another provider alone while the default is vacant", VACANT_A, B1, FILLED_BY_B, first=True),
    Case("the remembered provider takes it back from who filled the gap", FILLED_BY_B, A2, Default(A2, A)),
    Case("who filled the gap publishes again", FILLED_BY_B, B2, FILLED_BY_B),
    Case("a third provider", FILLED_BY_B, C1, FILLED_BY_B),
    Case("the manufacturer chose another provider meanwhile", CHOSEN_B, A1, CHOSEN_B),
    Case("a chosen contract renewed", CHOSEN_VACANT_A, A2, Default(A2, A, chosen=True)),
    Case("a chosen contract renewed where none is automatic", CHOSEN_VACANT_A, A2, Default(A2, A, chosen=True),
         automatic=NONE),
    Case("an automatic one renewed where none is automatic", VACANT_A, A2, VACANT_A, automatic=NONE),
    Case("a choice is not lost when the gap was filled", CHOSEN_FILLED_BY_B, A1, CHOSEN_A),
    Case("imported as default", NOTHING, A1, AUTOMATIC_A, wanted=True),
    Case("imported as default where none is automatic", NOTHING, A1, CHOSEN_A, automatic=NONE, wanted=True),
    Case("imported as default of a vehicle that has one", CHOSEN_B, A1, CHOSEN_B, wanted=True),
    Case("imported as another provider's default", VACANT_A, B1, FILLED_BY_B, wanted=True),
    Case("imported as no default", NOTHING, A1, NOTHING, first=True, wanted=False),
    Case("imported as no default of the remembered provider", VACANT_A, A1, VACANT_A, first=True, wanted=False),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_default_after_a_publication(case: Case) -> None:
    after = default_after_publication(
        case.before, case.emaid, first=case.first, automatic=case.automatic, wanted=case.wanted
    )
    assert after == case.after


@pytest.mark.parametrize(
    ("default", "automatic", "contested_by"),
    [
        (NOTHING, False, set()),
        (VACANT_A, False, set()),
        (AUTOMATIC_A, True, {B}),
        (CHOSEN_A, False, set()),
        (CHOSEN_B, False, set()),
        (CHOSEN_FILLED_BY_B, True, {A}),
    ],
)
def test_vehicle_is_contested_while_its_default_is_automatic(
    default: Default, automatic: bool, contested_by: set[ProviderId]
) -> None:
    assert default.automatic is automatic
    assert contesting_providers(default, [A1, A2, B1, B2]) == contested_by
    assert contesting_providers(default, [emaid for emaid in (A1, B1) if default.emaid == emaid]) == set()


def test_check_capacity_applies_both_limits_and_exempts_the_stored_provider() -> None:
    rules = VehicleRules(max_contracts=3, max_contracts_of_provider=2)
    check_capacity(NOTHING, A1, [], rules)
    check_capacity(NOTHING, A1, [A2, B1], rules)
    with pytest.raises(LimitExceeded, match="has 2 contracts of this provider already"):
        check_capacity(NOTHING, EMAID("DEEXAC00000003"), [A1, A2], rules)
    with pytest.raises(LimitExceeded, match="as many contracts as this pool keeps for one vehicle"):
        check_capacity(VACANT_A, C1, [B1, B2, A2], rules)
    check_capacity(VACANT_A, A1, [B1, B2, C1], rules)
    with pytest.raises(LimitExceeded, match="of this provider"):
        check_capacity(VACANT_A, EMAID("DEEXAC00000003"), [B1, A1, A2], rules)
