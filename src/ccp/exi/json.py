"""Messages as plain objects for JSON, and back.

Names and nesting are those of the XML schema: attributes by name, the text of an element with attributes as `value`,
repeated elements as arrays. hexBinary is upper-case hexadecimal, base64Binary is Base64. EXIficient writes the same.
"""

from __future__ import annotations

from typing import Any

from ccp.errors import EXIError
from ccp.exi import iso2, iso20
from ccp.exi.bits import CodecError
from ccp.exi.codec import Message, encode
from ccp.exi.schema import TEXT, ElementType, SimpleType

_ROOTS: dict[str, ElementType] = {
    name: entry[2] for module in (iso2, iso20) for name, entry in module.DOCUMENTS.items()
}


def to_json(message: Message) -> dict[str, Any]:
    """The JSON form of a message. Raises EXIError if the message breaks the schema."""
    encode(message)
    name = "V2G_Message" if isinstance(message, iso2.V2G_Message) else type(message).__name__
    return {name: _dump(_ROOTS[name], message)}


def _dump(kind: SimpleType | ElementType | None, value: Any) -> Any:
    if isinstance(kind, SimpleType):
        return kind.to_json(value)
    assert kind is not None
    if kind.cls is None and kind.particles[0].sort == TEXT:
        return _dump(kind.slots[0][2].kind, value)
    dumped: dict[str, Any] = {}
    for (_, particle, alternative), item in zip(kind.slots, kind.split(value), strict=True):
        if particle.max_items is None:
            if item is not None:
                dumped[alternative.name] = _dump(alternative.kind, item)
        elif item:
            dumped[alternative.name] = [_dump(alternative.kind, each) for each in item]
    return dumped


def from_json(obj: object) -> Message:
    """The message of a JSON form.

    Raises EXIError with the element path for an unknown or missing member and for a value of a wrong type.
    """
    if type(obj) is not dict or len(obj) != 1 or (name := next(iter(obj))) not in _ROOTS:
        raise EXIError(f"an object with one member expected: {' or '.join(_ROOTS)}")
    try:
        message: Message = _load(_ROOTS[name], obj[name])
    except CodecError as error:
        raise EXIError(error.reason, None, "/".join((name, *reversed(error.names)))) from None
    encode(message)
    return message


def _load(kind: SimpleType | ElementType | None, value: Any) -> Any:
    if isinstance(kind, SimpleType):
        loaded = kind.from_json(value, kind.limit)
        kind.pack(loaded, kind.limit)
        return loaded
    assert kind is not None
    if kind.cls is None and kind.particles[0].sort == TEXT:
        return _load(kind.slots[0][2].kind, value)
    if type(value) is not dict:
        raise CodecError("an object expected")
    known = {alternative.name for _, _, alternative in kind.slots}
    for name in value:
        if name not in known:
            raise CodecError("an unknown member" if type(name) is str else "a member whose name is not a string")
    slots: list[Any] = []
    for _, particle, alternative in kind.slots:
        name = alternative.name
        try:
            if name not in value:
                if not particle.optional and len(particle.alternatives) == 1:
                    raise CodecError("a missing member")
                slots.append(None if particle.max_items is None else ())
            elif particle.max_items is None:
                slots.append(_load(alternative.kind, value[name]))
            elif type(value[name]) is not list or not value[name]:
                raise CodecError("an array of at least one item expected")
            elif len(value[name]) > particle.max_items:
                raise CodecError(f"{len(value[name])} items where at most {particle.max_items} are allowed")
            else:
                slots.append(tuple([_load(alternative.kind, each) for each in value[name]]))
        except CodecError as error:
            error.names.append(name)
            raise
    return kind.join(slots)
