"""What a row of the audit trail is about, in words, with links to the pages of what it names. Pure.

A subject is a JSON object with ids by kind and details, see `ccp.server.storage.queries.audit.Entry`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import orjson

from ccp.errors import FieldError
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.server.console.identifiers import IdDisplay
from ccp.server.console.rendering import EDITIONS
from ccp.server.console.texts import cut, size_of
from ccp.server.settings.services import SERVICES
from ccp.server.storage.queries.subscriptions import PEER_PREFIX

_LABELS: Final = {
    "emaid": "contract", "pcid": "vehicle", "moved_from": "moved from vehicle", "namespace": "edition",
    "root": "V2G root", "kid": "key", "endpoint": "webhook", "event_ids": "events", "event": "because of",
    "v2g_roots": "V2G roots", "wmis": "WMIs", "left": "another variant is left", "operation": "request",
    "base_url": "URL", "url": "URL",
}  # fmt: skip
"""Words for members whose names are not words already."""
_FIRST: Final = ("emaid", "pcid", "party", "peer", "endpoint", "person", "source")
_ITEMS: Final = 5
"""Items of a list that are shown."""
_VALUE: Final = 160
_MOST: Final = 700
"""Bytes of one subject in a page, so that fifty rows are less than 100 KB."""


@dataclass(frozen=True, slots=True)
class Detail:
    """One detail of a subject. path: of the page of what it names, below the prefix; empty without one."""

    label: str
    text: str
    path: str = ""


def details_of(subject: str | None, ids: IdDisplay) -> list[Detail]:
    """The details of a subject, those with pages first. Of a long one the beginning. Empty for an erased row."""
    if subject is None:
        return []
    try:
        members = orjson.loads(subject)
    except orjson.JSONDecodeError:
        members = subject
    if not isinstance(members, dict):
        return [Detail("", ids.text(str(members), _VALUE))]
    found, size = list[Detail](), 0
    for detail in _details(members, ids):
        size += sum(map(size_of, (detail.label, detail.text, detail.path))) + 60  # 60: the elements around them.
        if size > _MOST:
            return [*found, Detail("", "and more")]
        found.append(detail)
    return found


def _details(members: Mapping[str, Any], ids: IdDisplay) -> Iterator[Detail]:
    names = [name for name in _FIRST if name in members]
    for name in [*names, *(name for name in members if name not in names)]:
        value = members[name]
        if value is None or value in ("", [], {}):
            continue
        label = cut(ids.text(_LABELS.get(name, name.replace("_", " "))), 40)
        yield (isinstance(value, str) and _linked(name, label, value, ids)) or Detail(label, _words(value, ids))


def _linked(name: str, label: str, value: str, ids: IdDisplay) -> Detail | None:
    """A detail that has a page."""
    try:
        if name == "emaid":
            emaid = EMAID.parse(value)
            return Detail(label, ids.show(emaid), f"/contracts/{quote(ids.handle(emaid))}")
        if name in ("pcid", "moved_from"):
            pcid = PCID.parse(value)
            return Detail(label, ids.show(pcid), f"/vehicles/{quote(ids.handle(pcid))}")
    except FieldError:
        return None
    if name == "source":
        peer = value.removeprefix(PEER_PREFIX)
        path = _path("peers", peer) if peer != value else "/partners#services" if value in SERVICES else ""
        return Detail(label, ids.text(peer, _VALUE), path)
    folder = {"party": "parties", "peer": "peers", "endpoint": "webhooks"}.get(name)
    return None if folder is None else Detail(label, ids.text(value, _VALUE), _path(folder, value))


def _path(folder: str, name: str) -> str:
    """The address of a page; none for a name that is too long to be one."""
    path = f"/{folder}/{quote(name, safe='')}"
    return path if len(path) <= 200 else ""


def _words(value: Any, ids: IdDisplay) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return cut(
            ", ".join(f"{cut(ids.text(str(name)), 40)} {_words(each, ids)}" for name, each in value.items()), _VALUE
        )
    if isinstance(value, Sequence) and not isinstance(value, str):
        more = f" and {len(value) - _ITEMS} more" if len(value) > _ITEMS else ""
        return cut(", ".join(_words(each, ids) for each in value[:_ITEMS]), _VALUE) + more or "none"
    text = str(value)
    if text in EDITIONS:
        return EDITIONS[Namespace(text)]
    try:
        return f"{Fingerprint.parse(text)[:16]}…"
    except FieldError:
        return ids.text(text, _VALUE)
