"""Authorisation: the role table. Pure.

`ccp.server.access.authorization_server` authenticates the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from ccp.errors import NotAuthorised
from ccp.errors.codes import ErrorCode
from ccp.ids import EMAID, PCID, WMI, OperatorId, ProviderId
from ccp.server.domain.parties import Party, PartyRole


class Operation(StrEnum):
    """The seven operations of the OPNC API, by their names there."""

    GET_CONTRACT_DATA_BY_EMAID = "GetContractDataByEmaid"
    GET_CONTRACT_DATA_BY_PCID = "GetContractDataByPcid"
    DELIVER = "GetSignedContractDataByCertificateInstallationReq"
    PUBLISH = "AddSignedContractData"
    WITHDRAW = "DeleteSignedContractDataByEmaid"
    GET_SIGNED_CONTRACT_DATA = "GetSignedContractDataByEmaidAndPcid"
    SET_DEFAULT = "SetSignedContractDataAsDefault"


class AdminOperation(StrEnum):
    """The operations of the admin API."""

    LIST_PARTIES = "ListParties"
    ADD_PARTY = "AddParty"
    GET_PARTY = "GetParty"
    EDIT_PARTY = "EditParty"
    DISABLE_PARTY = "DisableParty"
    ENABLE_PARTY = "EnableParty"
    ROTATE_SECRET = "RotateSecret"  # noqa: S105  a name, not a secret
    LIST_PEERS = "ListPeers"
    ADD_PEER = "AddPeer"
    GET_PEER = "GetPeer"
    EDIT_PEER = "EditPeer"
    REMOVE_PEER = "RemovePeer"
    DISABLE_PEER = "DisablePeer"
    ENABLE_PEER = "EnablePeer"
    ROTATE_PEER_SECRET = "RotatePeerSecret"  # noqa: S105  a name, not a secret
    GET_ROLES = "GetRoles"
    GET_EXPIRY = "GetExpiry"
    LIST_REFUSALS = "ListRefusals"
    GET_STATISTICS = "GetStatistics"


class OCPPOperation(StrEnum):
    """The operations that take payloads of OCPP, by their names there."""

    GET_15118_EV_CERTIFICATE = "Get15118EVCertificate"


class MonitoringOperation(StrEnum):
    """Operations for monitoring."""

    GET_METRICS = "GetMetrics"


class PublicRootOperation(StrEnum):
    """Operations for every party: root certificates are public, and every role needs some of them."""

    GET_ROOT_CERTIFICATES = "GetRootCertificates"
    GET_ROOT_CERTIFICATE = "GetRootCertificate"
    GET_TRUST_LIST = "GetCertificateTrustList"


class EnrolmentOperation(StrEnum):
    """Operations of EST that are passed on to the configured EST server."""

    CA_CERTIFICATES = "CACerts"
    ENROL = "SimpleEnroll"
    REENROL = "SimpleReenroll"


class RefusalOperation(StrEnum):
    """Operations for the refused deliveries of a party's own ids."""

    GET_REFUSALS = "GetRefusals"


class EventOperation(StrEnum):
    """The operations of the event service, by their names in the API; the last three are extensions."""

    POST_ENDPOINT = "PostEndpoint"
    GET_ENDPOINTS = "GetEndpoints"
    GET_ENDPOINT = "GetEndpointById"
    UPDATE_ENDPOINT = "UpdateEndpointById"
    DELETE_ENDPOINT = "DeleteEndpointById"
    GET_DELIVERIES = "GetEndpointDeliveries"
    ROTATE_SECRET = "RotateEndpointSecret"  # noqa: S105  a name, not a secret
    PING = "PingEndpoint"


Subject: TypeAlias = EMAID | PCID | None


@dataclass(frozen=True, slots=True)
class Rule:
    """The condition under which a role permits an operation.

    description: the condition in words. allows: the condition as a function of the caller and the subject.
    """

    description: str
    allows: Callable[[Party, Subject], bool]


def _has_own_provider(party: Party, subject: Subject) -> bool:
    return isinstance(subject, EMAID) and subject.provider in party.provider_ids


