"""Settings: read once, into one frozen object. A file (`ccp.toml`), overridden by `CCP_…` environment variables."""

from __future__ import annotations

import os
import re
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from ccp.contracts import NoDefaultPolicy, RootMatch
from ccp.errors import ConfigurationError

DEFAULT_FILE = Path("ccp.toml")


class VehicleTrust(StrEnum):
    """How a vehicle's provisioning certificate is trusted: by its chain to an OEM root, or by its signature alone."""

    CHAIN = "chain"
    SIGNATURE = "signature"


class RevocationPolicy(StrEnum):
    """Which certificates need evidence that they are not revoked."""

    WHEN_NAMED = "when-named"
    REQUIRE = "require"
    OFF = "off"


class Settings(BaseSettings):
    """Every setting, its default and its meaning; `ccp config` prints the effective values."""

    model_config = SettingsConfigDict(env_prefix="CCP_", frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8020, description="Port to listen on.")
    workers: Annotated[int, Field(ge=1, le=64)] = Field(1, description="Worker processes; one for each core is right.")
    tls_cert: Path | None = Field(
        None, description="Certificate chain of the server, PEM. Without it the pool speaks HTTP."
    )
    tls_key: Path | None = Field(None, description="Private key for tls_cert, PEM.")
    database: str = Field(
        "sqlite:///ccp.db", description="Database URL: sqlite:///FILE, or postgresql://USER:PASSWORD@HOST:PORT/NAME."
    )
    database_connections: Annotated[int, Field(ge=1, le=500)] = Field(
        10, description="Connections to a PostgreSQL server, the most that one worker opens."
    )
    base_url: str | None = Field(
        None,
        description="Address that partners reach the pool under, issuer and audience of its tokens; http(s)://host:port.",
    )
    token_lifetime: Annotated[int, Field(ge=60, le=86400)] = Field(
        3600, description="Validity of access tokens, seconds."
    )
    vehicle_trust: VehicleTrust = Field(
        VehicleTrust.CHAIN, description="chain: to a trusted OEM root. signature: laboratories without OEM roots only."
    )
    no_default_policy: NoDefaultPolicy = Field(
        NoDefaultPolicy.SOLE, description="ISO 15118-2, no default contract. sole: deliver the only one. none: nothing."
    )
    root_match: RootMatch = Field(
        RootMatch.LENIENT,
        description="The vehicle lists none of our V2G roots. lenient: newest variant. strict: nothing.",
    )
    revocation: RevocationPolicy = Field(
        RevocationPolicy.WHEN_NAMED,
        description="when-named: certificates that name a CRL or OCSP address, or whose issuer has one in crl_urls, "
        "need fresh evidence. require: all do. off: laboratories only.",
    )
    stale_grace: Annotated[int, Field(ge=0)] = Field(
        0, description="How long evidence may be past its nextUpdate and still serve a delivery, seconds."
    )
    crl_urls: dict[str, str] = Field(
        {}, description="CRL address by issuer: its certificate's SHA-256 fingerprint, or its common name."
    )
    ocsp_sha256: tuple[str, ...] = Field(
        (), description="Issuers (fingerprint or common name) whose OCSP responders are asked with SHA-256 CertIDs."
    )
    outbound_allow: tuple[str, ...] = Field(
        (),
        description="Networks (CIDR) that are not public but may be called for CRLs, OCSP and partners all the same.",
    )
    rcp_url: str | None = Field(None, description="Root Certificate Pool to take anchors from, its address up to /rcp.")
    rcp_token: SecretStr | None = Field(None, description="Bearer token for the Root Certificate Pool.")
    rcp_interval: Annotated[int, Field(ge=60)] = Field(86_400, description="Seconds between two synchronisations.")
    pcp_url: str | None = Field(None, description="Provisioning Certificate Pool, its address up to /pcp.")
    pcp_token: SecretStr | None = Field(None, description="Bearer token for the Provisioning Certificate Pool.")
    pcp_webhook_secret: SecretStr | None = Field(
        None,
        description="Key of the HMAC over the Provisioning Certificate Pool's events; without it none are taken.",
    )
    pki_url: str | None = Field(
        None, description="PKI service that revokes contract certificates, its address up to /pki."
    )
    pki_token: SecretStr | None = Field(None, description="Bearer token for the PKI service.")
    operator_cas: tuple[str, ...] = Field(
        (), description="Fingerprints of the contract CAs whose certificates are revoked through pki_url on DELETE."
    )
    cleanse_interval: Annotated[int, Field(ge=0)] = Field(
        3600, description="Seconds between two runs that remove expired and revoked contracts; 0 for none."
    )
    cleanse_grace: Annotated[int, Field(ge=0)] = Field(0, description="How long an expired contract is kept, seconds.")
    max_body: Annotated[int, Field(ge=4096)] = Field(262_144, description="Largest request body, octets.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["json", "console"] = Field("json", description="json for machines, console for people.")

    @field_validator("base_url")
    @classmethod
    def _no_trailing_slash(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not re.fullmatch(r"https?://[^/?#\s]+[^?#\s]*", value):
            raise ValueError("must be an http or https address")
        return value.rstrip("/")

    @property
    def public_url(self) -> str:
        """base_url, or the address that the pool listens on."""
        return self.base_url or f"{'https' if self.tls_cert else 'http'}://{self.host}:{self.port}"

    def shown(self) -> dict[str, Any]:
        """The values as they may be printed: a password in a URL is left out."""
        values = self.model_dump(mode="json")
        hidden = re.sub(r"(://[^:/@]*):.*@", r"\1:…@", values["database"])
        values["database"] = re.sub(r"(?i)([?&][^=&]*password=)[^&]*", r"\1…", hidden)
        return values


def load(path: Path | None = None, **overrides: Any) -> Settings:
    """The settings of a file, the environment and the command line, the last one winning.

    path: the file; without it `CCP_CONFIG`, then `ccp.toml` if there is one. A relative path of the file's own values
    is relative to the file. Raises ConfigurationError.
    """
    named = path or (Path(os.environ["CCP_CONFIG"]) if os.environ.get("CCP_CONFIG") else None)
    if named is None and DEFAULT_FILE.exists():
        named = DEFAULT_FILE
    values: dict[str, Any] = {}
    if named is not None:
        try:
            values = tomllib.loads(named.read_text(encoding="utf-8"))
        except OSError as exc:
            raise ConfigurationError(f"The configuration file {named} cannot be read: {exc.strerror}.") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigurationError(f"The configuration file {named} is not TOML: {exc}.") from exc
        _anchor_paths(values, named.parent)

    class Effective(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, values)

    try:
        settings = Effective(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as exc:
        raise ConfigurationError(*(f"{'.'.join(map(str, e['loc']))}: {e['msg']}." for e in exc.errors())) from exc
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigurationError("tls_cert and tls_key belong together.")
    return settings


def _anchor_paths(values: dict[str, Any], folder: Path) -> None:
    for name in ("tls_cert", "tls_key"):
        if isinstance(values.get(name), str):
            values[name] = folder / values[name]
    database = values.get("database")
    if isinstance(database, str) and database.startswith("sqlite:///"):
        values["database"] = f"sqlite:///{folder.resolve() / database.removeprefix('sqlite:///')}"
