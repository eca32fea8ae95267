"""The event service matches the published description and its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis import engine
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events

from ccp.server.domain.authorization import EventOperation
from ccp.testing.pki import PKI
from tests.server.events.webhook_api import BASE, CREATED, URL, fanned_out, subscribe
from tests.server.http.api.answers import PATH_TOO_LONG
from tests.world import Pool, start

PUBLISHED = Path(__file__).resolve().parents[4] / "shared/opnc-spec/apis/event/event.api.v1.json"
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance",
)  # fmt: skip
# positive_data_acceptance is left out: a filter has to be within the caller's own ids, and an address has to be one.


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start({"iso2": pkis["iso2"]}, event_dispatch=False) as running:
        yield running


def explore(pool: Pool, schema: Any) -> tuple[Counter[Any], list[str]]:
    """Drive the pool with requests made from a description; how many answers there were, and what was wrong."""
    made = [subscribe(pool, "everything", CREATED)["id"] for _ in range(12)]
    fanned_out(pool, pool.publish(pool.car(wmi="ALL")))
    own = iter(made[2:])
    schema.config.update(base_url=pool.base_url, headers={"Authorization": f"Bearer {pool.token('everything')}"})

    @schema.hook("map_path_parameters")
    def there(context: Any, path_parameters: Any) -> Any:
        """Mostly an id that is there; each can be deleted once."""
        if not path_parameters or len(str(path_parameters.get("id"))) % 3 == 0:
            return path_parameters
        known = next(own, made[0]) if context.operation.method == "delete" else made[1]
        return {**path_parameters, "id": known}

    @schema.hook("map_body")
    def good(context: Any, body: Any) -> Any:
        """An address and events that can be, where the body has any members like these."""
        if not isinstance(body, dict) or not isinstance(body.get("url"), str) or len(body["url"]) % 2:
            return body
        return {"url": URL, "enabledEvents": [CREATED]}

    answers: Counter[Any] = Counter()
    failures: dict[str, str] = {}
    for event in engine.from_schema(schema).execute():
        if isinstance(event, events.FatalError):
            raise event.exception
        if isinstance(event, events.NonFatalError):
            failures[event.label] = str(event.value)
        elif isinstance(event, events.ScenarioFinished):
            label = event.recorder.label
            for case_id, interaction in event.recorder.interactions.items():
                if interaction.response is not None and interaction.response.status_code == PATH_TOO_LONG:
                    continue
                if interaction.response is not None:
                    answers[label, interaction.response.status_code] += 1
                    if interaction.response.status_code >= 400:
                        error = json.loads(interaction.response.content)
                        assert set(error) == {"errorMessages", "traceId"}
                for check in event.recorder.checks.get(case_id, []):
                    if check.failure_info is not None:
                        failure = check.failure_info.failure
                        failures[f"{label}: {failure.title}"] = f"{failure.message}\n{check.failure_info.code_sample}"
    return answers, [f"{title}\n{text}" for title, text in failures.items()]


def config(checks: tuple[str, ...], examples: int, *, facets: bool = True) -> SchemathesisConfig:
    """examples: made up for each operation. facets: whether each facet of its schema is tried too."""
    return SchemathesisConfig.from_dict(
        {
            "seed": 20,
            "generation": {"max-examples": examples, "deterministic": True, "no-shrink": True},
            "checks": {"enabled": False, **{name: {"enabled": True} for name in checks}},
            "phases": {"stateful": {"enabled": False}, "coverage": {"enabled": facets}},
        }
    )


SUCCESS = {
    f"POST {BASE}": 201,
    f"GET {BASE}": 200,
    f"GET {BASE}/{{id}}": 200,
    f"PUT {BASE}/{{id}}": 200,
    f"DELETE {BASE}/{{id}}": 200,
}


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"the published description is not at {PUBLISHED}")
def test_event_service_matches_the_published_description(pool: Pool) -> None:
    schema = schemathesis.openapi.from_path(PUBLISHED, config=config(CHECKS, 3, facets=False))
    answers, failures = explore(pool, schema)
    assert not failures, "\n\n".join(failures)
    for operation, status in SUCCESS.items():
        assert answers[operation, status], (operation, answers)


def test_event_service_matches_its_own_description(pool: Pool) -> None:
    described = pool.http.get("/openapi.json").json()
    described["paths"] = {path: item for path, item in described["paths"].items() if path.startswith(BASE)}
    operations = [operation for item in described["paths"].values() for operation in item.values()]
    assert {operation["operationId"] for operation in operations} == set(EventOperation)
    for operation in operations:  # The headers are those of every operation, and are tried out with the others.
        operation["parameters"] = [each for each in operation["parameters"] if each["in"] != "header"]
    schema = schemathesis.openapi.from_dict(described, config=config((*CHECKS, "negative_data_rejection"), 4))
    answers, failures = explore(pool, schema)
    assert not failures, "\n\n".join(failures)
    for operation, status in {**SUCCESS, f"GET {BASE}/{{id}}/deliveries": 200}.items():
        assert answers[operation, status], (operation, answers)
    assert answers[f"POST {BASE}", 400]
    assert answers[f"PUT {BASE}/{{id}}", 400]


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"the published description is not at {PUBLISHED}")
def test_own_description_has_every_published_member(pool: Pool) -> None:
    schemas = pool.http.get("/openapi.json").json()["components"]["schemas"]
    components = PUBLISHED.parents[2] / "components"
    for file, name in (
        ("requestBodies/postEndpointReq.v1.json", "PostEndpointReq"),
        ("requestBodies/putEndpointUpdateReq.v1.json", "PutEndpointUpdateReq"),
        ("responses/endpointRes.v1.json", "Endpoint"),
    ):
        published = json.loads((components / file).read_text("utf-8"))
        assert set(published["properties"]) <= set(schemas[name]["properties"]), name
        # What is needed there is needed here, but that events may stand for enabledEvents.
        assert set(published["required"]) - set(schemas[name]["required"]) <= {"enabledEvents"}, name
