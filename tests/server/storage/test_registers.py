"""Queries for parties, trusted certificates and signing keys, and their change counters."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ccp.errors import Conflict, NotFound
from ccp.ids import WMI, OperatorId, ProviderId
from ccp.server.domain.parties import Party, PartyRole
from ccp.server.storage.queries import anchors, change_counters, parties, signing_keys
from ccp.server.storage.queries.anchors import TrustedCertificate
from ccp.server.storage.queries.parties import Secret, SecretValidity
from ccp.server.storage.queries.signing_keys import TokenKey
from tests.server.storage.made import AT, SECOND, read, sql, write


def party(name: str, *roles: PartyRole, providers: str = "", wmis: str = "", operators: str = "") -> Party:
    return Party(
        f"client-{name}",
        name,
        frozenset(roles),
        frozenset(map(ProviderId.parse, providers.split())),
        False,
        frozenset(map(WMI.parse, wmis.split())),
        frozenset(map(OperatorId.parse, operators.split())),
    )


def add(url: str, *added: Party) -> None:
    for each in added:
        write(url, parties.add(each, f"hash of {each.name}", AT))


# --- Parties ---------------------------------------------------------------------------------------------------------


def test_party_is_returned_as_added_and_listed_by_name(url: str) -> None:
    everything = Party(
        "c2", "B, with every röle", frozenset(PartyRole), frozenset({ProviderId("DEEXA"), ProviderId("NLEXB")}), True,
        frozenset({WMI("WEX")}), frozenset({OperatorId("DEEXC")}),
    )  # fmt: skip
    nothing = Party("c1", "A, without any", frozenset())
    add(url, everything, nothing)
    assert read(url, parties.list_all()) == [nothing, everything]
    assert read(url, parties.list_secret_hashes("c2", AT)) == [Secret("c2", "hash of B, with every röle")]


def test_party_name_and_client_id_are_unique(url: str) -> None:
    add(url, party("first", PartyRole.CPO))
    for other, sentence in {
        ("another", "first"): "There is a party named first already.",
        ("another", "FIRST"): "There is a party named FIRST already.",
        ("another", "Client-First"): "There is a party named Client-First already.",
        ("client-first", "another"): "The client id client-first is taken already.",
        ("CLIENT-FIRST", "another"): "The client id CLIENT-FIRST is taken already.",
        ("first", "another"): "The client id first is taken already.",
    }.items():
        with pytest.raises(Conflict) as caught:
            add(url, Party(*other, frozenset()))
        assert str(caught.value) == sentence
    assert len(read(url, parties.list_all())) == 1


@pytest.mark.parametrize("name", ["client-first", "first", "FIRST", "Client-First", "\uff26irst"])
def test_party_is_found_by_name_or_client_id_in_any_case(url: str, name: str) -> None:
    add(url, party("first", PartyRole.CPO), party("second", PartyRole.CPO))
    assert read(url, parties.get_by_name(name)).client_id == "client-first"


def test_party_names_of_an_older_release_match_exactly(url: str) -> None:
    add(url, party("first", PartyRole.CPO), party("second", PartyRole.CPO))
    sql(url, "update party set name = 'FIRST' where name = 'second'")
    assert read(url, parties.get_by_name("first")).client_id == "client-first"
    assert read(url, parties.get_by_name("FIRST")).client_id == "client-second"
    with pytest.raises(NotFound):
        read(url, parties.get_by_name("First"))


def test_party_owns_decides_who_owns_an_id(url: str) -> None:
    add(url, party("A", PartyRole.OEM, wmis="WEX"))
    sql(url, "update party set wmis = '[]'")
    with pytest.raises(Conflict, match="The WMI WEX belongs to A already"):
        add(url, party("B", PartyRole.OEM, wmis="WEX"))
    sql(url, "delete from party where name = 'A'")
    with pytest.raises(Conflict, match="The WMI WEX belongs to another party already"):
        add(url, party("B", PartyRole.OEM, wmis="WEX"))
    assert read(url, parties.list_all()) == []


def test_party_pages_have_no_gap_and_no_repetition(url: str) -> None:
    add(url, *(party(name, PartyRole.CPO) for name in "dbeac"))
    assert [p.name for p in read(url, parties.list_page("", 2))] == ["a", "b"]
    assert [p.name for p in read(url, parties.list_page("client-b", 2))] == ["c", "d"]
    assert [p.name for p in read(url, parties.list_page("client-d", 2))] == ["e"]
    assert read(url, parties.list_page("client-e", 2)) == []


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (
            party("A", PartyRole.EMSP, providers="DEEXA DEEXB"),
            party("B", PartyRole.EMSP, providers="NLEXC DEEXB"),
            "The provider id DEEXB belongs to A already.",
        ),
        (
            party("A", PartyRole.OEM, wmis="WEX"),
            party("B", PartyRole.OEM, wmis="WEX"),
            "The WMI WEX belongs to A already.",
        ),
        (
            party("A", PartyRole.EMSP, providers="DEEXA"),
            party("B", PartyRole.EMSP, PartyRole.CPS, providers="DEEXA"),
            "The provider id DEEXA belongs to A already.",
        ),
    ],
)
def test_party_with_an_owned_id_is_a_conflict(url: str, first: Party, second: Party, sentence: str) -> None:
    add(url, first)
    before = [sql(url, f"select * from {table}") for table in ("party", "party_owns", "party_secret", "change_count")]
    with pytest.raises(Conflict) as caught:
        add(url, second)
    assert str(caught.value) == sentence
    after = [sql(url, f"select * from {table}") for table in ("party", "party_owns", "party_secret", "change_count")]
    assert after == before


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (party("A", PartyRole.EMSP, providers="DEEXA"), party("B", PartyRole.CPS, providers="DEEXA")),
        (party("A", PartyRole.CPS, providers="DEEXA"), party("B", PartyRole.CPS, providers="DEEXA")),
        (party("A", PartyRole.CPS, providers="DEEXA"), party("B", PartyRole.EMSP, providers="DEEXA")),
        (party("A", PartyRole.CPO, operators="DEEXA"), party("B", PartyRole.EMSP, providers="DEEXA")),
        (party("A", PartyRole.OEM, wmis="WEX"), party("B", PartyRole.EMSP, providers="DEWEX")),
    ],
)
def test_party_may_share_ids_that_are_not_owned(url: str, first: Party, second: Party) -> None:
    add(url, first, second)
    assert len(read(url, parties.list_all())) == 2


@pytest.mark.parametrize("named_by", ["A", "client-A"])
def test_party_that_is_disabled_is_listed_and_has_no_valid_secret(url: str, named_by: str) -> None:
    add(url, party("A", PartyRole.CPO), party("B", PartyRole.CPO))
    assert write(url, parties.disable(named_by)) == "client-A"
    assert [(p.name, p.enabled) for p in read(url, parties.list_all())] == [("A", False), ("B", True)]
    assert read(url, parties.list_secret_hashes("client-A", AT)) == []
    assert len(read(url, parties.list_secret_hashes("client-B", AT))) == 1


def test_disable_is_idempotent_and_needs_a_known_party(url: str) -> None:
    add(url, party("A", PartyRole.CPO))
    for _ in range(2):
        write(url, parties.disable("A"))
    with pytest.raises(NotFound, match="There is no party named unknown"):
        write(url, parties.disable("unknown"))


def test_client_that_is_unknown_has_no_secrets(url: str) -> None:
    assert read(url, parties.list_secret_hashes("unknown", AT)) == []


def test_secrets_are_listed_newest_first(url: str) -> None:
    add(url, party("A", PartyRole.CPO))
    insert = (
        "insert into party_secret (client_id, created_at, hash) select client_id, created_at + 1, ? from party_secret"
    )
    sql(url, insert, "newer")
    assert [secret.hash for secret in read(url, parties.list_secret_hashes("client-A", AT))] == ["newer", "hash of A"]


def test_secret_is_valid_until_its_expiry_exclusive(url: str) -> None:
    add(url, party("A", PartyRole.CPO))
    life = read(url, parties.list_secrets("client-A", AT))[0]
    assert life == SecretValidity(AT, None)
    write(url, parties.rotate_secret("client-A", "newer", AT + SECOND, life, AT + 5 * SECOND))
    at_four, at_five = AT + 5 * SECOND - timedelta(microseconds=1), AT + 5 * SECOND
    assert [each.hash for each in read(url, parties.list_secret_hashes("client-A", at_four))] == ["newer", "hash of A"]
    assert read(url, parties.list_secrets("client-A", at_four)) == [
        SecretValidity(AT + SECOND, None),
        SecretValidity(AT, at_five),
    ]
    assert [each.hash for each in read(url, parties.list_secret_hashes("client-A", at_five))] == ["newer"]
    assert read(url, parties.list_secrets("client-A", at_five)) == [SecretValidity(AT + SECOND, None)]


def test_secret_rotated_after_a_clock_step_back_is_the_newest(url: str) -> None:
    add(url, party("A", PartyRole.CPO))
    (life,) = read(url, parties.list_secrets("client-A", AT))
    write(url, parties.rotate_secret("client-A", "newer", AT - 60 * SECOND, life, AT + SECOND))
    assert [each.hash for each in read(url, parties.list_secret_hashes("client-A", AT))] == ["newer", "hash of A"]


# --- Trusted certificates --------------------------------------------------------------------------------------------


def trusted(role: str, fingerprint: str = "ab" * 32, label: str = "Root", is_root: bool = True) -> TrustedCertificate:
    return TrustedCertificate(role, fingerprint, is_root, b"der", label, "root.pem", AT)


def test_anchor_is_returned_as_added(url: str) -> None:
    added = [trusted("oem", is_root=False), trusted("v2g", label="B"), trusted("v2g", "cd" * 32, label="A")]
    assert write(url, *map(anchors.add, added)) is True
    assert read(url, anchors.list_all()) == [added[0], added[2], added[1]]


def test_anchor_added_twice_changes_nothing(url: str) -> None:
    write(url, anchors.add(trusted("v2g")))
    before = read(url, change_counters.read_all())
    assert write(url, anchors.add(trusted("v2g", label="renamed"))) is False
    assert read(url, anchors.list_all()) == [trusted("v2g")]
    assert read(url, change_counters.read_all()) == before


def test_anchor_is_removed_for_one_role_or_all(url: str) -> None:
    write(url, *(anchors.add(trusted(role)) for role in ("v2g", "emsp", "oem")), anchors.add(trusted("v2g", "cd" * 32)))
    assert write(url, anchors.remove("ab" * 32, "oem", now=AT)) == ["oem"]
    assert write(url, anchors.remove("ab" * 32, now=AT)) == ["emsp", "v2g"]
    assert [entry.fingerprint for entry in read(url, anchors.list_all())] == ["cd" * 32]


@pytest.mark.parametrize(("fingerprint", "role"), [("cd" * 32, None), ("ab" * 32, "oem")])
def test_anchor_that_is_not_trusted_cannot_be_removed(url: str, fingerprint: str, role: str | None) -> None:
    write(url, anchors.add(trusted("v2g")))
    before = read(url, change_counters.read_all())
    with pytest.raises(NotFound, match=f"No certificate with the fingerprint {fingerprint} is trusted"):
        write(url, anchors.remove(fingerprint, role, now=AT))
    assert read(url, change_counters.read_all()) == before
    assert len(read(url, anchors.list_all())) == 1


# --- Keys ------------------------------------------------------------------------------------------------------------


def test_signing_key_that_was_stored_first_stays(url: str) -> None:
    first = TokenKey("first", "private", AT)
    write(url, signing_keys.ensure(first), signing_keys.ensure(TokenKey("second", "other", AT + SECOND)))
    assert read(url, signing_keys.list_all()) == [first]


def test_signing_keys_are_listed_newest_first(url: str) -> None:
    write(url, signing_keys.ensure(TokenKey("old", "private", AT)))
    sql(
        url,
        "insert into token_key (kid, private_key, created_at) select 'new', private_key, created_at + 1 from token_key",
    )
    assert [key.kid for key in read(url, signing_keys.list_all())] == ["new", "old"]
    assert read(url, signing_keys.list_all())[0].created_at == AT + timedelta(microseconds=1)


# --- Change counts ---------------------------------------------------------------------------------------------------


def test_change_counters_count_the_changes_of_their_table_only(url: str) -> None:
    assert read(url, change_counters.read_all()) == {"webhooks": 0}
    add(url, party("A", PartyRole.CPO))
    write(url, parties.disable("A"), anchors.add(trusted("v2g")), signing_keys.ensure(TokenKey("k", "p", AT)))
    write(url, anchors.remove("ab" * 32, now=AT), signing_keys.ensure(TokenKey("other", "p", AT)))
    assert read(url, change_counters.read_all()) == {"parties": 2, "anchors": 2, "token_keys": 1, "webhooks": 0}
