"""Reference page of the commands, from the command line's own tree of commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ccp.cli.commands import COMMANDS, load
from ccp.cli.documentation.markdown import code, one_line, table


def command_page() -> str:
    """Every command with its arguments and options."""
    parts = [
        "# Commands\n",
        "`ccp COMMAND --help` prints the same. A command with `--json` prints JSON for scripts; one that cannot be "
        "undone asks, unless `--yes` is given.\n",
    ]
    for name, entry in COMMANDS.items():
        command = load(name)
        parts += [f"## ccp {name}\n", f"{one_line(entry.help)}\n"]
        for path, each in _leaves(f"ccp {name}", command):
            if path != f"ccp {name}":
                parts += [f"### {path}\n", f"{_help(each)}\n"]
            parts += _parameters(path, each)
    return "\n".join(parts)


def _leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands of a group with their whole names; a command itself."""
    commands = getattr(command, "commands", None)
    if commands is None:
        yield path, command
        return
    for name, each in commands.items():
        if not getattr(each, "hidden", False):
            yield from _leaves(f"{path} {name}", each)


def _help(command: Any) -> str:
    return (command.help or command.short_help or "").replace("\f", "").strip()


def _parameters(path: str, command: Any) -> Iterator[str]:
    """Usage, and a table of the options."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    names = [_argument_name(each) for each in arguments]
    yield f"    {' '.join((path, *names, *(('[OPTIONS]',) if options else ())))}\n"
    rows = [[code(name), one_line(each.help or "")] for name, each in zip(names, arguments, strict=True) if each.help]
    rows += [
        [", ".join(code(flag) for flag in (*each.opts, *each.secondary_opts)), one_line(each.help or "")]
        for each in options
    ]
    if rows:
        yield table(["argument or option", "meaning"], rows)


def _argument_name(argument: Any) -> str:
    name = (argument.metavar or argument.name).upper()
    name = f"{name}..." if argument.nargs == -1 else name
    return name if argument.required else f"[{name}]"
