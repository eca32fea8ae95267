"""Encoding and decoding of CertificateInstallation messages of both editions: documents, element fragments, and
replacement of header fields. No I/O.

Every function is total: bytes give a message or `EXIError`, and a message gives bytes or `EXIError`. An argument that
is not bytes is a `TypeError`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from ccp.errors import EXIError
from ccp.exi import iso2, iso20, xmldsig
from ccp.exi.bits import (
    MAX_MESSAGE_BYTES,
    MAX_TEXT_CHARACTERS,
    PADDING,
    TRUNCATED,
    CodecError,
    bytes_at,
    pack_text,
    pack_unsigned_byte,
    pack_unsigned_long,
    read_unsigned_long,
)
from ccp.exi.datatypes import TEXT_VALUE, UNSIGNED_BYTE, UNSIGNED_LONG
from ccp.exi.decoder import Action, Automaton, DecoderState, ElementPosition, Transition, read
from ccp.exi.encoder import flush, write
from ccp.exi.schema import Alternative, ElementType, SimpleType
from ccp.exi.template_cache import BinarySpan, TemplateCache

Message: TypeAlias = iso2.V2G_Message | iso20.CertificateInstallationReq | iso20.CertificateInstallationRes

ISO2 = iso2.NAMESPACE
ISO20 = iso20.NAMESPACE

# Distinguishing bits, no options, final version 1.
HEADER = 0x80


class SignedElement(NamedTuple):
    """An element that a signature can cover: one with an Id. start, end: bits of its content and its end."""

    id: str
    name: str
    start: int
    end: int


class ParsedMessage(NamedTuple):
    """A message with the positions of the elements that a signature can cover.

    data: the encoded message. elements: in document order; an Id that occurs twice is listed twice. remaining_from_end:
    bits from RemainingContractCertificateChains of a -20 response to the end of the data, which stays the same when
    SessionID or TimeStamp are replaced; None in other messages.
    """

    data: bytes
    message: Message
    elements: tuple[SignedElement, ...]
    signed_info: SignedElement | None
    remaining_from_end: int | None


class _Schema(NamedTuple):
    """Element fragments of one set of schemas. codes: code and type by name."""

    width: int
    end: int
    codes: dict[str, tuple[int, ElementType]]


_DOCUMENTS: dict[type[Any], tuple[int, int, ElementType, str, str]] = {
    element.cls: (HEADER << width | code, 8 + width, element, name, module.NAMESPACE)
    for module in (iso2, iso20)
    for name, (code, width, element) in module.DOCUMENTS.items()
    if element.cls is not None
}
_SCHEMAS = {
    ISO2: _Schema(iso2.FRAGMENT_WIDTH, iso2.FRAGMENT_END, iso2.FRAGMENTS),
    ISO20: _Schema(iso20.FRAGMENT_WIDTH, iso20.FRAGMENT_END, iso20.FRAGMENTS),
    "xmldsig": _Schema(xmldsig.FRAGMENT_WIDTH, xmldsig.FRAGMENT_END, xmldsig.FRAGMENTS),
}
_GRAMMARS = {"xmldsig": _SCHEMAS["xmldsig"], "iso2": _SCHEMAS[ISO2], "iso20": _SCHEMAS[ISO20]}
# The root codes of the editions differ in their first six bits, so one automaton decodes both.
_AUTOMATON = Automaton(
    {
        f"{code:0{width}b}": Alternative(name, element)
        for module in (iso2, iso20)
        for name, (code, width, element) in module.DOCUMENTS.items()
    }
)
_AUTOMATON.unfold()
_Positions: TypeAlias = tuple[tuple[SignedElement, ...], SignedElement | None, int | None]
_TEMPLATES = TemplateCache[_Positions]()  # With the positions that `ParsedMessage` has.
MAX_SESSION_ID_BYTES = iso2.SESSION_ID.limit
_REMAINING = "RemainingContractCertificateChains"
# Bit position of the length of SessionID, by the first two bytes of a document. Three zero bits follow the root's code.
_SESSION_ID = {b"\x80\x98": 18, b"\x80\x1c": 17, b"\x80\x20": 17}


_MAX_ROOTS: Final = 20  # ListOfRootCertificateIDs, in both editions.


def _read(encoded: bytes, start: DecoderState) -> tuple[Any, list[ElementPosition], list[BinarySpan]]:
    if type(encoded) is not bytes:
        raise TypeError(f"bytes expected, not {type(encoded).__name__}")
    if len(encoded) > MAX_MESSAGE_BYTES:
        raise EXIError(f"{len(encoded)} bytes where at most {MAX_MESSAGE_BYTES} are read", 8 * MAX_MESSAGE_BYTES)
    if not encoded or encoded[0] != HEADER:
        raise EXIError("not an EXI stream of version 1 without options", 0)
    try:
        value, positions, spans, end = read(encoded, start, 8)
    except CodecError as error:
        raise EXIError(error.reason, error.offset, error.names[0]) from None
    # The padding has less than eight zero bits. Zero bytes after it occur in the field and mean nothing.
    if int.from_bytes(encoded[end >> 3 :]) & (1 << (8 * len(encoded) - end)) - 1:
        raise EXIError(f"{_root_too_many(value)}bytes after the end of the message", end)
    return value, positions, spans


def _root_too_many(value: Any) -> str:
    """What bytes after a message may mean: an encoder that does not count items continues after a full list, where the
    code that it writes for the next item is that of the end.
    """
    roots = getattr(getattr(value, "Body", value), "ListOfRootCertificateIDs", None) or ()
    return f"more than {_MAX_ROOTS} RootCertificateID, or " if len(roots) == _MAX_ROOTS else ""


def decode(data: bytes) -> Message:
    """Decode a message. Raises EXIError with bit offset and element path."""
    message: Message = _read(data, _AUTOMATON.start)[0]
    return message


def parse(data: bytes, *, use_cache: bool = True) -> ParsedMessage:
    """Decode a message with the positions of what a signature can cover. Raises EXIError.

    use_cache: decode by the template of a similar message, and add a template of this one. It pays for requests, which
    differ from each other only in binary values, and not for responses, each of which has its own eMAID.
    """
    if use_cache and type(data) is bytes and (known := _TEMPLATES.find(data)):
        message, positions = known
        return ParsedMessage(data, message, *positions)
    message, found, spans = _read(data, _AUTOMATON.start)
    elements = []
    signed_info = remaining = None
    for name, value, start, end in found:
        if name == "SignedInfo":
            signed_info = SignedElement(value.Id or "", name, start, end)
        elif name == _REMAINING:
            # One bit for the event CH precedes the value.
            remaining = 8 * len(data) - start - 1
        elif value.Id is not None:
            elements.append(SignedElement(value.Id, name, start, end))
    positions = tuple(elements), signed_info, remaining
    if use_cache:
        _TEMPLATES.keep(data, message, spans, positions)
    return ParsedMessage(data, message, *positions)


def namespace_of(message: Message) -> str:
    """The message definition namespace: ISO2 or ISO20."""
    return ISO2 if isinstance(message, iso2.V2G_Message) else ISO20


def _write(
    prefix: int, width: int, element: ElementType, value: Any, name: str, suffix: int = 0, more: int = 0
) -> bytes:
    out: list[bytes] = []
    try:
        bits, width = write(element, value, prefix, width, out)
    except CodecError as error:
        raise EXIError(error.reason, None, "/".join((name, *reversed(error.names)))) from None
    return flush(bits << more | suffix, width + more, out)


def encode(message: Message) -> bytes:
    """Encode a message. Raises EXIError with the element path if the message breaks the schema."""
    try:
        prefix, width, element, name, _ = _DOCUMENTS[type(message)]
    except KeyError:
        raise EXIError(f"a message expected, not {type(message).__name__}") from None
    encoded = _write(prefix, width, element, message, name)
    if len(encoded) > MAX_MESSAGE_BYTES:
        raise EXIError(f"{len(encoded)} bytes where at most {MAX_MESSAGE_BYTES} are allowed", None, name)
    return encoded


# --- fragments --------------------------------------------------------------------------------------------------------


def _cut(encoded: bytes, element: SignedElement, schema: _Schema) -> bytes:
    entry = schema.codes.get(element.name)
    if entry is None:
        raise EXIError(f"no fragment of {element.name} is defined")
    width = element.end - element.start
    if not 0 < width <= element.end <= 8 * len(encoded):
        raise EXIError("an element that is not inside of the message", element.start)
    first, last = element.start >> 3, element.end + 7 >> 3
    content = int.from_bytes(encoded[first:last]) >> 8 * last - element.end & (1 << width) - 1
    bits = ((HEADER << schema.width | entry[0]) << width | content) << schema.width | schema.end
    return flush(bits, 8 + width + 2 * schema.width, [])


def fragment(parsed: ParsedMessage, element: SignedElement) -> bytes:
    """The element fragment that a reference covers, cut out of the received bits, so in the sender's own encoding.

    The ISO-2 eMAID has its typed form here, which is not the one that the standard requires: see `emaid_fragment`.
    Raises EXIError.
    """
    return _cut(parsed.data, element, _SCHEMAS[namespace_of(parsed.message)])


def signed_info_fragment(parsed: ParsedMessage, grammar: str = "xmldsig") -> bytes:
    """The SignedInfo fragment that SignatureValue signs, cut out of the received bits.

    grammar: "xmldsig" for the stand-alone XML signature schema, as in every message seen in the field; "combined" for
    the schema of the message.
    Raises EXIError if the message is not signed.
    """
    if parsed.signed_info is None:
        raise EXIError("the message is not signed")
    if grammar not in ("xmldsig", "combined"):
        raise EXIError(f"no grammar {grammar!r}")
    return _cut(
        parsed.data,
        parsed.signed_info,
        _SCHEMAS["xmldsig" if grammar == "xmldsig" else namespace_of(parsed.message)],
    )


def _fragment(name: str, value: Any, schema: _Schema) -> bytes:
    code, element = schema.codes[name]
    return _write(HEADER << schema.width | code, 8 + schema.width, element, value, name, schema.end, schema.width)


def encode_fragment(name: str, value: Any, namespace: str) -> bytes:
    """Encode the fragment of an element, for signing; eMAID in its relaxed form. Raises EXIError."""
    schema = _SCHEMAS.get(namespace)
    if schema is None or name not in schema.codes:
        raise EXIError(f"no fragment of {name} is defined")
    if name == "eMAID":
        return emaid_fragment(value)
    return _fragment(name, value, schema)


def encode_signed_info(signed_info: xmldsig.SignedInfo, grammar: str = "xmldsig") -> bytes:
    """Encode the fragment of SignedInfo. grammar: "xmldsig" (the standard's), "iso2" or "iso20". Raises EXIError."""
    if grammar not in _GRAMMARS:
        raise EXIError(f"no grammar {grammar!r}")
    return _fragment("SignedInfo", signed_info, _GRAMMARS[grammar])


# The schema declares eMAID with two types, so EXI prescribes a relaxed grammar: code and width of @Id, text, end.
# Source: W3C EXI 1.0 clause 8.5.3.
_RELAXED = (4, 9), (256, 9), (244, 8)


def emaid_fragment(emaid: iso2.EMAID, form: str = "relaxed") -> bytes:
    """Encode the fragment of an ISO-2 eMAID. Raises EXIError.

    form: "relaxed" as EXI requires; "typed" as one widespread C encoder writes it, which gives another digest.
    """
    schema = _SCHEMAS[ISO2]
    if form == "typed" or type(emaid) is not iso2.EMAID:
        return _fragment("eMAID", emaid, schema)
    if form != "relaxed":
        raise EXIError(f"no form {form!r}")
    bits, width = HEADER << schema.width | schema.codes["eMAID"][0], 8 + schema.width
    field = "Id"
    try:
        for (code, size), field in zip(_RELAXED, emaid._fields, strict=False):
            packed, more = pack_text(getattr(emaid, field), MAX_TEXT_CHARACTERS)
            bits, width = (bits << size | code) << more | packed, width + size + more
    except CodecError as error:
        raise EXIError(error.reason, None, f"eMAID/{field}") from None
    code, size = _RELAXED[2]
    return flush((bits << size | code) << schema.width | schema.end, width + size + schema.width, [])


class Fragment(NamedTuple):
    """A decoded element fragment: name and value of the element."""

    name: str
    value: Any


def _relaxed_emaid(ending: DecoderState) -> DecoderState:
    """The states for a relaxed eMAID, one for each of its three codes."""

    def state(
        code: int, width: int, then: DecoderState, simple: SimpleType | None = TEXT_VALUE, *actions: Action
    ) -> DecoderState:
        transition = Transition(f"{code:0{width}b}", actions, simple, then)
        return DecoderState("eMAID", lambda: iter((transition,)))

    identifier, text, end = _RELAXED
    return state(*identifier, state(*text, state(*end, ending, None, (iso2.EMAID._make, 2))))


def decode_fragment(data: bytes, grammar: str) -> Fragment:
    """Decode an element fragment; eMAID in its relaxed form. grammar: "xmldsig", "iso2" or "iso20". Raises EXIError."""
    automaton = _FRAGMENT_AUTOMATA.get(grammar)
    if automaton is None:
        raise EXIError(f"no grammar {grammar!r}")
    value, _, _ = _read(data, automaton.start)
    schema = _GRAMMARS[grammar]
    code = int.from_bytes(data[1:3]) >> 16 - schema.width
    return Fragment(next(name for name, entry in schema.codes.items() if entry[0] == code), value)


def _fragment_automaton(schema: _Schema) -> Automaton:
    codes = {name: f"{code:0{schema.width}b}" for name, (code, _) in schema.codes.items()}
    relaxed = codes.pop("eMAID", None)
    automaton = Automaton(
        {code: Alternative(name, schema.codes[name][1]) for name, code in codes.items()}, schema.end, schema.width
    )
    if relaxed is not None and automaton.ending is not None:
        emaid = Transition(relaxed, next=_relaxed_emaid(automaton.ending))
        automaton.start = DecoderState("", lambda: iter((*automaton.openings(), emaid)))
    return automaton


_FRAGMENT_AUTOMATA = {grammar: _fragment_automaton(schema) for grammar, schema in _GRAMMARS.items()}


# --- header fields ----------------------------------------------------------------------------------------------------


def _replace(encoded: bytes, position: int, count: int, new: bytes) -> bytes:
    """Replace `count` bytes at a bit position by `new`. Whole bytes are exchanged, so the rest keeps its bit phase."""
    first = position >> 3
    last = first + count
    if not 0 <= position <= 8 * (len(encoded) - count):
        raise CodecError("a position outside of the message")
    shift = 8 - (position & 7)
    if shift == 8:
        return encoded[:first] + new + encoded[last:]
    size = len(new)
    bits = (encoded[first] >> shift << 8 * size | int.from_bytes(new)) << shift | encoded[last] & (1 << shift) - 1
    return encoded[:first] + bits.to_bytes(size + 1) + encoded[last + 1 :]


def replace_header_fields(
    data: bytes,
    *,
    session_id: bytes | None = None,
    timestamp: int | None = None,
    remaining: int | None = None,
    remaining_from_end: int | None = None,
) -> bytes:
    """The same message with another SessionID and, in -20, TimeStamp and RemainingContractCertificateChains.

    The signature covers none of these. None keeps a field. timestamp: seconds since 1970. Only the beginning of the
    message is decoded, unless `remaining` is given without `remaining_from_end` (see `ParsedMessage`).
    Raises EXIError.
    """
    if type(data) is not bytes:
        raise TypeError(f"bytes expected, not {type(data).__name__}")
    start = _SESSION_ID.get(data[:2])
    if start is None:
        raise EXIError("not a CertificateInstallation message", 0)
    path = ""
    try:
        if session_id is not None:
            path = "Header/SessionID"
            if type(session_id) is not bytes or len(session_id) > MAX_SESSION_ID_BYTES:
                raise CodecError(f"at most {MAX_SESSION_ID_BYTES} bytes expected")
            count = _session_end(data, start) - start >> 3
            data = _replace(data, start, count, bytes((len(session_id),)) + session_id)
        if timestamp is not None:
            path = "Header/TimeStamp"
            if start == _SESSION_ID[b"\x80\x98"]:
                raise CodecError("ISO 15118-2 has no such field")
            new, size = pack_unsigned_long(timestamp, UNSIGNED_LONG.limit)
            # The end of SessionID, the start of TimeStamp and its text have one zero bit each.
            position = _session_end(data, start) + 3
            if position > 8 * len(data) or bytes_at(data + PADDING, position - 3, 1)[0] >> 5:
                raise CodecError("encoded in a form that cannot be replaced")
            after = read_unsigned_long(data + PADDING, position, 8 * len(data), UNSIGNED_LONG.limit)[1]
            data = _replace(data, position, after - position >> 3, new.to_bytes(size >> 3))
        if remaining is not None:
            path = _REMAINING
            new, _ = pack_unsigned_byte(remaining, UNSIGNED_BYTE.limit)
            if remaining_from_end is None:
                remaining_from_end = parse(data).remaining_from_end
            if data[:2] != b"\x80\x20" or type(remaining_from_end) is not int:
                raise CodecError("this message has no such field")
            data = _replace(data, 8 * len(data) - remaining_from_end, 1, bytes((new,)))
    except CodecError as error:
        raise EXIError(error.reason, None, path) from None
    return data


def _session_end(encoded: bytes, start: int) -> int:
    """Bit position after SessionID. start: that of its length; the bits before it in this byte are zero."""
    if len(encoded) < 4:
        raise CodecError(TRUNCATED)
    count = (encoded[2] << 8 | encoded[3]) >> 24 - start
    if count > MAX_SESSION_ID_BYTES:
        raise CodecError("encoded in a form that cannot be replaced")
    return start + 8 + 8 * count
