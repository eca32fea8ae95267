"""The public entry points: `verify_…` returns what was verified or raises, `explain_…` reports every check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ccp.errors import EXIError, MismatchError, RevokedError, Unavailable, VerificationError
from ccp.ids import Namespace
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from ccp.verify import (
    NoRevocationCheck,
    Trust,
    explain,
    explain_request,
    explain_response,
    verify_request,
    verify_response,
)
from ccp.verify.report import CheckStatus
from tests.verify.messages import OTHER_EMAID, SESSION, THE_EMAID, THE_PCID, Revoked, contract_message, flip
from tests.world import AT


@pytest.fixture
def trust(pki: PKI) -> Trust:
    return Trust(pki.anchors(), NoRevocationCheck())


@pytest.fixture
def request_message(pki: PKI) -> bytes:
    return Car.generate(pki, THE_PCID, AT).request(SESSION, AT)


def test_trust_needs_a_decision_on_revocation(pki: PKI, tmp_path: Path) -> None:
    unchecked: Any = Trust
    with pytest.raises(TypeError, match="revocation"):
        unchecked(pki.anchors())
    with pytest.raises(TypeError, match="revocation"):
        unchecked.from_directory(tmp_path)


def test_verify_response_returns_what_was_verified(pki: PKI, trust: Trust) -> None:
    verified = verify_response(contract_message(pki), trust=trust, now=AT, emaid=THE_EMAID)
    assert verified.emaid == THE_EMAID


def test_verify_request_returns_what_was_verified(trust: Trust, request_message: bytes) -> None:
    assert verify_request(request_message, trust=trust, now=AT).pcid == THE_PCID


def test_verify_response_raises_for_another_contract(pki: PKI, trust: Trust) -> None:
    with pytest.raises(MismatchError):
        verify_response(contract_message(pki), trust=trust, now=AT, emaid=OTHER_EMAID)


@pytest.mark.parametrize("error", [RevokedError("The certificate is revoked."), Unavailable("No evidence.")])
def test_verify_raises_what_the_revocation_check_raises(
    pki: PKI, request_message: bytes, error: RevokedError | Unavailable
) -> None:
    response = contract_message(pki)
    with pytest.raises(type(error)):
        verify_response(response, trust=Trust(pki.anchors(), Revoked("CPS SIM", error)), now=AT)
    with pytest.raises(type(error)):
        verify_request(request_message, trust=Trust(pki.anchors(), Revoked(THE_PCID, error)), now=AT)
    report = explain_response(response, trust=Trust(pki.anchors(), Revoked("CPS SIM", error)), now=AT)
    assert not report.passed
    assert str(error) in str(report)
    assert str(report).endswith("NOT verified")


def test_verify_and_explain_agree_on_flipped_messages(pki: PKI, trust: Trust, request_message: bytes) -> None:
    """Bits are spread over the message. Neither may accept what the other refuses."""
    for message, check, report in (
        (contract_message(pki), verify_response, explain_response),
        (request_message, verify_request, explain_request),
    ):
        refused = 0
        for position in range(0, 8 * len(message), 499):
            flipped = flip(message, position)
            try:
                check(flipped, trust=trust, now=AT)
                verified = True
            except (EXIError, MismatchError, VerificationError):
                verified = False
            try:
                assert report(flipped, trust=trust, now=AT).passed is verified, position
            except EXIError:
                assert not verified, position
            refused += not verified
        assert refused > 10


def test_explain_recognises_the_kind_of_message(pki: PKI, trust: Trust, request_message: bytes) -> None:
    for message, title in ((contract_message(pki), "InstallationRes"), (request_message, "InstallationReq")):
        report = explain(message, trust=trust, now=AT)
        assert title in report.title
        assert report.passed, str(report)
        assert all(check.status is CheckStatus.PASSED for check in report.checks.results)
        assert any(str(namespace) in report.title for namespace in Namespace)
    assert explain(b"no message", trust=trust, now=AT).passed is False
    with pytest.raises(EXIError):
        explain_request(contract_message(pki), trust=trust, now=AT)
