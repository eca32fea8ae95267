"""What the published API descriptions contain, item by item, for the tables in docs/conformance-opnc.md and -opcp.md.

A section is an operation (`GET /v1/ccp/lookupContract/{emaid}`) or the events. Its items are the parameters
(`query xsdMsgDefNamespace`), the members of the request (`request emaid`) and of each answer
(`200 XMLContracts[].emaid`), and the statuses (`200`). The descriptions lie beside the repository.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared"
OPNC = ("apis/ccp/ccp.api.v1.json", "apis/event/event.api.v1.json")
OPCP = ("ccp.v1.json", "rcp.v1.json", "webhooks.v1.json", "accessToken.v1.json", "est.v1.json")
_PAYLOADS = {"opnc": "opnc-spec/apis/event/webhook.payload.v1.json", "opcp": "opcp-spec/webhook.payload.v1.json"}
_METHODS = ("get", "put", "post", "delete", "patch")

Node = tuple[dict[str, Any], Path]


def sections(dialect: str) -> dict[str, set[str]]:
    """The items of a dialect's descriptions by section. dialect: `opnc` or `opcp`."""
    folder = SHARED / f"{dialect}-spec"
    found: dict[str, set[str]] = {}
    for file in OPNC if dialect == "opnc" else OPCP:
        for path, method, operation, common, at in _operations(folder / file):
            base = "/opnc/v1/ccp" if "opnc-spec/apis/ccp" in str(folder / file) else ""
            found[f"{method.upper()} {base}{path}"] = set(_items(operation, common, at))
    events, members = _events(SHARED / _PAYLOADS[dialect])
    if dialect == "opnc":
        enum = json.loads((folder / "components/schemas/eventEnum.v1.json").read_text("utf-8"))["enum"]
        events |= set(enum)
    found["Events"] = events
    found["Event payload"] = members
    return found


def _resolve(value: Any, at: Path) -> Node:
    while "$ref" in value:
        file, _, pointer = value["$ref"].partition("#/")
        at = (at.parent / file).resolve() if file else at
        value = json.loads(at.read_text("utf-8"))
        for step in filter(None, pointer.split("/")):
            value = value[step.replace("~1", "/")]
    return value, at


def _operations(file: Path) -> Iterator[tuple[str, str, dict[str, Any], list[Any], Path]]:
    for path, reference in json.loads(file.read_text("utf-8"))["paths"].items():
        item, at = _resolve(reference, file)
        for method in _METHODS:
            if method in item:
                yield path, method, item[method], item.get("parameters", []), at


def _items(operation: dict[str, Any], common: list[Any], at: Path) -> Iterator[str]:
    for reference in (*common, *operation.get("parameters", ())):
        parameter, _ = _resolve(reference, at)
        yield f"{parameter['in']} {parameter['name']}"
    if "requestBody" in operation:
        body, place = _resolve(operation["requestBody"], at)
        for member in sorted(set(_members(_schema(body), place))):
            yield f"request {member}"
    for status, reference in operation["responses"].items():
        yield status
        answer, place = _resolve(reference, at)
        for member in sorted(set(_members(_schema(answer), place))):
            yield f"{status} {member}"


def _schema(part: dict[str, Any]) -> dict[str, Any]:
    content = part.get("content", {})
    for kind in ("application/json", "application/x-www-form-urlencoded"):
        if kind in content:
            schema: dict[str, Any] = content[kind].get("schema", {})
            return schema
    return {}


def _members(schema: dict[str, Any], at: Path, prefix: str = "") -> Iterator[str]:
    schema, at = _resolve(schema, at)
    for part in (*schema.get("allOf", ()), *schema.get("oneOf", ()), *schema.get("anyOf", ())):
        yield from _members(part, at, prefix)
    if "items" in schema:
        yield from _members(schema["items"], at, f"{prefix}[]")
    for name, value in schema.get("properties", {}).items():
        path = f"{prefix}.{name}" if prefix else name
        below = list(_members(value, at, path))
        yield from below or [path]


def _events(file: Path) -> tuple[set[str], set[str]]:
    """The event types, and the headers and members of the messages."""
    events: set[str] = set()
    members: set[str] = set()
    for _, _, operation, common, at in _operations(file):
        for item in _items(operation, common, at):
            members.add(item)
        body, place = _resolve(operation["requestBody"], at)
        for value in _all_enums(_schema(body), place):
            if isinstance(value, str) and value.count(".") >= 2:
                events.add(value)
    return events, members


def _all_enums(schema: dict[str, Any], at: Path) -> Iterator[Any]:
    schema, at = _resolve(schema, at)
    yield from schema.get("enum", ())
    for part in (*schema.get("allOf", ()), *schema.get("oneOf", ()), *schema.get("anyOf", ())):
        yield from _all_enums(part, at)
    if "items" in schema:
        yield from _all_enums(schema["items"], at)
    for value in schema.get("properties", {}).values():
        yield from _all_enums(value, at)
