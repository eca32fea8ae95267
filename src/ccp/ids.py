"""Identifiers of the ecosystem, parsed into canonical form.

Each type is a `str` created by `parse`, so an instance is always well-formed and canonical. Patterns are ASCII and
matched before any change of case, because Unicode case mapping would accept other letters.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final, Self

from ccp.errors import FieldError

EMAID_PATTERN: Final = r"^[A-Za-z]{2}[-]?\w{3}[-]?\w{9,28}[-]?(\w{1})?$"
PCID_PATTERN: Final = r"^[a-zA-Z0-9]{17,18}$"
FINGERPRINT_PATTERN: Final = r"^[0-9a-fA-F]{64}$"

PLACEHOLDER_EMAID: Final = "ZZZZZ000000000"
"""Placeholder for a mandatory EMAID without value: in a negative message, and in the item that contains it."""


class Namespace(StrEnum):
    """The message definition namespace, which identifies the edition of ISO 15118."""

    ISO2 = "urn:iso:15118:2:2013:MsgDef"
    ISO20 = "urn:iso:15118:20:2020:MsgDef"

    @classmethod
    def parse(cls, text: str, field: str = "xsdMsgDefNamespace") -> Namespace:
        """Read a canonical namespace or one of its known aliases. Raises FieldError."""
        namespace = _NAMESPACES.get(text)
        if namespace is None:
            raise FieldError(f"{field} : must be one of {', '.join(Namespace)}")
        return namespace


_NAMESPACES: Final = {
    **{namespace.value: namespace for namespace in Namespace},
    "urn:iso:15118:20:2022:MsgDef": Namespace.ISO20,
    "urn:iso:std:iso:15118:-20:CommonMessages": Namespace.ISO20,
}


class _Id(str):
    """A string with a pattern. field: its name in the API."""

    __slots__ = ()
    field: str
    pattern: str
    _match: re.Pattern[str]

    @classmethod
    def parse(cls, text: str, field: str | None = None) -> Self:
        """Parse the id. field: name for the error, by default that of the API. Raises FieldError."""
        if not cls._match.fullmatch(text):
            raise FieldError(f'{field or cls.field} : must match "{cls.pattern}"')
        return cls(cls._canonical(text))

    @classmethod
    def _canonical(cls, text: str) -> str:
        return text.upper()


class ProviderId(_Id):
    """Owner of an EMAID: country code and provider id, five characters, upper case."""

    __slots__ = ()
    field = "providerId"
    pattern = r"^[A-Za-z]{2}[-]?\w{3}$"
    _match = re.compile(r"[A-Za-z]{2}-?\w{3}", re.ASCII)

    @classmethod
    def _canonical(cls, text: str) -> str:
        return text.replace("-", "").upper()


class OperatorId(ProviderId):
    """A charge point operator: country code and operator id, five characters, upper case."""

    __slots__ = ()
    field = "operatorId"
    pattern = r"^[A-Za-z]{2}[*-]?\w{3}$"
    _match = re.compile(r"[A-Za-z]{2}[*-]?\w{3}", re.ASCII)

    @classmethod
    def _canonical(cls, text: str) -> str:
        return text.replace("-", "").replace("*", "").upper()


class WMI(_Id):
    """World manufacturer identifier, the owner of a PCID: three characters, upper case."""

    __slots__ = ()
    field = "wmi"
    pattern = r"^[a-zA-Z0-9]{3}$"
    _match = re.compile(r"[a-zA-Z0-9]{3}", re.ASCII)


class EMAID(_Id):
    """E-mobility account identifier: a contract. Canonical without hyphens and check digit, in upper case.

    Source: ISO 15118-2 Annex H; OPNC emaidParam (14 to 36 characters as sent).
    """

    __slots__ = ()
    field = "emaid"
    pattern = EMAID_PATTERN
    # The pattern alone allows 14 to 46 characters; the API limits the length to 36.
    _match = re.compile(r"(?=.{14,36}\Z)[A-Za-z]{2}-?\w{3}-?\w{9,28}-?\w?", re.ASCII)

    @classmethod
    def _canonical(cls, text: str) -> str:
        emaid = text.replace("-", "").upper()
        if len(emaid) == 15 and "_" not in emaid and check_digit(emaid[:14]) == emaid[14]:
            return emaid[:14]
        return emaid

    @property
    def provider(self) -> ProviderId:
        """The eMSP: country code and provider code, five characters."""
        return ProviderId(self[:5])


class PCID(_Id):
    """Provisioning certificate identifier: a vehicle. 17 or 18 characters, upper case; the two lengths never match."""

    __slots__ = ()
    field = "pcid"
    pattern = PCID_PATTERN
    _match = re.compile(r"[a-zA-Z0-9]{17,18}", re.ASCII)

    @property
    def wmi(self) -> WMI:
        """The manufacturer: the first three characters."""
        return WMI(self[:3])


class Fingerprint(_Id):
    """SHA-256 over a certificate's DER: 64 hexadecimal digits, lower case."""

    __slots__ = ()
    field = "cpsV2GRootCertificateFingerprint"
    pattern = FINGERPRINT_PATTERN
    _match = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)

    @classmethod
    def _canonical(cls, text: str) -> str:
        return text.lower()


