"""ccp party: the parties that may call the pool, and their rights."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ccp.cli.output import ConfigOption, JsonOption, print_json, print_line, print_table, with_store
from ccp.errors import ConfigurationError, MismatchError
from ccp.server.access.party_registry import DEFAULT_OVERLAP, PartyRegistry, PartyView, SecretToRevoke
from ccp.server.audit.actor import command_actor
from ccp.server.domain.actor import Actor
from ccp.server.domain.authorization import role_table
from ccp.server.domain.parties import Party, PartyRole, create_party, parse_fields

app = typer.Typer(no_args_is_help=True)

T = TypeVar("T")
Texts = list[str]
Named = Annotated[str, typer.Argument(metavar="NAME", help="Name or client id.")]
_SETS = ("roles", "provider_ids", "wmis", "operator_ids")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the organisation.")],
    role: Annotated[list[PartyRole], typer.Option(help="Role; may be given several times.")],
    provider_id: Annotated[Texts, typer.Option(help="Provider id of an eMSP, or one for which a CPS signs.")] = [],  # noqa: B006
    all_providers: Annotated[
        bool, typer.Option("--all-providers", help="A CPS that signs for every provider.")
    ] = False,
    wmi: Annotated[Texts, typer.Option(help="World manufacturer identifier of an OEM.")] = [],  # noqa: B006
    operator_id: Annotated[Texts, typer.Option(help="Operator id of a CPO.")] = [],  # noqa: B006
    client_id: Annotated[str | None, typer.Option(help="Client id. Default: derived from the name.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a party and print its client secret, which is shown only once.

    A provider id belongs to one eMSP and a WMI to one OEM. Names and client ids are compared case-insensitively.
    """
    given: dict[str, Any] = {
        "name": name, "roles": role, "provider_ids": provider_id, "all_providers": all_providers, "wmis": wmi,
        "operator_ids": operator_id,
    }  # fmt: skip
    party = create_party(given if client_id is None else {**given, "client_id": client_id})
    secret = _with_register(config, lambda register, at: register.add(party, _command(), at))
    if as_json:
        print_json({**party.members(), "client_secret": secret})
    else:
        _print_secret(party, secret)


