"""Messages as XML documents in the namespaces of their schemas, and back.

The reader is expat of the standard library, driven by the same declarations as the codec, without a tree in between.
It stops at the first thing that the schema does not allow, so the declarations bound depth, elements and attributes of
a document, and `MAX_XML_BYTES` its size. Prefixes are resolved here: expat repeats the namespace in the name of each
attribute, so a long namespace and many attributes would take gigabytes. Document types (and with them entities),
processing instructions, encodings other than UTF-8 and UTF-16, and versions other than 1.0 are refused. Source: W3C XML
1.0, Namespaces in XML 1.0, and XML Schema for white space and the attributes of its instance namespace.
"""

from __future__ import annotations

import codecs
import functools
import re
from typing import Any, Final
from xml.parsers import expat

from ccp.errors import EXIError
from ccp.exi import iso2, iso20
from ccp.exi.bits import MAX_MESSAGE_BYTES, CodecError
from ccp.exi.codec import Message, encode
from ccp.exi.schema import ATTRIBUTE, END, TEXT, ElementType, Particle, SimpleType, simple_element
from ccp.exi.xmldsig import XML_NAMESPACE as DSIG

# Base64 makes four characters of three bytes, and UTF-16 two bytes of a character. That leaves room for white space.
MAX_XML_BYTES: Final = 4 * MAX_MESSAGE_BYTES

_XSI: Final = "http://www.w3.org/2001/XMLSchema-instance"
# Declarations in a document. Generators declare all namespaces of all schemas, some twenty.
_MAX_NAMESPACES: Final = 64
_XML: Final = "http://www.w3.org/XML/1998/namespace"
_XMLNS: Final = "http://www.w3.org/2000/xmlns/"
_ENCODINGS: Final = frozenset({"UTF-8", "UTF-16"})
_XML_WHITE_SPACE: Final = " \t\n\r"
_QUOTABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)
# Markup, and characters that a reader would change, in texts and in values of attributes.
_IN_TEXT: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})
_IN_ATTRIBUTES: Final = {**_IN_TEXT, **str.maketrans({"\n": "&#10;", "\t": "&#9;", '"': "&quot;"})}

_ROOTS: Final[dict[tuple[str, str], ElementType]] = {
    (element.namespace, name): element for module in (iso2, iso20) for name, (_, _, element) in module.DOCUMENTS.items()
}
_simple_element = functools.cache(simple_element)


def from_xml(data: bytes) -> Message:
    """Read a message from an XML document of at most `MAX_XML_BYTES` in UTF-8 or UTF-16.

    Prefixes are free. Comments, schema locations, and an `xsi:type` that names the declared type mean nothing. A header
    of ISO 15118-2 without SessionID has one of one zero byte. Raises EXIError with the element path, and with line and
    column.
    """
    if type(data) is not bytes:
        raise TypeError(f"bytes expected, not {type(data).__name__}")
    if len(data) > MAX_XML_BYTES:
        raise EXIError(f"an XML document of {len(data)} bytes where at most {MAX_XML_BYTES} are read")
    _check_utf16(data)
    message: Message = _Reader().read(data)
    encode(message)
    return message


def _check_utf16(data: bytes) -> None:
    """Refuse UTF-16 with half of a surrogate pair: expat joins it with the next character, which may be markup.

    Raises EXIError.
    """
    # A document of UTF-8 has no zero byte in its first characters, and expat takes a zero byte for the mark of UTF-16.
    if 0 not in data[:4]:
        return
    little = data.startswith(codecs.BOM_UTF16_LE) or data[1:2] == b"\0"
    try:
        data.decode("utf-16-le" if little else "utf-16-be")
    except UnicodeDecodeError as exc:
        raise EXIError(f"not UTF-16 at byte {exc.start + 1}") from None


class _Frame:
    """An open element.

    prefixes: those that it declares. index, count: see `ElementType.productions`. slots: values by particle and name of
    the alternative. text: content of an element with text.
    """

    __slots__ = ("count", "element", "index", "name", "prefixes", "slots", "text")

    def __init__(self, name: str, element: ElementType, prefixes: list[str]) -> None:
        self.name = name
        self.element = element
        self.prefixes = prefixes
        self.index = 0
        self.count = 0
        self.slots: dict[tuple[int, str], Any] = {}
        self.text = ""


