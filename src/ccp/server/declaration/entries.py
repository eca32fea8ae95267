"""The entries of a declaration as they are written in the file: members, types, and the entry's place for messages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from ccp.client import Dialect
from ccp.schemas import field_errors
from ccp.schemas.suggestions import closest, quotable
from ccp.server.domain.parties import PartyRole
from ccp.x509.profiles import AnchorRole

_HEADER: Final = re.compile(r"^[ \t]*\[\[[ \t]*(party|peer|anchor)[ \t]*\]\]", re.MULTILINE)
_MAX_IDS: Final = 10_000

_Id = Annotated[str, Field(max_length=200)]
_Ids = Annotated[list[_Id], Field(max_length=_MAX_IDS)]
_Text = Annotated[str, Field(max_length=4096)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class PartyEntry(_Entry):
    """A `[[party]]`. client_id: without one, that of the party with this name, or else derived from the name.

    secret_file, secret_env, secret_hash: at most one; without one the pool generates the secret of a new party, and
    leaves that of a registered one as it is.
    """

    name: _Text
    roles: Annotated[list[PartyRole], Field(max_length=20)]
    client_id: _Text | None = None
    provider_ids: _Ids = []
    all_providers: StrictBool = False
    wmis: _Ids = []
    operator_ids: _Ids = []
    enabled: StrictBool = True
    secret_file: _Text | None = None
    secret_env: _Text | None = None
    secret_hash: Annotated[str, Field(max_length=500)] | None = None


class PeerEntry(_Entry):
    """A `[[peer]]`. secret_file, secret_env: of the client secret, or without client_id of the access token."""

    party_id: _Text
    base_url: _Text
    dialect: Dialect = Dialect.OPNC
    client_id: _Text | None = None
    token_url: _Text | None = None
    audience: _Text | None = None
    v2g_roots: _Ids = []
    provider_ids: _Ids = []
    enabled: StrictBool = True
    secret_file: _Text | None = None
    secret_env: _Text | None = None


class AnchorEntry(_Entry):
    """An `[[anchor]]`: the certificates of a file or directory, or PEM, and the roles that they are trusted for."""

    roles: Annotated[list[AnchorRole], Field(min_length=1, max_length=10)]
    file: _Text | None = None
    pem: Annotated[str, Field(max_length=1_000_000)] | None = None
    label: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    fingerprints: _Ids = []


ENTRIES: Final[Mapping[str, type[_Entry]]] = {"party": PartyEntry, "peer": PeerEntry, "anchor": AnchorEntry}
_NAMES: Final = {"party": "name", "peer": "party_id", "anchor": "label"}


@dataclass
class Problems:
    """Collects the sentences about a file, each with the place of the entry."""

    sentences: list[str] = field(default_factory=list)

    def add(self, place: str, *messages: str) -> None:
        """Add sentences about an entry."""
        self.sentences += [f"{place}: {message}" for message in messages]


def typed(document: Mapping[str, Any], text: str, problems: Problems) -> Iterator[tuple[str, Any]]:
    """The entries of a document with their places. An entry with a problem is left out.

    document: the parsed file. text: the file, for line numbers.
    """
    lines = _lines(text)
    for kind, model in ENTRIES.items():
        tables = document.get(kind, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            problems.add(kind, f"must be tables, each under [[{kind}]]")
            continue
        numbers = lines.get(kind, [])
        for index, table in enumerate(tables):
            line = numbers[index] if len(numbers) == len(tables) else None
            place = _place(kind, index + 1, line, table.get(_NAMES[kind]))
            try:
                yield place, model.model_validate(table)
            except ValidationError as exc:
                for error in exc.errors(include_url=False):
                    problems.add(place, _with_suggestion(field_errors.sentence(error), error, model))


def _with_suggestion(sentence: str, error: Any, model: type[_Entry]) -> str:
    if error["type"] != "extra_forbidden":
        return sentence
    known = closest(str(error["loc"][-1]), model.model_fields)
    return f"{sentence}; did you mean {known}?" if known else sentence


def _lines(text: str) -> dict[str, list[int]]:
    """The line numbers of the headers of entries, by kind. They are only a help: a text value may look like one."""
    found: dict[str, list[int]] = {}
    line, position = 1, 0
    for match in _HEADER.finditer(text):
        line += text.count("\n", position, match.start(1))
        position = match.start(1)
        found.setdefault(match[1], []).append(line)
    return found


def _place(kind: str, number: int, line: int | None, name: object) -> str:
    details = [f"line {line}"] if line is not None else []
    details += [quotable(name)] if isinstance(name, str) and name else []
    return f"{kind} {number} ({', '.join(details)})" if details else f"{kind} {number}"
