"""The webhook service of OPCP matches the published description (`tests.opcp_description`)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import schemathesis

from tests.opcp_description import WEBHOOKS, mended, published, requires_description
from tests.schema_run import config, run
from tests.server.events.webhook_api import CREATED, URL, subscribe
from tests.world import Pool

pytestmark = requires_description

BASE = "/v1/webhook/endpoints"
SUCCESS = {
    f"POST {BASE}": 201,
    f"GET {BASE}": 200,
    f"GET {BASE}/{{id}}": 200,
    f"PUT {BASE}/{{id}}": 200,
    f"DELETE {BASE}/{{id}}": 200,
}


def explore(pool: Pool, party: str | None, *, examples: int) -> tuple[Counter[tuple[str, int]], list[str]]:
    """Drive the pool with requests made from the description. examples: made up for each operation."""
    pool.sql("delete from webhook")
    made = [subscribe(pool, "everything", CREATED)["id"] for _ in range(20)]
    disposable = iter(made[2:])
    description = mended(WEBHOOKS)
    for name in ("EndpointRequest", "EndpointUpdateRequest"):
        members = description["components"]["schemas"][name]["properties"]
        # What docs/spec-divergences.md says: null counts as absent, and a single event may stand for a list.
        for member in ("apiVersion", "description", "metadata", "status"):
            members[member]["nullable"] = True
        listed = members["enabledEvents"]
        members["enabledEvents"] = {"anyOf": [listed, {"$ref": "#/components/schemas/Event"}], "nullable": True}
    schema = schemathesis.openapi.from_dict(description, config=config(pool, party, examples))

    @schema.hook("map_path_parameters")
    def there(context: Any, path_parameters: Any) -> Any:
        """Mostly an id that exists; each can be deleted once."""
        if not path_parameters or len(str(path_parameters.get("id"))) % 3 == 0:
            return path_parameters
        known = next(disposable, made[0]) if context.operation.method == "delete" else made[1]
        return {**path_parameters, "id": known}

    @schema.hook("map_body")
    def possible(context: Any, body: Any) -> Any:
        """An address that can be one, in every other body that has one."""
        if not isinstance(body, dict) or not isinstance(body.get("url"), str) or len(body["url"]) % 2:
            return body
        return {"url": URL, "enabledEvents": [CREATED], "status": "enabled"}

    return run(schema)


def test_opcp_webhooks_match_the_published_description(pool: Pool) -> None:
    answers, failures = explore(pool, "everything", examples=15)
    assert not failures, "\n\n".join(failures)
    for operation, status in SUCCESS.items():
        assert answers[operation, status], f"no {status} for {operation}: {answers}"
    for operation in (f"POST {BASE}", f"PUT {BASE}/{{id}}"):
        assert answers[operation, 400], f"no 400 for {operation}: {answers}"
    for method in ("GET", "PUT", "DELETE"):
        assert answers[f"{method} {BASE}/{{id}}", 404], f"no 404 for {method}: {answers}"


def test_opcp_webhooks_answer_401_without_a_token(pool: Pool) -> None:
    answers, failures = explore(pool, None, examples=5)
    assert not failures, "\n\n".join(failures)
    assert {operation for operation, _ in answers} == set(SUCCESS)
    assert {status for _, status in answers} <= {401, 405}


def test_opcp_description_and_own_one_have_the_same_webhook_members(pool: Pool) -> None:
    schemas = published(WEBHOOKS)["components"]["schemas"]
    own = pool.http.get("/openapi.json").json()["components"]["schemas"]
    for published_name, name in (
        ("EndpointRequest", "PostEndpointReq"),
        ("EndpointUpdateRequest", "PutEndpointUpdateReq"),
        ("EndpointResponse", "Endpoint"),
    ):
        assert set(schemas[published_name]["properties"]) <= set(own[name]["properties"]), name
    subscribed = own["PostEndpointReq"]["properties"]["enabledEvents"]
    assert set(schemas["Event"]["enum"]) <= set(str(subscribed).replace("'", " ").split())
