"""ccp apply: parties, peers and trust anchors as a file declares them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ccp.cli.inputs import read_input
from ccp.cli.output import (
    ConfigOption,
    JsonOption,
    YesOption,
    confirm,
    print_exactly,
    print_json,
    print_line,
    with_store,
)
from ccp.errors import ConfigurationError
from ccp.server import settings
from ccp.server.audit.actor import command_actor
from ccp.server.declaration import applying
from ccp.server.declaration.differences import ChangeView, Kind, Verb, describe
from ccp.server.declaration.reader import MAX_FILE, read_declaration
from ccp.server.declaration.writer import write_declaration
from ccp.server.domain.actor import Actor
from ccp.server.storage import Store

WOULD_CHANGE = 2
"""Exit status of --dry-run if something would change."""
_IN_HEADLINE = {Kind.PARTY: {"client_id", "name"}, Kind.PEER: {"party_id", "base_url"}, Kind.ANCHOR: {"label"}}
_SIGNS = {Verb.ADD: "+", Verb.CHANGE: "~", Verb.REMOVE: "-"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(apply)


def apply(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Declaration (TOML); - for standard input.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the difference only. Exit status 0: none, 2: there is one.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove peers and anchors, and disable parties, that are not in the file.")
    ] = False,
    secrets_file: Annotated[
        Path | None, typer.Option(help="New file (mode 0600) for generated client secrets, instead of printing them.")
    ] = None,
    print_state: Annotated[
        bool, typer.Option("--print", help="Print the present state as a declaration, without secrets.")
    ] = False,
    yes: YesOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Apply a file that declares parties, peers and trust anchors, as a whole or not at all.

    A second run changes nothing. Running workers follow within seconds. The file names secrets and never has one.
    For a new party without one the pool generates it, and prints it once.
    """
    if print_state:
        if file or dry_run or prune or as_json or secrets_file:
            raise ConfigurationError("--print excludes a file and every other option but --config.")
        print_exactly(with_store(config, write_declaration))
        return
    if not file:
        raise ConfigurationError("Give a file, or --print.")
    at, by = datetime.now(UTC), Actor(command_actor())
    declared = read_declaration(
        _content(file), Path() if file == "-" else Path(file).parent, settings.load(config), os.environ
    )

    async def compared(store: Store) -> applying.Plan:
        return await applying.prepare(store, declared, at, prune=prune, dry_run=True)

    shown = with_store(config, compared)
    if dry_run:
        _print(shown, as_json=as_json, applied=False)
        raise typer.Exit(WOULD_CHANGE if shown.differences.changes else 0)
    if shown.differences.removed:
        if not yes:
            for view in _views(shown):
                if view.verb is Verb.REMOVE:
                    print_line(f"- {view.kind}  {view.id}  {view.label}", err=True)
        confirm(f"Remove or disable {len(shown.differences.removed)} entries that {file} does not declare", yes=yes)

    async def change(store: Store) -> applying.Plan:
        if not shown.differences.changes:
            return shown
        plan = await applying.prepare(store, declared, at, prune=prune, earlier=shown)
        with applying.kept_secrets(secrets_file) as keep:
            return await applying.apply(store, declared, plan, by, at, keep, shown.differences.removed)

    done = with_store(config, change)
    _print(done, as_json=as_json, applied=True, secrets_file=secrets_file)


def _content(file: str) -> bytes:
    if file != "-" and Path(file).is_file() and Path(file).stat().st_size > MAX_FILE:
        raise ConfigurationError(f"The declaration is larger than {MAX_FILE} bytes.")
    return read_input(file)


def _views(plan: applying.Plan) -> list[ChangeView]:
    return [describe(change) for change in plan.differences.changes]


def _print(plan: applying.Plan, *, as_json: bool, applied: bool, secrets_file: Path | None = None) -> None:
    views, differences = _views(plan), plan.differences
    counts = {verb: sum(view.verb is verb for view in views) for verb in Verb}
    written = secrets_file if secrets_file is not None and plan.generated else None
    if as_json:
        members: dict[str, Any] = {
            "applied": applied,
            "changes": [view.as_json() for view in views],
            "summary": {
                **{verb.value: counts[verb] for verb in Verb},
                "unchanged": differences.unchanged,
                "undeclared": differences.undeclared,
            },
            "client_secrets": dict(plan.generated) if applied and written is None else {},
            "secrets_file": written and str(written),
        }
        print_json(members)
        return
    for view in views:
        _print_change(view)
    words = ("added", "changed", "removed or disabled") if applied else ("to add", "to change", "to remove or disable")
    summary = ", ".join(f"{counts[verb]} {word}" for verb, word in zip(Verb, words, strict=True))
    print_line(f"{summary}, {differences.unchanged} unchanged.")
    if differences.undeclared:
        print_line(f"{differences.undeclared} not in the file and kept; --prune removes or disables them.")
    if applied and written is not None:
        print_line(f"The client secrets of new parties are in {written}.")
    elif applied and plan.generated:
        margin = max(map(len, plan.generated))
        print_line("Client secrets, which are not shown again:")
        for name, secret in plan.generated.items():
            print_line(f"  {name:<{margin}}  {secret}")


def _print_change(view: ChangeView) -> None:
    print_line(f"{_SIGNS[view.verb]} {view.kind:<6}  {view.id}  {view.label}".rstrip())
    if view.verb is Verb.REMOVE:
        if view.kind is Kind.PARTY:
            print_line("    is disabled; its ids and its name stay reserved")
        return
    for name, (before, after) in view.members.items():
        if view.verb is Verb.ADD:
            if name not in _IN_HEADLINE[view.kind] and (name, after) != ("enabled", True):
                print_line(f"    {name:<13}  {_text(after)}")
        else:
            print_line(f"    {name:<13}  {_text(before)} -> {_text(after)}")
    if view.secret is not None:
        print_line(f"    {'secret':<13}  {view.secret}")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
