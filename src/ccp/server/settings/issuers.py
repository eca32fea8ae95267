"""Settings of other authorisation servers whose access tokens the pool accepts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import permutations
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ccp.errors import ConfigurationError, FieldError
from ccp.ids import WMI, OperatorId, ProviderId
from ccp.server.domain.parties import PartyRole
from ccp.server.domain.token_algorithms import ALGORITHMS


class IssuerSettings(BaseModel):
    """A trusted authorisation server: one `[[issuers]]` table of the configuration file.

    A claim is named by its path, with dots between the names: `resource_access.ccp.roles`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: Annotated[str, Field(min_length=1)] = Field(description="Value of `iss` in its tokens.")
    jwks_url: str | None = Field(None, description="URL of its JWK set; https.")
    jwks_file: Path | None = Field(None, description="File with its JWK set, instead of `jwks_url`.")
    allow_http: bool = Field(False, description="Accept an http URL as `jwks_url`; for laboratories only.")
    audience: str | None = Field(None, description="Required value in `aud` of its tokens; default: `base_url`.")
    algorithms: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="Allowed signature algorithms; neither `none` nor HMAC."
    )
    prefix: Annotated[str, Field(pattern=r"^[!-9;-~]{1,100}$")] | None = Field(
        None, description="Prefix of its callers' client ids, followed by a colon; default: the whole issuer."
    )
    client_claim: str = Field("sub", description="Claim with the caller's name.")
    denied_clients: tuple[str, ...] = Field((), description="Callers to refuse, by the value of `client_claim`.")
    roles: tuple[PartyRole, ...] = Field((), description="Roles of every caller.")
    role_claim: str | None = Field(None, description="Claim with the caller's roles.")
    role_map: dict[str, PartyRole] = Field(
        {}, description="Role for each value of `role_claim`; default: the values are the pool's role names."
    )
    provider_claim: str | None = Field(None, description="Claim with provider ids.")
    wmi_claim: str | None = Field(None, description="Claim with WMIs.")
    operator_claim: str | None = Field(None, description="Claim with operator ids.")
    all_providers: bool = Field(False, description="Its CPSs sign for every provider.")
    allowed_roles: tuple[PartyRole, ...] | None = Field(
        None, description="Roles that it may assign; default: all but `admin`."
    )
    allowed_provider_ids: tuple[str, ...] | None = Field(
        None, description="Provider ids that it may assign; default: any."
    )
    allowed_wmis: tuple[str, ...] | None = Field(None, description="WMIs that it may assign; default: any.")
    allowed_operator_ids: tuple[str, ...] | None = Field(
        None, description="Operator ids that it may assign; default: any."
    )
    jwks_refresh_interval: Annotated[int, Field(ge=1)] = Field(
        300, description="Seconds between two requests for its JWK set."
    )
    jwks_refresh_cooldown: Annotated[float, Field(ge=0.1)] = Field(
        10, description="Minimum seconds between two requests that tokens with unknown keys trigger."
    )
    leeway: Annotated[int, Field(ge=0, le=300)] = Field(
        30, description="Seconds that its clock may be ahead of the pool's."
    )

    @field_validator("algorithms")
    @classmethod
    def _are_asymmetric(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse `none` and HMAC, with which every verifier could also sign."""
        if wrong := [name for name in value if name not in ALGORITHMS]:
            raise ValueError(f"{', '.join(wrong)} cannot be allowed, only {', '.join(ALGORITHMS)}")
        return value

    @field_validator("issuer", "prefix")
    @classmethod
    def _is_no_command(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise ValueError("must be printable")
        if value is not None and f"{value}:".casefold().startswith("cli:"):
            raise ValueError("cli is reserved for commands in the audit trail")
        return value

    @field_validator("allowed_provider_ids", "allowed_wmis", "allowed_operator_ids")
    @classmethod
    def _are_ids(cls, value: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        kinds = {
            "allowed_provider_ids": ProviderId.parse,
            "allowed_wmis": WMI.parse,
            "allowed_operator_ids": OperatorId.parse,
        }
        parse = kinds[info.field_name or ""]
        try:
            return None if value is None else tuple(parse(text) for text in value)
        except FieldError as exc:
            raise ValueError(str(exc)) from exc

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ValueError("one of jwks_url and jwks_file is needed")
        if self.jwks_url is not None and not re.match(r"https?://" if self.allow_http else r"https://", self.jwks_url):
            raise ValueError("jwks_url has to be an https address (or http, with allow_http)")
        if not self.roles and self.role_claim is None:
            raise ValueError("roles or role_claim is needed: callers without a role may do nothing")
        given = set(self.roles) | set(self.role_map.values())
        if not given <= self.permitted_roles:
            raise ValueError(f"{', '.join(sorted(given - self.permitted_roles))} has to be in allowed_roles")
        if self.all_providers and self.allowed_provider_ids is not None:
            raise ValueError("all_providers and allowed_provider_ids contradict each other")
        return self

    @property
    def caller_prefix(self) -> str:
        """Prefix of its callers' client ids; a colon and the caller's name follow."""
        return self.prefix or self.issuer

    @property
    def permitted_roles(self) -> frozenset[PartyRole]:
        """`allowed_roles`, or its default."""
        return frozenset(PartyRole) - {PartyRole.ADMIN} if self.allowed_roles is None else frozenset(self.allowed_roles)

    def role_of(self, value: str) -> PartyRole | None:
        """The role for a value of role_claim; None for a value without one."""
        if self.role_map:
            return self.role_map.get(value)
        return PartyRole(value) if value in set(PartyRole) else None


def check_prefixes(issuers: Iterable[IssuerSettings]) -> None:
    """Refuse issuers whose callers could have the same client id.

    A caller's name may contain colons, so the prefix "a" collides with "a:b" as well as with "a". Raises
    ConfigurationError.
    """
    for one, other in permutations(issuers, 2):
        if f"{other.caller_prefix}:".casefold().startswith(f"{one.caller_prefix}:".casefold()):
            raise ConfigurationError(
                f"issuers: client ids of {one.issuer} and {other.issuer} collide: they begin with "
                f'"{one.caller_prefix}:" and "{other.caller_prefix}:". Give each a different prefix.'
            )
