"""What a diagnosis finds: findings, which have codes, and plain facts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ccp.server.diagnosis.codes import CODES, Severity
from ccp.server.runtime.redacted_urls import hide_in_text
from ccp.server.settings.examination import SettingValue


@dataclass(frozen=True, slots=True)
class Finding:
    """code: stable, "check.problem". message: what was found, one or more sentences. action: what to do, a sentence.

    subject: what it is about, such as a setting, a file, a party id or a fingerprint; empty for the pool itself.
    """

    code: str
    severity: Severity
    subject: str
    message: str
    action: str

    def members(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "code": self.code,
            "severity": self.severity.value,
            "subject": self.subject,
            "message": self.message,
            "action": self.action,
        }


@dataclass(slots=True)
class CheckResult:
    """The result of one check. facts: sentences or phrases about what was found in order.

    skipped: why the check was not made; None if it was. seconds: how long it took.
    """

    name: str
    title: str
    findings: list[Finding] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    skipped: str | None = None
    seconds: float = 0.0

    @property
    def severity(self) -> Severity:
        """The worst severity of the findings."""
        return Severity.worst(each.severity for each in self.findings)

    def add(self, code: str, message: str, *, subject: str = "", action: str | None = None) -> None:
        """Add a finding. action: instead of what CODES has. Credentials in URLs are hidden."""
        kind = CODES[code]
        self.findings.append(
            Finding(code, kind.severity, hide_in_text(subject), hide_in_text(message), action or kind.action)
        )

    def note(self, fact: str) -> None:
        """Add a fact."""
        self.facts.append(hide_in_text(fact))

    def skip(self, reason: str) -> None:
        """State why the check, or the rest of it, is not made."""
        self.skipped = reason

    def members(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "check": self.name,
            "title": self.title,
            "severity": self.severity.value,
            "findings": [finding.members() for finding in self.findings],
            "facts": self.facts,
            "skipped": self.skipped,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The results of all checks, in their fixed order, and the settings with their sources.

    at: when it was made. offline: whether network checks were left out. settings: without secrets.
    """

    at: datetime
    offline: bool
    file: str | None
    results: tuple[CheckResult, ...]
    settings: tuple[SettingValue, ...]
    seconds: float

    @property
    def severity(self) -> Severity:
        """The worst severity of all findings."""
        return Severity.worst(result.severity for result in self.results)

    @property
    def findings(self) -> list[Finding]:
        """All findings, failures first."""
        found = [finding for result in self.results for finding in result.findings]
        return sorted(found, key=lambda each: -each.severity.exit_status)

    def members(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "at": self.at.isoformat(timespec="seconds"),
            "severity": self.severity.value,
            "exit_status": self.severity.exit_status,
            "offline": self.offline,
            "seconds": round(self.seconds, 3),
            "checks": [result.members() for result in self.results],
            "configuration": {
                "file": self.file,
                "settings": [
                    {"name": each.name, "value": each.value, "source": each.source.value} for each in self.settings
                ],
            },
        }


class Stopwatch:
    """Measures seconds from its creation."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the creation."""
        return time.monotonic() - self._began
