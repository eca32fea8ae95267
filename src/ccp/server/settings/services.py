"""Settings of the external services that the pool calls: one shape for all of them.

A service has a prefix (`rcp`, `pcp`, `pki`, `est`, `cps`). Its settings are flat names with that prefix (`rcp_url`,
`CCP_RCP_URL`), or the members of a table of that name in the file (`[rcp]`, `url = …`). `flatten_tables` turns tables
into flat names, and `group_by_service` turns the flat names into the values of a `ServiceSettings`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails

from ccp.x509.http_urls import split_http_url

SERVICES: Final = {
    "rcp": "Root Certificate Pool",
    "pcp": "Provisioning Certificate Pool",
    "pki": "PKI service",
    "est": "EST server",
    "cps": "Certificate Provisioning Service",
}
"""Name of each service in messages, by prefix."""


class Dialect(StrEnum):
    """API of a service: CharIN OPNC 1.0, or its predecessor OPCP 1.0."""

    OPNC = "opnc"
    OPCP = "opcp"


class ServiceSettings(BaseModel):
    """An external service: its address, the credentials to present, and the CAs to trust.

    Credentials are either a token (`token`, `token_file`) or OAuth 2.0 client credentials (`token_url` and the
    members that belong to it). A client certificate may come in addition to either.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str = Field(
        description="Base URL of the service, without credentials, query and fragment. OPNC: up to the service "
        "(`…/opnc/v1/rcp`, `…/opnc/v1/pcp`, `…/opnc/v1/pki`). OPCP: what stands before `/v1`."
    )
    dialect: Dialect = Field(
        Dialect.OPNC, description="API of the service: OPNC 1.0 (`opnc`), or its predecessor OPCP 1.0 (`opcp`)."
    )
    allow_http: bool = Field(
        False,
        description="Accept http URLs; those of this machine (`localhost`, loopback addresses) need no permission. "
        "For networks that encrypt themselves.",
    )
    token: SecretStr | None = Field(None, description="Bearer token that does not expire.")
    token_file: Path | None = Field(
        None, description="File with the bearer token, which may be replaced while the pool runs."
    )
    token_url: str | None = Field(
        None, description="Token endpoint: OAuth 2.0 client credentials grant; needs `client_id` and a secret."
    )
    client_id: Annotated[str, Field(min_length=1)] | None = Field(None, description="Client id at the token endpoint.")
    client_secret: SecretStr | None = Field(None, description="Secret of the client id.")
    client_secret_file: Path | None = Field(None, description="File with the secret; read for each token request.")
    audience: Annotated[str, Field(min_length=1)] | None = Field(None, description="Audience of the token request.")
    scope: Annotated[str, Field(min_length=1)] | None = Field(None, description="Scope of the token request.")
    tls_cert: Path | None = Field(
        None, description="Client certificate chain, PEM: mutual TLS with the service and with the token endpoint."
    )
    tls_key: Path | None = Field(None, description="Private key for `tls_cert`, PEM.")
    ca: Path | None = Field(
        None,
        description="CA certificates of the service, PEM, instead of those of the system. The token endpoint may "
        "have either.",
    )

    @field_validator("url", "token_url")
    @classmethod
    def _is_http_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        try:
            parts = split_http_url(value)
        except ValueError as exc:
            raise ValueError(
                "must be an http or https URL without credentials; those have settings of their own"
            ) from exc
        if parts.fragment or (info.field_name == "url" and parts.query):
            raise ValueError("must be a URL without query and fragment")
        return value.rstrip("/") if info.field_name == "url" else value

    @field_validator("token", "client_secret")
    @classmethod
    def _is_not_empty(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not is_secret(value.get_secret_value()):
            raise ValueError("must be printable ASCII without blanks at its ends, and not empty")
        return value

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        """Refuse members that contradict each other. The sentences name members without prefix."""
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        for one, other in (("token", "token_file"), ("client_secret", "client_secret_file")):
            if {one, other} <= given:
                raise ValueError(f"{one} and {other} contradict each other")
        grant = {"token_url", "client_id", "client_secret", "client_secret_file", "audience", "scope"} & given
        if static := {"token", "token_file"} & given:
            if grant:
                raise ValueError(f"{static.pop()} and {min(grant)} contradict each other: a token is given or fetched")
        elif grant:
            for needed in ("token_url", "client_id"):
                if needed not in given:
                    raise ValueError(f"{min(grant - {needed})} needs {needed}")
            if not {"client_secret", "client_secret_file"} & given:
                raise ValueError("client_id needs client_secret or client_secret_file")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together")
        for name, url in (("url", self.url), ("token_url", self.token_url)):
            if url is not None and not self.allow_http and not is_protected(url):
                raise ValueError(f"{name} must be an https URL, or allow_http must be set")
        if (
            not self.url.startswith("https:")
            and {"tls_cert", "ca"} & given
            and not (self.token_url or "").startswith("https:")
        ):
            raise ValueError("tls_cert and ca need an https URL")
        return self

    @property
    def authentication(self) -> str:
        """How the pool authenticates itself, without secrets, for display."""
        methods = []
        if self.token_url is not None:
            methods.append(f"client credentials of {self.client_id}")
        elif self.token is not None or self.token_file is not None:
            methods.append("token")
        if self.tls_cert is not None:
            methods.append("client certificate")
        return " and ".join(methods) or "none"


PATHS: Final = ("token_file", "client_secret_file", "tls_cert", "tls_key", "ca")
"""Members that name files."""


def is_secret(text: str) -> bool:
    """Whether a text can be sent as a token or secret: printable ASCII without blanks at its ends, and not empty."""
    return bool(text) and text.isascii() and text.isprintable() and text == text.strip()


def is_protected(url: str) -> bool:
    """Whether a URL is https, or of this machine, so that nothing crosses a network in clear.

    Raises ValueError for a text that is no http or https URL, or has credentials.
    """
    parts = split_http_url(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ip_address(str(parts.hostname)).is_loopback
    except ValueError:
        return False


# --- Names of settings ---


def flatten_tables(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace each service's table by flat names: the member `url` of `[rcp]` becomes `rcp_url`.

    Raises ValueError for a setting that is given both ways.
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        for key, member in _members(name, value):
            if key in flat:
                raise ValueError(f"{key} is given twice: as {key}, and in the table [{key.partition('_')[0]}].")
            flat[key] = member
    return flat


def _members(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if name in SERVICES and isinstance(value, Mapping):
        return [(f"{name}_{member}", inner) for member, inner in value.items()]
    return [(name, value)]


def group_by_service(values: Mapping[str, Any]) -> dict[str, Any]:
    """Gather the flat names of each service: `rcp_url` becomes the member `url` of `rcp`. Other names stay.

    None stands for an absent value.
    """
    grouped: dict[str, Any] = {}
    for name, value in values.items():
        prefix, _, member = name.partition("_")
        if prefix in SERVICES and member in ServiceSettings.model_fields:
            if value is None:
                continue
            grouped.setdefault(prefix, {})[member] = value
        else:
            grouped[name] = value
    return grouped


def variables() -> dict[str, str]:
    """Return the environment variables `CCP_…`, by flat name. Variables without a value count as absent."""
    prefix = "ccp_"
    return {
        name.lower().removeprefix(prefix): value
        for name, value in os.environ.items()
        if value and name.lower().startswith(prefix)
    }


def from_environment() -> dict[str, Any]:
    """Return the services' settings from the environment, by flat name."""
    names = {f"{prefix}_{member}" for prefix in SERVICES for member in ServiceSettings.model_fields}
    return {name: value for name, value in variables().items() if name in names}


def error_sentence(error: ErrorDetails) -> str:
    """Return a sentence for an invalid value; it names the setting as the operator writes it."""
    place = list(map(str, error["loc"]))
    if place and place[0] in SERVICES:
        if error["type"] == "missing":
            return f"{place[0]}_{place[-1]} is missing; the other settings of {place[0]} have no effect without it."
        place = [f"{place[0]}_{place[1]}", *place[2:]] if len(place) > 1 else [f"[{place[0]}]"]
    return f"{'.'.join(place)}: {error['msg'].removeprefix('Value error, ')}."
