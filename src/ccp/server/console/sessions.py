"""Sessions of the console: stored in the database, bound to the browser and to the credentials, and limited in time.

The cookie holds 256 random bits and a MAC over them under a key of the pool, so that an id that was not issued is
recognised without a query. The database holds the SHA-256 of both. A session ends

- at log-out, after `console_session_idle` seconds without a request, and `console_session_lifetime` after the log-in;
- at another log-in of the same browser, and at a log-in of the same person with another role;
- if it is the oldest one, at a log-in beyond `MAX_SESSIONS_PER_ACTOR` of a person or `MAX_SESSIONS` in all;
- when a request has another User-Agent than the log-in;
- as soon as the party is disabled, is no admin any more, or the secret that it logged in with is no longer valid;
- when the settings name another OpenID provider than the one that identified the person.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from ccp.server.console.pool_keys import load_key
from ccp.server.domain.parties import may_administer
from ccp.server.runtime.clock import TOLERANCE
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.storage.queries import audit, console_sessions
from ccp.server.storage.queries.audit import Action
from ccp.server.storage.queries.console_sessions import SessionState, StoredSession

_TOUCH_INTERVAL: Final = 60.0  # Seconds; so a busy session causes one write a minute.
_ID_BYTES: Final = 32
_SESSION_ID: Final = re.compile(r"([A-Za-z0-9_-]{43})\.([A-Za-z0-9_-]{22})")
_KEY_NAME: Final = "console_session_key"


class ConsoleRole(StrEnum):
    """What a person may do in the console. admin: see ids and act. viewer: see pseudonyms, change nothing."""

    ADMIN = "admin"
    VIEWER = "viewer"


@dataclass(frozen=True, slots=True)
class Person:
    """A person who has just logged in. actor: name in the audit trail. See `StoredSession` for the others."""

    actor: str
    role: ConsoleRole
    client_id: str | None
    credential: str
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A valid session.

    actor: name in the audit trail. csrf_token: of every form of the session. key: of its row, not secret.
    """

    actor: str
    role: ConsoleRole
    csrf_token: str
    key: str
    created_at: datetime
    expires_at: datetime


class Sessions:
    """The sessions of the console. One object for each worker; the state is in the database."""

    def __init__(self, store: Store, config: Settings) -> None:
        self._store = store
        self._idle = timedelta(seconds=config.console_session_idle)
        self._lifetime = timedelta(seconds=config.console_session_lifetime)
        self._issuer = config.console_oidc.issuer if config.console_oidc else None
        self._key = b""

    async def open(self) -> None:
        """Load the key of session ids, or create it. Raises Unavailable."""
        self._key = await load_key(self._store, _KEY_NAME)

    def is_issued(self, session_id: str) -> bool:
        """Whether a text is the id of a session that this pool has begun, which may have ended."""
        found = _SESSION_ID.fullmatch(session_id)
        return found is not None and hmac.compare_digest(found[2], self._mac(found[1]))

    def _mac(self, random: str) -> str:
        mac = hmac.new(self._key, f"session {random}".encode(), hashlib.sha256).digest()[:16]
        return base64.urlsafe_b64encode(mac).decode().rstrip("=")

    async def begin(self, person: Person, agent: str, now: datetime, trace_id: str, replaced: str | None = None) -> str:
        """Start a session and record the log-in. Returns the session id. Raises NotAuthenticated, Unavailable.

        replaced: id of the session that the browser had, which ends.
        """
        random = secrets.token_urlsafe(_ID_BYTES)
        session_id = f"{random}.{self._mac(random)}"
        stored = StoredSession(
            _hashed(session_id),
            person.actor,
            person.client_id,
            person.role.value,
            person.credential,
            _hashed(agent),
            now,
            now,
            now + self._lifetime,
        )
        subject = {"role": person.role.value, "subject": person.subject}
        entry = audit.Entry(
            now,
            person.actor,
            Action.CONSOLE_LOGGED_IN,
            {name: value for name, value in subject.items() if value is not None},
            trace_id=trace_id,
        )
        change = console_sessions.insert(
            stored, now - self._idle, now + TOLERANCE, None if replaced is None else _hashed(replaced)
        )
        await self._store.write(audit.with_audit(change, lambda _: (entry,)))
        return session_id

    async def find(self, session_id: str, agent: str, now: datetime) -> Session | None:
        """The valid session with an id. Raises Unavailable."""
        state = await self._store.read(console_sessions.find(_hashed(session_id), now))
        if state is None or not self._is_valid(state, agent, now):
            return None
        stored = state.session
        if (now - stored.seen_at).total_seconds() >= min(_TOUCH_INTERVAL, self._idle.total_seconds() / 10):
            await self._store.write(console_sessions.touch(stored.id_hash, now))
        return Session(
            stored.actor,
            ConsoleRole(stored.role),
            csrf_token(session_id),
            session_key(stored),
            stored.created_at,
            stored.expires_at,
        )

    async def end(self, session_id: str, session: Session, now: datetime, trace_id: str) -> None:
        """End a session at log-out; recorded once if several requests do so. Raises Unavailable."""
        entry = audit.Entry(now, session.actor, Action.CONSOLE_LOGGED_OUT, {}, trace_id=trace_id)
        change = console_sessions.remove(_hashed(session_id))
        await self._store.write(audit.with_audit(change, lambda ended: (entry,) if ended else ()))

    def _is_valid(self, state: SessionState, agent: str, now: datetime) -> bool:
        stored = state.session
        # The clock of the worker of the log-in may be ahead; a session of a clock that was set back does not count.
        if not stored.created_at - TOLERANCE <= now < stored.expires_at or now - stored.seen_at >= self._idle:
            return False
        if not hmac.compare_digest(stored.agent, _hashed(agent)):
            return False
        if stored.client_id is None:
            return self._issuer is not None and stored.credential.startswith(f"{_hashed(self._issuer)}:")
        return may_administer(state.party) and stored.credential in credential_of(state.secret_hashes)


def credential_of(secret_hashes: Iterable[str]) -> list[str]:
    """The value of `StoredSession.credential` for each stored hash of a secret."""
    return [_hashed(text) for text in secret_hashes]


def credential_of_subject(issuer: str, subject: str) -> str:
    """The value of `StoredSession.credential` for a person of an OpenID provider."""
    return f"{_hashed(issuer)}:{_hashed(subject)}"


def csrf_token(session_id: str) -> str:
    """The token in each form of a session: only a page of this session has it."""
    return hmac.new(session_id.encode("utf-8", "replace"), b"csrf", hashlib.sha256).hexdigest()


def session_key(stored: StoredSession) -> str:
    """A name for a session that reveals neither its id nor the hash of it."""
    return hashlib.sha256(f"key {stored.id_hash}".encode()).hexdigest()[:16]


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
