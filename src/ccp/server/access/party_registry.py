"""The register's rules: one method for each change of a party, the same for the command line and the admin API.

The only owner of these transactions. Each change is audited in its own, and refused when its actor may not make it
(any more) at that moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, TypeAlias

from ccp.errors import Conflict, FieldError, NotAuthenticated, NotAuthorised
from ccp.schemas.timestamps import rfc3339
from ccp.server.access.authorization_server import hash_secret, new_secret
from ccp.server.domain.parties import NOT_VALID, Party, PartyRole, check
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Steps
from ccp.server.storage.queries import audit, parties, signing_keys
from ccp.server.storage.queries.audit import Action
from ccp.server.storage.queries.parties import Life

DEFAULT_OVERLAP: Final = 7 * 86_400
"""Seconds."""
LONGEST_OVERLAP: Final = 90 * 86_400
"""Seconds. A rotation that is not done with by then has been forgotten."""

_PORTION: Final = 100  # Parties that are read at a time: a few milliseconds.
_PAGE: Final = 1000

Change: TypeAlias = Callable[[Party], Party]
"""From a party as it is to the party as it shall be. It keeps the client id, and may raise."""


class End(StrEnum):
    """Which of two live secrets ends at once when a third one is made."""

    OLDER = "older"
    NEWER = "newer"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who changes the register.

    name: as the audit trail has it, the client id of an admin or `cli:` and a user. trace_id: of the request, empty
    for a command. kid: of the pool's own key that signed the admin's token, see `ccp.server.domain.parties.Caller`.
    """

    name: str
    trace_id: str = ""
    kid: str | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """A party and how long its live secrets are good, newest first."""

    party: Party
    secrets: list[Life]

    def members(self) -> dict[str, Any]:
        """As the command line and the admin API show it. Times: RFC 3339, UTC."""
        return {
            **self.party.members(),
            "secrets": [
                {"created_at": rfc3339(life.created_at), "expires_at": life.expires_at and rfc3339(life.expires_at)}
                for life in self.secrets
            ],
        }


Precondition: TypeAlias = Callable[[Shown], None]
"""Called with a party as it is, under the lock and before it is changed. Raises PreconditionFailed."""


def any_state(shown: Shown) -> None:
    """The precondition that always holds."""


