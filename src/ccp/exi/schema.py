"""Declarations of message elements, and the productions that EXI derives from them.

A declaration (`ElementType`) lists the particles of an element in document order. In every state of an element the
productions that may come next are numbered in order; n of them take `n.bit_length()` bits, because code n is the escape
for content that the schema does not allow. Document and fragment states have no escape; their codes and widths are
declared in `iso2`, `iso20` and `xmldsig`. Source: W3C EXI 1.0 clause 8.5.4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ccp.exi.bits import CodecError

ATTRIBUTE, ELEMENT, TEXT, REFUSED = "attribute", "element", "text", "refused"
END = -1


class SimpleType(NamedTuple):
    """A simple type.

    read: see `bits`. pack: see `bits`. to_json, from_json: conversion of values. from_text: reads the value from the
    text of an XML document, with the white space that the type allows; what `to_json` returns is such a text or a
    number. name: of the type in the XML schema, as "{namespace}name". limit: passed to read and pack. empty: the value
    of an element without text, None if there is none.
    """

    read: Callable[[bytes, int, int, Any], tuple[Any, int]]
    pack: Callable[[Any, Any], tuple[int, int]]
    to_json: Callable[[Any], Any]
    from_json: Callable[[Any, Any], Any]
    from_text: Callable[[str], Any]
    name: str
    limit: Any
    empty: Any = None


class Alternative(NamedTuple):
    """One name that may occur in a particle. kind: its type; None if it takes a code but is not supported."""

    name: str
    kind: SimpleType | ElementType | None


class Particle(NamedTuple):
    """One place in a content model.

    sort: ATTRIBUTE, ELEMENT, TEXT or REFUSED. alternatives: several in a choice, each with its own slot in the value.
    max_items: greatest number of items of a list; None if it is no list. own_limit: the limit is this codec's, and the
    schema has none. namespace: of the names in XML, None for that of the type that contains the particle. if_absent:
    the value of a mandatory element that an XML document may leave out; None if it may not.
    """

    sort: str
    alternatives: tuple[Alternative, ...]
    optional: bool = False
    max_items: int | None = None
    own_limit: bool = False
    namespace: str | None = None
    if_absent: Any = None


class ElementType:
    """Type of an element. Its value is a `cls` with one slot for each alternative; without `cls`, its only slot."""

    def __init__(
        self, name: str, cls: type[Any] | None, *particles: Particle, mixed: bool = False, positioned: bool = False
    ) -> None:
        """name: of the type in the XML schema, as "{namespace}name"; without name if the type has none. Elements inside
        are in its namespace. mixed: text may occur between elements. It adds a production to every state after the
        attributes; the text itself is refused. positioned: the decoder reports the position of such elements.
        """
        self.name = name
        self.namespace = name[1:].partition("}")[0]
        self.cls = cls
        self.particles = particles
        self.mixed = mixed
        self.positioned = positioned
        self.table: EncodingTable | None = None
        self.slots = tuple(
            (index, particle, alternative)
            for index, particle in enumerate(particles)
            if particle.sort != REFUSED
            for alternative in particle.alternatives
            if alternative.kind is not None
        )

    def split(self, value: Any) -> tuple[Any, ...]:
        """The slots of a value. Raises CodecError if it is of another class."""
        if self.cls is not None:
            if type(value) is not self.cls:
                raise CodecError(f"{self.cls.__name__} expected, not {type(value).__name__}")
            return value  # type: ignore[no-any-return]
        if len(self.slots) == 1:
            return (value,)
        return tuple(value if type(value) is getattr(a.kind, "cls", None) else None for _, _, a in self.slots)

    def join(self, slots: list[Any]) -> Any:
        """The value with these slots, the inverse of `split`. Raises CodecError if a choice has not exactly one."""
        if self.cls is not None:
            return tuple.__new__(self.cls, slots)
        present = [slot for slot in slots if slot is not None]
        if len(present) != 1:
            raise CodecError("exactly one member expected")
        return present[0]

    def productions(self, index: int, count: int) -> list[tuple[int, Alternative | None]]:
        """What may follow after `count` items of particle `index`: (particle, alternative) in the order of codes.

        The alternative is None for the end of the element.
        """
        found: list[tuple[int, Alternative | None]] = []
        for place in range(index, len(self.particles)):
            particle = self.particles[place]
            read = count if place == index else 0
            if read and not particle.own_limit and read == particle.max_items:
                continue
            found += [(place, alternative) for alternative in particle.alternatives]
            if not particle.optional and not read:
                break
        else:
            found.append((END, None))
        if self.mixed and (index == len(self.particles) or self.particles[index].sort != ATTRIBUTE):
            found.append((len(self.particles), Alternative("text between elements", None)))
        return found

    def encoding_table(self) -> EncodingTable:
        """Build and keep the table of the encoder."""
        self.table = EncodingTable(
            self.cls, self.codes(0, 0, 0), tuple(_slot_encoder(self, *slot) for slot in self.slots)
        )
        return self.table

    def codes(self, index: int, count: int, pending: int) -> dict[str, tuple[int, int]]:
        """Bits and width of each production by name; "" is the end.

        pending: zero bits to write before the code. The bit of the event CH that follows a simple element is included.
        """
        productions = self.productions(index, count)
        width = len(productions).bit_length() + pending
        table: dict[str, tuple[int, int]] = {}
        for code, (place, alternative) in enumerate(productions):
            if alternative is None:
                table[""] = code, width
            elif alternative.kind is not None:
                particle = self.particles[place]
                merged = (
                    isinstance(alternative.kind, SimpleType) and particle.sort == ELEMENT and particle.max_items is None
                )
                table[alternative.name] = (code << 1, width + 1) if merged else (code, width)
        return table


class SlotEncoder(NamedTuple):
    """How one slot of an element is written: by `pack`, or as an element of type `element` (each item of a list).

    after: codes that may follow. full: the same after the last possible item of a list.
    """

    name: str
    max_items: int | None
    pack: Callable[[Any, Any], tuple[int, int]] | None
    limit: Any
    element: Any
    after: dict[str, tuple[int, int]]
    full: dict[str, tuple[int, int]]


class EncodingTable(NamedTuple):
    """How an element is written. start: codes at its beginning."""

    cls: type[Any] | None
    start: dict[str, tuple[int, int]]
    slots: tuple[SlotEncoder, ...]


def simple_element(kind: SimpleType) -> ElementType:
    """The type of an element that contains only a value."""
    return ElementType(kind.name, None, Particle(TEXT, (Alternative("value", kind),)))


def _slot_encoder(element: ElementType, index: int, particle: Particle, alternative: Alternative) -> SlotEncoder:
    name, kind = alternative
    if particle.max_items is not None:
        inner = simple_element(kind) if isinstance(kind, SimpleType) else kind
        after, full = element.codes(index, 1, 0), element.codes(index, particle.max_items, 0)
        return SlotEncoder(name, particle.max_items, None, None, inner, after, full)
    # An element with simple content ends with one zero bit, which is written together with the next code.
    pending = 1 if isinstance(kind, SimpleType) and particle.sort == ELEMENT else 0
    after = element.codes(index + 1, 0, pending)
    if isinstance(kind, SimpleType):
        return SlotEncoder(name, None, kind.pack, kind.limit, None, after, after)
    return SlotEncoder(name, None, None, None, kind, after, after)
