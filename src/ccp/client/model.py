"""What goes into a call and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.schemas.common import encode_base64


@dataclass(frozen=True, slots=True)
class Credentials:
    """OAuth 2.0 client credentials (RFC 6749 clause 4.4).

    token_url: the pool's own `/oauth/token` if not given. audience, scope: sent if given; some issuers need them.
    """

    client_id: str
    secret: str = field(repr=False)
    token_url: str | None = None
    audience: str | None = None
    scope: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how often.

    exchange: seconds for one request and its answer. total: seconds for a call with everything that belongs to it
    (token, retries, pauses), unless the call says otherwise. retries: after the first attempt. pause: seconds before
    the first retry; each further one waits twice as long. octets: most that is read of an answer. connections: most
    that are open at a time; further requests wait for one.
    """

    exchange: float = 10.0
    total: float = 30.0
    retries: int = 2
    pause: float = 0.2
    octets: int = 4_194_304
    connections: int = 100


@dataclass(frozen=True, slots=True)
class SignedResponse:
    """A signed CertificateInstallationRes for a vehicle.

    message: EXI. root: SHA-256 fingerprint of the V2G root that it is signed under. pcid, root and root_dn are None
    where the dialect does not tell them.
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
    """What a vehicle gets: at least one contract, in the order in which it is to get them."""

    contracts: tuple[SignedResponse, ...]
    trace_id: str | None = None

    @property
    def message(self) -> bytes:
        """The first CertificateInstallationRes, EXI; the only one for an ISO 15118-2 vehicle."""
        return self.contracts[0].message

    @property
    def base64(self) -> str:
        """The same in Base64, as OCPP wants it."""
        return encode_base64(self.message)


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing for the vehicle.

    message: the negative CertificateInstallationRes, EXI, to be handed to the vehicle all the same. code: its
    ResponseCode. reason: in words, for the log.
    """

    message: bytes
    namespace: Namespace
    code: str
    reason: str | None = None
    trace_id: str | None = None

    @property
    def base64(self) -> str:
        """The message in Base64, as OCPP wants it."""
        return encode_base64(self.message)


@dataclass(frozen=True, slots=True)
class ContractState:
    """A contract without its message.

    certificate: of the contract, DER. undeliverable: why the vehicle does not get it, if the pool says so.
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
class Withdrawn:
    """The contract is not in the pool any more.

    certain: False when an attempt had been sent whose answer was lost, and the next one was told that there is no such
    contract. The lost one removed it, most likely; or there had never been one.
    """

    certain: bool = True


@dataclass(frozen=True, slots=True)
class Check:
    """verdict: "passed", "failed", or what the pool calls a check that it could not run."""

    subject: str
    verdict: str
    reason: str | None
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a dry run found. said: the report as the pool gave it."""

    passed: bool
    checks: tuple[Check, ...]
    warnings: tuple[str, ...]
    said: dict[str, Any] = field(repr=False)
