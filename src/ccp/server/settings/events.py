"""Settings of events and webhooks."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field


class EventSettings(BaseModel):
    """Which events the pool sends, and how."""

    event_allow_http: bool = Field(
        False,
        description="Accept webhooks without TLS (`http://`); for laboratories, since events contain contract ids.",
    )
    event_dispatch: bool = Field(
        True, description="The server's workers send events; `false` leaves it to `ccp events dispatch`."
    )
    event_timeout: Annotated[float, Field(gt=0, le=60)] = Field(10, description="Timeout of a webhook, seconds.")
    event_concurrency: Annotated[int, Field(ge=1, le=100)] = Field(
        4, description="Concurrent deliveries of one worker to one webhook, for different vehicles."
    )
    event_retries: Annotated[int, Field(ge=0, le=100)] = Field(
        3, description="Number of retries after a failed delivery of an event."
    )
    event_retry_delay: Annotated[float, Field(gt=0)] = Field(3600, description="Seconds between two retries.")
    event_max_age: Annotated[float, Field(gt=0)] = Field(
        259_200, description="Seconds after which an undelivered event is given up."
    )
    event_retention: Annotated[float, Field(ge=0)] = Field(
        604_800, description="Seconds for which the delivery of an event is kept on record."
    )
    event_expiring_days: tuple[Annotated[int, Field(ge=1, le=3650)], ...] = Field(
        (30, 7),
        description="Days before the end of a contract at which its eMSP is notified (`emsp.contract.expiring`); "
        "empty: never.",
    )
    event_check_interval: Annotated[float, Field(gt=0)] = Field(
        600, description="Seconds between two searches for expired roots and for expiring or undeliverable contracts."
    )
    event_secret_overlap: Annotated[int, Field(ge=0, le=7_776_000)] = Field(
        86_400, description="Seconds for which a replaced secret of a webhook stays valid, at most and by default."
    )
    event_pings_per_minute: Annotated[int, Field(ge=0)] = Field(
        6, description="Test events (`ping`) that a party may send to its webhooks per minute; `0`: no limit."
    )
