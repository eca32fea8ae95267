"""Other authorisation servers whose tokens the operator trusts: their keys, and what their claims make of a caller.

A token's `iss` chooses the issuer and with it the only keys that are tried. Keys come from the address or file of the
settings and from nowhere else; they are asked for on a schedule, and out of turn when a token names one that is not
known, but not more often than `pause` allows, so that nobody can make the pool flood an issuer. While an issuer cannot
be reached its last keys stay. A key set without a usable key withdraws them: they verify for one more `refresh`, in
case the issuer is in the middle of a change, and not longer.
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
from ccp.server.issuer_settings import IssuerSettings
from ccp.server.runtime.background import PeriodicTask
from ccp.server.runtime.blocking_calls import BlockingCalls

_log = structlog.get_logger("ccp.server.access.trusted_issuers")

_SECONDS: Final = 2.0  # A request may be waiting, and behind it a car.
_OCTETS: Final = 262_144
_NAME_LENGTH: Final = 150

Id = TypeVar("Id", ProviderId, WMI, OperatorId)


@dataclass(frozen=True, slots=True)
class ExternalIdentity:
    """A caller as an issuer's token makes it. starts, expires: seconds since 1970; the leeway is taken off starts."""

    party: Party
    starts: float
    expires: float
    claims: Mapping[str, Any]


