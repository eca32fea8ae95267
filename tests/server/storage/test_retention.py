"""`ccp backup DIRECTORY --keep N`: names, what is removed, and what never is."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from ccp.server.storage import retention
from ccp.server.storage.engine.inspection import inspect
from tests.cli.run import ccp, ccp_error, ccp_ok
from tests.server.storage.made import new_database, sql


def env(url: str) -> dict[str, str]:
    return {"CCP_DATABASE": url, "CCP_LOG_LEVEL": "error"}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return new_database(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With five old backups, and files that are none."""
    made = tmp_path / "backups"
    made.mkdir()
    for day in range(1, 6):
        (made / f"ccp-2020-01-0{day}T020000Z.db").write_bytes(b"old")
    for name in ("ccp-2020-01-01T020000Z.db.part", "ccp-2020-01-01.db", "Ccp-2020-01-01T020000Z.db", "notes.txt"):
        (made / name).write_bytes(b"other")
    (made / "ccp-2019-01-01T020000Z.db").symlink_to(made / "notes.txt")
    (made / "ccp-2018-01-01T020000Z.db").mkdir()
    return made


def test_name_is_the_time_in_utc_so_that_names_sort_by_time() -> None:
    east = timezone(timedelta(hours=5))
    assert retention.name_of(datetime(2026, 1, 31, 2, 0, tzinfo=east)) == "ccp-2026-01-30T210000Z.db"
    times = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=7, seconds=1) * step for step in range(300)]
    assert sorted(map(retention.name_of, times)) == list(map(retention.name_of, times))


def test_backup_into_a_directory_keeps_the_newest_and_removes_only_backups(url: str, folder: Path) -> None:
    old = {f"ccp-2020-01-0{day}T020000Z.db" for day in range(1, 6)}
    others = {path.name for path in folder.iterdir()} - old
    printed = json.loads(ccp_ok("backup", folder, "--keep", "3", "--json", env=env(url)).out)
    made = Path(printed["file"])
    assert made.parent == folder
    inspect(made)
    left = {path.name for path in folder.iterdir()}
    assert left == others | {made.name, "ccp-2020-01-04T020000Z.db", "ccp-2020-01-05T020000Z.db"}
    assert sorted(Path(path).name for path in printed["removed"]) == [
        f"ccp-2020-01-0{day}T020000Z.db" for day in (1, 2, 3)
    ]


def test_backup_that_is_new_stays_although_the_clock_was_set_back(url: str, folder: Path) -> None:
    for year in (2998, 2999):
        (folder / f"ccp-{year}-01-01T020000Z.db").write_bytes(b"later")
    printed = json.loads(ccp_ok("backup", folder, "--keep", "2", "--json", env=env(url)).out)
    assert Path(printed["file"]).exists()
    left = {path.name for path in folder.iterdir() if path.is_file() and not path.is_symlink() and path.suffix == ".db"}
    assert {"ccp-2999-01-01T020000Z.db", Path(printed["file"]).name} <= left
    assert "ccp-2998-01-01T020000Z.db" not in left


def test_backup_into_a_directory_without_keep_removes_nothing(url: str, folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    ccp_ok("backup", folder, env=env(url))
    assert len({path.name for path in folder.iterdir()} - before) == 1
    assert before < {path.name for path in folder.iterdir()}


def test_backup_that_fails_or_cannot_be_restored_removes_nothing(url: str, folder: Path, tmp_path: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    assert ccp("backup", folder, "--keep", "1", env=env(f"sqlite:///{tmp_path}/absent.db")).status == 1
    assert {path.name for path in folder.iterdir()} == before
    sql(url, "create index our_own on contract (emaid)")
    done = ccp("backup", folder, "--keep", "1", env=env(url))
    assert done.status == 0
    assert "No older backup was removed." in done.err
    assert before < {path.name for path in folder.iterdir()}


def test_retention_needs_a_directory_and_at_least_one(url: str, tmp_path: Path) -> None:
    error = ccp_error("backup", tmp_path / "one.db", "--keep", "2", env=env(url))
    assert error == f"--keep needs an existing directory, which {tmp_path / 'one.db'} is not."
    assert ccp("backup", tmp_path, "--keep", "0", env=env(url)).status == 2
