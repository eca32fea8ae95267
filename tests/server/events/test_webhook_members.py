"""Every published member of webhooks, in requests and in answers, in each dialect that has them.

The tables in docs/conformance-opnc.md and docs/conformance-opcp.md refer to these tests.
"""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.server.http.api.answers import sentences
from tests.world import Pool

pytestmark = pytest.mark.usefixtures("forget")

BASES = {"opnc": "/opnc/v1/event/endpoints", "opcp": "/v1/webhook/endpoints"}
every_dialect = pytest.mark.parametrize("dialect", BASES)
URL = "https://hooks.example/ccp"
OWNERS = {
    "oem": ("oem.contract.created", "oem.contract.deleted", "wmis", ["WEX"], {"opnc": "OEM", "opcp": "OEM"}),
    "emsp": (
        "mo.contract.created.sent.to.oem",
        "mo.contract.rejected.by.oem",
        "providerIds",
        ["DEEXA"],
        {"opnc": "eMSP", "opcp": "MO"},
    ),
}
every_owner = pytest.mark.parametrize("owner", OWNERS)


def call(pool: Pool, dialect: str, party: str, method: str, path: str = "", **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {pool.token(party)}"}
    return pool.http.request(method, BASES[dialect] + path, headers=headers, **options)


def ok(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json()


@every_dialect
@every_owner
def test_webhook_answers_have_every_published_member(pool: Pool, dialect: str, owner: str) -> None:
    one, other, ids, values, roles = OWNERS[owner]
    body = {
        "url": URL, "enabledEvents": [one, other], "status": "enabled", "apiVersion": "v1", "description": "A test",
        "metadata": {"key": "value"},
    }  # fmt: skip
    made = ok(call(pool, dialect, owner, "POST", json=body), 201)
    expected = {**body, ids: values, "userRole": roles[dialect], "userName": owner}
    assert len(made["secret"]) >= 43
    assert abs(made["created"] - time.time()) < 60
    assert {name: made[name] for name in expected} == expected
    path = f"/{made['id']}"
    listed = ok(call(pool, dialect, owner, "GET"))
    changed = ok(call(pool, dialect, owner, "PUT", path, json={"url": URL, "enabledEvents": one, "status": "disabled"}))
    for found, more in (
        (*listed, {}),
        (changed, {"enabledEvents": [one], "status": "disabled"}),
        (ok(call(pool, dialect, owner, "GET", path)), {"enabledEvents": [one], "status": "disabled"}),
    ):
        wanted = {**expected, "id": made["id"], "created": made["created"], **more}
        assert {name: found[name] for name in wanted} == wanted
    # A secret is shown once, when the pool has made it.
    assert not any("secret" in found for found in (listed[0], changed, ok(call(pool, dialect, owner, "GET", path))))


@every_dialect
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_webhook_requests_have_every_published_member(pool: Pool, dialect: str, method: str) -> None:
    """A wrong value is named, and nothing changes."""
    body: dict[str, Any] = {"url": URL, "enabledEvents": ["oem.contract.created"]}
    made = ok(call(pool, dialect, "oem", "POST", json=body), 201)
    path = f"/{made['id']}" if method == "PUT" else ""
    before = pool.sql("select * from webhook")
    wrong = {
        "url": 5, "enabledEvents": ["oem.contract.moved"], "status": "paused", "apiVersion": "v2",
        "description": {}, "metadata": "text",
    }  # fmt: skip
    if dialect == "opnc" and method == "POST":
        wrong["wmi"] = "WXB"
    for name, value in wrong.items():
        messages = sentences(call(pool, dialect, "oem", method, path, json={**body, name: value}), 400)
        assert all(message.startswith(name) for message in messages), messages
    assert pool.sql("select * from webhook") == before
    good = {"description": "New", "metadata": {"a": 1}, "status": "disabled", "apiVersion": "v1"}
    if dialect == "opnc" and method == "POST":
        good["wmi"] = ["WEX"]
    status = 201 if method == "POST" else 200
    found = ok(call(pool, dialect, "oem", method, path, json={**body, **good}), status)
    assert [found[name] for name in ("description", "metadata", "status")] == ["New", {"a": 1}, "disabled"]


@every_dialect
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_webhook_id_in_a_path_names_the_webhook(pool: Pool, dialect: str, method: str) -> None:
    body = {"url": URL, "enabledEvents": ["oem.contract.created"]}
    one, other = (ok(call(pool, dialect, "oem", "POST", json=body), 201)["id"] for _ in range(2))
    options = {"json": {**body, "description": "Changed"}} if method == "PUT" else {}
    assert call(pool, dialect, "oem", method, f"/{other}", **options).status_code == 200
    rows = dict(pool.sql("select id, description from webhook"))
    assert rows.get(one) == ""
    assert rows.get(other) == {"GET": "", "PUT": "Changed", "DELETE": None}[method]
    for unknown in ("00000000-0000-4000-8000-000000000000", "x"):
        assert sentences(call(pool, dialect, "oem", method, f"/{unknown}", **options), 404)
