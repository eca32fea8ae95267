"""The published XML example of a provisioning service, published to a pool at a time when it was valid."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from ccp import exi
from ccp.server.storage.queries import anchors
from ccp.server.trust.anchors import trusted_certificate
from ccp.x509.profiles import AnchorRole
from tests.server.http.opcp.requests import call
from tests.waiting import wait_until
from tests.world import ISO2, Pool, start
from tests.x509.published import provisioning_service_xml, public_root

EXAMPLE_AT = datetime(2022, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def then() -> Iterator[Pool]:
    """A pool on 1 March 2022 that trusts the published test root."""
    began = datetime.now(UTC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ccp.server.app.utc_now", lambda: EXAMPLE_AT + (datetime.now(UTC) - began))
        with start({}, revocation="off", refresh_interval=0.05) as pool:
            entry = trusted_certificate(public_root(), AnchorRole.V2G, "published", EXAMPLE_AT)
            pool.change(anchors.add(entry))
            path = "/root/rootCerts"
            wait_until(
                lambda: call(pool, "cps", "GET", path).json()["RootCertificateCollection"]["rootCertificates"] != []
            )
            yield pool


def test_opcp_put_takes_the_published_xml(then: Pool) -> None:
    document = provisioning_service_xml()
    body = {"xsdMsgDefNamespace": ISO2, "emaid": "EMP99CQATEST001", "pcid": "WEX0XML0000000001"}
    body["signedContractDataXML"] = document
    report = call(then, "cps", "PUT", "/ccp/signedContractData", json=body, params={"dryRun": "true"}).json()
    assert report["passed"], report
    answer = call(then, "cps", "PUT", "/ccp/signedContractData", json=body)
    assert answer.status_code == 201, answer.text
    ((stored,),) = then.sql("select response from contract")
    assert len(stored) == 4417
    assert bytes(stored) == exi.message_bytes(document, allow_xml=True)
    pcid = call(then, "oem", "GET", "/ccp/signedContractData/WEX0XML0000000001")
    assert [item["emaid"] for item in pcid.json()["XMLContracts"]] == ["EMP99CQATEST001"]
