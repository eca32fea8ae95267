"""Restore: access that an old backup would restore, and hostile backup files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from ccp.server.http.routes.opnc import BASE
from ccp.server.storage.engine import inspection, schema
from ccp.server.storage.engine.schema_version import HEAD
from ccp.server.storage.queries import contracts
from tests.cli.run import ccp_error, ccp_ok
from tests.cli.served_sandbox import free_port, serving
from tests.databases import with_schema
from tests.server.storage.made import AT, new_database, sql, variant, write

Env = dict[str, str]


@dataclass
class Place:
    """A database and its pool."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder}/ccp.db"

    @property
    def env(self) -> Env:
        # The pool's address is the issuer of its tokens.
        return {"CCP_DATABASE": self.url, "CCP_LOG_LEVEL": "error", "CCP_PORT": str(self.port)}

    @contextmanager
    def served(self, more: str = "") -> Iterator[httpx.Client]:
        config = self.folder / "ccp.toml"
        config.write_text(f'database = "{self.url}"\nport = {self.port}\nlog_level = "error"\n{more}')
        with serving(f"http://127.0.0.1:{self.port}", "--config", config) as http:
            yield http

    def run(self, *arguments: object) -> list[str]:
        return ccp_ok(*arguments, env=self.env).lines

    def party(self, client_id: str) -> str:
        """A new CPO. Returns its secret."""
        added = json.loads(ccp_ok("party", "add", client_id, "--role", "cpo", "--json", env=self.env).out)
        secret: str = added["client_secret"]
        return secret


@pytest.fixture
def place(tmp_path: Path) -> Place:
    with_schema(f"sqlite:///{tmp_path}/ccp.db")
    return Place(tmp_path, free_port())


def token(http: httpx.Client, client_id: str, secret: str) -> httpx.Response:
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
    return http.post("/oauth/token", data=form)


def good_token(http: httpx.Client, client_id: str, secret: str) -> str:
    found: str = token(http, client_id, secret).json()["access_token"]
    return found


def asked(http: httpx.Client, access_token: str) -> int:
    """The status of a POST with an empty body: 400 for a CPO, 401 for an unknown caller."""
    headers = {"Authorization": f"Bearer {access_token}"}
    return http.post(f"{BASE}/signedcontractdata", content=b"{}", headers=headers).status_code


def kids(url: str) -> list[str]:
    return sorted(kid for (kid,) in sql(url, "select kid from token_key"))


def restored_rows(url: str) -> list[dict[str, Any]]:
    rows = sql(url, "select subject from audit where action = 'database.restored'")
    return [json.loads(subject) for (subject,) in rows]


@dataclass
class After:
    """A pool with revocations after its backup. leaked: a token whose key was revoked since then."""

    place: Place
    copy: Path
    secrets: dict[str, str]
    leaked: str
    revoked: str


@pytest.fixture
def after(place: Place, tmp_path: Path) -> After:
    secrets = {name: place.party(name) for name in ("stays", "disabled", "rotated")}
    copy = tmp_path / "copy.db"
    with place.served() as http:
        leaked = good_token(http, "stays", secrets["stays"])
        assert asked(http, leaked) == 400
    (revoked,) = kids(place.url)
    place.run("backup", copy)
    place.run("party", "disable", "disabled")
    place.run("party", "rotate-secret", "rotated", "--now")
    place.run("keys", "revoke", "--yes", "--", revoked)
    return After(place, copy, secrets, leaked, revoked)


def test_restore_revokes_keys_again_and_lists_what_to_repeat(after: After) -> None:
    place = after.place
    lines = place.run("restore", after.copy, "--replace", "--yes")
    assert "The keys that signed access tokens are revoked (1): callers need new tokens." in lines
    at = lines.index("Changes after the backup, undone by it (4); repeat what still applies:")
    listed = lines[at + 1 : at + 5]
    assert [line.split("  ")[2] for line in listed] == [
        "party.disabled",
        "secret.rotated",
        "key.revoked",
        "key.rotated",
    ]
    assert '"party":"disabled"' in listed[0]
    assert '"party":"rotated"' in listed[1]
    assert after.revoked in listed[2]
    assert all(re.search(r"  by cli:\w+$", line) for line in listed)
    assert after.revoked not in kids(place.url)
    (row,) = restored_rows(place.url)
    (made,) = kids(place.url)
    assert row == {"file": "copy.db", "keys_revoked": [after.revoked], "kid": made}
    assert "whole" in " ".join(place.run("audit", "verify"))
    with place.served() as http:
        assert asked(http, after.leaked) == 401
        assert asked(http, good_token(http, "stays", after.secrets["stays"])) == 400
        # What was printed is what an operator has to do again: it is back until then.
        assert token(http, "disabled", after.secrets["disabled"]).status_code == 200


