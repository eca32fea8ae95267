"""Diagnosis of a pool: configuration, files, TLS, database, clock, trust, other systems and the running server.

    diagnosis = await diagnose(examine())                      # for a command, also with a broken configuration
    diagnosis = await diagnose(examine(), store=store)         # within a server
    diagnosis.severity, diagnosis.findings, diagnosis.members()

The checks return data, and change nothing. `ccp doctor` and the console show them.
"""

from __future__ import annotations

from ccp.server.diagnosis.catalogue import CHECKS, diagnose
from ccp.server.diagnosis.codes import CODES, FindingKind, Severity
from ccp.server.diagnosis.finding import CheckResult, Diagnosis, Finding

__all__ = ["CHECKS", "CODES", "CheckResult", "Diagnosis", "Finding", "FindingKind", "Severity", "diagnose"]
