"""What commands import: those that need no server do without its libraries, and so start fast and stay small.

A table instead of a time: which packages a command may import. One that is not in it is found here, and not by a user
who waits.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ccp.cli.commands import COMMANDS, load
from tests.cli.run import environment

MESSAGE = Path(__file__).parents[1] / "vectors" / "installation_res_iso2_opnc_example.b64"

PLAIN = {"typer", "annotated_doc", "shellingham"}
HELP = PLAIN | {"rich", "markdown_it", "mdurl", "pygments"}
CERTIFICATES = {"cryptography", "_cffi_backend", "_openssl"}
ALLOWED: dict[tuple[str, ...], set[str]] = {
    ("--version",): PLAIN,
    ("--help",): HELP,
    ("nothing",): HELP,
    ("exi", "--help"): HELP,
    ("exi", "decode", str(MESSAGE)): PLAIN | CERTIFICATES,
    ("exi", "decode", "--full", str(MESSAGE)): PLAIN,
    ("exi", "encode", "-"): PLAIN,
    ("verify", "--trust", str(MESSAGE.parent), str(MESSAGE)): PLAIN | CERTIFICATES,
    ("verify", "--json", "--trust", str(MESSAGE.parent), str(MESSAGE)): PLAIN | CERTIFICATES,
}
"""Packages beside the standard library, by command."""
HEAVY = {"asyncio", "concurrent", "http", "multiprocessing", "sqlite3", "ssl"}
"""Of the standard library, what only a server or a client needs."""

_RUN = """
import json, os, sys
from ccp.cli import main
try:
    main()
finally:
    os.write(int(os.environ["REPORT"]), json.dumps(sorted(sys.modules)).encode())
"""


def modules_after(*arguments: str) -> set[str]:
    """The names in `sys.modules` when a command has ended."""
    command = [sys.executable, "-c", _RUN, *arguments]
    reading, writing = os.pipe()
    with open(reading, "rb") as report:
        subprocess.run(
            command,
            input=b"{}",
            env=environment(REPORT=str(writing)),
            pass_fds=(writing,),
            capture_output=True,
            timeout=60,
            check=False,
        )
        os.close(writing)
        return set(json.loads(report.read()))


@pytest.mark.parametrize("command", ALLOWED, ids=lambda command: " ".join(command[:2]))
def test_command_imports_only_allowed_packages(command: tuple[str, ...]) -> None:
    modules = modules_after(*command)
    packages = {name.partition(".")[0] for name in modules}
    unknown = packages - sys.stdlib_module_names - ALLOWED[command]
    assert {name for name in unknown if not _is_of_the_environment(name)} == {"ccp"}
    assert not packages & HEAVY
    assert not {
        name
        for name in modules
        if name.startswith(("ccp.server.app", "ccp.server.http.protocol", "ccp.server.settings", "ccp.server.storage"))
    }


def _is_of_the_environment(name: str) -> bool:
    """Modules that the installation imports into every process, and those that are named for the platform.

    rich imports attrs where another package has brought it.
    """
    return name in {"__main__", "__mp_main__", "_distutils_hack", "attr", "sitecustomize"} or name.startswith(
        ("_sysconfigdata", "__editable__")
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_command_table_matches_the_help_of_each_command(name: str) -> None:
    help_text = inspect.cleandoc(load(name).help)
    assert help_text.partition("\n\n")[0].replace("\n", " ") == COMMANDS[name].help


SERVER_LIBRARIES = (
    "alembic", "argon2", "asyncpg", "fastapi", "httpcore", "joserfc", "prometheus_client", "pydantic",
    "pydantic_settings", "sqlalchemy", "starlette", "structlog", "uvicorn",
)  # fmt: skip


def without(libraries: tuple[str, ...], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in an installation that lacks these libraries."""
    program = f"import sys; sys.modules.update(dict.fromkeys({libraries!r})); from ccp.cli import main; main()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "command", [("serve",), ("party", "list"), ("db", "status"), ("verify", str(MESSAGE)), ("import", "-"), ("demo",)]
)
def test_command_without_server_libraries_names_the_extra(command: tuple[str, ...]) -> None:
    done = without(SERVER_LIBRARIES, *command)
    assert done.stderr == f"ccp: ccp {command[0]} needs the server's libraries; install opnc-ccp[server].\n"
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize(
    "command", [("exi", "decode", str(MESSAGE)), ("verify", "--trust", str(MESSAGE.parent), str(MESSAGE))]
)
def test_message_commands_need_no_server_library(command: tuple[str, ...]) -> None:
    done = without(SERVER_LIBRARIES, *command)
    assert done.stderr == ""
    assert done.stdout


def test_command_line_without_typer_names_the_extra() -> None:
    done = without(("typer",), "--version")
    assert done.stderr == "ccp: The command line needs typer and rich; install opnc-ccp[cli].\n"
    assert (done.returncode, done.stdout) == (1, "")


def test_import_of_a_missing_project_module_keeps_its_traceback() -> None:
    done = without(("ccp.server.settings",), "config")
    assert "Traceback" in done.stderr
