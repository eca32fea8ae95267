"""Cache of decoded message templates: a message that differs from a cached one only inside binary values is decoded by
substitution.

Requests of vehicles of one make differ in session ids, certificates, digests and signatures, seldom in anything else.
What the decoding loop does depends on every bit of a message except those of its binary values. So if all other bits
and all lengths agree with a cached message, the result is that message with other binary values. The test is one
comparison of two integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from ccp.exi.bits import PADDING, bytes_at

BinarySpan: TypeAlias = tuple[int, int]
"""Position of a binary value: its first bit, and its length in bytes."""
T = TypeVar("T")

_MAX_CACHED_BYTES: Final = 16_384  # Of one message; a -20 response with eight certificates is smaller.
_MAX_TEMPLATES: Final = 256
_MAX_TEMPLATES_OF_LENGTH: Final = 8  # The newest. Each is compared with a message of that length.


class _TupleTemplate(NamedTuple):
    """A tuple with binary values in it.

    make: constructor. items: of the cached tuple. open: index of each item to substitute, with the number of its binary
    value or with its own template.
    """

    make: Callable[[list[Any]], Any]
    items: list[Any]
    open: list[tuple[int, int | _TupleTemplate]]

    def fill(self, values: Sequence[bytes]) -> Any:
        items = self.items.copy()
        for index, item in self.open:
            items[index] = values[item] if type(item) is int else item.fill(values)  # type: ignore[union-attr]
        return self.make(items)


class _Template(NamedTuple):
    """mask: the bits outside of binary values. fixed: these bits of the message. extra: what `keep` was given."""

    mask: int
    fixed: int
    spans: Sequence[BinarySpan]
    message: _TupleTemplate
    extra: Any


class TemplateCache(Generic[T]):
    """Templates of recently decoded messages. T: what is known of a message besides its binary values."""

    def __init__(self) -> None:
        self._by_length: dict[int, list[_Template]] = {}
        self._count = 0

    def find(self, encoded: bytes) -> tuple[Any, T] | None:
        """The decoded message and the `extra` of its template; None if no template matches."""
        templates = self._by_length.get(len(encoded))
        if templates is None:
            return None
        number = int.from_bytes(encoded)
        for mask, fixed, spans, message, extra in templates:
            if number & mask == fixed:
                data = encoded + PADDING
                return message.fill([bytes_at(data, *span) for span in spans]), extra
        return None

    def keep(self, encoded: bytes, message: Any, spans: Sequence[BinarySpan], extra: T) -> None:
        """Add a template. spans: of the message's binary values, in document order."""
        if len(encoded) > _MAX_CACHED_BYTES:
            return
        template, count = _template(message, 0)
        if template is None or count != len(spans):
            return  # An empty value encoded as an escape has no span; do not cache.
        width = 8 * len(encoded)
        mask = (1 << width) - 1
        for position, size in spans:
            mask ^= (1 << 8 * size) - 1 << width - position - 8 * size
        if self._count >= _MAX_TEMPLATES:
            self._by_length.clear()
            self._count = 0
        same_length = self._by_length.setdefault(len(encoded), [])
        same_length.insert(0, _Template(mask, int.from_bytes(encoded) & mask, tuple(spans), template, extra))
        self._count += 1
        if len(same_length) > _MAX_TEMPLATES_OF_LENGTH:
            same_length.pop()
            self._count -= 1


def _template(value: tuple[Any, ...], first: int) -> tuple[_TupleTemplate | None, int]:
    """The template of a tuple, None if it contains no binary value; and the number of the next binary value."""
    found: list[tuple[int, int | _TupleTemplate]] = []
    number = first
    for index, item in enumerate(value):
        if type(item) is bytes:
            found.append((index, number))
            number += 1
        elif isinstance(item, tuple):
            inner, number = _template(item, number)
            if inner is not None:
                found.append((index, inner))
    if not found:
        return None, number
    cls = type(value)
    return _TupleTemplate(tuple if cls is tuple else partial(tuple.__new__, cls), list(value), found), number
