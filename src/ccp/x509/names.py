"""Distinguished names as text: how we write them, and what vehicles send.

For people and for finding things; what is compared as a proof of anything is `ccp.x509.canonical_names`, never this
text.
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
# An attribute type and its "=", at the start or behind a separator that is not escaped. Splitting here and not at the
# separators keeps a value whole that contains one ("O=Example, Inc.").
_ASSIGNMENT: Final = re.compile(
    r"(?:^|(?<!\\)[,;+/])\s*(?:OID\.)?([A-Z][A-Z0-9]*|[0-9]+(?:\.[0-9]+)+)\s*=", re.IGNORECASE | re.ASCII
)
_REPR: Final = re.compile(r"\s*<Name\((.*)\)>\s*", re.DOTALL)
_LONGEST_DN: Final = 1024  # The reader of root lists takes no longer name; a regular expression should not either.


def parse_dn(text: str) -> frozenset[tuple[str, str]]:
    """The attributes of a name that somebody wrote as text, for matching only: never a proof of anything.

    Takes what cars are known to send: RFC 4514 in any order with or without blanks, the one-line forms of OpenSSL and a
    Python repr. Types come back in their usual capitals, values with escapes removed and blanks collapsed. Types that
    are not known are left out. Never raises; what is not recognised gives the empty set.
    """
    text = text[:_LONGEST_DN]
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
    """Whether free text such as a car's X509IssuerName can mean this name: a help to find it, never a proof.

    Every attribute that was recognised in the text must be in the name, a common name among them if the name has one.
    Case and blanks do not count (RFC 5280 clause 7.1).
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
    """What `parse_dn` finds, its values for comparison without regard to case.

    Vehicles of one make list the same few roots, and each of our own roots is compared with all of them.
    """
    return _folded_text(text[:_LONGEST_DN])  # No more is read; a message may have a name of its own length.


@lru_cache(maxsize=512)
def _folded_text(text: str) -> frozenset[tuple[str, str]]:
    return _folded(parse_dn(text))


def _folded(pairs: Iterable[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    return frozenset((kind, value.casefold()) for kind, value in pairs)


def format_dn(name: x509.Name) -> str:
    """`CN=…, DC=…, O=…, OU=…, C=…`, absent parts left out, escaped as in RFC 4514."""
    return ", ".join(
        f"{short}={_escape(str(attribute.value))}"
        for short, oid in _DN_ORDER
        for attribute in name.get_attributes_for_oid(oid)
    )


def _escape(value: str) -> str:
    return re.sub(r'([,+"\\<>;])', r"\\\1", value)


_OCTETS: Final = re.compile(r"(?:\\[0-9A-Fa-f]{2})+")


def _unescape(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    if "\\" in value:
        value = _OCTETS.sub(lambda run: bytes.fromhex(run[0].replace("\\", "")).decode("utf-8", "replace"), value)
        value = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
    return " ".join(value.split())
