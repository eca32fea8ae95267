"""Commands in a folder with a sandbox below it: which of them take it, and what they say."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from ccp.server import settings
from tests.cli.command_tree import TREE
from tests.cli.run import ccp, ccp_error, ccp_ok

NOTE = "Using the sandbox: .sandbox/ccp.toml (there is no ccp.toml here).\n"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, as `make run` leaves it."""
    monkeypatch.chdir(tmp_path)
    ccp_ok("sandbox", ".sandbox", "--port", "1")
    return tmp_path


def test_commands_take_the_sandbox_below_the_folder_and_say_so(checkout: Path) -> None:
    done = ccp_ok("party", "list", "--json")
    assert done.err == NOTE
    assert len(json.loads(done.out)) >= 4
    assert ccp_ok("config", "--json").err == NOTE
    assert ccp("doctor", "--offline").err == NOTE
    assert ccp_ok("party", "list", "--json", "--config", ".sandbox/ccp.toml").err == ""


def test_commands_take_what_is_named_before_a_sandbox(checkout: Path) -> None:
    other = {"CCP_DATABASE": f"sqlite:///{checkout}/other.db"}
    assert ccp_ok("db", "upgrade", env=other).err == ""
    assert json.loads(ccp_ok("party", "list", "--json", env=other).out) == []
    (checkout / "mine.toml").write_text('database = "sqlite:///other.db"\n')
    assert json.loads(ccp_ok("party", "list", "--json", env={"CCP_CONFIG": "mine.toml"}).out) == []
    (checkout / "mine.toml").rename(checkout / "ccp.toml")
    done = ccp_ok("party", "list", "--json")
    assert (json.loads(done.out), done.err) == ([], "")


def test_commands_that_serve_take_no_sandbox_that_nothing_names(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def load(path: Path | None = None, **given: Any) -> None:
        seen.append(path)
        raise SystemExit(3)

    monkeypatch.setattr(settings, "load", load)
    for arguments in (("serve",), ("events", "dispatch")):
        done = ccp(*arguments)
        assert (done.status, done.err) == (3, "")
    assert seen == [None, None]


def test_commands_that_serve_are_the_only_ones_without_the_sandbox() -> None:
    def default(path: str) -> str:
        (option,) = [parameter for parameter in TREE[path].params if "--config" in parameter.opts]
        return str(option.help)

    with_option = [path for path, command in TREE.items() if any("--config" in each.opts for each in command.params)]
    assert {path for path in with_option if ".sandbox/ccp.toml" not in default(path)} == {"serve", "events dispatch"}


def test_sandbox_takes_a_free_port_if_its_own_is_in_use(tmp_path: Path) -> None:
    try:
        taken = socket.create_server(("127.0.0.1", 8020))
    except OSError:
        taken = socket.socket()  # Another process has it, which serves as well.
    with taken:
        made = json.loads(ccp_ok("sandbox", tmp_path / "made", "--json").out)
    assert made["base_url"].startswith("http://127.0.0.1:")
    assert made["base_url"] != "http://127.0.0.1:8020"
    assert f"port = {made['base_url'].rpartition(':')[2]}" in (tmp_path / "made" / "ccp.toml").read_text()


def test_provider_id_with_underscores_is_refused_wherever_an_owner_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ccp_ok("db", "upgrade")
    secret = {"CCP_PEER_SECRET": "a-secret"}
    for arguments in (
        ("party", "add", "A", "--role", "emsp", "--provider-id", "DE___"),
        ("peer", "add", "pool-b", "https://b.example", "--provider-id", "DE___"),
        ("export", "-", "--provider-id", "DE___"),
    ):
        assert "must have letters and digits; an underscore is no wildcard" in ccp_error(*arguments, env=secret)
    ccp_ok("peer", "add", "pool-b", "https://b.example", env=secret)
    error = ccp_error("peer", "edit", "pool-b", "--add-provider-id", "DE___")
    assert "an underscore is no wildcard" in error


def test_completion_is_printed_for_the_shell_that_is_named() -> None:
    for shell in ("bash", "zsh", "fish"):
        assert f"complete_{shell}" in ccp_ok("--show-completion", shell).out
    assert ccp_error("--show-completion", "tcsh").startswith("There is no completion for tcsh; the shells are bash,")
