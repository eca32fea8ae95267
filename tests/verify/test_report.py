"""Checks that are refused at the first stage that fails, or told in full."""

from __future__ import annotations

import pytest

from ccp.errors import CCPError, ChainError, ExpiredError, MismatchError, SignatureError
from ccp.verify.report import Check, Checks, Verdict


def failing(error: Exception) -> object:
    raise error


def test_results_are_handed_on_and_recorded() -> None:
    checks = Checks(tell=True)
    assert checks.run("first", lambda: 7) == 7
    assert checks.run("second", lambda: None) is None
    checks.end_stage()
    assert checks.report == [Check(1, "first", Verdict.PASSED), Check(2, "second", Verdict.PASSED)]
    assert checks.passed


def test_a_stage_with_one_failure_raises_that_very_error() -> None:
    checks, error = Checks(), SignatureError("one", "two")
    assert checks.run("first", lambda: failing(error)) is None
    assert not checks.passed
    with pytest.raises(SignatureError) as caught:
        checks.end_stage()
    assert caught.value is error


def test_a_stage_with_several_failures_raises_the_first_ones_kind_with_all_sentences_once() -> None:
    checks, first = Checks(), ExpiredError("old", "common")
    for error in (first, MismatchError("other", "common"), ChainError("last")):
        checks.run("check", lambda error=error: failing(error))  # type: ignore[misc]
    with pytest.raises(ExpiredError) as caught:
        checks.end_stage()
    assert caught.value.messages == ("old", "common", "other", "last")
    assert caught.value.__cause__ is first


def test_a_check_that_needs_a_failed_one_is_left_out_and_not_passed() -> None:
    checks = Checks(tell=True)
    result = checks.run("first", lambda: failing(ChainError("no")))
    assert checks.run("second", lambda: pytest.fail("it was run"), needs=("there", result)) is None
    assert [check.verdict for check in checks.report] == [Verdict.FAILED, Verdict.NOT_APPLICABLE]
    assert checks.report[1].reason == "An earlier check failed."
    assert not checks.passed


def test_telling_goes_on_after_a_failure_and_keeps_evidence() -> None:
    checks = Checks(tell=True)
    checks.run("first", lambda: failing(ChainError("one", "two")))
    checks.end_stage()
    checks.run("second", lambda: 5, evidence=lambda result: (f"found {result}",))
    checks.end_stage()
    assert checks.report == [
        Check(1, "first", Verdict.FAILED, "one two"),
        Check(2, "second", Verdict.PASSED, evidence=("found 5",)),
    ]
    assert not checks.passed


def test_evidence_is_not_gathered_where_nobody_is_told() -> None:
    checks = Checks()
    checks.run("first", lambda: 5, evidence=lambda result: pytest.fail("it was gathered"))
    assert checks.passed


def test_a_mistake_of_ours_is_not_taken_for_a_failed_check() -> None:
    checks = Checks(tell=True)
    for error in (ValueError("odd"), AssertionError(), KeyError("x")):
        with pytest.raises(type(error)):
            checks.run("first", lambda error=error: failing(error))  # type: ignore[misc]
    assert checks.report == []


def test_any_deliberate_error_is_a_failed_check() -> None:
    checks = Checks(tell=True)
    checks.run("first", lambda: failing(CCPError("deliberate")))
    assert checks.report[0].reason == "deliberate"
