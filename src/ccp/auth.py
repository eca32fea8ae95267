"""Access: from a client's credentials to a token, from a token to the caller, from the caller to what it may do."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final, TypeAlias

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet

from ccp.errors import NotAuthenticated, NotAuthorised
from ccp.ids import EMAID, PCID, WMI, OperatorId, ProviderId
from ccp.parties import Party, Role
from ccp.store import Store, keys, parties


class Operation(StrEnum):
    """The seven operations of the API, by the names it gives them."""

    GET_CONTRACT_DATA_BY_EMAID = "GetContractDataByEmaid"
    GET_CONTRACT_DATA_BY_PCID = "GetContractDataByPcid"
    DELIVER = "GetSignedContractDataByCertificateInstallationReq"
    PUBLISH = "AddSignedContractData"
    WITHDRAW = "DeleteSignedContractDataByEmaid"
    GET_SIGNED_CONTRACT_DATA = "GetSignedContractDataByEmaidAndPcid"
    SET_DEFAULT = "SetSignedContractDataAsDefault"


class RootOperation(StrEnum):
    """What every party may do: certificates of roots are public, and every role needs some of them."""

    GET_ROOT_CERTIFICATES = "GetRootCertificates"


Subject: TypeAlias = EMAID | PCID | None
Rule: TypeAlias = Callable[[Party, Subject], bool]


def _anything(party: Party, subject: Subject) -> bool:
    return True


def _own_provider(party: Party, subject: Subject) -> bool:
    return isinstance(subject, EMAID) and subject.provider in party.provider_ids


def _served_provider(party: Party, subject: Subject) -> bool:
    return party.all_providers or _own_provider(party, subject)


def _own_wmi(party: Party, subject: Subject) -> bool:
    return isinstance(subject, PCID) and subject.wmi in party.wmis


ROLE_TABLE: Final[Mapping[Operation, Mapping[Role, Rule]]] = {
    Operation.GET_CONTRACT_DATA_BY_EMAID: {Role.EMSP: _own_provider},
    Operation.GET_CONTRACT_DATA_BY_PCID: {Role.OEM: _own_wmi},
    Operation.DELIVER: {Role.CPO: _anything, Role.CCP: _anything},
    Operation.PUBLISH: {Role.EMSP: _own_provider, Role.CPS: _served_provider},
    Operation.WITHDRAW: {Role.EMSP: _own_provider},
    Operation.GET_SIGNED_CONTRACT_DATA: {Role.OEM: _own_wmi},
    Operation.SET_DEFAULT: {Role.OEM: _own_wmi},
}
"""Who may do what, and for which ids. Whatever is not here is refused."""


def authorise(caller: Party, operation: Operation, subject: Subject = None) -> None:
    """Refuse what the role table does not allow.

    subject: the id that the operation names, whose owner decides. Raises NotAuthorised.
    """
    rules = ROLE_TABLE[operation]
    held = [rules[role] for role in caller.roles if role in rules]
    if not held:
        allowed = ", ".join(rules)
        raise NotAuthorised(f"{operation} is for the role {allowed}.")
    if not any(rule(caller, subject) for rule in held):
        kind = "WMI" if isinstance(subject, PCID) else "provider id"
        raise NotAuthorised(f"The {kind} of {subject} is not registered for the caller.")


def authorise_sender(caller: Party, party_type: str | None, party_id: str | None) -> None:
    """Hold the OPNC-from headers against the token's party. A peer pool acts for others, so it may name anyone.

    party_id: a provider id, an operator id or a WMI by type; the pool cannot tell a PKI's or a CPS's. Raises
    NotAuthorised.
    """
    if Role.CCP in caller.roles or (party_type is None and party_id is None):
        return
    if party_type is not None and party_type not in caller.roles:
        raise NotAuthorised(f"OPNC-from-party-type is {party_type}, which the caller is not registered as.")
    if party_id is None or party_type in ("cps", "pki", "pcp") or (party_type is None and Role.CPS in caller.roles):
        return
    name = party_id.replace("-", "").replace("*", "").upper()
    own: dict[str, frozenset[ProviderId] | frozenset[OperatorId] | frozenset[WMI]] = {
        Role.EMSP: caller.provider_ids,
        Role.CPO: caller.operator_ids,
        Role.OEM: caller.wmis,
    }
    ids = own.get(party_type, frozenset()) if party_type else caller.provider_ids | caller.operator_ids | caller.wmis
    if name not in ids:
        raise NotAuthorised("OPNC-from-party-id is not registered for the caller.")


# A generated secret has 256 bits, so the hash only has to make a stolen table worthless, not to slow down guessing:
# the least parameters of RFC 9106's order are enough, and a token request stays cheap.
_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_NOBODY: Final = _HASHER.hash(secrets.token_urlsafe(32))
_CACHED_TOKENS: Final = (
    10_000  # A token is some 100 octets here; more partners than this have no token at the same time.
)


def new_secret() -> str:
    """A client secret of 256 bits, shown once."""
    return secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    return _HASHER.hash(secret)


def new_key(at: datetime) -> keys.TokenKey:
    """A new ES256 key."""
    key = ECKey.generate_key("P-256", auto_kid=True)
    return keys.TokenKey(str(key.kid), key.as_pem(private=True).decode(), at)


class Authority:
    """Issues access tokens to registered parties and recognises them (RFC 6749 client credentials, RFC 9068 tokens).

    A token says who calls; what the party may do is read from the register at every call, so disabling a party ends its
    tokens as soon as the register is refreshed.
    """

    def __init__(self, store: Store, *, issuer: str, lifetime: int) -> None:
        self._store = store
        self._issuer = issuer
        self._lifetime = lifetime
        self._parties: dict[str, Party] = {}
        self._keys = KeySet([])
        self._signing: ECKey | None = None
        self._known: dict[bytes, tuple[str, float]] = {}
        self._hashing = asyncio.Semaphore(2)

    async def refresh_parties(self) -> None:
        self._parties = {party.client_id: party for party in await self._store.read(parties.every()) if party.enabled}

    async def refresh_keys(self, at: datetime) -> None:
        stored = await self._store.read(keys.every())
        if not stored:
            await self._store.write(keys.ensure(new_key(at)))
            stored = await self._store.read(keys.every())
        loaded = [ECKey.import_key(key.private_key, {"kid": key.kid}) for key in stored]
        self._keys, self._signing = KeySet(list(loaded)), loaded[0]
        self._known.clear()

    async def issue(self, client_id: str, secret: str, at: datetime) -> tuple[str, int]:
        """A token for the party and its validity in seconds. Raises NotAuthenticated."""
        stored = await self._store.read(parties.secrets_of(client_id))
        async with self._hashing:
            # An unknown client costs the same time as a known one with a wrong secret.
            hashes = [entry.hash for entry in stored] or [_NOBODY]
            good = await asyncio.to_thread(_any_matches, hashes, secret)
        if not stored or not good:
            raise NotAuthenticated("The client is unknown or its secret is wrong.")
        assert self._signing is not None, "keys are loaded before requests are taken"
        now = int(at.timestamp())
        claims = {
            "iss": self._issuer,
            "aud": self._issuer,
            "sub": client_id,
            "client_id": client_id,
            "iat": now,
            "exp": now + self._lifetime,
            "jti": secrets.token_hex(16),
        }
        header = {"alg": "ES256", "typ": "at+jwt", "kid": self._signing.kid}
        return jwt.encode(header, claims, self._signing, algorithms=["ES256"]), self._lifetime

    def authenticate(self, authorization: str | None, at: datetime) -> Party:
        """The caller that an Authorization header names. Raises NotAuthenticated."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise NotAuthenticated("A bearer token is needed.")
        now = at.timestamp()
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._known.get(digest)
        if known is None:
            known = self._verify(token.strip())
            if len(self._known) >= _CACHED_TOKENS:
                self._known = {key: entry for key, entry in self._known.items() if entry[1] > now}
                if len(self._known) >= _CACHED_TOKENS:
                    self._known.clear()
            self._known[digest] = known
        client_id, expires = known
        party = self._parties.get(client_id)
        if expires <= now or party is None:
            raise NotAuthenticated("The access token is not valid (any more).")
        return party

    def _verify(self, token: str) -> tuple[str, float]:
        """Client id and expiry of a token that we signed for ourselves. Raises NotAuthenticated."""
        try:
            decoded = jwt.decode(token, self._keys, algorithms=["ES256"])
            claims = decoded.claims
            client_id, expires = claims["sub"], claims["exp"]
            addressed = hmac.compare_digest(str(claims["iss"]), self._issuer) and claims["aud"] == self._issuer
            if not addressed or not isinstance(client_id, str) or not isinstance(expires, int):
                raise ValueError("claims")
        except (JoseError, ValueError, KeyError, TypeError) as exc:
            raise NotAuthenticated("The access token is not valid (any more).") from exc
        return client_id, float(expires)


def _any_matches(hashes: list[str], secret: str) -> bool:
    """Whether the secret is one of those; all are tried, so the time does not tell which."""
    return [_matches(entry, secret) for entry in hashes].count(True) > 0


def _matches(entry: str, secret: str) -> bool:
    try:
        return _HASHER.verify(entry, secret)
    except (Argon2Error, InvalidHashError):
        return False
