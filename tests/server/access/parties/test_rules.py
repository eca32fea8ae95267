"""Parsing of parties, and the rules for names, roles and ids. Pure."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ccp.errors import FieldError, MismatchError
from ccp.ids import WMI, OperatorId, ProviderId
from ccp.server.domain.parties import (
    NAME_LENGTH,
    Party,
    PartyRole,
    check_party,
    create_party,
    derive_client_id,
    fold_name,
    parse_client_id,
    parse_fields,
    parse_name,
)

NAMES = st.text(max_size=NAME_LENGTH + 5)
PARTIES = st.builds(
    Party,
    st.just("client"),
    st.just("Party"),
    st.frozensets(st.sampled_from(PartyRole)),
    st.frozensets(st.just(ProviderId("DEEXA"))),
    st.booleans(),
    st.frozensets(st.just(WMI("WEX"))),
    st.frozensets(st.just(OperatorId("DEEXC"))),
    st.booleans(),
)


# --- Client ids ------------------------------------------------------------------------------------------------------


@given(st.one_of(st.text(max_size=70), st.from_regex(r"[!-~]{0,70}", fullmatch=True)))
def test_client_id_needs_no_escaping_in_urls_headers_and_http_basic(text: str) -> None:
    try:
        assert parse_client_id(text) == text
    except FieldError:
        return
    assert quote(text, safe="") == text
    assert text.isascii()
    assert ":" not in text
    assert text not in (".", "..")
    assert 1 <= len(text) <= 64


@pytest.mark.parametrize("text", ["a", "A1", "example-cpo", "other_emsp", "3f.example.org", "a" * 64, "a.", "0_-."])
def test_client_ids_that_operators_use_are_accepted(text: str) -> None:
    assert parse_client_id(text) == text


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "-a", "_a", "a b", "a:b", "a/b", "a%41", "a~b", "a\n", "\na", "a\r\nX: y", "a\0", "ä", "ａ", "١",
     "cli:root", "a" * 65],
)  # fmt: skip
def test_client_ids_that_are_ambiguous_are_refused(text: str) -> None:
    with pytest.raises(FieldError, match=r"^client_id : must match "):
        parse_client_id(text)


@given(NAMES)
@example("Unknown")
def test_client_id_made_from_any_name_is_one(name: str) -> None:
    try:
        made_up = derive_client_id(name)
    except FieldError:
        return
    assert parse_client_id(made_up) == made_up == made_up.lower()


@pytest.mark.parametrize(
    ("name", "client_id"),
    [
        ("Example eMSP [DE]", "example-emsp-de"),
        ("Mobilité Éxemple", "mobilite-exemple"),
        ("Beispiel-Stromstraße 7 GmbH", "beispiel-stromstrae-7-gmbh"),
        ("x" * 63 + " y", "x" * 63),
    ],
)
def test_client_id_tells_whose_it_is(name: str, client_id: str) -> None:
    assert derive_client_id(name) == client_id


# --- Names -----------------------------------------------------------------------------------------------------------


@given(NAMES)
def test_name_that_is_taken_is_printable_short_and_read_the_same_again(text: str) -> None:
    try:
        name = parse_name(text)
    except FieldError:
        return
    assert name.isprintable()
    assert 1 <= len(name) <= NAME_LENGTH
    assert name == name.strip()
    assert "  " not in name
    assert parse_name(name) == name
    assert unicodedata.is_normalized("NFC", name)
    assert name.encode()


@pytest.mark.parametrize(
    "text",
    ["", "   ", "…", "A\nB", "A\tB", "A\0", "\x1b[31mA", "A\u202eB", "A\u200bB", "A\u00a0B", "A\u2028B", "A\ud800",
     "A\ue000", "A" * 101],
)  # fmt: skip
def test_name_that_could_write_to_a_terminal_or_hide_something_is_refused(text: str) -> None:
    with pytest.raises(FieldError, match=r"^name : must be at most 100 printable characters"):
        parse_name(text)


def test_party_name_blanks_do_not_count() -> None:
    assert parse_name("  Example   eMSP ") == "Example eMSP"
    assert parse_name("A" * 100 + "    ") == "A" * 100


@pytest.mark.parametrize(
    ("one", "other"),
    [("Example", "EXAMPLE"), ("Straße", "STRASSE"), ("Ｅxample", "example"), ("é", "e\u0301"), ("ﬁrst", "First")],
)
def test_names_that_people_take_for_the_same_are_the_same(one: str, other: str) -> None:
    assert fold_name(one) == fold_name(other)


# --- Fields as they are given ----------------------------------------------------------------------------------------


def test_errors_of_a_party_are_reported_together() -> None:
    given_fields: dict[str, Any] = {
        "name": "",
        "client_id": ":",
        "provider_ids": ["DEEXA", "D", "é\0\n"],
        "wmis": ["W"],
    }
    with pytest.raises(FieldError) as caught:
        parse_fields(given_fields)
    name, client_id, first, second, wmi = caught.value.messages
    assert name.startswith("name : ")
    assert client_id.startswith("client_id : ")
    assert first.startswith('provider id "D" : must match')
    assert second.startswith(r'provider id "\u00e9\u0000\n" : must match')
    assert wmi.startswith('WMI "W" : must match')


def test_ids_are_taken_in_any_way_they_are_written_and_once() -> None:
    fields = parse_fields({"provider_ids": ["de-exa", "DEEXA"], "operator_ids": ["de*exc"], "wmis": ["wex"]})
    assert fields == {"provider_ids": {"DEEXA"}, "operator_ids": {"DEEXC"}, "wmis": {"WEX"}}


def test_party_is_made_of_texts() -> None:
    party = create_party({"name": " Example ", "roles": [PartyRole.OEM], "wmis": ["wex"]})
    assert party == Party("example", "Example", frozenset({PartyRole.OEM}), wmis=frozenset({WMI("WEX")}))


# --- Roles and ids ---------------------------------------------------------------------------------------------------


@given(PARTIES)
def test_check_party_accepts_exactly_the_ids_that_its_roles_use(party: Party) -> None:
    """The rules, written down a second time."""
    roles = party.roles
    needs = [
        (PartyRole.EMSP, bool(party.provider_ids)),
        (PartyRole.OEM, bool(party.wmis)),
        (PartyRole.CPS, bool(party.provider_ids) or party.all_providers),
    ]
    uses = [
        (party.provider_ids, {PartyRole.EMSP, PartyRole.CPS}), (party.all_providers, {PartyRole.CPS}),
        (party.wmis, {PartyRole.OEM}),
        (party.operator_ids, {PartyRole.CPO}),
    ]  # fmt: skip
    good = all(roles & users for ids, users in uses if ids)
    if party.enabled:
        good = good and bool(roles) and all(has for role, has in needs if role in roles)
    if good:
        check_party(party)
    else:
        with pytest.raises(MismatchError):
            check_party(party)


@given(PARTIES, st.frozensets(st.sampled_from(PartyRole)))
def test_role_removal_removes_ids_that_no_other_role_uses(party: Party, taken: frozenset[PartyRole]) -> None:
    left = party.without_roles(taken)
    assert left.roles == party.roles - taken
    check_party(replace(left, enabled=False))
    for field, users in {
        "provider_ids": {PartyRole.EMSP, PartyRole.CPS}, "all_providers": {PartyRole.CPS}, "wmis": {PartyRole.OEM},
        "operator_ids": {PartyRole.CPO},
    }.items():  # fmt: skip
        if left.roles & users:
            assert getattr(left, field) == getattr(party, field)
