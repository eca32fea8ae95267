"""Lists in parts: a page of the console has a bounded size, whatever is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from ccp.errors import FieldError
from ccp.server.console.visit import Visit

T = TypeVar("T")
_DIGITS: Final = 7


@dataclass(frozen=True, slots=True)
class Portion(Generic[T]):
    """A part of a list. first: number of its first item, from 1. total: of the whole list."""

    items: Sequence[T]
    first: int
    total: int
    size: int

    @property
    def last(self) -> int:
        """Number of the last item of the part."""
        return self.first + len(self.items) - 1

    @property
    def is_whole(self) -> bool:
        """Whether the part is the whole list."""
        return len(self.items) == self.total

    @property
    def before(self) -> int | None:
        """Where the part before begins; None for the first one."""
        return max(self.first - self.size, 1) if self.first > 1 else None

    @property
    def after(self) -> int | None:
        """Where the next part begins; None for the last one."""
        return self.last + 1 if self.last < self.total else None


def portion(visit: Visit, items: Sequence[T], size: int, name: str = "from") -> Portion[T]:
    """The part of a list that a request wants. name: of the query parameter, a number from 1. Raises FieldError.

    A list that has become shorter since the link was made shows its last part.
    """
    text = visit.query(name) or "1"
    if not (text.isascii() and text.isdecimal()) or len(text) > _DIGITS or int(text) < 1:
        raise FieldError(f"{name} : must be a number from 1")
    first = int(text)
    if first > len(items):
        first = max((len(items) - 1) // size * size + 1, 1)
    return Portion(items[first - 1 : first - 1 + size], first, len(items), size)
