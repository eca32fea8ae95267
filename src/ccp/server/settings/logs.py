"""Settings of the log and of metrics."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, Field, SecretStr


class MetricsAccess(StrEnum):
    """Access to /metrics: callers on this machine and the roles admin and metrics, these roles only, or none."""

    LOOPBACK = "loopback"
    ADMIN = "admin"
    OFF = "off"


class LogIdentifiers(StrEnum):
    """EMAIDs and PCIDs in the log: a keyed hash of each, their owner only, or in clear."""

    PSEUDONYM = "pseudonym"
    OWNER = "owner"
    CLEAR = "clear"


class LogSettings(BaseModel):
    """What the log contains and who reads the metrics."""

    metrics: MetricsAccess = Field(
        MetricsAccess.LOOPBACK,
        description="Access to `GET /metrics`. `loopback`: callers on this machine that do not use a proxy, and the "
        "roles `admin` and `metrics`. `admin`: these roles only. `off`: none.",
    )
    statistics_interval: Annotated[float, Field(gt=0, le=86400)] = Field(
        300,
        description="Seconds between two counts of contracts, vehicles and revocation evidence for the metrics, by "
        "one of all workers.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Minimum level to log.")
    log_identifiers: LogIdentifiers = Field(
        LogIdentifiers.PSEUDONYM,
        description="EMAIDs and PCIDs in the log. `pseudonym`: a keyed hash. `owner`: provider id or WMI only. "
        "`clear`: as they are.",
    )
    log_pseudonym_key: Annotated[SecretStr, Field(min_length=16)] | None = Field(
        None, description="Key of the keyed hash. Default: a key that the pool generates and stores in its database."
    )
    refusal_retention: Annotated[int, Field(ge=0)] = Field(
        2_592_000,
        description="Seconds for which the reasons of refused deliveries are kept ([Why a car got "
        "nothing](operations.md#why-a-car-got-nothing)); `0`: they are not recorded.",
    )
    keep_refused_requests: bool = Field(
        False,
        description="Keep the vehicle's request of a refused delivery too, as long as its reason. It contains the "
        "vehicle's certificate.",
    )
    log_format: Literal["json", "console"] = Field(
        "json",
        description="Format of the events on standard error, one per request. `json`: one JSON object per line. "
        "`console`: readable text.",
    )