class _Reader:
    """Reads one document."""

    def __init__(self) -> None:
        self._frames: list[_Frame] = []
        self._namespaces: dict[str, list[str]] = {"": [""], "xml": [_XML]}  # By prefix, of the open elements.
        self._declared = 0
        self._message: Any = None
        parser = self._parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.ordered_attributes = True
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._document_type
        parser.ProcessingInstructionHandler = self._instruction
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters

    def read(self, data: bytes) -> Any:
        """Return the message. Raises EXIError."""
        try:
            self._parser.Parse(data, True)
        except expat.ExpatError as exc:
            raise self._error(f"not well-formed XML ({expat.ErrorString(exc.code)})", exc.lineno, exc.offset) from None
        except CodecError as exc:
            raise self._error(
                exc.reason, self._parser.CurrentLineNumber, self._parser.CurrentColumnNumber, exc.names
            ) from None
        finally:
            del self._parser  # Its handlers refer to this object, and only the garbage collector would free both.
        return self._message

    def _error(self, reason: str, line: int, column: int, names: list[str] | tuple[str, ...] = ()) -> EXIError:
        path = "/".join((*(frame.name for frame in self._frames), *names))
        return EXIError(f"{reason} at line {line}, column {column + 1}", None, path)

    # --- handlers of expat; what they raise stops it ------------------------------------------------------------------

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if version != "1.0":
            raise CodecError("a version of XML other than 1.0")
        if encoding is not None and encoding.upper() not in _ENCODINGS:
            raise CodecError("an encoding other than UTF-8 and UTF-16")

    def _document_type(self, *_: object) -> None:
        raise CodecError("a document type declaration, which is not allowed")

    def _instruction(self, *_: object) -> None:
        raise CodecError("a processing instruction, which is not allowed")

    def _start(self, tag: str, attributes: list[str]) -> None:
        prefixes: list[str] = []
        given: list[tuple[str, str]] = []
        for name, value in zip(attributes[::2], attributes[1::2], strict=True):
            if name == "xmlns" or name.startswith("xmlns:"):
                prefixes.append(self._declare(name[6:], value, default=name == "xmlns"))
            else:
                given.append((name, value))
        namespace, name = self._resolve(tag, self._namespaces[""][-1])
        if self._frames:
            element = self._child(self._frames[-1], namespace, name)
        elif (root := _ROOTS.get((namespace, name))) is not None:
            element = root
        else:
            raise CodecError(_root_problem(name))
        frame = _Frame(name, element, prefixes)
        self._frames.append(frame)
        resolved: dict[tuple[str, str], str] = {}
        for name, value in given:
            key = self._resolve(name, "")
            if key in resolved:
                raise CodecError(f"the attribute {_quoted(key[1])} twice")
            resolved[key] = value
        self._read_attributes(frame, resolved)

    def _declare(self, prefix: str, uri: str, *, default: bool) -> str:
        """Bind a prefix, "" for the default namespace, and return it. Source: Namespaces in XML 1.0, clause 3."""
        self._declared += 1
        if self._declared > _MAX_NAMESPACES:
            raise CodecError(f"more than {_MAX_NAMESPACES} namespace declarations")
        reserved = prefix == "xmlns" or uri == _XMLNS or (prefix == "xml") != (uri == _XML)
        if reserved or ":" in prefix or (not default and not (prefix and uri)):
            raise CodecError("a namespace declaration that XML does not allow")
        self._namespaces.setdefault(prefix, []).append(uri)
        return prefix

    def _resolve(self, qualified: str, default: str) -> tuple[str, str]:
        """Namespace and local name. default: the namespace of a name without prefix."""
        prefix, colon, local = qualified.rpartition(":")
        if not colon:
            return default, local
        bound = self._namespaces.get(prefix)
        if not prefix or not bound:
            raise CodecError("a prefix without a namespace declaration")
        return bound[-1], local

    def _child(self, frame: _Frame, namespace: str, name: str) -> ElementType:
        """The type of an element inside of `frame`, whose position it moves."""
        element = frame.element
        while True:
            for place, alternative in element.productions(frame.index, frame.count):
                if alternative is None or alternative.name != name:
                    continue
                particle = element.particles[place]
                wanted = element.namespace if particle.namespace is None else particle.namespace
                if wanted != namespace:
                    raise CodecError(f"the element {name} in another namespace than {wanted}")
                if alternative.kind is None:
                    raise CodecError(f"the element {name} is not supported")
                items = frame.count if place == frame.index else 0
                if particle.max_items is not None and items >= particle.max_items:
                    raise CodecError(f"more than {items} {name}")
                frame.index, frame.count = (place, items + 1) if particle.max_items is not None else (place + 1, 0)
                kind = alternative.kind
                return _simple_element(kind) if isinstance(kind, SimpleType) else kind
            if not self._skip_absent(frame):
                raise CodecError(f"the element {_quoted(name)} where {_expected(element, frame)} is expected")

    def _skip_absent(self, frame: _Frame) -> bool:
        """Whether the next particle may be left out although it is mandatory; if so, it is."""
        particles = frame.element.particles
        if frame.index == len(particles) or particles[frame.index].if_absent is None:
            return False
        particle = particles[frame.index]
        frame.slots[frame.index, particle.alternatives[0].name] = particle.if_absent
        frame.index += 1
        return True

    def _read_attributes(self, frame: _Frame, given: dict[tuple[str, str], str]) -> None:
        """given: by namespace and local name."""
        element = frame.element
        if given:
            self._read_instance_attributes(element, given)
        namespace = _attribute_namespace(element)
        for particle in element.particles[frame.index :]:
            if particle.sort != ATTRIBUTE:
                break
            alternative = particle.alternatives[0]
            value = given.pop((namespace, alternative.name), None)
            if value is not None:
                assert isinstance(alternative.kind, SimpleType)
                frame.slots[frame.index, alternative.name] = _value(alternative.kind, value, alternative.name)
            elif not particle.optional:
                hint = f" in the namespace {element.namespace}" if ("", alternative.name) in given else ""
                raise CodecError(f"the attribute {alternative.name}{hint} is missing")
            frame.index += 1
        for _, name in given:
            raise CodecError(f"an unknown attribute {_quoted(name)}")

    def _read_instance_attributes(self, element: ElementType, given: dict[tuple[str, str], str]) -> None:
        """Remove the attributes of the schema instance namespace that mean nothing.

        Source: W3C XML Schema Part 1, clause 2.6.
        """
        for name in ("schemaLocation", "noNamespaceSchemaLocation"):
            given.pop((_XSI, name), None)
        named = given.pop((_XSI, "type"), None)
        if named is None:
            return
        prefix, _, local = named.strip(_XML_WHITE_SPACE).rpartition(":")
        bound = self._namespaces.get(prefix)
        if f"{{{bound[-1] if bound else ''}}}{local}" != element.name or not local:
            raise CodecError("an xsi:type that is not the declared type of the element")

    def _characters(self, text: str) -> None:
        frame = self._frames[-1]
        particles = frame.element.particles
        if frame.index < len(particles) and particles[frame.index].sort == TEXT:
            frame.text += text
        elif text.strip(_XML_WHITE_SPACE):
            raise CodecError("text between elements")

    def _end(self, tag: str) -> None:
        frame = self._frames[-1]
        element = frame.element
        if frame.index < len(element.particles) and element.particles[frame.index].sort == TEXT:
            alternative = element.particles[frame.index].alternatives[0]
            assert isinstance(alternative.kind, SimpleType)
            frame.slots[frame.index, alternative.name] = _value(alternative.kind, frame.text)
        else:
            while not any(place == END for place, _ in element.productions(frame.index, frame.count)):
                if not self._skip_absent(frame):
                    raise CodecError(f"the element {_expected(element, frame)} is missing")
        value = element.join([_slot(frame, *slot) for slot in element.slots])
        self._frames.pop()
        for prefix in frame.prefixes:
            self._namespaces[prefix].pop()
        if not self._frames:
            self._message = value
            return
        parent = self._frames[-1]
        # A list stays at its particle, after any other element the position is behind it.
        place = parent.index if parent.count else parent.index - 1
        if parent.count:
            parent.slots.setdefault((place, frame.name), []).append(value)
        else:
            parent.slots[place, frame.name] = value


