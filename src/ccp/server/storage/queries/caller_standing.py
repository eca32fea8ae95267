"""Authorisation check within the transaction of a change: is the caller still allowed to make it?

Between the check of a token and the commit of its change, the body is read, revocation evidence is fetched and locks
are waited for. In that time the party may have been disabled or have lost a role or an id, and the key that signed its
token may have been revoked. So the party is looked up as late as possible: after the locks of the change, in the
statement that locks the first chain head of the audit trail (`ccp.server.storage.queries.audit.record`), which costs no
round trip.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Final

from ccp.errors import NotAuthenticated
from ccp.ids import WMI, OperatorId, ProviderId
from ccp.server.domain.parties import TOKEN_NOT_VALID, Party, PartyRole, Standing
from ccp.server.storage.engine.query import Query, read_committed

_FIELDS: Final = ("name", "roles", "provider_ids", "all_providers", "wmis", "operator_ids", "enabled")
# One column with a line for each field, as no field contains a line break. It rarely changes, so the parsed party is
# cached by this text.
_TEXT: Final = " || '\n' || ".join(_FIELDS)
STANDING_EXPRESSION: Final = (
    f"(select {_TEXT} from party where client_id = {{client_id}} "  # noqa: S608  constants
    "and exists (select 1 from token_key where kid = {kid}))"
)
"""An expression for a select list: which `check_row` reads. client_id, kid: names of the parameters."""

_SELECT_STANDING: Final = f"select {STANDING_EXPRESSION.format(client_id='$1', kid='$2')}"


@read_committed
def check_standing(standing: Standing) -> Query[Party]:
    """The caller as it is registered now. Raises NotAuthenticated, and the errors of the standing's `check`."""
    rows = yield _SELECT_STANDING, (standing.client_id, standing.kid)
    return check_row(standing, rows[0][0])


def check_row(standing: Standing, found: str | None) -> Party:
    """As `check_standing`, from the value of `STANDING_EXPRESSION`."""
    if found is None:
        raise NotAuthenticated(TOKEN_NOT_VALID)
    party = _party(standing.client_id, found)
    if party != standing.party:  # Otherwise it was checked before.
        if not party.enabled:
            raise NotAuthenticated(TOKEN_NOT_VALID)
        standing.check(party)
    return party


@lru_cache(256)
def _party(client_id: str, found: str) -> Party:
    name, roles, provider_ids, all_providers, wmis, operator_ids, enabled = found.split("\n")
    return Party(
        client_id,
        name,
        frozenset(role for role in PartyRole if role in json.loads(roles)),
        frozenset(map(ProviderId, json.loads(provider_ids))),
        _is_true(all_providers),
        frozenset(map(WMI, json.loads(wmis))),
        frozenset(map(OperatorId, json.loads(operator_ids))),
        _is_true(enabled),
    )


def _is_true(text: str) -> bool:
    """A boolean as the engines convert it to text."""
    return text in ("1", "true")
