"""Commands `ccp party` and `ccp party roles`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ccp.server.domain.authorization import (
    ADMIN_TABLE,
    ENROLMENT_TABLE,
    EVENT_TABLE,
    MONITORING_TABLE,
    OCPP_TABLE,
    PUBLIC_ROOT_TABLE,
    REFUSAL_TABLE,
    ROLE_TABLE,
)
from tests.cli.run import ccp, ccp_error, ccp_ok
from tests.server.storage.made import sql


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new database in an empty directory, where commands look for it."""
    monkeypatch.chdir(tmp_path)
    ccp_ok("db", "upgrade")
    return f"sqlite:///{tmp_path / 'ccp.db'}"


def add(name: str, *options: str) -> dict[str, Any]:
    """Returns what was told, client_secret and all."""
    added: dict[str, Any] = json.loads(ccp_ok("party", "add", name, *options, "--json").out)
    return added


def shown(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ccp_ok("party", "show", name, "--json").out)
    return found


def rotated(*arguments: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(ccp_ok("party", "rotate-secret", *arguments, "--json").out)
    return made


# --- Edit ------------------------------------------------------------------------------------------------------------


def test_name_roles_and_ids_of_a_party_are_changed_and_its_client_id_is_not(database: str) -> None:
    add("Example Motors", "--role", "oem", "--wmi", "WEX", "--wmi", "WXB")
    options = [
        *("--name", "Example Group"), *("--add-role", "cpo"), *("--add-operator-id", "de*exc"),
        *("--remove-wmi", "wxb"),
        *("--add-wmi", "wxc"), *("--add-role", "cps"), "--all-providers",
    ]  # fmt: skip
    changed = json.loads(ccp_ok("party", "edit", "example motors", *options, "--json").out)
    assert changed == {
        "client_id": "example-motors", "name": "Example Group", "roles": ["cpo", "cps", "oem"], "provider_ids": [],
        "all_providers": True, "wmis": ["WEX", "WXC"], "operator_ids": ["DEEXC"], "enabled": True,
    }  # fmt: skip
    assert json.loads(ccp_ok("party", "list", "--json").out) == [changed]
    assert ccp_ok("party", "edit", "Example Group", "--no-all-providers", "--add-provider-id", "DEEXA").out == (
        "example-motors is changed.\n"
    )
    assert shown("Example Group")["provider_ids"] == ["DEEXA"]
    assert ccp_error("party", "show", "Example Motors") == "There is no party named Example Motors."


def test_role_removal_frees_its_ids_for_another_party(database: str) -> None:
    add("A", "--role", "oem", "--wmi", "WEX", "--role", "cpo", "--operator-id", "DEEXC")
    add("B", "--role", "oem", "--wmi", "WXB")
    taken = "The WMI WEX belongs to A already."
    assert ccp_error("party", "edit", "B", "--add-wmi", "WEX") == taken
    ccp_ok("party", "edit", "A", "--remove-role", "oem")
    assert shown("A")["wmis"] == []
    ccp_ok("party", "edit", "B", "--add-wmi", "WEX")
    assert ccp_error("party", "edit", "A", "--add-role", "oem", "--add-wmi", "WEX") == taken.replace("to A", "to B")
    assert shown("A")["roles"] == ["cpo"]


def test_party_that_only_served_a_provider_cannot_come_to_own_it_by_an_edit(database: str) -> None:
    add("Owner", "--role", "emsp", "--provider-id", "DEEXA")
    add("Server", "--role", "cps", "--provider-id", "DEEXA")
    assert (
        ccp_error("party", "edit", "Server", "--add-role", "emsp") == "The provider id DEEXA belongs to Owner already."
    )
    ccp_ok("party", "edit", "Owner", "--remove-role", "emsp", "--add-role", "cpo")
    ccp_ok("party", "edit", "Server", "--add-role", "emsp")
    assert sql(database, "select kind, id, client_id from party_owns") == [("provider id", "DEEXA", "server")]


def test_ids_of_a_disabled_party_stay_its_own_until_they_are_taken_from_it(database: str) -> None:
    add("Old", "--role", "oem", "--wmi", "WEX")
    add("New", "--role", "oem", "--wmi", "WXB")
    assert ccp_error("party", "edit", "Old", "--remove-wmi", "WEX") == "An OEM needs a WMI."
    ccp_ok("party", "disable", "Old")
    assert ccp_error("party", "edit", "New", "--add-wmi", "WEX") == "The WMI WEX belongs to Old already."
    ccp_ok("party", "edit", "Old", "--remove-wmi", "WEX")
    ccp_ok("party", "edit", "New", "--add-wmi", "WEX")
    assert ccp_error("party", "enable", "Old") == "An OEM needs a WMI."
    ccp_ok("party", "edit", "Old", "--add-wmi", "WXC")
    assert ccp_ok("party", "enable", "Old").out == "old is enabled.\n"
    assert shown("Old")["enabled"] is True


@pytest.mark.parametrize(
    ("options", "sentences"),
    [
        ([], ["Nothing is to be changed; see --help."]),
        (["--remove-wmi", "ABC", "--remove-role", "cps"], ["A does not have ABC, cps."]),
        (["--remove-role", "oem"], ["A party needs a role."]),
        (["--remove-wmi", "WEX"], ["An OEM needs a WMI."]),
        (["--add-operator-id", "DEEXC"], ["Operator ids are for a CPO."]),
        (["--all-providers"], ["All providers are for a CPS."]),
        (["--add-role", "cps", "--add-operator-id", "DEEXC"], [
            "Operator ids are for a CPO.", "A CPS needs the provider ids that it signs for, or all providers.",
        ]),
        (["--name", "b"], ["There is a party named b already."]),
        (["--name", "\x07A"], ["name : must be at most 100 printable characters, and a letter or digit among them"]),
        (["--add-wmi", "W", "--remove-wmi", "WEXX"], ['WMI "W" : must match "^[a-zA-Z0-9]{3}$"']),
        (["--add-wmi", "WXD", "--add-wmi", "WXB"], ["The WMI WXB belongs to B already."]),
    ],
)  # fmt: skip
def test_party_edit_that_makes_no_sense_is_refused_and_nothing_of_it_happens(
    database: str, options: list[str], sentences: list[str]
) -> None:
    add("A", "--role", "oem", "--wmi", "WEX")
    add("B", "--role", "oem", "--wmi", "WXB")
    tables = ("party", "party_owns", "party_secret", "change_count", "audit")
    before = [sql(database, f"select * from {table}") for table in tables]
    done = ccp("party", "edit", "A", *options)
    assert (done.status, done.out) == (1, "")
    assert done.err.splitlines() == [f"ccp: {sentence}" for sentence in sentences]
    assert [sql(database, f"select * from {table}") for table in tables] == before


# --- Secrets ---------------------------------------------------------------------------------------------------------


def test_party_is_shown_with_its_secrets_lives_and_never_with_their_hashes(database: str) -> None:
    secrets = [add("Example CPO", "--role", "cpo")["client_secret"]]
    began = datetime.now(UTC).replace(microsecond=0)
    secrets.append(rotated("Example CPO", "--overlap", "3600")["client_secret"])
    newer, older = shown("example-cpo")["secrets"]
    assert newer["expires_at"] is None
    assert (
        timedelta(0) <= datetime.fromisoformat(older["expires_at"]) - began - timedelta(hours=1) < timedelta(minutes=1)
    )
    lines = ccp_ok("party", "show", "Example CPO").lines
    assert lines[:3] == ["name          Example CPO", "client id     example-cpo", "roles         cpo"]
    assert lines[-2:] == [
        f"secret        created {newer['created_at']}, valid until it is replaced",
        f"secret        created {older['created_at']}, valid until {older['expires_at']}",
    ]
    hashes = [row[0] for row in sql(database, "select hash from party_secret")]
    assert len(hashes) == 2
    for command in (["show", "Example CPO"], ["list"]):
        for output in (
            ccp_ok("party", *command).out,
            ccp_ok("party", *command, "--json").out,
            ccp_ok("audit", "list").out,
        ):
            assert "argon2" not in output
            assert not [each for each in (*secrets, *hashes) if each in output]


def test_rotate_secret_keeps_two_secrets_and_asks_which_to_revoke(database: str) -> None:
    first = add("A", "--role", "cpo")
    assert len(rotated("A")["secrets"]) == 2
    before = sql(database, "select * from party_secret")
    assert ccp_error("party", "rotate-secret", "A") == (
        "A has two valid secrets already. "
        "Choose which one to revoke (end: older or newer), or revoke both (overlap: 0)."
    )
    assert sql(database, "select * from party_secret") == before
    (_, older) = hashes(database)
    rotated("A", "--end", "newer")
    assert hashes(database)[1:] == [older]
    (newer, _) = hashes(database)
    rotated("A", "--end", "older")
    assert hashes(database)[1:] == [newer]
    last = rotated("A", "--now")
    assert len(last["secrets"]) == len(hashes(database)) == 1
    assert last["client_secret"] != first["client_secret"]


def hashes(database: str) -> list[str]:
    return [row[0] for row in sql(database, "select hash from party_secret order by created_at desc")]


def test_secret_that_expired_is_refused_and_removed_by_the_next_rotation(database: str) -> None:
    add("A", "--role", "cpo")
    rotated("A")
    sql(database, "update party_secret set expires_at = 1 where expires_at is not null")
    assert len(shown("A")["secrets"]) == 1
    assert len(rotated("A")["secrets"]) == 2
    assert len(hashes(database)) == 2


def test_secret_validity_for_people_says_how_long_the_previous_one_is_valid(database: str) -> None:
    add("A", "--role", "cpo")
    client_id, secret, last, older = ccp_ok("party", "rotate-secret", "A").lines
    assert client_id.split() == ["client_id", "a"]
    assert len(secret.split()[1]) >= 43
    assert last == "The secret is not shown again."
    until = datetime.fromisoformat(older.removeprefix("The previous one is valid until ").rstrip("."))
    assert timedelta(days=7) - timedelta(minutes=1) < until - datetime.now(UTC) <= timedelta(days=7)
    assert ccp_ok("party", "rotate-secret", "A", "--now").lines[-1] == "No older secret is valid."


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--overlap", "-1"], "overlap : must be 0 to 7776000 seconds"),
        (["--overlap", "7776001"], "overlap : must be 0 to 7776000 seconds"),
        (["--overlap", "9" * 30], "overlap : must be 0 to 7776000 seconds"),
        (
            ["--now", "--overlap", "5"],
            "--now revokes every older secret; it excludes --overlap and --end.",
        ),
        (
            ["--now", "--end", "older"],
            "--now revokes every older secret; it excludes --overlap and --end.",
        ),
    ],
)
def test_rotation_that_makes_no_sense_is_refused(database: str, options: list[str], sentence: str) -> None:
    add("A", "--role", "cpo")
    assert ccp_error("party", "rotate-secret", "A", *options) == sentence
    assert len(hashes(database)) == 1


