"""Role table and sender headers. The API tests cover access over HTTP."""

from __future__ import annotations

import pytest

from ccp.errors import NotAuthorised
from ccp.ids import EMAID, PCID, WMI, OperatorId, ProviderId
from ccp.server.domain.authorization import ROLE_TABLE, Operation, Subject, authorise, authorise_sender
from ccp.server.domain.parties import Party, PartyRole

OWN_EMAID, OTHER_EMAID = EMAID("DEEXAA00000001"), EMAID("DEEXBA00000001")
OWN_PCID, OTHER_PCID = PCID("WEX0AUTH000000001"), PCID("WXB0AUTH000000001")


def party(*roles: PartyRole, everyone: bool = False) -> Party:
    """A party that owns DEEXA, DEEXC and WEX, whatever its roles."""
    return Party(
        "client", "Party", frozenset(roles), frozenset({ProviderId("DEEXA")}), everyone, frozenset({WMI("WEX")}),
        frozenset({OperatorId("DEEXC")}),
    )  # fmt: skip


# Who may do what with an own id; whatever is not here is refused. The domain rules, written down a second time.
ALLOWED = {
    Operation.GET_CONTRACT_DATA_BY_EMAID: {PartyRole.EMSP},
    Operation.GET_CONTRACT_DATA_BY_PCID: {PartyRole.OEM},
    Operation.DELIVER: {PartyRole.CPO, PartyRole.CCP},
    Operation.PUBLISH: {PartyRole.EMSP, PartyRole.CPS},
    Operation.WITHDRAW: {PartyRole.EMSP},
    Operation.GET_SIGNED_CONTRACT_DATA: {PartyRole.OEM},
    Operation.SET_DEFAULT: {PartyRole.OEM},
}
BY_PCID = {Operation.GET_CONTRACT_DATA_BY_PCID, Operation.GET_SIGNED_CONTRACT_DATA, Operation.SET_DEFAULT}


def subject_of(operation: Operation, own: bool = True) -> Subject:
    if operation is Operation.DELIVER:
        return None
    if operation in BY_PCID:
        return OWN_PCID if own else OTHER_PCID
    return OWN_EMAID if own else OTHER_EMAID


def test_authorization_table_has_every_operation() -> None:
    assert set(ROLE_TABLE) == set(Operation) == set(ALLOWED)


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize("role", PartyRole)
def test_role_may_do_what_is_its_own_and_nothing_else(operation: Operation, role: PartyRole) -> None:
    if role in ALLOWED[operation]:
        authorise(party(role), operation, subject_of(operation))
    else:
        with pytest.raises(NotAuthorised, match=rf"^{operation} is for the role [a-z, ]+\.$"):
            authorise(party(role), operation, subject_of(operation))


@pytest.mark.parametrize("operation", [operation for operation in Operation if operation is not Operation.DELIVER])
@pytest.mark.parametrize("role", PartyRole)
def test_id_of_someone_else_is_refused_to_every_role(operation: Operation, role: PartyRole) -> None:
    with pytest.raises(NotAuthorised):
        authorise(party(role), operation, subject_of(operation, own=False))


def test_owner_of_an_id_is_what_the_refusal_names() -> None:
    with pytest.raises(NotAuthorised, match="The provider id of DEEXBA00000001 is not registered for the caller"):
        authorise(party(PartyRole.EMSP), Operation.WITHDRAW, OTHER_EMAID)
    with pytest.raises(NotAuthorised, match="The WMI of WXB0AUTH000000001 is not registered for the caller"):
        authorise(party(PartyRole.OEM), Operation.SET_DEFAULT, OTHER_PCID)


def test_cps_with_all_providers_may_only_publish() -> None:
    cps = party(PartyRole.CPS, everyone=True)
    authorise(cps, Operation.PUBLISH, OTHER_EMAID)
    with pytest.raises(NotAuthorised):
        authorise(cps, Operation.WITHDRAW, OTHER_EMAID)


def test_all_providers_help_an_emsp_in_nothing() -> None:
    with pytest.raises(NotAuthorised):
        authorise(party(PartyRole.EMSP, everyone=True), Operation.PUBLISH, OTHER_EMAID)


def test_roles_of_a_party_add_up_but_each_with_its_own_ids() -> None:
    both = party(PartyRole.EMSP, PartyRole.OEM)
    for operation in Operation:
        if operation is not Operation.DELIVER:
            authorise(both, operation, subject_of(operation))
            with pytest.raises(NotAuthorised):
                authorise(both, operation, subject_of(operation, own=False))


def test_party_without_roles_may_do_nothing() -> None:
    for operation in Operation:
        with pytest.raises(NotAuthorised):
            authorise(party(), operation, subject_of(operation))


def test_operation_on_an_id_is_refused_when_it_names_none() -> None:
    for operation in set(Operation) - {Operation.DELIVER}:
        with pytest.raises(NotAuthorised):
            authorise(party(*PartyRole), operation, None)


# --- From whom a request says it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "party_type", "party_id"),
    [
        ([PartyRole.EMSP], None, None),
        ([PartyRole.EMSP], "emsp", None),
        ([PartyRole.EMSP], "emsp", "DE-EXA"),
        ([PartyRole.EMSP], "emsp", "deexa"),
        ([PartyRole.CPO], "cpo", "DE*EXC"),
        ([PartyRole.OEM], "oem", "WEX"),
        ([PartyRole.OEM], None, "WEX"),
        ([PartyRole.CPS], "cps", "whatever it is called"),
        ([PartyRole.CCP], "emsp", "someone else's"),
        ([PartyRole.CCP], None, "someone else's"),
    ],
)
def test_routing_headers_of_a_sender_that_fits_the_token_pass(
    roles: list[PartyRole], party_type: str | None, party_id: str | None
) -> None:
    authorise_sender(party(*roles), party_type, party_id)


@pytest.mark.parametrize(
    ("roles", "party_type", "party_id"),
    [
        ([PartyRole.EMSP], "cpo", None),
        ([PartyRole.EMSP], "cpo", "DEEXC"),
        ([PartyRole.EMSP], "emsp", "DEEXB"),
        ([PartyRole.EMSP], "emsp", "DEEXC"),
        ([PartyRole.CPO], "cpo", "DEEXA"),
        ([PartyRole.OEM], "oem", "WXB"),
        ([PartyRole.EMSP], None, "DEEXB"),
        ([PartyRole.EMSP], "ccp", None),
        ([PartyRole.EMSP], "pki", "any"),
        ([PartyRole.EMSP], "", "DEEXA"),
        ([], "emsp", None),
    ],
)
def test_routing_headers_of_a_sender_that_does_not_fit_the_token_are_refused(
    roles: list[PartyRole], party_type: str | None, party_id: str | None
) -> None:
    with pytest.raises(NotAuthorised, match="OPNC-from-party"):
        authorise_sender(party(*roles), party_type, party_id)
