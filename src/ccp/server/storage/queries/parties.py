"""Queries for parties and their secrets (hashes only).

Every write begins with `lock`: it locks the change counter of parties first, so that writes are serialised on every
engine and read a settled state. They are rare.

Only `list_all` reads the whole table. Names are compared in their folded form (`fold_name`), which is stored beside the
name together with the name it was made from, because a release before migration 0009 changes the name alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from ccp.errors import Conflict, NotFound
from ccp.errors.codes import ErrorCode
from ccp.ids import WMI, OperatorId, ProviderId
from ccp.server.domain.parties import Party, PartyRole, find_by_name, fold_name, may_administer, owned_ids
from ccp.server.storage.engine.query import Query, Row, long_read, read_committed
from ccp.server.storage.queries import change_counters
from ccp.server.storage.queries.change_counters import CHANGED_KEYS, ChangeCounter
from ccp.server.storage.queries.contracts import instant, microseconds
from ccp.server.storage.queries.unknown_values import all_known

_KNOWN_ROLES = frozenset(role.value for role in PartyRole)
COLUMNS = "client_id, name, roles, provider_ids, all_providers, wmis, operator_ids, enabled"
"""The columns that `party_of` reads."""


@dataclass(frozen=True, slots=True)
class Secret:
    """The argon2 hash of a client secret."""

    client_id: str
    hash: str


@dataclass(frozen=True, slots=True)
class SecretValidity:
    """Validity period of a client secret. expires_at: None until it is replaced."""

    created_at: datetime
    expires_at: datetime | None


@long_read
def list_all() -> Query[list[Party]]:
    """All parties by name. For tests and small registers; use `list_page` otherwise."""
    rows = yield f"select {COLUMNS} from party order by name", ()  # noqa: S608  constants
    return [party_of(row) for row in rows]


@read_committed
def list_page(after: str, limit: int) -> Query[list[Party]]:
    """Parties by client id, beginning after one."""
    select = f"select {COLUMNS} from party where client_id > $1 order by client_id limit $2"  # noqa: S608  constants
    rows = yield select, (after, limit)
    return [party_of(row) for row in rows]


@read_committed
def list_changed(after: int, last: int) -> Query[list[Party]]:
    """Parties of the changes with numbers above `after`, up to `last`, as they are now."""
    select = f"select {COLUMNS} from party where client_id in {CHANGED_KEYS}"  # noqa: S608  constants
    rows = yield select, (ChangeCounter.PARTIES.value, after, last)
    return [party_of(row) for row in rows]


@read_committed
def find(client_id: str) -> Query[Party | None]:
    """The party with a client id."""
    if not client_id.isprintable():
        return None  # No client id contains such a character, and an engine may refuse it in a text.
    rows = yield f"select {COLUMNS} from party where client_id = $1", (client_id,)  # noqa: S608  constants
    return party_of(rows[0]) if rows else None


def get(client_id: str) -> Query[Party]:
    """The party with a client id. Raises NotFound."""
    party = yield from find(client_id)
    if party is None:
        raise NotFound("There is no party with this client id.", code=ErrorCode.PARTY_NOT_FOUND)
    return party


def get_by_name(name_or_client_id: str) -> Query[Party]:
    """The party with a name or a client id. Raises NotFound."""
    party = find_by_name((yield from _find_similar(name_or_client_id)), name_or_client_id)
    if party is None:
        raise NotFound(f"There is no party named {name_or_client_id}.", code=ErrorCode.PARTY_NOT_FOUND)
    return party


def lock() -> Query[None]:
    """Lock all parties against other writers until the end of the transaction. The first part of every write."""
    yield change_counters.lock(ChangeCounter.PARTIES)


def add(party: Party, secret_hash: str, now: datetime) -> Query[None]:
    """Register a party with its first secret. Raises Conflict if its name or one of its ids is taken."""
    yield from lock()
    yield from insert(party, secret_hash, now)


def disable(name_or_client_id: str) -> Query[str]:
    """Disable a party. Returns its client id. Raises NotFound."""
    yield from lock()
    party = yield from get_by_name(name_or_client_id)
    yield from update(party, replace(party, enabled=False))
    return party.client_id


def insert(party: Party, secret_hash: str, now: datetime) -> Query[None]:
    """As `add`, after `lock`. Raises Conflict."""
    yield from _check_names(party)
    yield from _claim(owned_ids(party), party.client_id)
    yield (
        f"insert into party ({COLUMNS}, created_at, folded_id, folded_name, folded_of) "  # noqa: S608  constants
        "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        (*_values(party), microseconds(now), fold_name(party.client_id), fold_name(party.name), party.name),
    )
    yield from change_counters.bump_and_log(ChangeCounter.PARTIES, party.client_id)
    yield _INSERT_SECRET, (party.client_id, microseconds(now), secret_hash)


def update(before: Party, after: Party) -> Query[None]:
    """Replace a party, after `lock`. Ids that it gives up are free at once. Raises Conflict.

    Its sessions of the console end if it may not use that now, and are not there when it may again.
    """
    if after.name != before.name:
        yield from _check_names(after, without=before.client_id)
    were, are = owned_ids(before), owned_ids(after)
    for kind, value in sorted(set(were) - set(are)):
        delete = "delete from party_owns where kind = $1 and id = $2 and client_id = $3"
        yield delete, (kind, value, before.client_id)
    yield from _claim(sorted(set(are) - set(were)), after.client_id)
    stored = yield "select roles from party where client_id = $1", (after.client_id,)
    # Keep roles that only a newer release knows.
    kept = {role for (roles,) in stored for role in json.loads(roles) if role not in _KNOWN_ROLES}
    statement = """
    update party set name = $2, roles = $3, provider_ids = $4, all_providers = $5, wmis = $6, operator_ids = $7,
        enabled = $8, folded_id = $9, folded_name = $10, folded_of = $11
    where client_id = $1
    """
    client_id, name, _, *others = _values(after)
    forms = fold_name(client_id), fold_name(name), name
    yield statement, (client_id, name, _json({*after.roles, *kept}), *others, *forms)
    if not may_administer(after):
        yield "delete from console_session where client_id = $1", (client_id,)
    yield from change_counters.bump_and_log(ChangeCounter.PARTIES, client_id)


def _find_similar(*names: str) -> Query[list[Party]]:
    """Parties whose name or client id may equal one of these in folded form."""
    found: dict[str, Party] = {}
    for form in dict.fromkeys(map(fold_name, names)):
        if not form.isprintable():
            continue  # As `find`.
        for column in ("folded_name", "folded_id"):
            rows = yield f"select {COLUMNS} from party where {column} = $1", (form,)  # noqa: S608  constants
            found.update((row[0], party_of(row)) for row in rows)
    # Rows written by a release before migration 0009 have no folded form.
    rows = yield f"select {COLUMNS} from party where {_WITHOUT_FOLDED}", ()  # noqa: S608  constants
    found.update((row[0], party_of(row)) for row in rows)
    return list(found.values())


_WITHOUT_FOLDED = "coalesce(folded_of, '') <> name"


def _fold_rest() -> Query[None]:
    """Store the folded forms of names that a release before migration 0009 has written. After `lock`."""
    rows = yield f"select client_id, name from party where {_WITHOUT_FOLDED}", ()  # noqa: S608  constants
    statement = "update party set folded_id = $2, folded_name = $3, folded_of = $4 where client_id = $1"
    for client_id, name in rows:
        yield statement, (client_id, fold_name(client_id), fold_name(name), name)


def _check_names(party: Party, without: str | None = None) -> Query[None]:
    """Check that a name and a client id are free. They share one name space, since commands take either.

    without: client id of a party to ignore. Raises Conflict.
    """
    yield from _fold_rest()
    others = [other for other in (yield from _find_similar(party.name, party.client_id)) if other.client_id != without]
    taken = {fold_name(name) for other in others for name in (other.name, other.client_id)}
    if fold_name(party.name) in taken:
        raise Conflict(f"There is a party named {party.name} already.")
    if fold_name(party.client_id) in taken:
        raise Conflict(f"The client id {party.client_id} is taken already.")


def _claim(ids: Iterable[tuple[str, str]], client_id: str) -> Query[None]:
    """Assign ids to a party. The primary key of the table decides. Raises Conflict."""
    insert = """
    insert into party_owns (kind, id, client_id) values ($1, $2, $3) on conflict (kind, id) do nothing returning id
    """
    owner = "select p.name from party_owns o join party p on p.client_id = o.client_id where o.kind = $1 and o.id = $2"
    for kind, value in ids:
        if not (yield insert, (kind, value, client_id)):
            rows = yield owner, (kind, value)
            raise Conflict(f"The {kind} {value} belongs to {rows[0][0] if rows else 'another party'} already.")


# --- Secrets ---------------------------------------------------------------------------------------------------------

_INSERT_SECRET = "insert into party_secret (client_id, created_at, hash) values ($1, $2, $3)"  # noqa: S105  a statement


@read_committed
def list_secret_hashes(client_id: str, now: datetime) -> Query[list[Secret]]:
    """Hashes of the valid secrets of an enabled party, newest first; none for an unknown party."""
    if not client_id.isprintable():
        return []  # As `find`.
    select = """
    select s.client_id, s.hash from party_secret s join party p on p.client_id = s.client_id
    where s.client_id = $1 and p.enabled and (s.expires_at is null or s.expires_at > $2) order by s.created_at desc
    """
    rows = yield select, (client_id, microseconds(now))
    return [Secret(*row) for row in rows]


def newest_secret_hash(client_id: str, now: datetime) -> Query[str | None]:
    """The hash of the newest valid secret of a party, enabled or not."""
    select = """
    select hash from party_secret where client_id = $1 and (expires_at is null or expires_at > $2)
    order by created_at desc limit 1
    """
    rows = yield select, (client_id, microseconds(now))
    return rows[0][0] if rows else None


@read_committed
def list_secrets(client_id: str, now: datetime) -> Query[list[SecretValidity]]:
    """The valid secrets of a party, enabled or not, newest first."""
    select = """
    select created_at, expires_at from party_secret where client_id = $1 and (expires_at is null or expires_at > $2)
    order by created_at desc
    """
    rows = yield select, (client_id, microseconds(now))
    return [SecretValidity(instant(made), None if until is None else instant(until)) for made, until in rows]


def rotate_secret(
    client_id: str, secret_hash: str, now: datetime, older: SecretValidity | None, until: datetime
) -> Query[None]:
    """Give a party a new secret. Of its other secrets only `older` stays, until a time."""
    kept = microseconds(older.created_at) if older else -1
    yield "delete from party_secret where client_id = $1 and created_at != $2", (client_id, kept)
    if older is not None:
        statement = "update party_secret set expires_at = $3 where client_id = $1 and created_at = $2"
        yield statement, (client_id, kept, microseconds(until))
    # The new secret is the newest even after the clock was set back.
    yield _INSERT_SECRET, (client_id, max(microseconds(now), kept + 1), secret_hash)


def _values(party: Party) -> Row:
    return (
        party.client_id,
        party.name,
        _json(party.roles),
        _json(party.provider_ids),
        party.all_providers,
        _json(party.wmis),
        _json(party.operator_ids),
        party.enabled,
    )


def _json(values: Iterable[str]) -> str:
    return json.dumps(sorted(values))


def party_of(row: Row) -> Party:
    """A party from a row of `COLUMNS`."""
    client_id, name, roles, provider_ids, all_providers, wmis, operator_ids, enabled = row
    return Party(
        client_id,
        name,
        frozenset(all_known(PartyRole, json.loads(roles), "party.roles", client_id)),
        frozenset(map(ProviderId, json.loads(provider_ids))),
        bool(all_providers),
        frozenset(map(WMI, json.loads(wmis))),
        frozenset(map(OperatorId, json.loads(operator_ids))),
        bool(enabled),
    )
