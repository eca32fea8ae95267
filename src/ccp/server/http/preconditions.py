"""Entity tags of parties and peers, and conditional updates with If-Match.

Source: RFC 9110 clauses 8.8.3 and 13.1.1.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final

import orjson

from ccp.errors import FieldError, PreconditionFailed
from ccp.server.access.admin_changes import Precondition, Shown, any_state

_TAG: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e]*"', re.ASCII)
_TAGS: Final = re.compile(rf"[ \t,]*{_TAG.pattern}(?:[ \t]*,[ \t,]*{_TAG.pattern})*[ \t,]*", re.ASCII)


def etag(shown: Shown) -> str:
    """Return the strong entity tag of an entry: equal tags mean equal members in a GET response."""
    members = orjson.dumps(shown.members(), option=orjson.OPT_SORT_KEYS)
    return f'"{hashlib.sha256(members).hexdigest()[:32]}"'


def if_match(values: Iterable[str], noun: str) -> Precondition:
    """Return the precondition of the If-Match header lines; without a line it always holds.

    noun: what the entry is, for the sentence of PreconditionFailed. Raises FieldError.
    """
    lines = list(values)
    text = ", ".join(lines).strip(" \t")
    if not lines or text == "*":
        return any_state
    if not _TAGS.fullmatch(text):
        raise FieldError("If-Match : must be * or entity tags in quotation marks, as ETag has them")
    # The comparison is strong, so a weak tag in the list matches nothing.
    tags = frozenset(_TAG.findall(text))

    def precondition(shown: Shown) -> None:
        if etag(shown) not in tags:
            raise PreconditionFailed(f"The {noun} is not as If-Match says; read it again.")

    return precondition
