"""Distinguished names as text: formatting, and parsing of what vehicles send.

For display and lookup only. Names that prove something are compared with `ccp.x509.canonical_names`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

_DN_ORDER: Final = (
    ("CN", NameOID.COMMON_NAME),
    ("DC", NameOID.DOMAIN_COMPONENT),
    ("O", NameOID.ORGANIZATION_NAME),
    ("OU", NameOID.ORGANIZATIONAL_UNIT_NAME),
    ("C", NameOID.COUNTRY_NAME),
)
_TYPE_OF_OID: Final = {
    **{oid.dotted_string: short for short, oid in _DN_ORDER},
    NameOID.STATE_OR_PROVINCE_NAME.dotted_string: "ST",
    NameOID.LOCALITY_NAME.dotted_string: "L",
    NameOID.EMAIL_ADDRESS.dotted_string: "EMAIL",
    NameOID.SERIAL_NUMBER.dotted_string: "SERIALNUMBER",
}
_LONG_NAMES: Final = (
    "COMMONNAME=CN DOMAINCOMPONENT=DC ORGANIZATION=O ORGANIZATIONNAME=O ORGANIZATIONALUNIT=OU COUNTRY=C COUNTRYNAME=C "
    "ORGANIZATIONALUNITNAME=OU STATEORPROVINCENAME=ST S=ST SP=ST LOCALITYNAME=L E=EMAIL EMAILADDRESS=EMAIL"
)
_TYPE_OF_NAME: Final = {
    **_TYPE_OF_OID,
    **{short: short for short in _TYPE_OF_OID.values()},
    **dict(pair.split("=") for pair in _LONG_NAMES.split()),
}
# An attribute type and "=", at the start or after a separator that is not escaped. Splitting here and not at separators
# keeps values that contain one ("O=Example, Inc.").
_ASSIGNMENT: Final = re.compile(
    r"(?:^|(?<!\\)[,;+/])\s*(?:OID\.)?([A-Z][A-Z0-9]*|[0-9]+(?:\.[0-9]+)+)\s*=", re.IGNORECASE | re.ASCII
)
_REPR: Final = re.compile(r"\s*<Name\((.*)\)>\s*", re.DOTALL)
_MAX_DN_LENGTH: Final = 1024  # The limit of the codec for names in root lists; it bounds the regular expression too.


def parse_dn(text: str) -> frozenset[tuple[str, str]]:
    """Parse a distinguished name in text form, for matching only.

    Accepts what vehicles send: RFC 4514 in any order with or without blanks, the one-line forms of OpenSSL, and a
    Python repr. Returns pairs of type (upper case) and value (escapes removed, blanks collapsed). Unknown types are
    omitted. Never raises; an unrecognised text gives the empty set.
    """
    text = text[:_MAX_DN_LENGTH]
    if inside := _REPR.fullmatch(text):
        text = inside[1]
    found = list(_ASSIGNMENT.finditer(text))
    pairs = set()
    ends = [*(following.start() for following in found[1:]), len(text)]
    for assignment, end in zip(found, ends, strict=False):
        kind = _TYPE_OF_NAME.get(assignment[1].upper())
        value = _unescape(text[assignment.end() : end].strip())
        if kind and value:
            pairs.add((kind, value))
    return frozenset(pairs)


def names_match(text: str, name: x509.Name) -> bool:
    """Whether a text such as a vehicle's X509IssuerName can mean this name. For lookup, not a proof.

    Every attribute recognised in the text must be in the name, the common name among them if the name has one. Case and
    blanks are ignored (RFC 5280 clause 7.1).
    """
    sent = comparable_attributes(text)
    known = _folded(
        (_TYPE_OF_OID[attribute.oid.dotted_string], " ".join(str(attribute.value).split()))
        for attribute in name
        if attribute.oid.dotted_string in _TYPE_OF_OID
    )
    needed = {pair for pair in known if pair[0] == "CN"}
    return bool(sent) and needed <= sent <= known


def comparable_attributes(text: str) -> frozenset[tuple[str, str]]:
    """The result of `parse_dn` with case-folded values. Cached, because vehicles of one make list the same few
    roots."""
    return _folded_text(text[:_MAX_DN_LENGTH])  # Bounds the keys of the cache.


@lru_cache(maxsize=512)
def _folded_text(text: str) -> frozenset[tuple[str, str]]:
    return _folded(parse_dn(text))


def _folded(pairs: Iterable[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    return frozenset((kind, value.casefold()) for kind, value in pairs)


def format_dn(name: x509.Name) -> str:
    """Format a name as `CN=…, DC=…, O=…, OU=…, C=…` without absent parts, escaped as in RFC 4514."""
    return ", ".join(
        f"{short}={_escape(str(attribute.value))}"
        for short, oid in _DN_ORDER
        for attribute in name.get_attributes_for_oid(oid)
    )


def _escape(value: str) -> str:
    return re.sub(r'([,+"\\<>;])', r"\\\1", value)


_ESCAPED_BYTES: Final = re.compile(r"(?:\\[0-9A-Fa-f]{2})+")


def _unescape(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    if "\\" in value:
        value = _ESCAPED_BYTES.sub(
            lambda run: bytes.fromhex(run[0].replace("\\", "")).decode("utf-8", "replace"), value
        )
        value = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
    return " ".join(value.split())
