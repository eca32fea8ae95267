"""Settings, read once into one frozen object: from a file (`ccp.toml`), overridden by environment variables `CCP_…`."""

from __future__ import annotations

import os
import re
import tomllib
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from ccp.errors import ConfigurationError
from ccp.server import setting_names
from ccp.server.domain.contracts import NoDefaultPolicy, RootMatch
from ccp.server.domain.default_contracts import AutomaticDefault
from ccp.server.issuer_settings import IssuerSettings, check_prefixes
from ccp.server.runtime.redacted_urls import hide_credentials, hide_in_text
from ccp.server.service_settings import (
    PATHS,
    SERVICES,
    ServiceSettings,
    error_sentence,
    flatten_tables,
    from_environment,
    group_by_service,
)
from ccp.x509.issuer_map import parse_issuer
from ccp.x509.profiles import AnchorRole

DEFAULT_FILE = Path("ccp.toml")


class VehicleTrust(StrEnum):
    """Trust in a request: by the chain of its provisioning certificate to an OEM root, or by its signature only."""

    CHAIN = "chain"
    SIGNATURE = "signature"


class RevocationMode(StrEnum):
    """Which certificates need evidence that they are not revoked."""

    WHEN_NAMED = "when-named"
    REQUIRE = "require"
    OFF = "off"


class LogIdentifiers(StrEnum):
    """EMAIDs and PCIDs in the log: a keyed hash of each, their owner only, or in clear."""

    PSEUDONYM = "pseudonym"
    OWNER = "owner"
    CLEAR = "clear"


class MetricsAccess(StrEnum):
    """Access to /metrics: callers on this machine and the role admin, the role admin only, or none."""

    LOOPBACK = "loopback"
    ADMIN = "admin"
    OFF = "off"


CA_LABEL: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
"""Pattern of the name of a CA in a path of EST: characters that need no escaping in a URL."""

MAX_TOKEN_LIFETIME: Final = 86_400
"""Seconds. A retired key verifies for as long, because the setting may have been larger when a token was issued."""


class EnrolmentSubjects(StrEnum):
    """Common names in certificate requests: EVSE ids of the caller's operator ids, or any."""

    OWN = "own"
    ANY = "any"


class OPCPNoContractResponse(StrEnum):
    """OPCP response without a contract: 200 with the EXI message that says so, or an HTTP error.

    Clients forward only a 200 to the charging station.
    """

    DELIVER = "deliver"
    NOT_FOUND = "404"


