"""Who makes a change of the operator, as the audit trail names it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Actor:
    """The admin or the operating system user that changes a register.

    name: the actor in the audit trail, the client id of an admin or `cli:` and a user name. trace_id: of the request,
    empty for a command. kid: of the pool's own key that signed the admin's token, see
    `ccp.server.domain.parties.Caller`.
    """

    name: str
    trace_id: str = ""
    kid: str | None = None