def _attribute_namespace(element: ElementType) -> str:
    """The namespace of the attributes of an element. Those of XML Signature have none."""
    return "" if element.namespace == DSIG else element.namespace


def _slot(frame: _Frame, index: int, particle: Particle, alternative: Any) -> Any:
    found = frame.slots.get((index, alternative.name))
    return found if particle.max_items is None else tuple(found or ())


def _value(kind: SimpleType, text: str, *names: str) -> Any:
    """The value of a text. names: of the attribute. Raises CodecError."""
    try:
        value = kind.from_text(text)
        kind.pack(value, kind.limit)
    except CodecError as error:
        error.names.extend(names)
        raise
    return value


def _expected(element: ElementType, frame: _Frame) -> str:
    """What may come next, for an error."""
    names = dict.fromkeys(
        "the end" if alternative is None else "text" if element.particles[place].sort == TEXT else alternative.name
        for place, alternative in element.productions(frame.index, frame.count)
        if alternative is None or alternative.kind is not None
    )
    return " or ".join(names)


def _root_problem(name: str) -> str:
    for known, root in _ROOTS:
        if root == name:
            return f"the element {name} in another namespace than {known}"
    return f"the element {_quoted(name)} is none of the messages {', '.join(name for _, name in _ROOTS)}"


def _quoted(name: str) -> str:
    """A name from a document, for an error: it may be long, and have characters that terminals interpret."""
    return name if _QUOTABLE.fullmatch(name) else "whose name is not quoted here"


