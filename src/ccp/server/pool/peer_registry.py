"""Peer registry: one method for each change of a peer, used by the command line, the admin API and `ccp apply`.

Only this module writes peers. Each change is audited in its own transaction, which also checks that the actor is still
authorised to make it. Running workers follow within seconds (`ccp.server.pool.peers`).

What a peer calls this pool with is the secret of a party with the role ccp, see `ccp.server.access.party_registry`.
What it signs its events with is the secret of a subscription, see `ccp.server.pool.subscriptions`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, Final, TypeAlias

from ccp.client import Dialect
from ccp.client.session import validated_url
from ccp.errors import ConfigurationError, Conflict, FieldError
from ccp.ids import Fingerprint, ProviderId
from ccp.server.access.admin_changes import Precondition, any_state, begin_change
from ccp.server.domain.actor import Actor
from ccp.server.domain.fields import parse_each
from ccp.server.domain.parties import check_owner_id
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import audit, peers, subscriptions
from ccp.server.storage.queries.audit import Action, Entry
from ccp.server.storage.queries.peers import Peer
from ccp.server.storage.queries.subscriptions import PEER_PREFIX, Subscription

PARTY_ID_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9*._:-]{0,63}$"
"""Characters that need no escaping in a URL and in a header. Excludes `.` and `..`, which URL clients resolve."""
MAX_SECRET: Final = 4096
"""Characters. Long enough for a signed token."""
MAX_TEXT: Final = 2000
"""Characters of a URL, a client id or an audience."""
MAX_IDS: Final = 1000
"""V2G roots, and providers, of one peer."""

_PARTY_ID: Final = re.compile(PARTY_ID_PATTERN[1:-1], re.ASCII)
_RESERVED: Final = frozenset({"rcp", "pcp"})  # Names of services, which `ccp neighbour subscribe` takes too.
_TOKEN: Final = re.compile(r"[!-~]+", re.ASCII)
_SECRETS: Final = frozenset({"secret", "token"})

PeerUpdate: TypeAlias = Callable[[Peer], Peer]
"""Maps the stored peer to the peer to store. It keeps the party id, and may raise."""


@dataclass(frozen=True, slots=True)
class PeerView:
    """A peer as it is shown: everything but its secrets."""

    peer: Peer

    def members(self) -> dict[str, Any]:
        """The JSON of the command line and of the admin API."""
        peer = self.peer
        return {
            "party_id": peer.party_id,
            "base_url": peer.base_url,
            "dialect": peer.dialect,
            "client_id": peer.client_id,
            "token_url": peer.token_url,
            "audience": peer.audience,
            "v2g_roots": sorted(peer.v2g_roots),
            "provider_ids": sorted(peer.provider_ids),
            "enabled": peer.enabled,
        }


class PeerRegistry:
    """The other pools that this pool asks.

    `now` is the time of the request or command, taken once at the edge.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list_all(self) -> list[Peer]:
        """All peers, ordered by party id."""
        return await self._store.read(peers.list_all())

    async def get(self, party_id: str) -> Peer:
        """A peer. Raises NotFound."""
        return await self._store.read(peers.get(party_id))

    async def add(self, peer: Peer, by: Actor, now: datetime) -> None:
        """Register a peer. peer: from `create_peer`. Raises Conflict, NotAuthorised."""

        def change() -> Query[None]:
            yield from begin_change(by)
            check_similar(peer.party_id, [other.party_id for other in (yield from peers.list_all())])
            yield from peers.add(peer, now)
            yield from audit.record(added_entry(peer, by, now))

        await self._store.write(change())

    async def edit(
        self, party_id: str, update: PeerUpdate, by: Actor, now: datetime, precondition: Precondition = any_state
    ) -> Peer:
        """Change a peer. Returns the changed peer.

        Raises NotFound, PreconditionFailed, FieldError, NotAuthorised.
        """

        def checked(before: Peer) -> Peer:
            after = update(before)
            check_peer(after)
            return after

        return await self._change(party_id, checked, by, now, precondition)

    async def rotate_secret(
        self,
        party_id: str,
        secret: str,
        by: Actor,
        now: datetime,
        client_id: str | None = None,
        precondition: Precondition = any_state,
    ) -> Peer:
        """Replace the client secret or token that the peer has given to this pool.

        client_id: the new one; None keeps the present one, or that there is none. Raises as `edit`.
        """

        def rotated(peer: Peer) -> Peer:
            return with_secret(peer, client_id or peer.client_id, secret)

        return await self.edit(party_id, rotated, by, now, precondition)

    async def enable(self, party_id: str, by: Actor, now: datetime, precondition: Precondition = any_state) -> Peer:
        """Enable a peer. Raises NotFound, PreconditionFailed, NotAuthorised."""
        return await self._change(party_id, lambda peer: replace(peer, enabled=True), by, now, precondition)

    async def disable(self, party_id: str, by: Actor, now: datetime, precondition: Precondition = any_state) -> Peer:
        """Disable a peer: it is no longer asked. Raises NotFound, PreconditionFailed, NotAuthorised."""
        return await self._change(party_id, lambda peer: replace(peer, enabled=False), by, now, precondition)

    async def remove(self, party_id: str, by: Actor, now: datetime, precondition: Precondition = any_state) -> Peer:
        """Remove a peer, this pool's credentials there, and the subscription to its events. Returns the peer.

        Raises NotFound, PreconditionFailed, NotAuthorised.
        """

        def change() -> Query[Peer]:
            yield from begin_change(by)
            peer = yield from peers.get(party_id)
            precondition(PeerView(peer))
            entries = yield from remove_peer(peer, by, now)
            yield from audit.record(*entries)
            return peer

        return await self._store.write(change())

    async def _change(
        self, party_id: str, update: PeerUpdate, by: Actor, now: datetime, precondition: Precondition
    ) -> Peer:
        def expected(before: Peer) -> Peer:
            precondition(PeerView(before))
            return update(before)

        def change() -> Query[Peer]:
            yield from begin_change(by)
            before, after = yield from peers.edit(party_id, expected)
            yield from audit.record(*changed_entries(before, after, by, now))
            return after

        return await self._store.write(change())


