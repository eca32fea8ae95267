"""Erasure: no file of a running SQLite database contains the id afterwards, and no log event or audit row does."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from ccp.cli import erase as command
from ccp.ids import EMAID
from ccp.server.audit.pseudonyms import Pseudonyms
from ccp.server.settings import Settings
from ccp.server.storage.engine.scrubbing import Scrubbed, scrub
from ccp.server.storage.queries import audit as queries
from ccp.server.storage.queries.audit import Filter
from ccp.testing.pki import PKI
from tests.cli.run import ccp, ccp_ok
from tests.cli.served_sandbox import free_port, serving
from tests.world import Pool, new_emaid, new_pcid, start


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start(pkis) as running:
        if running.settings.database.startswith("postgres"):
            pytest.skip("files of SQLite")
        yield running


@pytest.fixture
def config(pool: Pool, tmp_path: Path) -> Path:
    config = tmp_path / "ccp.toml"
    config.write_text(f'database = "{pool.settings.database}"\nbase_url = "{pool.base_url}"\nlog_level = "error"\n')
    return config


def holding(pool: Pool, named: str) -> list[str]:
    """The database's files that contain an id, in upper or lower case."""
    files = [
        pool.database.with_name(pool.database.name + end) for end in ("", "-wal", "-shm", "-journal", "-writelock")
    ]
    return [file.name for file in files if file.exists() and named.encode() in file.read_bytes().upper()]


# --- Files -----------------------------------------------------------------------------------------------------------


def test_erasure_leaves_nothing_in_the_files_of_a_running_server(pool: Pool, config: Path) -> None:
    car, other = pool.car(), pool.car()
    contract = pool.publish(car)
    moved = pool.publish(other)
    pool.publish(car, moved.emaid)  # From one vehicle to another.
    pool.publish(car, contract.emaid)  # Replaced.
    assert holding(pool, contract.emaid), "or the test shows nothing"
    assert holding(pool, car.pcid)
    done = json.loads(
        ccp_ok("erase", "--yes", "--emaid", contract.emaid, "--no-notify", "--json", "--config", config).out
    )
    assert done["files"] == {"cleared": True, "rebuilt": False}
    assert holding(pool, contract.emaid) == []
    assert [item["emaid"] for item in pool.ask(car)] == [moved.emaid], "the server goes on"
    lines = ccp_ok("erase", "--yes", "--pcid", car.pcid, "--no-notify", "--config", config).lines
    assert lines[-1] == "The database's files no longer contain the id."
    assert holding(pool, car.pcid) == []
    pool.publish(other)
    assert holding(pool, car.pcid) == holding(pool, contract.emaid) == []


def test_erasure_reports_events_that_still_name_the_contract(pool: Pool, config: Path) -> None:
    contract = pool.publish(pool.car())
    done = json.loads(ccp_ok("erase", "--yes", "--emaid", contract.emaid, "--json", "--config", config).out)
    assert (done["events_waiting"], done["files"]) == (1, None)
    assert holding(pool, contract.emaid)
    pool.sql("delete from outbox where emaid = ?", str(contract.emaid))
    done = json.loads(ccp_ok("erase", "--yes", "--emaid", contract.emaid, "--json", "--config", config).out)
    assert done["files"]["cleared"] is True
    assert holding(pool, contract.emaid) == []


def test_erasure_waits_for_readers_of_an_older_snapshot(
    pool: Pool, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "scrub", partial(scrub, timeout=0.2))
    contract = pool.publish(pool.car())
    options = ("--emaid", contract.emaid, "--no-notify", "--config", config)
    with closing(sqlite3.connect(pool.database, isolation_level=None)) as reader:
        reader.execute("begin")
        reader.execute("select count(*) from contract").fetchone()
        done = ccp("erase", "--yes", *options)
        assert done.status == 1
        assert "the write-ahead log still holds them" in done.err
        assert pool.stored(contract.emaid) == 0, "the rows are erased all the same"
        assert holding(pool, contract.emaid)
        reader.execute("rollback")
    assert ccp_ok("erase", "--yes", *options).lines[-1] == "The database's files no longer contain the id."
    assert holding(pool, contract.emaid) == []


def residue(file: Path, named: EMAID) -> None:
    """Leave bytes of a removed row in free space, as a library without secure_delete does."""
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("create table noted (text text)")
        connection.executemany("insert into noted values (?)", [("x" * 40,), (str(named),), ("y" * 40,)])
        connection.commit()
        connection.execute("pragma secure_delete = off")
        connection.execute("delete from noted where text = ?", (str(named),))
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")


def test_erasure_removes_bytes_in_free_space_of_the_file(tmp_path: Path) -> None:
    file, named = tmp_path / "ccp.db", EMAID("DEEXAA00000001")
    with closing(sqlite3.connect(file, isolation_level=None)) as server:
        server.execute("pragma journal_mode = wal")
        server.execute("create table kept (number int)")
        residue(file, named)
        assert named.encode() in file.read_bytes()
        assert scrub(file, named, vacuum=False) == Scrubbed(log_emptied=True, found=True)
        assert scrub(file, named, vacuum=True) == Scrubbed(log_emptied=True, found=False, vacuumed=True)
        assert named.encode() not in file.read_bytes()
        assert file.with_name("ccp.db-wal").read_bytes() == b""
        server.execute("insert into kept values (1)")


