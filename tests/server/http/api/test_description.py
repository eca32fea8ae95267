"""The published description of the API, held against a pool that runs.

The description lies beside the repository and is not part of it; where it is absent these tests are skipped and say so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis

from ccp.server.http.routes.opnc import BASE
from ccp.testing.pki import PKI
from tests.schema_run import config, run
from tests.world import AT, SESSION, Pool, new_emaid, post_body, start

PUBLISHED = Path(__file__).resolve().parents[5] / "shared/opnc-spec/apis/ccp/ccp.api.v1.json"

pytestmark = pytest.mark.skipif(not PUBLISHED.exists(), reason=f"the published description is not at {PUBLISHED}")


@pytest.fixture(scope="module")
def furnished(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start(pkis) as running:
        yield running


def furnish(pool: Pool) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Store contracts for a party with every role. Returns values that make requests succeed, and a PUT's body."""
    known: dict[str, list[Any]] = {kind: [] for kind in ("emaid", "pcid", "deleted", "request", "namespace")}
    for edition in ("iso2", "iso2", "iso20"):
        car = pool.car(edition, wmi="ALL")
        known["deleted"].append(pool.publish(car, new_emaid("DEALL")).emaid)
        contract = pool.publish(car, new_emaid("DEALL"))
        known["emaid"].append(contract.emaid)
        known["pcid"].append(car.pcid)
        known["request"].append(post_body(car.request(SESSION, AT), "")["certificateInstallationReq"])
        known["namespace"].append(car.namespace)
    known["response"] = [contract.body["certificateInstallationRes"]]
    return {kind: [str(value) for value in values] for kind, values in known.items()}, contract.body


def explore(pool: Pool, party: str | None, *, examples: int) -> tuple[Counter[tuple[str, int]], list[str]]:
    """Drive the pool with requests made from the description.

    examples: made up for each operation, beside those that cover every facet of its schema. Returns how many answers
    there were by operation and status, and what was wrong with them.
    """
    known, published = furnish(pool)
    settings = config(
        pool,
        party,
        examples,
        base=BASE,
        known=known,
        places={
            "path.emaid": "emaid",
            "path.pcid": "pcid",
            "body.emaid": "emaid",
            "body.pcid": "pcid",
            "body.certificateInstallationReq": "request",
            "body.certificateInstallationRes": "response",
            "body.xsdMsgDefNamespace": "namespace",
        },
    )
    schema = schemathesis.openapi.from_path(PUBLISHED, config=settings)

    @schema.hook("map_body")
    def whole(context: Any, body: Any) -> Any:
        """A PUT succeeds only when all of its members belong together: where the response is a real one, all are."""
        real = isinstance(body, dict) and body.get("certificateInstallationRes") == known["response"][0]
        return {**body, **published} if real and context.operation.method == "put" else body

    @schema.hook("map_path_parameters")
    def together(context: Any, path_parameters: Any) -> Any:
        """An EMAID that is known comes with its own car; and what is deleted is not what the others ask for."""
        emaid = (path_parameters or {}).get("emaid")
        if emaid not in known["emaid"]:
            return path_parameters
        if context.operation.method == "delete":
            return {**path_parameters, "emaid": known["deleted"][known["emaid"].index(emaid)]}
        if path_parameters.get("pcid") in known["pcid"]:
            return {**path_parameters, "pcid": known["pcid"][known["emaid"].index(emaid)]}
        return path_parameters

    return run(schema)


SUCCESS = {
    "GET /contractData/emaid/{emaid}": 200,
    "GET /contractData/pcid/{pcid}": 200,
    "POST /signedcontractdata": 200,
    "PUT /signedcontractdata": 201,
    "DELETE /signedcontractdata/{emaid}": 200,
    "GET /signedcontractdata/{emaid}/{pcid}": 200,
    "POST /signedcontractdata/{emaid}/{pcid}/setdefault": 200,
}


def test_requests_made_from_the_description_are_answered_as_it_says(furnished: Pool) -> None:
    answers, failures = explore(furnished, "everything", examples=60)
    assert not failures, "\n\n".join(failures)
    # It is no proof if nothing gets past the first check: every operation has to have succeeded and failed.
    for operation, status in SUCCESS.items():
        assert answers[operation, status], f"no {status} for {operation}: {answers}"
        assert answers[operation, 400], f"no 400 for {operation}: {answers}"


def test_requests_of_the_description_without_a_token_are_401(furnished: Pool) -> None:
    answers, failures = explore(furnished, None, examples=10)
    assert not failures, "\n\n".join(failures)
    assert {operation for operation, _ in answers} == set(SUCCESS)
    # 405: the description's paths are also asked with methods that it does not know.
    assert {status for _, status in answers} <= {401, 405}


