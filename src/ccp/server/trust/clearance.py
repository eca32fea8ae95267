"""Combined result of the revocation check of several chains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ccp.errors import CCPError, RevokedError, Unavailable, VerificationError, strip_tracebacks, with_code_of
from ccp.x509.path_validation import VerifiedChain
from ccp.x509.revocation_evidence import CertificateRef, certificate_refs
from ccp.x509.revocation_policy import HardFailRevocation, max_retry_after

_BY_SEVERITY: Final[tuple[type[CCPError], ...]] = (RevokedError, VerificationError, Unavailable)


@dataclass(frozen=True, slots=True)
class RevocationCleared:
    """Chains without a revoked certificate.

    keys: references to the certificates, stored with the contract for the check at delivery. sentences: the evidence
    for each certificate. warnings: those sentences that report missing evidence.
    """

    keys: tuple[CertificateRef, ...]
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]


def clear_chains(evaluation: HardFailRevocation, chains: Sequence[VerifiedChain], now: datetime) -> RevocationCleared:
    """Check all chains; raise one error for the most severe kind of problem.

    Revocation is final and comes first; missing evidence may become available and comes last. Raises RevokedError,
    VerificationError, Unavailable.
    """
    sentences = []
    problems: list[CCPError] = []
    for chain in chains:
        try:
            sentences.append(evaluation.check(chain, now))
        except (RevokedError, VerificationError, Unavailable) as exc:
            problems.append(strip_tracebacks(exc))
    if problems:
        raise _most_severe(problems)
    return RevocationCleared(certificate_refs(chains), tuple(sentences), tuple(evaluation.warnings))


def _most_severe(problems: Sequence[CCPError]) -> CCPError:
    """One error of the most severe kind, with the messages of all problems of that kind."""
    kind = next(kind for kind in _BY_SEVERITY if any(isinstance(problem, kind) for problem in problems))
    of_kind = [problem for problem in problems if isinstance(problem, kind)]
    error = kind(*dict.fromkeys(message for problem in of_kind for message in problem.messages))
    if isinstance(error, Unavailable):
        error.retry_after = max_retry_after(problem for problem in of_kind if isinstance(problem, Unavailable))
    error.__cause__ = of_kind[0].__cause__
    return with_code_of(of_kind[0], error)
