"""ccp party: who may call."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

import typer

from ccp.auth import hash_secret, new_secret
from ccp.cli.show import ConfigOption, JsonOption, print_json, print_table, with_store
from ccp.errors import ConfigurationError
from ccp.ids import WMI, OperatorId, ProviderId
from ccp.parties import Party, Role
from ccp.store import Store, parties

app = typer.Typer(help="Register the parties that may call.", no_args_is_help=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The organisation's name.")],
    role: Annotated[list[Role], typer.Option(help="Role; may be given several times.")],
    provider_id: Annotated[list[str], typer.Option(help="Provider id of an eMSP, or one that a CPS signs for.")] = [],  # noqa: B006
    all_providers: Annotated[
        bool, typer.Option("--all-providers", help="A CPS that signs for every provider.")
    ] = False,
    wmi: Annotated[list[str], typer.Option(help="World manufacturer identifier of an OEM.")] = [],  # noqa: B006
    operator_id: Annotated[list[str], typer.Option(help="Operator id of a CPO.")] = [],  # noqa: B006
    client_id: Annotated[str | None, typer.Option(help="Client id; made from the name if not given.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a party and print its client secret, which is shown this once."""
    party = Party(
        client_id or _client_id(name),
        name,
        frozenset(role),
        frozenset(map(ProviderId.parse, provider_id)),
        all_providers,
        frozenset(map(WMI.parse, wmi)),
        frozenset(map(OperatorId.parse, operator_id)),
    )
    check_ids(party)
    secret = new_secret()

    async def register(store: Store) -> None:
        await store.write(parties.add(party, hash_secret(secret), datetime.now(UTC)))

    with_store(config, register)
    if as_json:
        print_json({**_shown(party), "client_secret": secret})
    else:
        typer.echo(f"client_id      {party.client_id}\nclient_secret  {secret}\nThe secret is not shown again.")


def check_ids(party: Party) -> None:
    """Refuse a party whose roles could do nothing, or could do more than was said. Raises ConfigurationError."""
    if Role.EMSP in party.roles and not party.provider_ids:
        raise ConfigurationError("An eMSP needs a provider id.")
    if Role.OEM in party.roles and not party.wmis:
        raise ConfigurationError("An OEM needs a WMI.")
    if Role.CPS in party.roles and not (party.provider_ids or party.all_providers):
        raise ConfigurationError("A CPS needs the provider ids that it signs for, or --all-providers.")
    if party.all_providers and Role.CPS not in party.roles:
        raise ConfigurationError("--all-providers is for a CPS.")


@app.command("list")
def list_parties(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the parties."""

    async def read(store: Store) -> list[Party]:
        return await store.read(parties.every())

    found = with_store(config, read)
    if as_json:
        print_json([_shown(party) for party in found])
        return
    print_table(
        ["name", "client id", "roles", "provider ids", "WMIs", "operator ids", "state"],
        [
            [
                party.name,
                party.client_id,
                " ".join(sorted(party.roles)),
                "all" if party.all_providers else " ".join(sorted(party.provider_ids)),
                " ".join(sorted(party.wmis)),
                " ".join(sorted(party.operator_ids)),
                "enabled" if party.enabled else "disabled",
            ]
            for party in found
        ],
    )


@app.command()
def disable(name: Annotated[str, typer.Argument(help="Name or client id.")], config: ConfigOption = None) -> None:
    """Disable a party. Running workers refuse its tokens within seconds."""

    async def change(store: Store) -> str:
        return await store.write(parties.disable(name))

    typer.echo(f"{with_store(config, change)} is disabled.")


def _client_id(name: str) -> str:
    text = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not text:
        raise ConfigurationError("The name has no letter or digit to make a client id from; give --client-id.")
    return text


def _shown(party: Party) -> dict[str, object]:
    return {
        "client_id": party.client_id,
        "name": party.name,
        "roles": sorted(party.roles),
        "provider_ids": sorted(party.provider_ids),
        "all_providers": party.all_providers,
        "wmis": sorted(party.wmis),
        "operator_ids": sorted(party.operator_ids),
        "enabled": party.enabled,
    }
