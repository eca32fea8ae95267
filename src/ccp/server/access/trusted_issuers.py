"""Trusted issuers: the keys of other authorisation servers, and the mapping of their claims to a party.

A token's `iss` selects the issuer, and only that issuer's keys are tried. Keys come only from the configured URL or
file. They are refreshed on a schedule, and in between when a token names an unknown key, but not more often than
`jwks_refresh_cooldown` permits, so that a caller cannot make the pool flood an issuer. While an issuer does not answer,
its last keys stay valid. A key set without a usable key withdraws them: they verify for one more
`jwks_refresh_interval`, in case the issuer is in the middle of a change, and no longer.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from ccp.errors import ConfigurationError, FieldError, Unavailable, UpstreamError
from ccp.ids import WMI, OperatorId, ProviderId
from ccp.server.access.jose import (
    InvalidAudience,
    InvalidClaim,
    InvalidTime,
    PublicKey,
    UnknownCaller,
    UnknownIssuer,
    UnknownKey,
    UnverifiedToken,
    VerifiedToken,
    parse_jwk_set,
    verify,
)
from ccp.server.domain.parties import Party, PartyRole
from ccp.server.external.outbound import OutboundClient
from ccp.server.runtime import start_files
from ccp.server.runtime.background import PeriodicTask
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.server.settings.issuers import IssuerSettings

_log = structlog.get_logger("ccp.server.access.trusted_issuers")

_TIMEOUT: Final = 2.0  # Seconds; a vehicle's request may be waiting.
_MAX_BYTES: Final = 262_144
_MAX_NAME_LENGTH: Final = 150

Id = TypeVar("Id", ProviderId, WMI, OperatorId)


@dataclass(frozen=True, slots=True)
class ExternalIdentity:
    """A caller as described by a token of another issuer.

    starts, expires: validity of the token, seconds since 1970; `starts` includes the leeway.
    """

    party: Party
    starts: float
    expires: float
    claims: Mapping[str, Any]


class TrustedIssuer:
    """A trusted issuer and its current keys."""

    def __init__(
        self,
        entry: IssuerSettings,
        outbound: OutboundClient,
        *,
        audience: str,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """audience: used unless the settings name one for the issuer. changed: called after a change of keys.

        Raises ConfigurationError for a file without a usable key.
        """
        self._entry = entry
        self._outbound = outbound
        self._audience = entry.audience or audience
        self._changed = changed
        self._reading = BlockingCalls("reading of a key set", max_threads=1, timeout=10.0)
        self._keys: tuple[PublicKey, ...] = ()
        self._attempt: asyncio.Task[None] | None = None
        self._attempted = -math.inf
        self._withdrawn_at: float | None = None  # Monotonic; since then the issuer publishes no usable key.
        self._problem: str | None = None
        if entry.jwks_file is not None:
            self._keys = _file_keys(entry.issuer, entry.jwks_file)

    async def authenticate(self, token: UnverifiedToken, now: datetime) -> ExternalIdentity:
        """Verify a token of this issuer. Raises TokenError; Unavailable while there are no keys."""
        if not self._has_key(token.kid):
            await self._refresh_on_demand()
        self._drop_withdrawn()
        if not self._keys:
            if self._withdrawn_at is not None:
                raise UnknownKey  # The issuer publishes no key that could have signed.
            raise Unavailable("The keys of the token's issuer are not available now.")
        found = verify(token, self._keys, self._entry.algorithms)
        starts, expires = self._check(found, now)
        return ExternalIdentity(party_from_claims(self._entry, found.claims), starts, expires, found.claims)

    async def refresh(self) -> None:
        """Fetch the issuer's keys. A failure is logged, and the current keys stay."""
        if self._attempt is None or self._attempt.done():
            self._attempted = time.monotonic()
            self._attempt = asyncio.create_task(self._fetch())
        # Shielded: a caller may be cancelled while others wait for the same request.
        await asyncio.shield(self._attempt)

    def refresh_task(self) -> PeriodicTask:
        """The background task that refreshes the keys. Not critical: callers of other issuers are not affected."""
        return PeriodicTask("issuer_keys", self._refresh_or_fail, self._delay, first_delay=0.0)

    async def _refresh_or_fail(self) -> None:
        self._drop_withdrawn()
        await self.refresh()
        if self._problem is not None:
            raise UpstreamError(f"{self._entry.issuer}: {self._problem}")

    def _delay(self) -> float:
        """Seconds until the next refresh; not beyond the end of withdrawn keys."""
        delay = self._entry.jwks_refresh_interval * (0.75 + random.random() / 2)  # noqa: S311  spreads load
        if self._withdrawn_at is None or not self._keys:
            return delay
        return max(0.0, min(delay, self._withdrawn_at + self._entry.jwks_refresh_interval - time.monotonic()))

    def _has_key(self, kid: str | None) -> bool:
        return bool(self._keys) if kid is None else any(key.kid == kid for key in self._keys)

    async def _refresh_on_demand(self) -> None:
        waiting = self._attempt is not None and not self._attempt.done()
        if waiting or time.monotonic() - self._attempted >= self._entry.jwks_refresh_cooldown:
            await self.refresh()

    async def _fetch(self) -> None:
        try:
            keys, unusable = parse_jwk_set(await self._document())
        except (OSError, ValueError, Unavailable) as exc:
            kept = f"{len(self._keys)} earlier keys stay valid" if self._keys else "there are no earlier keys"
            self._problem = f"The key set was not fetched: {exc}; {kept}."
            _log.warning("jwks refresh failed", issuer=self._entry.issuer, reason=self._problem)
            return
        self._problem = None
        if not keys:
            self._withdraw(unusable)
            return
        self._withdrawn_at = None
        if [key.dict_value for key in keys] == [key.dict_value for key in self._keys]:
            return
        if unusable:
            _log.warning("jwks keys ignored", issuer=self._entry.issuer, reason=f"Unusable: {', '.join(unusable)}.")
        self._keys = keys
        self._changed()

    def _withdraw(self, unusable: list[str]) -> None:
        """Withdraw the keys after one more interval: the issuer's key set has no usable key."""
        if self._withdrawn_at is None:
            self._withdrawn_at = time.monotonic()
        left = max(0.0, self._withdrawn_at + self._entry.jwks_refresh_interval - time.monotonic())
        ending = (
            f"its {len(self._keys)} earlier keys expire in {left:.0f} seconds"
            if self._keys
            else "there are no earlier keys"
        )
        _log.warning("jwks without usable key", issuer=self._entry.issuer, reason=f"{_why_none(unusable)}; {ending}.")

    def _drop_withdrawn(self) -> None:
        """Drop keys that the issuer withdrew one refresh interval ago."""
        if self._withdrawn_at is None or not self._keys:
            return
        if time.monotonic() - self._withdrawn_at >= self._entry.jwks_refresh_interval:
            _log.warning("jwks keys withdrawn", issuer=self._entry.issuer, keys=len(self._keys))
            self._keys = ()
            self._changed()

    async def _document(self) -> bytes:
        if self._entry.jwks_file is not None:
            return await self._reading.run(start_files.read, self._entry.jwks_file)
        assert self._entry.jwks_url is not None, "IssuerSettings requires one of the two"
        response = await self._outbound.request(
            "GET",
            self._entry.jwks_url,
            block_private=False,  # Configured by the operator.
            headers={"Accept": "application/jwk-set+json, application/json"},
            timeout=_TIMEOUT,
            max_bytes=_MAX_BYTES,
            service="issuer",
        )
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        return response.body

    def _check(self, token: VerifiedToken, now: datetime) -> tuple[float, float]:
        """The start and the end of the token's validity. Raises InvalidAudience, InvalidTime, InvalidClaim."""
        claims = token.claims
        audience = claims.get("aud")
        if self._audience not in (audience if isinstance(audience, list) else [audience]):
            raise InvalidAudience
        expires = _time(claims.get("exp"))
        starts = max((_time(claims[name]) for name in ("nbf", "iat") if name in claims), default=0.0)
        starts -= self._entry.leeway
        # No leeway for the end: a token that has expired for its issuer is never valid here.
        if not starts <= now.timestamp() < expires:
            raise InvalidTime
        return starts, expires


