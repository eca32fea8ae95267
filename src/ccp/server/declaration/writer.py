"""Writes the present state as a declaration: parties, peers, and the anchors that an operator has added, no secrets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from ccp.server.domain.parties import Party
from ccp.server.pool.peer_registry import PeerView
from ccp.server.storage import Store
from ccp.server.storage.queries import anchors, parties, peers
from ccp.server.storage.queries.anchors import TrustedCertificate
from ccp.server.storage.queries.peers import Peer
from ccp.x509.certificates import Certificate

_HEAD: Final = """\
# Declaration of a pool, for `ccp apply`. Secrets are not in it: registered ones stay as they are.
# Anchors that a Root Certificate Pool lists are left out; `ccp trust sync` keeps them.
"""
_NEEDED: Final = frozenset({"name", "roles", "party_id", "base_url"})


async def write_declaration(store: Store) -> str:
    """The declaration that changes nothing when it is applied, as TOML."""
    known = sorted(await store.read(parties.list_all()), key=lambda party: party.client_id)
    return render(known, await store.read(peers.list_all()), await store.read(anchors.list_all()))


def render(registered: Iterable[Party], pools: Iterable[Peer], trusted: Iterable[TrustedCertificate]) -> str:
    """Write entries as TOML. Members with their default are left out."""
    return "\n".join((_HEAD, *_parties(registered), *_peers(pools), *_anchors(trusted)))


def _parties(registered: Iterable[Party]) -> Iterator[str]:
    for party in registered:
        yield _table("party", party.members())


def _peers(pools: Iterable[Peer]) -> Iterator[str]:
    for peer in pools:
        members = PeerView(peer).members()
        yield _table("peer", {**members, "dialect": None if peer.dialect == "opnc" else peer.dialect})


def _anchors(trusted: Iterable[TrustedCertificate]) -> Iterator[str]:
    roles: dict[tuple[str, str], list[str]] = {}
    certificates: dict[str, bytes] = {}
    for entry in trusted:
        if not entry.is_synced:
            roles.setdefault((entry.fingerprint, entry.label), []).append(entry.role)
            certificates[entry.fingerprint] = entry.certificate
    for (fingerprint, label), names in roles.items():
        pem = Certificate.load(certificates[fingerprint]).pem().decode("ascii")
        yield f"{_table('anchor', {'label': label, 'roles': sorted(names)})}pem = '''\n{pem}'''\n"


def _table(kind: str, members: Mapping[str, Any]) -> str:
    lines = [f"[[{kind}]]"]
    for name, value in members.items():
        default = True if name == "enabled" else False if name == "all_providers" else None
        if name in _NEEDED or value not in (default, []):
            lines.append(f"{name} = {_value(value)}")
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    # A basic string of TOML 1.0 has the escapes of JSON, and must escape U+007F too.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
