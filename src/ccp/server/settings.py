"""Settings: read once, into one frozen object. A file (`ccp.toml`), overridden by `CCP_…` environment variables."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable
from enum import StrEnum
from ipaddress import ip_network
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from ccp.errors import ConfigurationError, FieldError
from ccp.ids import WMI, OperatorId, ProviderId
from ccp.server.domain.contracts import NoDefaultPolicy, RootMatch
from ccp.server.domain.default_contracts import AutomaticDefault
from ccp.server.domain.parties import PartyRole
from ccp.server.domain.token_algorithms import ALGORITHMS
from ccp.server.runtime.redacted_urls import hide_credentials, hide_in_text
from ccp.x509.issuer_map import parse_issuer

DEFAULT_FILE = Path("ccp.toml")


class VehicleTrust(StrEnum):
    """How a vehicle's provisioning certificate is trusted: by its chain to an OEM root, or by its signature alone."""

    CHAIN = "chain"
    SIGNATURE = "signature"


class RevocationMode(StrEnum):
    """Which certificates need evidence that they are not revoked."""

    WHEN_NAMED = "when-named"
    REQUIRE = "require"
    OFF = "off"


class LogIdentifiers(StrEnum):
    """What the log says of EMAIDs and PCIDs: a keyed hash of each, no more than their owners, or the ids themselves."""

    PSEUDONYM = "pseudonym"
    OWNER = "owner"
    CLEAR = "clear"


class MetricsAccess(StrEnum):
    """Who gets /metrics: callers on this machine and the role admin, the role admin alone, or nobody."""

    LOOPBACK = "loopback"
    ADMIN = "admin"
    OFF = "off"


GREATEST_TOKEN_LIFETIME: Final = 86_400
"""Seconds. A key that signs no more has to verify for as long, whatever the setting is or was."""


