"""The whole tree of commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from ccp.cli.commands import COMMANDS, load


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its path, such as "party add"."""

    def walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield path, command
            return
        for name, each in command.commands.items():
            yield from walk(f"{path} {name}", each)

    for name in COMMANDS:
        yield from walk(name, load(name))


TREE: Final = dict(commands())
"""By path."""
