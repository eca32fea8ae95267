"""Queries for the sessions of the operator's console. A session id is stored as its SHA-256 only."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from ccp.errors import NotAuthenticated
from ccp.errors.codes import ErrorCode
from ccp.server.domain.parties import Party, may_administer
from ccp.server.storage.engine.query import Query, Row, read_committed, retryable
from ccp.server.storage.queries import parties
from ccp.server.storage.queries.contracts import instant, microseconds

MAX_SESSIONS: Final = 1000
"""Of all persons together. The table is small enough to be read whole."""
MAX_SESSIONS_PER_ACTOR: Final = 10

_COLUMNS: Final = "id_hash, actor, client_id, role, credential, agent, created_at, seen_at, expires_at"


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session.

    id_hash: SHA-256 of its id, hexadecimal. actor: name in the audit trail. client_id: of the party that logged in,
    None for a person of an OpenID provider. role: "admin" or "viewer". credential: SHA-256 of the stored hash of the
    party's secret, or those of issuer and subject of the ID token. agent: SHA-256 of the User-Agent. seen_at: of the
    last request, to about a minute. expires_at: the absolute end.
    """

    id_hash: str = field(repr=False)
    actor: str
    client_id: str | None
    role: str
    credential: str = field(repr=False)
    agent: str = field(repr=False)
    created_at: datetime
    seen_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session and what its validity depends on.

    party: the party as it is registered now; None for a person of an OpenID provider, and for a removed party.
    secret_hashes: the argon2 hashes of the party's secrets that are valid now.
    """

    session: StoredSession
    party: Party | None = None
    secret_hashes: tuple[str, ...] = ()


@read_committed
def find(id_hash: str, now: datetime) -> Query[SessionState | None]:
    """The session, its party and the party's valid secrets."""
    rows = yield f"select {_COLUMNS} from console_session where id_hash = $1", (id_hash,)  # noqa: S608  constants
    if not rows:
        return None
    session = _session(rows[0])
    if session.client_id is None:
        return SessionState(session)
    party = yield from parties.find(session.client_id)
    hashes = yield from parties.list_secret_hashes(session.client_id, now)
    return SessionState(session, party, tuple(entry.hash for entry in hashes))


@retryable
def insert(session: StoredSession, idle_since: datetime, ahead: datetime, replaced: str | None = None) -> Query[None]:
    """Store a session.

    Removes expired ones, those of the same person under another role or name, and the oldest of the same actor and of
    all that exceed the maximum. idle_since: sessions without a request since then have expired. ahead: sessions that
    began after it are of a clock that was wrong. replaced: id_hash of a session to remove. Raises NotAuthenticated if
    the party lost its rights since its secret was checked: its sessions were removed then, and must not come back.
    """
    if session.client_id is not None:
        yield from parties.lock()
        party = yield from parties.find(session.client_id)
        if not may_administer(party):
            raise NotAuthenticated(
                "The party has not the role admin any more.", code=ErrorCode.CLIENT_CREDENTIALS_INVALID
            )
    yield (
        "delete from console_session where expires_at <= $1 or seen_at <= $2 or created_at > $3 or id_hash = $4 "
        "or (credential = $5 and (role <> $6 or actor <> $7))",
        (
            microseconds(session.created_at),
            microseconds(idle_since),
            microseconds(ahead),
            replaced or "",
            session.credential,
            session.role,
            session.actor,
        ),
    )
    kept = "select id_hash from console_session where actor = $1 order by created_at desc, id_hash limit $2"
    yield (
        f"delete from console_session where actor = $1 and id_hash not in ({kept})",  # noqa: S608  constants
        (session.actor, MAX_SESSIONS_PER_ACTOR - 1),
    )
    kept = "select id_hash from console_session order by created_at desc, id_hash limit $1"
    yield f"delete from console_session where id_hash not in ({kept})", (MAX_SESSIONS - 1,)  # noqa: S608  constants
    yield (
        f"insert into console_session ({_COLUMNS}) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",  # noqa: S608  constants
        (
            session.id_hash,
            session.actor,
            session.client_id,
            session.role,
            session.credential,
            session.agent,
            microseconds(session.created_at),
            microseconds(session.seen_at),
            microseconds(session.expires_at),
        ),
    )


def touch(id_hash: str, now: datetime) -> Query[None]:
    """Record a request of a session."""
    yield (
        "update console_session set seen_at = $2 where id_hash = $1 and seen_at < $2",
        (id_hash, microseconds(now)),
    )


@retryable
def remove(id_hash: str) -> Query[bool]:
    """End a session. Returns False if it has ended already."""
    return bool((yield "delete from console_session where id_hash = $1 returning id_hash", (id_hash,)))


def remove_all() -> Query[None]:
    """End all sessions."""
    yield "delete from console_session", ()


@read_committed
def list_all() -> Query[list[StoredSession]]:
    """All sessions, the latest first, expired ones included."""
    rows = yield f"select {_COLUMNS} from console_session order by created_at desc limit {MAX_SESSIONS}", ()  # noqa: S608
    return [_session(row) for row in rows]


def _session(row: Row) -> StoredSession:
    id_hash, actor, client_id, role, credential, agent, *times = row
    created_at, seen_at, expires_at = map(instant, times)
    return StoredSession(id_hash, actor, client_id, role, credential, agent, created_at, seen_at, expires_at)
