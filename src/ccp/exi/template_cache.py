"""Messages that are like one that was read before, but for the octets of their binary values.

Vehicles of one make, and responses of one provisioning service, differ in session ids, certificates, digests, keys and
signatures, seldom in anything else. What the reading loop does depends on every bit of a message but those: so where
all the others agree, and with them all lengths, the outcome is the same message with other octets in it. That is one
comparison of two integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from ccp.exi.bits import PADDING, bytes_at

BinarySpan: TypeAlias = tuple[int, int]
"""Where a binary value stands: its first bit, and how many octets it has."""
T = TypeVar("T")

_LONGEST: Final = 16_384  # Octets of a message that is kept; a -20 response with eight certificates has less.
_MOST: Final = 256
_ALIKE: Final = 8  # Of one length, the newest: each is compared with what comes.


class _TupleTemplate(NamedTuple):
    """A tuple with binary values in it: what makes it, its items, and which of them are values (by number) or forms."""

    make: Callable[[list[Any]], Any]
    items: list[Any]
    open: list[tuple[int, int | _TupleTemplate]]

    def fill(self, values: Sequence[bytes]) -> Any:
        items = self.items.copy()
        for place, what in self.open:
            items[place] = values[what] if type(what) is int else what.fill(values)  # type: ignore[union-attr]
        return self.make(items)


class _Template(NamedTuple):
    """rest: the message as an integer without its values; told: what else is known of the message."""

    mask: int
    rest: int
    spans: Sequence[BinarySpan]
    form: _TupleTemplate
    told: Any


class TemplateCache(Generic[T]):
    """The outlines of messages that were read lately. T: what is known of a message beside its values."""

    def __init__(self) -> None:
        self._of_length: dict[int, list[_Template]] = {}
        self._count = 0

    def find(self, octets: bytes) -> tuple[Any, T] | None:
        """The message in these octets and what was told of one like it; None where there was none."""
        alike = self._of_length.get(len(octets))
        if alike is None:
            return None
        number = int.from_bytes(octets)
        for mask, rest, spans, form, told in alike:
            if number & mask == rest:
                data = octets + PADDING
                return form.fill([bytes_at(data, *span) for span in spans]), told
        return None

    def keep(self, octets: bytes, message: Any, spans: Sequence[BinarySpan], told: T) -> None:
        """Note a message that was read from these octets. spans: of its binary values, in document order."""
        if len(octets) > _LONGEST:
            return
        form, count = _form(message, 0)
        if form is None or count != len(spans):
            return  # A value that is empty in the long way stands nowhere.
        width = 8 * len(octets)
        mask = (1 << width) - 1
        for at, octets_of_it in spans:
            mask ^= (1 << 8 * octets_of_it) - 1 << width - at - 8 * octets_of_it
        if self._count >= _MOST:
            self._of_length.clear()
            self._count = 0
        alike = self._of_length.setdefault(len(octets), [])
        alike.insert(0, _Template(mask, int.from_bytes(octets) & mask, tuple(spans), form, told))
        self._count += 1
        if len(alike) > _ALIKE:
            alike.pop()
            self._count -= 1


def _form(value: tuple[Any, ...], first: int) -> tuple[_TupleTemplate | None, int]:
    """The form of a tuple, None where no binary value is in it, and the number of the next value behind it."""
    found: list[tuple[int, int | _TupleTemplate]] = []
    number = first
    for place, item in enumerate(value):
        if type(item) is bytes:
            found.append((place, number))
            number += 1
        elif isinstance(item, tuple):
            inner, number = _form(item, number)
            if inner is not None:
                found.append((place, inner))
    if not found:
        return None, number
    cls = type(value)
    return _TupleTemplate(tuple if cls is tuple else partial(tuple.__new__, cls), list(value), found), number