# --- Parts of a transaction ------------------------------------------------------------------------------------------


def remove_peer(peer: Peer, by: Actor, now: datetime) -> Query[list[Entry]]:
    """Remove a peer and the subscription to its events, after `begin_change`. Returns the audit entries to record."""
    source = f"{PEER_PREFIX}{peer.party_id}"
    yield from peers.remove(peer.party_id)
    subscription: Subscription | None = yield from subscriptions.find(source)
    subject = {"peer": peer.party_id, "base_url": peer.base_url}
    entries = [Entry(now, by.name, Action.PEER_REMOVED, subject, trace_id=by.trace_id)]
    if subscription is not None:
        yield from subscriptions.remove(subscription.id)
        subject = {"source": source, "subscription": subscription.id}
        entries.append(Entry(now, by.name, Action.SUBSCRIPTION_REMOVED, subject, trace_id=by.trace_id))
    return entries


def added_entry(peer: Peer, by: Actor, now: datetime) -> Entry:
    """The audit entry for a new peer."""
    members = PeerView(peer).members()
    subject = {"peer": members.pop("party_id"), **members}
    return Entry(now, by.name, Action.PEER_ADDED, subject, trace_id=by.trace_id)


def changed_entries(before: Peer, after: Peer, by: Actor, now: datetime) -> list[Entry]:
    """The audit entry for a change, with the names of changed members, and their values but for secrets."""
    names = [each.name for each in fields(Peer) if each.name != "damage"]
    changed = [name for name in names if getattr(after, name) != getattr(before, name)]
    if not changed:
        return []
    subject: dict[str, Any] = {"peer": after.party_id}
    if changed == ["enabled"]:
        action = Action.PEER_ENABLED if after.enabled else Action.PEER_DISABLED
    else:
        action = Action.PEER_EDITED
        shown = [name for name in changed if name not in _SECRETS]
        were, are = PeerView(before).members(), PeerView(after).members()
        subject |= {
            "changed": changed,
            "before": {name: were[name] for name in shown},
            "after": {name: are[name] for name in shown},
        }
    return [Entry(now, by.name, action, subject, trace_id=by.trace_id)]


# --- Parsing and rules -----------------------------------------------------------------------------------------------


