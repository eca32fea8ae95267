"""Who may call: parties, their roles, and the ids they own. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ccp.ids import WMI, OperatorId, ProviderId


class Role(StrEnum):
    """What a party is to the pool. One organisation may hold several."""

    EMSP = "emsp"
    CPO = "cpo"
    OEM = "oem"
    CPS = "cps"
    CCP = "ccp"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Party:
    """A registered organisation and the ids it answers for.

    provider_ids: of an eMSP its own; of a CPS those it signs for, unless it does so for all_providers.
    """

    client_id: str
    name: str
    roles: frozenset[Role]
    provider_ids: frozenset[ProviderId] = frozenset()
    all_providers: bool = False
    wmis: frozenset[WMI] = frozenset()
    operator_ids: frozenset[OperatorId] = frozenset()
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Caller:
    """A party in one of its requests.

    trace_id: of the request, empty for a command. address: where it came from, as far as the edge knows.
    """

    party: Party
    trace_id: str = ""
    address: str | None = None
