"""Flipped bits and truncated messages: none passes for something else."""

from __future__ import annotations

import pytest

from ccp import verify
from ccp.errors import EXIError
from ccp.testing.partners import Car, namespace_of
from ccp.testing.pki import PKI
from tests.verify.messages import (
    REFUSALS,
    SESSION,
    THE_EMAID,
    THE_PCID,
    contract_message,
    flip,
    sampled,
    signed_content,
    verify_request,
    verify_response,
)
from tests.world import AT


def test_flipped_message_that_was_a_response_passes_for_nothing_else(pki: PKI) -> None:
    encoded = contract_message(pki)
    response = verify.read_response(encoded, namespace_of(pki))
    anchors, passed = pki.anchors(), 0
    for region, position in sampled(encoded, "response", 210, 120):
        changed = flip(encoded, position)
        try:
            verified = verify_response(changed, pki, emaid=THE_EMAID, anchors=anchors)
        except REFUSALS:
            continue
        assert region == "unsigned", f"bit {position} of {region}"
        assert signed_content(verified.response) == signed_content(response), f"bit {position}"
        assert verified.cps_chain.leaf.public_key == pki.cps.certificate.public_key
        passed += 1
    assert passed >= 1


def test_flipped_message_that_was_a_request_passes_for_nothing_else(pki: PKI) -> None:
    car = Car.generate(pki, THE_PCID, AT)
    encoded = car.request(SESSION, AT)
    anchors, passed = pki.anchors(), 0
    for region, position in sampled(encoded, "request", 210, 120):
        try:
            verified = verify_request(flip(encoded, position), pki, anchors=anchors)
        except REFUSALS:
            continue
        assert region == "unsigned", f"bit {position} of {region}"
        assert (verified.pcid, verified.leaf) == (THE_PCID, car.provisioning.certificate)
        assert verified.request.sub_certificates == verify.read_request(encoded, namespace_of(pki)).sub_certificates
        passed += 1
    assert passed >= 1


def test_message_cut_short_anywhere_is_no_message(pki: PKI) -> None:
    for encoded, read in (
        (contract_message(pki), verify.read_response),
        (Car.generate(pki, THE_PCID, AT).request(SESSION, AT), verify.read_request),
    ):
        for length in range(0, len(encoded), 7):
            with pytest.raises(EXIError):
                read(encoded[:length], namespace_of(pki))
