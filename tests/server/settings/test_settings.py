"""Sources and validation of settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ccp.errors import ConfigurationError
from ccp.server import settings
from ccp.server.domain.contracts import NoDefaultPolicy, RootMatch
from ccp.server.settings import Settings, VehicleTrust


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to stand in, and an environment without any setting of ours."""
    for name in [name for name in os.environ if name.startswith("CCP_")]:
        monkeypatch.delenv(name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def written(folder: Path, text: str, name: str = "own.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path | None = None, **overrides: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        settings.load(path, **overrides)
    return str(caught.value)


def test_defaults_are_safe() -> None:
    config = settings.load()
    assert config.model_dump() == Settings().model_dump()
    assert (config.host, config.vehicle_trust) == ("127.0.0.1", VehicleTrust.CHAIN)
    assert config.public_url == "http://127.0.0.1:8020"


def test_load_prefers_options_to_environment_to_file_to_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(folder, "port = 1001\nworkers = 11\nmax_body = 10001\n")
    monkeypatch.setenv("CCP_PORT", "1002")
    monkeypatch.setenv("CCP_WORKERS", "12")
    config = settings.load(path, port=1003)
    assert (config.port, config.workers, config.max_body, config.token_lifetime) == (1003, 12, 10001, 3600)


def test_command_line_options_without_a_value_override_nothing(folder: Path) -> None:
    assert settings.load(written(folder, "port = 1001\n"), port=None, host=None).port == 1001


def test_load_finds_the_file_by_option_environment_or_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(folder, "port = 1001\n", "elsewhere/ccp.toml")
    assert settings.load().port == 1001
    monkeypatch.setenv("CCP_CONFIG", str(written(folder, "port = 1002\n", "second.toml")))
    assert settings.load().port == 1002
    assert settings.load(written(folder, "port = 1003\n", "third.toml")).port == 1003


def test_settings_find_a_relative_path_beside_their_file(folder: Path) -> None:
    path = written(folder, 'database = "sqlite:///data/ccp.db"\ntls_cert = "tls/cert.pem"\ntls_key = "/keys/key.pem"\n')
    for named in (path, Path("..") / "own.toml"):
        config = settings.load(named)
        assert config.database == f"sqlite:///{folder.resolve()}/data/ccp.db"
        assert config.tls_cert is not None
        assert config.tls_cert.resolve() == folder.resolve() / "tls" / "cert.pem"
        assert config.tls_key == Path("/keys/key.pem")


def test_settings_keep_the_absolute_path_of_a_file(folder: Path) -> None:
    path = written(folder, 'database = "sqlite:////var/lib/ccp.db"\n')
    assert settings.load(path).database == "sqlite:////var/lib/ccp.db"


def test_settings_keep_a_relative_path_of_the_environment_or_the_command_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(folder, "port = 1001\n")
    assert settings.load(path, database="sqlite:///b.db").database == "sqlite:///b.db"
    monkeypatch.setenv("CCP_DATABASE", "sqlite:///a.db")
    assert settings.load(path).database == "sqlite:///a.db"
    monkeypatch.delenv("CCP_DATABASE")
    assert settings.load(path).database == "sqlite:///ccp.db"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prot = 8020\n", "prot is not a setting; did you mean port?"),
        ("Data_base = 'x'\n", "Data_base is not a setting; did you mean database?"),
        ("rcp_uri = 'https://rcp.example'\n", "rcp_uri is not a setting; did you mean rcp_url?"),
        ("[rcp]\nuri = 'https://rcp.example'\n", "rcp_uri is not a setting; did you mean rcp_url?"),
        ("[server]\nport = 8020\n", "server is not a setting. `ccp config --explain` lists all settings."),
    ],
    ids=["swapped", "written_differently", "service", "table_of_a_service", "unlike_any"],
)
def test_load_refuses_an_unknown_name_of_the_file(folder: Path, text: str, sentence: str) -> None:
    assert refusal(written(folder, text)) == sentence


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("CCP_DATABSE", "The environment variable CCP_DATABSE is not a setting; did you mean CCP_DATABASE?"),
        ("ccp_worker", "The environment variable ccp_worker is not a setting; did you mean CCP_WORKERS?"),
        ("CCP_PCP_TOKN", "The environment variable CCP_PCP_TOKN is not a setting; did you mean CCP_PCP_TOKEN?"),
        ("CCP_PORT_8020_TCP", "The environment variable CCP_PORT_8020_TCP is not a setting. `ccp config --explain` "
         "lists all settings."),
    ],
)  # fmt: skip
def test_load_refuses_an_unknown_environment_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    monkeypatch.setenv(name, "1")
    assert refusal() == sentence


