"""Hash chains of the audit trail: records round-trip, and every manipulation is detected."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ccp.errors import ConfigurationError
from ccp.ids import EMAID, PCID
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import audit as queries
from ccp.server.storage.queries.audit import GENESIS_HASH, SHARDS, Action, AuditRow, Filter
from tests.server.audit.made import ACTOR, CONTRACT, broken, entry, fill, vehicle_of, verify
from tests.server.storage.made import AT, SECOND, new_database, read, sql, write

pytestmark = pytest.mark.slow

LANE, OTHER = 3, 4


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A trail with five rows in each of two lanes."""
    url = new_database(tmp_path)
    fill(url, (LANE, OTHER))
    return url


def column(url: str, name: str, number: int) -> Any:
    return sql(url, f"select {name} from audit where lane = ? and number = ?", LANE, number)[0][0]


# --- Recording -------------------------------------------------------------------------------------------------------


def test_row_says_what_its_entry_said(url: str) -> None:
    pcid = vehicle_of(LANE)
    (row,) = read(url, queries.page(LANE, 2, 3))
    assert (row.lane, row.number, row.actor, row.action, row.outcome) == (LANE, 3, ACTOR, "contract.published", "ok")
    assert (row.when, row.trace_id) == (AT + 2 * SECOND, "trace-2")
    assert json.loads(row.subject or "") == {"emaid": CONTRACT, "pcid": pcid}


def test_hashes_are_what_the_description_says_written_anew_here(url: str) -> None:
    before = "0" * 64
    for row in read(url, queries.page(LANE, 0, 100)):
        assert row.subject is not None
        assert row.salt is not None
        assert row.commitment == hashlib.sha256(bytes.fromhex(row.salt) + row.subject.encode()).hexdigest()
        members = ["opnc-ccp audit 1", before, LANE, row.number, row.at, row.actor, row.action, row.outcome]
        framed = "".join(f"{len(str(each).encode())}:{each}" for each in (*members, row.trace_id, row.commitment))
        assert row.hash == hashlib.sha256(framed.encode()).hexdigest()
        before = row.hash
    assert sql(url, "select number, hash from audit_head where lane = ?", LANE) == [(5, before)]


def test_chain_members_side_by_side_cannot_be_shifted_into_one_another() -> None:
    row = AuditRow(0, 1, 2, "ab", "c", "ok", None, None, None, "d", "")
    others = [
        replace(row, actor="a", action="bc"),
        replace(row, actor="ab1:c", action=""),
        replace(row, trace_id=""),
        replace(row, trace_id="-"),
        replace(row, number=11, at=2),
        replace(row, number=1, at=12),
    ]
    hashes = {queries.hash_of(GENESIS_HASH, each) for each in (row, *others)}
    assert len(hashes) == len(others) + 1


def test_chain_entry_has_another_commitment_each_time(url: str) -> None:
    write(url, queries.record(entry(vehicle_of(LANE)), entry(vehicle_of(LANE))))
    assert column(url, "subject", 6) == column(url, "subject", 7)
    assert column(url, "commitment", 6) != column(url, "commitment", 7)


