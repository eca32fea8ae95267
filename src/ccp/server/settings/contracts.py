"""Settings of contracts and their delivery."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, Field

from ccp.server.domain.contracts import NoDefaultPolicy, RootMatch
from ccp.server.domain.default_contracts import AutomaticDefault


class VehicleTrust(StrEnum):
    """Trust in a request: by the chain of its provisioning certificate to an OEM root, or by its signature only."""

    CHAIN = "chain"
    SIGNATURE = "signature"


class ContractSettings(BaseModel):
    """Rules of storage, choice, delivery and purge of contracts."""

    vehicle_trust: VehicleTrust = Field(
        VehicleTrust.CHAIN,
        description="`chain`: verify requests up to a trusted OEM root. `signature`: verify their signature only, "
        "for laboratories without OEM roots.",
    )
    no_default_policy: NoDefaultPolicy = Field(
        NoDefaultPolicy.SOLE,
        description="Delivery to an ISO 15118-2 vehicle without a deliverable default contract (none is set, or it "
        "is expired, revoked, stale, or signed for the other edition only). `sole`: its only deliverable "
        "contract. `none`: nothing.",
    )
    automatic_default: AutomaticDefault = Field(
        AutomaticDefault.FIRST,
        description="`first`: the first contract of a vehicle is its default until the manufacturer chooses. `none`: "
        "only the manufacturer chooses a default.",
    )
    max_contracts_per_vehicle: Annotated[int, Field(ge=1)] = Field(
        16,
        description="Maximum number of contracts stored for one PCID; a further one is refused with 400. The "
        "provider whose contract is or was the vehicle's default is subject to the next limit only.",
    )
    max_contracts_per_vehicle_and_provider: Annotated[int, Field(ge=1)] = Field(
        4,
        description="Maximum number of contracts of one provider stored for one PCID; a further one is refused with "
        "400.",
    )
    root_match: RootMatch = Field(
        RootMatch.LENIENT,
        description="Delivery to a vehicle that lists none of the pool's V2G roots. `lenient`: the newest variant. "
        "`strict`: nothing.",
    )
    purge_interval: Annotated[int, Field(ge=0)] = Field(
        3600, description="Seconds between two purges of expired and revoked contracts; `0`: no purge."
    )
    purge_grace: Annotated[int, Field(ge=0)] = Field(0, description="Seconds for which an expired contract is kept.")
