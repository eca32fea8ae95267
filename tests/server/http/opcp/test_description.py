"""The published descriptions of OPCP 1.0, without their mistakes (`tests.opcp_description`), and a running pool."""

from __future__ import annotations

import base64
import copy
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis

from ccp import exi
from ccp.ids import EMAID_PATTERN, PCID_PATTERN
from ccp.testing.pki import PKI
from tests import opcp_description
from tests.opcp_description import CCP, MISTAKES, RCP, Mistake, mended, published, requires_description
from tests.schema_run import config, run
from tests.server.http.opcp.requests import call
from tests.world import AT, SESSION, Pool, new_emaid, post_body, start

pytestmark = requires_description

SUCCESS = {
    CCP: {
        "POST /v1/ccp/signedContractData": 200,
        "PUT /v1/ccp/signedContractData": 201,
        "DELETE /v1/ccp/signedContractData/{id}": 200,
        "GET /v1/ccp/signedContractData/{id}": 200,
        "GET /v1/ccp/lookupContract/{emaid}": 200,
        "GET /v1/ccp/provideSignedContractData/{emaid}/{pcid}": 200,
        "POST /v1/ccp/signedContractData/{pcid}/{emaid}/default": 200,
    },
    RCP: {
        "GET /v1/root/rootCerts": 200,
        "GET /v1/root/rootCerts/{rootCertificateId}": 200,
        "GET /v1/root/ctl": 404,
    },
}
FAILURE = {
    "GET /v1/root/rootCerts/{rootCertificateId}": 404,
    "GET /v1/root/ctl": 404,
}
"""The status of a wrong request, where it is not 400."""


@pytest.fixture(scope="module", params=["deliver", "404"])
def furnished(pkis: dict[str, PKI], request: pytest.FixtureRequest) -> Iterator[Pool]:
    with start(pkis, opcp_no_contract_response=request.param) as running:
        yield running


def furnish(pool: Pool) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Store contracts for a party with every role. Returns values that make requests succeed, and a PUT's body."""
    known: dict[str, list[Any]] = {kind: [] for kind in ("emaid", "pcid", "deleted", "request", "namespace", "root")}
    for edition in ("iso2", "iso2", "iso20"):
        car = pool.car(edition, wmi="ALL")
        known["deleted"].append(pool.publish(car, new_emaid("DEALL")).emaid)
        contract = pool.publish(car, new_emaid("DEALL"))
        known["emaid"].append(contract.emaid)
        known["pcid"].append(car.pcid)
        known["request"].append(post_body(car.request(SESSION, AT), "")["certificateInstallationReq"])
        known["namespace"].append(car.namespace)
        known["root"].append(pool.pki(edition).v2g_root.certificate.fingerprint)
    roots = call(pool, "cpo", "GET", "/root/rootCerts").json()["RootCertificateCollection"]["rootCertificates"]
    known["listed"] = [root["rootCertificateId"] for root in roots]
    body = dict(contract.body)
    xml = exi.to_xml(exi.decode(base64.b64decode(body.pop("certificateInstallationRes"))))
    body["signedContractDataXML"] = base64.b64encode(xml).decode()
    known["response"] = [body["signedContractDataXML"]]
    return {kind: [str(value) for value in values] for kind, values in known.items()}, body


def explore(pool: Pool, file: str, party: str | None, *, examples: int) -> tuple[Counter[tuple[str, int]], list[str]]:
    """Drive the pool with requests made from a description. examples: made up for each operation."""
    known, body_of_put = furnish(pool)
    settings = config(
        pool,
        party,
        examples,
        known=known,
        places={
            "path.emaid": "emaid",
            "path.pcid": "pcid",
            "path.rootCertificateId": "listed",
            "query.cpsV2GRootCertificateFingerprint": "root",
            "query.xsdMsgDefNamespace": "namespace",
            "body.emaid": "emaid",
            "body.pcid": "pcid",
            "body.certificateInstallationReq": "request",
            "body.signedContractDataXML": "response",
            "body.xsdMsgDefNamespace": "namespace",
        },
    )
    description = mended(file)
    if file == RCP:  # The operator's operations are not offered; docs/spec-divergences.md says so.
        del description["paths"]["/v1/root/rootCerts"]["put"]
        del description["paths"]["/v1/root/rootCerts/{rootCertificateId}"]["delete"]
    else:  # An optional member that is null counts as absent; docs/spec-divergences.md says so.
        for name in ("GetSignedContractDataRequest", "SignedContractDataRequest"):
            description["components"]["schemas"][name]["properties"]["metadata"]["nullable"] = True
    schema = schemathesis.openapi.from_dict(description, config=settings)

    @schema.hook("map_body")
    def whole(context: Any, body: Any) -> Any:
        """A PUT succeeds only when all of its members belong together: where the response is a real one, all are."""
        real = isinstance(body, dict) and body.get("signedContractDataXML") == known["response"][0]
        return body_of_put if real and context.operation.method == "put" else body

    @schema.hook("map_path_parameters")
    def together(context: Any, path_parameters: Any) -> Any:
        """An EMAID that is known comes with its own car; and what is deleted is not what the others ask for."""
        values = path_parameters or {}
        if context.operation.path.endswith("/{id}"):
            kind, pattern = (
                ("deleted", EMAID_PATTERN) if context.operation.method == "delete" else ("pcid", PCID_PATTERN)
            )
            if not re.fullmatch(pattern, str(values.get("id")), re.ASCII):
                return path_parameters
            return {**values, "id": known[kind][len(str(values["id"])) % len(known[kind])]}
        if values.get("emaid") in known["emaid"] and values.get("pcid") in known["pcid"]:
            return {**values, "pcid": known["pcid"][known["emaid"].index(values["emaid"])]}
        return path_parameters

    return run(schema)


@pytest.mark.parametrize("file", [CCP, RCP])
def test_opcp_answers_requests_made_from_its_description_as_it_says(furnished: Pool, file: str) -> None:
    answers, failures = explore(furnished, file, "everything", examples=25)
    assert not failures, "\n\n".join(failures)
    # It is no proof if nothing gets past the first check: every operation has to have succeeded and failed.
    for operation, status in SUCCESS[file].items():
        assert answers[operation, status], f"no {status} for {operation}: {answers}"
        failed = FAILURE.get(operation, 400)
        assert answers[operation, failed], f"no {failed} for {operation}: {answers}"


@pytest.mark.parametrize("file", [CCP, RCP])
def test_opcp_answers_401_to_every_described_request_without_a_token(furnished: Pool, file: str) -> None:
    answers, failures = explore(furnished, file, None, examples=5)
    assert not failures, "\n\n".join(failures)
    assert {operation for operation, _ in answers} == set(SUCCESS[file])
    assert {status for _, status in answers} <= {401, 405}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.sentence[:40])
def test_opcp_description_still_has_each_listed_mistake(mistake: Mistake) -> None:
    before = published(mistake.file)
    after = copy.deepcopy(before)
    for other in MISTAKES:
        if other.file == mistake.file:
            reference = copy.deepcopy(after)
            other.mend(after)
            if other is mistake:
                assert after != reference
    assert opcp_description.mended(mistake.file) == after
