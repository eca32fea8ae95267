"""Pages of the audit trail: each row of a period once, whatever the times of the rows; times as they are typed."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.server.console.browsing import Browser, Page
from tests.world import Pool

INSERT = (
    "insert into audit (lane, number, at, actor, action, outcome, trace_id, subject, salt, commitment, hash) values "
)


@pytest.fixture(autouse=True)
def rows_removed(pool: Pool) -> Iterator[None]:
    """Remove the rows that a test has inserted."""
    yield
    pool.sql("delete from audit where lane >= 90")
    pool.sql("delete from refusal where client_id = 'edge'")


def insert(pool: Pool, rows: list[tuple[int, int, int, str, str, str]]) -> None:
    """Rows of lane, number, microseconds, actor, outcome and subject."""
    for start in range(0, len(rows), 100):
        part = rows[start : start + 100]
        places = ", ".join("(?, ?, ?, ?, 'party.edited', ?, null, ?, '', '', '')" for _ in part)
        pool.sql(INSERT + places, *(value for row in part for value in row))


def walked(person: Browser, path: str) -> list[list[int]]:
    """The numbers of the rows on each page, from the first to the last."""
    pages = []
    while path:
        answer = person.get(path)
        assert answer.status_code == 200, answer.text
        pages.append([int(number) for number in re.findall(r"row-(\d+)-", answer.text)])
        path = next((link for link in Page(answer.text).links if "/audit?" in link and "before=" in link), "")
        assert len(pages) < 500, "the pages come to an end"
    return pages


@pytest.mark.parametrize("seed", range(8))
def test_audit_pages_have_each_row_of_the_period_once(
    pool: Pool, person: Browser, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Rows of few times in many shards; searches that stop after few rows; conditions that match some of them."""
    generator = random.Random(seed)
    monkeypatch.setattr("ccp.server.console.pages.audit.ROWS", generator.choice([1, 3, 7]))
    monkeypatch.setattr("ccp.server.console.pages.audit.EXAMINED", generator.choice([1, 2, 10, 40]))
    now = int(time.time() * 1_000_000)
    times = [now - generator.randrange(86_000_000_000) for _ in range(generator.choice([1, 2, 6]))]
    rows, expected = [], {}
    for number in range(60):
        lane, at, is_ok = 90 + generator.randrange(5), generator.choice(times), generator.random() < 0.7
        named = generator.choice(["DEEXAT00000001", "DEEXAT000000012"])
        rows.append(
            (lane, number, at, "edge", "ok" if is_ok else "refused", f'{{"emaid":"{named}","x":"row-{number}-"}}')
        )
        expected[number] = ((-at, lane, -number), is_ok, named)
    insert(pool, rows)
    conditions: list[tuple[dict[str, str], Any]] = [
        ({"actor": "edge"}, lambda is_ok, named: True),
        ({"actor": "edge", "outcome": "ok"}, lambda is_ok, named: is_ok),
        ({"actor": "edge", "outcome": "refused"}, lambda is_ok, named: not is_ok),
        # The database finds rows of the longer id too.
        ({"actor": "edge", "id": "DEEXAT00000001"}, lambda is_ok, named: named == "DEEXAT00000001"),
    ]
    for query, matches in conditions:
        found = [number for page in walked(person, f"/audit?{urlencode(query)}") for number in page]
        wanted = sorted((key, number) for number, (key, *facts) in expected.items() if matches(*facts))
        assert found == [number for _, number in wanted], query


