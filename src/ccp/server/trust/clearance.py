"""The verdict of the revocation check on several chains together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ccp.errors import CCPError, RevokedError, Unavailable, VerificationError, strip_tracebacks
from ccp.x509.path_validation import VerifiedChain
from ccp.x509.revocation_evidence import CertificateRef, certificate_refs
from ccp.x509.revocation_policy import HardFailRevocation, max_retry_after

_BY_GRAVITY: Final[tuple[type[CCPError], ...]] = (RevokedError, VerificationError, Unavailable)


@dataclass(frozen=True, slots=True)
class RevocationCleared:
    """Chains that nothing is held against.

    keys: for the contract, so that its delivery can ask again. sentences: what each certificate's standing rests on.
    warnings: those of them that rest on nothing.
    """

    keys: tuple[CertificateRef, ...]
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]


def clear_chains(stored: HardFailRevocation, chains: Sequence[VerifiedChain], at: datetime) -> RevocationCleared:
    """Judge all chains, and tell the gravest kind of problem: what is revoked stays so, what is missing may come."""
    sentences = []
    problems: list[CCPError] = []
    for chain in chains:
        try:
            sentences.append(stored.check(chain, at))
        except (RevokedError, VerificationError, Unavailable) as exc:
            problems.append(strip_tracebacks(exc))
    if problems:
        raise _gravest(problems)
    return RevocationCleared(certificate_refs(chains), tuple(sentences), tuple(stored.warnings))


def _gravest(problems: Sequence[CCPError]) -> CCPError:
    """One error with the sentences of all problems of the gravest kind there is."""
    kind = next(kind for kind in _BY_GRAVITY if any(isinstance(problem, kind) for problem in problems))
    of_kind = [problem for problem in problems if isinstance(problem, kind)]
    error = kind(*dict.fromkeys(message for problem in of_kind for message in problem.messages))
    if isinstance(error, Unavailable):
        error.retry_after = max_retry_after(problem for problem in of_kind if isinstance(problem, Unavailable))
    error.__cause__ = of_kind[0].__cause__
    return error
