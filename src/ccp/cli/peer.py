"""ccp peer: other pools that this pool asks when it has no contract."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import typer

from ccp.cli.output import (
    ConfigOption,
    JsonOption,
    YesOption,
    confirm,
    print_json,
    print_line,
    print_table,
    with_store,
)
from ccp.client import Dialect
from ccp.errors import ConfigurationError, MismatchError
from ccp.ids import parse_fingerprint
from ccp.server import settings
from ccp.server.audit.actor import command_actor
from ccp.server.domain.actor import Actor
from ccp.server.external.egress import client_tls_context
from ccp.server.pool.peer_probe import probe_peer
from ccp.server.pool.peer_registry import PeerRegistry, PeerView, create_peer, parse_peer_fields
from ccp.server.storage.queries.peers import Peer

app = typer.Typer(no_args_is_help=True)

_SECRET_VARIABLE = "CCP_PEER_SECRET"  # noqa: S105  the variable's name
T = TypeVar("T")
PeerArgument = Annotated[str, typer.Argument(metavar="PARTY_ID", help="The pool's party id.")]
Texts = list[str]


@app.command()
def add(
    party_id: PeerArgument,
    base_url: Annotated[str, typer.Argument(help="Its base URL, without the API's path.")],
    dialect: Annotated[Dialect, typer.Option(help="Dialect of its API.")] = Dialect.OPNC,
    client_id: Annotated[
        str | None, typer.Option(help="Our client id there. Without it the secret is an access token.")
    ] = None,
    token_url: Annotated[str | None, typer.Option(help="Its token endpoint, if it is not /oauth/token.")] = None,
    audience: Annotated[str | None, typer.Option(help="Audience that its token endpoint requires.")] = None,
    v2g_root: Annotated[Texts, typer.Option(help="Fingerprint of a V2G root under which it has contracts.")] = [],  # noqa: B006
    provider_id: Annotated[
        Texts,
        typer.Option(help="Provider whose contracts the peer holds; its answers for that provider take precedence."),
    ] = [],  # noqa: B006
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a pool. The client secret or token is read from CCP_PEER_SECRET, or from the terminal."""
    given = {
        "party_id": party_id, "base_url": base_url, "dialect": dialect.value, "client_id": client_id,
        "token_url": token_url, "audience": audience, "v2g_roots": _fingerprints(v2g_root),
        "provider_ids": provider_id,
    }  # fmt: skip
    peer = create_peer(given, _read_secret())
    _with_registry(config, lambda registry, at: registry.add(peer, _command(), at))
    _print_peer(peer, f"{party_id} is a peer. Test it with 'ccp peer test {party_id}'.", as_json=as_json)