# --- writing ----------------------------------------------------------------------------------------------------------


def to_xml(message: Message, *, pretty: bool = False) -> bytes:
    """Write a message as an XML document in UTF-8.

    pretty: with one element a line, indented. Raises EXIError with the element path if the message breaks the schema.
    """
    encode(message)
    module = iso2 if isinstance(message, iso2.V2G_Message) else iso20
    prefixes = {uri: prefix for prefix, uri in module.XML_NAMESPACES.items()}
    name = type(message).__name__
    element = module.DOCUMENTS[name][2]
    declarations = "".join(f' xmlns:{prefix}="{uri}"' for uri, prefix in prefixes.items())
    out = ['<?xml version="1.0" encoding="UTF-8"?>']
    _write(
        out, element, message, f"{prefixes[element.namespace]}:{name}", declarations, prefixes, "\n" if pretty else ""
    )
    if pretty:
        out.append("\n")
    return "".join(out).encode("utf-8")


def _write(
    out: list[str], element: ElementType, value: Any, tag: str, attributes: str, prefixes: dict[str, str], line: str
) -> None:
    """Append an element. tag: with prefix. line: line break and indentation before a tag; empty for none."""
    inner = line and line + "  "
    children: list[str] = []
    text = False
    for (_, particle, alternative), slot in zip(element.slots, element.split(value), strict=True):
        kind = alternative.kind
        if particle.sort == TEXT:
            assert isinstance(kind, SimpleType)
            children.append(str(kind.to_json(slot)).translate(_IN_TEXT))
            text = True
        elif slot is None:
            continue
        elif particle.sort == ATTRIBUTE:
            assert isinstance(kind, SimpleType)
            namespace = _attribute_namespace(element)
            qualified = f"{prefixes[namespace]}:" if namespace else ""
            attributes += f' {qualified}{alternative.name}="{str(kind.to_json(slot)).translate(_IN_ATTRIBUTES)}"'
        else:
            assert kind is not None
            inside = _simple_element(kind) if isinstance(kind, SimpleType) else kind
            prefix = prefixes[element.namespace if particle.namespace is None else particle.namespace]
            for item in (slot,) if particle.max_items is None else slot:
                _write(children, inside, item, f"{prefix}:{alternative.name}", "", prefixes, inner)
    if not children:
        out.append(f"{line}<{tag}{attributes}/>")
    else:
        out += [f"{line}<{tag}{attributes}>", *children, f"{'' if text else line}</{tag}>"]