# --- In common -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["show", "edit --name B", "disable", "enable", "rotate-secret"])
def test_party_that_is_unknown_is_an_error(database: str, command: str) -> None:
    name, *options = command.split()
    assert ccp_error("party", name, "absent", *options) == "There is no party named absent."


def test_party_changes_are_in_the_audit_trail_with_who_made_them_and_no_secret(database: str) -> None:
    secret = add("A", "--role", "oem", "--wmi", "WEX")["client_secret"]
    ccp_ok("party", "edit", "A", "--add-wmi", "WXB")
    ccp_ok("party", "edit", "A", "--add-wmi", "WXB")  # Nothing that was not so before.
    ccp_ok("party", "disable", "A")
    ccp_ok("party", "disable", "A")
    ccp_ok("party", "enable", "A")
    secret += rotated("A")["client_secret"]
    rows = sql(database, "select actor, action, outcome, subject from audit order by at")
    assert [row[1] for row in rows] == [
        "party.added", "party.edited", "party.disabled", "party.enabled", "secret.rotated",
    ]  # fmt: skip
    assert {row[0].partition(":")[0] for row in rows} == {"cli"}
    assert {row[2] for row in rows} == {"ok"}
    subjects = [json.loads(row[3]) for row in rows]
    assert {subject["party"] for subject in subjects} == {"a"}
    assert (subjects[0]["name"], subjects[0]["wmis"]) == ("A", ["WEX"])
    assert (subjects[1]["before"], subjects[1]["after"]) == ({"wmis": ["WEX"]}, {"wmis": ["WEX", "WXB"]})
    assert (subjects[2]["before"], subjects[2]["after"]) == ({"enabled": True}, {"enabled": False})
    assert "argon2" not in str(rows)
    assert ccp_ok("audit", "verify").status == 0


def test_role_table_is_printed_whole(database: str) -> None:
    rows = json.loads(ccp_ok("party", "roles", "--json").out)
    assert {(row["operation"], row["role"]) for row in rows} == {
        (operation.value, role.value)
        for table in (
            ROLE_TABLE,
            OCPP_TABLE,
            EVENT_TABLE,
            ENROLMENT_TABLE,
            ADMIN_TABLE,
            MONITORING_TABLE,
            PUBLIC_ROOT_TABLE,
            REFUSAL_TABLE,
        )
        for operation, rules in table.items()
        for role in rules
    }
    header, *lines = ccp_ok("party", "roles").lines
    assert header.split() == ["operation", "role", "for"]
    assert [line.split(maxsplit=2) for line in lines] == [
        [row["operation"], row["role"], row["condition"]] for row in rows
    ]
    words = {(row["operation"], row["role"]): row["condition"] for row in rows}
    assert words["AddSignedContractData", "emsp"] == "contracts of its own provider ids"
    assert words["SetSignedContractDataAsDefault", "oem"] == "vehicles of its own WMIs"
    assert (
        words["PostEndpoint", "oem"]
        == words["PostEndpoint", "emsp"]
        == "webhooks of its own, for events of its own ids"
    )