@app.command("list")
def list_peers(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the peers, without secrets."""

    found = _with_registry(config, lambda registry, at: registry.list_all())
    if as_json:
        print_json([_members(peer) for peer in found])
        return
    print_table(
        ["party id", "address", "dialect", "credentials", "V2G roots", "providers", "state"],
        [
            [
                peer.party_id,
                peer.base_url,
                peer.dialect,
                peer.client_id or "token",
                " ".join(sorted(peer.v2g_roots)) or "any",
                " ".join(sorted(peer.provider_ids)) or "any",
                ("enabled" if peer.enabled else "disabled") + (", damaged secret" if peer.damage else ""),
            ]
            for peer in found
        ],
    )


@app.command()
def show(party_id: PeerArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show a peer, without its secret."""
    peer = _get(config, party_id)
    members = _members(peer)
    if as_json:
        print_json(members)
        return
    for name, value in members.items():
        text = " ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
        print_line(f"{name:<12}  {text}".rstrip())
    if peer.damage is not None:
        print_line(f"warning: {peer.damage} Store a new one with `ccp peer rotate-secret {party_id}`.", err=True)


@app.command()
def edit(
    party_id: PeerArgument,
    base_url: Annotated[str | None, typer.Option(help="New base URL, without the API's path.")] = None,
    dialect: Annotated[Dialect | None, typer.Option(help="Dialect of its API.")] = None,
    token_url: Annotated[str | None, typer.Option(help="Its token endpoint; empty for /oauth/token.")] = None,
    audience: Annotated[
        str | None, typer.Option(help="Audience that its token endpoint requires; may be empty.")
    ] = None,
    add_v2g_root: Annotated[Texts, typer.Option(help="Add the fingerprint of a V2G root.")] = [],  # noqa: B006
    remove_v2g_root: Annotated[Texts, typer.Option(help="Remove the fingerprint of a V2G root.")] = [],  # noqa: B006
    add_provider_id: Annotated[Texts, typer.Option(help="Add a provider.")] = [],  # noqa: B006
    remove_provider_id: Annotated[Texts, typer.Option(help="Remove a provider.")] = [],  # noqa: B006
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a peer. Running workers follow within seconds. A list option may be given several times."""
    given = {"base_url": base_url, "dialect": dialect and dialect.value, "token_url": token_url, "audience": audience}
    values = parse_peer_fields({name: value for name, value in given.items() if value is not None})
    added = parse_peer_fields({"v2g_roots": _fingerprints(add_v2g_root), "provider_ids": add_provider_id})
    removed = parse_peer_fields({"v2g_roots": _fingerprints(remove_v2g_root), "provider_ids": remove_provider_id})
    if not (values or any(added.values()) or any(removed.values())):
        raise ConfigurationError("Nothing is to be changed; see --help.")

    def change(peer: Peer) -> Peer:
        absent = sorted(str(value) for name in removed for value in removed[name] - getattr(peer, name))
        if absent:
            raise MismatchError(f"{party_id} does not have {', '.join(absent)}.")
        sets = {name: (getattr(peer, name) - removed[name]) | added[name] for name in added}
        return replace(peer, **values, **sets)

    peer = _with_registry(config, lambda registry, at: registry.edit(party_id, change, _command(), at))
    _print_peer(peer, f"{party_id} is changed.", as_json=as_json)


@app.command("rotate-secret")
def rotate_secret(
    party_id: PeerArgument,
    client_id: Annotated[str | None, typer.Option(help="Our client id there, if it is new.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace the client secret or token that the peer has given us; read as by `ccp peer add`.

    Running workers follow within seconds; a call in progress is not interrupted. For the secret with which the peer
    calls us, use `ccp party rotate-secret`; for the one that signs its events, `ccp neighbour subscribe --renew`.
    """
    secret = _read_secret()
    peer = _with_registry(
        config, lambda registry, at: registry.rotate_secret(party_id, secret, _command(), at, client_id)
    )
    _print_peer(
        peer, f"The secret of {party_id} is replaced. Test it with 'ccp peer test {party_id}'.", as_json=as_json
    )


@app.command("test")
def call(party_id: PeerArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Send a peer a malformed vehicle request: a pool that accepts our credentials refuses it as malformed."""
    peer = _get(config, party_id)
    asyncio.run(probe_peer(peer, settings.load(config).peer_delivery_timeout, client_tls_context()))
    _print_peer(peer, f"{party_id} answers, and accepts our vehicle requests.", as_json=as_json)


@app.command()
def enable(party_id: PeerArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Enable a peer. Running workers follow within seconds."""
    peer = _with_registry(config, lambda registry, at: registry.enable(party_id, _command(), at))
    _print_peer(peer, f"{party_id} is enabled.", as_json=as_json)


@app.command()
def disable(party_id: PeerArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Disable a peer: it is no longer asked. Running workers follow within seconds."""
    peer = _with_registry(config, lambda registry, at: registry.disable(party_id, _command(), at))
    _print_peer(peer, f"{party_id} is disabled.", as_json=as_json)


@app.command()
def remove(
    party_id: PeerArgument, yes: YesOption = False, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Remove a peer, our credentials with it, and the subscription to its events. Workers follow within seconds."""
    confirm(f"Remove the peer {party_id}", yes=yes)
    peer = _with_registry(config, lambda registry, at: registry.remove(party_id, _command(), at))
    _print_peer(peer, f"{party_id} is removed.", as_json=as_json)


def _print_peer(peer: Peer, sentence: str, *, as_json: bool) -> None:
    if as_json:
        print_json(_members(peer))
    else:
        print_line(sentence)


def _get(config: ConfigOption, party_id: str) -> Peer:
    return _with_registry(config, lambda registry, at: registry.get(party_id))


def _with_registry(config: ConfigOption, use: Callable[[PeerRegistry, datetime], Coroutine[Any, Any, T]]) -> T:
    return with_store(config, lambda store: use(PeerRegistry(store), datetime.now(UTC)))


def _command() -> Actor:
    return Actor(command_actor())


def _read_secret() -> str:
    secret: str = os.environ.get(_SECRET_VARIABLE) or typer.prompt("Secret or token", hide_input=True, err=True)
    return secret


def _fingerprints(texts: Texts) -> list[str]:
    return [parse_fingerprint(text, "v2g-root") for text in texts]


def _members(peer: Peer) -> dict[str, Any]:
    return PeerView(peer).members()
