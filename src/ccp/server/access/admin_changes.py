"""What changes of every register have in common: the actor's rights, and the state that the actor has seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from ccp.errors import NotAuthenticated, NotAuthorised
from ccp.errors.codes import ErrorCode
from ccp.server.domain.actor import Actor
from ccp.server.domain.parties import TOKEN_NOT_VALID, PartyRole
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import parties, signing_keys


class Shown(Protocol):
    """An entry of a register as it is shown."""

    def members(self) -> dict[str, Any]:
        """The JSON of the command line and of the admin API, without secrets."""


Precondition: TypeAlias = Callable[[Shown], None]
"""Called with the stored entry, under the lock and before the change. Raises PreconditionFailed."""


def any_state(view: Shown) -> None:
    """The precondition that always holds."""


def begin_change(by: Actor) -> Query[None]:
    """Lock the parties and check again that a registered actor is an admin and that its token's key is valid.

    The first part of every change of a register: the caches of the worker may be a second old, and the request was
    authorised even before that. Raises NotAuthorised, NotAuthenticated.
    """
    yield from parties.lock()
    actor = yield from parties.find(by.name)
    if actor is not None and not (actor.enabled and PartyRole.ADMIN in actor.roles):
        raise NotAuthorised("The caller is not an admin any more.", code=ErrorCode.ROLE_MISSING)
    if by.kid is not None and (actor is None or not (yield from signing_keys.exists(by.kid))):
        raise NotAuthenticated(TOKEN_NOT_VALID)
