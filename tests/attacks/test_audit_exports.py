"""Tampering with the audit trail by a user with database access, detected by an export that is kept elsewhere."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import audit as queries
from ccp.server.storage.queries.audit import Action, AuditRow, Entry
from tests.cli.run import ccp, ccp_error, ccp_ok
from tests.server.audit.made import entry, fill, vehicle_of
from tests.server.storage.made import AT, new_database, sql, write

LANE = 3
CAR = vehicle_of(LANE)


class Trail:
    """A database with a row for each of five contracts of a vehicle, and an export of it."""

    def __init__(self, folder: Path) -> None:
        self.url = new_database(folder)
        (folder / "ccp.toml").write_text(f'database = "{self.url}"\nlog_level = "error"\n')
        self.config = ("--config", folder / "ccp.toml")
        fill(self.url, rows=1)
        write(self.url, *(queries.record(entry(CAR, f"DEEXAA0000000{number}")) for number in range(2, 6)))
        write(self.url, queries.record(entry(CAR, action=Action.ANCHOR_ADDED, actor="cli:mallory", subject=ANCHOR)))
        self.kept = folder / "kept.jsonl"
        ccp_ok("audit", "export", self.kept, *self.config)

    def rows(self, condition: str) -> list[AuditRow]:
        columns = ", ".join(AuditRow.__slots__)
        return [AuditRow(*row) for row in sql(self.url, f"select {columns} from audit where {condition}")]

    def blank(self, rows: list[AuditRow], *listed: Entry) -> None:
        """Blank rows, under erasures of the attacker's own."""

        def change() -> Query[None]:
            yield from queries.erase_subjects(rows)
            if listed:
                yield from queries.record(*listed)

        write(self.url, change())

    def verify(self, *options: object) -> tuple[int, dict[str, Any]]:
        done = ccp("audit", "verify", *options, "--json", *self.config)
        return done.status, json.loads(done.out)

    def against(self) -> tuple[int, dict[str, Any]]:
        return self.verify("--against", self.kept)


ANCHOR = {"fingerprint": "ab" * 32, "role": "v2g"}


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    return Trail(tmp_path)


def invented(rows: list[AuditRow], actor: str = "cli:root", **what: Any) -> list[Entry]:
    return queries.erasure_entries(rows, AT, actor, {"kind": "emaid", **what})


def test_row_blanked_under_an_invented_erasure_is_listed_against_an_export(trail: Trail) -> None:
    (victim,) = trail.rows("subject like '%DEEXAA00000003%'")
    trail.blank([victim], *invented([victim]))
    status, verdict = trail.verify()
    assert (status, verdict["broken"]) == (0, [])
    status, verdict = trail.against()
    assert (status, verdict["broken"]) == (3, [])
    (blanked,) = verdict["blanked"]
    (erasure,) = trail.rows("action = 'data.erased'")
    assert (blanked["lane"], blanked["number"]) == (LANE, victim.number)
    assert blanked["subject"] == {"emaid": "DEEXAA00000003", "pcid": CAR}
    assert {name: blanked["erasure"][name] for name in ("lane", "number", "actor")} == {
        "lane": erasure.lane, "number": erasure.number, "actor": "cli:root",
    }  # fmt: skip


def test_audit_verify_names_erased_values_and_their_erasure(trail: Trail) -> None:
    (victim,) = trail.rows("subject like '%DEEXAA00000003%'")
    trail.blank([victim], *invented([victim]))
    assert ccp_ok("audit", "verify", *trail.config).lines[-1] == (
        "The trail is whole. Only an earlier export can show whether its erasures were carried out by `ccp erase` "
        "(--against)."
    )
    (erasure,) = trail.rows("action = 'data.erased'")
    done = ccp("audit", "verify", "--against", trail.kept, *trail.config)
    assert done.status == 3
    assert done.lines[1] == (
        f"lane {LANE}, row {victim.number}: 2026-03-01T12:00:00.250Z contract.published by cps: "
        f"erased at 2026-03-01T12:00:00.250Z by cli:root (lane {erasure.lane}, row {erasure.number}); "
        f"the export has emaid=DEEXAA00000003 pcid={CAR}."
    )
    assert "The trail is whole" not in done.out


