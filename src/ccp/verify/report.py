"""Verification as a list of numbered checks that either refuses a message or reports on it.

The same checks serve both purposes: `CheckList()` raises at the end of a stage with every failure of that stage;
`CheckList(collect=True)` continues as far as the results allow and collects a report.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from ccp.errors import CCPError, ExpiredError, strip_tracebacks, with_code_of
from ccp.errors.codes import ErrorCode

T = TypeVar("T")


class CheckStatus(StrEnum):
    """Outcome of one check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Result of one check.

    number: from 1, in the order of the checks. subject: what was checked. reason: why it failed or was skipped.
    evidence: what a passed check is based on, one line each.
    """

    number: int
    subject: str
    status: CheckStatus
    reason: str = ""
    evidence: tuple[str, ...] = ()


class CheckList:
    """Runs checks in order.

    results: one for each check; empty unless `collect` is set. passed: whether every check so far has passed.
    """

    def __init__(self, collect: bool = False) -> None:
        """collect: report all checks instead of raising at the end of a stage."""
        self.results: list[CheckResult] = []
        self.passed = True
        self._collect = collect
        self._failures: list[CCPError] = []

    def run(
        self,
        subject: str,
        check: Callable[[], T],
        *,
        code: ErrorCode | None = None,
        expired: ErrorCode | None = None,
        needs: tuple[object, ...] = (),
        skip_reason: str = "An earlier check failed.",
        evidence: Callable[[T], tuple[str, ...]] = lambda result: (),
    ) -> T | None:
        """Run one check. Returns its result; None if it failed or was skipped.

        code: of a failure, unless the check raises a more exact one. expired: the same for an expired certificate.
        needs: results of earlier checks; if one of them is None, the check is skipped with `skip_reason`.
        """
        for need in needs:
            if need is None:
                self._record(subject, CheckStatus.NOT_APPLICABLE, skip_reason)
                return None
        try:
            result = check()
        except CCPError as exc:
            exc.at_check(subject, expired if isinstance(exc, ExpiredError) and expired else code)
            self._failures.append(strip_tracebacks(exc))
            self._record(subject, CheckStatus.FAILED, str(exc))
            return None
        if self._collect:
            self._record(subject, CheckStatus.PASSED, evidence=evidence(result))
        return result

    async def run_async(
        self,
        subject: str,
        check: Callable[[], Awaitable[T]],
        *,
        enabled: bool,
        skip_reason: str,
        evidence: Callable[[T], tuple[str, ...]] = lambda result: (),
    ) -> T | None:
        """Like `run`, for a check that is awaited. If it is not `enabled`, it is skipped with `skip_reason`."""
        if not enabled:
            self._record(subject, CheckStatus.NOT_APPLICABLE, skip_reason)
            return None
        try:
            result = await check()
        except CCPError as exc:
            exc.at_check(subject)
            self._failures.append(strip_tracebacks(exc))
            self._record(subject, CheckStatus.FAILED, str(exc))
            return None
        return self.run(subject, lambda: result, evidence=evidence)

    def _record(self, subject: str, status: CheckStatus, reason: str = "", evidence: tuple[str, ...] = ()) -> None:
        """Without `collect` a vehicle is waiting, so a passed check records nothing."""
        self.passed = self.passed and status is CheckStatus.PASSED
        if self._collect:
            self.results.append(CheckResult(len(self.results) + 1, subject, status, reason, evidence))

    @property
    def first_failure(self) -> CCPError | None:
        """The error of the first failed check, whose code is that of the refusal."""
        return self._failures[0] if self._failures else None

    def end_stage(self) -> None:
        """Raise what failed in this stage: the type and code of the first error, with the sentences of all."""
        if self._collect or not self._failures:
            return
        failures, self._failures = self._failures, []
        if len(failures) == 1:
            raise failures.pop()
        messages = dict.fromkeys(message for failure in failures for message in failure.messages)
        raise with_code_of(failures[0], type(failures[0])(*messages)) from failures[0]

    def to_json(self, message: str, now: datetime, warnings: Sequence[str]) -> dict[str, Any]:
        """The report as a JSON object.

        message: title of what was checked. now: the time it was checked for. warnings: what fails no check but needs
        attention.
        """
        return {
            "message": message,
            "at": now.isoformat(),
            "passed": self.passed,
            "checks": [
                {
                    "number": result.number,
                    "subject": result.subject,
                    "verdict": result.status.value,
                    "reason": result.reason,
                    "evidence": list(result.evidence),
                }
                for result in self.results
            ],
            "warnings": list(dict.fromkeys(warnings)),
        }
