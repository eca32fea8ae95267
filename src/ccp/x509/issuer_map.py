"""Settings by issuer, matched on the issuer's name and public key.

    lists = IssuerMap({"64 hexadecimal digits": "http://…/a.crl", "Example Sub-CA 2": "http://…/b.crl"})
    lists.resolve(certificate)      # a certificate with a configured fingerprint
    lists.of(issuer)

A fingerprint identifies bytes, and an issuer has many certificates: renewed ones, and twins, which anyone can make,
because (r, s) and (r, n-s) are both valid signatures of the same certificate. So a fingerprint applies to every
certificate with the same name and key, as soon as a certificate with that fingerprint is known. Until then it is
unresolved, and requests that could depend on it are refused. A common name needs no resolving, because every
certificate of the issuer has it. See decision 0013.
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
    """Parse a fingerprint (to lower case without colons), or a common name. Raises ValueError.

    Hexadecimal digits of another length are refused, because they are a mistyped fingerprint and not a common name.
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
    """Values by issuer. Only `resolve` changes it: it adds the issuer that a fingerprint means."""

    def __init__(self, entries: Mapping[str, T]) -> None:
        """entries: by SHA-256 fingerprint or common name. Raises ValueError."""
        parsed = {parse_issuer(text): value for text, value in entries.items()}
        self._by_fingerprint = {text: value for text, value in parsed.items() if _FINGERPRINT.fullmatch(text)}
        self._by_name = {fold(text): value for text, value in parsed.items() if text not in self._by_fingerprint}
        self._by_issuer: dict[
            str, T
        ] = {}  # By `Certificate.canonical_issuer_key_id` and by `Certificate.issuer_key_id`.
        self.unresolved = frozenset(self._by_fingerprint)
        """Fingerprints that are not yet resolved to a CA."""

    def __bool__(self) -> bool:
        return bool(self._by_fingerprint or self._by_name)

    def resolve(self, certificate: Certificate) -> bool:
        """Resolve the fingerprint of a certificate. Returns whether it is configured. Raises ChainError."""
        if certificate.fingerprint not in self._by_fingerprint:
            return False
        value = self._by_fingerprint[certificate.fingerprint]
        self._by_issuer.setdefault(certificate.canonical_issuer_key_id, value)
        self._by_issuer.setdefault(certificate.issuer_key_id, value)
        self.unresolved -= {certificate.fingerprint}
        return True

    def of(self, issuer: Certificate) -> T | None:
        """The value for an issuer, None if there is none. Raises ChainError."""
        return self.find(issuer.issuer_key_id, (issuer.fingerprint, issuer.subject_cn, issuer.canonical_issuer_key_id))

    def find(self, issuer_id: str, names: tuple[str, ...]) -> T | None:
        """The value for the issuer of a `CertificateRef`.

        names: fingerprint, common name and canonical issuer key id; rows of earlier releases lack the last or all.
        """
        for name in names:
            if name in self._by_fingerprint:
                return self._by_fingerprint[name]
            if name in self._by_issuer:
                return self._by_issuer[name]
        if issuer_id in self._by_issuer:
            return self._by_issuer[issuer_id]
        return self._by_name.get(fold(names[1])) if self._by_name and len(names) > 1 else None
