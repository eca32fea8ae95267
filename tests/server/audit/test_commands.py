"""Commands `ccp audit list`, `verify`, `export` and `pseudonym`."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from ccp.server.audit.export import read_export
from ccp.server.audit.verification import ChainVerifier
from ccp.server.storage.queries import audit as queries
from ccp.server.storage.queries.audit import SHARDS, Action, AuditRow
from tests.cli.run import ccp, ccp_error, ccp_ok
from tests.server.audit.made import CONTRACT, entry, fill, vehicle_of
from tests.server.storage.made import AT, new_database, sql, write


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = new_database(tmp_path)
    (tmp_path / "ccp.toml").write_text(f'database = "{url}"\nlog_level = "error"\n')
    fill(url, rows=2)
    return url


@pytest.fixture
def config(url: str, tmp_path: Path) -> tuple[object, ...]:
    return ("--config", tmp_path / "ccp.toml")


def exported(config: tuple[object, ...]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ccp_ok("audit", "export", *config).lines]


def test_trail_that_is_whole_is_said_to_be_whole(url: str, config: tuple[object, ...]) -> None:
    assert ccp_ok("audit", "verify", *config).lines == ["32 row(s).", "The trail is whole."]
    assert json.loads(ccp_ok("audit", "verify", "--json", *config).out) == {"rows": 32, "erased": 0, "broken": []}


def test_verify_prints_the_first_broken_row_of_each_lane_with_status_1(url: str, config: tuple[object, ...]) -> None:
    sql(url, "update audit set actor = 'x' where lane = 2 and number = 1")
    sql(url, "delete from audit where lane = 5 and number = 2")
    done = ccp("audit", "verify", *config)
    assert done.status == 1
    assert done.lines == [
        "31 row(s).",
        "lane 2, row 1: its hash does not match: it was changed or moved, or the row before it was.",
        "lane 5, row 2: rows are missing, up to 2.",
        "The trail is broken.",
    ]
    done = ccp("audit", "verify", "--json", *config)
    assert done.status == 1
    assert [(each["lane"], each["number"]) for each in json.loads(done.out)["broken"]] == [(2, 1), (5, 2)]


def test_export_has_every_row_with_its_hashes_and_the_ends_of_all_lanes(url: str, config: tuple[object, ...]) -> None:
    first, *rest = exported(config)
    assert (first["format"], first["lanes"]) == ("opnc-ccp audit 1", SHARDS)
    rows, ends = [line for line in rest if "at" in line], [line for line in rest if "end_of" in line]
    assert len(rows) == 32
    assert [end["end_of"] for end in ends] == list(range(SHARDS))
    stored = sql(url, "select lane, number, actor, subject, salt, commitment, hash from audit order by lane, number")
    names = ("lane", "number", "actor", "subject", "salt", "commitment", "hash")
    assert [tuple(row[name] for name in names) for row in rows] == stored


def verified(file: Path) -> list[tuple[int, int]]:
    done = ccp("audit", "verify", file, "--json")
    found = [(each["lane"], each["number"]) for each in json.loads(done.out)["broken"]]
    assert done.status == (1 if found else 0)
    return found


def test_export_is_verified_without_the_database(
    url: str, config: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "trail.jsonl"
    ccp_ok("audit", "export", file, *config)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ccp.db").unlink()
    (tmp_path / "ccp.toml").unlink()
    assert verified(file) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [('"actor": "cps"', '"actor": "emsp"'), ('"at": 1', '"at": 2'), ("DEEXA", "NLEXB"), ('"trace-', '"trace+')],
)
def test_export_that_was_changed_is_noticed(
    url: str, config: tuple[object, ...], tmp_path: Path, old: str, new: str
) -> None:
    lines = ccp_ok("audit", "export", *config).lines
    file = tmp_path / "trail.jsonl"
    assert old in lines[4]
    file.write_text("\n".join([*lines[:4], lines[4].replace(old, new), *lines[5:]]))
    row = json.loads(lines[4])
    assert verified(file) == [(row["lane"], row["number"])]


def test_export_that_was_cut_anywhere_is_noticed(url: str, config: tuple[object, ...], tmp_path: Path) -> None:
    lines = ccp_ok("audit", "export", *config).lines
    file = tmp_path / "trail.jsonl"
    file.write_text("\n".join(lines[:-1]))
    assert verified(file) == [(SHARDS - 1, 3)]

    def broken(cut: list[str]) -> int:
        verifier = ChainVerifier()
        for part in read_export(cut):
            if isinstance(part, AuditRow):
                verifier.feed(part)
            else:
                verifier.feed_head(part)
        return len(verifier.result().broken)

    assert broken(lines) == 0
    for place in range(1, len(lines)):
        assert broken([*lines[:place], *lines[place + 1 :]]) == 1, lines[place]
        assert broken(lines[:place]), place


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "no json",
        '{"format": "opnc-ccp audit 2", "lanes": 16}',
        "\xff",
        '{"format": "opnc-ccp audit 1"}',
    ],
)
def test_export_that_is_another_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "trail.jsonl"
    file.write_bytes(content.encode("latin-1"))
    assert ccp_error("audit", "verify", file).startswith(f"{file}")


@pytest.mark.parametrize(
    ("name", "value"), [("lane", "3"), ("number", 1.5), ("at", None), ("actor", 7), ("hash", []), ("lane", True)]
)
def test_line_with_a_member_of_the_wrong_kind_is_refused_with_its_number(
    config: tuple[object, ...], tmp_path: Path, name: str, value: Any
) -> None:
    lines = exported(config)
    lines[1][name] = value
    file = tmp_path / "trail.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert ccp_error("audit", "verify", file) == f"{file}: Line 2 is not a line of an audit export."


def test_trail_is_held_against_an_export_that_was_kept_elsewhere(
    url: str, config: tuple[object, ...], tmp_path: Path
) -> None:
    kept = tmp_path / "kept.jsonl"
    ccp_ok("audit", "export", kept, *config)
    write(url, queries.record(entry(vehicle_of(3), at=9)))
    ccp_ok("audit", "verify", "--against", kept, *config)
    # An attacker with the database truncates a lane and adjusts its head.
    sql(url, "delete from audit where lane = 4 and number = 2")
    sql(url, "update audit_head set number = 1, hash = (select hash from audit where lane = 4) where lane = 4")
    ccp_ok("audit", "verify", *config)
    done = ccp("audit", "verify", "--against", kept, *config)
    assert done.status == 1
    assert "lane 4, row 2: the earlier export has rows up to 2." in done.lines
    later = tmp_path / "later.jsonl"
    ccp_ok("audit", "export", later, *config)
    assert ccp("audit", "verify", later).status == 0
    assert ccp("audit", "verify", later, "--against", kept).status == 1
    kept.write_text(kept.read_text().replace("DEEXA", "NLEXB", 1))
    assert "is broken; see" in ccp_error("audit", "verify", "--against", kept, *config)


def test_export_of_a_broken_trail_says_so_and_is_as_broken(
    url: str, config: tuple[object, ...], tmp_path: Path
) -> None:
    sql(url, "update audit set actor = 'x' where lane = 2 and number = 1")
    file = tmp_path / "trail.jsonl"
    done = ccp_ok("audit", "export", file, *config)
    assert done.err.startswith("warning: lane 2, row 1: ")
    assert verified(file) == [(2, 1)]


def test_export_overwrites_nothing(config: tuple[object, ...], tmp_path: Path) -> None:
    file = tmp_path / "trail.jsonl"
    file.write_text("something else")
    assert ccp_error("audit", "export", file, *config) == f"{file} exists already."
    assert file.read_text() == "something else"


def test_rows_are_listed_as_a_table_or_json(url: str, config: tuple[object, ...]) -> None:
    write(url, queries.record(entry(vehicle_of(3), at=60, action=Action.CONTRACT_DEFAULT, actor="oem")))
    lines = ccp_ok("audit", "list", "--limit", "3", *config).lines
    assert len(lines) == 4
    assert lines[0].split() == ["at", "actor", "action", "outcome", "subject", "trace", "id"]
    assert lines[1].split() == [
        "2026-03-01T12:01:00.250Z", "oem", "contract.default", "ok",
        f"emaid={CONTRACT}", f"pcid={vehicle_of(3)}", "trace-60",
    ]  # fmt: skip
    (row,) = json.loads(ccp_ok("audit", "list", "--actor", "oem", "--json", *config).out)
    assert row == {
        "at": "2026-03-01T12:01:00.250Z", "actor": "oem", "action": "contract.default", "outcome": "ok",
        "subject": {"emaid": CONTRACT, "pcid": vehicle_of(3)}, "trace_id": "trace-60", "lane": 3, "number": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ((), 32),
        (("--since", "2026-03-01T12:00:01Z"), 16),
        (("--since", "2026-03-01"), 32),
        (("--until", "2026-03-01T14:00:01+02:00"), 16),
        (("--emaid", "de-exa-a00000001"), 32),
        (("--pcid", str(vehicle_of(3)).lower()), 2),
        (("--outcome", "refused"), 0),
        (("--action", "contract.published", "--actor", "cps"), 32),
    ],
)
def test_rows_are_filtered(config: tuple[object, ...], options: tuple[str, ...], count: int) -> None:
    assert len(json.loads(ccp_ok("audit", "list", *options, "--json", *config).out)) == count


def test_time_that_is_none_and_an_id_that_is_none_are_refused(config: tuple[object, ...]) -> None:
    assert ccp_error("audit", "list", "--since", "yesterday", *config).startswith(
        "--since must be a date or a time, such as"
    )
    assert ccp_error("audit", "list", "--emaid", "x", *config).startswith("emaid : must match")


def test_client_id_that_is_claimed_cannot_write_to_the_terminal(url: str, config: tuple[object, ...]) -> None:
    claimed = "\x1b[2J\nadmin"
    write(url, queries.record(entry(vehicle_of(3), at=99, subject={"claimed": claimed})))
    out = ccp_ok("audit", "list", "--limit", "1", *config).out
    assert "\x1b" not in out
    assert r"claimed=\x1b[2J\nadmin" in out


def test_pseudonym_of_an_id_is_its_keyed_hash_in_whatever_form_it_is_written(
    url: str, config: tuple[object, ...], tmp_path: Path
) -> None:
    (first,) = ccp_ok("audit", "pseudonym", "de-exa-a00000001", *config).lines
    (key,) = sql(url, "select value from pool_secret where name = 'log_key'")[0]
    assert len(key) == 64
    assert first == hmac.new(key.encode(), CONTRACT.encode(), hashlib.sha256).hexdigest()[:16]
    assert ccp_ok("audit", "pseudonym", CONTRACT, *config).lines == [first]
    pcid = vehicle_of(1)
    assert ccp_ok("audit", "pseudonym", pcid.lower(), *config).lines == [
        hmac.new(key.encode(), pcid.encode(), hashlib.sha256).hexdigest()[:16]
    ]
    given = {"CCP_LOG_PSEUDONYM_KEY": "a key of the operator"}
    assert ccp_ok("audit", "pseudonym", pcid, *config, env=given).lines == [
        hmac.new(b"a key of the operator", pcid.encode(), hashlib.sha256).hexdigest()[:16]
    ]
    assert ccp_error("audit", "pseudonym", "nonsense", *config).startswith("ID : must match")


def test_key_for_the_log_that_is_short_is_refused_and_none_is_ever_printed(config: tuple[object, ...]) -> None:
    assert "log_pseudonym_key" in ccp_error("config", *config, env={"CCP_LOG_PSEUDONYM_KEY": "short"})
    assert (
        "a key of the operator"
        not in ccp_ok("config", *config, env={"CCP_LOG_PSEUDONYM_KEY": "a key of the operator"}).out
    )


def test_times_of_rows_are_kept_to_the_microsecond(url: str, config: tuple[object, ...]) -> None:
    assert {line["at"] % 1_000_000 for line in exported(config) if "at" in line} == {AT.microsecond}