class Register:
    """`at` is the time of the request or command, taken once at the edge."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hashing = BlockingCalls("hashing of secrets", max_threads=2, timeout=10.0)

    async def every(self) -> list[Party]:
        """In order of their names. For commands."""
        found: list[Party] = []
        while True:
            page, more = await self.page(found[-1].client_id if found else "", _PAGE)
            found += page
            if not more:
                return sorted(found, key=lambda party: party.name)

    async def page(self, after: str, limit: int) -> tuple[list[Party], bool]:
        """So many parties in order of their client ids, from the one after that, and whether there are more.

        Read in portions, so that other work of the event loop gets its turn between them.
        """
        found: list[Party] = []
        while (wanted := limit + 1 - len(found)) > 0:
            portion = await self._store.read(parties.page(after, min(wanted, _PORTION)))
            found += portion
            if len(portion) < min(wanted, _PORTION):
                break
            after = portion[-1].client_id
            await asyncio.sleep(0)
        return found[:limit], len(found) > limit

    async def named(self, name_or_client_id: str) -> Party:
        """Raises NotFound."""
        return await self._store.read(parties.find_named(name_or_client_id))

    async def show(self, client_id: str, at: datetime) -> Shown:
        """Raises NotFound."""

        def question() -> Steps[Shown]:
            party = yield from parties.find(client_id)
            return Shown(party, (yield from parties.lives(client_id, at)))

        return await self._store.read(question())

    async def add(self, party: Party, by: Actor, at: datetime, secret: str | None = None) -> str:
        """Register a party. Returns its secret, which nobody can read again.

        party: as `ccp.server.domain.parties.made` makes it. secret: for a sandbox, which knows it before. Raises
        MismatchError, Conflict, NotAuthorised.
        """
        check(party)
        secret = secret or new_secret()
        hashed = await self._hashing.run(hash_secret, secret)

        def change() -> Steps[None]:
            yield from _begin(by)
            yield from parties.insert(party, hashed, at)
            yield from _record(by, at, Action.PARTY_ADDED, party.client_id, **_told(party))

        await self._store.write(change())
        return secret

    async def edit(
        self, client_id: str, change: Change, by: Actor, at: datetime, precondition: Precondition = any_state
    ) -> Shown:
        """Change a party. Returns it as it is then.

        Raises NotFound, PreconditionFailed, Conflict, MismatchError, NotAuthorised.
        """

        def checked(before: Party) -> Party:
            after = change(before)
            check(after)
            return after

        return await self._store.write(_changed(client_id, checked, by, at, Action.PARTY_EDITED, precondition))

    async def enable(self, client_id: str, by: Actor, at: datetime, precondition: Precondition = any_state) -> Shown:
        """Let a party call again; its ids have stayed its own.

        Raises NotFound, PreconditionFailed, MismatchError, NotAuthorised.
        """

        def checked(before: Party) -> Party:
            after = replace(before, enabled=True)
            check(after)
            return after

        return await self._store.write(_changed(client_id, checked, by, at, Action.PARTY_ENABLED, precondition))

    async def disable(self, client_id: str, by: Actor, at: datetime, precondition: Precondition = any_state) -> Shown:
        """Let a party call no longer, whatever tokens it holds.

        Raises NotFound, PreconditionFailed, Conflict, NotAuthorised.
        """

        def disabled(before: Party) -> Party:
            return replace(before, enabled=False)

        return await self._store.write(_changed(client_id, disabled, by, at, Action.PARTY_DISABLED, precondition))

    async def rotate_secret(
        self,
        client_id: str,
        by: Actor,
        at: datetime,
        overlap: int = DEFAULT_OVERLAP,
        end: End | None = None,
        precondition: Precondition = any_state,
    ) -> tuple[str, Shown]:
        """Give a party a new secret. Returns it, and the secrets that are live then: two at most.

        overlap: seconds that the one before stays live; with 0 every older one ends at once. end: which one ends at
        once where two are live; only the operator knows whether the newer one ever reached the party. Tokens that were
        issued stay good. Raises NotFound, PreconditionFailed, FieldError, Conflict, NotAuthorised.
        """
        if not 0 <= overlap <= LONGEST_OVERLAP:
            raise FieldError(f"overlap : must be 0 to {LONGEST_OVERLAP} seconds")
        until = at + timedelta(seconds=overlap)
        secret = new_secret()
        hashed = await self._hashing.run(hash_secret, secret)

        def change() -> Steps[Shown]:
            yield from _begin(by)
            party = yield from parties.find(client_id)
            live = yield from parties.lives(client_id, at)
            precondition(Shown(party, live))
            older = _kept(party, live, overlap, end)
            yield from parties.renew(client_id, hashed, at, older, until)
            told = rfc3339(until) if older else None
            yield from _record(by, at, Action.SECRET_ROTATED, client_id, older_until=told)
            return Shown(party, (yield from parties.lives(client_id, at)))

        return secret, await self._store.write(change())


def _changed(
    client_id: str, change: Change, by: Actor, at: datetime, action: Action, precondition: Precondition
) -> Steps[Shown]:
    yield from _begin(by)
    before = yield from parties.find(client_id)
    live = yield from parties.lives(client_id, at)
    precondition(Shown(before, live))
    after = change(before)
    if after == before:
        return Shown(before, live)
    if by.name == client_id:
        _spare_itself(before, after)
    yield from parties.update(before, after)
    were, are = _told(before), _told(after)
    members = sorted(name for name in are if are[name] != were[name])
    yield from _record(
        by,
        at,
        action,
        client_id,
        before={name: were[name] for name in members},
        after={name: are[name] for name in members},
    )
    return Shown(after, live)


def _begin(by: Actor) -> Steps[None]:
    """Lock, and look whether a registered actor is an admin now and its token's key still there.

    What the edge knows of both may be a second old, and what it knew when the request began is older.
    """
    yield from parties.lock()
    actor = yield from parties.by_client_id(by.name)
    if actor is not None and not (actor.enabled and PartyRole.ADMIN in actor.roles):
        raise NotAuthorised("The caller is not an admin any more.")
    if by.kid is not None and (actor is None or not (yield from signing_keys.is_there(by.kid))):
        raise NotAuthenticated(NOT_VALID)


def _spare_itself(before: Party, after: Party) -> None:
    """An admin cannot lock itself out; somebody else, or the command line, can."""
    if before.enabled and not after.enabled:
        raise Conflict("An admin cannot disable itself.")
    if PartyRole.ADMIN not in after.roles:
        raise Conflict("An admin cannot give up its own role admin.")


def _kept(party: Party, live: list[Life], overlap: int, end: End | None) -> Life | None:
    """The secret that stays beside a new one."""
    if not live or not overlap:
        return None
    if len(live) == 1:
        return live[0]
    if end is None:
        raise Conflict(
            f"{party.name} has two live secrets already. "
            "Say which one ends at once, the older or the newer, or end both."
        )
    newer, older = live[:2]
    return newer if end is End.OLDER else older


def _told(party: Party) -> dict[str, Any]:
    return {name: value for name, value in party.members().items() if name != "client_id"}


def _record(by: Actor, at: datetime, action: Action, client_id: str, **more: Any) -> Steps[None]:
    yield from audit.record(audit.Entry(at, by.name, action, {"party": client_id, **more}, trace_id=by.trace_id))
