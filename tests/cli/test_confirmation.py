"""Commands that cannot be undone: a question on a terminal, an error without one, nothing with --yes."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import typer

from ccp.cli.output import confirm
from ccp.errors import ConfigurationError
from tests.cli.run import ccp_error, ccp_ok

FINGERPRINT = "ab" * 32
COMMANDS = [
    (("purge",), "Remove every contract that has expired or is revoked"),
    (("erase", "--emaid", "DEEXAX00000001"), "Erase all data about DEEXAX00000001"),
    (("restore", "copy.db", "--replace"), "Replace the database by copy.db, which undoes every change made after"),
    (("trust", "remove", FINGERPRINT), f"Remove the trust in {FINGERPRINT}"),
    (("keys", "revoke", "kid"), "Revoke the key kid and every token that it has signed"),
    (("events", "drop", "--all"), "Delete all dead deliveries"),
    (("webhook", "remove", "id"), "Remove the webhook id and its events"),
    (("peer", "remove", "pool-b"), "Remove the peer pool-b"),
    (("db", "downgrade", "base"), "Downgrade the schema from nothing to base"),
]


class Terminal(io.StringIO):
    """Standard input that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("command", "action"), COMMANDS, ids=lambda value: " ".join(value[:2]))
def test_command_without_terminal_and_without_yes_is_refused(
    command: tuple[str, ...], action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = ccp_error(*command)
    assert sentence.startswith(action)
    assert sentence.endswith(": this cannot be undone; confirm with --yes.")


def test_confirm_asks_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    confirm("Remove the peer x", yes=False)
    captured = capsys.readouterr()
    assert captured.err.startswith("Remove the peer x? [y/N]")
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    with pytest.raises(typer.Abort):
        confirm("Remove the peer x", yes=False)


def test_confirm_with_yes_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    confirm("Remove the peer x", yes=True)
    with pytest.raises(ConfigurationError):
        confirm("Remove the peer x", yes=False)


def test_dry_runs_need_no_confirmation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ccp_ok("db", "upgrade")
    ccp_ok("purge", "--dry-run")
    ccp_ok("erase", "--emaid", "DEEXAX00000001", "--dry-run")