class Settings(BaseSettings):
    """Every setting, its default and its meaning; `ccp config` prints the effective values."""

    model_config = SettingsConfigDict(env_prefix="CCP_", frozen=True, extra="forbid", hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8020, description="Port to listen on.")
    workers: Annotated[int, Field(ge=1, le=64)] = Field(1, description="Worker processes; one per core is recommended.")
    tls_cert: Path | None = Field(
        None, description="Certificate chain of the server, PEM. Without it the pool serves plain HTTP."
    )
    tls_key: Path | None = Field(None, description="Private key for tls_cert, PEM.")
    tls_client_ca: Path | None = Field(
        None, description="CA certificates for client certificates, PEM; every client then needs one (mutual TLS)."
    )
    client_certificate_header: str | None = Field(
        None, description="Header in which a trusted proxy sends the client certificate: URL-encoded PEM, or RFC 9440."
    )
    trusted_proxies: tuple[str, ...] = Field(
        ("127.0.0.0/8", "::1/128"),
        description="Networks (CIDR) of proxies whose X-Forwarded-For and client_certificate_header are evaluated.",
    )
    database: str = Field(
        "sqlite:///ccp.db",
        description="Database URL: sqlite:///FILE, or postgresql://USER:PASSWORD@HOST:PORT,HOST:PORT/NAME.",
    )
    database_connections: Annotated[int, Field(ge=1, le=500)] = Field(
        10, description="Maximum number of connections of one worker to PostgreSQL."
    )
    base_url: str | None = Field(
        None, description="Public URL of the pool, http(s)://host:port; issuer and audience of its access tokens."
    )
    token_lifetime: Annotated[int, Field(ge=60, le=MAX_TOKEN_LIFETIME)] = Field(
        3600, description="Validity of access tokens, seconds."
    )
    token_key_lifetime: Annotated[int, Field(ge=0)] = Field(
        2_592_000, description="Age at which a signing key of access tokens is replaced, seconds; 0: only by command."
    )
    certificate_bound_tokens: bool = Field(
        False, description="Bind each access token to the client certificate of the token request (RFC 8705)."
    )
    issuers: tuple[IssuerSettings, ...] = Field(
        (), description="Other authorisation servers whose access tokens are accepted, [[issuers]] tables of the file."
    )
    vehicle_trust: VehicleTrust = Field(
        VehicleTrust.CHAIN,
        description="chain: verify requests up to a trusted OEM root. signature: for laboratories without OEM roots.",
    )
    no_default_policy: NoDefaultPolicy = Field(
        NoDefaultPolicy.SOLE,
        description="ISO 15118-2 vehicle without a default contract. sole: deliver its only contract. none: deliver "
        "nothing.",
    )
    automatic_default: AutomaticDefault = Field(
        AutomaticDefault.FIRST,
        description="first: the first contract of a vehicle is its default until the manufacturer chooses. none: only "
        "the manufacturer chooses.",
    )
    max_contracts_per_vehicle: Annotated[int, Field(ge=1)] = Field(
        16, description="Maximum number of contracts stored for one PCID."
    )
    max_contracts_per_vehicle_and_provider: Annotated[int, Field(ge=1)] = Field(
        4, description="Maximum number of contracts of one provider stored for one PCID."
    )
    root_match: RootMatch = Field(
        RootMatch.LENIENT,
        description="Vehicle that lists none of the pool's V2G roots. lenient: deliver the newest variant. strict: "
        "deliver nothing.",
    )
    revocation: RevocationMode = Field(
        RevocationMode.WHEN_NAMED,
        description="Certificates whose revocation is checked. when-named: those with a CRL or OCSP address, or whose "
        "issuer is in crl_urls. require: all. off: none, for laboratories.",
    )
    revocation_grace: Annotated[int, Field(ge=0)] = Field(
        0, description="Seconds that a CRL or OCSP response may be past its nextUpdate and still permit a delivery."
    )
    crl_urls: dict[str, str] = Field(
        {},
        description="CRL URL by issuer: SHA-256 fingerprint of a certificate in the trust store, or common name. "
        "Applies to every certificate with the same name and key.",
    )
    ocsp_sha256: tuple[str, ...] = Field(
        (), description="Issuers (as in crl_urls) whose OCSP responders are queried with SHA-256 CertIDs."
    )
    egress_allow_networks: tuple[str, ...] = Field(
        (),
        description="Non-public networks (CIDR) that the pool may call for CRLs, OCSP and webhooks.",
    )
    rcp: ServiceSettings | None = Field(None, description="Root Certificate Pool to fetch anchors from.")
    rcp_interval: Annotated[int, Field(ge=60)] = Field(
        86_400, description="Seconds between two synchronisations with the Root Certificate Pool."
    )
    rcp_roles: Annotated[tuple[AnchorRole, ...], Field(min_length=1)] = Field(
        tuple(AnchorRole), description="Roles for which roots of the Root Certificate Pool are trusted; default: all."
    )
    pcp: ServiceSettings | None = Field(None, description="Provisioning Certificate Pool: vehicles and their keys.")
    require_known_vehicle: bool | None = Field(
        None,
        description="Refuse a contract for a PCID that is unknown to the Provisioning Certificate Pool; default: true "
        "if pcp_url is set.",
    )
    pcp_webhook_secret: SecretStr | None = Field(
        None, description="HMAC key for events of the Provisioning Certificate Pool; without it they are refused."
    )
    pki: ServiceSettings | None = Field(None, description="PKI service that revokes contract certificates.")
    est: ServiceSettings | None = Field(None, description="EST server that issues certificates to charging stations.")
    est_labels: dict[Annotated[str, Field(pattern=CA_LABEL)], Annotated[str, Field(pattern=f"^$|{CA_LABEL}")]] = Field(
        {"cpo": "cpo"},
        description="CAs that charge point operators may name in EST requests, and the label of each at the EST "
        "server; empty: the server's default CA.",
    )
    est_subjects: EnrolmentSubjects = Field(
        EnrolmentSubjects.OWN,
        description="Common name of a certificate request. own: an EVSE id of the caller's operator ids. any: left to "
        "the EST server.",
    )
    cps: ServiceSettings | None = Field(
        None, description="Certificate Provisioning Service whose certificates `ccp neighbour test` verifies."
    )
    operator_cas: tuple[str, ...] = Field(
        (), description="Fingerprints of the contract CAs whose certificates DELETE revokes through pki_url."
    )
    purge_interval: Annotated[int, Field(ge=0)] = Field(
        3600, description="Seconds between two purges of expired and revoked contracts; 0: no purge."
    )
    purge_grace: Annotated[int, Field(ge=0)] = Field(0, description="Seconds for which an expired contract is kept.")
    pool_id: Annotated[str, Field(pattern=r"^[!-~]{1,64}$")] | None = Field(
        None, description="Party id of this pool, as peers send it in OPNC-to-party-id."
    )
    peer_delivery_timeout: Annotated[float, Field(gt=0, le=4)] = Field(
        1.5, description="Timeout of peers for a vehicle's request, seconds. A vehicle waits five seconds in total."
    )
    peer_negative_ttl: Annotated[float, Field(ge=0, le=3600)] = Field(
        30,
        description="Seconds for which a peer without a contract for a vehicle is not asked for it again; 0: none.",
    )
    broadcast_rate: Annotated[int, Field(ge=0)] = Field(
        200,
        description="Requests to peers per second that one party's broadcasts may cause in a worker; 0: no limit.",
    )
    peer_request_timeout: Annotated[float, Field(gt=0, le=60)] = Field(
        10, description="Timeout of a peer for a request addressed to it, other than a vehicle's, seconds."
    )
    opcp: bool = Field(True, description="Serve OPCP, the predecessor of OPNC, under /v1.")
    opcp_no_contract_response: OPCPNoContractResponse = Field(
        OPCPNoContractResponse.DELIVER,
        description="OPCP request without a contract. deliver: 200 with the negative message. 404: status 404 with it.",
    )
    opcp_detect_edition: bool = Field(
        True, description="The edition of a vehicle's OPCP request is that of its message, whatever the body states."
    )
    ocpp_repetition_time: Annotated[int, Field(ge=10, le=86_400)] = Field(
        600,
        description="OCPP: seconds for which the pool remembers which contracts an ISO 15118-20 vehicle has got in "
        "answer to a request that it repeats.",
    )
    event_allow_http: bool = Field(
        False, description="Accept webhooks without TLS (http://); for laboratories, since events contain contract ids."
    )
    event_dispatch: bool = Field(
        True, description="Send events from the server's workers; otherwise run `ccp events dispatch`."
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
        (30, 7), description="Days before the end of a contract at which its eMSP is told; empty: never."
    )
    event_check_interval: Annotated[float, Field(gt=0)] = Field(
        600, description="Seconds between two searches for expired roots and for expiring or undeliverable contracts."
    )
    event_secret_overlap: Annotated[int, Field(ge=0, le=7_776_000)] = Field(
        86_400, description="Seconds for which a replaced secret of a webhook stays valid, at most and by default."
    )
    event_pings_per_minute: Annotated[int, Field(ge=0)] = Field(
        6, description="Test events (ping) that a party may send to its webhooks per minute; 0: no limit."
    )
    max_body: Annotated[int, Field(ge=4096)] = Field(262_144, description="Maximum size of a request body, bytes.")
    read_timeout: Annotated[int, Field(ge=1)] = Field(
        20, description="Seconds for a client to send the request head, to send the body, and to read the response."
    )
    max_connections: Annotated[int, Field(ge=1)] = Field(
        1000, description="Maximum number of open connections of one worker, including TLS handshakes."
    )
    max_connections_per_address: Annotated[int, Field(ge=1)] = Field(
        200, description="Maximum number of open connections of one worker from one address, trusted proxies excepted."
    )
    rate_limit_per_address: Annotated[int, Field(ge=0)] = Field(
        1000, description="Requests per second from one address, with a burst of twice as many; 0: no limit."
    )
    rate_limit_per_party: Annotated[int, Field(ge=0)] = Field(
        500, description="Requests per second of one party, with a burst of twice as many; 0: no limit."
    )
    rate_limit_unauthenticated: Annotated[int, Field(ge=0)] = Field(
        5,
        description="Requests per second without a valid token from one address, with a burst of 20 times as many; 0: "
        "no limit.",
    )
    login_failures_per_minute: Annotated[int, Field(ge=0)] = Field(
        10,
        description="Failed token requests per minute for one client id from one address (or from unknown addresses); "
        "five times as many for all client ids from one address, and for one client id from all addresses; 0: no "
        "limit.",
    )
    rate_limit_file: Path | None = Field(
        None,
        description="File through which processes of one machine share rate limits; `ccp serve` creates one for its "
        "workers.",
    )
    metrics: MetricsAccess = Field(
        MetricsAccess.LOOPBACK,
        description="Access to /metrics. loopback: callers on this machine, and the role admin. admin: that role only. "
        "off: none.",
    )
    drain_period: Annotated[float, Field(ge=0, le=300)] = Field(
        0, description="Seconds after SIGTERM during which the pool reports not ready but still accepts connections."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Minimum level to log.")
    log_identifiers: LogIdentifiers = Field(
        LogIdentifiers.PSEUDONYM,
        description="EMAIDs and PCIDs in the log. pseudonym: a keyed hash. owner: provider id or WMI only. clear.",
    )
    log_pseudonym_key: Annotated[SecretStr, Field(min_length=16)] | None = Field(
        None, description="Key of the keyed hash; default: a key that the pool generates and stores in its database."
    )
    log_format: Literal["json", "console"] = Field(
        "json", description="json: one JSON object per line. console: readable text."
    )

    @field_validator("token_key_lifetime")
    @classmethod
    def _check_key_lifetime(cls, value: int) -> int:
        if 0 < value < 3600:
            raise ValueError("must be 0 or at least 3600")
        return value

    @field_validator("crl_urls", "ocsp_sha256")
    @classmethod
    def _check_issuer_names(cls, value: Any) -> Any:
        """Refuse hexadecimal digits that are not a SHA-256 fingerprint: a typing error, not the common name of a CA."""
        for text in value:
            parse_issuer(text)
        return value

    @field_validator("base_url")
    @classmethod
    def _normalise_base_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not re.fullmatch(r"https?://[^/?#\s]+[^?#\s]*", value):
            raise ValueError("must be an http or https address")
        return value.rstrip("/")

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            ip_network(text)
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from arguments, then from the environment. Flat names of services become their members."""
        return _source(settings_cls, init_settings()), _source(settings_cls, from_environment()), env_settings

    @property
    def services(self) -> dict[str, ServiceSettings]:
        """The configured external services, by prefix."""
        found = {prefix: getattr(self, prefix) for prefix in SERVICES}
        return {prefix: service for prefix, service in found.items() if service is not None}

    @property
    def public_url(self) -> str:
        """base_url, or the URL of the address that the pool listens on."""
        return self.base_url or f"{'https' if self.tls_cert else 'http'}://{self.host}:{self.port}"

    def redacted(self) -> dict[str, Any]:
        """The values without secrets and without credentials in URLs, for display."""
        redacted: dict[str, Any] = _without_credentials(self.model_dump(mode="json"))
        return redacted


def _source(settings_cls: type[BaseSettings], values: dict[str, Any]) -> PydanticBaseSettingsSource:
    return InitSettingsSource(settings_cls, group_by_service(values))


def _without_credentials(value: Any) -> Any:
    if isinstance(value, str):
        return hide_credentials(value)
    if isinstance(value, dict):
        return {_without_credentials(name): _without_credentials(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_without_credentials(member) for member in value]
    return value


def file_in_effect(path: Path | None = None) -> Path | None:
    """Return the given file, else that of `CCP_CONFIG`, else `ccp.toml` if it exists; None for no file."""
    if path is not None:
        return path
    if os.environ.get("CCP_CONFIG"):
        return Path(os.environ["CCP_CONFIG"])
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def load(path: Path | None = None, **overrides: Any) -> Settings:
    """Load the settings from a file, the environment and the command line; the later source takes precedence.

    path: the file; default: see `file_in_effect`. overrides: options of the command line; None
    for an option that was not given. Relative paths in the file are relative to the file. Raises ConfigurationError.
    """
    named = file_in_effect(path)
    values: dict[str, Any] = {}
    if named is not None:
        try:
            values = flatten_tables(tomllib.loads(named.read_text(encoding="utf-8")))
        except OSError as exc:
            raise ConfigurationError(f"The configuration file {named} cannot be read: {exc.strerror}.") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigurationError(f"The configuration file {named} is not TOML: {exc}.") from exc
        except ValueError as exc:
            raise ConfigurationError(f"The configuration file {named} is contradictory: {exc}") from exc
        _anchor_paths(values, named.parent)
    problems = setting_names.problems(Settings.model_fields, values, os.environ)
    known = setting_names.known_names(Settings.model_fields)

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
            given = super().settings_customise_sources(
                settings_cls, init_settings, env_settings, dotenv_settings, file_secret_settings
            )
            return *given, _source(settings_cls, {name: values[name] for name in values.keys() & known})

    try:
        settings = Effective(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as exc:
        raise ConfigurationError(*problems, *map(hide_in_text, map(error_sentence, exc.errors()))) from None
    if problems:
        raise ConfigurationError(*problems)
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
        raise ConfigurationError("issuers: each needs a unique issuer that differs from base_url.")
    check_prefixes(settings.issuers)
    return settings


def _anchor_paths(values: dict[str, Any], folder: Path) -> None:
    """Make the relative paths of a file's values relative to its folder."""
    for entry in values["issuers"] if isinstance(values.get("issuers"), list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("jwks_file"), str):
            entry["jwks_file"] = folder / entry["jwks_file"]
    files = [f"{prefix}_{member}" for prefix in SERVICES for member in PATHS]
    for name in ("tls_cert", "tls_key", "tls_client_ca", "rate_limit_file", *files):
        if isinstance(values.get(name), str):
            values[name] = folder / values[name]
    database = values.get("database")
    if isinstance(database, str) and database.startswith("sqlite:///"):
        values["database"] = f"sqlite:///{folder.resolve() / database.removeprefix('sqlite:///')}"
