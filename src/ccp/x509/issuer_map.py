"""Settings by issuer, matched on the issuer's name and public key.

    lists = IssuerMap({"64 hexadecimal digits": "http://…/a.crl", "Example Sub-CA 2": "http://…/b.crl"})
    lists.resolve(certificate)      # this is the CA that a fingerprint means
    lists.of(issuer)

A fingerprint identifies bytes, and an issuer has many certificates: renewed ones, and twins, which need no key to make,
since (r, s) and (r, n-s) are both signatures of the same certificate. So a fingerprint counts for every certificate
with the same name and key, as soon as a certificate with that fingerprint is known. Until then it is unresolved, and
requests that could depend on it are refused. A common name needs no resolving; every certificate of the issuer has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Generic, TypeVar

from ccp.x509.canonical_names import fold
from ccp.x509.certificates import Certificate

T = TypeVar("T")

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_HEXADECIMAL = re.compile(r"[0-9A-Fa-f]{2}(:?[0-9A-Fa-f]{2}){15,}")


def parse_issuer(text: str) -> str:
    """A fingerprint in lower case without colons, or a common name as it is. Raises ValueError.

    A row of hexadecimal digits that is no SHA-256 would be a common name that no issuer has.
    """
    text = text.strip()
    if not text:
        raise ValueError("an issuer is a SHA-256 fingerprint or a common name")
    if not _HEXADECIMAL.fullmatch(text):
        return text
    digits = text.replace(":", "").lower()
    if not _FINGERPRINT.fullmatch(digits):
        raise ValueError(f"{text!r} is not a SHA-256 fingerprint, which has 64 hexadecimal digits")
    return digits


class IssuerMap(Generic[T]):
    """Values by issuer. `resolve` adds what a fingerprint means; nothing else ever changes."""

    def __init__(self, entries: Mapping[str, T]) -> None:
        """entries: by SHA-256 fingerprint or common name. Raises ValueError."""
        parsed = {parse_issuer(text): value for text, value in entries.items()}
        self._by_fingerprint = {text: value for text, value in parsed.items() if _FINGERPRINT.fullmatch(text)}
        self._by_name = {fold(text): value for text, value in parsed.items() if text not in self._by_fingerprint}
        self._by_issuer: dict[
            str, T
        ] = {}  # By `Certificate.canonical_issuer_key_id` and by `Certificate.issuer_key_id`.
        self.unresolved = frozenset(self._by_fingerprint)
        """Fingerprints that are not resolved to a CA yet."""

    def __bool__(self) -> bool:
        return bool(self._by_fingerprint or self._by_name)

    def resolve(self, certificate: Certificate) -> bool:
        """Take note of a certificate that may be one of those configured. Returns whether it is. Raises ChainError."""
        if certificate.fingerprint not in self._by_fingerprint:
            return False
        value = self._by_fingerprint[certificate.fingerprint]
        self._by_issuer.setdefault(certificate.canonical_issuer_key_id, value)
        self._by_issuer.setdefault(certificate.issuer_key_id, value)
        self.unresolved -= {certificate.fingerprint}
        return True

    def of(self, issuer: Certificate) -> T | None:
        """The value for an issuer. Raises ChainError."""
        return self.find(issuer.issuer_key_id, (issuer.fingerprint, issuer.subject_cn, issuer.canonical_issuer_key_id))

    def find(self, issuer_id: str, names: tuple[str, ...]) -> T | None:
        """The same from what a contract's row says of an issuer.

        names: fingerprint, common name and identity; rows of earlier releases have no identity, or nothing.
        """
        for name in names:
            if name in self._by_fingerprint:
                return self._by_fingerprint[name]
            if name in self._by_issuer:
                return self._by_issuer[name]
        if issuer_id in self._by_issuer:
            return self._by_issuer[issuer_id]
        return self._by_name.get(fold(names[1])) if self._by_name and len(names) > 1 else None