@app.command("list")
def list_parties(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the parties."""
    found = _with_register(config, lambda register, at: register.list_all())
    if as_json:
        print_json([party.members() for party in found])
        return
    print_table(
        ["name", "client id", "roles", "provider ids", "WMIs", "operator ids", "state"],
        [[party.name, party.client_id, *_columns(party)] for party in found],
    )


@app.command()
def show(name: Named, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show a party and the validity of its secrets."""

    async def read(register: PartyRegistry, at: datetime) -> PartyView:
        return await register.show((await register.get_by_name(name)).client_id, at)

    shown = _with_register(config, read)
    if as_json:
        print_json(shown.members())
        return
    names = ["name", "client id", "roles", "provider ids", "WMIs", "operator ids", "state"]
    rows = list(zip(names, [shown.party.name, shown.party.client_id, *_columns(shown.party)], strict=True))
    rows += [
        ("secret", f"created {secret['created_at']}, valid until {secret['expires_at'] or 'it is replaced'}")
        for secret in shown.members()["secrets"]
    ]
    for label, value in rows:
        print_line(f"{label:<12}  {value}".rstrip())


@app.command()
def edit(
    name: Named,
    new_name: Annotated[str | None, typer.Option("--name", help="New name.")] = None,
    add_role: Annotated[list[PartyRole], typer.Option(help="Add a role.")] = [],  # noqa: B006
    remove_role: Annotated[
        list[PartyRole], typer.Option(help="Remove a role, and with it the ids that no other role of the party uses.")
    ] = [],  # noqa: B006
    add_provider_id: Annotated[Texts, typer.Option(help="Add a provider id.")] = [],  # noqa: B006
    remove_provider_id: Annotated[Texts, typer.Option(help="Remove a provider id.")] = [],  # noqa: B006
    add_wmi: Annotated[Texts, typer.Option(help="Add a WMI.")] = [],  # noqa: B006
    remove_wmi: Annotated[Texts, typer.Option(help="Remove a WMI.")] = [],  # noqa: B006
    add_operator_id: Annotated[Texts, typer.Option(help="Add an operator id.")] = [],  # noqa: B006
    remove_operator_id: Annotated[Texts, typer.Option(help="Remove an operator id.")] = [],  # noqa: B006
    all_providers: Annotated[
        bool | None, typer.Option("--all-providers/--no-all-providers", help="Whether a CPS signs for every provider.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a party's name, roles and ids. Options may be given several times; all changes are made, or none.

    Removals are made before additions. A client id never changes.

    To move an id to another party, remove it from the first party, then add it to the second.
    Disable the first party before, if that would leave it without ids.
    """
    added = parse_fields(dict(zip(_SETS, (add_role, add_provider_id, add_wmi, add_operator_id), strict=True)))
    removed = parse_fields(
        dict(zip(_SETS, (remove_role, remove_provider_id, remove_wmi, remove_operator_id), strict=True))
    )
    values: dict[str, Any] = {} if all_providers is None else {"all_providers": all_providers}
    if new_name is not None:
        values |= parse_fields({"name": new_name})
    if not (values or any(added.values()) or any(removed.values())):
        raise ConfigurationError("Nothing is to be changed; see --help.")

    def change(party: Party) -> Party:
        absent = sorted(value for field in _SETS for value in removed[field] - getattr(party, field))
        if absent:
            raise MismatchError(f"{party.name} does not have {', '.join(absent)}.")
        remaining = party.without_roles(removed["roles"])
        sets = {field: (getattr(remaining, field) - removed[field]) | added[field] for field in _SETS}
        return replace(remaining, **sets, **values)

    async def write(register: PartyRegistry, at: datetime) -> Party:
        return (await register.edit((await register.get_by_name(name)).client_id, change, _command(), at)).party

    party = _with_register(config, write)
    _print_party(party, "changed", as_json=as_json)


@app.command()
def roles(as_json: JsonOption = False) -> None:
    """Print what each role may do and under which condition. Everything else is refused."""
    rows = list(role_table())
    if as_json:
        print_json([dict(zip(("operation", "role", "condition"), row, strict=True)) for row in rows])
        return
    print_table(["operation", "role", "for"], rows)


@app.command()
def disable(name: Named, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Disable a party. Running workers refuse its tokens within seconds. Its ids stay reserved."""

    async def write(register: PartyRegistry, at: datetime) -> Party:
        return (await register.disable((await register.get_by_name(name)).client_id, _command(), at)).party

    _print_party(_with_register(config, write), "disabled", as_json=as_json)


@app.command()
def enable(name: Named, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Enable a party. Its secrets, and tokens that have not expired, are valid again."""

    async def write(register: PartyRegistry, at: datetime) -> Party:
        return (await register.enable((await register.get_by_name(name)).client_id, _command(), at)).party

    _print_party(_with_register(config, write), "enabled", as_json=as_json)


@app.command("rotate-secret")
def rotate_secret(
    name: Named,
    overlap: Annotated[
        int | None,
        typer.Option(help="Seconds for which the previous secret stays valid. Default: 7 days; at most 90 days."),
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="Revoke every older secret at once.")] = False,
    end: Annotated[
        SecretToRevoke | None, typer.Option(help="If two secrets are valid already: the one to revoke at once.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Issue a new client secret for a party and print it; it is shown only once.

    At most two secrets are valid at a time. Tokens stay valid until they expire;
    to invalidate them too, disable the party for their lifetime.
    """
    if now and (overlap is not None or end is not None):
        raise ConfigurationError("--now revokes every older secret; it excludes --overlap and --end.")
    overlap_seconds = 0 if now else DEFAULT_OVERLAP if overlap is None else overlap

    async def write(register: PartyRegistry, at: datetime) -> tuple[str, PartyView]:
        client_id = (await register.get_by_name(name)).client_id
        return await register.rotate_secret(client_id, _command(), at, overlap_seconds, end)

    secret, shown = _with_register(config, write)
    if as_json:
        print_json({**shown.members(), "client_secret": secret})
        return
    _print_secret(shown.party, secret)
    older = shown.members()["secrets"][1:]
    print_line(f"The previous one is valid until {older[0]['expires_at']}." if older else "No older secret is valid.")


def _with_register(config: Path | None, use: Callable[[PartyRegistry, datetime], Coroutine[Any, Any, T]]) -> T:
    return with_store(config, lambda store: use(PartyRegistry(store), datetime.now(UTC)))


def _command() -> Actor:
    return Actor(command_actor())


def _print_party(party: Party, state: str, *, as_json: bool) -> None:
    if as_json:
        print_json(party.members())
    else:
        print_line(f"{party.client_id} is {state}.")


def _print_secret(party: Party, secret: str) -> None:
    print_line(f"client_id      {party.client_id}")
    print_line(f"client_secret  {secret}")
    print_line("The secret is not shown again.")


def _columns(party: Party) -> list[str]:
    return [
        " ".join(sorted(party.roles)),
        "all" if party.all_providers else " ".join(sorted(party.provider_ids)),
        " ".join(sorted(party.wmis)),
        " ".join(sorted(party.operator_ids)),
        "enabled" if party.enabled else "disabled",
    ]
