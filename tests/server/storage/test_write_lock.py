"""Write lock between processes that use one SQLite file."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from ccp.server.storage.engine.write_lock import WriteLock

SPAWN = multiprocessing.get_context("spawn")
LONG = 30.0


def _hold(database: Path, requests: Connection) -> None:
    """Take and release the lock on request."""
    write_lock = WriteLock(database, LONG)
    while requests.recv() == "take":
        with write_lock.hold():
            requests.send("taken")
            requests.recv()
        requests.send("given")


@contextmanager
def another(database: Path) -> Iterator[tuple[Connection, multiprocessing.process.BaseProcess]]:
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=_hold, args=(database, there))
    process.start()
    try:
        yield here, process
    finally:
        process.kill()
        process.join()


def ask(other: Connection, what: str, answer: str) -> None:
    other.send(what)
    assert other.poll(LONG)
    assert other.recv() == answer


def test_write_lock_is_fair(tmp_path: Path) -> None:
    database = tmp_path / "ccp.db"
    with another(database) as (first, _), another(database) as (second, _):
        ask(first, "take", "taken")
        second.send("take")
        time.sleep(0.3)
        assert not second.poll()
        ask(first, "give", "given")
        first.send("take")  # At once, and still the other process gets the lock.
        assert second.poll(LONG)
        assert second.recv() == "taken"
        time.sleep(0.3)
        assert not first.poll()
        ask(second, "give", "given")
        assert first.poll(LONG)
        assert first.recv() == "taken"


def test_write_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    database = tmp_path / "ccp.db"
    with another(database) as (other, process):
        ask(other, "take", "taken")
        process.kill()
        process.join()
        began = time.monotonic()
        with WriteLock(database, LONG).hold():
            assert time.monotonic() - began < LONG / 2


def test_write_lock_wait_times_out(tmp_path: Path) -> None:
    database = tmp_path / "ccp.db"
    with another(database) as (other, _):
        ask(other, "take", "taken")
        with WriteLock(database, 0.2).hold():
            assert not other.poll(), "the other process still holds the lock"


def test_write_lock_without_a_file_does_not_block(tmp_path: Path) -> None:
    with WriteLock(tmp_path / "missing" / "ccp.db", LONG).hold():
        pass