class TrustedIssuers:
    """The trusted issuers, by the `iss` of their tokens."""

    def __init__(
        self,
        entries: Iterable[IssuerSettings],
        outbound: OutboundClient,
        *,
        audience: str,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """See `TrustedIssuer`. Raises ConfigurationError."""
        self._issuers = {
            entry.issuer: TrustedIssuer(entry, outbound, audience=audience, changed=changed) for entry in entries
        }

    def __iter__(self) -> Iterator[TrustedIssuer]:
        return iter(self._issuers.values())

    async def authenticate(self, token: UnverifiedToken, now: datetime) -> ExternalIdentity:
        """Verify a token by its issuer, see `TrustedIssuer.authenticate`. Raises UnknownIssuer too."""
        issuer = self._issuers.get(token.issuer or "")
        if issuer is None:
            raise UnknownIssuer
        return await issuer.authenticate(token, now)


def check_key_files(entries: Iterable[IssuerSettings]) -> None:
    """Check that every configured key file can be used. Raises ConfigurationError."""
    for entry in entries:
        if entry.jwks_file is not None:
            _file_keys(entry.issuer, entry.jwks_file)


def _file_keys(issuer: str, file: Path) -> tuple[PublicKey, ...]:
    """Raises ConfigurationError."""
    try:
        return _usable(start_files.read(file))[0]
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"The keys of {issuer} in {file} cannot be used: {exc}.") from exc


