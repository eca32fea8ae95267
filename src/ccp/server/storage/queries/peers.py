"""Queries for peers (other pools)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from ccp.errors import Conflict, NotFound
from ccp.errors.codes import ErrorCode
from ccp.ids import Fingerprint, ProviderId
from ccp.server.storage.engine.query import Query, Row
from ccp.server.storage.engine.secret_codec import DamagedSecret, Place, SecretCodec
from ccp.server.storage.engine.stored_secrets import Encryption, encryption, secret_codec
from ccp.server.storage.queries.change_counters import ChangeCounter, bump, lock
from ccp.server.storage.queries.contracts import microseconds

_COLUMNS = (
    "party_id, base_url, dialect, client_id, secret, token_url, audience, token, v2g_roots, enabled, provider_ids"
)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another pool, and its credentials: client credentials, or a token from its operator.

    dialect: "opnc" or "opcp". v2g_roots: roots of the contracts that it holds; empty: it is asked for every vehicle.
    provider_ids: providers whose contracts it holds, as agreed with its operator; its answers with these contracts are
    preferred. Empty: unknown. damage: a sentence about a stored secret that cannot be decrypted; then `secret` and
    `token` are None, the peer cannot be called, and an edit keeps what is stored until the peer gets another secret.
    """

    party_id: str
    base_url: str
    dialect: str = "opnc"
    client_id: str | None = None
    secret: str | None = field(default=None, repr=False)
    token_url: str | None = None
    audience: str | None = None
    token: str | None = field(default=None, repr=False)
    v2g_roots: frozenset[Fingerprint] = frozenset()
    enabled: bool = True
    provider_ids: frozenset[ProviderId] = frozenset()
    damage: str | None = None


def list_all() -> Query[list[Peer]]:
    """All peers, by party id."""
    rows = yield f"select {_COLUMNS} from peer order by party_id", ()  # noqa: S608  constants
    codec = yield from secret_codec(rows)
    return [_peer(row, codec) for row in rows]


def add(peer: Peer, now: datetime) -> Query[None]:
    """Register a peer. Raises Conflict if its party id is taken."""
    yield lock(ChangeCounter.PEERS)
    encrypt = yield from encryption()
    taken = yield "select party_id from peer where party_id = $1", (peer.party_id,)
    if taken:
        raise Conflict(f"There is a peer {peer.party_id} already.")
    yield (
        f"insert into peer ({_COLUMNS}, created_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",  # noqa: S608
        (*_values(peer, encrypt), microseconds(now)),
    )
    yield bump(ChangeCounter.PEERS)


def get(party_id: str) -> Query[Peer]:
    """A peer. Raises NotFound."""
    rows = yield f"select {_COLUMNS} from peer where party_id = $1", (party_id,)  # noqa: S608  columns are ours
    if not rows:
        raise NotFound(f"There is no peer {party_id}.", code=ErrorCode.POOL_NOT_FOUND)
    codec = yield from secret_codec(rows)
    return _peer(rows[0], codec)


def edit(party_id: str, change: Callable[[Peer], Peer]) -> Query[tuple[Peer, Peer]]:
    """Replace a peer by what `change` returns for it. Returns it before and after. Raises NotFound.

    change: keeps the party id, and may raise. Edits of peers are serialised, so none is lost.
    """
    yield lock(ChangeCounter.PEERS)
    before = yield from get(party_id)
    after = change(before)
    if after != before:
        encrypt = yield from encryption()
        yield (
            "update peer set base_url = $2, dialect = $3, client_id = $4, "
            "secret = case when $12 then secret else $5 end, token_url = $6, audience = $7, "
            "token = case when $12 then token else $8 end, v2g_roots = $9, enabled = $10, provider_ids = $11 "
            "where party_id = $1",
            (*_values(after, encrypt), after.damage is not None),
        )
        yield bump(ChangeCounter.PEERS)
    return before, after


def enable(party_id: str) -> Query[tuple[Peer, Peer]]:
    """Enable a peer; as `edit`."""
    return edit(party_id, lambda peer: replace(peer, enabled=True))


def disable(party_id: str) -> Query[tuple[Peer, Peer]]:
    """Disable a peer; as `edit`."""
    return edit(party_id, lambda peer: replace(peer, enabled=False))


def remove(party_id: str) -> Query[Peer]:
    """Delete a peer. Returns it. Raises NotFound."""
    yield lock(ChangeCounter.PEERS)
    peer = yield from get(party_id)
    yield "delete from peer where party_id = $1", (party_id,)
    yield bump(ChangeCounter.PEERS)
    return peer


def _values(peer: Peer, encrypt: Encryption) -> Row:
    """The values of `_COLUMNS`."""
    return (
        peer.party_id,
        peer.base_url,
        peer.dialect,
        peer.client_id,
        encrypt.optional("peer", "secret", peer.party_id, peer.secret),
        peer.token_url,
        peer.audience,
        encrypt.optional("peer", "token", peer.party_id, peer.token),
        json.dumps(sorted(peer.v2g_roots)),
        peer.enabled,
        json.dumps(sorted(peer.provider_ids)),
    )


def _peer(row: Row, codec: SecretCodec) -> Peer:
    party_id, base_url, dialect, client_id, secret, token_url, audience, token, roots, enabled, providers = row
    damage = None
    try:
        if secret is not None:
            secret = codec.decrypt(Place("peer", "secret", party_id), secret)
        if token is not None:
            token = codec.decrypt(Place("peer", "token", party_id), token)
    except DamagedSecret as exc:
        secret, token, damage = None, None, str(exc)
    served = frozenset(map(Fingerprint, json.loads(roots)))
    held = frozenset(map(ProviderId, json.loads(providers or "[]")))  # NULL if an older release registered it.
    return Peer(
        party_id, base_url, dialect, client_id, secret, token_url, audience, token, served, bool(enabled), held, damage
    )