_PAIRS: Final = re.compile(
    r"(?:SHA-?256(?: Fingerprint)?=)?((?:[0-9A-F]{2}:){31}[0-9A-F]{2})", re.IGNORECASE | re.ASCII
)


def parse_fingerprint(text: str, field: str = "fingerprint") -> Fingerprint:
    """Parse a fingerprint as operators write it: 64 hexadecimal digits, or 32 pairs with colons as OpenSSL prints them.

    Raises FieldError.
    """
    pairs = _PAIRS.fullmatch(text.strip())
    return Fingerprint.parse(pairs[1].replace(":", "") if pairs else text, field)


def mask_ids(text: str) -> str:
    """Truncate every long id in a text to its owner's part, so that the log does not identify drivers and vehicles."""
    return _LONG_ID.sub(lambda found: found[0][:5] + "…", text)


_LONG_ID: Final = re.compile(r"\w{14,}")


def parse_session_id(text: str) -> bytes:
    """Parse a session id from hexadecimal: zero to eight bytes. Raises FieldError."""
    if not _SESSION_ID.fullmatch(text):
        raise FieldError("sessionID : must be hexadecimal, at most 16 digits and an even number of them")
    return bytes.fromhex(text)


_SESSION_ID: Final = re.compile(r"([0-9a-fA-F]{2}){0,8}", re.ASCII)

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_VALUE: Final = {character: value for value, character in enumerate(_ALPHABET)}


def check_digit(emaid: str) -> str:
    """The check digit of an EMAID.

    emaid: the first 14 characters, upper-case letters and digits.
    Each character is a pair of bits (which ninth of the alphabet) and a pair of ternary digits (position in that
    ninth). Both pairs are row vectors; the vector at position i is multiplied by the i-th power of a matrix, over GF(2)
    and GF(3), and the fifteenth character makes the sums zero. Summing from the last position takes one multiplication
    a step. Source: ISO 15118-2 Annex H.
    """
    q1 = q2 = r1 = r2 = 0
    for character in reversed(emaid):
        ninth, place = divmod(_VALUE[character], 9)
        q1, q2 = q1 ^ (ninth >> 1), q2 ^ (ninth & 1)
        r1, r2 = r1 + place // 3, r2 + place % 3
        q1, q2 = q2, q1 ^ q2  # times [[0, 1], [1, 1]] over GF(2), whose fifteenth power is the identity
        r1, r2 = r2 % 3, (r1 + 2 * r2) % 3  # times [[0, 1], [1, 2]] over GF(3)
    r1, r2 = 2 * r2 % 3, (2 * r1 + r2) % 3  # times the negative inverse of that matrix's fifteenth power
    return _ALPHABET[9 * (2 * q1 + q2) + 3 * r1 + r2]
