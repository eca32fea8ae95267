"""PgBouncer in front of a PostgreSQL server of the tests, if it is installed (`apt-get install pgbouncer`).

with pgbouncer(postgres, database_url) as pooled_url: …
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.databases import _end_with_parent, _free_port, _user

PROGRAM = shutil.which("pgbouncer") or ("/usr/sbin/pgbouncer" if Path("/usr/sbin/pgbouncer").exists() else None)
needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not on this machine")


async def _connect(url: str) -> None:
    await (await asyncpg.connect(url, timeout=10)).close()


@contextmanager
def pgbouncer(url: str, *, mode: str = "transaction", size: int = 3, **settings: str) -> Iterator[str]:
    """Run a pooler with few sessions in front of a database. Yields the URL of the database at the pooler."""
    assert PROGRAM is not None
    there, port = urlsplit(url), _free_port()
    name = there.path.lstrip("/")
    folder = Path(tempfile.mkdtemp(prefix="ccp-pgbouncer-"))
    how: dict[str, Any] = {"env": {"PATH": os.environ.get("PATH", ""), "HOME": str(folder)}}
    (folder / "users").write_text('"ccp" ""\n')
    values = {
        "listen_addr": "127.0.0.1", "listen_port": str(port), "unix_socket_dir": "", "auth_type": "trust",
        "auth_file": str(folder / "users"), "pool_mode": mode, "default_pool_size": str(size),
        "max_client_conn": "200", "logfile": str(folder / "log"), **settings,
    }  # fmt: skip
    lines = ["[databases]", f"{name} = host=127.0.0.1 port={there.port} dbname={name}", "[pgbouncer]"]
    (folder / "ini").write_text("\n".join([*lines, *(f"{key} = {value}" for key, value in values.items()), ""]))
    if os.geteuid() == 0:  # PgBouncer does not run as root either.
        user = next(entry for name in ("postgres", "nobody") if (entry := _user(name)))
        how |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        for path in (folder, folder / "users", folder / "ini"):
            os.chown(path, user.pw_uid, user.pw_gid)
    process = subprocess.Popen(
        [PROGRAM, "-q", folder / "ini"], **how, cwd=folder, stderr=subprocess.DEVNULL, preexec_fn=_end_with_parent
    )
    pooled = f"postgresql://ccp@127.0.0.1:{port}/{name}"
    try:
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                asyncio.run(_connect(pooled))
                break
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
        yield pooled
    finally:
        process.kill()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)
