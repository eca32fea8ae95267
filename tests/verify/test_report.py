"""CheckList: enforcement by stages, and reports of all checks."""

from __future__ import annotations

import pytest

from ccp.errors import CCPError, ChainError, ExpiredError, MismatchError, SignatureError
from ccp.verify.report import CheckList, CheckResult, CheckStatus


def failing(error: Exception) -> object:
    raise error


def test_report_results_are_handed_on_and_recorded() -> None:
    checks = CheckList(collect=True)
    assert checks.run("first", lambda: 7) == 7
    assert checks.run("second", lambda: None) is None
    checks.end_stage()
    assert checks.results == [CheckResult(1, "first", CheckStatus.PASSED), CheckResult(2, "second", CheckStatus.PASSED)]
    assert checks.passed


def test_report_stage_with_one_failure_raises_that_very_error() -> None:
    checks, error = CheckList(), SignatureError("one", "two")
    assert checks.run("first", lambda: failing(error)) is None
    assert not checks.passed
    with pytest.raises(SignatureError) as caught:
        checks.end_stage()
    assert caught.value is error


def test_check_list_raises_the_first_type_with_all_sentences_of_a_stage() -> None:
    checks, first = CheckList(), ExpiredError("old", "common")
    for error in (first, MismatchError("other", "common"), ChainError("last")):
        checks.run("check", lambda error=error: failing(error))  # type: ignore[misc]
    with pytest.raises(ExpiredError) as caught:
        checks.end_stage()
    assert caught.value.messages == ("old", "common", "other", "last")
    assert caught.value.__cause__ is first


def test_report_leaves_a_check_out_that_needs_a_failed_one() -> None:
    checks = CheckList(collect=True)
    result = checks.run("first", lambda: failing(ChainError("no")))
    assert checks.run("second", lambda: pytest.fail("it was run"), needs=("there", result)) is None
    assert [check.status for check in checks.results] == [CheckStatus.FAILED, CheckStatus.NOT_APPLICABLE]
    assert checks.results[1].reason == "An earlier check failed."
    assert not checks.passed


def test_report_goes_on_after_a_failure_and_keeps_evidence() -> None:
    checks = CheckList(collect=True)
    checks.run("first", lambda: failing(ChainError("one", "two")))
    checks.end_stage()
    checks.run("second", lambda: 5, evidence=lambda result: (f"found {result}",))
    checks.end_stage()
    assert checks.results == [
        CheckResult(1, "first", CheckStatus.FAILED, "one two"),
        CheckResult(2, "second", CheckStatus.PASSED, evidence=("found 5",)),
    ]
    assert not checks.passed


def test_evidence_is_not_gathered_where_nobody_is_told() -> None:
    checks = CheckList()
    checks.run("first", lambda: 5, evidence=lambda result: pytest.fail("it was gathered"))
    assert checks.passed


def test_report_does_not_take_a_mistake_of_ours_for_a_failed_check() -> None:
    checks = CheckList(collect=True)
    for error in (ValueError("odd"), AssertionError(), KeyError("x")):
        with pytest.raises(type(error)):
            checks.run("first", lambda error=error: failing(error))  # type: ignore[misc]
    assert checks.results == []


def test_report_takes_any_deliberate_error_for_a_failed_check() -> None:
    checks = CheckList(collect=True)
    checks.run("first", lambda: failing(CCPError("deliberate")))
    assert checks.results[0].reason == "deliberate"