@pytest.mark.parametrize("edition", ["iso2", "iso20", "ed448"])
def test_description_states_the_shape_of_answers_about_contracts(furnished: Pool, edition: str) -> None:
    pool, description = furnished, schemathesis.openapi.from_path(PUBLISHED)
    car = pool.car(edition)
    contract = pool.publish(car)
    query = {"xsdMsgDefNamespace": str(car.namespace)}
    by_emaid = description["/contractData/emaid/{emaid}"]["GET"]
    by_pcid = description["/contractData/pcid/{pcid}"]["GET"]
    signed = description["/signedcontractdata/{emaid}/{pcid}"]["GET"]
    for operation, answer in (
        (by_emaid, pool.emsp.get(f"/contractData/emaid/{contract.emaid}", params=query)),
        (by_pcid, pool.oem.get(f"/contractData/pcid/{car.pcid}", params=query)),
        (description["/signedcontractdata"]["POST"], pool.post(car)),
        (description["/signedcontractdata"]["POST"], pool.post(pool.car(edition))),
        (signed, pool.signed(contract.emaid, car)),
    ):
        assert answer.status_code == 200
        operation.validate_response(schemathesis.Response.from_httpx(answer, verify=True))


# --- Our own description ---------------------------------------------------------------------------------------------


def members(schema: dict[str, Any], at: Path) -> dict[str, Any]:
    """The members of an object of the published description, and of the objects in its arrays, by name."""
    schema, at = resolved(schema, at)
    if schema.get("type") == "array":
        return members(schema["items"], at)
    return {name: members(value, at) for name, value in schema.get("properties", {}).items()}


def resolved(value: dict[str, Any], at: Path) -> tuple[dict[str, Any], Path]:
    while "$ref" in value:
        at = (at.parent / value["$ref"]).resolve()
        value = json.loads(at.read_text(encoding="utf-8"))
    return value, at


def own_members(schema: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    if schema.get("type") == "array":
        return own_members(schema["items"], description)
    return {name: own_members(value, description) for name, value in schema.get("properties", {}).items()}


def lacks(published: dict[str, Any], own: dict[str, Any], path: str = "") -> list[str]:
    missing = []
    for name, value in published.items():
        if name not in own:
            missing.append(f"{path}{name}")
        else:
            missing += lacks(value, own[name], f"{path}{name}.")
    return missing


def operations() -> Iterator[tuple[str, str, dict[str, Any], Path]]:
    """Path, method and operation of the published description, and the file that the operation stands in."""
    for path, reference in json.loads(PUBLISHED.read_text(encoding="utf-8"))["paths"].items():
        item, at = resolved(reference, PUBLISHED)
        for method, operation in item.items():
            yield path, method, operation, at


def content(part: dict[str, Any]) -> dict[str, Any]:
    """The schema of a JSON body, empty where there is none."""
    schema: dict[str, Any] = part.get("content", {}).get("application/json", {}).get("schema", {})
    return schema


def test_description_of_our_own_has_every_published_operation_parameter_and_member(furnished: Pool) -> None:
    own = furnished.http.get("/openapi.json").json()
    found = list(operations())
    assert len(found) == 7
    for path, method, published, at in found:
        mine = own["paths"][BASE + path][method]
        where = f"{method.upper()} {path}"
        assert mine["operationId"] == published["summary"]
        parameters = {(p["in"], p["name"].lower()): p for p in mine["parameters"]}
        for parameter in (resolved(one, at)[0] for one in published["parameters"]):
            described = parameters[parameter["in"], parameter["name"].lower()]
            assert described["name"] == parameter["name"]
            assert described.get("required", False) == parameter.get("required", False), (where, parameter["name"])
        if "requestBody" in published:
            body, place = resolved(published["requestBody"], at)
            assert not lacks(members(content(body), place), own_members(content(mine["requestBody"]), own)), where
            required = set(resolved(content(body), place)[0]["required"])
            name = content(mine["requestBody"])["$ref"].rsplit("/", 1)[1]
            assert set(own["components"]["schemas"][name]["required"]) == required, where
        assert set(published["responses"]) - {"502"} <= set(mine["responses"]), where
        for status, answer in published["responses"].items():
            if content(answer):
                shape = own_members(content(mine["responses"][status]), own)
                assert not lacks(members(content(answer), at), shape), (where, status)


def test_description_of_our_own_stands_on_its_own(furnished: Pool) -> None:
    own = furnished.http.get("/openapi.json").json()
    assert own["openapi"].startswith("3.")
    names = set(own["components"]["schemas"])
    text = json.dumps(own)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in names
    assert "422" not in {status for item in own["paths"].values() for op in item.values() for status in op["responses"]}
