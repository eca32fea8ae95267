"""Sessions of the console: who is logged in. An admin may end the session of any person."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from starlette.responses import Response

from ccp.errors import FieldError, NotFound
from ccp.server.console.application import Console
from ccp.server.console.forms import Form
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.sessions import ConsoleRole, session_key
from ccp.server.console.visit import Visit
from ccp.server.storage.queries import audit, console_sessions
from ccp.server.storage.queries.audit import Action
from ccp.server.storage.queries.console_sessions import StoredSession
from ccp.server.storage.queries.contracts import microseconds

PAGE: Final = 50
_ENDED: Final = "This session has ended already."
_CURSOR: Final = re.compile(r"([0-9]{1,18})\.([0-9a-f]{16})")


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as the page shows it."""

    key: str
    actor: str
    role: str
    created_at: datetime
    seen_at: datetime
    expires_at: datetime


def register(console: Console, parts: ConsoleParts) -> None:
    """Register the page and its action."""
    config, store = parts.config, parts.store
    idle = timedelta(seconds=config.console_session_idle)

    async def current(now: datetime) -> list[StoredSession]:
        """The sessions that have not expired, the latest first."""
        found = await store.read(console_sessions.list_all())
        valid = [session for session in found if now < session.expires_at and now - session.seen_at < idle]
        return sorted(valid, key=_place, reverse=True)

    @console.page("/sessions", "Sessions", navigation=True, role=ConsoleRole.ADMIN)
    async def show(visit: Visit) -> Response:
        found, after = await current(visit.now), _cursor(visit.query("after"))
        if after is not None:
            found = [session for session in found if _place(session) < after]
        shown = found[:PAGE]
        entries = [
            SessionRow(
                session_key(session),
                session.actor,
                session.role,
                session.created_at,
                session.seen_at,
                session.expires_at,
            )
            for session in shown
        ]
        return visit.render(
            "sessions.html",
            entries=entries,
            idle=idle,
            lifetime=float(config.console_session_lifetime),
            following="{}.{}".format(*_place(shown[-1])) if len(found) > PAGE else None,
        )

    @console.action("/sessions/{key}/end")
    async def end(visit: Visit, form: Form) -> Response:
        key = visit.path_part("key")
        session = next((each for each in await current(visit.now) if session_key(each) == key), None)
        if session is None:
            raise NotFound(_ENDED)
        entry = audit.Entry(
            visit.now,
            visit.actor.name,
            Action.CONSOLE_SESSION_ENDED,
            {"person": session.actor},
            trace_id=visit.trace_id,
        )
        change = console_sessions.remove(session.id_hash)
        if not await store.write(audit.with_audit(change, lambda ended: (entry,) if ended else ())):
            raise NotFound(_ENDED)
        return visit.redirect("/sessions", notice="session-removed")


def _place(session: StoredSession) -> tuple[int, str]:
    """The place of a session in the list."""
    return microseconds(session.created_at), session_key(session)


def _cursor(text: str) -> tuple[int, str] | None:
    """Raises FieldError."""
    if not text:
        return None
    found = _CURSOR.fullmatch(text)
    if found is None:
        raise FieldError("after : is no place in the list")
    return int(found[1]), found[2]
