"""Table of commands: each with its help line and the module that is imported when it is called.

Most commands need the server's libraries, which take a second to import. `ccp --help` therefore reads this table, and
`ccp exi decode` imports only the codec. A command whose libraries are not installed names the extra to install.
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

from ccp.cli.extras import is_missing_library
from ccp.errors import ConfigurationError


class Entry(NamedTuple):
    """Where a command is defined.

    module: defines either a group of commands (`app`), or a function that adds this command (`register`).
    help: the line in the list of commands. A group takes its help from here, a command also has it as its docstring.
    """

    module: str
    help: str


COMMANDS: Final[Mapping[str, Entry]] = {
    "serve": Entry(
        "serve",
        "Run the pool. Creates a new SQLite database; create and upgrade any other schema with `ccp db upgrade`.",
    ),
    "config": Entry("serve", "Print the effective settings, without secrets."),
    "doctor": Entry(
        "doctor",
        "Examine the pool and say what to do: settings, files, TLS, clock, database, trust, other systems, the server.",
    ),
    "demo": Entry(
        "sandbox",
        "Run the complete flow over HTTP: a simulated vehicle gets, verifies and decrypts a contract, in both "
        "editions.",
    ),
    "sandbox": Entry(
        "sandbox", "Create a test PKI, parties with credentials, sample vehicles and contracts, and a configuration."
    ),
    "verify": Entry(
        "verify", "Verify a CertificateInstallationRes or -Req and report every check. Exit status 0 or 1."
    ),
    "expiry": Entry("expiry", "Count the contracts that end soon, by provider."),
    "purge": Entry(
        "purge", "Remove contracts that have expired or are revoked; car makers are notified as of any removal."
    ),
    "erase": Entry("erase", "Erase all data about a contract or a vehicle; the audit trail stays verifiable."),
    "why": Entry("why", "Say why a vehicle got no contract, and who has to do what. Exit status 1 without a record."),
    "import": Entry("bulk", "Publish signed contracts in bulk, with the same checks as PUT."),
    "export": Entry("bulk", "Write every variant of every contract as JSON Lines that PUT and `ccp import` accept."),
    "backup": Entry("backup", "Copy the SQLite database while the pool runs. The copy is checked and flushed to disk."),
    "restore": Entry(
        "backup", "Restore the SQLite database from a backup. The pool must be stopped; the old database is kept."
    ),
    "apply": Entry("apply", "Apply a file that declares parties, peers and trust anchors, as a whole or not at all."),
    "party": Entry("party", "Manage the parties that may call the pool."),
    "peer": Entry("peer", "Manage the other pools that this pool asks when it has no contract."),
    "neighbour": Entry("neighbour", "List and test the external services of this pool, and subscribe to their events."),
    "trust": Entry("trust", "Manage trusted certificates."),
    "crl": Entry("crl", "List certificate revocation lists, and accept one with a lower number."),
    "audit": Entry("audit", "Query, verify and export the audit trail."),
    "webhook": Entry("webhook", "Manage partners' webhooks."),
    "events": Entry("events", "List, replay and drop events to partners' webhooks."),
    "keys": Entry("keys", "Manage the keys that sign access tokens, and encrypt the secrets in the database."),
    "exi": Entry("exi", "Decode and encode CertificateInstallation messages."),
    "db": Entry("db", "Manage the database schema."),
    "docs": Entry("docs", "Build the documentation site."),
}


_CALLED: Final = "ccp.cli.command"
"""Key of the called command's name in the context."""


class _LazyCoercion:
    """Passes a parameter's value through where typer's coercion would not change it.

    typer coerces even strings with an adapter of pydantic, which costs 70 ms and 13 MiB: more than everything else a
    small command needs. Drop this when typer no longer does.
    """

    def __init__(self, kind: object) -> None:
        self._kind = kind

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        if value is None or (type(value) is self._kind and isinstance(value, str | bool | Enum)):
            return value
        if self._kind is Path and type(value) is str and not param.type_descriptor.parameter_info.exists:
            return Path(value)
        param._runtime_param = None  # The state before first use, in which typer builds its own coercion.
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)


def _with_lazy_coercion(params: list[Any]) -> list[Any]:
    for param in params:
        if param._runtime_param is None and param.nargs == 1 and not param.multiple:
            param._runtime_param = _LazyCoercion(param.type_descriptor.annotation)
    return params


class Command(TyperCommand):
    """A command whose parameters are coerced only where necessary, and whose help fills the lines of the terminal."""

    def __init__(self, name: str | None, *, help: str | None = None, **attributes: Any) -> None:
        paragraphs = (help or "").split("\n\n")
        super().__init__(name, help="\n\n".join(each.replace("\n", " ") for each in paragraphs) or None, **attributes)

    def get_params(self, ctx: Any) -> list[Any]:
        return _with_lazy_coercion(super().get_params(ctx))


class Group(TyperGroup):
    """A group of such commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _with_lazy_coercion(super().get_params(ctx))


class LazyCommands(Group):
    """Lists the commands of the table without importing them, and imports the one that is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, entry in COMMANDS.items():
            self.add_command(Command(name, help=entry.help))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None:
            ctx.meta[_CALLED] = name
            command = load(name)
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Modules import some libraries only when a command runs, so both steps can lack one."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as exc:
            if not is_missing_library(exc) or _CALLED not in ctx.meta:
                raise
            raise ConfigurationError(
                f"ccp {ctx.meta[_CALLED]} needs the server's libraries; install opnc-ccp[server]."
            ) from exc


def load(name: str) -> Any:
    """Import a command of the table: a `Command` or a `Group`."""
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
