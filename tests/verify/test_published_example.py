"""The published example response, verified under the published test root."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from ccp import verify
from ccp.errors import (
    CCPError,
    ChainError,
    MismatchError,
    SignatureError,
)
from ccp.ids import Namespace
from ccp.verify import VerifiedInstallationResponse, message_signatures
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import AnchorRole
from ccp.x509.revocation_policy import NoRevocationCheck
from tests.verify.messages import EXAMPLE, MANDATORY, PUBLISHED_ROOT, REFUSALS, flip, sampled


@pytest.fixture(scope="module")
def example() -> bytes:
    return base64.b64decode(EXAMPLE.read_text())


def test_signature_of_the_published_example_verifies(example: bytes) -> None:
    response = verify.read_response(example, Namespace.ISO2)
    cps = Certificate.load(response.cps_certificate)
    evidence = message_signatures.verify_signature(response.parsed, cps.public_key, response.mandatory)
    assert evidence.grammar == "xmldsig"
    assert {part.name for part in evidence.elements} == set(MANDATORY)
    assert response.emaid == "DEICECOPNCCERT"
    with pytest.raises(ChainError):
        verify_published(example, TrustAnchors.build([]))


@pytest.fixture(scope="module")
def published_anchors() -> TrustAnchors:
    if not PUBLISHED_ROOT.exists():
        pytest.skip(f"the API description is not at {PUBLISHED_ROOT}")
    (der,) = set(certificates_in(json.loads(PUBLISHED_ROOT.read_text())))
    return TrustAnchors.build([(AnchorRole.V2G, Certificate.load(der))])


def certificates_in(value: Any) -> Iterator[bytes]:
    """Every text in a JSON document that is a certificate."""
    if isinstance(value, dict | list):
        for member in value.values() if isinstance(value, dict) else value:
            yield from certificates_in(member)
    elif isinstance(value, str) and len(value) > 300:
        try:
            yield Certificate.load(base64.b64decode(value, validate=False)).der
        except (ValueError, ChainError):
            return


def verify_published(encoded: bytes, anchors: TrustAnchors) -> VerifiedInstallationResponse:
    response = verify.read_response(encoded, Namespace.ISO2)
    at = datetime(2025, 1, 1, tzinfo=UTC)
    return verify.check_response(
        response, emaid=None, root=None, anchors=anchors, revocation=NoRevocationCheck(), now=at
    )


def test_published_example_verifies_under_the_published_root(example: bytes, published_anchors: TrustAnchors) -> None:
    verified = verify_published(example, published_anchors)
    assert verified.emaid == "DEICECOPNCCERT"
    root = "4e05b8922d43923cdf20b202cdd0d849770b50038c39f104f506d7f1030ff809"
    assert {verified.cps_chain.root.fingerprint, verified.contract_chain.root.fingerprint} == {root}


def test_published_example_with_one_flipped_bit_is_named_for_what_it_is(
    example: bytes, published_anchors: TrustAnchors
) -> None:
    errors: dict[str, list[CCPError]] = {}
    for region, position in sampled(example, "published", 300, 0):
        try:
            verify_published(flip(example, position), published_anchors)
        except REFUSALS as exc:
            errors.setdefault(region, []).append(exc)
        else:
            assert region == "unsigned", f"bit {position} of {region} was not noticed"
    kinds = {region: {type(exc) for exc in refusals} for region, refusals in errors.items()}
    assert set(errors) - {"unsigned"} == {*MANDATORY, "SignedInfo", "SignatureValue"}
    assert {str(exc) for exc in errors["SignatureValue"]} == {
        "The signature value does not match the certificate's key."
    }
    for name in ("ContractSignatureEncryptedPrivateKey", "DHpublickey"):
        assert f"The digest of {name} does not match." in map(str, errors[name])
    assert SignatureError in kinds["SignedInfo"]
    assert ChainError in kinds["ContractSignatureCertChain"]
    assert MismatchError in kinds["eMAID"]