_any_vehicle: Final = Rule("any vehicle", lambda party, subject: True)
_own_provider: Final = Rule("contracts of its own provider ids", _has_own_provider)
_served_provider: Final = Rule(
    "contracts of the provider ids that it signs for, or of all if it is registered so",
    lambda party, subject: party.all_providers or _has_own_provider(party, subject),
)
_own_wmi: Final = Rule(
    "vehicles of its own WMIs", lambda party, subject: isinstance(subject, PCID) and subject.wmi in party.wmis
)
_trusted_roots: Final = Rule("the roots that the pool trusts", lambda party, subject: True)
_numbers: Final = Rule("what the pool counts", lambda party, subject: True)
_own_stations: Final = Rule("certificates of its own charging stations", lambda party, subject: True)
_own_webhooks: Final = Rule("webhooks of its own, for events of its own ids", lambda party, subject: True)
_own_refusals: Final = Rule("refusals that concern its own ids", lambda party, subject: True)
_anything: Final = Rule("every entry", lambda party, subject: True)

ROLE_TABLE: Final[Mapping[Operation, Mapping[PartyRole, Rule]]] = {
    Operation.GET_CONTRACT_DATA_BY_EMAID: {PartyRole.EMSP: _own_provider},
    Operation.GET_CONTRACT_DATA_BY_PCID: {PartyRole.OEM: _own_wmi},
    Operation.DELIVER: {PartyRole.CPO: _any_vehicle, PartyRole.CCP: _any_vehicle},
    Operation.PUBLISH: {PartyRole.EMSP: _own_provider, PartyRole.CPS: _served_provider},
    Operation.WITHDRAW: {PartyRole.EMSP: _own_provider},
    Operation.GET_SIGNED_CONTRACT_DATA: {PartyRole.OEM: _own_wmi},
    Operation.SET_DEFAULT: {PartyRole.OEM: _own_wmi},
}
"""The operations of the OPNC API, the roles that may use them, and the conditions. Anything else is refused."""

ADMIN_TABLE: Final[Mapping[AdminOperation, Mapping[PartyRole, Rule]]] = {
    operation: {PartyRole.ADMIN: _anything} for operation in AdminOperation
}
"""The table of the admin API."""

MONITORING_TABLE: Final[Mapping[MonitoringOperation, Mapping[PartyRole, Rule]]] = {
    MonitoringOperation.GET_METRICS: {PartyRole.ADMIN: _numbers, PartyRole.METRICS: _numbers}
}
"""The table of monitoring operations."""

OCPP_TABLE: Final[Mapping[OCPPOperation, Mapping[PartyRole, Rule]]] = {
    OCPPOperation.GET_15118_EV_CERTIFICATE: {PartyRole.CPO: _any_vehicle}
}
"""The table of the operations of OCPP. Pools forward requests in OPNC or OPCP."""

PUBLIC_ROOT_TABLE: Final[Mapping[PublicRootOperation, Mapping[PartyRole, Rule]]] = {
    operation: {role: _trusted_roots for role in PartyRole if role is not PartyRole.METRICS}
    for operation in PublicRootOperation
}
"""The table of operations for every party but a monitoring system."""

SUBSCRIBING_ROLES: Final = (PartyRole.EMSP, PartyRole.OEM, PartyRole.CPO, PartyRole.CPS, PartyRole.CCP)
"""The roles that may subscribe to events: those of the OPNC authentication document, and other pools.

Which events a role may subscribe to: `ccp.schemas.event_types.audience`.
"""
EVENT_TABLE: Final[Mapping[EventOperation, Mapping[PartyRole, Rule]]] = {
    operation: dict.fromkeys(SUBSCRIBING_ROLES, _own_webhooks) for operation in EventOperation
}
"""The table of the event service. `ccp.server.events.webhooks` checks who owns a webhook, and of which events."""

REFUSAL_TABLE: Final[Mapping[RefusalOperation, Mapping[PartyRole, Rule]]] = {
    RefusalOperation.GET_REFUSALS: {PartyRole.EMSP: _own_refusals, PartyRole.OEM: _own_refusals}
}
"""The table of refused deliveries. `ccp.server.http.routes.refusals` lists those of the caller's own ids only."""

