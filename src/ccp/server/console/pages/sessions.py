"""Sessions of the console: who is logged in. An admin may end the session of any person."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from starlette.responses import Response

from ccp.errors import NotFound
from ccp.server.console.application import Console
from ccp.server.console.forms import Form
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.sessions import ConsoleRole, session_key
from ccp.server.console.visit import Visit
from ccp.server.storage.queries import audit, console_sessions
from ccp.server.storage.queries.audit import Action
from ccp.server.storage.queries.console_sessions import StoredSession


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
        found = await store.read(console_sessions.list_all())
        return [session for session in found if now < session.expires_at and now - session.seen_at < idle]

    @console.page("/sessions", "Sessions", navigation=True, role=ConsoleRole.ADMIN)
    async def show(visit: Visit) -> Response:
        entries = [
            SessionRow(
                session_key(session),
                session.actor,
                session.role,
                session.created_at,
                session.seen_at,
                session.expires_at,
            )
            for session in await current(visit.now)
        ]
        lifetime = float(config.console_session_lifetime)
        return visit.render("sessions.html", entries=entries, idle=idle, lifetime=lifetime)

    @console.action("/sessions/{key}/end")
    async def end(visit: Visit, form: Form) -> Response:
        key = visit.path_part("key")
        session = next((each for each in await current(visit.now) if session_key(each) == key), None)
        if session is None:
            raise NotFound("This session has ended already.")
        entry = audit.Entry(
            visit.now,
            visit.actor.name,
            Action.CONSOLE_SESSION_ENDED,
            {"person": session.actor},
            trace_id=visit.trace_id,
        )
        change = console_sessions.remove(session.id_hash)
        await store.write(audit.with_audit(change, lambda _: (entry,)))
        return visit.redirect("/sessions", notice="session-removed")
