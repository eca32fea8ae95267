"""Rules that hold for the whole tree of commands: --json, --yes, and the verbs of every noun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.cli.command_tree import TREE
from tests.cli.run import ccp_error, ccp_ok

WITHOUT_JSON: Final = {
    "serve": "runs until a signal",
    "events dispatch": "runs until a signal",
    "demo": "narrates a flow for people",
    "exi decode": "its output is JSON already",
    "exi encode": "its output is the message",
    "audit export": "its output is JSON Lines already",
}
"""Commands without --json, with the reason."""

IRREVERSIBLE: Final = {
    "remove": "deletes an entry", "revoke": "revokes a key", "drop": "deletes deliveries", "purge": "deletes contracts",
    "erase": "deletes personal data", "restore": "replaces a database", "downgrade": "deletes columns",
    "accept": "forgets the number of a newer list", "apply": "deletes entries, with --prune",
    "rotate-storage": "discards secrets, with --discard-unreadable",
}  # fmt: skip
"""Verbs of what cannot be undone. `rotate-secret --now` is not among them: --now is what the operator confirms with."""

VERBS: Final = ("add", "list", "show", "edit", "remove", "enable", "disable")
WITHOUT: Final = {
    "party": {"remove": "its ids and its name in the audit trail stay reserved; disable it"},
    "trust": {
        "edit": "a certificate does not change",
        "enable": "trust is added or removed",
        "disable": "trust is added or removed",
    },
    "webhook": {"add": "partners register webhooks by the API", "edit": "partners edit webhooks by the API"},
}
"""Verbs that a noun with state lacks, with the reason."""
OTHER_GROUPS: Final = {
    "crl": "lists that the pool fetches",
    "audit": "rows that never change",
    "events": "deliveries that the pool makes",
    "keys": "keys that the pool makes; `rotate` adds and `revoke` removes one",
    "exi": "messages",
    "db": "the schema",
    "neighbour": "services in the settings",
    "docs": "a site of static files",
}
"""Groups whose subject operators do not keep a register of."""


def options(path: str) -> set[str]:
    return {option for parameter in TREE[path].params for option in parameter.opts}


def test_commands_print_json_everywhere() -> None:
    assert {path for path in TREE if "--json" not in options(path)} == set(WITHOUT_JSON)


def test_commands_confirm_what_cannot_be_undone() -> None:
    assert {path for path in TREE if "--yes" in options(path)} == {
        path for path in TREE if path.split()[-1] in IRREVERSIBLE
    }


def test_commands_of_a_noun_have_every_verb() -> None:
    nouns: dict[str, set[str]] = {}
    for path in TREE:
        if " " in path:
            noun, verb = path.rsplit(" ", 1)
            nouns.setdefault(noun, set()).add(verb)
    assert OTHER_GROUPS.keys() <= nouns.keys()
    missing = {
        noun: {verb for verb in VERBS if verb not in verbs} for noun, verbs in nouns.items() if noun not in OTHER_GROUPS
    }
    assert {noun: verbs for noun, verbs in missing.items() if verbs} == {n: set(v) for n, v in WITHOUT.items()}


def test_commands_have_one_name_for_each_option() -> None:
    """--config has the same short form, and --json and --yes have none, wherever they are."""
    short = {"--config": {"--config", "-c"}, "--json": {"--json"}, "--yes": {"--yes"}}
    for command in TREE.values():
        for parameter in command.params:
            for name, forms in short.items():
                assert name not in parameter.opts or set(parameter.opts) == forms


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in a directory with an empty database."""
    monkeypatch.chdir(tmp_path)
    ccp_ok("db", "upgrade")
    return tmp_path


def printed(*arguments: object, **how: Any) -> Any:
    return json.loads(ccp_ok(*arguments, "--json", **how).out)


def test_changes_print_the_changed_entry_as_json(folder: Path) -> None:
    secret = {"CCP_PEER_SECRET": "a-secret"}
    party = printed("party", "add", "A", "--role", "cpo")
    assert printed("party", "disable", "A") == printed("party", "list")[0]
    assert printed("party", "enable", "A")["enabled"] is True
    peer = printed("peer", "add", "pool-b", "https://b.example", env=secret)
    assert "a-secret" not in json.dumps(peer)
    assert printed("peer", "disable", "pool-b") == {**peer, "enabled": False}
    assert printed("peer", "rotate-secret", "pool-b", env=secret) == {**peer, "enabled": False}
    assert printed("peer", "enable", "pool-b") == peer
    assert printed("peer", "remove", "pool-b", "--yes") == peer
    assert (printed("peer", "list"), party["client_id"]) == ([], "a")


def test_schema_changes_print_json(folder: Path) -> None:
    revision = printed("db", "status")["found"]
    assert printed("db", "upgrade") == {"before": revision, "after": revision}
    assert printed("db", "downgrade", "base", "--yes") == {"before": revision, "after": None}


def test_exports_print_json_beside_a_file_only(folder: Path) -> None:
    assert printed("export", "all.jsonl") == {"file": "all.jsonl", "lines": 0}
    assert "--json needs a file" in ccp_error("export", "--json")
    assert "--json needs a directory" in ccp_error("trust", "export", "--role", "v2g", "--json")


def test_restore_prints_json(folder: Path) -> None:
    ccp_ok("backup", "copy.db")
    ccp_ok("party", "add", "A", "--role", "cpo")
    shown = printed("restore", "copy.db", "--replace", "--yes")
    assert (shown["file"], shown["variants"], shown["needs_upgrade"]) == ("ccp.db", 0, False)
    assert Path(shown["old_database"]).exists()
    assert [row["action"] for row in shown["undone"]["rows"]] == ["party.added"]
    elsewhere = printed("restore", "copy.db", "--keep-keys", env={"CCP_DATABASE": "sqlite:///new.db"})
    assert (elsewhere["old_database"], elsewhere["keys_revoked"], elsewhere["undone"]) == (None, None, None)
