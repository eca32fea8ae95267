"""Whether a caller may still do what it asked for, looked up in the transaction that does it.

Between the moment when a token was recognised and the moment when its change commits lie the body, evidence that is
fetched and locks that are waited for. Meanwhile the party may have been disabled, or have lost a role or an id, and the
key that signed its token may have been revoked. The look-up is as late as possible: behind the locks of the change,
in the statement that locks the first end of the audit trail (`ccp.server.storage.queries.audit.record`), so that it
costs no round trip.
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
# One column, a line for each field, as none holds a line break: nearly always it is the text that was parsed last time.
_TEXT: Final = " || '\n' || ".join(_FIELDS)
STANDING_EXPRESSION: Final = (
    f"(select {_TEXT} from party where client_id = {{client_id}} "  # noqa: S608  names are ours
    "and exists (select 1 from token_key where kid = {kid}))"
)
"""An expression for a select list: what `check_row` reads. client_id, kid: the parameters' names."""

_SELECT_STANDING: Final = f"select {STANDING_EXPRESSION.format(client_id='$1', kid='$2')}"


@read_committed
def check_standing(standing: Standing) -> Query[Party]:
    """The caller as it is registered now. Raises NotAuthenticated, and what the standing's `check` raises."""
    rows = yield _SELECT_STANDING, (standing.client_id, standing.kid)
    return check_row(standing, rows[0][0])


def check_row(standing: Standing, found: str | None) -> Party:
    """As `check_standing`, from the value of LOOK_UP."""
    if found is None:
        raise NotAuthenticated(TOKEN_NOT_VALID)
    party = _party(standing.client_id, found)
    if party != standing.party:  # Else it was checked already.
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
    """A boolean as an engine writes it into a text."""
    return text in ("1", "true")
