"""Settings of the APIs: peers of OPNC, OPCP, OCPP."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field


class OPCPNoContractResponse(StrEnum):
    """OPCP response without a contract: 200 with the EXI message that says so, or an HTTP error.

    Clients forward only a 200 to the charging station.
    """

    DELIVER = "deliver"
    NOT_FOUND = "404"


class APISettings(BaseModel):
    """Peers, and what differs between the APIs."""

    pool_id: Annotated[str, Field(pattern=r"^[!-~]{1,64}$")] | None = Field(
        None, description="Party id of this pool, as peers send it in `OPNC-to-party-id`."
    )
    peer_delivery_timeout: Annotated[float, Field(gt=0, le=4)] = Field(
        1.5, description="Timeout of peers for a vehicle's request, seconds. A vehicle waits five seconds in total."
    )
    peer_negative_ttl: Annotated[float, Field(ge=0, le=3600)] = Field(
        30,
        description="Seconds for which a peer without a contract for a vehicle is not asked for it again; `0`: it is "
        "asked every time. See *Peers* in [known limitations](known-limitations.md).",
    )
    broadcast_rate: Annotated[int, Field(ge=0)] = Field(
        200,
        description="Requests to peers per second that the broadcasts of one party may cause in each worker; all "
        "parties together may cause twice as many. Beyond that a broadcast is answered from this pool "
        "only. `0`: no limit.",
    )
    peer_request_timeout: Annotated[float, Field(gt=0, le=60)] = Field(
        10, description="Timeout of a peer for a request addressed to it, other than a vehicle's, seconds."
    )
    opcp: bool = Field(True, description="Serve OPCP, the predecessor of OPNC, under `/v1`.")
    opcp_no_contract_response: OPCPNoContractResponse = Field(
        OPCPNoContractResponse.DELIVER,
        description="Response to an OPCP request without a contract. `deliver`: 200 with the negative message. "
        "`404`: status 404 with it.",
    )
    opcp_detect_edition: bool = Field(
        True,
        description="The edition of a vehicle's OPCP request is that of its message, whatever `xsdMsgDefNamespace` "
        "states.",
    )
    ocpp_repetition_time: Annotated[int, Field(ge=10, le=86_400)] = Field(
        600,
        description="OCPP: seconds for which the pool remembers which contracts an ISO 15118-20 vehicle has got in "
        "answer to a request that it repeats.",
    )
    documentation: bool = Field(
        True,
        description="Serve the [documentation](install.md#documentation) under `/docs`, without a token, if the "
        "extra `docs` is installed or `documentation_directory` is set.",
    )
    documentation_directory: Path | None = Field(
        None,
        description="Directory of a site that `ccp docs build` wrote, to serve instead of the one that the pool "
        "builds at its start.",
    )
