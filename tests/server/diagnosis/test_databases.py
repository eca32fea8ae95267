"""Checks of the database: files that are no database, schemas, and PostgreSQL servers that lose changes."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ccp.server.diagnosis import database
from ccp.server.storage.engine import schema
from tests.cli.run import COMMAND, ccp_ok, environment
from tests.databases import NOT_HERE, STANDBY, Server, binaries, replicated, sql, wait_for_standby
from tests.diagnoses import configuration, doctor
from tests.waiting import wait_until

FAKETIME = shutil.which("faketime")
needs_postgres = pytest.mark.skipif(binaries() is None, reason=NOT_HERE)


def test_database_file_that_is_absent_or_foreign(tmp_path: Path) -> None:
    path = configuration(tmp_path)
    absent = doctor("--config", path)
    assert "There is no database at" in absent.finding("database.unreachable")["message"]
    assert absent.facts("anchors") == "not checked: the database cannot be opened"
    (tmp_path / "ccp.db").write_bytes(b"not a database" * 1000)
    foreign = doctor("--config", path)
    assert "is not an opnc-ccp database" in foreign.finding("database.unreachable")["message"]
    assert "check.failed" not in foreign.codes


def test_database_schema_that_is_older_newer_or_absent(tmp_path: Path) -> None:
    path, url = configuration(tmp_path), f"sqlite:///{tmp_path}/ccp.db"
    ccp_ok("db", "upgrade", "--config", path)
    sql(url, "update alembic_version set version_num = '0003'")
    older = doctor("--config", path)
    assert older.finding("database.schema")["message"].startswith("The schema is 0003; this release needs 0")
    assert "check.failed" not in older.codes
    sql(url, "update alembic_version set version_num = '9999'")
    assert "database.schema-newer" in doctor("--config", path).codes
    sql(url, "drop table alembic_version")
    assert "The schema is absent" in doctor("--config", path).finding("database.schema")["message"]


def test_database_with_encrypted_secrets_is_opened_with_the_key_file(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(base64.b64encode(bytes(range(32))).decode() + "\n")
    (tmp_path / "keys").chmod(0o600)
    path = configuration(
        tmp_path, 'secrets_key_file = "keys"\naudit_stream = "file"\naudit_stream_file = "later.jsonl"\n'
    )
    ccp_ok("db", "upgrade", "--config", path)
    ccp_ok(
        "peer", "add", "b", "http://127.0.0.1:9", "--client-id", "us", "--config", path, env={"CCP_PEER_SECRET": "s"}
    )
    report = doctor("--config", path)
    assert "peer.unreachable" in report.codes
    assert not report.codes & {"database.unreachable", "file.missing", "configuration.invalid"}
    (tmp_path / "keys").write_text(base64.b64encode(bytes(32)).decode() + "\n")
    assert "database.unreachable" in doctor("--config", path).codes


def test_database_on_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = configuration(tmp_path)
    ccp_ok("db", "upgrade", "--config", path)
    assert "database.network-file-system" not in doctor("--config", path).codes
    monkeypatch.setattr(database, "_file_system", lambda _: "nfs4")
    assert "nfs4" in doctor("--config", path).finding("database.network-file-system")["message"]


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def on(url: str, *arguments: object, **env: str) -> set[str]:
    report = doctor("--offline", *arguments, CCP_DATABASE=url, CCP_PORT="1", **env)
    assert "check.failed" not in report.codes, report.text
    return {code for code in report.codes if code.startswith(("database.", "clock."))}


def test_database_server_that_is_fine(postgres: Server) -> None:
    url = postgres.database()
    report = doctor("--offline", CCP_DATABASE=url, CCP_PORT="1")
    assert "synchronous_commit on, fsync" in report.facts("database")
    assert "UTF8" in report.facts("database")
    assert "from the database server" in report.facts("clock")
    assert "no standby is connected" in report.facts("database")
    assert on(url) == {"database.fsync-off"}, "the tests' server runs without fsync"


def test_database_server_with_synchronous_commit_off(postgres: Server) -> None:
    url = postgres.database()
    sql(url, f"alter database {url.rpartition('/')[2]} set synchronous_commit = off")
    assert on(url) == {"database.fsync-off", "database.synchronous-commit-off"}


def test_database_server_with_too_few_connections(postgres: Server) -> None:
    codes = on(postgres.database(), "--workers", 8, CCP_DATABASE_CONNECTIONS="10")
    assert "database.connections" in codes


def test_database_with_another_encoding_or_without_schema(postgres: Server) -> None:
    sql(postgres.url("postgres"), "create database latin template template0 encoding 'LATIN1' locale 'C'")
    assert on(postgres.url("latin")) == {"database.encoding"}
    assert on(postgres.database(empty=True)) == {"database.schema", "database.fsync-off"}


def test_database_server_that_is_away_or_refuses(postgres: Server) -> None:
    assert on("postgresql://ccp@127.0.0.1:1/ccp") == {"database.unreachable"}
    assert on(postgres.url("no-such-database")) == {"database.unreachable"}
    hidden = doctor("--offline", CCP_DATABASE=f"postgresql://careful:wrong-secret@127.0.0.1:{postgres.port}/postgres")
    assert "password authentication failed" in hidden.finding("database.unreachable")["message"]
    assert "wrong-secret" not in hidden.text


@needs_postgres
def test_database_server_that_waits_for_a_synchronous_standby() -> None:
    server = Server(fsync="on")
    try:
        server.start()
        url = server.database()
        assert on(url) == set()
        sql(url, "alter system set synchronous_standby_names = 'standby_b'")
        sql(url, "select pg_reload_conf()")
        assert schema.revision(url) == schema.head()
        report = doctor("--offline", CCP_DATABASE=url, CCP_PORT="1")
        finding = report.finding("database.no-synchronous-standby")
        assert "synchronous_standby_names is standby_b" in finding["message"]
    finally:
        server.close()


def test_database_server_whose_transactions_are_read_only_is_found(postgres: Server) -> None:
    url = postgres.database()
    name = url.rpartition("/")[2]
    sql(url, f"alter database {name} set default_transaction_read_only = on")
    report = doctor("--offline", CCP_DATABASE=url, CCP_PORT="1")
    assert report.status == 2
    assert "default_transaction_read_only is on" in report.finding("database.read-only")["message"]
    assert "disk is full" in report.finding("database.read-only")["action"]
    sql(postgres.url("postgres"), f"alter database {name} reset default_transaction_read_only")
    assert "database.read-only" not in on(url)


@needs_postgres
def test_database_standby_that_lags_and_standby_that_answers_are_found() -> None:
    with replicated(synchronous=False) as (primary, standby, name):
        url = primary.url(name)
        fine = doctor("--offline", CCP_DATABASE=url, CCP_PORT="1")
        assert f"standby {STANDBY}: streaming, async, " in fine.facts("database")
        assert not fine.codes & {"database.standby-lags", "database.read-only"}
        standby.pause()
        for _ in range(11):  # Ten megabytes each of the write-ahead log.
            sql(url, "select pg_logical_emit_message(false, 'lag', repeat('x', 10000000))")
        lags = doctor("--offline", CCP_DATABASE=url, CCP_PORT="1").finding("database.standby-lags")
        assert lags["subject"] == STANDBY
        assert " MB and " in lags["message"]
        standby.resume()
        wait_for_standby(primary)
        wait_until(lambda: "database.standby-lags" not in on(url), timeout=60)
        read_only = doctor("--offline", CCP_DATABASE=standby.url(name), CCP_PORT="1")
        assert read_only.status == 2
        assert read_only.finding("database.read-only")["message"] == "The server that answers is a standby."
        assert "check.failed" not in read_only.codes


@pytest.mark.skipif(FAKETIME is None, reason="faketime is not installed")
def test_clock_that_is_wrong_is_found_by_the_database_server(postgres: Server) -> None:
    url = postgres.database()

    def codes(shift: str) -> dict[str, str]:
        done = subprocess.run(
            [str(FAKETIME), "-f", shift, *COMMAND, "doctor", "--json", "--offline"],
            env=environment(CCP_DATABASE=url, CCP_PORT="1"), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        found = [each for check in json.loads(done.stdout)["checks"] for each in check["findings"]]
        return {each["code"]: each["message"] for each in found if each["code"].startswith("clock.")}

    assert codes("+0") == {}
    assert list(codes("+40s")) == ["clock.drifts-from-database"]
    ((code, message),) = codes("-10m").items()
    assert code == "clock.differs-from-database"
    assert "differs by -600" in message or "differs by -599" in message
