"""Passwords and tokens in URLs of the configuration: hidden wherever settings, errors and log lines are shown."""

from __future__ import annotations

import io
import json
import types
import typing
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import BaseModel, SecretStr

from ccp.server import logging
from ccp.server.runtime.redacted_urls import hide_credentials, hide_in_text
from ccp.server.settings import Settings
from ccp.server.settings.issuers import IssuerSettings
from ccp.server.settings.secret_files import file_forms
from tests.cli.run import ccp, ccp_ok

SECRET = "hunter2"
URLS = [
    f"https://user:{SECRET}@host.example/path",
    f"https://{SECRET}@host.example/path",
    f"https://user:{SECRET}/@:?#{SECRET}@host.example:8443/path",
    f"postgresql://user:{SECRET}@/name?host=/run/postgresql",
    f"postgresql://user:12/{SECRET}@db.example/name",
    f"postgresql:///name?user=ccp&p%61ssword={SECRET}",
    f"postgresql:///name?sslpassword={SECRET}&sslmode=require",
    f"https://host.example/crl?sig={SECRET}&id=3",
    f"https://host.example/crl?id=3&Access_Token={SECRET};{SECRET}",
    f"https://host.example/crl?id=3;apikey={SECRET}",
    f"https://host.example/crl?X-Amz-Signature={SECRET}",
    f"https://host.example/#access_token={SECRET}",
    f"https://[2001:db8::1]:8443/?client_secret={SECRET}",
    f"https://host.example/?pw={SECRET}&bearer={SECRET}&client_assertion={SECRET}&jwt={SECRET}",
    f"https://host.example/?from=https://user:{SECRET}@other.example/",
    f"https://host.example/?from=https%3A%2F%2Fuser%3A{SECRET}%40other.example%2F",
]
MISSPELT = [
    f"https:/user:{SECRET}@host.example/path",
    f"https:user:{SECRET}@host.example/path",
    f"//user:{SECRET}@host.example/path",
    f"postgresql:/user:{SECRET}@db.example/name",
    f"host=db.example user=ccp password={SECRET}",
    f"host=db.example password = 'two {SECRET} words'",
]


@pytest.mark.parametrize("url", URLS)
def test_url_is_shown_without_its_secret_and_still_names_the_host(url: str) -> None:
    for shown in (hide_credentials(url), hide_in_text(f"The list at {url} cannot be reached.")):
        assert SECRET not in shown
        assert "…" in shown
        for part in ("host.example", "[2001:db8::1]", "db.example"):
            assert (part in url) == (part in shown)


@pytest.mark.parametrize("url", MISSPELT)
def test_url_that_is_misspelt_shows_no_secret_in_the_configuration_and_in_errors(url: str, tmp_path: Path) -> None:
    config = tmp_path / "ccp.toml"
    config.write_text(f'database = "{url}"\nrcp_url = "{url}"\n')
    for command in (("config",), ("config", "--json"), ("party", "list")):
        done = ccp(*command, "--config", config)
        assert SECRET not in done.out + done.err
        assert ("host.example" if "host.example" in url else "db.example") in done.out or done.status != 0


@pytest.mark.parametrize(
    "url",
    [
        "https://host.example:8443/crl/a@b.crl?id=3&issuer=x",
        "postgresql://ccp@db.example:5432/name?sslmode=verify-full",
        "sqlite:////var/lib/ccp/ccp@home.db",
        "http://[::1]:80/?y=1",
        "postgresql:///x?sslkey=/etc/key.pem",
        "no url: a@b",
    ],
)
def test_url_without_a_secret_is_shown_as_it_is(url: str) -> None:
    assert hide_credentials(url) == url


def test_url_that_is_very_long_is_read_to_its_end() -> None:
    assert SECRET not in hide_credentials(f"https://host.example/?{'a=;' * 50_000}token={SECRET}")


