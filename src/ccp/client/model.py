"""Arguments and results of the client's operations."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.schemas.common import encode_base64
from ccp.x509.profiles import AnchorRole


@dataclass(frozen=True, slots=True)
class Credentials:
    """OAuth 2.0 client credentials (RFC 6749 clause 4.4).

    token_url: address of the token endpoint; the pool's own `/oauth/token` by default. audience, scope: sent if given;
    some authorization servers require them.
    """

    client_id: str
    secret: str = field(repr=False)
    token_url: str | None = None
    audience: str | None = None
    scope: str | None = None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits in seconds.

    request: for one HTTP request and its response. total: for a call with its token requests, retries and backoff. The
    `timeout` of a call takes the place of `total`.
    """

    request: float = 10.0
    total: float = 30.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retries of requests that failed temporarily: without a response, or with status 429, 502 or 503.

    max_retries: after the first attempt. backoff: seconds before the first retry; doubles with each further retry, with
    jitter.
    """

    max_retries: int = 2
    backoff: float = 0.2


@dataclass(frozen=True, slots=True)
class SignedResponse:
    """A signed CertificateInstallationRes for a vehicle.

    message: EXI. root: SHA-256 fingerprint of the V2G root of its signature. pcid, root and root_dn are None where the
    dialect does not carry them.
    """

    emaid: EMAID
    pcid: PCID | None
    namespace: Namespace
    message: bytes
    metadata: str | None = None
    root: Fingerprint | None = None
    root_dn: str | None = None

    @property
    def base64(self) -> str:
        """The message in Base64."""
        return encode_base64(self.message)


@dataclass(frozen=True, slots=True)
class Delivered:
    """At least one contract for the vehicle, in the order of delivery."""

    contracts: tuple[SignedResponse, ...]
    trace_id: str | None = None

    @property
    def message(self) -> bytes:
        """The first CertificateInstallationRes, EXI; the only one for an ISO 15118-2 vehicle."""
        return self.contracts[0].message

    @property
    def base64(self) -> str:
        """The first message in Base64, as OCPP carries it."""
        return encode_base64(self.message)


@dataclass(frozen=True, slots=True)
class NoContractResponse:
    """The pool has no contract for the vehicle.

    message: the negative CertificateInstallationRes, EXI; it is sent to the vehicle like a positive one. code: its
    ResponseCode. reason: a sentence for the log.
    """

    message: bytes
    namespace: Namespace
    code: str
    reason: str | None = None
    trace_id: str | None = None

    @property
    def base64(self) -> str:
        """The message in Base64, as OCPP carries it."""
        return encode_base64(self.message)


@dataclass(frozen=True, slots=True)
class EVCertificate:
    """The pool's response to Get15118EVCertificate, which goes to the charging station.

    status: Accepted or Failed. exi_response: the message for the vehicle in Base64, positive or negative; empty if the
    pool could not read the vehicle's request. remaining_contracts: how many follow if the vehicle repeats its request
    (OCPP 2.1, ISO 15118-20). reason_code, reason: why it failed.
    """

    status: str
    exi_response: str
    remaining_contracts: int | None = None
    reason_code: str | None = None
    reason: str | None = None
    trace_id: str | None = None

    @property
    def accepted(self) -> bool:
        """Whether the message contains a contract."""
        return self.status == "Accepted"

    @property
    def message(self) -> bytes:
        """The message for the vehicle, EXI."""
        return base64.b64decode(self.exi_response)

    @property
    def payload(self) -> dict[str, Any]:
        """The payload of Get15118EVCertificateResponse."""
        found: dict[str, Any] = {
            "status": self.status,
            "exiResponse": self.exi_response,
            "remainingContracts": self.remaining_contracts,
        }
        if self.reason_code is not None:
            info = {"reasonCode": self.reason_code, "additionalInfo": self.reason}
            found["statusInfo"] = {name: value for name, value in info.items() if value is not None}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def arguments(self) -> dict[str, Any]:
        """The payload with names in snake case, as the package ocpp takes it."""
        names = {"exiResponse": "exi_response", "remainingContracts": "remaining_contracts"}
        found = {names.get(name, name): value for name, value in self.payload.items() if name != "statusInfo"}
        if self.reason_code is not None:
            found["status_info"] = {"reason_code": self.reason_code, "additional_info": self.reason}
        return found


@dataclass(frozen=True, slots=True)
class ContractState:
    """A contract without its message.

    certificate: contract certificate, DER. undeliverable: why the vehicle does not get the contract, if the pool says
    so.
    """

    emaid: EMAID
    pcid: PCID
    namespace: Namespace
    certificate: bytes
    is_default: bool
    valid_from: datetime
    valid_to: datetime
    root: Fingerprint | None = None
    root_dn: str | None = None
    undeliverable: str | None = None


@dataclass(frozen=True, slots=True)
class Root:
    """A root certificate that the pool trusts.

    id: by which the pool lists it, a UUID. role: what it is trusted for, None for a role that this library does not
    know. certificate: DER. fingerprint, distinguished_name, valid_from and valid_to are those of the certificate.
    """

    id: str
    role: AnchorRole | None
    certificate: bytes = field(repr=False)
    fingerprint: Fingerprint
    distinguished_name: str
    valid_from: datetime
    valid_to: datetime


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The contract is no longer in the pool.

    confirmed: False if the response to one attempt was lost and the next attempt found no such contract. Most likely
    the lost attempt removed it; but it may never have existed.
    """

    confirmed: bool = True


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check of a dry run. verdict: "passed", "failed", or the pool's word for a check that it could not run."""

    subject: str
    verdict: str
    reason: str | None
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DryRunReport:
    """The result of a dry run. raw: the report's JSON as the pool sent it."""

    passed: bool
    checks: tuple[CheckResult, ...]
    warnings: tuple[str, ...]
    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook of the caller.

    events: their names as subscribed to. wmis, provider_ids: whose events it gets. role, owner: as the pool has them.
    secret: in the result of `create_webhook` only; HMAC key, UTF-8. previous_secrets_valid_until: of each replaced
    secret that still signs, newest first.
    """

    id: str
    url: str
    events: tuple[str, ...]
    enabled: bool
    created: datetime
    description: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    signature_format: str = "sha256"
    wmis: tuple[str, ...] = ()
    provider_ids: tuple[str, ...] = ()
    role: str | None = None
    owner: str | None = None
    secret: str | None = field(default=None, repr=False)
    previous_secrets_valid_until: tuple[datetime, ...] = ()


@dataclass(frozen=True, slots=True)
class NewWebhookSecret:
    """A new secret, which is not shown again. previous_valid_until: of each older secret, newest first."""

    secret: str = field(repr=False)
    previous_valid_until: tuple[datetime, ...] = ()


@dataclass(frozen=True, slots=True)
class PingResult:
    """What came back from a test event.

    status: HTTP status; None without a response. duration: milliseconds. error: why it was not delivered.
    previous_secret: the receiver accepted it with a replaced secret only.
    """

    event_id: str
    delivered: bool
    status: int | None
    duration: float
    error: str | None
    previous_secret: bool = False


@dataclass(frozen=True, slots=True)
class RemovedWebhook:
    """The webhook does not exist any more.

    confirmed: False if the response to one attempt was lost and the next attempt found no such webhook.
    """

    confirmed: bool = True
