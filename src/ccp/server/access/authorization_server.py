"""Who calls: from a client's credentials to a token, from a token to the party that it names.

The pool is an authorisation server for its own parties (RFC 6749 client credentials, RFC 9068 tokens) and takes the
tokens of other issuers that the operator trusts (`ccp.server.access.trusted_issuers`).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import structlog
from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from joserfc import jwt
from joserfc.jwk import ECKey

from ccp.errors import InputError, NotAuthenticated, Unavailable
from ccp.server.access.jose import (
    CertificateMismatch,
    InvalidAudience,
    InvalidClaim,
    InvalidTime,
    TokenError,
    UnknownCaller,
    UnknownIssuer,
    UnverifiedToken,
    VerifiedToken,
    parse_compact,
    verify,
)
from ccp.server.access.party_cache import PartyCache
from ccp.server.access.secret_cache import SecretCache
from ccp.server.access.trusted_issuers import TrustedIssuers
from ccp.server.domain.parties import Party, PartyRole
from ccp.server.runtime.background import PeriodicTask
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.server.settings import MAX_TOKEN_LIFETIME
from ccp.server.storage import Store
from ccp.server.storage.queries import parties, signing_keys, unknown_values
from ccp.server.storage.queries.audit import POOL, Action, Entry, with_audit
from ccp.server.storage.queries.signing_keys import TokenKey

_log = structlog.get_logger("ccp.server.access.authorization_server")

# A generated secret has 256 bits, so the hash only has to make a stolen table worthless, not to slow down guessing:
# the least parameters of RFC 9106's order are enough, and a token request stays cheap.
_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
# Looks like the hash of a secret and is that of none: to compare with it takes as long. Made of zeros instead of a
# random secret, since that would cost every start 40 ms and 19 MiB.
DUMMY_HASH: Final = f"$argon2id$v=19$m={_HASHER.memory_cost},t={_HASHER.time_cost},p=1${'A' * 22}${'A' * 43}"
_SECRETS: Final = 2  # that a party may have at the same time, while it changes from one to the other
_CACHED_TOKENS: Final = 32_768  # Some 500 bytes each: two or three tokens of each of 10,000 parties.
_NOT_VALID: Final = "The access token is not valid (any more)."

KEY_ACTIVATION_DELAY: Final = timedelta(seconds=30)
"""How long a new key is published before it signs: workers look every second, others may cache the key set as long."""
_RETIRED_AFTER: Final = timedelta(seconds=MAX_TOKEN_LIFETIME + 60)
_LOOKED_AFTER_SECONDS: Final = 600  # Whether a key is old enough to be rotated, or retired, matters to nobody sooner.
_RELOADED_SECONDS: Final = 1.0
_LEEWAY: Final = 60
"""Seconds that clocks of the pool's machines may differ: a token of ours may be so much from the future."""


class InvalidScope(InputError):
    """A token was asked for with a role that is none, or that the party does not hold."""

    code = "scope"


class TokenResponse(NamedTuple):
    """lifetime: seconds."""

    access_token: str
    lifetime: int
    roles: frozenset[PartyRole]


def new_secret() -> str:
    """A client secret of 256 bits, shown once."""
    return secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    return _HASHER.hash(secret)


def new_key(at: datetime, *, after: timedelta = timedelta(0)) -> TokenKey:
    """A new ES256 key, which signs after a time."""
    key = ECKey.generate_key("P-256", auto_kid=True)
    while str(key.kid).startswith("-"):  # On a command line it would be taken for an option.
        key = ECKey.generate_key("P-256", auto_kid=True)
    return TokenKey(str(key.kid), key.as_pem(private=True).decode(), at, at + after)


async def rotate(store: Store, actor: str, at: datetime, after: timedelta = KEY_ACTIVATION_DELAY) -> TokenKey:
    """Add a key that signs after a time; the others verify for as long as tokens of theirs may be about.

    actor: as the audit trail has it.
    """
    candidate = new_key(at, after=after)
    change = signing_keys.rotate(candidate, candidate.starts_at + _RETIRED_AFTER, at)
    await store.write(with_audit(change, lambda _: [_rotated(candidate, actor, at)]))
    return candidate


async def revoke(store: Store, kid: str, actor: str, at: datetime) -> TokenKey | None:
    """End a key and every token that it has signed. Returns the key that was made in its place, if none was left.

    Raises NotFound.
    """
    candidate = new_key(at)

    def tell(replaced: bool) -> list[Entry]:
        entry = Entry(at, actor, Action.KEY_REVOKED, {"kid": kid})
        return [entry, _rotated(candidate, actor, at)] if replaced else [entry]

    return candidate if await store.write(with_audit(signing_keys.revoke(kid, candidate), tell)) else None