def test_entries_of_one_change_may_stand_in_several_lanes(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    write(url, queries.record(*(entry(vehicle_of(lane)) for lane in (9, 2, 9, 15, 2))))
    assert sql(url, "select lane, count(*) from audit group by lane") == [(2, 2), (9, 2), (15, 1)]
    assert verify(url).broken == ()


def test_change_that_is_taken_back_leaves_no_row(url: str) -> None:
    def change() -> Query[None]:
        yield from queries.record(entry(vehicle_of(LANE)))
        raise ConfigurationError("no")

    heads = sql(url, "select * from audit_head")
    with pytest.raises(ConfigurationError):
        write(url, change())
    assert sql(url, "select count(*) from audit") == [(10,)]
    assert sql(url, "select * from audit_head") == heads


def test_text_of_any_kind_is_recorded_and_verifies(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    subjects = [{"claimed": text} for text in ("röle", "\x00\n", "\ud800", "a" * 5000, '"}', "🚗")]
    write(url, queries.record(*(entry(vehicle_of(0), subject=subject) for subject in subjects)))
    assert verify(url).broken == ()
    found = read(url, queries.search(Filter(), 10))
    assert sorted(str(json.loads(row.subject or "")) for row in found) == sorted(map(str, subjects))


# --- Tampering -------------------------------------------------------------------------------------------------------


def test_trail_that_is_untouched_is_whole_and_so_is_an_empty_one(url: str, tmp_path: Path) -> None:
    assert (verify(url).rows, verify(url).broken) == (10, ())
    (tmp_path / "empty").mkdir()
    assert (verify(new_database(tmp_path / "empty")).rows, verify(url).broken) == (0, ())


CHANGES = {
    "at": "at + 1",
    "actor": "'emsp'",
    "action": "'contract.withdrawn'",
    "outcome": "'not_authorised 403'",
    "trace_id": "'another'",
    "subject": "replace(subject, 'DEEXA', 'NLEXB')",
    "salt": "case when salt like '00%' then '11' else '00' end || substr(salt, 3)",
    "commitment": "case when commitment like '00%' then '11' else '00' end || substr(commitment, 3)",
    "hash": "case when hash like '00%' then '11' else '00' end || substr(hash, 3)",
    "lane": "5",
    "number": "number + 100",
}


@pytest.mark.parametrize("number", [1, 3, 5])
@pytest.mark.parametrize("name", list(CHANGES))
def test_row_with_a_changed_column_is_noticed(url: str, name: str, number: int) -> None:
    before = column(url, name, number)
    sql(url, f"update audit set {name} = {CHANGES[name]} where lane = ? and number = ?", LANE, number)
    assert name in ("lane", "number") or column(url, name, number) != before
    lanes = dict(broken(url))
    # What stands in the wrong lane breaks that one too.
    assert set(lanes) == ({LANE, 5} if name == "lane" else {LANE})
    assert lanes[LANE] == number or (name, lanes[LANE]) in (("lane", number + 1), ("number", number + 1)), lanes


def test_row_columns_are_all_among_those_that_are_changed_here(url: str) -> None:
    assert set(CHANGES) == {row[1] for row in sql(url, "pragma table_info(audit)")}


@pytest.mark.parametrize("value", ["null", "''", "x'00ff'", "17", "'not hexadecimal'"])
@pytest.mark.parametrize("name", ["subject", "salt", "trace_id"])
def test_verifier_reports_malformed_values_and_continues(url: str, name: str, value: str) -> None:
    sql(url, f"update audit set {name} = {value} where lane = ? and number = 2", LANE)
    assert broken(url) == [(LANE, 2)]


@pytest.mark.parametrize(("removed", "first"), [(1, 2), (3, 4), (5, 5)])
def test_verifier_finds_a_removed_row(url: str, removed: int, first: int) -> None:
    sql(url, "delete from audit where lane = ? and number = ?", LANE, removed)
    assert broken(url) == [(LANE, first)]


def test_row_that_was_removed_is_noticed_although_its_gap_was_closed(url: str) -> None:
    sql(url, "delete from audit where lane = ? and number = 3", LANE)
    sql(url, "update audit set number = number - 1 where lane = ? and number > 3", LANE)
    sql(url, "update audit_head set number = 4 where lane = ?", LANE)
    assert broken(url) == [(LANE, 3)]


@pytest.mark.parametrize(("one", "other"), [(1, 2), (2, 4), (4, 5)])
def test_rows_that_changed_places_are_noticed(url: str, one: int, other: int) -> None:
    for number, moved in ((one, -1), (other, one), (-1, other)):
        sql(url, "update audit set number = ? where lane = ? and number = ?", moved, LANE, number)
    assert broken(url) == [(LANE, one)]


def test_row_that_was_added_is_noticed(url: str) -> None:
    sql(
        url,
        "insert into audit select lane, 6, at, actor, action, outcome, trace_id, subject, salt, commitment, hash "
        "from audit where lane = ? and number = 5",
        LANE,
    )
    assert broken(url) == [(LANE, 6)]
    sql(url, "update audit_head set number = 6 where lane = ?", LANE)
    assert broken(url) == [(LANE, 6)]


@pytest.mark.parametrize("place", [0, -7])
def test_row_before_the_first_one_is_noticed(url: str, place: int) -> None:
    sql(
        url,
        "insert into audit select lane, ?, at, actor, action, outcome, trace_id, subject, salt, commitment, hash "
        "from audit where lane = ? and number = 5",
        place,
        LANE,
    )
    assert [lane for lane, _ in broken(url)] == [LANE]


@pytest.mark.parametrize(
    "change", ["number = 4", "number = 6", "number = 0", "hash = 'x'", "number = 4, hash = (select hash from audit "
    "where audit.lane = audit_head.lane and number = 4)"],
)  # fmt: skip
def test_chain_head_that_was_changed_is_noticed(url: str, change: str) -> None:
    sql(url, f"update audit_head set {change} where lane = ?", LANE)
    assert [lane for lane, _ in broken(url)] == [LANE]


@pytest.mark.parametrize("tables", [("audit",), ("audit_head",), ("audit", "audit_head")])
def test_lane_that_was_removed_is_noticed(url: str, tables: tuple[str, ...]) -> None:
    for table in tables:
        sql(url, f"delete from {table} where lane = ?", LANE)
    assert [lane for lane, _ in broken(url)] == [LANE]


def test_lane_that_is_still_empty_is_missed_too(url: str) -> None:
    sql(url, "delete from audit_head where lane = 11")
    assert broken(url) == [(11, 1)]


@pytest.mark.parametrize("table", ["audit", "audit_head"])
@pytest.mark.parametrize("lane", [SHARDS, -1])
def test_rows_in_a_lane_that_there_is_not_are_noticed(url: str, lane: int, table: str) -> None:
    sql(url, f"update {table} set lane = ? where lane = ?", lane, LANE)
    assert SHARDS in dict(broken(url))


def test_subject_that_is_gone_without_an_erasure_is_noticed(url: str) -> None:
    sql(url, "update audit set subject = null, salt = null where lane = ? and number = 2", LANE)
    assert [(each.number, each.why) for each in verify(url).broken] == [
        (2, "its subject was removed, and no erasure lists it")
    ]


def test_verification_reports_the_first_broken_row_of_each_lane(url: str) -> None:
    sql(url, "update audit set actor = 'x' where lane = ? and number in (2, 4)", LANE)
    sql(url, "delete from audit where lane = ? and number = 5", OTHER)
    verdict = verify(url)
    assert [(each.lane, each.number) for each in verdict.broken] == [(LANE, 2), (OTHER, 5)]
    assert "hash does not match" in verdict.broken[0].why
    assert "missing" in verdict.broken[1].why


def test_lane_whose_end_was_taken_away_takes_no_changes_and_says_why(url: str) -> None:
    sql(url, "delete from audit_head where lane = ?", LANE)
    with pytest.raises(ConfigurationError, match=f"lost the head of lane {LANE}; see ccp audit verify"):
        write(url, queries.record(entry(vehicle_of(LANE))))
    write(url, queries.record(entry(vehicle_of(OTHER))))


def rewritten(url: str) -> None:
    """Rewrite a lane consistently, as an attacker with the database could: hashes and head match again."""
    before, rows = GENESIS_HASH, read(url, queries.page(LANE, 0, 100))
    for row in rows:
        changed = replace(row, actor="mallory" if row.number == 2 else row.actor)
        before = queries.hash_of(before, changed)
        sql(
            url,
            "update audit set actor = ?, hash = ? where lane = ? and number = ?",
            changed.actor, before, LANE, row.number,
        )  # fmt: skip
    sql(url, "update audit_head set hash = ? where lane = ?", before, LANE)


def cut(url: str) -> None:
    """The last two rows gone and the head with them."""
    sql(url, "delete from audit where lane = ? and number > 3", LANE)
    sql(url, "update audit_head set number = 3, hash = ? where lane = ?", column(url, "hash", 3), LANE)


@pytest.mark.parametrize(("tamper", "first"), [(rewritten, 5), (cut, 4)])
def test_chain_heads_of_an_earlier_export_show_what_the_chain_cannot(url: str, tamper: Any, first: int) -> None:
    earlier = {lane: read(url, queries.chain_head(lane))[0] for lane in range(SHARDS)}
    write(url, queries.record(entry(vehicle_of(OTHER))))
    assert broken(url, {lane: head for lane, head in earlier.items() if head}) == []
    tamper(url)
    assert broken(url) == []
    assert broken(url, {lane: head for lane, head in earlier.items() if head}) == [(LANE, first)]


# --- Erasing ---------------------------------------------------------------------------------------------------------


def erase(url: str, emaid: str, listed: bool = True) -> list[AuditRow]:
    rows = read(url, queries.rows_naming(EMAID(emaid)))

    def change() -> Query[None]:
        yield from queries.erase_subjects(rows)
        if listed:
            yield from queries.record(*queries.erasure_entries(rows, AT, "cli:operator", {"kind": "emaid"}))

    write(url, change())
    return rows


def test_subject_that_was_erased_is_in_order_where_an_erasure_lists_its_row(url: str) -> None:
    rows = erase(url, CONTRACT)
    assert len(rows) == 10
    verdict = verify(url)
    assert (verdict.rows, verdict.erased, verdict.broken) == (11, 10, ())
    assert sql(url, "select count(*) from audit where subject like ?", f"%{CONTRACT}%") == [(0,)]


def test_erasure_of_many_rows_is_recorded_in_several_rows(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    write(url, queries.record(*(entry(vehicle_of(7)) for _ in range(1201))))
    erase(url, CONTRACT)
    assert len(read(url, queries.search(Filter(action=Action.DATA_ERASED), 10))) == 3
    assert (verify(url).erased, verify(url).broken) == (1201, ())


def test_erasure_that_was_tampered_with_covers_nothing(url: str) -> None:
    erase(url, CONTRACT)
    lane = sql(url, "select lane from audit where action = 'data.erased'")[0][0]
    sql(url, "update audit set subject = replace(subject, '[3,1]', '[3,2]') where action = 'data.erased'")
    assert {found for found, _ in broken(url)} == {lane, LANE, OTHER}


def test_subject_that_was_erased_cannot_be_replaced_by_another(url: str) -> None:
    erase(url, CONTRACT)
    sql(url, "update audit set subject = '{}', salt = ? where lane = ? and number = 2", "00" * 16, LANE)
    assert broken(url) == [(LANE, 2)]


def test_salt_that_outlives_its_subject_is_noticed(url: str) -> None:
    salt = column(url, "salt", 2)
    erase(url, CONTRACT)
    sql(url, "update audit set salt = ? where lane = ? and number = 2", salt, LANE)
    assert broken(url) == [(LANE, 2)]


# --- Looking ---------------------------------------------------------------------------------------------------------


def test_rows_are_found_by_everything_that_is_asked_for_newest_first(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    car, other = vehicle_of(1), vehicle_of(2)
    write(
        url,
        queries.record(
            entry(car, at=0),
            entry(other, "DEEXAA00000002", at=1),
            entry(car, "DEEXAA00000002", at=2, actor="oem", action=Action.CONTRACT_DEFAULT),
            entry(car, at=3, actor="unknown", action=Action.ACCESS_REFUSED, outcome="not_authenticated 401"),
        ),
    )

    def found(limit: int = 10, **wanted: Any) -> list[int]:
        return [round((row.when - AT) / SECOND) for row in read(url, queries.search(Filter(**wanted), limit))]

    assert found() == [3, 2, 1, 0]
    assert found(2) == [3, 2]
    assert found(since=AT + SECOND, until=AT + 3 * SECOND) == [2, 1]
    assert found(actor=ACTOR) == [1, 0]
    assert found(action="contract.default") == [2]
    assert found(outcome="ok") == [2, 1, 0]
    assert found(outcome="refused") == found(outcome="not_authenticated 401") == [3]
    assert found(ids=("DEEXAA00000002",)) == [2, 1]
    assert found(ids=(car, CONTRACT)) == [3, 0]
    assert found(ids=(car, CONTRACT), outcome="ok") == [0]
    assert found(ids=("NLEXB00000009",)) == []


@pytest.mark.parametrize(
    ("named", "subject", "does"),
    [
        ("DEEXAA00000001", {"emaid": "DEEXAA00000001"}, True),
        ("DEEXAA00000001", {"emaid": "DEEXAA000000012"}, False),
        ("DEEXAA00000001", {"emaid": "XDEEXAA00000001"}, False),
        ("DEEXAA00000001", {"claimed": "is it deexaa00000001?"}, True),
        ("DEEXAA0000_001", {"emaid": "DEEXAA0000_001"}, True),
        ("DEEXAA0000_001", {"emaid": "DEEXAA00001001"}, False),
        ("WEX0AUDIT00000001", {"emaid": "DEEXAA00000001", "moved_from": "WEX0AUDIT00000001"}, True),
    ],
)
def test_row_names_an_id_where_it_stands_as_a_word_of_its_own(
    tmp_path: Path, named: str, subject: dict[str, str], does: bool
) -> None:
    url = new_database(tmp_path)
    write(url, queries.record(entry(vehicle_of(0), subject=subject)))
    assert bool(read(url, queries.rows_naming(named))) is does
    assert bool(read(url, queries.search(Filter(ids=(named,)), 5))) is does


def test_vehicles_are_spread_evenly_over_the_lanes() -> None:
    counted = Counter(entry(PCID(f"WEX0SPREAD{number:07d}")).lane for number in range(1600))
    assert set(counted) == set(range(SHARDS))
    assert max(counted.values()) < 200
