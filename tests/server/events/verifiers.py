"""How receivers verify the signature of an event: each published way, and the header with all signatures."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import TypeAlias

from tests.server.events.receiver import Sent

Verifier: TypeAlias = Callable[[Sent, str], bool]


def _expected(sent: Sent, secret: str) -> str:
    return hmac.new(secret.encode("utf-8"), sent.body, hashlib.sha256).hexdigest()


def java_style(sent: Sent, secret: str) -> bool:
    """Compare with `sha256=` and the hexadecimal, as the published Java sample does."""
    return hmac.compare_digest(sent.headers["x-operator-signature"], "sha256=" + _expected(sent, secret))


def go_style(sent: Sent, secret: str) -> bool:
    """Compare with the bare hexadecimal, as the published Go sample does."""
    return hmac.compare_digest(sent.headers["x-operator-signature"], _expected(sent, secret))


def payload_signature(sent: Sent, secret: str) -> bool:
    """Compare the header that both dialects name for events of contracts."""
    return hmac.compare_digest(sent.headers["payload-signature"], _expected(sent, secret))


def hubject_signature(sent: Sent, secret: str) -> bool:
    """Compare the header of OPCP."""
    return hmac.compare_digest(sent.headers["x-hubject-signature"], _expected(sent, secret))


def any_signature(sent: Sent, secret: str) -> bool:
    """Find the own signature among those of all valid secrets, in either form."""
    given = [each.strip().removeprefix("sha256=") for each in sent.headers["x-operator-signatures"].split(",")]
    return any(hmac.compare_digest(each, _expected(sent, secret)) for each in given)


class Verifying:
    """A receiver with one secret, in the order of what it accepted. secret: may be changed at any time."""

    def __init__(self, verifier: Verifier, secret: str, refusal: int = 401) -> None:
        self.verifier = verifier
        self.secret = secret
        self.refusal = refusal
        self.accepted: list[Sent] = []
        self.refused: list[Sent] = []

    def __call__(self, sent: Sent) -> int:
        """Return the status to answer."""
        if self.verifier(sent, self.secret):
            self.accepted.append(sent)
            return 200
        self.refused.append(sent)
        return self.refusal
