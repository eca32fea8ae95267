"""A message as a page shows it: what the pool makes of it, its checks, chains and content, and the message again."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ccp.server.console.certificate_chains import Chain, load_chains
from ccp.server.console.identifiers import IdDisplay
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.texts import size_of
from ccp.server.pool.examination import Examination
from ccp.verify.report import CheckStatus

MAX_ECHOED: Final = 24_000
"""Bytes in the page of a message that is shown again in its field."""
_MAX_TREE: Final = 24_000
"""Bytes in the page of the decoded content."""
_MAX_SHOWN: Final = 160
"""Characters of a value in the tree; of a longer one its beginning is shown, and its length."""
_MARKUP: Final = 90
"""Bytes of the elements around a node."""
_BASE64: Final = re.compile("[A-Za-z0-9+/]*={0,2}")
_BEGINNING: Final = 48
"""Characters. That much Base64 of a certificate ends before its subject, whose id a viewer must not see."""


@dataclass(frozen=True, slots=True)
class Node:
    """An element of a decoded message. value: text of a leaf. children: of an element with content."""

    name: str
    value: str = ""
    children: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Echo:
    """A message as it is shown again in its field. note: why it is not, or not in the form in which it was sent."""

    text: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the pool makes of a message. kind: class of the style sheet. sentences: why."""

    kind: str
    verdict: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """A message as the page shows it."""

    examination: Examination
    answer: Answer
    chains: tuple[Chain, ...]
    tree: tuple[Node, ...]
    tree_is_whole: bool


async def read_message(
    parts: ConsoleParts, data: bytes, now: datetime, ids: IdDisplay, *, with_contracts: bool = True
) -> Reading:
    """Examine a message for a page. with_contracts: whether to look up what is stored for the vehicle."""
    found = await parts.pool.examine(data, now, with_contracts=with_contracts)
    paths = [(path.name, path.certificates) for path in found.paths]
    chains = await load_chains(parts, paths, found.verified, now)
    tree = MessageTree(ids)
    return Reading(found, answer_to(found), chains, tree.members(found.tree or {}), tree.is_whole)


def echo(text: str, ids: IdDisplay, data: bytes | None = None) -> Echo:
    """The message of a form, for its field. data: its EXI, if it was read."""
    if not ids.in_full:
        return Echo("", "The message is not shown again, because it contains ids, which only an admin sees.")
    if size_of(text) <= MAX_ECHOED:
        return Echo(text)
    if data is not None and len(data) * 4 // 3 <= MAX_ECHOED - 4:
        return Echo(base64.b64encode(data).decode(), "The message is shown again as Base64, because that is shorter.")
    return Echo("", "The message is too long to be shown again.")


def answer_to(found: Examination) -> Answer:
    """What the pool would answer to a message, or do with it."""
    failed = [each for each in found.explanation.checks.results if each.status is CheckStatus.FAILED]
    sentences = tuple(each.reason for each in failed)
    if found.namespace is None or found.tree is None:
        return Answer("bad", "The pool cannot read the message and refuses it.", sentences)
    if failed and found.is_request:
        return Answer("bad", "The car gets no contract: the pool refuses its request.", sentences)
    if failed:
        return Answer("bad", "The pool refuses the message: it would not store it, and no car would get it.", sentences)
    if not found.is_request:
        return Answer("ok", "Every check passed: the pool would store the message and deliver it to the car.", ())
    if found.preview is None:
        return Answer("ok", "Every check passed.", ())
    if found.preview.refusal is not None:
        return Answer("warn", "The request is valid, but the car gets no contract.", found.preview.refusal.messages)
    return Answer("ok", "The request is valid, and the car gets a contract.", ())


class MessageTree:
    """The elements of the JSON form of a message, as far as their size in a page permits."""

    def __init__(self, ids: IdDisplay, size: int = _MAX_TREE) -> None:
        """ids: as the person may see them. size: bytes."""
        self._ids = ids
        self._left = size

    @property
    def is_whole(self) -> bool:
        """Whether no element was left out."""
        return self._left >= 0

    def members(self, value: Mapping[str, Any]) -> tuple[Node, ...]:
        """The elements of an object."""
        return self._nodes(value.items())

    def _nodes(self, items: Iterable[tuple[str, Any]]) -> tuple[Node, ...]:
        found = []
        for name, value in items:
            text = "" if isinstance(value, Mapping | list | tuple) else self._shown(str(value))
            self._left -= size_of(name) + size_of(text) + _MARKUP
            if not self.is_whole:
                break
            if isinstance(value, Mapping):
                found.append(Node(name, children=self.members(value)))
            elif isinstance(value, list | tuple):
                found.append(Node(name, children=self._nodes((str(at), each) for at, each in enumerate(value, 1))))
            else:
                found.append(Node(name, text))
        return tuple(found)

    def _shown(self, text: str) -> str:
        if len(text) <= _MAX_SHOWN:
            return self._ids.text(text, 2 * _MAX_SHOWN)
        if _BASE64.fullmatch(text):
            return f"{self._ids.text(text[:_BEGINNING])}… ({len(text)} characters)"
        return f"{self._ids.text(text, _MAX_SHOWN)} ({len(text)} characters)"
