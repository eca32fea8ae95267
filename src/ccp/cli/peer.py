"""ccp peer: other pools that this pool asks when it has no contract."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from ccp.cli.fingerprints import parse_fingerprint
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
from ccp.client import BadRequestError, Client, Dialect, Routing
from ccp.errors import ConfigurationError, MismatchError
from ccp.ids import Fingerprint, Namespace, ProviderId
from ccp.server import settings
from ccp.server.audit.actor import command_actor
from ccp.server.pool.peer_links import client_options
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import peers, subscriptions
from ccp.server.storage.queries.audit import Action, Entry, with_audit
from ccp.server.storage.queries.peers import Peer
from ccp.server.storage.queries.subscriptions import PEER_PREFIX, Subscription

app = typer.Typer(no_args_is_help=True)

_SECRET_VARIABLE = "CCP_PEER_SECRET"  # noqa: S105  the variable's name
_SECRETS = ("secret", "token")

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
    secret = _read_secret()
    peer = Peer(
        party_id,
        base_url,
        dialect.value,
        client_id,
        secret if client_id is not None else None,
        token_url,
        audience,
        None if client_id is not None else secret,
        _roots(v2g_root),
        provider_ids=_providers(provider_id),
    )
    _check(peer)
    now = datetime.now(UTC)
    entry = Entry(now, command_actor(), Action.PEER_ADDED, {"peer": party_id, "base_url": base_url})
    _write(config, with_audit(peers.add(peer, now), lambda _: [entry]))
    _print_peer(peer, f"{party_id} is a peer. Test it with 'ccp peer test {party_id}'.", as_json=as_json)


@app.command("list")
def list_peers(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the peers, without secrets."""

    async def read(store: Store) -> list[Peer]:
        return await store.read(peers.list_all())

    found = with_store(config, read)
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
                "enabled" if peer.enabled else "disabled",
            ]
            for peer in found
        ],
    )


