"""The role metrics: reads /metrics, and gains nothing anywhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from starlette.routing import Route

from ccp.server.app import create_app
from ccp.server.domain.parties import PartyRole
from ccp.testing.pki import PKI
from tests.cli.run import ccp_ok
from tests.world import Pool, party, start

MONITOR = [party("prometheus", PartyRole.METRICS)]
EVERYTHING = {
    "opcp": True,
    "metrics": "admin",
    "est_url": "https://est.example/est",
    "pcp_webhook_secret": "0123456789abcdef0123456789abcdef",
    "client_certificate_header": "X-Client-Cert",
}
PUBLIC = r"/health(/(live|ready))?|/oauth/.*|/\.well-known/(?!est/).*|/openapi\.json|/console.*"
"""Paths that answer without a token."""


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start({"iso2": pkis["iso2"]}, MONITOR, **EVERYTHING) as running:
        yield running


def routes(pool: Pool) -> list[tuple[str, str]]:
    """Method and path of every route, with ids in its path."""
    ids = {"pcid": "WEX0TEST000000001", "emaid": "DEEXAT00000001", "client_id": "emsp"}
    found = []
    for route in create_app(pool.settings).router.routes:
        assert isinstance(route, Route) or hasattr(route, "path"), route
        path = re.sub(r"{(\w+)(:\w+)?}", lambda at: ids.get(at[1], "x"), route.path)
        methods = getattr(route, "methods", None) or {"GET", "POST"}
        found += [(method, path) for method in sorted(methods - {"HEAD"})]
    return found


def test_metrics_role_reads_the_metrics(pool: Pool) -> None:
    assert pool.http.get("/metrics").status_code == 401
    answer = pool.http.get("/metrics", headers={"Authorization": f"Bearer {pool.token('prometheus')}"})
    assert answer.status_code == 200
    assert "ccp_build_info" in answer.text


def test_metrics_role_is_refused_by_every_other_route(pool: Pool) -> None:
    headers = {"Authorization": f"Bearer {pool.token('prometheus')}"}
    refused = set()
    for method, path in routes(pool):
        if path == "/metrics":
            continue
        answer = pool.http.request(method, path, headers=headers, content=b"{}")
        if answer.status_code in (401, 403):
            refused.add(path)
            continue
        # The token changes nothing, and what it does not change is public or an error.
        without = pool.http.request(method, path, content=b"{}")
        assert answer.status_code == without.status_code, f"{method} {path}: {answer.text}"
        assert answer.status_code >= 400 or re.fullmatch(PUBLIC, path), f"{method} {path}: {answer.text}"
    assert {"/opnc/v1/ccp/signedcontractdata", "/admin/v1/parties", "/v1/root/rootCerts", "/admin/v1/expiry"} <= refused
    assert len(refused) > 25


def test_metrics_role_needs_no_ids_and_is_registered_by_command(pool: Pool) -> None:
    env = {"CCP_DATABASE": pool.settings.database}
    ccp_ok("party", "add", "Monitoring", "--role", "metrics", env=env)
    assert "GetMetrics" in ccp_ok("party", "roles", env=env).out
