"""The names of units with which names of tests begin: what the code under src/ccp and the operator's files call things.

A unit is the name, in snake case, singular or plural, of a package, module, public class, function, method, property,
setting or other field, command, log event, metric or table. Tests of documents, of deploy/ and of end-to-end programs
begin with the document, file or program: `OTHER_UNITS`. The name of the test file itself is a unit too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.documents import DOCS, ROOT, table

OTHER_UNITS = {
    "": (
        *("body", "answer", "error", "json", "exi", "xml", "extension", "leaves", "basic_constraints"),
        *("grant_type", "allow_header", "skip_revocation", "contest", "commit", "write", "round", "process"),
        *("cpo", "csms", "emsp", "oem", "publisher", "document", "log_event", "decision_record", "conformance_row"),
        *("test_module", "test_name", "sleep_call"),
    ),
    "deploy": (
        *("alert", "compose", "constraints", "containerfile", "dashboard", "kustomization", "manifest", "pod"),
        *("prometheus", "selector"),
    ),
    "end_to_end": ("csms_program", "emsp_program", "oem_program", "readme", "stations_program"),
}
"""Units that are not in the code, by the folder of the tests, "" for any.

In any folder: parts of the protocols and of X.509, what a database and a background task do, roles of partners, and
documents. In deploy: the operator's files. In end_to_end: documents and the programs in them.
"""
_WORDS = (
    "a absent access added addressed after all allow always an another any app at background bad before",
    "both by call check chunked claimed close connect content contested critical dead delete delivered",
    "disabled dump edit empty end entry erased escaped every everything expected expire expired expiring",
    "failed field file files first fixed folded for found full get good in instant invalid issued it keep",
    "known last length list lists long malformed mandatory many missing moment more new newest next no",
    "not nothing number of old on one only open optional other outside pending permanent place plain post",
    "private published put read reads refused rejected relative removed repeated replaced required result",
    "results revoked run same secure set shared short show sign signed slow something start strict string",
    "strings that the there they this to two under unknown unreadable unusable update use used valid",
    "verified wait what when where which while who whose with withdrawn without words written wrong",
)
NO_UNITS = frozenset(word for line in _WORDS for word in line.split())
"""Names in the code that say nothing alone: adjectives, articles, prepositions, verbs, and words such as list or file.

In a longer name they count: published_keys.
"""


def snake_case(name: str) -> str:
    """trust_anchors of TrustAnchors, ocsp_request of OCSPRequest, set_default of set-default."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|\W+", "_", name)
    return name.strip("_").lower()


def numbers(unit: str) -> set[str]:
    """A unit in singular and plural; among them are words that do not exist."""
    found = {unit, f"{unit}s"}
    if unit.endswith("ies"):
        found.add(f"{unit[:-3]}y")
    if unit.endswith("y"):
        found.add(f"{unit[:-1]}ies")
    if unit.endswith(("s", "x", "ch", "sh")):
        found.add(f"{unit}es")
    if unit.endswith("s") and not unit.endswith("ss"):
        found |= {unit[:-1], unit.removesuffix("es")}
    return found


def defined(tree: ast.Module) -> Iterator[str]:
    """Public classes, functions, methods, properties and annotated fields; names of commands and of their table."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() if not node.name.startswith("_"):
                yield node.name
            case ast.Call(func=ast.Attribute(attr="command"), args=[ast.Constant(value=str() as command), *_]):
                yield command
            case ast.AnnAssign(target=ast.Name(id="COMMANDS"), value=ast.Dict() as commands):
                yield from (key.value for key in commands.keys if isinstance(key, ast.Constant))
        if isinstance(node, ast.ClassDef):
            yield from (
                line.target.id
                for line in node.body
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
            )


def named_in_code() -> Iterator[str]:
    """Every name in the code under src/ccp: what is defined, modules, packages and tables of the database."""
    for path in (ROOT / "src" / "ccp").rglob("*.py"):
        text = path.read_text("utf-8")
        yield from path.relative_to(ROOT / "src").with_suffix("").parts
        yield from defined(ast.parse(text))
        yield from re.findall(r"create table (?:if not exists )?(\w+)", text)


def named_for_operators() -> Iterator[str]:
    """Log events, and metrics without the prefix ccp_, of docs/operations.md."""
    for row in table((DOCS / "operations.md").read_text("utf-8")):
        yield from (name.removeprefix("ccp_") for name in re.findall(r"`([\w ]+)`", row[0]))


@cache
def units() -> frozenset[str]:
    """Every unit of the code, in snake case, singular and plural."""
    names = {snake_case(name) for name in (*named_in_code(), *named_for_operators())}
    return frozenset(form for name in names for form in numbers(name)) - NO_UNITS - {""}


def units_of(path: Path) -> frozenset[str]:
    """With what the names of tests in a file may begin.

    path: of the test file, relative to tests.
    """
    others = (*OTHER_UNITS[""], *OTHER_UNITS.get(path.parts[0], ()), path.stem.removeprefix("test_"))
    return units() | {form for name in others for form in numbers(name)}


def begins_with(name: str, allowed: frozenset[str]) -> bool:
    """Whether the words after test_ begin with a unit."""
    words = name.split("_")[1:]
    return any("_".join(words[:count]) in allowed for count in range(1, len(words) + 1))


def suggestions(path: Path) -> list[str]:
    """The longest few units with which other names of tests in a file begin, and the file itself.

    path: of the test file, relative to the repository.
    """
    allowed = units_of(path.relative_to("tests"))
    names = re.findall(r"def (test_\w+)", (ROOT / path).read_text("utf-8"))
    counts = ((name.split("_")[1:], count) for name in names for count in (3, 2, 1))
    found = {"_".join(words[:count]) for words, count in counts} & allowed
    return [path.stem.removeprefix("test_"), *sorted(found, key=len, reverse=True)[:5]]
