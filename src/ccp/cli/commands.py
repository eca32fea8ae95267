"""The table of commands: each with its help line and the module that is imported when it is called.

Most commands need libraries of the server, which take a second to import. So `ccp --help` reads this table, and
`ccp exi decode` imports what reads messages and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from typer import Typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group


class Entry(NamedTuple):
    """module: has either a group of commands (`app`), or a function that adds this one (`register`).

    help: what the list of commands says of it. A group has it from here, a command also has it as its docstring.
    """

    module: str
    help: str


COMMANDS: Final[Mapping[str, Entry]] = {
    "serve": Entry(
        "serve",
        "Run the pool. A new SQLite database is created; every other schema is made and upgraded with "
        "`ccp db upgrade`.",
    ),
    "config": Entry("serve", "Print the effective settings, without secrets."),
    "demo": Entry(
        "sandbox",
        "Run the whole story over real HTTP: a simulated car gets, verifies and decrypts a contract, in both editions.",
    ),
    "sandbox": Entry(
        "sandbox", "Create a test PKI, parties with credentials, sample cars and contracts, and a pool's configuration."
    ),
    "verify": Entry(
        "verify",
        "Walk every check on a CertificateInstallationRes or -Req and say what came of it. Exit status 0 or 1.",
    ),
    "purge": Entry(
        "purge",
        "Remove contracts that have expired or are revoked; car makers are told as of every other removal.",
    ),
    "erase": Entry(
        "erase", "Erase everything that is kept about a contract or a vehicle; the audit trail stays verifiable."
    ),
    "import": Entry("bulk", "Publish many signed contracts, each checked exactly as PUT does."),
    "export": Entry("bulk", "Write every variant of every contract as JSON Lines that PUT and `ccp import` take."),
    "backup": Entry(
        "backup",
        "Copy the database as it is at this moment, while the pool runs. The copy is checked and on disk afterwards.",
    ),
    "restore": Entry(
        "backup",
        "Make a backup the database. The pool has to be stopped; the database that was there is kept beside it.",
    ),
    "party": Entry("party", "Register the parties that may call."),
    "peer": Entry("peer", "Register other pools, to be asked when nothing is found here."),
    "trust": Entry("trust", "Look after the trusted certificates."),
    "crl": Entry("crl", "Show certificate revocation lists, and accept one with a lower number."),
    "audit": Entry("audit", "Look into the audit trail."),
    "webhook": Entry("webhook", "Manage partners' webhooks."),
    "events": Entry("events", "Manage events to partners' webhooks."),
    "keys": Entry("keys", "Look after the keys that sign access tokens."),
    "exi": Entry("exi", "Read and write CertificateInstallation messages."),
    "db": Entry("db", "Look after the database schema."),
}


class _AsGiven:
    """Takes the value of a parameter as it is where typer's coercion would not change it.

    typer coerces even a text by an adapter of pydantic: 70 ms and 13 MiB, more than all else that a small command
    needs. Drop this when typer does not.
    """

    def __init__(self, kind: object) -> None:
        self._kind = kind

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        if value is None or (type(value) is self._kind and isinstance(value, str | bool | Enum)):
            return value
        if self._kind is Path and type(value) is str and not param.type_descriptor.parameter_info.exists:
            return Path(value)
        param._runtime_param = None  # As typer has it until it is asked for one.
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)


def _light(params: list[Any]) -> list[Any]:
    for param in params:
        if param._runtime_param is None and param.nargs == 1 and not param.multiple:
            param._runtime_param = _AsGiven(param.type_descriptor.annotation)
    return params


class Command(TyperCommand):
    """A command whose parameters are coerced only where they have to be."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _light(super().get_params(ctx))


class Group(TyperGroup):
    """A group of such commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _light(super().get_params(ctx))


class LazyCommands(Group):
    """Lists the commands of the table without importing them; imports the one that is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, entry in COMMANDS.items():
            self.add_command(Command(name, help=entry.help))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None:
            command = load(name)
        return name, command, rest


def load(name: str) -> Any:
    """A command of the table, from its module: a `Command` or a `Group`."""
    entry = COMMANDS[name]
    module = import_module(f"ccp.cli.{entry.module}")
    app = getattr(module, "app", None) or Typer()
    app.info.cls = Group
    if hasattr(module, "register"):
        module.register(app)
    for info in app.registered_commands:
        info.cls = Command
    group = get_group(app)
    if hasattr(module, "register"):
        return group.commands[name]
    group.name, group.help = name, entry.help
    return group