class TrustedIssuer:
    """One of them. `changed` is called when its keys are others than before."""

    def __init__(
        self,
        entry: IssuerSettings,
        outbound: OutboundClient,
        *,
        audience: str,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """audience: ours, where the settings name none for it. Raises ConfigurationError for a file without keys."""
        self._entry = entry
        self._outbound = outbound
        self._audience = entry.audience or audience
        self._changed = changed
        self._reading = BlockingCalls("reading of a key set", max_threads=1, timeout=10.0)
        self._keys: tuple[PublicKey, ...] = ()
        self._attempt: asyncio.Task[None] | None = None
        self._attempted = -math.inf
        self._withdrawn_at: float | None = None  # Monotonic; since when the issuer publishes no usable key.
        self._problem: str | None = None
        if entry.jwks_file is not None:
            self._keys = _file_keys(entry.issuer, entry.jwks_file)

    async def recognise(self, token: UnverifiedToken, at: datetime) -> ExternalIdentity:
        """The caller that a token of this issuer names. Raises TokenError; Unavailable while there are no keys."""
        if not self._may_know(token.kid):
            await self._ask_out_of_turn()
        self._drop_withdrawn()
        if not self._keys:
            if self._withdrawn_at is not None:
                raise UnknownKey  # The issuer publishes no usable key, so none of its keys can have signed.
            raise Unavailable("The keys of the token's issuer cannot be had now.")
        found = verify(token, self._keys, self._entry.algorithms)
        starts, expires = self._check(found, at)
        return ExternalIdentity(party_from_claims(self._entry, found.claims), starts, expires, found.claims)

    async def refresh(self) -> None:
        """Take over the issuer's keys as they are now. What goes wrong is logged and changes nothing."""
        if self._attempt is None or self._attempt.done():
            self._attempted = time.monotonic()
            self._attempt = asyncio.create_task(self._fetch())
        # Whoever waits may go away; the others wait on.
        await asyncio.shield(self._attempt)

    def refreshing(self) -> PeriodicTask:
        """Refreshes the keys on a schedule. Not critical: an issuer that is away keeps no other caller out."""
        return PeriodicTask("issuer_keys", self._refresh_or_fail, self._pause, first_delay=0.0)

    async def _refresh_or_fail(self) -> None:
        self._drop_withdrawn()
        await self.refresh()
        if self._problem is not None:
            raise UpstreamError(f"{self._entry.issuer}: {self._problem}")

    def _pause(self) -> float:
        """Seconds until the next look at the keys; not beyond the end of keys that were withdrawn."""
        pause = self._entry.jwks_refresh_interval * (0.75 + random.random() / 2)  # noqa: S311  spreads load
        if self._withdrawn_at is None or not self._keys:
            return pause
        return max(0.0, min(pause, self._withdrawn_at + self._entry.jwks_refresh_interval - time.monotonic()))

    def _may_know(self, kid: str | None) -> bool:
        return bool(self._keys) if kid is None else any(key.kid == kid for key in self._keys)

    async def _ask_out_of_turn(self) -> None:
        waiting = self._attempt is not None and not self._attempt.done()
        if waiting or time.monotonic() - self._attempted >= self._entry.jwks_refresh_cooldown:
            await self.refresh()

    async def _fetch(self) -> None:
        try:
            keys, unusable = parse_jwk_set(await self._document())
        except (OSError, ValueError, Unavailable) as exc:
            kept = f"{len(self._keys)} keys of before stay" if self._keys else "there are none of before"
            self._problem = f"No new keys: {exc}; {kept}."
            _log.warning("issuer", issuer=self._entry.issuer, reason=self._problem)
            return
        self._problem = None
        if not keys:
            self._withdraw(unusable)
            return
        self._withdrawn_at = None
        if [key.dict_value for key in keys] == [key.dict_value for key in self._keys]:
            return
        if unusable:
            _log.warning("issuer", issuer=self._entry.issuer, reason=f"Keys that are left out: {', '.join(unusable)}.")
        self._keys = keys
        self._changed()

    def _withdraw(self, unusable: list[str]) -> None:
        """The issuer publishes a key set and no key in it that could have signed."""
        if self._withdrawn_at is None:
            self._withdrawn_at = time.monotonic()
        left = max(0.0, self._withdrawn_at + self._entry.jwks_refresh_interval - time.monotonic())
        ending = f"its {len(self._keys)} earlier keys end in {left:.0f} seconds" if self._keys else "there are none"
        _log.warning("issuer without usable key", issuer=self._entry.issuer, reason=f"{_why_none(unusable)}; {ending}.")

    def _drop_withdrawn(self) -> None:
        """End trust in keys that the issuer withdrew one refresh interval ago."""
        if self._withdrawn_at is None or not self._keys:
            return
        if time.monotonic() - self._withdrawn_at >= self._entry.jwks_refresh_interval:
            _log.warning("issuer keys withdrawn", issuer=self._entry.issuer, keys=len(self._keys))
            self._keys = ()
            self._changed()

    async def _document(self) -> bytes:
        if self._entry.jwks_file is not None:
            return await self._reading.run(self._entry.jwks_file.read_bytes)
        assert self._entry.jwks_url is not None, "one of both, as settings have checked"
        answer = await self._outbound.request(
            "GET",
            self._entry.jwks_url,
            block_private=False,  # The operator's own words, like every address of the settings.
            headers={"Accept": "application/jwk-set+json, application/json"},
            timeout=_SECONDS,
            max_bytes=_OCTETS,
        )
        if answer.status != 200:
            raise ValueError(f"status {answer.status}")
        return answer.body

    def _check(self, token: VerifiedToken, at: datetime) -> tuple[float, float]:
        """From when and until when the token is valid. Raises InvalidAudience, InvalidTime, InvalidClaim."""
        claims, now = token.claims, at.timestamp()
        audience = claims.get("aud")
        if self._audience not in (audience if isinstance(audience, list) else [audience]):
            raise InvalidAudience
        expires = _time(claims.get("exp"))
        starts = max((_time(claims[name]) for name in ("nbf", "iat") if name in claims), default=0.0)
        starts -= self._entry.leeway
        # Without leeway: a token that its issuer calls expired is never good here.
        if not starts <= now < expires:
            raise InvalidTime
        return starts, expires


class TrustedIssuers:
    """All of them, by the name that their tokens carry."""

    def __init__(
        self,
        entries: Iterable[IssuerSettings],
        outbound: OutboundClient,
        *,
        audience: str,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Raises ConfigurationError."""
        self._issuers = {
            entry.issuer: TrustedIssuer(entry, outbound, audience=audience, changed=changed) for entry in entries
        }

    def __iter__(self) -> Iterator[TrustedIssuer]:
        return iter(self._issuers.values())

    async def recognise(self, token: UnverifiedToken, at: datetime) -> ExternalIdentity:
        """See `TrustedIssuer.recognise`. Raises UnknownIssuer too."""
        issuer = self._issuers.get(token.issuer or "")
        if issuer is None:
            raise UnknownIssuer
        return await issuer.recognise(token, at)


def check_key_files(entries: Iterable[IssuerSettings]) -> None:
    """Raises ConfigurationError for a file of keys that cannot be used."""
    for entry in entries:
        if entry.jwks_file is not None:
            _file_keys(entry.issuer, entry.jwks_file)


def _file_keys(issuer: str, file: Path) -> tuple[PublicKey, ...]:
    """Raises ConfigurationError."""
    try:
        return _usable(file.read_bytes())[0]
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"The keys of {issuer} in {file} cannot be used: {exc}.") from exc


def _usable(document: bytes) -> tuple[tuple[PublicKey, ...], list[str]]:
    """Raises ValueError where there is no key that can be used."""
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
    """The party that an issuer's claims describe, within what the issuer may vouch for.

    Its client id holds a colon, which no registered party's does: the two never meet. Raises InvalidClaim.
    """
    name = find_claim(claims, entry.client_claim)
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > _NAME_LENGTH:
        raise InvalidClaim
    if name in entry.denied_clients:
        raise UnknownCaller
    client_id = f"{entry.caller_prefix}:{name}"
    roles = set(entry.roles)
    if entry.role_claim is not None:
        words = _words(claims, entry.role_claim)
        # Tokens carry roles for other services too; those that mean nothing here are no mistake.
        roles |= {role for word in words if (role := entry.role_of(word)) is not None}
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
    """The value of a claim, None where there is none. A dot in the path goes into an object, unless a claim's name has
    it: "resource_access.ccp.roles", "https://example.com/roles".
    """
    if path in claims:
        return claims[path]
    for place, character in enumerate(path):
        inner = claims.get(path[:place]) if character == "." else None
        if isinstance(inner, Mapping) and (value := find_claim(inner, path[place + 1 :])) is not None:
            return value
    return None


def _words(claims: Mapping[str, Any], path: str) -> list[str]:
    """A claim's words: a list of them, or a text with blanks between. Raises InvalidClaim for anything else."""
    value = find_claim(claims, path)
    if value is None:
        return []
    if isinstance(value, str):
        return value.split()
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return value
    raise InvalidClaim


def _ids(claims: Mapping[str, Any], path: str | None, kind: type[Id], only: tuple[str, ...] | None) -> frozenset[Id]:
    """The ids of a claim, those that the issuer may vouch for. Raises InvalidClaim for what is no id."""
    if path is None:
        return frozenset()
    try:
        found = frozenset(kind.parse(word) for word in _words(claims, path))
    except FieldError as exc:
        raise InvalidClaim from exc
    return found if only is None else found & frozenset(map(kind.parse, only))
