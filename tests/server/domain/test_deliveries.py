"""Which of several contracts a repeated request gets, and how a refusal is worded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccp import errors
from ccp.errors import CCPError, TooManyRequests
from ccp.ids import EMAID
from ccp.schemas.ocpp import MAX_REASON_CODE, OCPPVersion, edition_of
from ccp.server.domain.deliveries import HandedOut, next_turn, refusal

A, B, C, D = (EMAID.parse(f"DEEXA{letter}00000001") for letter in "ABCD")


def round_of(candidates: list[EMAID], max_chains: int, times: int) -> list[tuple[EMAID, int]]:
    handed_out: tuple[HandedOut, ...] = ()
    found = []
    for _ in range(times):
        emaid, remaining, handed_out = next_turn(candidates, handed_out, max_chains)
        found.append((emaid, remaining))
    return found


def test_next_turn_goes_through_the_contracts_and_begins_again() -> None:
    assert round_of([A, B, C], 3, 5) == [(A, 2), (B, 1), (C, 0), (A, 2), (B, 1)]


def test_next_turn_hands_out_no_more_than_the_vehicle_takes() -> None:
    assert round_of([A, B, C], 2, 3) == [(A, 1), (B, 0), (A, 1)]
    assert next_turn([B, C, D], [HandedOut(A, None)], 2).remaining == 0


def test_next_turn_passes_over_removed_contracts_and_finds_added_ones() -> None:
    assert next_turn([A, C, D], [HandedOut(A, None), HandedOut(B, None)], 4)[:2] == (C, 1)
    assert next_turn([C, A], [HandedOut(A, None)], 4)[:2] == (C, 0)


def test_next_turn_follows_a_changed_default() -> None:
    assert next_turn([C, A, B], [HandedOut(A, None)], 3)[:2] == (C, 1)


def test_next_turn_gives_a_key_its_contract_again() -> None:
    first = next_turn([A, B], [], 2, "one")
    second = next_turn([A, B], first.handed_out, 2, "two")
    assert (first.emaid, second.emaid) == (A, B)
    assert next_turn([A, B], second.handed_out, 2, "two") == second
    assert next_turn([A, B], second.handed_out, 2, "one")[:2] == (A, 0)
    # Its contract is gone: the next one.
    assert next_turn([B, C], first.handed_out, 3, "one")[:2] == (B, 1)


@given(st.integers(1, 16), st.integers(1, 16), st.integers(0, 5))
def test_next_turn_repeats_none_and_skips_none_in_a_round(count: int, max_chains: int, rounds: int) -> None:
    candidates = [EMAID.parse(f"DEEXAT{number:08d}") for number in range(count)]
    length = min(count, max_chains)
    found = round_of(candidates, max_chains, length * rounds)
    assert [emaid for emaid, _ in found] == candidates[:length] * rounds
    assert [remaining for _, remaining in found] == list(range(length - 1, -1, -1)) * rounds


ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CCPError)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_refusal_fits_the_schema_for_every_error(kind: type[CCPError]) -> None:
    text = "A sentence.\n" * 200
    error = TooManyRequests(text, retry_after=1) if kind is TooManyRequests else kind(text)
    for version in OCPPVersion:
        code, info = refusal(error, version.limits.info)
        assert 0 < len(code) <= MAX_REASON_CODE
        assert len(info) == version.limits.info
        assert info.endswith("...")
        assert info.isprintable()


@pytest.mark.parametrize("text", ["15118", "15118-3", "15118:200:x", "urn:din:70121", "2", "iso-20", "ISO 15118:2013"])
def test_edition_of_knows_what_it_does_not_know(text: str) -> None:
    assert edition_of(text) is None
