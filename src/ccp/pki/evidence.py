"""Revocation evidence: what a chain is checked against besides signatures and time.

The pool asks through `Revocation`, on publishing and on delivery. This release has only `Unchecked`, which says so;
evidence from CRLs and OCSP responders comes in behind the same question.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from ccp.pki.paths import VerifiedChain


class Revocation(Protocol):
    def check(self, chain: VerifiedChain, at: datetime) -> str:
        """What is known about the chain at that time, in one sentence.

        Raises RevokedError for a revoked certificate (final), Unavailable when needed evidence cannot be had.
        """


class Unchecked:
    """Knows nothing and refuses nothing."""

    def check(self, chain: VerifiedChain, at: datetime) -> str:
        return "Revocation is not checked in this release."
