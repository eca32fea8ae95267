"""The recipe of docs/database.md: an archive of the write-ahead log, a crash, and a recovery to a point in time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime

import asyncpg
import pytest

from ccp.ids import EMAID, PCID
from ccp.server.storage.queries import contracts
from tests.cli.run import ccp_ok
from tests.databases import NOT_HERE, Server, binaries, sql
from tests.server.storage.made import AT, broken_invariants, variant, write
from tests.waiting import wait_until


@pytest.fixture
def server() -> Iterator[Server]:
    folder = binaries()
    if folder is None or not (folder / "pg_basebackup").exists():
        pytest.skip(NOT_HERE if folder is None else "pg_basebackup is not installed")
    made = Server(durable=True)
    try:
        yield made
    finally:
        made.close()


def publish(url: str, first: int, count: int) -> None:
    for number in range(first, first + count):
        write(url, contracts.publish(variant(EMAID(f"DEEXAG{number:08d}"), PCID(f"WEX0SAVED{number:08d}")), AT))


def stored(url: str) -> list[str]:
    return [emaid for (emaid,) in sql(url, "select emaid from contract order by emaid")]


def test_point_in_time_recovery_has_everything_before_it_and_nothing_after(server: Server) -> None:
    archive, backup = server.own_folder("archive"), server.own_folder("backup")
    server.set(archive_mode="on", archive_command=f"test ! -f {archive}/%f && cp %p {archive}/%f", wal_level="replica")
    server.start()
    url = server.database()
    publish(url, 0, 20)
    server.base_backup(backup)

    publish(url, 20, 20)
    before = stored(url)
    (target,) = sql(url, "select clock_timestamp()")[0]
    assert isinstance(target, datetime)
    publish(url, 40, 20)
    sql(url, "delete from contract")  # The mistake that has to be undone.
    sql(server.url("postgres"), "select pg_switch_wal()")
    wait_until(lambda: sql(url, "select last_archived_wal from pg_stat_archiver where last_archived_wal is not null"))
    last = sql(url, "select pg_walfile_name(pg_current_wal_lsn() - 1)")[0][0]
    wait_until(lambda: (archive / last).exists() or sql(server.url("postgres"), "select pg_switch_wal()") is None)
    server.kill()

    server.replace_data(backup)
    server.set(
        restore_command=f"cp {archive}/%f %p",
        recovery_target_time=target.astimezone(UTC).isoformat(sep=" "),
        recovery_target_action="promote",
    )
    server.start()

    def writable() -> bool:
        try:
            return sql(url, "select pg_is_in_recovery()") == [(False,)]
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False

    wait_until(writable, timeout=60)
    assert stored(url) == before
    assert broken_invariants(url) == []
    assert "needed" in ccp_ok("db", "status", env={"CCP_DATABASE": url}).out
    publish(url, 40, 1)
    assert len(stored(url)) == len(before) + 1
    shutil.rmtree(archive)