def test_load_takes_variables_that_are_no_settings_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CCP_PEER_SECRET", "CCPX_DATABSE", "MY_CCP_PORT"):
        monkeypatch.setenv(name, "1")
    assert settings.load().port == 8020


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("port = 65536", "port"),
        ("port = -1", "port"),
        ('port = "none"', "port"),
        ("workers = 0", "workers"),
        ('vehicle_trust = "all"', "vehicle_trust"),
        ('no_default_policy = "first"', "no_default_policy"),
        ('root_match = ""', "root_match"),
        ("max_body = 100", "max_body"),
        ("token_lifetime = 5", "token_lifetime"),
        ('log_level = "loud"', "log_level"),
        ('base_url = "ccp.example.com"', "base_url"),
        ('base_url = "ftp://ccp.example.com"', "base_url"),
        ('base_url = "https://ccp.example.com/?x"', "base_url"),
        ("tls_cert = 5", "tls_cert"),
        ("database = 5", "database"),
    ],
)
def test_value_that_is_not_allowed_is_refused_by_name(folder: Path, text: str, name: str) -> None:
    assert refusal(written(folder, text)).startswith(f"{name}: ")


def test_load_reports_every_invalid_value(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCP_PORT", "x")
    with pytest.raises(ConfigurationError) as caught:
        settings.load(written(folder, "workers = 0\nodd = 1\n"))
    assert sorted(message.split()[0].rstrip(":") for message in caught.value.messages) == ["odd", "port", "workers"]


def test_load_reports_an_unreadable_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(folder / "none.toml").endswith("none.toml cannot be read: No such file or directory.")
    assert refusal(folder).endswith("cannot be read: Is a directory.")
    assert "is not TOML" in refusal(written(folder, "port = \n"))
    (folder / "latin.toml").write_bytes(b'host = "\xfc"')
    assert "is not TOML" in refusal(folder / "latin.toml")
    monkeypatch.setenv("CCP_CONFIG", str(folder / "none.toml"))
    assert "none.toml cannot be read" in refusal()


@pytest.mark.parametrize("alone", ["tls_cert", "tls_key"])
def test_certificate_without_key_and_a_key_without_certificate_are_refused(folder: Path, alone: str) -> None:
    assert refusal(written(folder, f'{alone} = "file.pem"')) == "tls_cert and tls_key belong together."


def test_public_url_defaults_to_the_listening_address() -> None:
    assert settings.load(port=1).public_url == "http://127.0.0.1:1"
    assert settings.load(tls_cert="c", tls_key="k", host="ccp").public_url == "https://ccp:8020"
    assert settings.load(base_url="https://ccp.example.com/").public_url == "https://ccp.example.com"


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        settings.load().port = 5  # type: ignore[misc]


def test_settings_make_words_their_own_types(folder: Path) -> None:
    config = settings.load(
        written(folder, 'vehicle_trust = "signature"\nno_default_policy = "none"\nroot_match="strict"')
    )
    assert (config.vehicle_trust, config.no_default_policy, config.root_match) == (
        VehicleTrust.SIGNATURE, NoDefaultPolicy.NONE, RootMatch.STRICT,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("https://user:word@log.example/audit", "audit_stream_url must be an https URL without credentials."),
        ("https://log.example:99999/audit", "audit_stream_url must be an https URL without credentials."),
        ("ftp://log.example/audit", "audit_stream_url must be an https URL without credentials."),
        ("http://log.example/audit", "audit_stream_url must be an https URL; http is accepted on this machine only."),
    ],
)
def test_audit_stream_url_that_is_not_protected_is_refused(folder: Path, url: str, sentence: str) -> None:
    text = f'audit_stream = "webhook"\naudit_stream_secret = "{"s" * 16}"\naudit_stream_url = "{url}"\n'
    assert refusal(written(folder, text)) == sentence


def test_audit_stream_url_of_this_machine_may_be_http(folder: Path) -> None:
    text = f'audit_stream = "webhook"\naudit_stream_secret = "{"s" * 16}"\naudit_stream_url = '
    for url in ("http://127.0.0.1:9/audit", "http://localhost/audit", "https://log.example/audit"):
        assert settings.load(written(folder, f'{text}"{url}"\n')).audit_stream_url == url
