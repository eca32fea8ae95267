"""Questions about parties and their secrets (hashes only)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from ccp.errors import Conflict, NotFound
from ccp.ids import WMI, OperatorId, ProviderId
from ccp.parties import Party, Role
from ccp.store.changes import Topic, count
from ccp.store.contracts import microseconds
from ccp.store.steps import Row, Steps

_COLUMNS = "client_id, name, roles, provider_ids, all_providers, wmis, operator_ids, enabled"


@dataclass(frozen=True, slots=True)
class Secret:
    """A client secret as it is kept: its argon2 hash."""

    client_id: str
    hash: str


def every() -> Steps[list[Party]]:
    rows = yield f"select {_COLUMNS} from party order by name", ()  # noqa: S608  columns are ours
    return [_party(row) for row in rows]


def secrets_of(client_id: str) -> Steps[list[Secret]]:
    """The live secrets of an enabled party, newest first; none when there is no such party."""
    select = """
    select s.client_id, s.hash from party_secret s join party p on p.client_id = s.client_id
    where s.client_id = $1 and p.enabled order by s.created_at desc
    """
    rows = yield select, (client_id,)
    return [Secret(*row) for row in rows]


def add(party: Party, secret_hash: str, at: datetime) -> Steps[None]:
    """Register a party with its first secret. Raises Conflict when its name is taken or another owns one of its ids.

    An eMSP owns its provider ids and an OEM its WMIs; a CPS works for providers without owning them.
    """
    taken = yield "select client_id from party where name = $1 or client_id = $2", (party.name, party.client_id)
    if taken:
        raise Conflict(f"There is a party named {party.name} already.")
    for kind, value in _owned(party):
        owners = yield (
            "select p.name from party_owns o join party p on p.client_id = o.client_id where o.kind = $1 and o.id = $2",
            (kind, value),
        )
        if owners:
            raise Conflict(f"The {kind} {value} belongs to {owners[0][0]} already.")
        yield "insert into party_owns (kind, id, client_id) values ($1, $2, $3)", (kind, value, party.client_id)
    yield (
        f"insert into party ({_COLUMNS}, created_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",  # noqa: S608
        (
            party.client_id,
            party.name,
            _json(party.roles),
            _json(party.provider_ids),
            party.all_providers,
            _json(party.wmis),
            _json(party.operator_ids),
            party.enabled,
            microseconds(at),
        ),
    )
    insert = "insert into party_secret (client_id, created_at, hash) values ($1, $2, $3)"
    yield insert, (party.client_id, microseconds(at), secret_hash)
    yield count(Topic.PARTIES)


def disable(name_or_client_id: str) -> Steps[str]:
    """Disable a party. Returns its client id. Raises NotFound."""
    rows = yield "select client_id from party where name = $1 or client_id = $1", (name_or_client_id,)
    if not rows:
        raise NotFound(f"There is no party named {name_or_client_id}.")
    client_id: str = rows[0][0]
    yield "update party set enabled = false where client_id = $1", (client_id,)
    yield count(Topic.PARTIES)
    return client_id


def _owned(party: Party) -> list[tuple[str, str]]:
    owned: list[tuple[str, str]] = []
    if Role.EMSP in party.roles:
        owned += [("provider id", value) for value in sorted(party.provider_ids)]
    if Role.OEM in party.roles:
        owned += [("WMI", value) for value in sorted(party.wmis)]
    return owned


def _json(values: Iterable[str]) -> str:
    return json.dumps(sorted(values))


def _party(row: Row) -> Party:
    client_id, name, roles, provider_ids, all_providers, wmis, operator_ids, enabled = row
    return Party(
        client_id,
        name,
        frozenset(map(Role, json.loads(roles))),
        frozenset(map(ProviderId, json.loads(provider_ids))),
        bool(all_providers),
        frozenset(map(WMI, json.loads(wmis))),
        frozenset(map(OperatorId, json.loads(operator_ids))),
        bool(enabled),
    )
