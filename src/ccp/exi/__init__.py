"""EXI codec for CertificateInstallation messages of ISO 15118-2 and ISO 15118-20.

Decoding gives an immutable message of the classes in `iso2`, `iso20` and `xmldsig`, or raises EXIError with the bit
offset and the element path. No I/O, and no dependency beside the standard library.

    >>> from ccp import exi
    >>> message = exi.decode(data)
    >>> exi.namespace_of(message)
    'urn:iso:15118:2:2013:MsgDef'
    >>> exi.encode(message) == data
    True
    >>> exi.from_json(exi.to_json(message)) == message
    True
    >>> exi.from_xml(exi.to_xml(message)) == message
    True
    >>> exi.decode(data[:100])
    Traceback (most recent call last):
    ccp.errors.EXIError: the stream ends too early at bit 800 in ...

`parse` also returns the positions of the elements that a signature covers. `fragment`, `signed_info_fragment` and the
encoders of fragments give the bytes that are digested and signed. `replace_header_fields` replaces the session id and
other fields that no signature covers, without decoding the rest.
"""

from ccp.errors import EXIError
from ccp.exi.base64_text import message_bytes
from ccp.exi.codec import (
    ISO2,
    ISO20,
    Fragment,
    Message,
    ParsedMessage,
    SignedElement,
    decode,
    decode_fragment,
    emaid_fragment,
    encode,
    encode_fragment,
    encode_signed_info,
    fragment,
    namespace_of,
    parse,
    replace_header_fields,
    signed_info_fragment,
)
from ccp.exi.json import from_json, to_json
from ccp.exi.xml import from_xml, to_xml

__all__ = [
    "ISO2",
    "ISO20",
    "EXIError",
    "Fragment",
    "Message",
    "ParsedMessage",
    "SignedElement",
    "decode",
    "decode_fragment",
    "emaid_fragment",
    "encode",
    "encode_fragment",
    "encode_signed_info",
    "fragment",
    "from_json",
    "from_xml",
    "message_bytes",
    "namespace_of",
    "parse",
    "replace_header_fields",
    "signed_info_fragment",
    "to_json",
    "to_xml",
]
