"""Compares a declaration with what the database holds. Pure.

A declared entry replaces the registered one with its client id, party id, or role and fingerprint: a member that the
file leaves out has its default. Secrets are the exception: without one in the file, the registered one stays.

What is registered and not declared stays, or is removed with `prune`: peers with their subscriptions, anchors that did
not come from a Root Certificate Pool, and parties by disabling them, because their ids and names stay reserved.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeAlias

from ccp.errors import ConfigurationError, Conflict
from ccp.server.declaration.entries import Problems
from ccp.server.declaration.reader import Declaration, DeclaredAnchor, DeclaredParty, DeclaredPeer
from ccp.server.domain.parties import Party, fold_name, owned_ids
from ccp.server.pool.peer_registry import PeerView, check_similar
from ccp.server.storage.queries.anchors import TrustedCertificate
from ccp.server.storage.queries.peers import Peer


class Kind(StrEnum):
    """What an entry is."""

    PARTY = "party"
    PEER = "peer"
    ANCHOR = "anchor"


class Verb(StrEnum):
    """What happens to an entry."""

    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"


class SecretChange(StrEnum):
    """What happens to the secret of an entry."""

    GENERATED = "generated"
    NEW = "new"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Registered:
    """What the database holds. hashes: of the newest secrets of parties whose secret is declared, by client id."""

    parties: Mapping[str, Party]
    peers: Mapping[str, Peer]
    anchors: Mapping[tuple[str, str], TrustedCertificate]
    hashes: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class PartyChange:
    """before: None for a new party. declared: None for one that is disabled because it is not declared."""

    before: Party | None
    after: Party
    declared: DeclaredParty | None
    secret: SecretChange | None


@dataclass(frozen=True, slots=True)
class PeerChange:
    """before: None for a new peer. after: None for one that is removed."""

    before: Peer | None
    after: Peer | None


@dataclass(frozen=True, slots=True)
class AnchorChange:
    """before: None for a new anchor. declared: None for one that is removed."""

    before: TrustedCertificate | None
    declared: DeclaredAnchor | None


AnyChange: TypeAlias = PartyChange | PeerChange | AnchorChange


@dataclass(frozen=True, slots=True)
class Differences:
    """What applying a declaration changes. unchanged: declared entries. undeclared: registered ones that stay."""

    parties: tuple[PartyChange, ...]
    peers: tuple[PeerChange, ...]
    anchors: tuple[AnchorChange, ...]
    unchanged: int
    undeclared: int

    @property
    def changes(self) -> tuple[AnyChange, ...]:
        """All changes."""
        return (*self.parties, *self.peers, *self.anchors)

    @property
    def removed(self) -> frozenset[tuple[Kind, str]]:
        """What is removed."""
        return frozenset((shown.kind, shown.id) for shown in map(describe, self.changes) if shown.verb is Verb.REMOVE)


@dataclass(frozen=True, slots=True)
class ChangeView:
    """A change as it is shown. members: by name, the values before and after; None where there is no entry."""

    verb: Verb
    kind: Kind
    id: str
    label: str
    members: dict[str, tuple[Any, Any]]
    secret: SecretChange | None

    def as_json(self) -> dict[str, Any]:
        """The JSON of `ccp apply --json`."""
        return {
            "action": self.verb.value,
            "kind": self.kind.value,
            "id": self.id,
            "label": self.label,
            "members": {name: {"before": old, "after": new} for name, (old, new) in self.members.items()},
            "secret": self.secret and self.secret.value,
        }


def with_client_ids(declared: Declaration, registered: Mapping[str, Party]) -> Declaration:
    """The declaration with the client ids of registered parties whose name an entry without client id has."""
    by_name = {party.name: party.client_id for party in registered.values()}
    found = []
    for each in declared.parties:
        name = each.party.client_id if each.named else by_name.get(each.party.name, each.party.client_id)
        found.append(replace(each, party=replace(each.party, client_id=name)))
    return replace(declared, parties=tuple(found))


def compare(declared: Declaration, registered: Registered, matching: Mapping[str, str], *, prune: bool) -> Differences:
    """What applying the declaration changes.

    declared: from `with_client_ids`. matching: by client id, the hash that the declared secret matches. Raises
    ConfigurationError with a sentence for each entry that contradicts what is registered.
    """
    problems = Problems()
    parties = [_party(each, registered, matching) for each in declared.parties]
    peers = [_peer(each, registered, problems) for each in declared.peers]
    anchors = [_anchor(each, registered) for each in declared.anchors]
    unchanged = sum(not change for change in (*parties, *peers, *anchors))
    clients = {each.party.client_id for each in declared.parties}
    pools = {each.peer.party_id for each in declared.peers}
    trusted = {(each.role.value, each.certificate.fingerprint) for each in declared.anchors}
    other_parties = [party for name, party in registered.parties.items() if name not in clients and party.enabled]
    other_peers = [peer for name, peer in registered.peers.items() if name not in pools]
    other_anchors = [
        anchor for key, anchor in registered.anchors.items() if key not in trusted and not anchor.is_synced
    ]
    undeclared = len(other_parties) + len(other_peers) + len(other_anchors)
    if prune:
        parties += [PartyChange(party, replace(party, enabled=False), None, None) for party in other_parties]
        peers += [PeerChange(peer, None) for peer in other_peers]
        anchors += [AnchorChange(anchor, None) for anchor in other_anchors]
    _check_parties(declared.parties, registered.parties, problems)
    _check_peers(declared.peers, {} if prune else registered.peers, problems)
    if problems.sentences:
        raise ConfigurationError(*problems.sentences)
    return Differences(
        tuple(filter(None, parties)),
        tuple(filter(None, peers)),
        tuple(filter(None, anchors)),
        unchanged,
        0 if prune else undeclared,
    )


def _party(declared: DeclaredParty, registered: Registered, matching: Mapping[str, str]) -> PartyChange | None:
    after = declared.party
    before = registered.parties.get(after.client_id)
    has_secret = declared.secret is not None or declared.secret_hash is not None
    if before is None:
        return PartyChange(None, after, declared, SecretChange.NEW if has_secret else SecretChange.GENERATED)
    stored = registered.hashes.get(after.client_id)
    changed = has_secret and (stored is None or stored not in (declared.secret_hash, matching.get(after.client_id)))
    if before == after and not changed:
        return None
    return PartyChange(before, after, declared, SecretChange.CHANGED if changed else None)


def _peer(declared: DeclaredPeer, registered: Registered, problems: Problems) -> PeerChange | None:
    after, before = declared.peer, registered.peers.get(declared.peer.party_id)
    if not declared.has_secret:
        if before is None:
            problems.add(declared.place, "secret : a new peer needs secret_file or secret_env")
            return None
        if (before.client_id is None) != (after.client_id is None):
            problems.add(declared.place, "secret : is needed, because client_id and access token exclude each other")
            return None
        after = replace(after, secret=before.secret, token=before.token, damage=before.damage)
    return None if before == after else PeerChange(before, after)


def _anchor(declared: DeclaredAnchor, registered: Registered) -> AnchorChange | None:
    before = registered.anchors.get((declared.role.value, declared.certificate.fingerprint))
    if before is not None and before.label == declared.label and not before.is_synced:
        return None
    return AnchorChange(before, declared)


def _check_parties(declared: tuple[DeclaredParty, ...], registered: Mapping[str, Party], problems: Problems) -> None:
    """Record ids, names and client ids that two parties would have."""
    final = {**registered, **{each.party.client_id: each.party for each in declared}}
    owners: dict[tuple[str, str], set[str]] = defaultdict(set)
    names: dict[str, set[str]] = defaultdict(set)
    for party in final.values():
        for owned in owned_ids(party):
            owners[owned].add(party.client_id)
        for name in (party.name, party.client_id):
            names[fold_name(name)].add(party.client_id)
    for each in declared:
        own = each.party.client_id
        for kind, value in owned_ids(each.party):
            for other in sorted(owners[kind, value] - {own}):
                problems.add(each.place, f"the {kind} {value} belongs to {final[other].name}")
        for folded, name in {fold_name(name): name for name in (own, each.party.name)}.items():
            for other in sorted(names[folded] - {own}):
                problems.add(each.place, f"the name {name} is taken by {final[other].name} ({other})")


def _check_peers(declared: tuple[DeclaredPeer, ...], registered: Mapping[str, Peer], problems: Problems) -> None:
    for each in declared:
        try:
            check_similar(each.peer.party_id, registered)
        except Conflict as exc:
            problems.add(each.place, *exc.messages)


# --- How changes are shown -------------------------------------------------------------------------------------------


def describe(change: AnyChange) -> ChangeView:
    """A change as it is shown, without secrets."""
    if isinstance(change, PartyChange):
        verb = Verb.ADD if change.before is None else Verb.CHANGE if change.declared else Verb.REMOVE
        members = _changed({} if change.before is None else change.before.members(), change.after.members())
        return ChangeView(verb, Kind.PARTY, change.after.client_id, change.after.name, members, change.secret)
    if isinstance(change, PeerChange):
        return _describe_peer(change)
    return _describe_anchor(change)


def _describe_peer(change: PeerChange) -> ChangeView:
    before, after = change.before, change.after
    peer = after or before
    assert peer is not None
    secret = None
    if after is not None and (before is None or (before.secret, before.token) != (after.secret, after.token)):
        secret = SecretChange.NEW if before is None else SecretChange.CHANGED
    members = _changed(
        {} if before is None else PeerView(before).members(), {} if after is None else PeerView(after).members()
    )
    verb = Verb.ADD if before is None else Verb.CHANGE if after is not None else Verb.REMOVE
    return ChangeView(verb, Kind.PEER, peer.party_id, peer.base_url, members, secret)


def _describe_anchor(change: AnchorChange) -> ChangeView:
    before, declared = change.before, change.declared
    old = {} if before is None else {"label": before.label, "source": before.source}
    new = {} if declared is None else {"label": declared.label, "source": declared.source}
    if before is not None:
        identity, label = f"{before.role}:{before.fingerprint}", before.label
    else:
        assert declared is not None
        identity, label = f"{declared.role.value}:{declared.certificate.fingerprint}", declared.label
    verb = Verb.ADD if before is None else Verb.CHANGE if declared is not None else Verb.REMOVE
    return ChangeView(verb, Kind.ANCHOR, identity, label, _changed(old, new), None)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Members that differ. Those of a new entry are all that have a value."""
    found = {}
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        unused = not before and (new in (None, []) or (name, new) == ("all_providers", False))
        if old != new and not unused:
            found[name] = (old, new)
    return found