class IssuerSettings(BaseModel):
    """Another authorisation server whose access tokens are taken: one `[[issuers]]` table of the file.

    A claim is named by its path, with dots between the names: `resource_access.ccp.roles`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: Annotated[str, Field(min_length=1)] = Field(description="`iss` of its tokens.")
    jwks_url: str | None = Field(None, description="Address of its keys (JWK set); https.")
    jwks_file: Path | None = Field(None, description="File with its keys, in place of the address.")
    allow_http: bool = Field(False, description="Take keys from an http address: laboratories only.")
    audience: str | None = Field(None, description="What `aud` of its tokens has to hold; base_url if not given.")
    algorithms: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="Signature algorithms it may use.")
    prefix: Annotated[str, Field(pattern=r"^[!-9;-~]{1,100}$")] | None = Field(
        None, description="What callers' names begin with, before a colon; the whole issuer if not given."
    )
    client_claim: str = Field("sub", description="Claim with the caller's name.")
    denied_clients: tuple[str, ...] = Field((), description="Callers that are refused, by that claim.")
    roles: tuple[PartyRole, ...] = Field((), description="Roles that every caller has.")
    role_claim: str | None = Field(None, description="Claim with a caller's roles.")
    role_map: dict[str, PartyRole] = Field(
        {}, description="Role by value of role_claim; empty: its values are our roles."
    )
    provider_claim: str | None = Field(None, description="Claim with provider ids.")
    wmi_claim: str | None = Field(None, description="Claim with WMIs.")
    operator_claim: str | None = Field(None, description="Claim with operator ids.")
    all_providers: bool = Field(False, description="Its CPSs sign for every provider.")
    allowed_roles: tuple[PartyRole, ...] | None = Field(
        None, description="Roles it may vouch for; all but admin if not given."
    )
    allowed_provider_ids: tuple[str, ...] | None = Field(None, description="Provider ids it may vouch for; else any.")
    allowed_wmis: tuple[str, ...] | None = Field(None, description="WMIs it may vouch for; else any.")
    allowed_operator_ids: tuple[str, ...] | None = Field(None, description="Operator ids it may vouch for; else any.")
    jwks_refresh_interval: Annotated[int, Field(ge=1)] = Field(
        300, description="Seconds between two looks at its keys."
    )
    jwks_refresh_cooldown: Annotated[float, Field(ge=0.1)] = Field(
        10, description="Least seconds between two looks that unknown keys bring about."
    )
    leeway: Annotated[int, Field(ge=0, le=300)] = Field(30, description="Seconds that its clock may be ahead of ours.")

    @field_validator("algorithms")
    @classmethod
    def _are_asymmetric(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Neither `none` nor HMAC, for which everybody who can verify can sign."""
        if wrong := [name for name in value if name not in ALGORITHMS]:
            raise ValueError(f"{', '.join(wrong)} cannot be allowed, only {', '.join(ALGORITHMS)}")
        return value

    @field_validator("issuer", "prefix")
    @classmethod
    def _is_no_command(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise ValueError("must be printable")
        if value is not None and f"{value}:".casefold().startswith("cli:"):
            raise ValueError("cli is what the audit trail calls commands")
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
        """What the client ids of its callers begin with; a colon and the caller's name follow."""
        return self.prefix or self.issuer

    @property
    def permitted_roles(self) -> frozenset[PartyRole]:
        return frozenset(PartyRole) - {PartyRole.ADMIN} if self.allowed_roles is None else frozenset(self.allowed_roles)

    def role_of(self, word: str) -> PartyRole | None:
        """What a value of role_claim stands for."""
        if self.role_map:
            return self.role_map.get(word)
        return PartyRole(word) if word in set(PartyRole) else None


class OPCPNoContractResponse(StrEnum):
    """How OPCP answers when there is nothing for a car: with the message that says so, or with an HTTP error.

    Clients hand nothing but the 200 on to the charging station.
    """

    DELIVER = "deliver"
    NOT_FOUND = "404"


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
    tls_client_ca: Path | None = Field(
        None, description="CAs of client certificates, PEM; with it every client needs one (mutual TLS)."
    )
    client_certificate_header: str | None = Field(
        None,
        description="Header in which a trusted proxy tells the client certificate: URL-encoded PEM, or as in RFC 9440.",
    )
    trusted_proxies: tuple[str, ...] = Field(
        ("127.0.0.0/8", "::1/128"),
        description="Networks (CIDR) of proxies that are believed who called (X-Forwarded-For).",
    )
    database: str = Field(
        "sqlite:///ccp.db",
        description="Database URL: sqlite:///FILE, or postgresql://USER:PASSWORD@HOST:PORT,HOST:PORT/NAME.",
    )
    database_connections: Annotated[int, Field(ge=1, le=500)] = Field(
        10, description="Connections to a PostgreSQL server, the most that one worker opens."
    )
    base_url: str | None = Field(
        None,
        description="Address that partners reach the pool under, issuer and audience of its tokens; http(s)://host:port.",
    )
    token_lifetime: Annotated[int, Field(ge=60, le=GREATEST_TOKEN_LIFETIME)] = Field(
        3600, description="Validity of access tokens, seconds."
    )
    token_key_lifetime: Annotated[int, Field(ge=0)] = Field(
        2_592_000, description="Age at which a key that signs access tokens is replaced, seconds; 0: by command alone."
    )
    certificate_bound_tokens: bool = Field(
        False, description="Bind a token to the client certificate that it was requested with (RFC 8705)."
    )
    issuers: tuple[IssuerSettings, ...] = Field(
        (), description="Other issuers whose access tokens are taken, [[issuers]] tables of the file."
    )
    vehicle_trust: VehicleTrust = Field(
        VehicleTrust.CHAIN, description="chain: to a trusted OEM root. signature: laboratories without OEM roots only."
    )
    no_default_policy: NoDefaultPolicy = Field(
        NoDefaultPolicy.SOLE, description="ISO 15118-2, no default contract. sole: deliver the only one. none: nothing."
    )
    automatic_default: AutomaticDefault = Field(
        AutomaticDefault.FIRST,
        description="first: a vehicle's first contract becomes its default until its manufacturer chooses. none: no "
        "default without a choice.",
    )
    max_contracts_per_vehicle: Annotated[int, Field(ge=1)] = Field(
        16, description="Contracts stored for one PCID at most."
    )
    max_contracts_per_vehicle_and_provider: Annotated[int, Field(ge=1)] = Field(
        4, description="Contracts of one provider stored for one PCID at most."
    )
    root_match: RootMatch = Field(
        RootMatch.LENIENT,
        description="The vehicle lists none of our V2G roots. lenient: newest variant. strict: nothing.",
    )
    revocation: RevocationMode = Field(
        RevocationMode.WHEN_NAMED,
        description="when-named: certificates that name a CRL or OCSP address, or whose issuer has one in crl_urls, "
        "need fresh evidence. require: all do. off: laboratories only.",
    )
    revocation_grace: Annotated[int, Field(ge=0)] = Field(
        0, description="How long evidence may be past its nextUpdate and still serve a delivery, seconds."
    )
    crl_urls: dict[str, str] = Field(
        {},
        description="CRL address by issuer: SHA-256 fingerprint of a certificate that is in the trust store, or common "
        "name. Counts for every certificate of the same name and key.",
    )
    ocsp_sha256: tuple[str, ...] = Field(
        (), description="Issuers (as in crl_urls) whose OCSP responders are asked with SHA-256 CertIDs."
    )
    egress_allow_networks: tuple[str, ...] = Field(
        (),
        description="Networks (CIDR) that are not public but may be called for CRLs, OCSP and partners all the same.",
    )
    rcp_url: str | None = Field(None, description="Root Certificate Pool to take anchors from, its address up to /rcp.")
    rcp_token: SecretStr | None = Field(None, description="Bearer token for the Root Certificate Pool.")
    rcp_interval: Annotated[int, Field(ge=60)] = Field(86_400, description="Seconds between two synchronisations.")
    pcp_url: str | None = Field(None, description="Provisioning Certificate Pool, its address up to /pcp.")
    require_known_vehicle: bool | None = Field(
        None,
        description="Refuse a contract for a PCID that the Provisioning Certificate Pool does not know; true with "
        "pcp_url if not given.",
    )
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
    purge_interval: Annotated[int, Field(ge=0)] = Field(
        3600, description="Seconds between two runs that remove expired and revoked contracts; 0 for none."
    )
    purge_grace: Annotated[int, Field(ge=0)] = Field(0, description="How long an expired contract is kept, seconds.")
    pool_id: Annotated[str, Field(pattern=r"^[!-~]{1,64}$")] | None = Field(
        None, description="This pool's own party id, as others write it in OPNC-to-party-id."
    )
    peer_delivery_timeout: Annotated[float, Field(gt=0, le=4)] = Field(
        1.5, description="How long other pools may take to answer for a car, seconds. The car waits five in all."
    )
    peer_negative_ttl: Annotated[float, Field(ge=0, le=3600)] = Field(
        30,
        description="How long a peer that had nothing for a car is not asked for that car again, seconds. 0: no time.",
    )
    broadcast_rate: Annotated[int, Field(ge=0)] = Field(
        200,
        description="Requests to other pools a second that one party's broadcasts may cause in a worker. 0: no limit.",
    )
    peer_request_timeout: Annotated[float, Field(gt=0, le=60)] = Field(
        10, description="How long another pool may take for a request that is addressed to it and no car's, seconds."
    )
    opcp: bool = Field(True, description="Speak OPCP, the predecessor of OPNC, under /v1 too.")
    opcp_no_contract_response: OPCPNoContractResponse = Field(
        OPCPNoContractResponse.DELIVER,
        description="No contract for a car, asked in OPCP. deliver: 200 with the negative message. 404: an error.",
    )
    event_allow_http: bool = Field(
        False, description="Take webhooks without TLS (http://) too; for laboratories, since events name contracts."
    )
    event_dispatch: bool = Field(
        True, description="Send events from the server's workers; else `ccp events dispatch` has to."
    )
    event_timeout: Annotated[float, Field(gt=0, le=60)] = Field(
        10, description="How long a webhook may take to answer, seconds."
    )
    event_concurrency: Annotated[int, Field(ge=1, le=100)] = Field(
        4, description="Events on their way to one webhook at a time, of different vehicles, from one worker."
    )
    event_retries: Annotated[int, Field(ge=0, le=100)] = Field(
        3, description="How often an event is sent again that a webhook did not take."
    )
    event_retry_delay: Annotated[float, Field(gt=0)] = Field(3600, description="Seconds between two of these tries.")
    event_max_age: Annotated[float, Field(gt=0)] = Field(
        259_200, description="How long an event waits for a webhook at most, whatever keeps it, seconds."
    )
    event_retention: Annotated[float, Field(ge=0)] = Field(
        604_800, description="How long it can be seen that an event was delivered, seconds."
    )
    max_body: Annotated[int, Field(ge=4096)] = Field(262_144, description="Largest request body, octets.")
    read_timeout: Annotated[int, Field(ge=1)] = Field(
        20, description="Seconds that a client may take for a request's head, for its body, and to take the answer."
    )
    max_connections: Annotated[int, Field(ge=1)] = Field(
        1000, description="Open connections of one worker, with those in a TLS handshake."
    )
    max_connections_per_address: Annotated[int, Field(ge=1)] = Field(
        200, description="Open connections of one worker from one address, unless that is a trusted proxy."
    )
    rate_limit_per_address: Annotated[int, Field(ge=0)] = Field(
        1000, description="Requests a second from one address, twice as many at once; 0: no limit."
    )
    rate_limit_per_party: Annotated[int, Field(ge=0)] = Field(
        500, description="Requests a second of one party, twice as many at once; 0: no limit."
    )
    rate_limit_unauthenticated: Annotated[int, Field(ge=0)] = Field(
        5, description="Requests a second without a valid token from one address, 20 times as many at once; 0: any."
    )
    login_failures_per_minute: Annotated[int, Field(ge=0)] = Field(
        10,
        description="Failed token requests a minute for one client id from one address (or where none is known), and "
        "five times as many for all client ids from one address, and for one client id from all; 0: no limit.",
    )
    rate_limit_file: Path | None = Field(
        None, description="File in which processes of one machine share their rates; `ccp serve` makes one for workers."
    )
    metrics: MetricsAccess = Field(
        MetricsAccess.LOOPBACK,
        description="Who gets /metrics. loopback: this machine, and the role admin. admin: that role alone. off.",
    )
    drain_period: Annotated[float, Field(ge=0, le=300)] = Field(
        0, description="How long the pool goes on after SIGTERM, no longer ready, until it closes its port, seconds."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_identifiers: LogIdentifiers = Field(
        LogIdentifiers.PSEUDONYM,
        description="EMAIDs and PCIDs in the log. pseudonym: a keyed hash. owner: provider id or WMI alone. clear.",
    )
    log_pseudonym_key: Annotated[SecretStr, Field(min_length=16)] | None = Field(
        None, description="Key of these hashes; without it the pool makes one and keeps it in its database."
    )
    log_format: Literal["json", "console"] = Field("json", description="json for machines, console for people.")

    @field_validator("token_key_lifetime")
    @classmethod
    def _lets_keys_live(cls, value: int) -> int:
        if 0 < value < 3600:
            raise ValueError("must be 0 or at least 3600")
        return value

    @field_validator("crl_urls", "ocsp_sha256")
    @classmethod
    def _name_issuers(cls, value: Any) -> Any:
        """Hexadecimal digits that are no SHA-256 fingerprint are a mistake, not the common name of a CA."""
        for text in value:
            parse_issuer(text)
        return value

    @field_validator("base_url")
    @classmethod
    def _no_trailing_slash(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not re.fullmatch(r"https?://[^/?#\s]+[^?#\s]*", value):
            raise ValueError("must be an http or https address")
        return value.rstrip("/")

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            ip_network(text)
        return value

    @property
    def public_url(self) -> str:
        """base_url, or the address that the pool listens on."""
        return self.base_url or f"{'https' if self.tls_cert else 'http'}://{self.host}:{self.port}"

    def shown(self) -> dict[str, Any]:
        """The values as they may be printed: secrets, and credentials in any text that is a URL, are left out."""
        shown: dict[str, Any] = _without_credentials(self.model_dump(mode="json"))
        return shown


def _without_credentials(value: Any) -> Any:
    if isinstance(value, str):
        return hide_credentials(value)
    if isinstance(value, dict):
        return {_without_credentials(name): _without_credentials(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_without_credentials(member) for member in value]
    return value


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
        told = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}." for each in exc.errors())
        raise ConfigurationError(*map(hide_in_text, told)) from exc
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigurationError("tls_cert and tls_key belong together.")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise ConfigurationError("tls_client_ca needs tls_cert and tls_key.")
    if (
        settings.certificate_bound_tokens
        and settings.tls_client_ca is None
        and settings.client_certificate_header is None
    ):
        raise ConfigurationError("certificate_bound_tokens needs tls_client_ca or client_certificate_header.")
    issuers = [entry.issuer for entry in settings.issuers]
    if len({*issuers, settings.public_url}) <= len(issuers):
        raise ConfigurationError("issuers: each has to have a name of its own, other than base_url.")
    _check_prefixes(settings.issuers)
    return settings


def _check_prefixes(issuers: Iterable[IssuerSettings]) -> None:
    """Refuse issuers whose callers could have the same client id.

    A caller's name may hold colons, so the prefix "a" collides with "a:b" as it does with itself. Raises
    ConfigurationError.
    """
    for one, other in permutations(issuers, 2):
        if f"{other.caller_prefix}:".casefold().startswith(f"{one.caller_prefix}:".casefold()):
            raise ConfigurationError(
                f"issuers: client ids of {one.issuer} and {other.issuer} collide: they begin with "
                f'"{one.caller_prefix}:" and "{other.caller_prefix}:". Give each a prefix of its own.'
            )


def _anchor_paths(values: dict[str, Any], folder: Path) -> None:
    for entry in values["issuers"] if isinstance(values.get("issuers"), list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("jwks_file"), str):
            entry["jwks_file"] = folder / entry["jwks_file"]
    for name in ("tls_cert", "tls_key", "tls_client_ca", "rate_limit_file"):
        if isinstance(values.get(name), str):
            values[name] = folder / values[name]
    database = values.get("database")
    if isinstance(database, str) and database.startswith("sqlite:///"):
        values["database"] = f"sqlite:///{folder.resolve() / database.removeprefix('sqlite:///')}"
