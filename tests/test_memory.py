"""Every container that outlives a call is in docs/memory.md with its bound, and nothing else is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.documents import DOCS, ROOT, table

_EMPTY = {"dict", "list", "set", "bytearray", "OrderedDict", "deque", "defaultdict", "Counter", "Queue", "SimpleQueue"}
_WEAK = {"WeakValueDictionary", "WeakKeyDictionary", "WeakSet"}
# Not of a process that serves: the simulator, commands, and migrations, which read no partner's input.
_NOT_SERVED = (
    "ccp.testing.",
    "ccp.cli.",
    "ccp.server.sandbox.",
    "ccp.server.bulk.",
    "ccp.server.declaration.",
    "ccp.server.storage.migrations.",
)


def containers() -> Iterator[str]:
    """Module, class and attribute of everything that begins empty or caches: lists, dictionaries, sets, queues."""
    for path in sorted((ROOT / "src" / "ccp").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        if not f"{module}.".startswith(_NOT_SERVED):
            yield from _of_body(ast.parse(path.read_text("utf-8")), module)


def _of_body(node: ast.AST, prefix: str) -> Iterator[str]:
    for member in ast.iter_child_nodes(node):
        if isinstance(member, ast.ClassDef):
            yield from _of_body(member, f"{prefix}.{member.name}")
        elif isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
            if any(_is_cache(decorator) for decorator in member.decorator_list):
                yield f"{prefix}.{member.name}()"
            for inner in ast.walk(member):
                for target in _targets(inner):
                    if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                        yield f"{prefix}.{target.attr}"
        else:
            yield from (f"{prefix}.{target.id}" for target in _targets(member) if isinstance(target, ast.Name))


def _targets(node: ast.AST) -> list[ast.expr]:
    """What is assigned a container that can grow."""
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _can_grow(node.value):
        return node.targets if isinstance(node, ast.Assign) else [node.target]
    return []


def _can_grow(value: ast.expr) -> bool:
    if isinstance(value, ast.Dict):
        return not value.keys
    if isinstance(value, ast.List):
        return not value.elts
    if not isinstance(value, ast.Call):
        return False
    if _name(value.func) == "field":
        return any(key.arg == "default_factory" and _name(key.value) in _EMPTY for key in value.keywords)
    return _name(value.func) in _EMPTY | _WEAK or _is_cache(value)


def _is_cache(node: ast.expr) -> bool:
    while isinstance(node, ast.Call):
        node = node.func
    return _name(node) in ("lru_cache", "cache")


def _name(node: ast.expr) -> str:
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def named(text: str) -> set[str]:
    return {f"ccp.{name}" for name in re.findall(r"`([a-z_0-9]+(?:\.\w+)+(?:\(\))?)`", text)}


def test_memory_table_names_each_container_and_no_other() -> None:
    text = (DOCS / "memory.md").read_text("utf-8").partition("\n## ")[0]
    listed = set().union(*(named(row[0]) for row in table(text)))
    of_requests = named(text.rpartition("\n\n")[2])
    found = set(containers())
    assert found - listed - of_requests == set(), "enter these in docs/memory.md, each with its bound"
    assert (listed | of_requests) - found == set(), "docs/memory.md names what there is not"


def test_memory_table_says_a_bound_in_every_row() -> None:
    rows = table((DOCS / "memory.md").read_text("utf-8").partition("\n## ")[0])[1:]
    assert all(len(row) == 3 and row[2] for row in rows)
    assert Path(ROOT / "bench" / "holds" / "soak.py").exists()
