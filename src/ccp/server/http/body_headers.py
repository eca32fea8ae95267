"""Checks of the headers that describe a body."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from ccp.schemas import suggestions


def check_content_encoding(headers: Headers) -> None:
    """Reject a compressed body with 415. Source: RFC 9110 clauses 8.4 and 15.5.16. Raises HTTPException."""
    for name, value in headers.raw:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            coding = value.decode("latin-1")[:40]
            sentence = f"The body has the content coding {suggestions.quotable(coding)}; it must be sent without."
            raise HTTPException(415, sentence, headers={"Accept-Encoding": "identity"})
