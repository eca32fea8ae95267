"""What the pages ask a large database: every statement of every page has a plan by an index, and reads few rows."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from ccp.testing.pki import PKI
from tests.databases import with_schema
from tests.server.console.browsing import Browser, admin, logged_in
from tests.server.console.many_rows import ROWS, WEBHOOK, Recording, fill, recorded, rows_read, steps_run
from tests.server.storage.plans import plan
from tests.world import Pool, start

BOUND = 500
"""Rows that a search examines in these tests, in place of ten or fifty thousand."""
ELSEWHERE = {
    "console peers party id test", "console services prefix test", "console webhooks id ping", "console health examine",
    "console audit verify", "console login oidc", "console login oidc return",
}  # fmt: skip
"""Operations that call other systems or start a task."""
PAGES = (
    "/overview", "/overview?period=30d", "/contested", "/contested?after=WEX0LARGE10000500", "/search",
    "/search?q=WEX0LARGE10000001", "/search?q=DEEXAL10000001", "/search?q=WEX0LARGE99999999", "/why",
    "/why?q=01234567-89ab-cdef-0123-456789abcdef", "/why?q=WEX0LARGE10000001", "/why?q=DEEXAL10000001", "/refusals",
    "/parties", "/parties/large-7", "/parties?after=large-200", "/webhooks", "/webhooks?after=webhook-200",
    "/partners", "/peers/absent", "/anchors", "/audit", "/health", "/sessions", "/vehicles/WEX0LARGE10000001",
    "/vehicles/WEX0LARGE10000002",
)  # fmt: skip


def searches(now: int) -> Iterator[str]:
    """Searches whose conditions match nothing, or everything, from the newest and from an older row."""
    older = f"{now - 2000}.21.9"
    for before in ({}, {"before": older}):
        for query in (
            {"actor": "absent"}, {"actor": "many"}, {"action": "contract.published"}, {"outcome": "refused"},
            {"id": "DEEXAL99999999"}, {"days": "31", "until": "2026-01-01T00:00"}, {},
        ):  # fmt: skip
            yield f"/audit?{urlencode({'days': '31', **query, **before})}"
            yield f"/audit/export?{urlencode({'days': '31', **query, **before})}"
    for after in ({}, {"after": f"{now - 2000}."}):
        for query in (
            {"caller": "absent"}, {"caller": "cpo"}, {"code": "no-valid-contract"}, {"code": "role-missing"},
            {"dialect": "ocpp"}, {"edition": "urn:iso:15118:20:2020:MsgDef"}, {"id": "WEX0LARGE10000001"},
            {"id": "DEEXAL10000001", "dialect": "ocpp"}, {"id": "WEX0LARGE10000001", "code": "role-missing"},
            {"code": "no-valid-contract", "caller": "absent", "since": "2026-01-01T00:00"}, {},
        ):  # fmt: skip
            yield f"/refusals?{urlencode({**query, **after})}"
    for state in ("", "waiting", "delivered", "dead"):
        for cursor in ("", "1970-01-01T00:00:00.010000+00:00 event-10000"):
            yield f"/webhooks/{WEBHOOK}?{urlencode({'state': state, 'before': cursor})}"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "sqlite":
        return with_schema(f"sqlite:///{tmp_path_factory.mktemp('large')}/ccp.db")
    made: str = request.getfixturevalue("postgres").database()
    return made


@pytest.fixture(scope="module")
def recording(url: str, pkis: dict[str, PKI]) -> Iterator[Recording]:
    """The statements of every page of a pool with many rows."""
    now = int(time.time() * 1_000_000)
    with pytest.MonkeyPatch.context() as patch, recorded() as found:
        patch.setattr("ccp.server.console.pages.audit.EXAMINED", BOUND)
        patch.setattr("ccp.server.storage.queries.refusals.SEARCHED", BOUND)
        patch.setattr("ccp.server.console.pages.vehicles._AUDIT_ROWS", BOUND)
        patch.setattr("ccp.server.console.pages.audit._EXPORTED", BOUND)
        with start(pkis, [admin(), admin("second_admin")], console=True, database=url) as pool:
            contract = pool.publish(pool.car())
            fill(url, now)
            with logged_in(pool) as person:
                visit(pool, person, [*PAGES, f"/contracts/{contract.emaid}", *searches(now)])
                act(person)
        yield found


def visit(pool: Pool, person: Browser, paths: list[str]) -> None:
    for path in paths:
        answer = person.get(path)
        assert answer.status_code in (200, 303, 404), (path, answer.status_code, answer.text)
        assert len(answer.content) < 100_000 or "/export" in path, path
    with logged_in(pool, "second_admin") as other:
        other.get("/login")
        other.get("/nothing")
        other.act("/overview", "/logout")


def act(person: Browser) -> None:
    """The actions that change something here."""
    token = person.page("/overview").form("/logout").fields
    for path, more in (
        ("/parties/large-9/rotate-secret", {"overlap": "0"}), ("/parties/large-9/disable", {}),
        ("/parties/large-9/enable", {}), ("/webhooks/webhook-9/disable", {}), ("/webhooks/webhook-9/enable", {}),
        ("/webhooks/webhook-9/rotate-secret", {"ends": "now"}), (f"/webhooks/{WEBHOOK}/replay", {}),
        ("/webhooks/webhook-9/replay", {"event_id": "event-9"}), ("/sessions/0123456789abcdef/end", {}),
        ("/peers/absent/disable", {}), ("/peers/absent/enable", {}), ("/why", {"message": "00"}),
    ):  # fmt: skip
        answer = person.post(path, {**token, **more})
        assert answer.status_code in (200, 303, 400, 404), (path, answer.status_code, answer.text)


def test_pages_are_all_recorded(recording: Recording) -> None:
    assert recording.operations - recording.visited <= ELSEWHERE


def test_queries_of_pages_scan_no_large_table(url: str, recording: Recording) -> None:
    large = "|".join(ROWS)
    found = set()
    for operation, statement, parameters in dict.fromkeys(recording.statements):
        explained = plan(url, statement, parameters)
        # A list reads an index in its order up to its limit; see the next test. A change must find its rows.
        ordered = "(?! USING)" if statement.lstrip().startswith("select") else ""
        scans = re.findall(rf"(?:SCAN (?:{large})\b{ordered}.*|Seq Scan on (?:{large})\b.*)", explained)
        found |= {(operation, scan, statement) for scan in scans}
    assert not found, "\n".join(map(str, sorted(found)))


def test_queries_of_pages_read_few_rows(url: str, recording: Recording) -> None:
    """Of sixty times as many rows as a search may examine."""
    cost, limit = (steps_run, 100 * BOUND) if url.startswith("sqlite") else (rows_read, 8 * BOUND)
    found = {
        (cost(url, statement, parameters), operation, statement, str(parameters))
        for operation, statement, parameters in dict.fromkeys(recording.statements)
        if statement.lstrip().startswith("select") and "for update" not in statement
    }
    assert len(found) > 100
    expensive = sorted(each for each in found if each[0] > limit)
    assert not expensive, "\n".join(map(str, expensive))