def test_restore_keeps_token_keys_only_on_request(after: After) -> None:
    place = after.place
    lines = place.run("restore", after.copy, "--replace", "--yes", "--keep-keys")
    assert any("repeat revocations made after it" in line for line in lines)
    assert any("key.revoked" in line and after.revoked in line for line in lines)
    assert kids(place.url) == [after.revoked]
    assert restored_rows(place.url) == [{"file": "copy.db", "keys": "kept"}]
    with place.served() as http:
        assert asked(http, after.leaked) == 400
        place.run("keys", "revoke", "--yes", "--", after.revoked)


def test_restore_uses_an_audit_export_if_the_database_is_lost(after: After, tmp_path: Path) -> None:
    place, export = after.place, tmp_path / "trail.jsonl"
    place.run("audit", "export", export)
    os.remove(schema.sqlite_file(place.url))
    lines = place.run("restore", after.copy, "--audit-export", export)
    assert "Changes after the backup, undone by it (4); repeat what still applies:" in lines
    assert sum(after.revoked in line for line in lines) == 1


def test_restore_merges_database_and_audit_export(after: After, tmp_path: Path) -> None:
    place, export = after.place, tmp_path / "trail.jsonl"
    place.run("audit", "export", export)
    lines = place.run("restore", after.copy, "--replace", "--yes", "--audit-export", export)
    assert "Changes after the backup, undone by it (4); repeat what still applies:" in lines


def test_restore_without_database_and_export_reports_unknown(after: After) -> None:
    os.remove(schema.sqlite_file(after.place.url))
    lines = after.place.run("restore", after.copy)
    assert any(line.startswith("What was disabled, rotated or revoked after the backup is unknown") for line in lines)


def test_restore_reports_an_unreadable_database(after: After) -> None:
    schema.sqlite_file(after.place.url).write_bytes(b"not a database at all" * 1000)
    done = ccp_ok("restore", after.copy, "--replace", "--yes", env=after.place.env)
    assert "cannot be read" in done.err
    assert "is unknown" in done.out
    assert "nothing was disabled" not in done.out


def test_restore_reports_that_nothing_was_revoked_since(place: Place, tmp_path: Path) -> None:
    place.party("stays")
    place.run("backup", tmp_path / "copy.db")
    write(place.url, contracts.publish(variant(), AT))
    lines = place.run("restore", tmp_path / "copy.db", "--replace", "--yes")
    assert "According to the trail, nothing was disabled, rotated or revoked after the backup." in lines


def test_restore_rejects_an_audit_export_of_another_pool(after: After, tmp_path: Path) -> None:
    other = Place(tmp_path / "other", free_port())
    other.folder.mkdir()
    schema.upgrade(other.url)
    for name in ("a", "b", "c", "stays", "disabled", "rotated"):
        other.party(name)
    export = tmp_path / "other.jsonl"
    other.run("audit", "export", export)
    done = ccp_ok("restore", after.copy, "--replace", "--yes", "--audit-export", export, env=after.place.env)
    assert "does not continue that of the backup" in done.err


def test_restore_escapes_and_validates_the_audit_export(after: After, tmp_path: Path) -> None:
    place, export = after.place, tmp_path / "trail.jsonl"
    place.run("audit", "export", export)
    lines = export.read_text().splitlines()
    hostile = []
    for line in lines:
        row = json.loads(line)
        if row.get("action") == "party.disabled":
            row |= {"actor": "\x1b[2J\u202egood", "subject": '{"party":"\x1b]0;x\x07"}'}
        hostile.append(json.dumps(row))
    export.write_text("\n".join(hostile) + "\n")
    before = sql(place.url, "select * from party")
    out = ccp_ok("restore", after.copy, "--replace", "--yes", "--audit-export", export, env=place.env).out
    assert "\\u001b[2J\\u202egood" in out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", out)
    export.write_text(lines[0] + "\nnonsense\n")
    again = sql(place.url, "select * from party")
    assert again != before
    assert ccp_error("restore", after.copy, "--replace", "--yes", "--audit-export", export, env=place.env).startswith(
        "Line 2 is not"
    )
    assert sql(place.url, "select * from party") == again


# --- Files that only look like backups -------------------------------------------------------------------------------


