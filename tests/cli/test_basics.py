"""What every command has in common, and the settings, schema, parties and anchors that commands manage."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ccp import __version__
from ccp.cli.output import print_table
from ccp.server.settings import Settings
from ccp.server.settings.secret_files import file_forms
from ccp.server.settings.services import SERVICES
from ccp.server.storage.engine import schema
from ccp.testing.pki import PKI
from tests.cli.command_tree import TREE
from tests.cli.run import ccp, ccp_error, ccp_ok, ccp_process
from tests.server.storage.made import sql


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in an empty directory, where ccp.db and ccp.toml are looked for."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def database(folder: Path) -> str:
    ccp_ok("db", "upgrade")
    return f"sqlite:///{folder / 'ccp.db'}"


# --- In common -------------------------------------------------------------------------------------------------------


def test_version_option_prints_the_version() -> None:
    assert ccp_ok("--version").out == f"{__version__}\n"


GROUPS = sorted({path.rsplit(" ", 1)[0] for path in TREE if " " in path})


@pytest.mark.parametrize("command", ["", *GROUPS, *TREE])
def test_commands_all_have_help(command: str) -> None:
    done = ccp_ok(*command.split(), "--help")
    assert "Usage: ccp" in done.out
    assert done.err == ""


def test_commands_help_fills_the_lines_of_the_terminal() -> None:
    for command, text in (("apply", "never has one. For a new party"), ("audit verify", "carried out. Exit status 3")):
        assert text in ccp(*command.split(), "--help", env={"COLUMNS": "400"}).out


def test_usage_error_prints_the_usage() -> None:
    for arguments in (["nothing"], ["party", "add", "A"], ["party", "add", "A", "--role", "king"], ["exi", "decode"]):
        done = ccp(*arguments)
        assert done.status == 2
        assert "Usage: ccp" in done.err
        assert "Traceback" not in done.err


def test_command_error_that_is_expected_is_one_sentence_and_status_1(folder: Path) -> None:
    done = ccp_process("party", "list", cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "ccp: There is no database at ccp.db; 'ccp db upgrade' makes one.\n"


def test_command_with_an_unusable_file_is_one_sentence(folder: Path) -> None:
    (folder / "file").write_text("")
    assert ccp_error("sandbox", folder / "file" / "below").endswith("Not a directory.")


def test_print_table_escapes_nothing_and_truncates_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "value"], [["[red]A[/red] [/oops] [DE]", "f" * 200]])
    (_, row) = capsys.readouterr().out.splitlines()
    assert row.rstrip() == f"[red]A[/red] [/oops] [DE]  {'f' * 200}"


def test_print_table_on_a_narrow_terminal_is_blocks_with_whole_cells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    print_table(["name", "fingerprint"], [["One", "f" * 64], ["Two", "e" * 64]])
    text = capsys.readouterr().out
    assert text == f"name         One\nfingerprint  {'f' * 64}\n\nname         Two\nfingerprint  {'e' * 64}\n"
    monkeypatch.setenv("COLUMNS", "90")
    print_table(["name", "fingerprint"], [["One", "f" * 64]])
    assert f"One   {'f' * 64}" in capsys.readouterr().out


# --- Schema ----------------------------------------------------------------------------------------------------------


def test_db_upgrade_creates_the_schema_and_status_prints_it(folder: Path) -> None:
    absent = ccp("db", "status")
    assert (absent.status, absent.out) == (1, f"found none, needed {schema.HEAD}\n")
    assert ccp_ok("db", "upgrade").out == f"The schema was absent and is now {schema.HEAD}.\n"
    assert ccp_ok("db", "upgrade").out == f"The schema is {schema.HEAD}.\n"
    assert ccp_ok("db", "status").out == f"found {schema.HEAD}, needed {schema.HEAD}\n"
    assert schema.revision(f"sqlite:///{folder / 'ccp.db'}") == schema.HEAD


def test_commands_refuse_an_older_schema(database: str) -> None:
    sql(database, "update alembic_version set version_num = '0000'")
    assert ccp("db", "status").status == 1
    for command in (["party", "list"], ["trust", "list"], ["serve"]):
        assert (
            ccp_error(*command)
            == f"The database schema is 0000, this release needs {schema.HEAD}; run 'ccp db upgrade'."
        )


def test_db_status_accepts_a_newer_schema_and_upgrade_refuses_it(database: str) -> None:
    sql(database, "update alembic_version set version_num = '9999'")
    assert ccp_ok("db", "status").out == f"found 9999, needed {schema.HEAD}\n"
    assert ccp_error("db", "upgrade") == f"The database schema is 9999, newer than this release's {schema.HEAD}."


@pytest.mark.parametrize("command", [["db", "upgrade"], ["db", "status"], ["party", "list"], ["serve"]])
def test_commands_refuse_an_unknown_database_engine(command: list[str]) -> None:
    sentence = ccp_error(*command, env={"CCP_DATABASE": "mysql://ccp:secret@localhost/ccp"})
    assert (
        sentence
        == "No storage engine for the database URL mysql:… (known: sqlite:///FILE, postgresql://USER@HOST/NAME)."
    )


def test_commands_refuse_a_file_that_is_no_database(folder: Path) -> None:
    (folder / "ccp.db").write_bytes(b"not a database" * 100)
    for command in (["db", "upgrade"], ["db", "status"], ["party", "list"], ["serve"]):
        assert ccp_error(*command) == "ccp.db is not an opnc-ccp database."


# --- Settings --------------------------------------------------------------------------------------------------------


def shown_settings() -> set[str]:
    """The settings, and the second form of each secret."""
    return {*Settings.model_fields, *file_forms(Settings.model_fields).values()}


def test_config_prints_settings_as_table_and_as_json() -> None:
    table = {line.split()[0]: line.split()[1:] for line in ccp_ok("config").lines}
    assert table["port"] == ["8020"]
    assert table["base_url"] == []
    # A service that is not configured has one row.
    assert set(table) == {"setting", *(f"{name}_url" if name in SERVICES else name for name in shown_settings())}
    shown = json.loads(ccp_ok("config", "--json").out)
    assert (shown["port"], shown["base_url"], shown["vehicle_trust"]) == (8020, None, "chain")
    assert set(shown) == shown_settings()


def test_config_environment_overrides_the_file(folder: Path) -> None:
    (folder / "own.toml").write_text('port = 9000\nhost = "10.0.0.1"\n')
    shown = json.loads(ccp_ok("config", "--json", "--config", "own.toml", env={"CCP_PORT": "9001"}).out)
    assert (shown["port"], shown["host"]) == (9001, "10.0.0.1")
    shown = json.loads(ccp_ok("config", "--json", env={"CCP_CONFIG": "own.toml"}).out)
    assert shown["port"] == 9000


def test_config_explains_every_setting() -> None:
    explained = ccp_ok("config", "--explain").lines
    assert len(explained) == len(shown_settings()) + 1
    assert all(line.endswith(".") for line in explained[1:])


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ccp:topsecret@db/ccp",
        "postgresql://ccp:top@secret@db/ccp",
        "postgresql://ccp:to/psecret@db/ccp",
        "postgresql://db/ccp?user=ccp&password=topsecret&sslmode=require",
    ],
)
def test_config_shows_no_secret(url: str) -> None:
    for arguments in (["config"], ["config", "--json"]):
        shown = ccp_ok(*arguments, env={"CCP_DATABASE": url}).out
        assert "postgresql://" in shown
        for part in ("topsecret", "psecret", "top@", "@secret"):
            assert part not in shown


def test_config_names_an_invalid_setting(folder: Path) -> None:
    (folder / "ccp.toml").write_text("port = 99999\n")
    assert ccp_error("config").startswith("port: Input should be less than or equal to 65535")


# --- Parties ---------------------------------------------------------------------------------------------------------


def test_party_is_added_listed_and_disabled(database: str) -> None:
    added = ccp_ok(
        "party", "add", "Example eMSP [DE]", "--role", "emsp", "--provider-id", "de-exa", "--provider-id", "DEEXB"
    )
    client_id, secret, last = added.lines
    assert client_id.split() == ["client_id", "example-emsp-de"]
    assert secret.split()[0] == "client_secret"
    assert len(secret.split()[1]) >= 43
    assert last == "The secret is not shown again."
    stored = sql(database, "select hash from party_secret")[0][0]
    assert stored.startswith("$argon2id$")
    assert secret.split()[1] not in ccp_ok("party", "list", "--json").out
    header, row = ccp_ok("party", "list").lines
    assert header.split("  ")[0] == "name"
    assert "Example eMSP [DE]  example-emsp-de  emsp   DEEXA DEEXB" in row
    assert row.endswith("enabled")
    assert ccp_ok("party", "disable", "Example eMSP [DE]").out == "example-emsp-de is disabled.\n"
    assert ccp_ok("party", "list").lines[1].endswith("disabled")


def test_party_is_added_and_listed_as_json(database: str) -> None:
    added = json.loads(
        ccp_ok("party", "add", "All", "--role", "cps", "--role", "oem", "--all-providers", "--wmi", "wex", "--json",
             "--client-id", "own").out
    )  # fmt: skip
    assert len(added.pop("client_secret")) >= 43
    assert added == {
        "client_id": "own", "name": "All", "roles": ["cps", "oem"], "provider_ids": [], "all_providers": True,
        "wmis": ["WEX"], "operator_ids": [], "enabled": True,
    }  # fmt: skip
    assert json.loads(ccp_ok("party", "list", "--json").out) == [added]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["A", "--role", "emsp"], "An eMSP needs a provider id."),
        (["A", "--role", "oem"], "An OEM needs a WMI."),
        (["A", "--role", "cps"], "A CPS needs the provider ids that it signs for, or all providers."),
        (["A", "--role", "cpo", "--all-providers"], "All providers are for a CPS."),
        (["A", "--role", "cpo", "--wmi", "WEX"], "WMIs are for an OEM."),
        (["A", "--role", "ccp", "--operator-id", "DEEXC"], "Operator ids are for a CPO."),
        (["A", "--role", "oem", "--wmi", "WEX", "--provider-id", "DEEXA"], "Provider ids are for an eMSP or a CPS."),
        (
            ["A", "--role", "emsp", "--provider-id", "DEEXA", "--provider-id", "DEEX"],
            'provider id "DEEX" : must match "^[A-Za-z]{2}[-]?\\w{3}$"',
        ),
        (
            ["A", "--role", "emsp", "--provider-id", "DE___"],
            'provider id "DE___" : must have letters and digits; an underscore is no wildcard',
        ),
        (["A", "--role", "oem", "--wmi", "WEXX"], 'WMI "WEXX" : must match "^[a-zA-Z0-9]{3}$"'),
        (["A", "--role", "cpo", "--operator-id", "D"], 'operator id "D" : must match "^[A-Za-z]{2}[*-]?\\w{3}$"'),
        (
            ["…", "--role", "cpo"],
            "name : must be at most 100 printable characters, and a letter or digit among them",
        ),
        (
            ["例", "--role", "cpo"],
            "client_id : must be given, since the name has no letter a to z and no digit to make it from",
        ),
        (
            ["A", "--role", "cpo", "--client-id", "a:b"],
            'client_id : must match "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"',
        ),
        (["taken", "--role", "cpo"], "There is a party named taken already."),
        (["B", "--role", "cpo", "--client-id", "TAKEN"], "The client id TAKEN is taken already."),
        (["Taken", "--role", "cpo"], "There is a party named Taken already."),
        (["B", "--role", "emsp", "--provider-id", "DEOWN"], "The provider id DEOWN belongs to Taken already."),
    ],
)
def test_party_add_refuses_inconsistent_parties(database: str, arguments: list[str], sentence: str) -> None:
    ccp_ok("party", "add", "Taken", "--role", "emsp", "--provider-id", "DEOWN")
    assert ccp_error("party", "add", *arguments) == sentence
    assert len(json.loads(ccp_ok("party", "list", "--json").out)) == 1


def test_party_disable_refuses_an_unknown_party(database: str) -> None:
    assert ccp_error("party", "disable", "unknown") == "There is no party named unknown."


# --- Trust -----------------------------------------------------------------------------------------------------------


def test_trust_certificates_are_added_listed_and_removed(database: str, folder: Path, pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    (folder / "chain.pem").write_bytes(pki.oem_sub2.certificate.pem() + pki.oem_sub1.certificate.pem())
    (folder / "root.der").write_bytes(pki.oem_root.certificate.der)
    for file in ("chain.pem", "root.der"):
        ccp_ok("trust", "add", file, "--role", "oem")
    assert ccp_ok("trust", "add", "root.der", "--role", "oem", "--role", "v2g").lines == [
        f"known  oem  root  OEM Root CA SIM  {pki.oem_root.certificate.fingerprint}",
        f"added  v2g  root  OEM Root CA SIM  {pki.oem_root.certificate.fingerprint}",
    ]
    listed = json.loads(ccp_ok("trust", "list", "--json").out)
    assert [(entry["role"], entry["kind"], entry["label"], entry["source"]) for entry in listed] == [
        ("oem", "root", "OEM Root CA SIM", "root.der"),
        ("oem", "intermediate", "OEM Sub1 CA SIM", "chain.pem"),
        ("oem", "intermediate", "OEM Sub2 CA SIM", "chain.pem"),
        ("v2g", "root", "OEM Root CA SIM", "root.der"),
    ]
    fingerprint = pki.oem_root.certificate.fingerprint
    # The fingerprint of the table is what the removal takes, so it has to be there as a whole.
    assert sum(fingerprint in line for line in ccp_ok("trust", "list").lines) == 2
    assert ccp_ok("trust", "remove", "--yes", fingerprint.upper(), "--role", "v2g").out == "removed for 1 role(s)\n"
    assert ccp_ok("trust", "remove", "--yes", fingerprint).out == "removed for 1 role(s)\n"
    assert (
        ccp_error("trust", "remove", "--yes", fingerprint)
        == f"No certificate with the fingerprint {fingerprint} is trusted."
    )


def test_trust_add_reads_a_directory(database: str, folder: Path, pkis: dict[str, PKI]) -> None:
    (folder / "roots").mkdir()
    for name in ("v2g_root", "emsp_root"):
        certificate = getattr(pkis["iso2"], name).certificate
        (folder / "roots" / f"{name}.CRT").write_bytes(certificate.pem())
    (folder / "roots" / "README.txt").write_text("no certificate, and no matter")
    assert len(ccp_ok("trust", "add", "roots", "--role", "v2g").lines) == 2


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"nothing", "file.pem holds no certificate: These 7 bytes are not an X.509 certificate."),
        (b"", "file.pem holds no certificate: These 0 bytes are not an X.509 certificate."),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "file.pem holds no certificate:"),
        (None, "There is no file or directory file.pem."),
    ],
)
def test_trust_add_refuses_an_invalid_file(database: str, folder: Path, data: bytes | None, sentence: str) -> None:
    if data is not None:
        (folder / "file.pem").write_bytes(data)
    assert ccp_error("trust", "add", "file.pem", "--role", "v2g").startswith(sentence)


def test_trust_add_refuses_an_empty_directory(database: str, folder: Path) -> None:
    (folder / "empty").mkdir()
    assert ccp_error("trust", "add", "empty", "--role", "v2g") == "There are no certificates in empty."


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_trust_add_reports_an_unreadable_file(database: str, folder: Path) -> None:
    (folder / "file.pem").write_bytes(b"")
    (folder / "file.pem").chmod(0)
    assert "Permission denied" in ccp_error("trust", "add", "file.pem", "--role", "v2g")


def test_trust_remove_refuses_an_invalid_fingerprint(database: str) -> None:
    assert ccp_error("trust", "remove", "abc") == 'fingerprint : must match "^[0-9a-fA-F]{64}$"'
