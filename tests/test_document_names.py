"""Names in the documents: modules and their members, files, sentences of errors, rows of the audit trail, events."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ccp.schemas import event_types
from tests.document_code import code_of
from tests.documents import DOCS, ROOT

PAGES = [
    *sorted(DOCS.rglob("*.md")),
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")),
]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TOP = {path.stem for path in (ROOT / "src/ccp").iterdir()}
SERVER = {path.stem for path in (ROOT / "src/ccp/server").iterdir()}
ATTRIBUTES_OF_SPANS = {"ccp.operation", "ccp.caller", "ccp.owner", "ccp.emaid", "ccp.pcid", "ccp.service"}
SEMANTIC_CONVENTIONS = re.compile(r"(?:http|url|error|db|server|service|process)\.[\w.]+")
COMPOSED = {
    # Put together from several strings of the code.
    "These … bytes are not an X.509 certificate.",
    "These … bytes are not DER: critical is FALSE explicitly.",
    "Certificate … was revoked at ….",
    "The reference … names no part of the message.",
    "… names more than one part of the message.",
    "… sends more … than are accepted.",
    "… sends its answer in too many small pieces.",
}


def spans(path: Path) -> Iterator[str]:
    return (code.text for code in code_of(path) if code.language == "inline")


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or a member of one. An attribute of instances stands in its class."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            if hasattr(found, part):
                found = getattr(found, part)
            else:
                return inspect.isclass(found) and re.search(rf"\b{part}\b", inspect.getsource(found)) is not None
        return True
    return False


def test_document_names_of_the_code_exist() -> None:
    """Whole names, and those below `ccp` or `ccp.server`, as the pages for developers shorten them."""
    missing, found = [], 0
    for path in PAGES:
        for text in spans(path):
            name = re.fullmatch(r"([a-z_0-9]+(?:\.\w+)+)(?:\(\))?", text)
            first = name[1].partition(".")[0] if name else ""
            if not name or name[1] in ATTRIBUTES_OF_SPANS or re.search(r"\.(?:toml|db|service|md|txt|py|json)$", text):
                continue
            if first != "ccp" and (SEMANTIC_CONVENTIONS.fullmatch(name[1]) and path.name == "operations.md"):
                continue
            prefixes = [""] if first == "ccp" else ["ccp."] * (first in TOP) + ["ccp.server."] * (first in SERVER)
            if prefixes:
                found += 1
                missing += [(path.name, text)] if not any(exists(each + name[1]) for each in prefixes) else []
    assert missing == []
    assert found > 250


def test_document_paths_of_the_repository_exist() -> None:
    found = 0
    for path in PAGES:
        for name in re.findall(r"`((?:tests|bench|src|deploy|docs|\.ci)/[\w/.-]+)", path.read_text("utf-8")):
            found += 1
            assert (ROOT / name.rstrip(".")).exists(), (path.name, name)
    assert found > 150


@cache
def strings() -> str:
    """Every string of the code, one a line, with … in the place of each value."""

    def text(node: ast.AST) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text, node.values))
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"

    nodes = (node for path in SOURCES for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    lines = (" ".join(text(node).split()) for node in nodes if isinstance(node, ast.JoinedStr | ast.Constant))
    return "\n".join(lines)


def test_document_sentences_of_errors_are_those_of_the_code() -> None:
    wrong, found = [], 0
    for name in ("trust", "operations", "database", "audit", "bulk", "spec-divergences", "integrating"):
        for text in spans(DOCS / f"{name}.md"):
            if text in COMPOSED or len(text.split()) < 4 or not re.match(r"[A-Z…][\w …'(),:-]+\.$", text):
                continue
            found += 1
            wrong += [] if re.search(".+?".join(map(re.escape, text.split("…"))), strings()) else [(name, text)]
    assert wrong == []
    assert found > 60


def test_document_rows_of_the_audit_trail_have_names_of_the_code() -> None:
    """Such as `party.disabled`. A name that ends with an ellipsis stands for those that begin so."""
    name = re.compile(r"(?:party|secret|key|storage_key|subscription|anchor|crl|peer|webhook|data)\.[\w.…]+")
    pages = (DOCS / f"{page}.md" for page in ("database", "audit", "operations"))
    actions = {text for page in pages for text in spans(page) if name.fullmatch(text)}
    assert len(actions) > 15
    assert [each for each in actions if not re.search(rf"(?m)^{re.escape(each.rstrip('…'))}", strings())] == []


def test_document_events_are_those_that_can_be_subscribed_to() -> None:
    known = set(event_types.KNOWN)
    for page in ("integrating", "spec-divergences", "operations", "security", "console"):
        for text in spans(DOCS / f"{page}.md"):
            if re.fullmatch(r"(?:emsp|mo|oem|root)\.[a-z.]+", text):
                assert text in known, (page, text)
