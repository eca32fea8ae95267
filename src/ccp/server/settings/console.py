"""Settings of the operator's console."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from ccp.server.domain.token_algorithms import ALGORITHMS
from ccp.server.settings.services import is_secret
from ccp.x509.http_urls import split_http_url


class ConsoleOIDCSettings(BaseModel):
    """The OpenID provider that identifies the persons who use the console: the table `[console_oidc]` of the file.

    A claim is named by its path, with dots between the names: `realm_access.roles`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    issuer: str = Field(
        description="Issuer of the ID tokens, an https URL; its metadata is at `/.well-known/openid-configuration` "
        "below it."
    )
    client_id: Annotated[str, Field(min_length=1)] = Field(description="Client id of the console at the provider.")
    client_secret: SecretStr | None = Field(
        None, description="Secret of the client id; without a secret the console is a public client."
    )
    client_secret_file: Path | None = Field(None, description="File with the secret; read at each log-in.")
    name: str = Field("single sign-on", description="Name of the provider on the page of the log-in.")
    scopes: tuple[str, ...] = Field(("openid", "profile"), description="Scopes to request.")
    name_claim: str = Field(
        "preferred_username",
        description="Claim of the ID token with the person's name for the audit trail. The log-in is recorded with "
        "`sub` too, because a provider may let persons change their names.",
    )
    role_claim: str = Field(
        "roles",
        description="Claim of the ID token with the person's roles: a list, or one string separated by blanks. A dot "
        "descends into an object.",
    )
    admin_roles: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("admin",), description="Values of `role_claim` that give the role `admin`."
    )
    viewer_roles: tuple[str, ...] = Field(
        ("viewer",), description="Values of `role_claim` that give the role `viewer`."
    )
    algorithms: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("RS256", "PS256", "ES256"), description="Allowed signature algorithms of the ID token."
    )
    ca: Path | None = Field(None, description="CA certificates of the provider, PEM, instead of the system's.")

    @field_validator("issuer")
    @classmethod
    def _is_https(cls, value: str) -> str:
        try:
            parts = split_http_url(value)
        except ValueError as exc:
            raise ValueError("must be an https URL") from exc
        if parts.scheme != "https" or parts.query or parts.fragment:
            raise ValueError("must be an https URL without query and fragment")
        return value

    @field_validator("algorithms")
    @classmethod
    def _are_asymmetric(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [name for name in value if name not in ALGORITHMS]:
            raise ValueError(f"{', '.join(wrong)} cannot be allowed, only {', '.join(ALGORITHMS)}")
        return value

    @field_validator("scopes")
    @classmethod
    def _has_openid(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "openid" not in value or any(not is_secret(scope) or " " in scope for scope in value):
            raise ValueError("must be names of scopes, and openid among them")
        return value

    @field_validator("client_secret")
    @classmethod
    def _is_not_empty(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not is_secret(value.get_secret_value()):
            raise ValueError("must be printable ASCII without blanks at its ends, and not empty")
        return value

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.client_secret is not None and self.client_secret_file is not None:
            raise ValueError("client_secret and client_secret_file contradict each other")
        if shared := set(self.admin_roles) & set(self.viewer_roles):
            raise ValueError(f"{min(shared)} is in admin_roles and in viewer_roles")
        return self


class ConsoleSettings(BaseModel):
    """The console and its sessions."""

    console: bool = Field(False, description="Serve the operator's [console](console.md) under `/console`.")
    console_session_idle: Annotated[int, Field(ge=60, le=86_400)] = Field(
        1800, description="Seconds without a request after which a session of the console ends."
    )
    console_session_lifetime: Annotated[int, Field(ge=60, le=604_800)] = Field(
        28_800, description="Seconds after the log-in at which a session of the console ends."
    )
    try_it: bool = Field(
        False,
        description="Serve the public page [`/try-it`](console.md#the-public-page-for-laboratories), on which anyone "
        "can have a message explained; for laboratories.",
    )
    try_it_per_minute: Annotated[int, Field(ge=0)] = Field(
        20, description="Messages that the page `/try-it` explains to one address per minute; `0`: no limit."
    )
    console_oidc: ConsoleOIDCSettings | None = Field(
        None,
        description="OpenID provider whose users may log in to the console: the table `[console_oidc]` of the file, "
        "see [console](console.md#log-in-with-an-openid-provider).",
    )
