"""The published XML example of a provisioning service: its EXI, its verification, and what the commands say of it."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ccp import exi, verify
from ccp.ids import Namespace
from ccp.verify.report import CheckList, CheckStatus
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import AnchorRole
from ccp.x509.revocation_policy import NoRevocationCheck
from tests.cli.run import ccp_ok
from tests.x509.published import provisioning_service_xml, public_root

AT = datetime(2022, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def published() -> str:
    """Base64 of the XML document."""
    return provisioning_service_xml()


def test_published_xml_becomes_exi_that_verifies_in_full(published: str) -> None:
    encoded = exi.message_bytes(published, allow_xml=True)
    assert len(encoded) == 4417
    message = exi.decode(encoded)
    assert message == exi.from_xml(base64.b64decode(published)) == exi.from_xml(exi.to_xml(message))
    assert message.Header.SessionID == b"\0"
    response = verify.read_response(encoded, Namespace.ISO2)
    anchors = TrustAnchors.build([(AnchorRole.V2G, public_root())])
    checks = CheckList(collect=True)
    verified = verify.check_response(
        response, emaid=None, root=None, anchors=anchors, revocation=NoRevocationCheck(), now=AT, checks=checks
    )
    assert {result.status for result in checks.results} == {CheckStatus.PASSED}
    assert verified.emaid == "EMP99CQATEST001"
    assert {part.name for part in verified.signature.elements} == set(response.mandatory)
    root = public_root().fingerprint
    assert {verified.cps_chain.root.fingerprint, verified.contract_chain.root.fingerprint} == {root}


def test_published_xml_is_read_and_verified_by_the_commands(published: str, tmp_path: Path) -> None:
    (tmp_path / "v2g").mkdir()
    (tmp_path / "v2g" / "root.pem").write_bytes(public_root().pem())
    document = base64.b64decode(published)
    for content in (published.encode(), document, json.dumps({"signedContractDataXML": published}).encode()):
        out = ccp_ok("verify", "-", "--trust", tmp_path, "--at", AT.isoformat(), stdin=content).out
        assert "verified" in out
        assert "✗" not in out
    encoded = exi.message_bytes(published, allow_xml=True)
    assert ccp_ok("exi", "encode", "-", "--to", "binary", stdin=document).out_bytes == encoded
    printed = ccp_ok("exi", "decode", "-", "--xml", stdin=encoded).out_bytes
    assert ccp_ok("exi", "encode", "-", "--to", "binary", stdin=printed).out_bytes == encoded
