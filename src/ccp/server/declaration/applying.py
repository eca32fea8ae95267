"""Applies a declaration: every change and every audit entry in one transaction, or none.

    plan = await prepare(store, declared, now, prune=prune)          # compares, and hashes the secrets of the file
    result = await apply(store, plan, by, now)

Two applications at once run one after the other. The later one compares again under the lock, so it changes what the
earlier one left to change; it never removes what its operator has not seen in `plan.differences`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from ccp.errors import ConfigurationError, Conflict
from ccp.server.access.admin_changes import begin_change
from ccp.server.access.client_secrets import hash_secret, matching_hash, new_secret
from ccp.server.access.party_registry import DEFAULT_OVERLAP, added_entry, changed_entry, rotated_entry
from ccp.server.declaration.differences import (
    AnchorChange,
    Differences,
    Kind,
    PartyChange,
    PeerChange,
    Registered,
    SecretChange,
    compare,
    with_client_ids,
)
from ccp.server.declaration.reader import Declaration
from ccp.server.domain.actor import Actor
from ccp.server.domain.parties import Party
from ccp.server.pool import peer_registry
from ccp.server.runtime.private_files import create_private, fsync_path
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query, long_read, long_write
from ccp.server.storage.queries import anchors, audit, parties, peers
from ccp.server.storage.queries.audit import Action, Entry
from ccp.server.storage.queries.change_counters import ChangeCounter, lock
from ccp.server.trust.anchors import trusted_certificate

_ATTEMPTS: Final = 3
_MAX_THREADS: Final = 4  # Each takes 19 MiB.


class ChangedMeanwhile(Conflict):
    """Another process has changed what was compared."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A declaration that was compared with the database.

    matching: by client id, the stored hash that the declared secret matches. hashes: by client id, the hash of a new
    secret. compared: by client id, the stored hash that the declared secret was compared with. generated: the client
    secrets of new parties for which the file names none, by client id.
    """

    declared: Declaration
    differences: Differences
    prune: bool
    matching: Mapping[str, str]
    compared: Mapping[str, str | None]
    hashes: Mapping[str, str] = field(repr=False)
    generated: Mapping[str, str] = field(repr=False)


async def prepare(
    store: Store,
    declared: Declaration,
    now: datetime,
    *,
    prune: bool,
    dry_run: bool = False,
    earlier: Plan | None = None,
) -> Plan:
    """Compare a declaration with the database, and hash secrets. Changes nothing.

    For a command: a hash takes some 20 ms of a processor, during which the event loop stands still.

    dry_run: no secrets are generated and hashed. earlier: a plan of the same declaration; a secret is compared only
    with a stored hash that it was not compared with then. Raises ConfigurationError with a sentence for each problem.
    """
    if prune and declared.is_empty:
        raise ConfigurationError("The file declares nothing, and --prune would remove everything. Is it complete?")
    registered = await store.read(_registered(declared, now))
    declared = with_client_ids(declared, registered.parties)
    _refuse_duplicates(declared)
    matching = _matching(declared, registered, earlier)
    differences = compare(declared, registered, matching, prune=prune)
    hashes: dict[str, str] = {}
    generated: dict[str, str] = {}
    for change in () if dry_run else differences.parties:
        if change.secret is None or change.declared is None:
            continue
        name = change.after.client_id
        secret = change.declared.secret or ""
        if change.secret is SecretChange.GENERATED:
            secret = generated[name] = new_secret()
        hashes[name] = change.declared.secret_hash or hash_secret(secret)
    return Plan(declared, differences, prune, matching, dict(registered.hashes), hashes, generated)


async def apply(
    store: Store,
    declared: Declaration,
    plan: Plan,
    by: Actor,
    now: datetime,
    keep: Callable[[Plan], None] = lambda plan: None,
    removals: frozenset[tuple[Kind, str]] | None = None,
) -> Plan:
    """Make the changes of a plan. Returns the plan that was carried out, with the secrets that it generated.

    declared: as given to `prepare`. keep: called before each attempt, to store the generated secrets; it may raise.
    removals: what may be removed; None for that of the plan.

    Raises ChangedMeanwhile if other processes keep changing the registers, and what a change raises.
    """
    seen = plan.differences.removed if removals is None else removals
    for attempt in range(_ATTEMPTS):
        if attempt:
            plan = await prepare(store, declared, now, prune=plan.prune, earlier=plan)
        keep(plan)
        try:
            done = await store.write(_apply(plan, seen, by, now))
        except ChangedMeanwhile:
            if attempt == _ATTEMPTS - 1:
                raise
            continue
        added = {change.after.client_id for change in done.parties if change.before is None}
        generated = {name: secret for name, secret in plan.generated.items() if name in added}
        return replace(plan, differences=done, generated=generated)
    raise AssertionError("the last attempt returns or raises")


def _matching(declared: Declaration, registered: Registered, earlier: Plan | None) -> dict[str, str]:
    """By client id, the stored hash that the declared secret matches. argon2 runs on several processors at once."""
    matching: dict[str, str] = {}
    unknown: list[tuple[str, str, str]] = []
    # An entry without client id is another party after a rename.
    secrets = {} if earlier is None else {each.party.client_id: each.secret for each in earlier.declared.parties}
    for each in declared.parties:
        name = each.party.client_id
        stored = registered.hashes.get(name)
        if each.secret is None or stored is None:
            continue
        if earlier is not None and earlier.compared.get(name) == stored and secrets.get(name) == each.secret:
            if earlier.matching.get(name) == stored:
                matching[name] = stored
        else:
            unknown.append((name, stored, each.secret))
    if unknown:
        with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as threads:
            found = threads.map(lambda each: matching_hash([each[1]], each[2]), unknown)
            matching |= {
                name: stored for (name, stored, _), match in zip(unknown, found, strict=True) if match is not None
            }
    return matching


@long_read
def _registered(declared: Declaration, now: datetime) -> Query[Registered]:
    return (yield from _read(declared, now))


def _read(declared: Declaration, now: datetime) -> Query[Registered]:
    known = {party.client_id: party for party in (yield from parties.list_all())}
    hashes: dict[str, str | None] = {}
    for each in with_client_ids(declared, known).parties:
        if each.party.client_id in known and (each.secret or each.secret_hash):
            hashes[each.party.client_id] = yield from parties.newest_secret_hash(each.party.client_id, now)
    pools = {peer.party_id: peer for peer in (yield from peers.list_all())}
    trusted = {(entry.role, entry.fingerprint): entry for entry in (yield from anchors.list_all())}
    return Registered(known, pools, trusted, hashes)


def _refuse_duplicates(declared: Declaration) -> None:
    """Refuse two entries that turn out to be the same party. Raises ConfigurationError."""
    places: dict[str, str] = {}
    for each in declared.parties:
        other = places.setdefault(each.party.client_id, each.place)
        if other != each.place:
            raise ConfigurationError(f"{each.place}: is the same party as {other}")


@long_write
def _apply(plan: Plan, seen: frozenset[tuple[Kind, str]], by: Actor, now: datetime) -> Query[Differences]:
    yield from begin_change(by)
    yield lock(ChangeCounter.PEERS)
    yield lock(ChangeCounter.ANCHORS)
    registered = yield from _read(plan.declared, now)
    for name, stored in registered.hashes.items():
        if plan.compared.get(name) != stored:
            raise ChangedMeanwhile("Secrets of parties have been changed meanwhile. Nothing was applied; try again.")
    differences = compare(plan.declared, registered, plan.matching, prune=plan.prune)
    new = {change.after.client_id for change in differences.parties if change.secret is not None}
    if differences.removed - seen or new - plan.hashes.keys():
        raise ChangedMeanwhile("The registers have been changed meanwhile. Nothing was applied; try again.")
    entries: list[Entry] = []
    entries += yield from _change_parties(differences.parties, plan.hashes, by, now)
    entries += yield from _change_peers(differences.peers, by, now)
    entries += yield from _change_anchors(differences.anchors, by, now)
    yield from audit.record(*entries)
    return differences


def _change_parties(
    changes: tuple[PartyChange, ...], hashes: Mapping[str, str], by: Actor, now: datetime
) -> Query[list[Entry]]:
    entries = []
    # Ids that a party gives up are free for the parties after it, whatever their order in the file.
    reduced: dict[str, Party] = {}
    for change in changes:
        before, after = change.before, change.after
        if before is not None and before != after:
            kept = replace(before, provider_ids=before.provider_ids & after.provider_ids, wmis=before.wmis & after.wmis)
            if kept != before:
                yield from parties.update(before, kept)
            reduced[after.client_id] = kept
    for change in changes:
        before, after = change.before, change.after
        if before is None:
            yield from parties.insert(after, hashes[after.client_id], now)
            entries.append(added_entry(after, by, now))
            continue
        if before != after:
            yield from parties.update(reduced[after.client_id], after)
            action = Action.PARTY_EDITED
            if replace(before, enabled=after.enabled) == after:
                action = Action.PARTY_ENABLED if after.enabled else Action.PARTY_DISABLED
            entries.append(changed_entry(before, after, by, now, action))
        if change.secret is not None:
            until = now + timedelta(seconds=DEFAULT_OVERLAP)
            live = yield from parties.list_secrets(after.client_id, now)
            older = live[0] if live else None
            yield from parties.rotate_secret(after.client_id, hashes[after.client_id], now, older, until)
            entries.append(rotated_entry(after.client_id, until if older else None, by, now))
    return entries


def _change_peers(changes: tuple[PeerChange, ...], by: Actor, now: datetime) -> Query[list[Entry]]:
    entries = []
    for change in changes:
        if change.before is not None and change.after is None:
            entries += yield from peer_registry.remove_peer(change.before, by, now)
    for change in changes:
        after = change.after
        if after is not None and change.before is None:
            yield from peers.add(after, now)
            entries.append(peer_registry.added_entry(after, by, now))
        elif after is not None:
            before, _ = yield from peers.edit(after.party_id, lambda _, after=after: after)  # type: ignore[misc]
            entries += peer_registry.changed_entries(before, after, by, now)
    return entries


def _change_anchors(changes: tuple[AnchorChange, ...], by: Actor, now: datetime) -> Query[list[Entry]]:
    entries = []
    for change in changes:
        if change.declared is not None:
            declared = change.declared
            row = trusted_certificate(declared.certificate, declared.role, declared.source, now, declared.label)
            new = yield from anchors.add_by_operator(row)
            entries.append(anchors.added_entry(row, by.name, now, new=new))
        elif change.before is not None:
            row = change.before
            roles = yield from anchors.remove(row.fingerprint, row.role, now=now)
            entries.append(anchors.removed_entry(row.fingerprint, roles, by.name, now))
    return entries


# --- Generated secrets -----------------------------------------------------------------------------------------------


class SecretsFile:
    """A new file, mode 0600, for generated client secrets: written before the change, removed if it fails.

    So a secret is never lost. After a crash the file may hold secrets of parties that were not added.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_ours = False

    def write(self, secrets: Mapping[str, str]) -> None:
        """Write the secrets by client id, one TOML line each, to disk. Raises ConfigurationError, OSError."""
        self.remove()
        if not secrets:
            return
        try:
            with create_private(self._path) as file:
                self._is_ours = True
                file.write("".join(f'"{name}" = "{secret}"\n' for name, secret in secrets.items()).encode())
                file.flush()
                fsync_path(self._path)
        except FileExistsError as exc:
            raise ConfigurationError(f"{self._path} exists; secrets are written to a new file only.") from exc
        fsync_path(self._path.parent)

    def remove(self) -> None:
        """Remove the file if this object has written it."""
        if self._is_ours:
            self._path.unlink(missing_ok=True)
            self._is_ours = False


@contextmanager
def kept_secrets(path: Path | None) -> Iterator[Callable[[Plan], None]]:
    """The `keep` of `apply`. path: of the file for generated secrets; None keeps none. An error removes the file."""
    file = None if path is None else SecretsFile(path)
    try:
        yield lambda plan: None if file is None else file.write(plan.generated)
    except BaseException:
        if file is not None:
            file.remove()
        raise