def rewritten(file: Path, name: str, change: Callable[[str], str]) -> None:
    """Rewrite a statement in the schema table, bypassing SQLite's checks."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        ((before,),) = connection.execute("select sql from sqlite_master where name = ?", (name,)).fetchall()
        connection.execute("pragma writable_schema = on")
        connection.execute("update sqlite_master set sql = ? where name = ?", (change(before), name))
        ((version,),) = connection.execute("pragma schema_version").fetchall()
        connection.execute(f"pragma schema_version = {version + 1}")


def statements(*every: str) -> Callable[[Path], None]:
    def run(file: Path) -> None:
        with closing(sqlite3.connect(file)) as connection, connection:
            for statement in every:
                connection.execute(statement)

    return run


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a trigger on a change": (
        statements("create trigger more after insert on party begin update party set enabled = 1; end"),
        "it contains the trigger more, which no opnc-ccp database has. Nothing was run.",
    ),
    "a trigger on a key": (
        statements(
            "create trigger back after delete on token_key begin "
            "insert into token_key values (old.kid, old.private_key, old.created_at, null, null); end"
        ),
        "it contains the trigger back",
    ),
    "a view in the place of a table": (
        statements("alter table contract rename to kept", "create view contract as select * from kept"),
        "it contains the view contract",
    ),
    "a view in the place of the revision": (
        statements("drop table alembic_version", f"create view alembic_version as select '{HEAD}' as version_num"),
        "it contains the view alembic_version",
    ),
    "a virtual table": (
        statements("create virtual table party_names using fts5(name)"),
        "it contains the virtual table",
    ),
    "a table more": (statements("create table more (x)"), "it has the table more, unlike the schema"),
    "an index with an expression": (
        statements("create index more on party (lower(name))"),
        "it has the index more, unlike the schema",
    ),
    "a table less": (statements("drop table audit"), "it lacks the"),
    "a column more": (
        statements("alter table party add column more text generated always as (lower(name)) virtual"),
        "its table party is defined differently, unlike the schema",
    ),
    "a check that runs a function": (
        lambda file: rewritten(file, "contract", lambda text: text.rstrip().rstrip(")") + ", check (abs(rev) > 0))"),
        "its table contract is defined differently, unlike the schema",
    ),
    "a default that is an expression": (
        lambda file: rewritten(
            file,
            "party",
            lambda text: text.replace("enabled boolean not null", "enabled boolean not null default (random())"),
        ),
        "its table party is defined differently, unlike the schema",
    ),
    "a key that is none": (
        lambda file: rewritten(file, "alembic_version", lambda text: text.replace("NOT NULL", "")),
        "is not an opnc-ccp database",
    ),
    "a schema beyond parsing": (
        lambda file: rewritten(file, "party", lambda text: "create nonsense"),
        "is not an opnc-ccp database",
    ),
    "another revision than it says": (
        statements("update alembic_version set version_num = '0001'"),
        "unlike the schema 0001",
    ),
    "no revision": (statements("delete from alembic_version"), "is not an opnc-ccp database"),
    "a revision that is none": (
        statements("update alembic_version set version_num = '../1'"),
        "is not an opnc-ccp database",
    ),
    "a later revision": (statements("update alembic_version set version_num = '9999'"), "newer than this release's"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_restore_refuses_a_file_with_a_foreign_schema(place: Place, tmp_path: Path, name: str) -> None:
    place.party("stays")
    bad = tmp_path / "bad.db"
    place.run("backup", bad)
    change, sentence = HOSTILE[name]
    change(bad)
    before = schema.sqlite_file(place.url).read_bytes()
    assert sentence in ccp_error("restore", bad, "--replace", "--yes", env=place.env)
    assert schema.sqlite_file(place.url).read_bytes() == before
    assert not list(tmp_path.glob("*.part*"))
    assert not list(tmp_path.glob("ccp.db.*")), "nothing was put aside"


def test_restore_escapes_names_of_a_hostile_file(place: Place, tmp_path: Path) -> None:
    bad = tmp_path / "bad.db"
    place.run("backup", bad)
    statements('create table "\x1b[2J\u202e" (x)')(bad)
    assert r"it has the table \x1b[2J\u202e, unlike" in ccp_error("restore", bad, "--replace", "--yes", env=place.env)


def test_restore_refuses_a_backup_with_a_log_beside_it(place: Place, tmp_path: Path) -> None:
    """The log could contain changes that the file does not, and only the file would be copied."""
    copy = tmp_path / "copy.db"
    place.run("backup", copy)
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("create table more (x)")
        shutil.copy(f"{copy}-wal", tmp_path / "kept-wal")
        shutil.copy(copy, tmp_path / "kept")
    shutil.move(tmp_path / "kept", copy)
    shutil.move(tmp_path / "kept-wal", f"{copy}-wal")
    assert inspection.inspect(copy) == HEAD
    assert "copy.db-wal holds changes that belong to it" in ccp_error(
        "restore", copy, "--replace", "--yes", env=place.env
    )


def test_restore_accepts_every_schema_revision(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    file = schema.sqlite_file(url)
    known = sorted(path.name[:4] for path in (Path(schema.__file__).parents[1] / "migrations/versions").glob("0*.py"))
    for revision in reversed(known[:-1]):
        schema.downgrade(url, revision)
        assert inspection.inspect(file) == revision
        target = Place(tmp_path / revision, free_port())
        target.folder.mkdir()
        lines = ccp_ok("restore", file, env=target.env).lines
        assert lines[-1].endswith("run 'ccp db upgrade' next.")
        target.run("db", "upgrade")
        assert inspection.inspect(schema.sqlite_file(target.url)) == HEAD
    schema.upgrade(url)
    sql(url, "analyze")
    assert inspection.inspect(file) == HEAD


def test_backup_reports_that_a_restore_would_refuse_it(place: Place, tmp_path: Path) -> None:
    sql(place.url, "create index more on party (name)")
    done = ccp_ok("backup", tmp_path / "copy.db", env=place.env)
    assert "it has the index more" in done.err
    assert "`ccp restore` will refuse it." in done.err


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ("update audit_head set number = 'many'", "audit_head.number"),
        ("update token_key set kid = x'00ff'", "token_key.kid"),
        ("update party set client_id = x'00ff'", "party.client_id"),
        ("update party set enabled = 'yes'", "party.enabled"),
    ],
)
def test_restore_refuses_values_of_another_type(place: Place, tmp_path: Path, change: str, column: str) -> None:
    place.party("stays")
    ccp_ok("keys", "rotate", env=place.env)
    bad = tmp_path / "bad.db"
    place.run("backup", bad)
    statements(change)(bad)
    before = sql(place.url, "select * from party")
    answer = ccp_error("restore", bad, "--replace", "--yes", env=place.env)
    assert answer.endswith(f"is damaged: {column} has a value of another type.")
    assert sql(place.url, "select * from party") == before


def test_restore_refuses_a_copied_database_with_a_log(place: Place, tmp_path: Path) -> None:
    """The last changes, here the disabling of a party, are only in the log."""
    place.party("disabled")
    bad = tmp_path / "copied.db"
    place.run("backup", bad)
    live = tmp_path / "live.db"
    shutil.copy(bad, live)
    with closing(sqlite3.connect(live, isolation_level=None)) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("update party set enabled = 0")
        shutil.copy(live, bad)
        shutil.copy(f"{live}-wal", f"{bad}-wal")
    assert "copied.db-wal holds changes that belong to it" in ccp_error(
        "restore", bad, "--replace", "--yes", env=place.env
    )
    assert sql(place.url, "select enabled from party") == [(1,)]


def test_restore_refuses_a_pipe(place: Place, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    answer = ccp_error("restore", tmp_path / "pipe", "--replace", "--yes", env=place.env)
    assert answer.endswith("is not an opnc-ccp database.")


def test_restore_brings_no_session_of_the_console_back(place: Place, tmp_path: Path) -> None:
    """A session that had ended after the backup, and one that had not: each person logs in again."""
    added = json.loads(ccp_ok("party", "add", "boss", "--role", "admin", "--json", env=place.env).out)
    copy, form = tmp_path / "copy.db", {"client_id": added["client_id"], "client_secret": added["client_secret"]}

    def overview(http: httpx.Client, cookie: str) -> int:
        return http.get("/console/overview", headers={"Cookie": f"ccp-console={cookie}"}).status_code

    with place.served("console = true\n") as http:
        own = {"Origin": str(http.base_url).rstrip("/")}
        sessions = []
        for _ in range(2):
            sessions.append(http.post("/console/login", data=form, headers=own).cookies["ccp-console"])
            http.cookies.clear()  # As two browsers have them.
        ended, living = sessions
        assert [overview(http, each) for each in (ended, living)] == [200, 200]
        place.run("backup", copy)
        with closing(sqlite3.connect(copy)) as connection:
            assert connection.execute("select count(*) from console_session").fetchone() == (2,)
        sql(place.url, "delete from console_session where id_hash = ?", hashlib.sha256(ended.encode()).hexdigest())
        assert [overview(http, each) for each in (ended, living)] == [303, 200]
    for keep in ((), ("--keep-keys",)):
        lines = place.run("restore", copy, "--replace", "--yes", *keep)
        assert not [line for line in lines if line.startswith("  ") and "console.logged" in line]
        assert sql(place.url, "select * from console_session") == []
        with place.served("console = true\n") as http:
            assert [overview(http, each) for each in (ended, living)] == [303, 303]
            again = http.post("/console/login", data=form, headers=own).cookies["ccp-console"]
            http.cookies.clear()
            assert overview(http, again) == 200
