"""A verification as a list of numbered checks: refused at the first stage that fails, or told in full.

The same code serves both: `Checks()` raises at the end of a stage with every failure of that stage,
`Checks(tell=True)` goes on as far as the results allow and leaves a report behind.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from ccp.errors import CCPError, without_frames

T = TypeVar("T")


class Verdict(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class Check:
    """subject: what was checked. reason: why it failed or was left out. evidence: what a pass rests on, a line each."""

    number: int
    subject: str
    verdict: Verdict
    reason: str = ""
    evidence: tuple[str, ...] = ()


class Checks:
    """Runs checks one after another. report: what became of each, where it is told. passed: whether all of them did."""

    def __init__(self, tell: bool = False) -> None:
        self.report: list[Check] = []
        self.passed = True
        self._tell = tell
        self._failures: list[CCPError] = []

    def run(
        self,
        subject: str,
        check: Callable[[], T],
        *,
        needs: tuple[object, ...] = (),
        without: str = "An earlier check failed.",
        evidence: Callable[[T], tuple[str, ...]] = lambda result: (),
    ) -> T | None:
        """Run one check. Returns its result, or None when it failed or when one of the results it needs is None.

        without: the reason to give where one of them is.
        """
        for need in needs:
            if need is None:
                self._note(subject, Verdict.NOT_APPLICABLE, without)
                return None
        try:
            result = check()
        except CCPError as exc:
            self._failures.append(without_frames(exc))
            self._note(subject, Verdict.FAILED, str(exc))
            return None
        if self._tell:
            self._note(subject, Verdict.PASSED, evidence=evidence(result))
        return result

    async def ask(
        self,
        subject: str,
        question: Callable[[], Awaitable[T]],
        *,
        when: bool,
        without: str,
        evidence: Callable[[T], tuple[str, ...]] = lambda result: (),
    ) -> T | None:
        """As `run`, for a check that awaits its result. when: whether it is made; without: the reason if it is not."""
        if not when:
            self._note(subject, Verdict.NOT_APPLICABLE, without)
            return None
        try:
            result = await question()
        except CCPError as exc:
            self._failures.append(without_frames(exc))
            self._note(subject, Verdict.FAILED, str(exc))
            return None
        return self.run(subject, lambda: result, evidence=evidence)

    def _note(self, subject: str, verdict: Verdict, reason: str = "", evidence: tuple[str, ...] = ()) -> None:
        """A vehicle waits for what is not told: then a check that passes leaves nothing behind."""
        self.passed = self.passed and verdict is Verdict.PASSED
        if self._tell:
            self.report.append(Check(len(self.report) + 1, subject, verdict, reason, evidence))

    def end_stage(self) -> None:
        """Raise what failed in this stage: the first error's type, with the sentences of all of them."""
        if self._tell or not self._failures:
            return
        failures, self._failures = self._failures, []
        if len(failures) == 1:
            raise failures.pop()
        messages = dict.fromkeys(message for failure in failures for message in failure.messages)
        raise type(failures[0])(*messages) from failures[0]

    def told(self, message: str, at: datetime, warnings: Sequence[str]) -> dict[str, Any]:
        """The report for programs: what was checked when, every check, and what does not fail but will be noticed."""
        return {
            "message": message,
            "at": at.isoformat(),
            "passed": self.passed,
            "checks": [
                {
                    "number": check.number,
                    "subject": check.subject,
                    "verdict": check.verdict.value,
                    "reason": check.reason,
                    "evidence": list(check.evidence),
                }
                for check in self.report
            ],
            "warnings": list(dict.fromkeys(warnings)),
        }