def create_peer(given: Mapping[str, Any], secret: str) -> Peer:
    """Make a peer from its unparsed fields, see `parse_peer_fields`.

    secret: the client secret, or without a client_id the access token. Raises FieldError.
    """
    values = parse_peer_fields(given)
    client_id = values.pop("client_id", None)
    peer = with_secret(Peer(**values), client_id, secret)
    check_peer(peer)
    return peer


def with_secret(peer: Peer, client_id: str | None, secret: str) -> Peer:
    """The peer with other credentials. secret: of the client id, or without one the access token. Raises FieldError."""
    if not 1 <= len(secret) <= MAX_SECRET or not secret.isprintable():
        raise FieldError(f"secret : must be 1 to {MAX_SECRET} printable characters")
    if client_id is not None:
        return replace(peer, client_id=client_id, secret=secret, token=None, damage=None)
    if not _TOKEN.fullmatch(secret):
        raise FieldError("secret : an access token has visible ASCII characters only; a client secret needs client_id")
    return replace(peer, client_id=None, secret=None, token=secret, damage=None)


def check_peer(peer: Peer) -> None:
    """Check that the members of a peer fit together, so that a client can call it. Raises FieldError."""
    check_token_members(peer)
    if peer.damage is None and peer.token is None and (peer.client_id is None or peer.secret is None):
        raise FieldError("secret : is missing")


def check_token_members(peer: Peer) -> None:
    """Refuse the members of a token request without a client id. Raises FieldError."""
    if peer.client_id is None and (peer.token_url or peer.audience):
        raise FieldError("token_url, audience : are for a client id; an access token is sent as it is")


def check_similar(party_id: str, others: Iterable[str]) -> None:
    """Refuse a party id that differs from a registered one in the case of letters only. Raises Conflict."""
    for other in others:
        if other != party_id and other.lower() == party_id.lower():
            raise Conflict(f"The party id {party_id} could be taken for that of the peer {other}.")


def parse_peer_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parse the fields of a Peer, by name. given: strings, None for an absent text, and lists of strings for ids.

    Raises FieldError with a sentence for each problem.
    """
    return parse_each(given, _PARSERS)


def _party_id(text: str) -> str:
    if not _PARTY_ID.fullmatch(text):
        raise FieldError(f'party_id : must match "{PARTY_ID_PATTERN}"')
    if text.lower() in _RESERVED:
        raise FieldError(f"party_id : {text} is the name of a service")
    return text


def _text(field: str) -> Callable[[str | None], str | None]:
    def parse(text: str | None) -> str | None:
        if text is not None and (len(text) > MAX_TEXT or not text.isprintable()):
            raise FieldError(f"{field} : must be at most {MAX_TEXT} printable characters")
        return text or None

    return parse


def _url(field: str, *, required: bool) -> Callable[[str | None], str | None]:
    def parse(text: str | None) -> str | None:
        found = _text(field)(text)
        if found is None and not required:
            return None
        try:
            validated_url(found or "")
        except ConfigurationError as exc:
            raise FieldError(*(f"{field} : {message}" for message in exc.messages)) from None
        return found

    return parse


def _dialect(text: str) -> str:
    if text not in set(Dialect):
        raise FieldError(f"dialect : must be {' or '.join(Dialect)}")
    return str(text)


def _ids(field: str, kind: type[Fingerprint] | type[ProviderId]) -> Callable[[Iterable[str]], frozenset[Any]]:
    def parse(texts: Iterable[str]) -> frozenset[Any]:
        found = frozenset(kind.parse(text, field) for text in texts)
        for parsed in found:
            check_owner_id(parsed, field)
        if len(found) > MAX_IDS:
            raise FieldError(f"{field} : must have at most {MAX_IDS} items")
        return found

    return parse


_PARSERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "party_id": _party_id,
    "base_url": _url("base_url", required=True),
    "dialect": _dialect,
    "client_id": _text("client_id"),
    "token_url": _url("token_url", required=False),
    "audience": _text("audience"),
    "v2g_roots": _ids("v2g_roots", Fingerprint),
    "provider_ids": _ids("provider_ids", ProviderId),
    "enabled": bool,
}