def test_sqlite_secure_delete_is_set_on_every_connection(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    from ccp.server.storage.engine import sqlite_connection

    real = sqlite3.connect

    def without(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = real(*arguments, **options)
        connection.execute("pragma secure_delete = off")  # The default of a library that was built otherwise.
        return connection

    monkeypatch.setattr(sqlite3, "connect", without)
    with closing(sqlite_connection.connected(pool.database, 1.0)) as connection:
        assert connection.execute("pragma secure_delete").fetchone() == (1,)


# --- What callers typed as a client id -------------------------------------------------------------------------------


def typed(emaid: EMAID, pcid: str) -> list[str]:
    """Ids as users type them into the wrong field."""
    hyphens = f"{emaid[:2]}-{emaid[2:5]}-{emaid[5:]}"
    dashes = hyphens.replace("-", "\u2013")
    return [
        emaid,
        emaid.lower(),
        hyphens,
        dashes,
        hyphens.replace("-", "*"),
        f"{hyphens}-X",
        f"my car {pcid}",
        pcid.lower(),
    ]


def login(http: httpx.Client, client_id: str) -> None:
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": "wrong"}
    assert http.post("/oauth/token", data=form).status_code == 401


def test_ids_used_as_client_ids_are_pseudonymised(pkis: dict[str, PKI], tmp_path: Path) -> None:
    emaid, pcid = new_emaid(), new_pcid()
    with start(pkis) as pool:
        config, log, port = tmp_path / "ccp.toml", tmp_path / "log", free_port()
        base_url = f"http://127.0.0.1:{port}"
        config.write_text(
            f'database = "{pool.settings.database}"\nbase_url = "{base_url}"\n'
            'log_level = "info"\nlogin_failures_per_minute = 0\n'
        )
        with serving(base_url, "--config", config, "--port", port, log=log) as http:
            for client_id in (*typed(emaid, pcid), "small_cps", "unknown-partner"):
                login(http, client_id)
        claims = []
        for _ in range(100):
            rows = pool.change(queries.search(Filter(action="access.refused"), 100))
            claims = [json.loads(row.subject)["claimed"] for row in rows]
            if len(claims) == 10:
                break
            time.sleep(0.05)
        other = f"{emaid}X"  # With a wrong check digit it is an id of its own.
        pseudonyms = {
            named: ccp_ok("audit", "pseudonym", named, "--config", config).lines[0] for named in (emaid, pcid, other)
        }
    requests = [json.loads(line) for line in log.read_text().splitlines() if '"operation":"token"' in line]
    # What a caller claims and a registered party is called is no id; what looks like none is left as it is.
    for reported in (sorted(claims), sorted(event["caller"] for event in requests)):
        assert reported == sorted(
            [*[pseudonyms[emaid]] * 5, pseudonyms[other], f"my car {pseudonyms[pcid]}", pseudonyms[pcid],
             "small_cps", "unknown-partner"]
        )  # fmt: skip
    for kept in (log.read_text(), json.dumps(claims)):
        assert emaid[5:] not in kept.upper()
        assert pcid not in kept.upper()


@pytest.mark.parametrize(
    ("mode", "shown"),
    [("clear", "de-exa-a00000001 for WEX0CAR0000000001"), ("owner", "DEEXA… for WEX…")],
)
def test_log_identifiers_applies_to_ids_used_as_client_ids(mode: str, shown: str) -> None:
    pseudonyms = Pseudonyms(Settings(log_identifiers=mode, log_pseudonym_key="a key of sixteen characters"))
    text = "de-exa-a00000001 for WEX0CAR0000000001"
    assert pseudonyms.pseudonymise_text(text) == shown
    hidden = pseudonyms.replace_ids(text)
    assert hidden == f"{pseudonyms.pseudonym(EMAID('DEEXAA00000001'))} for {hidden[-16:]}"


@pytest.mark.parametrize("separator", ["", "-", "--", "*", " ", "\t", ".", "/", ":", "_", "\u2010", "\u2013", "\u2212"])
def test_pseudonymise_finds_ids_with_any_separator(separator: str) -> None:
    pseudonyms = Pseudonyms(Settings(log_pseudonym_key="a key of sixteen characters"))
    text = f"my card: de{separator}exa{separator}a00000001"
    assert pseudonyms.replace_ids(text) == f"my card: {pseudonyms.pseudonym(EMAID('DEEXAA00000001'))}"


@pytest.mark.parametrize("name", ["example-emsp", "acme-charging-2024", "550e8400-e29b-41d4-a716-446655440000", "röle"])
def test_pseudonymise_keeps_names_that_are_no_ids(name: str) -> None:
    assert Pseudonyms(Settings(log_pseudonym_key="a key of sixteen characters")).replace_ids(name) == name