ENROLMENT_TABLE: Final[Mapping[EnrolmentOperation, Mapping[PartyRole, Rule]]] = {
    operation: {PartyRole.CPO: _own_stations} for operation in EnrolmentOperation
}
"""The table of EST. `ccp.server.pool.enrolment` checks whose charging station a request names."""

AnyOperation: TypeAlias = (
    Operation
    | OCPPOperation
    | AdminOperation
    | MonitoringOperation
    | PublicRootOperation
    | EventOperation
    | EnrolmentOperation
    | RefusalOperation
)
VEHICLE_OPERATIONS: Final = frozenset[AnyOperation]({Operation.DELIVER, OCPPOperation.GET_15118_EV_CERTIFICATE})
"""Operations that answer a vehicle, which waits five seconds."""

_TABLES: Final = dict[AnyOperation, Mapping[PartyRole, Rule]](
    (
        *ROLE_TABLE.items(),
        *OCPP_TABLE.items(),
        *EVENT_TABLE.items(),
        *ENROLMENT_TABLE.items(),
        *REFUSAL_TABLE.items(),
        *ADMIN_TABLE.items(),
        *MONITORING_TABLE.items(),
        *PUBLIC_ROOT_TABLE.items(),
    )
)


def role_table() -> Iterator[tuple[AnyOperation, PartyRole, str]]:
    """Every permission: the operation, the role, and the description of the condition."""
    for operation, rules in _TABLES.items():
        for role, rule in rules.items():
            yield operation, role, rule.description


def authorise_role(caller: Party, operation: AnyOperation) -> None:
    """Refuse a caller without a role for the operation, before its request body is read. Raises NotAuthorised."""
    rules = _TABLES[operation]
    if caller.roles.isdisjoint(rules):
        raise NotAuthorised(f"{operation} is for the role {', '.join(rules)}.", code=ErrorCode.ROLE_MISSING)


def authorise(caller: Party, operation: Operation, subject: Subject = None) -> None:
    """Check an operation against the role table.

    subject: the EMAID or PCID that the operation names, if any. Raises NotAuthorised.
    """
    authorise_role(caller, operation)
    rules = ROLE_TABLE[operation]
    if not any(rules[role].allows(caller, subject) for role in caller.roles if role in rules):
        kind = "WMI" if isinstance(subject, PCID) else "provider id"
        raise NotAuthorised(
            f"The {kind} of {subject} is not registered for the caller.", code=ErrorCode.ID_NOT_REGISTERED
        )


def authorise_sender(caller: Party, party_type: str | None, party_id: str | None) -> None:
    """Check the OPNC-from headers against the token's party. A peer pool acts for others, so it may name any party.

    party_id: a provider id, an operator id or a WMI, by type; the pool does not know the ids of a PKI or a CPS. Raises
    NotAuthorised.
    """
    if PartyRole.CCP in caller.roles or (party_type is None and party_id is None):
        return
    if party_type is not None and party_type not in caller.roles:
        raise NotAuthorised(
            f"OPNC-from-party-type is {party_type}, which the caller is not registered as.",
            code=ErrorCode.SENDER_MISMATCH,
        )
    if (
        party_id is None
        or party_type in ("cps", "pki", "pcp")
        or (party_type is None and PartyRole.CPS in caller.roles)
    ):
        return
    name = party_id.replace("-", "").replace("*", "").upper()
    own: dict[str, frozenset[ProviderId] | frozenset[OperatorId] | frozenset[WMI]] = {
        PartyRole.EMSP: caller.provider_ids,
        PartyRole.CPO: caller.operator_ids,
        PartyRole.OEM: caller.wmis,
    }
    ids = own.get(party_type, frozenset()) if party_type else caller.provider_ids | caller.operator_ids | caller.wmis
    if name not in ids:
        raise NotAuthorised("OPNC-from-party-id is not registered for the caller.", code=ErrorCode.SENDER_MISMATCH)
