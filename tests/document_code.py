"""Code in the documents: fenced blocks, indented blocks, inline code, and the calls of `ccp` in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ccp.cli.commands import load
from tests.documents import DOCS, ROOT

DOCUMENTS = [
    *(path for path in sorted(DOCS.rglob("*.md")) if path.parent.name != "decisions"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
]
DEPLOYMENT = [path for path in sorted((ROOT / "deploy").rglob("*")) if path.is_file()]

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^|\n)\n((?:    [^\n]*\n?|\n(?=    ))+)")
_INLINE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_BEGINNING = r"^|(?<=[\s(`])(?=\S+/bin/)|(?<=[(`])(?=ccp [a-z])|(?:(?<=: )|(?<=pool ))(?=ccp [a-z])"
_CALL = re.compile(rf"(?:{_BEGINNING})(?:\S*/bin/)?ccp (?=[a-z-])([^`]*)")
_GLOBAL_OPTIONS = {"--help", "--version", "--install-completion", "--show-completion"}


class Code(NamedTuple):
    """A piece of code. language: of a fence; "indented"; or "inline"."""

    language: str
    text: str


def code_of(path: Path) -> Iterator[Code]:
    """Every piece of code of a document."""
    text = path.read_text("utf-8")
    for indent, language, block in _FENCE.findall(text):
        yield Code(language or "text", re.sub(f"^{indent}", "", block, flags=re.MULTILINE))
    text = _FENCE.sub("", text)
    for block in _INDENTED.findall(text):
        yield Code("indented", re.sub(r"^    ", "", block, flags=re.MULTILINE))
    for _, span in _INLINE.findall(_INDENTED.sub("\n", text)):
        yield Code("inline", " ".join(span.split()))


def calls_in(text: str, *, inline: bool) -> Iterator[list[str]]:
    """The words after `ccp` of every call in a piece of code; inline code is a call only if it begins with one."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        for part in re.split(r"\s(?:&&|\|\|?|;|>>?|# )\s*|\$\(|;\s|^# ", line):
            found = (_CALL.match if inline else _CALL.search)(part.strip())
            if found:
                try:
                    yield shlex.split(found[1].rstrip(").,;"))
                except ValueError:
                    yield found[1].split()


def fault_of_call(words: list[str]) -> str | None:
    """Return what is wrong with a call: no such command, or no such option. An empty rest names a group."""
    name, *rest = words
    if name.startswith("-"):
        return None if name in _GLOBAL_OPTIONS else f"no option {name}"
    try:
        command: Any = load(name)
    except KeyError:
        return f"no command {name}"
    path = name
    while (commands := getattr(command, "commands", None)) is not None and rest and not rest[0].startswith("-"):
        if rest[0] in ("…", "...", "COMMAND"):
            return None
        rest[0] = rest[0].rstrip(",")  # A list of commands in a sentence.
        if rest[0] not in commands:
            return f"no command {path} {rest[0]}"
        path, command, rest = f"{path} {rest[0]}", commands[rest[0]], rest[1:]
    known = {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)} | {"--help"}
    for word in rest:
        option = re.match(r"\[?(--?[a-z][a-z0-9-]*)", word)
        if option and option[1] not in known:
            return f"{path} has no option {option[1]}"
    return None


def options_of(command: Any) -> Iterator[str]:
    """Every option of a command and of the commands below it."""
    for each in command.params:
        yield from (*each.opts, *each.secondary_opts)
    for each in getattr(command, "commands", {}).values():
        yield from options_of(each)
