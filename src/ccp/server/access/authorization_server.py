"""Authentication of callers: client credentials to access token, access token to party.

The pool is an authorisation server for its registered parties (RFC 6749 client credentials, RFC 9068 access tokens). It
also accepts the tokens of issuers that the operator trusts (`ccp.server.access.trusted_issuers`).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey

from ccp.errors import InputError, NotAuthenticated, Unavailable
from ccp.errors.codes import ErrorCode
from ccp.server.access.client_secrets import matching_hash
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
from ccp.server.access.token_keys import SigningKey, new_key, parse_keys, replace_old_keys
from ccp.server.access.trusted_issuers import TrustedIssuers
from ccp.server.domain.parties import TOKEN_NOT_VALID, Party, PartyRole
from ccp.server.runtime.background import PeriodicTask
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.server.storage import Store
from ccp.server.storage.queries import parties, signing_keys
from ccp.server.storage.queries.signing_keys import TokenKey

_CACHED_TOKENS: Final = 32_768  # Some 500 bytes each: two or three tokens of each of 10,000 parties.
_ROTATION_INTERVAL: Final = 600  # Seconds; key lifetimes are hours at least.
_RELOAD_INTERVAL: Final = 1.0  # Seconds.
_LEEWAY: Final = 60
"""Seconds by which clocks of the pool's machines may differ: a token of the pool may be issued so far in the future."""


class InvalidScope(InputError):
    """The requested scope names a role that does not exist or that the party does not hold."""

    outcome = "scope"
    code = ErrorCode.SCOPE_NOT_HELD


class TokenResponse(NamedTuple):
    """An issued token. lifetime: seconds. roles: those that it grants."""

    access_token: str
    lifetime: int
    roles: frozenset[PartyRole]


@dataclass(frozen=True, slots=True)
class TokenIdentity:
    """The claims of a verified token, as cached.

    starts, expires: seconds since 1970; `starts` is the time of issue less the leeway, `expires` is not later than the
    retirement of its key. roles: None for all that the party has. certificate: thumbprint of the client certificate
    that the token is bound to. kid: of the pool's own key. external: the party, if another issuer describes it.
    """

    client_id: str
    starts: float
    expires: float
    roles: frozenset[PartyRole] | None
    certificate: str | None
    kid: str | None = None
    external: Party | None = None


class CallerIdentity(NamedTuple):
    """The authenticated caller.

    kid: of the pool's own key that signed the token, None for another issuer's. revision: of the server's parties and
    keys, see `AuthorizationServer.is_still_valid`. starts, expires: of the token, seconds since 1970.
    """

    party: Party
    kid: str | None
    revision: int
    starts: float
    expires: float


def _no_certificate() -> str | None:
    return None