def hostile(annotation: Any, url: str) -> Any:
    """A value of a type with the URL wherever a text may stand; None where no text may."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is str:
        return url
    if origin is typing.Annotated:
        return hostile(arguments[0], url)
    if origin in (typing.Union, types.UnionType):
        return next((value for each in arguments if (value := hostile(each, url)) is not None), None)
    if origin in (tuple, list, frozenset, set):
        return None if (value := hostile(arguments[0], url)) is None else origin([value])
    if origin is dict:
        return {url: value} if (value := hostile(arguments[1], url)) is not None else None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return filled(annotation, url)
    if annotation is SecretStr:
        return SecretStr(url)
    return None


def filled(model: type[BaseModel], url: str) -> Any:
    values = {name: hostile(field.annotation, url) for name, field in model.model_fields.items()}
    return model.model_construct(**{name: value for name, value in values.items() if value is not None})


@pytest.mark.parametrize("url", URLS)
def test_setting_of_any_kind_shows_no_secret_in_a_url(url: str) -> None:
    """Every field that may hold a text gets the URL, so a setting that is added later is among them."""
    settings = filled(Settings, url)
    named = {"database", "base_url", "rcp", "pcp", "pki", "est", "cps", "crl_urls", "issuers"}
    assert named <= {name for name in Settings.model_fields if url in str(getattr(settings, name))}
    assert url in str(settings.issuers[0].jwks_url)
    assert isinstance(settings.issuers[0], IssuerSettings)
    shown = settings.redacted()
    assert SECRET not in json.dumps(shown)
    assert shown.keys() == {*Settings.model_fields, *file_forms(Settings.model_fields).values()}


@pytest.mark.parametrize("form", [(), ("--json",), ("--explain",)])
def test_config_shows_no_credentials(tmp_path: Path, form: tuple[str, ...]) -> None:
    config = tmp_path / "ccp.toml"
    config.write_text(
        f"""database = "postgresql://ccp:{SECRET}@db.example/ccp"
base_url = "https://pool.example"
rcp_url = "https://rcp.example/rcp"
rcp_token = "{SECRET}"
pcp_url = "https://pcp.example/pcp"
pcp_token_url = "https://login.example/token?api_key={SECRET}"
pcp_client_id = "pool"
pcp_client_secret = "{SECRET}"
[crl_urls]
"Example Sub-CA" = "https://crl.example/sub.crl?sig={SECRET}"
[[issuers]]
issuer = "https://issuer.example"
jwks_url = "https://user:{SECRET}@issuer.example/jwks"
algorithms = ["ES256"]
roles = ["cpo"]
"""
    )
    out = ccp_ok("config", *form, "--config", config).out
    assert SECRET not in out
    for host in ("db", "rcp", "pcp", "login", "crl", "issuer"):
        assert f"{host}.example" in out


def test_error_about_a_setting_or_a_database_shows_no_credentials(tmp_path: Path) -> None:
    config = tmp_path / "ccp.toml"
    for lines in (
        f'trusted_proxies = ["http://user:{SECRET}@proxy.example"]',
        f'database = "postgresql://user:{SECRET}@127.0.0.1:1/name"',
        f'database = "mysql://user:{SECRET}@127.0.0.1:1/name"',
        f'base_url = "ftp://user:{SECRET}@pool.example"',
        f'rcp_url = "https://user:{SECRET}@rcp.example/rcp"',
        f'pki_url = "https://{SECRET}@pki.example/pki"',
        f'pcp_url = "https://pcp.example/pcp?api_key={SECRET}"',
        f'rcp_url = "https://rcp.example/rcp"\nrcp_token = " {SECRET} "',
    ):
        config.write_text(lines + "\n")
        done = ccp("party", "list", "--config", config)
        assert done.status == 1
        assert SECRET not in done.err


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_credentials_in_urls_are_in_no_log_line(log_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    before = structlog.get_config()
    try:
        logging.configure(Settings(log_format=log_format, log_level="info"))
        for url in URLS:
            log = structlog.get_logger("test").bind()
            log.error("configured CRL not fetched", url=url, reasons={url: 1}, reason=f"At {url}: no answer.")
    finally:
        structlog.configure(**before)
    assert out.getvalue().count("configured CRL not fetched") == len(URLS)
    assert SECRET not in out.getvalue()
