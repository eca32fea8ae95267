"""Messages as plain objects for JSON, and back.

The schema's own names, nested as in XML; attributes by their names; text of an element with attributes as `value`;
repeated elements as arrays. hexBinary is upper-case hex, base64Binary is Base64. It is the shape that EXIficient's
JSON has.
"""

from __future__ import annotations

from typing import Any

from ccp.errors import EXIError
from ccp.exi import iso2, iso20
from ccp.exi.bits import CodecError
from ccp.exi.codec import Message, encode
from ccp.exi.grammar import TEXT, ElementType, SimpleType

_ROOTS: dict[str, ElementType] = {
    name: entry[2] for module in (iso2, iso20) for name, entry in module.DOCUMENTS.items()
}


def to_json(message: Message) -> dict[str, Any]:
    """The JSON form of a message that keeps to the schema. Raises EXIError where it does not."""
    encode(message)
    name = "V2G_Message" if isinstance(message, iso2.V2G_Message) else type(message).__name__
    return {name: _show(_ROOTS[name], message)}


def _show(kind: SimpleType | ElementType | None, value: Any) -> Any:
    if isinstance(kind, SimpleType):
        return kind.show(value)
    assert kind is not None
    if kind.cls is None and kind.particles[0].sort == TEXT:
        return _show(kind.slots[0][2].kind, value)
    shown: dict[str, Any] = {}
    for (_, particle, option), item in zip(kind.slots, kind.split(value), strict=True):
        if particle.most is None:
            if item is not None:
                shown[option.name] = _show(option.kind, item)
        elif item:
            shown[option.name] = [_show(option.kind, each) for each in item]
    return shown


def from_json(obj: object) -> Message:
    """The message of a JSON form. Strict: anything unknown, missing or of a wrong type is an EXIError with its path."""
    if type(obj) is not dict or len(obj) != 1 or (name := next(iter(obj))) not in _ROOTS:
        raise EXIError(f"an object with one member expected: {' or '.join(_ROOTS)}")
    try:
        message: Message = _load(_ROOTS[name], obj[name])
    except CodecError as flaw:
        raise EXIError(flaw.reason, None, "/".join((name, *reversed(flaw.names)))) from None
    encode(message)
    return message


def _load(kind: SimpleType | ElementType | None, value: Any) -> Any:
    if isinstance(kind, SimpleType):
        loaded = kind.load(value, kind.limit)
        kind.pack(loaded, kind.limit)
        return loaded
    assert kind is not None
    if kind.cls is None and kind.particles[0].sort == TEXT:
        return _load(kind.slots[0][2].kind, value)
    if type(value) is not dict:
        raise CodecError("an object expected")
    known = {option.name for _, _, option in kind.slots}
    for name in value:
        if name not in known:
            raise CodecError("an unknown member" if type(name) is str else "a member whose name is not a string")
    slots: list[Any] = []
    for _, particle, option in kind.slots:
        name = option.name
        try:
            if name not in value:
                if not particle.optional and len(particle.options) == 1:
                    raise CodecError("a missing member")
                slots.append(None if particle.most is None else ())
            elif particle.most is None:
                slots.append(_load(option.kind, value[name]))
            elif type(value[name]) is not list or not value[name]:
                raise CodecError("an array of at least one item expected")
            elif len(value[name]) > particle.most:
                raise CodecError(f"{len(value[name])} items where at most {particle.most} are allowed")
            else:
                slots.append(tuple([_load(option.kind, each) for each in value[name]]))
        except CodecError as flaw:
            flaw.names.append(name)
            raise
    return kind.join(slots)
