"""Party registry: one method for each change of a party, used by the command line and by the admin API.

Only this module writes parties. Each change is audited in its own transaction, which also checks that the actor is
still authorised to make it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, TypeAlias

from ccp.errors import Conflict, FieldError
from ccp.schemas.timestamps import rfc3339
from ccp.server.access.admin_changes import Precondition, any_state, begin_change
from ccp.server.access.client_secrets import hash_secret, new_secret
from ccp.server.domain.actor import Actor
from ccp.server.domain.parties import Party, PartyRole, check_party
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import audit, parties
from ccp.server.storage.queries.audit import Action
from ccp.server.storage.queries.parties import SecretValidity

DEFAULT_OVERLAP: Final = 7 * 86_400
"""Seconds."""
LONGEST_OVERLAP: Final = 90 * 86_400
"""Seconds. A rotation that is still open after that was forgotten."""

_BATCH: Final = 100  # Parties in one query: a few milliseconds.
_PAGE: Final = 1000

PartyUpdate: TypeAlias = Callable[[Party], Party]
"""Maps the stored party to the party to store. It keeps the client id, and may raise."""


class SecretToRevoke(StrEnum):
    """Which of two valid secrets is revoked when a third one is created."""

    OLDER = "older"
    NEWER = "newer"


@dataclass(frozen=True, slots=True)
class PartyView:
    """A party and the validity of its current secrets, newest first."""

    party: Party
    secrets: list[SecretValidity]

    def members(self) -> dict[str, Any]:
        """The JSON of the command line and of the admin API. Times: RFC 3339, UTC."""
        return {
            **self.party.members(),
            "secrets": [
                {
                    "created_at": rfc3339(secret.created_at),
                    "expires_at": secret.expires_at and rfc3339(secret.expires_at),
                }
                for secret in self.secrets
            ],
        }


class PartyRegistry:
    """The parties, their ids and their client secrets.

    `now` is the time of the request or command, taken once at the edge.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hashing = BlockingCalls("hashing of secrets", max_threads=2, timeout=10.0)

    async def list_all(self) -> list[Party]:
        """All parties, ordered by name. For commands."""
        found: list[Party] = []
        while True:
            page, more = await self.list_page(found[-1].client_id if found else "", _PAGE)
            found += page
            if not more:
                return sorted(found, key=lambda party: party.name)

    async def list_page(self, after: str, limit: int) -> tuple[list[Party], bool]:
        """A page of parties, ordered by client id, and whether there are more.

        after: client id of the last party of the page before, empty for the first page. The page is read in batches,
        so that the event loop can run other work between them.
        """
        found: list[Party] = []
        while (missing := limit + 1 - len(found)) > 0:
            batch = await self._store.read(parties.list_page(after, min(missing, _BATCH)))
            found += batch
            if len(batch) < min(missing, _BATCH):
                break
            after = batch[-1].client_id
            await asyncio.sleep(0)
        return found[:limit], len(found) > limit

    async def get_by_name(self, name_or_client_id: str) -> Party:
        """The party with a name or client id. Raises NotFound."""
        return await self._store.read(parties.get_by_name(name_or_client_id))

    async def show(self, client_id: str, now: datetime) -> PartyView:
        """The party with a client id, and its secrets. Raises NotFound."""

        def query() -> Query[PartyView]:
            party = yield from parties.get(client_id)
            return PartyView(party, (yield from parties.list_secrets(client_id, now)))

        return await self._store.read(query())

    async def add(self, party: Party, by: Actor, now: datetime, secret: str | None = None) -> str:
        """Register a party. Returns its client secret, of which only a hash is stored.

        party: from `ccp.server.domain.parties.create_party`. secret: for a sandbox, which chooses it; None generates
        one. Raises MismatchError, Conflict, NotAuthorised.
        """
        check_party(party)
        secret = secret or new_secret()
        hashed = await self._hashing.run(hash_secret, secret)

        def change() -> Query[None]:
            yield from begin_change(by)
            yield from parties.insert(party, hashed, now)
            yield from audit.record(added_entry(party, by, now))

        await self._store.write(change())
        return secret

    async def edit(
        self, client_id: str, change: PartyUpdate, by: Actor, now: datetime, precondition: Precondition = any_state
    ) -> PartyView:
        """Change a party. Returns the changed party.

        Raises NotFound, PreconditionFailed, Conflict, MismatchError, NotAuthorised.
        """

        def checked(before: Party) -> Party:
            after = change(before)
            check_party(after)
            return after

        return await self._store.write(_update(client_id, checked, by, now, Action.PARTY_EDITED, precondition))

    async def enable(
        self, client_id: str, by: Actor, now: datetime, precondition: Precondition = any_state
    ) -> PartyView:
        """Enable a party. Its ids were reserved while it was disabled.

        Raises NotFound, PreconditionFailed, MismatchError, NotAuthorised.
        """

        def checked(before: Party) -> Party:
            after = replace(before, enabled=True)
            check_party(after)
            return after

        return await self._store.write(_update(client_id, checked, by, now, Action.PARTY_ENABLED, precondition))

    async def disable(
        self, client_id: str, by: Actor, now: datetime, precondition: Precondition = any_state
    ) -> PartyView:
        """Disable a party: its tokens and its secrets are refused.

        Raises NotFound, PreconditionFailed, Conflict, NotAuthorised.
        """

        def disabled(before: Party) -> Party:
            return replace(before, enabled=False)

        return await self._store.write(_update(client_id, disabled, by, now, Action.PARTY_DISABLED, precondition))

    async def rotate_secret(
        self,
        client_id: str,
        by: Actor,
        now: datetime,
        overlap: int = DEFAULT_OVERLAP,
        revoke: SecretToRevoke | None = None,
        precondition: Precondition = any_state,
    ) -> tuple[str, PartyView]:
        """Create a new secret for a party. Returns it, and the party with its valid secrets, two at most.

        overlap: seconds for which the previous secret stays valid; 0 revokes every older one. revoke: the secret to
        revoke at once when two are valid; only the operator knows whether the party ever received the newer one.
        Tokens that were issued stay valid. Raises NotFound, PreconditionFailed, FieldError, Conflict, NotAuthorised.
        """
        if not 0 <= overlap <= LONGEST_OVERLAP:
            raise FieldError(f"overlap : must be 0 to {LONGEST_OVERLAP} seconds")
        until = now + timedelta(seconds=overlap)
        secret = new_secret()
        hashed = await self._hashing.run(hash_secret, secret)

        def change() -> Query[PartyView]:
            yield from begin_change(by)
            party = yield from parties.get(client_id)
            live = yield from parties.list_secrets(client_id, now)
            precondition(PartyView(party, live))
            older = _secret_to_keep(party, live, overlap, revoke)
            yield from parties.rotate_secret(client_id, hashed, now, older, until)
            yield from audit.record(rotated_entry(client_id, until if older else None, by, now))
            return PartyView(party, (yield from parties.list_secrets(client_id, now)))

        return secret, await self._store.write(change())


