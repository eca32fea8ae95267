"""ccp peer: other pools that may be asked."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Annotated

import typer

from ccp.cli.output import ConfigOption, JsonOption, print_json, print_line, print_table, with_store
from ccp.client import BadRequestError, Client, Dialect, Routing
from ccp.errors import ConfigurationError, NotFound
from ccp.ids import Fingerprint, Namespace, ProviderId
from ccp.server import settings
from ccp.server.audit.actor import command_actor
from ccp.server.pool.peer_links import client_options
from ccp.server.storage import Store
from ccp.server.storage.queries import peers
from ccp.server.storage.queries.audit import Action, Entry, with_audit
from ccp.server.storage.queries.peers import Peer

app = typer.Typer(no_args_is_help=True)

_SECRET = "CCP_PEER_SECRET"  # noqa: S105  the variable's name


@app.command()
def add(
    party_id: Annotated[str, typer.Argument(help="The pool's party id.")],
    base_url: Annotated[str, typer.Argument(help="Its address, up to what comes before the API's path.")],
    dialect: Annotated[Dialect, typer.Option(help="What it speaks.")] = Dialect.OPNC,
    client_id: Annotated[
        str | None, typer.Option(help="Our client id there; without it the secret is an access token.")
    ] = None,
    token_url: Annotated[str | None, typer.Option(help="Its token endpoint, if it is not /oauth/token.")] = None,
    audience: Annotated[str | None, typer.Option(help="Audience that its token endpoint asks for.")] = None,
    v2g_root: Annotated[list[str], typer.Option(help="Fingerprint of a V2G root that it has contracts under.")] = [],  # noqa: B006
    provider_id: Annotated[
        list[str],
        typer.Option(help="Provider whose contracts the peer holds; its answers for that provider take precedence."),
    ] = [],  # noqa: B006
    config: ConfigOption = None,
) -> None:
    """Register a pool. The client secret, or the token, is read from CCP_PEER_SECRET or asked for."""
    secret = os.environ.get(_SECRET) or typer.prompt("Secret or token", hide_input=True, err=True)
    peer = Peer(
        party_id,
        base_url,
        dialect.value,
        client_id,
        secret if client_id is not None else None,
        token_url,
        audience,
        None if client_id is not None else secret,
        frozenset(Fingerprint.parse(text, "v2g-root") for text in v2g_root),
        provider_ids=frozenset(ProviderId.parse(text, "provider-id") for text in provider_id),
    )
    Client(**client_options(peer, 1.0)).close()  # type: ignore[arg-type]  # It refuses what could never be called.

    async def register(store: Store) -> None:
        at = datetime.now(UTC)
        entry = Entry(at, command_actor(), Action.PEER_ADDED, {"peer": party_id, "base_url": base_url})
        await store.write(with_audit(peers.add(peer, at), lambda _: [entry]))

    with_store(config, register)
    print_line(f"{party_id} is a peer. 'ccp peer test {party_id}' tells whether it answers.")


@app.command("list")
def list_peers(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the pools; secrets are left out."""
    found = _every(config)
    if as_json:
        print_json([_shown(peer) for peer in found])
        return
    print_table(
        ["party id", "address", "dialect", "called with", "V2G roots", "providers", "state"],
        [
            [
                peer.party_id,
                peer.base_url,
                peer.dialect,
                peer.client_id or "token",
                " ".join(sorted(peer.v2g_roots)) or "any",
                " ".join(sorted(peer.provider_ids)) or "any",
                "enabled" if peer.enabled else "disabled",
            ]
            for peer in found
        ],
    )


@app.command("test")
def call(party_id: Annotated[str, typer.Argument(help="The pool's party id.")], config: ConfigOption = None) -> None:
    """Call a pool as for a vehicle, with a message that is none: it has to tell that and nothing else."""
    peer = next((peer for peer in _every(config) if peer.party_id == party_id), None)
    if peer is None:
        raise NotFound(f"There is no peer {party_id}.")
    routing = Routing(to_type="ccp", to_id=party_id)
    seconds = settings.load(config).peer_delivery_timeout
    with Client(**client_options(peer, seconds)) as client:  # type: ignore[arg-type]
        try:
            client.deliver(b"\0", Namespace.ISO2, routing=routing, timeout=seconds)
        except BadRequestError:
            print_line(f"{party_id} answers, and takes requests of vehicles from us.")
        else:
            raise ConfigurationError(f"{party_id} answers to what is no request of a vehicle; is it a pool?")


@app.command()
def disable(party_id: Annotated[str, typer.Argument(help="The pool's party id.")], config: ConfigOption = None) -> None:
    """Ask a pool no more. Running workers stop within seconds."""

    async def change(store: Store) -> None:
        entry = Entry(datetime.now(UTC), command_actor(), Action.PEER_DISABLED, {"peer": party_id})
        await store.write(with_audit(peers.disable(party_id), lambda _: [entry]))

    with_store(config, change)
    print_line(f"{party_id} is disabled.")


def _every(config: ConfigOption) -> list[Peer]:
    async def read(store: Store) -> list[Peer]:
        return await store.read(peers.list_all())

    return with_store(config, read)


def _shown(peer: Peer) -> dict[str, object]:
    return {
        "party_id": peer.party_id,
        "base_url": peer.base_url,
        "dialect": peer.dialect,
        "client_id": peer.client_id,
        "token_url": peer.token_url,
        "audience": peer.audience,
        "v2g_roots": sorted(peer.v2g_roots),
        "provider_ids": sorted(peer.provider_ids),
        "enabled": peer.enabled,
    }