@app.command()
def show(party_id: PeerArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show a peer, without its secret."""
    members = _members(_get(config, party_id))
    if as_json:
        print_json(members)
        return
    for name, value in members.items():
        text = " ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
        print_line(f"{name:<12}  {text}".rstrip())


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
    values: dict[str, Any] = {}
    if base_url is not None:
        values["base_url"] = base_url
    if dialect is not None:
        values["dialect"] = dialect.value
    if token_url is not None:
        values["token_url"] = token_url or None
    if audience is not None:
        values["audience"] = audience or None
    added = {"v2g_roots": _roots(add_v2g_root), "provider_ids": _providers(add_provider_id)}
    removed = {"v2g_roots": _roots(remove_v2g_root), "provider_ids": _providers(remove_provider_id)}
    if not (values or any(added.values()) or any(removed.values())):
        raise ConfigurationError("Nothing is to be changed; see --help.")

    def change(peer: Peer) -> Peer:
        absent = sorted(str(value) for name in removed for value in removed[name] - getattr(peer, name))
        if absent:
            raise MismatchError(f"{party_id} does not have {', '.join(absent)}.")
        sets = {name: (getattr(peer, name) - removed[name]) | added[name] for name in added}
        return replace(peer, **values, **sets)

    peer = _edit(config, party_id, change)
    _print_peer(peer, f"{party_id} is changed.", as_json=as_json)


@app.command("rotate-secret")
def rotate_secret(
    party_id: PeerArgument,
    client_id: Annotated[str | None, typer.Option(help="Our client id there, if it is new.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace the client secret or token that the peer has given us; read as by `ccp peer add`."""
    secret = _read_secret()

    def change(peer: Peer) -> Peer:
        if client_id is None and peer.client_id is None:
            return replace(peer, token=secret)
        return replace(peer, client_id=client_id or peer.client_id, secret=secret, token=None)

    peer = _edit(config, party_id, change)
    _print_peer(
        peer, f"The secret of {party_id} is replaced. Test it with 'ccp peer test {party_id}'.", as_json=as_json
    )


@app.command("test")
def call(party_id: PeerArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Send a peer a malformed vehicle request: a pool that accepts our credentials refuses it as malformed."""
    peer = _get(config, party_id)
    routing = Routing(to_type="ccp", to_id=party_id)
    seconds = settings.load(config).peer_delivery_timeout
    with Client(**client_options(peer, seconds)) as client:  # type: ignore[arg-type]
        try:
            client.deliver(b"\0", Namespace.ISO2, routing=routing, timeout=seconds)
        except BadRequestError:
            pass
        else:
            raise ConfigurationError(f"{party_id} accepts a malformed vehicle request; it is probably no pool.")
    _print_peer(peer, f"{party_id} answers, and accepts our vehicle requests.", as_json=as_json)


@app.command()
def enable(party_id: PeerArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Enable a peer. Running workers follow within seconds."""
    peer = _edit(config, party_id, lambda peer: replace(peer, enabled=True), Action.PEER_ENABLED)
    _print_peer(peer, f"{party_id} is enabled.", as_json=as_json)


@app.command()
def disable(party_id: PeerArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Disable a peer: it is no longer asked. Running workers follow within seconds."""
    peer = _edit(config, party_id, lambda peer: replace(peer, enabled=False), Action.PEER_DISABLED)
    _print_peer(peer, f"{party_id} is disabled.", as_json=as_json)


@app.command()
def remove(
    party_id: PeerArgument, yes: YesOption = False, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Remove a peer, our credentials with it, and the subscription to its events. Workers follow within seconds."""
    confirm(f"Remove the peer {party_id}", yes=yes)
    source = f"{PEER_PREFIX}{party_id}"

    def change() -> Query[tuple[Peer, Subscription | None]]:
        peer = yield from peers.remove(party_id)
        subscription = yield from subscriptions.find(source)
        if subscription is not None:
            yield from subscriptions.remove(subscription.id)
        return peer, subscription

    def entries(removed: tuple[Peer, Subscription | None]) -> list[Entry]:
        peer, subscription = removed
        now, actor = datetime.now(UTC), command_actor()
        found = [Entry(now, actor, Action.PEER_REMOVED, {"peer": party_id, "base_url": peer.base_url})]
        if subscription is not None:
            subject = {"source": source, "subscription": subscription.id}
            found.append(Entry(now, actor, Action.SUBSCRIPTION_REMOVED, subject))
        return found

    peer, _ = _write(config, with_audit(change(), entries))
    _print_peer(peer, f"{party_id} is removed.", as_json=as_json)


def _print_peer(peer: Peer, sentence: str, *, as_json: bool) -> None:
    if as_json:
        print_json(_members(peer))
    else:
        print_line(sentence)


def _edit(
    config: ConfigOption, party_id: str, change: Callable[[Peer], Peer], action: Action = Action.PEER_EDITED
) -> Peer:
    """Change a peer and record it. Raises NotFound, ConfigurationError for a peer that cannot be called."""

    def checked(peer: Peer) -> Peer:
        changed = change(peer)
        if action is Action.PEER_EDITED:
            _check(changed)
        return changed

    def entries(result: tuple[Peer, Peer]) -> list[Entry]:
        before, after = result
        changed = [field.name for field in fields(Peer) if getattr(after, field.name) != getattr(before, field.name)]
        subject: dict[str, Any] = {"peer": party_id}
        if action is Action.PEER_EDITED:
            shown = [name for name in changed if name not in _SECRETS]
            were, are = _members(before), _members(after)
            subject |= {
                "changed": changed,
                "before": {name: were[name] for name in shown},
                "after": {name: are[name] for name in shown},
            }
        return [Entry(datetime.now(UTC), command_actor(), action, subject)] if changed else []

    result: tuple[Peer, Peer] = _write(config, with_audit(peers.edit(party_id, checked), entries))
    return result[1]


def _get(config: ConfigOption, party_id: str) -> Peer:
    async def read(store: Store) -> Peer:
        return await store.read(peers.get(party_id))

    return with_store(config, read)


def _write(config: ConfigOption, query: Query[Any]) -> Any:
    async def write(store: Store) -> Any:
        return await store.write(query)

    return with_store(config, write)


def _read_secret() -> str:
    secret: str = os.environ.get(_SECRET_VARIABLE) or typer.prompt("Secret or token", hide_input=True, err=True)
    return secret


def _check(peer: Peer) -> None:
    """Refuse a peer that no client could call. Raises ConfigurationError, FieldError."""
    Client(**client_options(peer, 1.0)).close()  # type: ignore[arg-type]


def _roots(texts: Texts) -> frozenset[Fingerprint]:
    return frozenset(parse_fingerprint(text, "v2g-root") for text in texts)


def _providers(texts: Texts) -> frozenset[ProviderId]:
    return frozenset(ProviderId.parse(text, "provider-id") for text in texts)


def _members(peer: Peer) -> dict[str, object]:
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
