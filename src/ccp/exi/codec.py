"""Documents, element fragments and splices of CertificateInstallation messages, for both editions. No I/O.

Bytes give a message or `EXIError`, and a message gives bytes or `EXIError`; nothing else is raised, but `TypeError`
where the argument is not bytes at all.
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
from ccp.exi.grammar import (
    Action,
    Alternative,
    Automaton,
    DecoderState,
    ElementPosition,
    ElementType,
    SimpleType,
    Transition,
    flush,
    read,
    write,
)
from ccp.exi.template_cache import BinarySpan, TemplateCache

Message: TypeAlias = iso2.V2G_Message | iso20.CertificateInstallationReq | iso20.CertificateInstallationRes

ISO2 = iso2.NAMESPACE
ISO20 = iso20.NAMESPACE

# Distinguishing bits, no options, final version 1.
HEADER = 0x80


class SignedElement(NamedTuple):
    """An element of the body that has an Id. start, end: bits of the stream that hold its content and its end."""

    id: str
    name: str
    start: int
    end: int


class ParsedMessage(NamedTuple):
    """A message with the positions of what a signature can cover.

    elements: in document order, an Id that is there twice stays twice. remaining_from_end: bits from the
    RemainingContractCertificateChains of a -20 response to the end of the octets, which stays true when SessionID or
    TimeStamp are replaced; None in other messages.
    """

    data: bytes
    message: Message
    elements: tuple[SignedElement, ...]
    signed_info: SignedElement | None
    remaining_from_end: int | None


class _Schema(NamedTuple):
    """Element fragments of one set of schemas."""

    width: int
    end: int
    codes: dict[str, tuple[int, ElementType]]


_DOCUMENTS: dict[type[Any], tuple[int, int, ElementType, str, str]] = {
    record.cls: (HEADER << width | code, 8 + width, record, name, module.NAMESPACE)
    for module in (iso2, iso20)
    for name, (code, width, record) in module.DOCUMENTS.items()
    if record.cls is not None
}
_SCHEMAS = {
    ISO2: _Schema(iso2.FRAGMENT_WIDTH, iso2.FRAGMENT_END, iso2.FRAGMENTS),
    ISO20: _Schema(iso20.FRAGMENT_WIDTH, iso20.FRAGMENT_END, iso20.FRAGMENTS),
    "xmldsig": _Schema(xmldsig.FRAGMENT_WIDTH, xmldsig.FRAGMENT_END, xmldsig.FRAGMENTS),
}
_GRAMMARS = {"xmldsig": _SCHEMAS["xmldsig"], "iso2": _SCHEMAS[ISO2], "iso20": _SCHEMAS[ISO20]}
# The root codes of both editions differ in their first six bits, so that one automaton reads both.
_READER = Automaton(
    {
        f"{code:0{width}b}": Alternative(name, record)
        for module in (iso2, iso20)
        for name, (code, width, record) in module.DOCUMENTS.items()
    }
)
_READER.unfold()
_Places: TypeAlias = tuple[tuple[SignedElement, ...], SignedElement | None, int | None]
_OUTLINES = TemplateCache[_Places]()  # What `ParsedMessage` says of messages beside octets and values.
MAX_SESSION_ID_BYTES = iso2.SESSION_ID.limit
_REMAINING = "RemainingContractCertificateChains"
# Bit position of the length of SessionID, by the first two octets of a document. Behind the root's code stand three
# zero bits.
_SESSION_ID = {b"\x80\x98": 18, b"\x80\x1c": 17, b"\x80\x20": 17}


_MAX_ROOTS: Final = 20  # ListOfRootCertificateIDs, in both editions.


def _read(octets: bytes, start: DecoderState) -> tuple[Any, list[ElementPosition], list[BinarySpan]]:
    if type(octets) is not bytes:
        raise TypeError(f"bytes expected, not {type(octets).__name__}")
    if len(octets) > MAX_MESSAGE_BYTES:
        raise EXIError(f"{len(octets)} octets where at most {MAX_MESSAGE_BYTES} are read", 8 * MAX_MESSAGE_BYTES)
    if not octets or octets[0] != HEADER:
        raise EXIError("not an EXI stream of version 1 without options", 0)
    try:
        value, marks, spans, at = read(octets, start, 8)
    except CodecError as flaw:
        raise EXIError(flaw.reason, flaw.offset, flaw.names[0]) from None
    # Padding is less than an octet of zero bits. Whole zero octets behind it occur and carry nothing.
    if int.from_bytes(octets[at >> 3 :]) & (1 << (8 * len(octets) - at)) - 1:
        raise EXIError(f"{_root_too_many(value)}octets behind the end of the message", at)
    return value, marks, spans


def _root_too_many(value: Any) -> str:
    """What octets behind a message may be: an encoder that counts no items goes on where the list is full, and there
    its code for the next item is that of the end.
    """
    roots = getattr(getattr(value, "Body", value), "ListOfRootCertificateIDs", None) or ()
    return f"more than {_MAX_ROOTS} RootCertificateID, or " if len(roots) == _MAX_ROOTS else ""


def decode(octets: bytes) -> Message:
    """The message in a stream. Raises EXIError with bit offset and element path."""
    message: Message = _read(octets, _READER.start)[0]
    return message


def parse(octets: bytes, *, use_cache: bool = True) -> ParsedMessage:
    """The message in a stream, with the positions of what can be signed. Raises EXIError.

    use_cache: compare with messages that were read lately, and keep this one for that. It pays for requests, which
    differ from each other in binary values alone, and not for responses, each of which has an eMAID of its own.
    """
    if use_cache and type(octets) is bytes and (known := _OUTLINES.find(octets)):
        message, places = known
        return ParsedMessage(octets, message, *places)
    message, marks, spans = _read(octets, _READER.start)
    parts = []
    signed_info = remaining = None
    for name, value, start, end in marks:
        if name == "SignedInfo":
            signed_info = SignedElement(value.Id or "", name, start, end)
        elif name == _REMAINING:
            # One bit for the event CH stands before the value.
            remaining = 8 * len(octets) - start - 1
        elif value.Id is not None:
            parts.append(SignedElement(value.Id, name, start, end))
    places = tuple(parts), signed_info, remaining
    if use_cache:
        _OUTLINES.keep(octets, message, spans, places)
    return ParsedMessage(octets, message, *places)


def namespace_of(message: Message) -> str:
    """ISO2 or ISO20."""
    return ISO2 if isinstance(message, iso2.V2G_Message) else ISO20


def _write(
    prefix: int, width: int, record: ElementType, value: Any, name: str, suffix: int = 0, more: int = 0
) -> bytes:
    out: list[bytes] = []
    try:
        bits, width = write(record, value, prefix, width, out)
    except CodecError as flaw:
        raise EXIError(flaw.reason, None, "/".join((name, *reversed(flaw.names)))) from None
    return flush(bits << more | suffix, width + more, out)


def encode(message: Message) -> bytes:
    """The stream of a message. Raises EXIError with the element path where the message breaks the schema."""
    try:
        prefix, width, record, name, _ = _DOCUMENTS[type(message)]
    except KeyError:
        raise EXIError(f"a message expected, not {type(message).__name__}") from None
    octets = _write(prefix, width, record, message, name)
    if len(octets) > MAX_MESSAGE_BYTES:
        raise EXIError(f"{len(octets)} octets where at most {MAX_MESSAGE_BYTES} are allowed", None, name)
    return octets


# --- fragments --------------------------------------------------------------------------------------------------------


def _cut(octets: bytes, part: SignedElement, schema: _Schema) -> bytes:
    entry = schema.codes.get(part.name)
    if entry is None:
        raise EXIError(f"no fragment of {part.name} is defined")
    width = part.end - part.start
    if not 0 < width <= part.end <= 8 * len(octets):
        raise EXIError("a part that is not inside of the octets", part.start)
    first, last = part.start >> 3, part.end + 7 >> 3
    content = int.from_bytes(octets[first:last]) >> 8 * last - part.end & (1 << width) - 1
    bits = ((HEADER << schema.width | entry[0]) << width | content) << schema.width | schema.end
    return flush(bits, 8 + width + 2 * schema.width, [])


def fragment(parsed: ParsedMessage, part: SignedElement) -> bytes:
    """The element fragment that a reference covers, cut out of the received bits, so that it is the sender's own form.

    The ISO-2 eMAID comes in its typed form, which is not what the standard asks for: see `emaid_fragment`.
    """
    return _cut(parsed.data, part, _SCHEMAS[namespace_of(parsed.message)])


def signed_info_fragment(parsed: ParsedMessage, grammar: str = "xmldsig") -> bytes:
    """What SignatureValue signs, cut out of the received bits.

    grammar: "xmldsig" for the stand-alone schema, as every message seen in the field; "combined" for the message's own.
    Raises EXIError where the message is not signed.
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
    code, record = schema.codes[name]
    return _write(HEADER << schema.width | code, 8 + schema.width, record, value, name, schema.end, schema.width)


