"""The event service matches the published description and its own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import schemathesis

from ccp.server.domain.authorization import EventOperation
from tests.schema_run import ANSWERS, config, run
from tests.server.events.webhook_api import BASE, CREATED, URL, fanned_out, subscribe
from tests.world import Pool

PUBLISHED = Path(__file__).resolve().parents[4] / "shared/opnc-spec/apis/event/event.api.v1.json"


def explore(pool: Pool, schema: Any) -> tuple[Counter[tuple[str, int]], list[str]]:
    """Drive the pool with requests made from a description; how many answers there were, and what was wrong."""
    made = [subscribe(pool, "everything", CREATED)["id"] for _ in range(12)]
    fanned_out(pool, pool.publish(pool.car(wmi="ALL")))
    own = iter(made[2:])

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

    return run(schema)


SUCCESS = {
    f"POST {BASE}": 201,
    f"GET {BASE}": 200,
    f"GET {BASE}/{{id}}": 200,
    f"PUT {BASE}/{{id}}": 200,
    f"DELETE {BASE}/{{id}}": 200,
}


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"the published description is not at {PUBLISHED}")
def test_event_service_matches_the_published_description(pool: Pool) -> None:
    settings = config(pool, "everything", 3, checks=ANSWERS, facets=False)
    schema = schemathesis.openapi.from_path(PUBLISHED, config=settings)
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
    schema = schemathesis.openapi.from_dict(described, config=config(pool, "everything", 4))
    answers, failures = explore(pool, schema)
    assert not failures, "\n\n".join(failures)
    for operation, status in {**SUCCESS, f"GET {BASE}/{{id}}/deliveries": 200}.items():
        assert answers[operation, status], (operation, answers)
    assert answers[f"POST {BASE}", 400]
    assert answers[f"PUT {BASE}/{{id}}", 400]


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"the published description is not at {PUBLISHED}")
def test_description_of_our_own_has_every_published_member(pool: Pool) -> None:
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