def test_erasure_for_real_is_listed_too_and_nothing_is_listed_twice(trail: Trail, tmp_path: Path) -> None:
    ccp_ok("erase", "--yes", "--emaid", "DEEXAA00000004", *trail.config)
    status, verdict = trail.against()
    assert (status, len(verdict["blanked"])) == (3, 1)
    later = tmp_path / "later.jsonl"
    ccp_ok("audit", "export", later, *trail.config)
    assert trail.verify("--against", later)[0] == 0, "since that export nothing was blanked"
    assert ccp("audit", "verify", later, "--against", trail.kept, *trail.config).status == 3


def test_erasure_that_is_invented_cannot_blank_what_names_no_contract(trail: Trail) -> None:
    (anchor,) = trail.rows("action = 'anchor.added'")
    trail.blank([anchor], *invented([anchor]))
    status, verdict = trail.against()
    assert status == 1
    (broken,) = verdict["broken"]
    assert (broken["lane"], broken["number"]) == (anchor.lane, anchor.number)
    assert broken["why"].endswith("lists rows that have no contract in common")


def test_erasure_that_is_invented_cannot_blank_rows_of_several_contracts(trail: Trail) -> None:
    victims = trail.rows("subject like '%DEEXAA00000002%' or subject like '%DEEXAA00000003%'")
    trail.blank(victims, *invented(victims))
    assert trail.against()[0] == 1
    assert trail.verify("--against", trail.kept)[1]["broken"][0]["number"] == victims[0].number


@pytest.mark.parametrize(
    "changes",
    [
        {"actor": "emsp"},
        {"outcome": "denied 403"},
        {"subject": {"kind": "party", "rows": [[LANE, 2]]}},
        {"subject": {"rows": [[LANE, 2]]}},
        {"subject": [[LANE, 2]]},
        {"subject": {"kind": "emaid", "rows": [LANE, 2]}},
        {"subject": {"kind": "emaid", "rows": [[LANE, "2"]]}},
        {"subject": {"kind": "emaid", "rows": 2}},
    ],
)
def test_row_that_the_erase_command_cannot_have_written_covers_nothing(trail: Trail, changes: dict[str, Any]) -> None:
    victims = trail.rows(f"lane = {LANE} and number = 2")
    (erasure,) = invented(victims)
    fields = {name: getattr(erasure, name) for name in ("at", "actor", "action", "subject", "outcome")}

    class Made(Entry):
        lane = 5  # type: ignore[assignment]

    trail.blank(victims, Made(**{**fields, **changes}))
    status, verdict = trail.verify()
    assert status == 1
    assert verdict["broken"] == [{"lane": LANE, "number": 2, "why": "its subject was removed, and no erasure lists it"}]


def test_erasure_covers_no_row_that_came_after_it(trail: Trail) -> None:
    class Made(Entry):
        lane = LANE  # type: ignore[assignment]

    last = sql(trail.url, f"select max(number) from audit where lane = {LANE}")[0][0]
    subject = {"kind": "emaid", "rows": [[LANE, last + 2]]}
    write(trail.url, queries.record(Made(AT, "cli:root", Action.DATA_ERASED, subject)))
    write(trail.url, queries.record(entry(CAR, "DEEXAA00000009")))
    trail.blank(trail.rows("subject like '%DEEXAA00000009%'"))
    assert trail.verify()[0] == 1


def test_audit_export_is_for_its_owner_alone_and_follows_no_link(trail: Trail, tmp_path: Path) -> None:
    assert stat.S_IMODE(trail.kept.stat().st_mode) == 0o600
    link, target = tmp_path / "link.jsonl", tmp_path / "target"
    link.symlink_to(target)
    assert ccp_error("audit", "export", link, *trail.config) == f"{link} exists already."
    assert not target.exists()