def test_audit_pages_without_conditions_have_each_row_once(
    pool: Pool, person: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccp.server.console.pages.audit.ROWS", 7)
    now = int(time.time() * 1_000_000)
    insert(pool, [(90 + number % 4, number, now, "edge", "ok", f'{{"x":"row-{number}-"}}') for number in range(30)])
    found = [number for page in walked(person, "/audit") for number in page]
    assert sorted(found) == list(range(30))
    assert len(walked(person, "/audit")[0]) == 7


def test_audit_pages_keep_their_period(pool: Pool, person: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second page does not begin a period of its own, with rows from before the first one."""
    monkeypatch.setattr("ccp.server.console.pages.audit.ROWS", 5)
    now, hour = int(time.time() * 1_000_000), 3_600_000_000
    insert(pool, [(90, number, now - number * hour, "edge", "ok", f'{{"x":"row-{number}-"}}') for number in range(48)])
    found = [number for page in walked(person, "/audit?actor=edge&days=1") for number in page]
    assert found == list(range(24))


@pytest.mark.parametrize(
    "before", ["x", "1", "1.2", "1.2.3.4", "-1.2.3", "1.-2.3", "1.99999.3", "1e9.1.1", "9" * 40, "1.2.\u0663"]
)
def test_audit_place_that_is_not_one_is_refused(person: Browser, before: str) -> None:
    answer = person.get(f"/audit?{urlencode({'before': before})}")
    assert (answer.status_code, "before : is no place in the trail" in answer.text) == (400, True)


@pytest.mark.parametrize("before", ["0.0.0", "99999999999999999.32767.999999999999999999", "1.32767.0"])
def test_audit_place_at_the_edges_is_served(person: Browser, before: str) -> None:
    for more in ("", "&actor=edge"):
        assert person.get(f"/audit?before={before}{more}").status_code == 200


LOCAL = ("UTC", "Asia/Kolkata", "America/St_Johns")
"""Zones of the machine."""


@pytest.fixture(params=LOCAL)
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The time zone of the machine on which the pool runs."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def test_times_that_are_typed_are_in_utc(pool: Pool, person: Browser, zone: str) -> None:
    """One minute around a row and a refusal, without an offset and with several."""
    moment = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
    at = int(moment.timestamp() * 1_000_000)
    insert(pool, [(90, 1, at, "edge", "ok", '{"x":"row-1-"}')])
    pool.sql(
        "insert into refusal (id, at, client_id, operation, dialect, status, code, reason) "
        "values ('row-2-', ?, 'edge', 'deliver', 'opnc', 400, 'exi-invalid', '')", at,
    )  # fmt: skip
    early, late = moment - timedelta(seconds=30), moment + timedelta(seconds=30)
    india = timedelta(hours=5, minutes=30)
    for first, last, found in (
        ("2026-03-01T12:00", "2026-03-01T12:01", True),
        ("2026-03-01T12:00Z", "2026-03-01T12:01:00Z", True),
        ((early + india).isoformat()[:16] + "+05:30", (late + india).isoformat()[:16] + "+05:30", True),
        ("2026-03-01T12:01", "2026-03-01T12:02", False),
        ("2026-03-01T11:59", "2026-03-01T12:00", False),
        ("2026-03-01T12:00+05:30", "2026-03-01T12:01+05:30", False),
    ):
        query = urlencode({"since": first, "until": last, "actor": "edge", "caller": "edge"})
        for path, named in (("/audit", "row-1-"), ("/refusals", "edge</td>")):
            answer = person.get(f"{path}?{query}")
            assert answer.status_code == 200
            assert (named in answer.text) is found, (path, first, last)


@pytest.mark.parametrize("path", ["/audit?until=", "/audit?since=", "/refusals?since=", "/refusals?until="])
def test_time_that_is_none_is_refused_with_one_sentence(person: Browser, path: str) -> None:
    for wrong in (
        "x",
        "2026-13-01",
        "0001-01-01T00:00+01:00",
        "9999-12-31T23:59:59-23:00",
        "12:00",
        "\0",
        "²026-01-01",
    ):
        answer = person.get(path + urlencode({"": wrong})[1:])
        assert answer.status_code == 400, wrong
        assert "must be a time such as 2026-03-01T12:00, which is in UTC" in Page(answer.text).text


def test_pages_with_times_to_type_say_that_they_are_in_utc(person: Browser) -> None:
    for path, labels in (("/audit", ["Until (UTC)"]), ("/refusals", ["From (UTC)", "To (UTC)"])):
        page = person.page(path)
        typed = [given["name"] for tag, given in page.elements if given.get("type") == "datetime-local"]
        assert len(typed) == len(labels)
        for label in labels:
            assert label in page.text
