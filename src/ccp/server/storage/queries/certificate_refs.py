"""Certificate references of a contract's row as JSON text."""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from ccp.x509.revocation_evidence import CertificateRef


def dump_refs(refs: Iterable[CertificateRef]) -> str:
    """References as JSON, without duplicates.

    `[[issuer, serial number in hex, [CRL URL, …] or null, names of the issuer], …]`
    """
    rows = [[ref.issuer, f"{ref.serial:x}", ref.crls, ref.names] for ref in dict.fromkeys(refs)]
    return orjson.dumps(rows).decode()


def load_refs(text: str) -> tuple[CertificateRef, ...]:
    """The references of a row. Rows of earlier releases lack the names of the issuer, or one of them."""
    return tuple(
        [
            CertificateRef(
                issuer, int(serial, 16), None if crls is None else tuple(crls), tuple(names[0]) if names else ()
            )
            for issuer, serial, crls, *names in orjson.loads(text)
        ]
    )