def _usable(document: bytes) -> tuple[tuple[PublicKey, ...], list[str]]:
    """Parse a key set. Raises ValueError if it has no usable key."""
    keys, unusable = parse_jwk_set(document)
    if not keys:
        raise ValueError(_why_none(unusable))
    return keys, unusable


def _why_none(unusable: list[str]) -> str:
    return f"no usable key ({', '.join(unusable) or 'an empty set'})"


def _time(value: Any) -> float:
    """A NumericDate (RFC 7519 clause 2). Raises InvalidTime."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise InvalidTime
    return float(value)


# --- From claims to a party ------------------------------------------------------------------------------------------


def party_from_claims(entry: IssuerSettings, claims: Mapping[str, Any]) -> Party:
    """The party that the claims describe, restricted to what the issuer may assign.

    Its client id contains a colon, so it cannot collide with a registered one. Raises InvalidClaim, UnknownCaller.
    """
    name = find_claim(claims, entry.client_claim)
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > _MAX_NAME_LENGTH:
        raise InvalidClaim
    if name in entry.denied_clients:
        raise UnknownCaller
    client_id = f"{entry.caller_prefix}:{name}"
    roles = set(entry.roles)
    if entry.role_claim is not None:
        values = _strings(claims, entry.role_claim)
        # Unknown roles are ignored: the claim also contains roles for other services.
        roles |= {role for value in values if (role := entry.role_of(value)) is not None}
    roles &= entry.permitted_roles
    return Party(
        client_id,
        client_id,
        frozenset(roles),
        _ids(claims, entry.provider_claim, ProviderId, entry.allowed_provider_ids),
        entry.all_providers and PartyRole.CPS in roles,
        _ids(claims, entry.wmi_claim, WMI, entry.allowed_wmis),
        _ids(claims, entry.operator_claim, OperatorId, entry.allowed_operator_ids),
    )


def find_claim(claims: Mapping[str, Any], path: str) -> Any:
    """The value of a claim, None if there is none.

    A dot in the path descends into an object, unless it is part of a claim's name: "resource_access.ccp.roles",
    "https://example.com/roles".
    """
    if path in claims:
        return claims[path]
    for place, character in enumerate(path):
        inner = claims.get(path[:place]) if character == "." else None
        if isinstance(inner, Mapping) and (value := find_claim(inner, path[place + 1 :])) is not None:
            return value
    return None


def _strings(claims: Mapping[str, Any], path: str) -> list[str]:
    """The strings of a claim: a list, or one string separated by spaces. Raises InvalidClaim for anything else."""
    value = find_claim(claims, path)
    if value is None:
        return []
    if isinstance(value, str):
        return value.split()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise InvalidClaim


def _ids(claims: Mapping[str, Any], path: str | None, kind: type[Id], allowed: tuple[str, ...] | None) -> frozenset[Id]:
    """The ids in a claim that the issuer may assign. Raises InvalidClaim for a malformed id."""
    if path is None:
        return frozenset()
    try:
        found = frozenset(kind.parse(text) for text in _strings(claims, path))
    except FieldError as exc:
        raise InvalidClaim from exc
    return found if allowed is None else found & frozenset(map(kind.parse, allowed))