def encode_fragment(name: str, value: Any, namespace: str) -> bytes:
    """The element fragment of a value, for signing. eMAID is written in its relaxed form. Raises EXIError."""
    schema = _SCHEMAS.get(namespace)
    if schema is None or name not in schema.codes:
        raise EXIError(f"no fragment of {name} is defined")
    if name == "eMAID":
        return emaid_fragment(value)
    return _fragment(name, value, schema)


def encode_signed_info(signed_info: xmldsig.SignedInfo, grammar: str = "xmldsig") -> bytes:
    """The fragment of SignedInfo. grammar: "xmldsig" (what is to be signed), "iso2" or "iso20". Raises EXIError."""
    if grammar not in _GRAMMARS:
        raise EXIError(f"no grammar {grammar!r}")
    return _fragment("SignedInfo", signed_info, _GRAMMARS[grammar])


# The schema declares eMAID with two types, for which EXI prescribes a relaxed grammar: codes of @Id, text, end, and
# their widths.
_RELAXED = (4, 9), (256, 9), (244, 8)


def emaid_fragment(emaid: iso2.EMAID, form: str = "relaxed") -> bytes:
    """The fragment of an ISO-2 eMAID. Raises EXIError.

    form: "relaxed" as the specification asks for; "typed" as one widespread C encoder writes it, with another digest.
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
    except CodecError as flaw:
        raise EXIError(flaw.reason, None, f"eMAID/{field}") from None
    code, size = _RELAXED[2]
    return flush((bits << size | code) << schema.width | schema.end, width + size + schema.width, [])


class Fragment(NamedTuple):
    name: str
    value: Any


def _relaxed_emaid(ending: DecoderState) -> DecoderState:
    """The states that read a relaxed eMAID, one for each of its three codes."""

    def state(
        code: int, width: int, then: DecoderState, leaf: SimpleType | None = TEXT_VALUE, *actions: Action
    ) -> DecoderState:
        move = Transition(f"{code:0{width}b}", actions, leaf, then)
        return DecoderState("eMAID", lambda: iter((move,)))

    identifier, text, end = _RELAXED
    return state(*identifier, state(*text, state(*end, ending, None, (iso2.EMAID._make, 2))))


def decode_fragment(octets: bytes, grammar: str) -> Fragment:
    """The element in a fragment, eMAID in its relaxed form. grammar: "xmldsig", "iso2" or "iso20". Raises EXIError."""
    reader = _FRAGMENT_READERS.get(grammar)
    if reader is None:
        raise EXIError(f"no grammar {grammar!r}")
    value, _, _ = _read(octets, reader.start)
    schema = _GRAMMARS[grammar]
    code = int.from_bytes(octets[1:3]) >> 16 - schema.width
    return Fragment(next(name for name, entry in schema.codes.items() if entry[0] == code), value)


def _fragment_reader(schema: _Schema) -> Automaton:
    codes = {name: f"{code:0{schema.width}b}" for name, (code, _) in schema.codes.items()}
    relaxed = codes.pop("eMAID", None)
    reader = Automaton(
        {code: Alternative(name, schema.codes[name][1]) for name, code in codes.items()}, schema.end, schema.width
    )
    if relaxed is not None and reader.ending is not None:
        emaid = Transition(relaxed, next=_relaxed_emaid(reader.ending))
        reader.start = DecoderState("", lambda: iter((*reader.openings(), emaid)))
    return reader


_FRAGMENT_READERS = {grammar: _fragment_reader(schema) for grammar, schema in _GRAMMARS.items()}


# --- splices ----------------------------------------------------------------------------------------------------------


def _replace(octets: bytes, at: int, count: int, new: bytes) -> bytes:
    """Put `new` in place of `count` octets at bit `at`. As whole octets go and come, the rest keeps its phase."""
    first = at >> 3
    last = first + count
    if not 0 <= at <= 8 * (len(octets) - count):
        raise CodecError("a position outside of the octets")
    shift = 8 - (at & 7)
    if shift == 8:
        return octets[:first] + new + octets[last:]
    size = len(new)
    bits = (octets[first] >> shift << 8 * size | int.from_bytes(new)) << shift | octets[last] & (1 << shift) - 1
    return octets[:first] + bits.to_bytes(size + 1) + octets[last + 1 :]


def replace_header_fields(
    octets: bytes,
    *,
    session_id: bytes | None = None,
    timestamp: int | None = None,
    remaining: int | None = None,
    remaining_from_end: int | None = None,
) -> bytes:
    """The same message with another SessionID and, in -20, TimeStamp and RemainingContractCertificateChains.

    None of these is covered by the signature. Nothing but the head of the message is read, unless `remaining` is given
    without `remaining_from_end` (see `ParsedMessage`): then the message is read to find its place. Raises EXIError.
    """
    if type(octets) is not bytes:
        raise TypeError(f"bytes expected, not {type(octets).__name__}")
    start = _SESSION_ID.get(octets[:2])
    if start is None:
        raise EXIError("not a CertificateInstallation message", 0)
    path = ""
    try:
        if session_id is not None:
            path = "Header/SessionID"
            if type(session_id) is not bytes or len(session_id) > MAX_SESSION_ID_BYTES:
                raise CodecError(f"at most {MAX_SESSION_ID_BYTES} octets expected")
            count = _session_end(octets, start) - start >> 3
            octets = _replace(octets, start, count, bytes((len(session_id),)) + session_id)
        if timestamp is not None:
            path = "Header/TimeStamp"
            if start == _SESSION_ID[b"\x80\x98"]:
                raise CodecError("there is none in ISO 15118-2")
            new, size = pack_unsigned_long(timestamp, UNSIGNED_LONG.limit)
            # End of SessionID, start and text of TimeStamp: one zero bit each.
            at = _session_end(octets, start) + 3
            if at > 8 * len(octets) or bytes_at(octets + PADDING, at - 3, 1)[0] >> 5:
                raise CodecError("written in a form that cannot be replaced")
            after = read_unsigned_long(octets + PADDING, at, 8 * len(octets), UNSIGNED_LONG.limit)[1]
            octets = _replace(octets, at, after - at >> 3, new.to_bytes(size >> 3))
        if remaining is not None:
            path = _REMAINING
            new, _ = pack_unsigned_byte(remaining, UNSIGNED_BYTE.limit)
            if remaining_from_end is None:
                remaining_from_end = parse(octets).remaining_from_end
            if octets[:2] != b"\x80\x20" or type(remaining_from_end) is not int:
                raise CodecError("there is none in this message")
            octets = _replace(octets, 8 * len(octets) - remaining_from_end, 1, bytes((new,)))
    except CodecError as flaw:
        raise EXIError(flaw.reason, None, path) from None
    return octets


def _session_end(octets: bytes, start: int) -> int:
    """Position behind SessionID, whose length stands at bit `start`, behind nothing but zero bits in this octet."""
    if len(octets) < 4:
        raise CodecError(TRUNCATED)
    count = (octets[2] << 8 | octets[3]) >> 24 - start
    if count > MAX_SESSION_ID_BYTES:
        raise CodecError("written in a form that cannot be replaced")
    return start + 8 + 8 * count
