"""Settings of callers: access tokens, other authorisation servers, rates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, Field, field_validator

from ccp.server.settings.issuers import IssuerSettings

MAX_TOKEN_LIFETIME: Final = 86_400
"""Seconds. A retired key verifies for as long, because the setting may have been larger when a token was issued."""


class AccessSettings(BaseModel):
    """Access tokens, the authorisation servers that are trusted, rate limits."""

    token_lifetime: Annotated[int, Field(ge=60, le=MAX_TOKEN_LIFETIME)] = Field(
        3600, description="Validity of access tokens, seconds."
    )
    token_key_lifetime: Annotated[int, Field(ge=0)] = Field(
        2_592_000,
        description="Age at which a signing key of access tokens is replaced, seconds; `0`: only by `ccp keys rotate`.",
    )
    certificate_bound_tokens: bool = Field(
        False,
        description="Bind each access token to the client certificate of the token request (RFC 8705); a token "
        "request without exactly one readable certificate is refused.",
    )
    issuers: tuple[IssuerSettings, ...] = Field(
        (),
        description="Other authorisation servers whose access tokens are accepted: `[[issuers]]` tables of the file, "
        "see [other issuers](#other-issuers).",
    )
    rate_limit_per_address: Annotated[int, Field(ge=0)] = Field(
        1000, description="Requests per second from one address, with a burst of twice as many; `0`: no limit."
    )
    rate_limit_per_party: Annotated[int, Field(ge=0)] = Field(
        500, description="Requests per second of one party, with a burst of twice as many; `0`: no limit."
    )
    rate_limit_unauthenticated: Annotated[int, Field(ge=0)] = Field(
        5,
        description="Requests per second without a valid token from one address, with a burst of 20 times as many; "
        "`0`: no limit.",
    )
    login_failures_per_minute: Annotated[int, Field(ge=0)] = Field(
        10,
        description="Failed token requests per minute for one client id from one address; five times as many for all "
        "client ids from one address, and for one client id from all addresses; where the address is not "
        "known, for the client id only. A secret that a worker of this machine has verified before is "
        "not throttled. `0`: no limit.",
    )
    rate_limit_file: Path | None = Field(
        None,
        description="File through which processes of one machine share rate limits; `ccp serve` creates one for its "
        "workers.",
    )

    @field_validator("token_key_lifetime")
    @classmethod
    def _check_key_lifetime(cls, value: int) -> int:
        if 0 < value < 3600:
            raise ValueError("must be 0 or at least 3600")
        return value