def _update(
    client_id: str, change: PartyUpdate, by: Actor, now: datetime, action: Action, precondition: Precondition
) -> Query[PartyView]:
    yield from begin_change(by)
    before = yield from parties.get(client_id)
    live = yield from parties.list_secrets(client_id, now)
    precondition(PartyView(before, live))
    after = change(before)
    if after == before:
        return PartyView(before, live)
    if by.name == client_id:
        _refuse_lockout(before, after)
    yield from parties.update(before, after)
    yield from audit.record(changed_entry(before, after, by, now, action))
    return PartyView(after, live)


def _refuse_lockout(before: Party, after: Party) -> None:
    """Refuse a change by which an admin locks itself out. Another admin, or the command line, may make it.

    Raises Conflict.
    """
    if before.enabled and not after.enabled:
        raise Conflict("An admin cannot disable itself.")
    if PartyRole.ADMIN not in after.roles:
        raise Conflict("An admin cannot give up its own role admin.")


def _secret_to_keep(
    party: Party, live: list[SecretValidity], overlap: int, revoke: SecretToRevoke | None
) -> SecretValidity | None:
    """The secret that stays valid beside a new one. Raises Conflict."""
    if not live or not overlap:
        return None
    if len(live) == 1:
        return live[0]
    if revoke is None:
        raise Conflict(
            f"{party.name} has two valid secrets already. "
            "Choose which one to revoke (end: older or newer), or revoke both (overlap: 0)."
        )
    newer, older = live[:2]
    return newer if revoke is SecretToRevoke.OLDER else older


def added_entry(party: Party, by: Actor, now: datetime) -> audit.Entry:
    """The audit entry for a new party."""
    return _entry(by, now, Action.PARTY_ADDED, party.client_id, **_audited_members(party))


def changed_entry(
    before: Party, after: Party, by: Actor, now: datetime, action: Action = Action.PARTY_EDITED
) -> audit.Entry:
    """The audit entry for a change, with the members that changed."""
    were, are = _audited_members(before), _audited_members(after)
    members = sorted(name for name in are if are[name] != were[name])
    return _entry(
        by,
        now,
        action,
        after.client_id,
        before={name: were[name] for name in members},
        after={name: are[name] for name in members},
    )


def rotated_entry(client_id: str, older_until: datetime | None, by: Actor, now: datetime) -> audit.Entry:
    """The audit entry for a new secret. older_until: until when the previous one stays valid, if it does."""
    until = None if older_until is None else rfc3339(older_until)
    return _entry(by, now, Action.SECRET_ROTATED, client_id, older_until=until)


def _audited_members(party: Party) -> dict[str, Any]:
    return {name: value for name, value in party.members().items() if name != "client_id"}


def _entry(by: Actor, now: datetime, action: Action, client_id: str, **more: Any) -> audit.Entry:
    return audit.Entry(now, by.name, action, {"party": client_id, **more}, trace_id=by.trace_id)
