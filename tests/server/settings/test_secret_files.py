"""Secrets in files: every secret setting has a form with `_file`, in the file and in the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ccp.errors import ConfigurationError
from ccp.server import settings
from ccp.server.settings import Settings
from ccp.server.settings.examination import Source, examine
from ccp.server.settings.secret_files import file_forms, readable_by_others, secret_names
from ccp.server.settings.services import SERVICES, ServiceSettings
from tests.cli.run import ccp, environment

MARKER = "MARKER-of-the-secret-0123456789"
SECRETS = sorted(secret_names(Settings.model_fields))
DERIVED = sorted(file_forms(Settings.model_fields))


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("CCP_"):
            monkeypatch.delenv(name)


def value_of(name: str) -> str:
    """A valid value with the marker."""
    return f"postgresql://ccp:{MARKER}@db.example/ccp" if name == "database" else MARKER


def others_of(name: str) -> dict[str, str]:
    """Settings without which a secret of a service is refused."""
    prefix, _, member = name.partition("_")
    if prefix not in SERVICES or name in Settings.model_fields:
        return {}
    given = {f"{prefix}_url": "https://service.example"}
    if member == "client_secret":
        given |= {f"{prefix}_token_url": "https://service.example/token", f"{prefix}_client_id": "pool"}
    return given


def secret_file(folder: Path, name: str, content: str | bytes | None = None) -> Path:
    file = folder / f"{name}.secret"
    content = f"{value_of(name)}\n" if content is None else content
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    file.chmod(0o600)
    return file


def written(folder: Path, values: dict[str, str]) -> Path:
    file = folder / "ccp.toml"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    file.chmod(0o600)
    return file


def effective(found: Settings, name: str) -> str | None:
    """The secret as the pool uses it."""
    prefix, _, member = name.partition("_")
    holder, field = (getattr(found, prefix), member) if others_of(name) else (found, name)
    value = getattr(holder, field)
    if value is None and (file := getattr(holder, f"{field}_file", None)) is not None:
        return Path(file).read_text().rstrip("\n")
    return value if value is None or isinstance(value, str) else value.get_secret_value()


def test_secret_names_are_found_by_their_type() -> None:
    assert {"database", "log_pseudonym_key", "pcp_webhook_secret", "pcp_client_secret", "est_token"} <= set(SECRETS)
    assert set(DERIVED) == {name for name in SECRETS if name in Settings.model_fields}


def test_secret_members_of_a_service_have_a_file_form() -> None:
    prefixed = {name.partition("_")[2] for name in SECRETS if name not in Settings.model_fields}
    assert prefixed == {"token", "client_secret"}
    assert {f"{member}_file" for member in prefixed} <= set(ServiceSettings.model_fields)


@pytest.mark.parametrize("name", SECRETS)
def test_secret_file_is_read_from_the_configuration_file(name: str, tmp_path: Path) -> None:
    file = secret_file(tmp_path, name)
    found = settings.load(written(tmp_path, others_of(name) | {f"{name}_file": file.name}))  # Relative to ccp.toml.
    assert effective(found, name) == value_of(name)
    assert found.secret_files[f"{name}_file"] == file


@pytest.mark.parametrize("name", SECRETS)
def test_secret_file_is_read_from_the_environment(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for other, value in (others_of(name) | {f"{name}_file": str(secret_file(tmp_path, name))}).items():
        monkeypatch.setenv(f"CCP_{other.upper()}", value)
    assert effective(settings.load(), name) == value_of(name)


@pytest.mark.parametrize("name", DERIVED)
@pytest.mark.parametrize("ending", ["", "\n", "\r\n", "\n\n"])
def test_secret_file_ends_before_line_breaks(name: str, ending: str, tmp_path: Path) -> None:
    secret_file(tmp_path, name, value_of(name) + ending)
    assert effective(settings.load(written(tmp_path, {f"{name}_file": f"{name}.secret"})), name) == value_of(name)


@pytest.mark.parametrize("name", DERIVED)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"  \n", "is empty"),
        (MARKER.encode() * 600, "is too big"),
        (MARKER.encode() + b"\xff", "is not text in UTF-8"),
        (MARKER.encode() + b"\n" + MARKER.encode(), "is not one line of printable text"),
        (MARKER.encode() + b"\0", "is not one line of printable text"),
    ],
)
def test_secret_file_without_a_usable_secret_is_one_sentence(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    secret_file(tmp_path, name, content)
    with pytest.raises(ConfigurationError) as found:
        settings.load(written(tmp_path, others_of(name) | {f"{name}_file": f"{name}.secret"}))
    (sentence,) = found.value.messages
    assert sentence.startswith(f"{name}_file: ")
    assert reason in sentence
    assert MARKER not in sentence


@pytest.mark.parametrize("name", DERIVED)
def test_secret_file_that_is_missing_or_no_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (("none", "cannot be read: No such file"), (".", "not a regular"), ("pipe", "not a regular")):
        with pytest.raises(ConfigurationError) as found:
            settings.load(written(tmp_path, others_of(name) | {f"{name}_file": path}))
        (sentence,) = found.value.messages
        assert sentence.startswith(f"{name}_file: ")
        assert reason in sentence


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_secret_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    secret_file(tmp_path, "pcp_webhook_secret").chmod(0)
    with pytest.raises(ConfigurationError, match=r"pcp_webhook_secret_file: .* cannot be read: Permission denied"):
        settings.load(written(tmp_path, {"pcp_webhook_secret_file": "pcp_webhook_secret.secret"}))


@pytest.mark.parametrize("name", SECRETS)
def test_secret_in_both_forms_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = secret_file(tmp_path, name)
    both = {name: value_of(name), f"{name}_file": str(file)}
    prefix, _, member = name.partition("_")
    expected = f"[{prefix}]: {member} and {member}_file contradict each other."
    if name in DERIVED:
        expected = f"{name} and {name}_file contradict each other; give one of them."
    with pytest.raises(ConfigurationError) as found:
        settings.load(written(tmp_path, others_of(name) | both))
    assert expected in found.value.messages
    assert MARKER not in str(found.value)
    for other, value in (others_of(name) | both).items():
        monkeypatch.setenv(f"CCP_{other.upper()}", value)
    with pytest.raises(ConfigurationError) as found:
        settings.load(written(tmp_path, {}))
    assert expected in found.value.messages


@pytest.mark.parametrize("name", SECRETS)
def test_secret_of_the_environment_hides_either_form_in_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = secret_file(tmp_path, name), value_of(name).replace("MARKER", "OTHER")
    secret_file(tmp_path, "other", other)
    for form, value in ((name, value_of(name)), (f"{name}_file", str(file))):
        for in_file in ({name: other}, {f"{name}_file": "other.secret"}):
            with monkeypatch.context() as patch:
                patch.setenv(f"CCP_{form.upper()}", value)
                found = settings.load(written(tmp_path, others_of(name) | in_file))
            assert effective(found, name) == value_of(name)


def test_secret_option_of_the_command_line_hides_the_file_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCP_DATABASE_FILE", str(secret_file(tmp_path, "database")))
    assert settings.load(database="sqlite:///other.db").database == "sqlite:///other.db"


@pytest.mark.parametrize("name", ["pcp_webhook_secret_fil", "log_pseudonym_key_flie", "databse_file"])
def test_secret_file_name_that_is_misspelt_is_refused_with_the_nearest_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"{name} is not a setting; did you mean \w+_file\?"):
        settings.load(written(tmp_path, {name: "x"}))


def test_pcp_webhook_secret_that_is_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="pcp_webhook_secret"):
        settings.load(written(tmp_path, {"pcp_webhook_secret": ""}))


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("form", ["value", "file", "environment", "variable for the file"])
def test_config_never_prints_a_secret(name: str, form: str, tmp_path: Path) -> None:
    file, env = secret_file(tmp_path, name), environment()
    values = others_of(name) | (
        {name: value_of(name)} if form in ("value", "environment") else {f"{name}_file": str(file)}
    )
    if form in ("environment", "variable for the file"):
        env |= {f"CCP_{other.upper()}": value for other, value in values.items()}
        values = {}
    config = written(tmp_path, values)
    for options in ([], ["--json"], ["--explain"]):
        result = ccp("config", "--config", config, *options, env=env)
        assert result.status == 0, result.err
        assert name in result.out or "--json" in options
        assert MARKER not in result.out + result.err
    refused = ccp("config", "--config", config, env=env | {"CCP_PORT": "none"})  # The errors do not print it either.
    assert refused.status != 0
    assert MARKER not in refused.out + refused.err


def test_config_names_the_file_of_a_secret(tmp_path: Path) -> None:
    file = secret_file(tmp_path, "pcp_webhook_secret")
    config = written(tmp_path, {"pcp_webhook_secret_file": file.name})
    shown = json.loads(ccp("config", "--config", config, "--json", env=environment()).out)
    assert shown["pcp_webhook_secret_file"] == str(file)
    lines = ccp("config", "--config", config, "--explain", env=environment()).lines
    assert any(line.startswith("pcp_webhook_secret_file") and "File that holds" in line for line in lines)


def test_secret_files_that_others_may_read_are_reported(tmp_path: Path) -> None:
    file = secret_file(tmp_path, "pcp_webhook_secret")
    config = written(tmp_path, {"pcp_webhook_secret_file": file.name, "log_pseudonym_key": MARKER})
    assert list(readable_by_others(settings.load(config).secret_files)) == []
    file.chmod(0o644)
    config.chmod(0o644)
    first, second = readable_by_others(settings.load(config).secret_files)
    assert first.startswith(f"pcp_webhook_secret_file: every user of this machine may read {file}")
    assert second.startswith(f"settings: every user of this machine may read {config}")


def test_secret_files_include_private_keys_and_those_of_the_console(tmp_path: Path) -> None:
    config = tmp_path / "ccp.toml"
    config.write_text(
        'audit_stream_tls_key = "audit.key"\n[console_oidc]\nissuer = "https://id.example"\nclient_id = "console"\n'
        'client_secret_file = "console.secret"\n'
    )
    assert settings.load(config).secret_files == {
        "audit_stream_tls_key": tmp_path / "audit.key",
        "console_oidc.client_secret_file": tmp_path / "console.secret",
    }
    config.write_text(config.read_text().replace("client_secret_file", "client_secret"))
    assert settings.load(config).secret_files["settings"] == config


@pytest.mark.parametrize("name", ["database", "database_file", "pcp_webhook_secret", "rcp_url", "rcp_token"])
def test_variables_without_the_prefix_are_no_settings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = written(tmp_path, {"database": f"sqlite:///{tmp_path / 'own.db'}", "pcp_webhook_secret": MARKER})
    expected = settings.load(config)
    monkeypatch.setenv(name.upper(), "https://other.example")
    assert settings.load(config) == expected


def test_configuration_file_without_a_secret_may_be_public(tmp_path: Path) -> None:
    config = written(tmp_path, {"database": "postgresql://ccp@db.example/ccp", "port": "8021"})
    config.chmod(0o644)
    assert settings.load(config).secret_files == {}


def test_examination_of_a_broken_configuration_still_reads_secret_files(tmp_path: Path) -> None:
    secret_file(tmp_path, "database")
    config = written(tmp_path, {"database_file": "database.secret", "port": "none"})
    examined = examine(config)
    assert len(examined.problems) == 1
    assert examined.settings.database == value_of("database")
    assert {each.source for each in examined.values() if each.name.startswith("database_f")} == {Source.FILE}
    assert MARKER not in repr(examined.values())