def _rotated(key: TokenKey, actor: str, at: datetime) -> Entry:
    return Entry(at, actor, Action.KEY_ROTATED, {"kid": key.kid})


@dataclass(frozen=True, slots=True)
class SigningKey:
    kid: str
    jwk: ECKey
    stored: TokenKey


@dataclass(frozen=True, slots=True)
class TokenIdentity:
    """What a verified token says. starts, expires: seconds since 1970; not earlier than it was issued, less what clocks
    may differ, and not later than its key is retired. roles: None for all that the party has. certificate: what the
    token is bound to. kid: of our own key. vouched: the party, if another issuer describes it.
    """

    client_id: str
    starts: float
    expires: float
    roles: frozenset[PartyRole] | None
    certificate: str | None
    kid: str | None = None
    vouched: Party | None = None


class CallerIdentity(NamedTuple):
    """The caller that a token names. kid: of the pool's own key that signed it, None for another issuer's.

    revision: see `AuthorizationServer.is_still_valid`. starts, expires: of the token,
    seconds since 1970.
    """

    party: Party
    kid: str | None
    revision: int
    starts: float
    expires: float


def _no_certificate() -> str | None:
    return None


class AuthorizationServer:
    """Issues access tokens to registered parties and recognises them, and those of other issuers.

    A token says who calls; what a registered party may do is read from the register at every call, so disabling it ends
    its tokens as soon as the register is refreshed.
    """

    def __init__(self, store: Store, *, issuer: str, lifetime: int, others: TrustedIssuers | None = None) -> None:
        """issuer: the pool's own address. lifetime: of tokens, seconds."""
        self._store = store
        self._issuer = issuer
        self._lifetime = lifetime
        self._others = others
        self._parties = PartyCache(store, self._count_change)
        self._stored: list[TokenKey] = []
        self._keys: tuple[SigningKey, ...] = ()
        self._known: dict[bytes, TokenIdentity] = {}
        self._hashing = BlockingCalls("check of secrets", max_threads=2, timeout=10.0)
        self._secrets = SecretCache()
        self._loading = asyncio.Lock()
        self._loaded = 0.0
        self._revision = 0  # Counts what may end a token that is recognised: changes of parties and of keys.

    # What it knows.

    def is_registered(self, client_id: str) -> bool:
        """Whether an enabled party has this client id, as far as this worker knows."""
        return client_id in self._parties

    async def refresh_parties(self) -> None:
        """Take over what has changed in the register since the last time. Raises Unavailable."""
        await self._parties.refresh()

    def _count_change(self) -> None:
        self._revision += 1

    async def refresh_keys(self, at: datetime) -> None:
        self._loaded = time.monotonic()
        async with self._loading:  # What was read earlier must not replace what was read later.
            stored = await self._store.read(signing_keys.list_all())
            if not stored:
                await self._store.write(signing_keys.ensure(new_key(at)))
                stored = await self._store.read(signing_keys.list_all())
            if stored != self._stored:
                self._stored, self._keys = stored, tuple(_readable(stored))
                self.clear_token_cache()

    def clear_token_cache(self) -> None:
        """Verify every token anew: keys have changed."""
        self._known.clear()
        self._revision += 1

    def key_rotation_task(self, lifetime: int, clock: Callable[[], Awaitable[datetime]]) -> PeriodicTask:
        """Rotate keys that are older than the lifetime (seconds; 0 for never), remove those that are retired. Every
        worker runs it; the first one finds something to do. clock: raises Unavailable where it is implausible.
        """

        def interval() -> float:
            return min(_LOOKED_AFTER_SECONDS, lifetime or _LOOKED_AFTER_SECONDS) * random.random()  # noqa: S311

        async def run() -> None:
            await self.replace_old_keys(lifetime, await clock())

        return PeriodicTask("token_key_rotation", run, interval)

    async def replace_old_keys(self, lifetime: int, at: datetime) -> None:
        """Raises Unavailable."""
        if lifetime:
            candidate = new_key(at, after=KEY_ACTIVATION_DELAY)
            retire_at = candidate.starts_at + _RETIRED_AFTER
            change = signing_keys.rotate_old(candidate, at - timedelta(seconds=lifetime), retire_at, at)
            done = await self._store.write(
                with_audit(change, lambda rotated: [_rotated(candidate, POOL, at)] if rotated else [])
            )
            if done:
                _log.info("token key rotated", kid=candidate.kid, signs_from=candidate.starts_at)
        await self._store.write(signing_keys.remove_retired(at))

    def published_keys(self, at: datetime) -> dict[str, Any]:
        """The keys that verify our tokens, as a JWK set (RFC 7517 clause 5)."""
        return {
            "keys": [
                key.jwk.as_dict(private=False, use="sig", alg="ES256") for key in self._keys if key.stored.verifies(at)
            ]
        }

    # Tokens of our own.

    def is_own_audience(self, audience: str) -> bool:
        """Whether an audience that a client asks for is this pool: an address under the origin of our own."""
        origin = _origin(audience)
        return origin is not None and origin == _origin(self._issuer)

    def secret_is_cached(self, client_id: str, secret: str) -> bool:
        """Whether a client got its last token from this process with this secret, as far as memory tells."""
        return self._secrets.contains(client_id, secret)

    async def issue(
        self,
        client_id: str,
        secret: str,
        at: datetime,
        *,
        roles: Collection[str] | None = None,
        certificate: str | None = None,
    ) -> TokenResponse:
        """A token for a party. Raises NotAuthenticated, InvalidScope.

        roles: those that it shall be good for; None for all. certificate: x5t#S256 of the one to bind it to.
        """
        stored = await self._store.read(parties.list_secret_hashes(client_id, at))
        hashes = [entry.hash for entry in stored]
        if not self._secrets.still_valid(client_id, secret, hashes):
            matching = await self._hashing.run(_matching_hash, hashes, secret)
            if matching is None:
                raise NotAuthenticated("The client is unknown or its secret is wrong.")
            self._secrets.remember(client_id, secret, matching)
        if client_id not in self._parties:
            await self.refresh_parties()  # It was registered within the last second.
        party = self._parties.get(client_id)
        if party is None:
            raise NotAuthenticated("The client is unknown or its secret is wrong.")
        held = {role.value: role for role in party.roles}
        if roles is not None and not set(roles) <= set(held):
            raise InvalidScope("scope has to name roles of the client.")
        granted = party.roles if roles is None else frozenset(held[name] for name in roles)
        return TokenResponse(
            self._signed(client_id, at, None if roles is None else granted, certificate), self._lifetime, granted
        )

    def _signed(
        self, client_id: str, at: datetime, roles: Collection[PartyRole] | None, certificate: str | None
    ) -> str:
        stored = signing_keys.current_key((key.stored for key in self._keys), at)
        if stored is None:
            raise Unavailable("There is no key to sign access tokens with.")
        now = int(at.timestamp())
        claims: dict[str, Any] = {
            "iss": self._issuer,
            "aud": self._issuer,
            "sub": client_id,
            "client_id": client_id,
            "iat": now,
            "exp": now + self._lifetime,
            "jti": secrets.token_hex(16),
        }
        if roles is not None:
            claims["scope"] = " ".join(sorted(roles))
        if certificate is not None:
            claims["cnf"] = {"x5t#S256": certificate}
        jwk = next(key.jwk for key in self._keys if key.kid == stored.kid)
        return jwt.encode({"alg": "ES256", "typ": "at+jwt", "kid": stored.kid}, claims, jwk, algorithms=["ES256"])

    # Tokens of callers.

    def is_cached(self, authorization: str | None) -> bool:
        """Whether the header's token was recognised here before, so that it costs next to nothing to look at."""
        return _digest((authorization or "").partition(" ")[2].strip(" \t")) in self._known

    async def authenticate(
        self, authorization: str | None, at: datetime, certificate: Callable[[], str | None] = _no_certificate
    ) -> Party:
        """As `identify`, for those who want the party alone."""
        return (await self.identify(authorization, at, certificate)).party

    def is_still_valid(self, identity: CallerIdentity, at: datetime) -> bool:
        """Whether nothing has changed since that could end the token or what its party may do. Next to no work."""
        return identity.revision == self._revision and identity.starts <= at.timestamp() < identity.expires

    async def identify(
        self, authorization: str | None, at: datetime, certificate: Callable[[], str | None] = _no_certificate
    ) -> CallerIdentity:
        """The caller that an Authorization header names. Raises NotAuthenticated, Unavailable.

        certificate: tells the x5t#S256 of the client certificate that came with this request; asked for bound tokens.
        """
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip(" \t")  # Spaces may be many (RFC 6750 clause 2.1); each way to write it is the same token.
        if scheme.lower() != "bearer" or not token:
            raise NotAuthenticated("A bearer token is needed.")
        now = at.timestamp()
        digest = _digest(token)
        known = self._known.get(digest)
        try:
            if known is None:
                known = await self._recognise(parse_compact(token), at)
                self._remember(digest, known)
            if not known.starts <= now < known.expires:
                raise InvalidTime  # A token from the future was issued under a wrong clock and would be valid too long.
            if known.certificate is not None and known.certificate != certificate():
                raise CertificateMismatch
            return CallerIdentity(self._party(known), known.kid, self._revision, known.starts, known.expires)
        except TokenError as exc:
            raise NotAuthenticated(_NOT_VALID) from exc

    def _remember(self, digest: bytes, known: TokenIdentity) -> None:
        if len(self._known) >= _CACHED_TOKENS:
            del self._known[next(iter(self._known))]  # The oldest: tokens of a pool live equally long.
        self._known[digest] = known

    def _party(self, known: TokenIdentity) -> Party:
        if known.vouched is not None:
            return known.vouched
        party = self._parties.get(known.client_id)
        if party is None:
            raise UnknownCaller
        return party if known.roles is None else replace(party, roles=party.roles & known.roles)

    async def _recognise(self, token: UnverifiedToken, at: datetime) -> TokenIdentity:
        """Raises TokenError, Unavailable."""
        if token.issuer == self._issuer:
            if all(key.kid != token.kid for key in self._keys):
                await self._reload_keys(at)
            return self._own(verify(token, self._verifying(at), ("ES256",)), at)
        if self._others is None:
            raise UnknownIssuer
        vouched = await self._others.recognise(token, at)
        return TokenIdentity(
            vouched.party.client_id,
            vouched.starts,
            vouched.expires,
            None,
            _certificate_of(vouched.claims),
            vouched=vouched.party,
        )

    def _verifying(self, at: datetime) -> list[ECKey]:
        return [key.jwk for key in self._keys if key.stored.verifies(at)]

    async def _reload_keys(self, at: datetime) -> None:
        """Another worker has signed with a key that this one does not know yet; or somebody has made one up."""
        if time.monotonic() - self._loaded >= _RELOADED_SECONDS:
            await self.refresh_keys(at)

    def _own(self, token: VerifiedToken, at: datetime) -> TokenIdentity:
        """What a token says that we signed for ourselves. Raises InvalidAudience, InvalidClaim, InvalidTime."""
        claims = token.claims
        if claims.get("aud") != self._issuer:
            raise InvalidAudience
        client_id, scope = claims.get("sub"), claims.get("scope")
        issued, expires = _whole(claims.get("iat")), _whole(claims.get("exp"))
        if not isinstance(client_id, str) or not isinstance(scope, str | None):
            raise InvalidClaim
        roles = None if scope is None else frozenset(role for role in PartyRole if role in scope.split())
        retired = next(key.stored.retired_at for key in self._keys if key.kid == token.kid)
        latest = expires if retired is None else min(expires, retired.timestamp())
        return TokenIdentity(client_id, issued - _LEEWAY, latest, roles, _certificate_of(claims), token.kid)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _whole(value: Any) -> int:
    """A time as we write it. Raises InvalidTime."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidTime
    return value


def _readable(stored: list[TokenKey]) -> Iterator[SigningKey]:
    """The keys that this release can use. What another release has stored neither signs nor verifies here."""
    for key in stored:
        try:
            yield SigningKey(key.kid, ECKey.import_key(key.private_key, {"kid": key.kid}), key)
        except ValueError as exc:  # Every error of the library about a key is one.
            unknown_values.warn("token_key.private_key", type(exc).__name__, key.kid)


def _certificate_of(claims: Any) -> str | None:
    """x5t#S256 of the certificate that a token is bound to, None for a bearer token (RFC 8705 clause 3.1).

    Raises CertificateMismatch for what is bound to anything else (RFC 7800): nobody here could check that.
    """
    if "cnf" not in claims:
        return None
    match claims["cnf"]:
        case {"x5t#S256": str(thumbprint), **others} if not others:
            return thumbprint
    raise CertificateMismatch


def _origin(address: str) -> tuple[str, str, int | None] | None:
    """Scheme, host and port; None for what is no http address."""
    try:
        parts = urlsplit(address)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    if parts.hostname is None or parts.username is not None:
        return None
    return parts.scheme, parts.hostname, port


def _matching_hash(hashes: list[str], secret: str) -> str | None:
    """The hash of this secret among those, newest first; None if there is none.

    Where it is none, it takes the time of two whatever there is: that of a client which is unknown, or has one secret,
    or is about to change from one to the other.
    """
    for entry in hashes:
        if _matches(entry, secret):
            return entry
    for _ in range(_SECRETS - len(hashes)):
        _matches(DUMMY_HASH, secret)
    return None


def _matches(entry: str, secret: str) -> bool:
    try:
        return _HASHER.verify(entry, secret)
    except (Argon2Error, InvalidHashError):
        return False