class AuthorizationServer:
    """Issues access tokens to registered parties, and authenticates callers by these and by other issuers' tokens.

    A token identifies the caller. What a registered party may do is read from the registry at every call, so disabling
    a party takes effect as soon as the party cache is refreshed.
    """

    def __init__(self, store: Store, *, issuer: str, lifetime: int, others: TrustedIssuers | None = None) -> None:
        """issuer: URL of the pool. lifetime: of its tokens, seconds. others: issuers whose tokens are accepted."""
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
        self._revision = 0  # Incremented by changes of parties and keys, which may invalidate a cached token.

    # --- Parties and keys ---

    def is_registered(self, client_id: str) -> bool:
        """Whether the party cache has an enabled party with this client id."""
        return client_id in self._parties

    async def refresh_parties(self) -> None:
        """Apply the changes of the party registry since the last refresh. Raises Unavailable."""
        await self._parties.refresh()

    def _count_change(self) -> None:
        self._revision += 1

    async def refresh_keys(self, now: datetime) -> None:
        """Load the signing keys, and create the first one if there is none. Raises Unavailable."""
        self._loaded = time.monotonic()
        async with self._loading:  # An earlier read must not replace the result of a later one.
            stored = await self._store.read(signing_keys.list_all())
            if not stored:
                await self._store.write(signing_keys.ensure(new_key(now)))
                stored = await self._store.read(signing_keys.list_all())
            if stored != self._stored:
                self._stored, self._keys = stored, tuple(parse_keys(stored))
                self.clear_token_cache()

    def clear_token_cache(self) -> None:
        """Discard all cached tokens, because keys have changed."""
        self._known.clear()
        self._revision += 1

    def key_rotation_task(self, lifetime: int, clock: Callable[[], Awaitable[datetime]]) -> PeriodicTask:
        """The background task that rotates keys and removes retired ones. Every worker runs it.

        lifetime: of a key, seconds; 0 for no rotation. clock: raises Unavailable while the clock is implausible.
        """

        def interval() -> float:
            return min(_ROTATION_INTERVAL, lifetime or _ROTATION_INTERVAL) * random.random()  # noqa: S311

        async def run() -> None:
            await replace_old_keys(self._store, lifetime, await clock())

        return PeriodicTask("token_key_rotation", run, interval)

    def published_keys(self, now: datetime) -> dict[str, Any]:
        """The JWK set of the keys that verify the pool's tokens (RFC 7517 clause 5)."""
        return {
            "keys": [
                key.jwk.as_dict(private=False, use="sig", alg="ES256") for key in self._keys if key.stored.verifies(now)
            ]
        }

    # --- Issue of tokens ---

    def is_own_audience(self, audience: str) -> bool:
        """Whether a requested audience is this pool: a URL with the same origin as the pool's own."""
        origin = _origin(audience)
        return origin is not None and origin == _origin(self._issuer)

    def secret_is_cached(self, client_id: str, secret: str) -> bool:
        """Whether this process has verified the secret of the client before. It may have been replaced since."""
        return self._secrets.contains(client_id, secret)

    async def issue(
        self,
        client_id: str,
        secret: str,
        now: datetime,
        *,
        roles: Collection[str] | None = None,
        certificate: str | None = None,
    ) -> TokenResponse:
        """Issue a token to a party.

        roles: roles to grant; None for all. certificate: x5t#S256 thumbprint of the certificate to bind it to. Raises
        NotAuthenticated, InvalidScope, Unavailable.
        """
        party, _ = await self.verify_secret(client_id, secret, now)
        held = {role.value: role for role in party.roles}
        if roles is not None and not set(roles) <= set(held):
            raise InvalidScope("scope has to name roles of the client.")
        granted = party.roles if roles is None else frozenset(held[name] for name in roles)
        token = self._sign(client_id, now, None if roles is None else granted, certificate)
        return TokenResponse(token, self._lifetime, granted)

    async def verify_secret(self, client_id: str, secret: str, now: datetime) -> tuple[Party, str]:
        """Verify the credentials of a party. Returns it, and the stored hash that the secret matches.

        Without a match the method takes the same time for every client id. Raises NotAuthenticated, Unavailable.
        """
        stored = await self._store.read(parties.list_secret_hashes(client_id, now))
        hashes = [entry.hash for entry in stored]
        matching = self._secrets.valid_hash(client_id, secret, hashes)
        if matching is None:
            matching = await self._hashing.run(matching_hash, hashes, secret)
            if matching is None:
                raise NotAuthenticated(
                    "The client is unknown or its secret is wrong.", code=ErrorCode.CLIENT_CREDENTIALS_INVALID
                )
            self._secrets.remember(client_id, secret, matching)
        if client_id not in self._parties:
            await self.refresh_parties()  # It was registered within the last second.
        party = self._parties.get(client_id)
        if party is None:
            raise NotAuthenticated(
                "The client is unknown or its secret is wrong.", code=ErrorCode.CLIENT_CREDENTIALS_INVALID
            )
        return party, matching

    def _sign(self, client_id: str, now: datetime, roles: Collection[PartyRole] | None, certificate: str | None) -> str:
        stored = signing_keys.current_key((key.stored for key in self._keys), now)
        if stored is None:
            raise Unavailable("There is no key to sign access tokens with.")
        issued = int(now.timestamp())
        claims: dict[str, Any] = {
            "iss": self._issuer,
            "aud": self._issuer,
            "sub": client_id,
            "client_id": client_id,
            "iat": issued,
            "exp": issued + self._lifetime,
            "jti": secrets.token_hex(16),
        }
        if roles is not None:
            claims["scope"] = " ".join(sorted(roles))
        if certificate is not None:
            claims["cnf"] = {"x5t#S256": certificate}
        jwk = next(key.jwk for key in self._keys if key.kid == stored.kid)
        return jwt.encode({"alg": "ES256", "typ": "at+jwt", "kid": stored.kid}, claims, jwk, algorithms=["ES256"])

    # --- Authentication of callers ---

    def is_cached(self, authorization: str | None) -> bool:
        """Whether the token of an Authorization header is cached, so that its verification costs almost nothing."""
        return _digest((authorization or "").partition(" ")[2].strip(" \t")) in self._known

    async def authenticate(
        self, authorization: str | None, now: datetime, certificate: Callable[[], str | None] = _no_certificate
    ) -> Party:
        """Like `identify`, but return the party only."""
        return (await self.identify(authorization, now, certificate)).party

    def is_still_valid(self, identity: CallerIdentity, now: datetime) -> bool:
        """Whether no change since `identify` could affect the token or the rights of its party. Almost free."""
        return identity.revision == self._revision and identity.starts <= now.timestamp() < identity.expires

    async def identify(
        self, authorization: str | None, now: datetime, certificate: Callable[[], str | None] = _no_certificate
    ) -> CallerIdentity:
        """Authenticate the caller by an Authorization header. Raises NotAuthenticated, Unavailable.

        certificate: returns the x5t#S256 thumbprint of the request's client certificate; called for bound tokens only.
        """
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip(" \t")  # RFC 6750 clause 2.1 permits several spaces; stripped, the cache key is the same.
        if scheme.lower() != "bearer" or not token:
            raise NotAuthenticated("A bearer token is needed.", code=ErrorCode.TOKEN_MISSING)
        timestamp = now.timestamp()
        digest = _digest(token)
        known = self._known.get(digest)
        try:
            if known is None:
                known = await self._verify(parse_compact(token), now)
                self._remember(digest, known)
            if not known.starts <= timestamp < known.expires:
                raise InvalidTime  # A token from the future was issued under a wrong clock, and would live too long.
            if known.certificate is not None and known.certificate != certificate():
                raise CertificateMismatch
            return CallerIdentity(self._party(known), known.kid, self._revision, known.starts, known.expires)
        except TokenError as exc:
            raise NotAuthenticated(TOKEN_NOT_VALID) from exc

    def _remember(self, digest: bytes, known: TokenIdentity) -> None:
        if len(self._known) >= _CACHED_TOKENS:
            del self._known[next(iter(self._known))]  # The oldest: all tokens of a pool have the same lifetime.
        self._known[digest] = known

    def _party(self, known: TokenIdentity) -> Party:
        """The party with its current rights, restricted by the token. Raises UnknownCaller."""
        if known.external is not None:
            return known.external
        party = self._parties.get(known.client_id)
        if party is None:
            raise UnknownCaller
        return party if known.roles is None else replace(party, roles=party.roles & known.roles)

    async def _verify(self, token: UnverifiedToken, now: datetime) -> TokenIdentity:
        """Raises TokenError, Unavailable."""
        if token.issuer == self._issuer:
            if all(key.kid != token.kid for key in self._keys):
                await self._reload_keys(now)
            return self._own_identity(verify(token, self._verifying_keys(now), ("ES256",)), now)
        if self._others is None:
            raise UnknownIssuer
        external = await self._others.authenticate(token, now)
        return TokenIdentity(
            external.party.client_id,
            external.starts,
            external.expires,
            None,
            _bound_certificate(external.claims),
            external=external.party,
        )

    def _verifying_keys(self, now: datetime) -> list[ECKey]:
        return [key.jwk for key in self._keys if key.stored.verifies(now)]

    async def _reload_keys(self, now: datetime) -> None:
        """Load the keys, at most once a second: the kid is of another worker's new key, or invented."""
        if time.monotonic() - self._loaded >= _RELOAD_INTERVAL:
            await self.refresh_keys(now)

    def _own_identity(self, token: VerifiedToken, now: datetime) -> TokenIdentity:
        """The identity in a token of the pool. Raises InvalidAudience, InvalidClaim, InvalidTime."""
        claims = token.claims
        if claims.get("aud") != self._issuer:
            raise InvalidAudience
        client_id, scope = claims.get("sub"), claims.get("scope")
        issued, expires = _integer(claims.get("iat")), _integer(claims.get("exp"))
        if not isinstance(client_id, str) or not isinstance(scope, str | None):
            raise InvalidClaim
        roles = None if scope is None else frozenset(role for role in PartyRole if role in scope.split())
        retired = next(key.stored.retired_at for key in self._keys if key.kid == token.kid)
        latest = expires if retired is None else min(expires, retired.timestamp())
        return TokenIdentity(client_id, issued - _LEEWAY, latest, roles, _bound_certificate(claims), token.kid)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _integer(value: Any) -> int:
    """A time as the pool writes it. Raises InvalidTime."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidTime
    return value


def _bound_certificate(claims: Any) -> str | None:
    """x5t#S256 of the certificate that a token is bound to, None for a bearer token (RFC 8705 clause 3.1).

    Raises CertificateMismatch for a token that is bound to anything else (RFC 7800), which the pool cannot check.
    """
    if "cnf" not in claims:
        return None
    match claims["cnf"]:
        case {"x5t#S256": str(thumbprint), **others} if not others:
            return thumbprint
    raise CertificateMismatch


def _origin(url: str) -> tuple[str, str, int | None] | None:
    """Scheme, host and port; None for anything but an http URL without user information."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    if parts.hostname is None or parts.username is not None:
        return None
    return parts.scheme, parts.hostname, port
