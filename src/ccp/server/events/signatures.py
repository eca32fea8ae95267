"""Signature headers of a webhook request: HMAC-SHA256 over the body, keyed with the webhook's secret in UTF-8. Pure.

Three headers have a published name and one value. While a secret is being replaced, several secrets are valid, and
`SIGNATURES` has one value for each of them. A receiver that knows any of them finds its value there.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Final

from ccp.server.domain.subscriptions import SignatureFormat

SIGNATURES: Final = "X-Operator-Signatures"
"""Header with the signatures of all valid secrets, newest first, separated by a comma and a blank."""


def build_headers(
    body: bytes, secrets: Sequence[str], signature_format: SignatureFormat, signing: str | None = None
) -> dict[str, str]:
    """Return the headers of a request.

    secrets: all that are valid, newest first. signing: the one for the headers with a single value; None: the newest.
    Source: OPNC and OPCP, webhook.payload.
    """
    bare = hmac.digest((secrets[0] if signing is None else signing).encode(), body, "sha256").hex()
    every = [_format(hmac.digest(each.encode(), body, "sha256").hex(), signature_format) for each in secrets]
    return {
        "Content-Type": "application/json",
        "X-Operator-Signature": _format(bare, signature_format),
        "payload-signature": bare,
        "X-Hubject-Signature": bare,
        SIGNATURES: ", ".join(every),
    }


def _format(signature: str, signature_format: SignatureFormat) -> str:
    return signature if signature_format is SignatureFormat.BARE else f"sha256={signature}"
