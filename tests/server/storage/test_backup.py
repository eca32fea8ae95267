"""`ccp backup` and `ccp restore` with running servers, damaged files and full disks."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ccp.ids import EMAID, PCID
from ccp.server.storage.engine import schema
from ccp.server.storage.queries import contracts
from ccp.testing.pki import PKI
from tests.cli.run import ccp_error, ccp_ok
from tests.cli.served_sandbox import free_port, serving
from tests.durability.disk import small_disk
from tests.server.bulk.fleet import database
from tests.server.storage.concurrent_writes import started
from tests.server.storage.made import AT, broken_invariants, new_database, sql, variant, write


def env(url: str) -> dict[str, str]:
    return {"CCP_DATABASE": url, "CCP_LOG_LEVEL": "error"}


@pytest.fixture
def filled(tmp_path: Path) -> str:
    url = new_database(tmp_path)
    for number in range(50):
        change = contracts.publish(variant(EMAID(f"DEEXAG{number:08d}"), PCID(f"WEX0SAVED{number:08d}")), AT)
        write(url, change)
    return url


def test_backup_during_writes_is_consistent_and_complete(tmp_path: Path) -> None:
    """Another process publishes without end, one event a contract; every copy has as many of one as of the other."""
    url = new_database(tmp_path)
    copies = []
    with started(url, 20_000) as process:
        assert process.stdout is not None
        for number in range(4):
            acknowledged = [process.stdout.readline().strip() for _ in range(100)]
            copies.append(tmp_path / f"copy {number}.db")
            ccp_ok("backup", copies[-1], env=env(url))
            copy = f"sqlite:///{copies[-1]}"
            stored = {row[0] for row in sql(copy, "select emaid from contract")}
            assert set(acknowledged) <= stored, "what was acknowledged before is in it"
            assert sql(copy, "select count(*) from outbox") == [(len(stored),)]
            assert broken_invariants(copy) == []
        process.send_signal(signal.SIGKILL)
        process.stdout.read()
    sizes = [sql(f"sqlite:///{copy}", "select count(*) from contract")[0][0] for copy in copies]
    assert sizes == sorted(set(sizes)), "it went on meanwhile"
    assert schema.revision(f"sqlite:///{copies[0]}") == schema.head()


def test_backup_is_private_and_leaves_no_other_file(tmp_path: Path, filled: str) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    target = folder / "ccp.db"
    target.write_text("an older one")
    os.chmod(target, 0o644)
    before = os.umask(0)
    try:
        line = ccp_ok("backup", target, env=env(filled)).out
    finally:
        os.umask(before)
    assert line.startswith(f"{target}: 50 variants, ")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(folder) == ["ccp.db"]
    with closing(sqlite3.connect(target)) as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("delete",)


def test_backup_that_fails_keeps_the_older_one(tmp_path: Path, filled: str, tiny: Path) -> None:
    target = tiny / "ccp.db"
    target.write_text("an older one")
    assert ccp_error("backup", target, env=env(filled)).startswith(f"The copy to {target} failed: ")
    assert target.read_text() == "an older one"
    assert os.listdir(tiny) == ["ccp.db"]
    assert "There is no opnc-ccp database" in ccp_error("backup", target, env=env(f"sqlite:///{tmp_path}/none.db"))
    assert "cannot take the place" in ccp_error("backup", schema.sqlite_file(filled), env=env(filled))
    assert "PostgreSQL has pg_dump" in ccp_error("backup", target, env=env("postgresql://127.0.0.1/none"))


def damage(file: Path, source: Path) -> None:
    """A copy in which a page in the middle is overwritten."""
    data = bytearray(source.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4096] = b"\xa5" * 4096
    file.write_bytes(data)


def test_backup_refuses_a_damaged_database(tmp_path: Path, filled: str) -> None:
    source, target = schema.sqlite_file(filled), tmp_path / "copy.db"
    damage(source, source)
    sentence = ccp_error("backup", target, env=env(filled))
    assert "damaged" in sentence or "malformed" in sentence
    assert not target.exists()


def test_restore_brings_the_backup_back_and_keeps_the_replaced_database(tmp_path: Path, filled: str) -> None:
    copy = tmp_path / "copy.db"
    ccp_ok("backup", copy, env=env(filled))
    saved = sql(filled, "select * from contract")
    write(filled, contracts.withdraw(EMAID("DEEXAG00000007"), AT))
    changed = sql(filled, "select * from contract")

    assert "--replace renames it" in ccp_error("restore", copy, env=env(filled))
    assert sql(filled, "select * from contract") == changed
    lines = ccp_ok("restore", copy, "--replace", "--yes", env=env(filled)).lines
    assert sql(filled, "select * from contract") == saved
    aside = lines[1].removeprefix("The old database is kept as ").rstrip(".")
    assert sql(f"sqlite:///{aside}", "select * from contract") == changed
    assert stat.S_IMODE(schema.sqlite_file(filled).stat().st_mode) == 0o600

    elsewhere = f"sqlite:///{tmp_path}/new.db"
    assert len(ccp_ok("restore", copy, env=env(elsewhere)).lines) == 3
    assert sql(elsewhere, "select * from contract") == saved


def test_restore_moves_a_leftover_log_with_the_old_database(tmp_path: Path, filled: str) -> None:
    copy = tmp_path / "copy.db"
    ccp_ok("backup", copy, env=env(filled))
    saved = sql(filled, "select emaid from contract order by 1")
    with started(filled, 5_000) as process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline().strip() for _ in range(30)]
        process.send_signal(signal.SIGKILL)
        process.stdout.read()
    assert Path(f"{schema.sqlite_file(filled)}-wal").stat().st_size
    lines = ccp_ok("restore", copy, "--replace", "--yes", env=env(filled)).lines
    assert sql(filled, "select emaid from contract order by 1") == saved
    aside = lines[1].removeprefix("The old database is kept as ").rstrip(".")
    assert set(acknowledged) <= {row[0] for row in sql(f"sqlite:///{aside}", "select emaid from contract")}


def test_restore_is_refused_while_a_server_runs(tmp_path: Path, pkis: dict[str, PKI]) -> None:
    target = database(tmp_path / "pool", pkis)
    copy = tmp_path / "copy.db"
    ccp_ok("backup", copy, env=target.env)
    config = tmp_path / "ccp.toml"
    port = free_port()
    config.write_text(f'database = "{target.url}"\nport = {port}\nlog_level = "error"\n')
    with serving(f"http://127.0.0.1:{port}", "--config", config) as http:
        # It has been idle for a moment, and holds no lock of a transaction.
        sentence = ccp_error("restore", copy, "--replace", "--yes", "--config", config)
        assert sentence == f"A process has the database {target.folder}/ccp.db open; stop the pool first."
        # Not even when the file is beyond reading.
        file = schema.sqlite_file(target.url)
        head = file.read_bytes()[:100]
        with file.open("r+b") as raw:
            raw.write(b"x" * 100)
        assert "stop the pool first" in ccp_error("restore", copy, "--replace", "--yes", "--config", config)
        with file.open("r+b") as raw:
            raw.write(head)
        assert http.get("/health").status_code == 200
    ccp_ok("restore", copy, "--replace", "--yes", "--config", config)


def test_restore_replaces_an_unreadable_database(tmp_path: Path, filled: str) -> None:
    copy, file = tmp_path / "copy.db", schema.sqlite_file(filled)
    ccp_ok("backup", copy, env=env(filled))
    saved = sql(filled, "select * from contract")
    file.write_bytes(b"not a database at all" * 1000)
    ccp_ok("restore", copy, "--replace", "--yes", env=env(filled))
    assert sql(filled, "select * from contract") == saved


def test_restore_refuses_an_invalid_backup(tmp_path: Path, filled: str) -> None:
    copy, bad = tmp_path / "copy.db", tmp_path / "bad.db"
    ccp_ok("backup", copy, env=env(filled))
    before = sql(filled, "select * from contract")
    damage(bad, copy)
    assert "damaged" in ccp_error("restore", bad, "--replace", "--yes", env=env(filled))
    bad.write_bytes(copy.read_bytes()[:-8192])  # What SQLite notices as soon as it looks at the file.
    assert "not an opnc-ccp database" in ccp_error("restore", bad, "--replace", "--yes", env=env(filled))
    bad.write_text("something else")
    assert "not an opnc-ccp database" in ccp_error("restore", bad, "--replace", "--yes", env=env(filled))
    bad.write_bytes(copy.read_bytes())
    sql(f"sqlite:///{bad}", "update alembic_version set version_num = '9999'")
    assert "newer than this release's" in ccp_error("restore", bad, "--replace", "--yes", env=env(filled))
    assert "not an opnc-ccp database" in ccp_error(
        "restore", tmp_path / "none.db", "--replace", "--yes", env=env(filled)
    )
    sql(f"sqlite:///{bad}", "update alembic_version set version_num = '0001'")
    assert "unlike the schema 0001" in ccp_error("restore", bad, "--replace", "--yes", env=env(filled))
    assert sql(filled, "select * from contract") == before
    bad.write_bytes(copy.read_bytes())
    schema.downgrade(f"sqlite:///{bad}", "0001")
    assert (
        ccp_ok("restore", bad, "--replace", "--yes", env=env(filled)).lines[-1].endswith("run 'ccp db upgrade' next.")
    )


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 128) as folder:
        if folder is None:
            pytest.skip("may not mount a file system here")
        yield folder
