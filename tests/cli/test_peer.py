"""ccp peer: registering and changing peers, and what the audit trail records of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.run import ccp_error, ccp_ok
from tests.server.storage.made import sql

SECRET = {"CCP_PEER_SECRET": "first-secret"}
ROOT = "ab" * 32


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database with one peer, `pool-b`."""
    monkeypatch.chdir(tmp_path)
    ccp_ok("db", "upgrade")
    ccp_ok("peer", "add", "pool-b", "https://b.example", "--client-id", "us", "--v2g-root", ROOT, env=SECRET)
    return f"sqlite:///{tmp_path / 'ccp.db'}"


def shown(party_id: str = "pool-b") -> dict[str, Any]:
    members: dict[str, Any] = json.loads(ccp_ok("peer", "show", party_id, "--json").out)
    return members


def recorded(database: str) -> list[tuple[str, dict[str, Any]]]:
    rows = sql(database, "select action, subject from audit where action like 'peer.%' order by at, number")
    return [(action, json.loads(subject)) for action, subject in rows]


def test_peer_add_prints_the_peer_as_json_without_its_secret(database: str) -> None:
    out = ccp_ok("peer", "add", "pool-c", "https://c.example", "--provider-id", "de-exa", "--json", env=SECRET).out
    assert json.loads(out) == shown("pool-c")
    assert json.loads(out)["provider_ids"] == ["DEEXA"]
    assert "first-secret" not in out


def test_peer_show_prints_a_peer_without_its_secret(database: str) -> None:
    assert shown() == {
        "party_id": "pool-b", "base_url": "https://b.example", "dialect": "opnc", "client_id": "us", "token_url": None,
        "audience": None, "v2g_roots": [ROOT], "provider_ids": [], "enabled": True,
    }  # fmt: skip
    text = ccp_ok("peer", "show", "pool-b").out
    assert "https://b.example" in text
    assert "first-secret" not in text
    assert ccp_error("peer", "show", "pool-z") == "There is no peer pool-z."


def test_peer_edit_changes_and_records_what_is_given(database: str) -> None:
    done = ccp_ok(
        "peer", "edit", "pool-b", "--base-url", "https://new.example", "--dialect", "opcp", "--add-provider-id",
        "DEEXA", "--remove-v2g-root", ROOT, "--token-url", "https://new.example/token", "--json",
    )  # fmt: skip
    assert json.loads(done.out) == shown()
    assert shown() == {
        "party_id": "pool-b", "base_url": "https://new.example", "dialect": "opcp", "client_id": "us",
        "token_url": "https://new.example/token", "audience": None, "v2g_roots": [], "provider_ids": ["DEEXA"],
        "enabled": True,
    }  # fmt: skip
    action, subject = recorded(database)[-1]
    assert (action, subject["peer"]) == ("peer.edited", "pool-b")
    assert set(subject["changed"]) == {"base_url", "dialect", "token_url", "v2g_roots", "provider_ids"}
    assert subject["before"]["base_url"] == "https://b.example"
    assert subject["after"]["base_url"] == "https://new.example"
    assert ccp_ok("peer", "edit", "pool-b", "--token-url", "").out == "pool-b is changed.\n"
    assert shown()["token_url"] is None


def test_peer_edit_refuses_what_cannot_be_called(database: str) -> None:
    assert ccp_error("peer", "edit", "pool-b") == "Nothing is to be changed; see --help."
    assert "The URL of a pool" in ccp_error("peer", "edit", "pool-b", "--base-url", "b.example")
    assert ccp_error("peer", "edit", "pool-b", "--remove-provider-id", "DEEXA") == "pool-b does not have DEEXA."
    assert ccp_error("peer", "edit", "pool-z", "--base-url", "https://z.example") == "There is no peer pool-z."
    assert shown()["base_url"] == "https://b.example"
    assert [action for action, _ in recorded(database)] == ["peer.added"]


def test_peer_rotate_secret_replaces_the_secret_and_records_no_value(database: str) -> None:
    ccp_ok("peer", "rotate-secret", "pool-b", env={"CCP_PEER_SECRET": "second-secret"})
    assert sql(database, "select client_id, secret, token from peer") == [("us", "second-secret", None)]
    assert recorded(database)[-1] == (
        "peer.edited", {"peer": "pool-b", "changed": ["secret"], "before": {}, "after": {}},
    )  # fmt: skip
    ccp_ok("peer", "add", "pool-c", "https://c.example", env=SECRET)
    ccp_ok("peer", "rotate-secret", "pool-c", env={"CCP_PEER_SECRET": "token"})
    assert sql(database, "select secret, token from peer where party_id = 'pool-c'") == [(None, "token")]
    ccp_ok("peer", "rotate-secret", "pool-c", "--client-id", "new", env={"CCP_PEER_SECRET": "third"})
    assert sql(database, "select client_id, secret, token from peer where party_id = 'pool-c'") == [
        ("new", "third", None)
    ]


def test_peer_enable_and_disable_are_recorded_once(database: str) -> None:
    for _ in range(2):
        assert ccp_ok("peer", "disable", "pool-b").out == "pool-b is disabled.\n"
    assert shown()["enabled"] is False
    assert ccp_ok("peer", "enable", "pool-b").out == "pool-b is enabled.\n"
    assert shown()["enabled"] is True
    assert [action for action, _ in recorded(database)] == ["peer.added", "peer.disabled", "peer.enabled"]
    assert ccp_error("peer", "enable", "pool-z") == "There is no peer pool-z."


def test_peer_remove_needs_confirmation_and_is_recorded(database: str) -> None:
    assert ccp_error("peer", "remove", "pool-b") == (
        "Remove the peer pool-b: this cannot be undone; confirm with --yes."
    )
    assert shown()["party_id"] == "pool-b"
    assert ccp_ok("peer", "remove", "pool-b", "--yes").out == "pool-b is removed.\n"
    assert json.loads(ccp_ok("peer", "list", "--json").out) == []
    assert recorded(database)[-1] == ("peer.removed", {"peer": "pool-b", "base_url": "https://b.example"})
    assert ccp_error("peer", "remove", "pool-b", "--yes") == "There is no peer pool-b."
