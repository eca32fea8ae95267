"""EXI codec of CertificateInstallation messages, ISO 15118-2 and ISO 15118-20. No I/O, no dependency.

`decode` and `encode` are the two ends; `parse` also says where the signed parts stand in the octets, `fragment` and
its kin give what is digested and signed, `replace_header_fields` replaces what a pool replaces in stored responses.
The messages are the immutable classes of `iso2`, `iso20` and `xmldsig`.
"""

from ccp.errors import EXIError
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
    "namespace_of",
    "parse",
    "replace_header_fields",
    "signed_info_fragment",
    "to_json",
]
