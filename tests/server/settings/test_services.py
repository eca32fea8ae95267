"""Settings of external services: flat names, tables and environment, and what contradicts itself."""

from __future__ import annotations

import json
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ccp.errors import ConfigurationError
from ccp.server import settings
from ccp.server.app import build_services
from ccp.server.settings import Settings
from ccp.server.settings.services import SERVICES, Dialect, ServiceSettings
from tests.cli.run import ccp, ccp_ok

SECRET = "hunter2-of-the-pool"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to stand in, and an environment without any setting of ours."""
    for name in [name for name in os.environ if name.startswith("CCP_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        settings.load(written(folder, text))
    return str(caught.value)


FLAT = """
{0}_url = "https://service.example/base/"
{0}_dialect = "opcp"
{0}_token_url = "https://login.example/token"
{0}_client_id = "pool"
{0}_client_secret = "hunter2-of-the-pool"
{0}_audience = "https://service.example"
{0}_scope = "read"
"""
TABLE = """
[{0}]
url = "https://service.example/base/"
dialect = "opcp"
token_url = "https://login.example/token"
client_id = "pool"
client_secret = "hunter2-of-the-pool"
audience = "https://service.example"
scope = "read"
"""


@pytest.mark.parametrize("prefix", SERVICES)
def test_service_table_flat_names_and_environment_are_the_same(
    folder: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = settings.load(written(folder, FLAT.format(prefix)))
    service = getattr(flat, prefix)
    assert (service.url, service.dialect) == ("https://service.example/base", Dialect.OPCP)
    assert service.client_secret.get_secret_value() == SECRET
    assert settings.load(written(folder, TABLE.format(prefix))).model_dump() == flat.model_dump()
    assert flat.services == {prefix: service}
    for line in FLAT.format(prefix).strip().splitlines():
        name, _, value = line.partition(" = ")
        monkeypatch.setenv(f"CCP_{name.upper()}", value.strip('"'))
    assert settings.load(written(folder, "")).model_dump() == flat.model_dump()


def test_service_member_of_the_environment_overrides_that_of_the_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(folder, '[rcp]\nurl = "https://a.example"\ninterval = 600\n[pcp]\nurl = "https://b.example"\n')
    monkeypatch.setenv("CCP_RCP_DIALECT", "opcp")
    monkeypatch.setenv("CCP_PCP_URL", "https://c.example")
    config = settings.load(path)
    assert config.rcp == ServiceSettings(url="https://a.example", dialect=Dialect.OPCP)
    assert config.rcp_interval == 600
    assert config.pcp is not None
    assert config.pcp.url == "https://c.example"
    assert config.pki is None


def test_service_settings_find_relative_files_beside_their_file(folder: Path) -> None:
    text = '[est]\nurl = "https://a.example"\ntls_cert = "c.pem"\ntls_key = "/k.pem"\nca = "ca.pem"\ntoken_file = "t"\n'
    est = settings.load(written(folder, text)).est
    assert est is not None
    assert (est.tls_cert, est.tls_key) == (folder / "c.pem", Path("/k.pem"))
    assert (est.ca, est.token_file) == (folder / "ca.pem", folder / "t")


URL = 'rcp_url = "https://a.example"\n'
GRANT = 'rcp_token_url = "https://t.example"\nrcp_client_id = "i"\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('rcp_token = "t"\n', "rcp_url is missing; the other settings of rcp have no effect without it."),
        ('[rcp]\ntokn = "t"\n', "rcp_tokn is not a setting; did you mean rcp_token?"),
        ('rcp_url = "https://a.example"\n[rcp]\nurl = "https://a.example"\n',
         "rcp_url is given twice: as rcp_url, and in the table [rcp]."),
        ('rcp_url = "rcp.example"\n', "rcp_url: must be an http or https URL without credentials"),
        ('rcp_url = "https://u:p@a.example"\n', "rcp_url: must be an http or https URL without credentials"),
        ('rcp_url = "https://a.example/?x=1"\n', "rcp_url: must be a URL without query and fragment."),
        ('rcp_url = "http://a.example"\n', "[rcp]: url must be an https URL, or allow_http must be set."),
        (URL + 'rcp_token_url = "http://t.example"\nrcp_client_id = "i"\nrcp_client_secret = "s"\n',
         "[rcp]: token_url must be an https URL, or allow_http must be set."),
        (URL + 'rcp_dialect = "ocpi"\n', "rcp_dialect: Input should be 'opnc' or 'opcp'."),
        (URL + 'rcp_token = "t"\nrcp_client_id = "i"\n',
         "[rcp]: token and client_id contradict each other: a token is given or fetched."),
        (URL + 'rcp_token_file = "t"\nrcp_token_url = "https://t.example"\n',
         "[rcp]: token_file and token_url contradict each other: a token is given or fetched."),
        (URL + 'rcp_token = "t"\nrcp_token_file = "t"\n', "[rcp]: token and token_file contradict each other."),
        (URL + GRANT + 'rcp_client_secret = "s"\nrcp_client_secret_file = "s"\n',
         "[rcp]: client_secret and client_secret_file contradict each other."),
        (URL + 'rcp_token_url = "https://t.example"\nrcp_client_secret = "s"\n',
         "[rcp]: client_secret needs client_id."),
        (URL + 'rcp_token_url = "https://t.example"\n', "[rcp]: token_url needs client_id."),
        (URL + 'rcp_client_id = "i"\nrcp_client_secret = "s"\n', "[rcp]: client_id needs token_url."),
        (URL + 'rcp_audience = "x"\n', "[rcp]: audience needs token_url."),
        (URL + GRANT, "[rcp]: client_id needs client_secret or client_secret_file."),
        (URL + 'rcp_tls_cert = "c"\n', "[rcp]: tls_cert and tls_key belong together."),
        (URL + 'rcp_tls_key = "c"\n', "[rcp]: tls_cert and tls_key belong together."),
        ('rcp_url = "http://127.0.0.1:1"\nrcp_ca = "c"\n', "[rcp]: tls_cert and ca need an https URL."),
        (URL + 'rcp_token = ""\n', "rcp_token: must be printable ASCII without blanks at its ends, and not empty."),
    ],
)  # fmt: skip
def test_service_settings_that_contradict_each_other_are_one_sentence(folder: Path, text: str, sentence: str) -> None:
    sentences = refusal(folder, text)
    assert sentences.startswith(sentence) or sentences.endswith(sentence)
    assert sentences.count(". ") == 0


def test_service_url_may_be_http_on_this_machine_or_with_permission() -> None:
    for url in ("http://127.0.0.1:1", "http://localhost", "http://[::1]:8020/x"):
        assert ServiceSettings(url=url).url == url
    assert ServiceSettings(url="http://mesh.example", token_url="http://t.example/t", client_id="i",
                           client_secret="s", allow_http=True).allow_http  # fmt: skip


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"token_file": "none"}, "rcp_token_file (none) cannot be used: No such file or directory."),
        ({"token_file": "."}, "rcp_token_file (.) cannot be used: not a regular file."),
        ({"token_file": "empty"}, "holds no token or secret"),
        ({"token_file": "binary"}, "holds no token or secret"),
        ({"token_url": "https://t.example", "client_id": "i", "client_secret_file": "none"},
         "rcp_client_secret_file (none) cannot be used: No such file or directory."),
        ({"ca": "none"}, "rcp_ca (none) cannot be used: No such file or directory."),
        ({"ca": "empty"}, "rcp_ca (empty) cannot be used: "),
        ({"tls_cert": "none", "tls_key": "none"},
         "rcp_tls_cert (none) and rcp_tls_key (none) cannot be used together: No such file or directory."),
        ({"tls_cert": "cert", "tls_key": "key"}, "rcp_tls_cert (cert) and rcp_tls_key (key) cannot be used together: "),
    ],
)  # fmt: skip
def test_service_settings_with_an_unusable_file_keep_the_pool_from_starting(
    folder: Path, members: dict[str, Any], sentence: str
) -> None:
    (folder / "empty").write_text("\n")
    (folder / "binary").write_bytes(b"\xff\x00" * 10)
    certificate, _ = self_signed()
    _, other_key = self_signed()
    (folder / "cert").write_bytes(certificate)
    (folder / "key").write_bytes(other_key)
    config = Settings(rcp_url="https://a.example", **{f"rcp_{name}": value for name, value in members.items()})
    with pytest.raises(ConfigurationError) as caught:
        build_services(config)
    assert sentence in str(caught.value)
    lines = "".join(f'rcp_{name} = "{value}"\n' for name, value in members.items())
    done = ccp("serve", "--config", written(folder, URL + lines))
    assert done.status != 0
    assert sentence.partition("(")[0] in done.err
    assert "Traceback" not in done.err


def self_signed() -> tuple[bytes, bytes]:
    """A certificate and its key, PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pool")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = (
        builder.serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    )
    certificate = builder.sign(key, hashes.SHA256())
    return (
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


@pytest.mark.parametrize("form", [(), ("--json",), ("--explain",)])
def test_service_settings_are_shown_by_config_without_secrets(folder: Path, form: tuple[str, ...]) -> None:
    text = FLAT.format("rcp") + f'pcp_url = "https://pcp.example"\npcp_token = "{SECRET}"\n'
    out = ccp_ok("config", *form, "--config", written(folder, text)).out
    assert SECRET not in out
    if form == ("--json",):
        shown = json.loads(out)
        assert shown["rcp"]["client_id"] == "pool"
        assert shown["est"] is None
        return
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "https://service.example/base" in rows["rcp_url"]
    assert "login.example" in rows["rcp_token_url"]
    assert {"est_url", "cps_url", "pcp_dialect"} <= rows.keys()
    assert "est_dialect" not in rows


def test_service_secrets_are_in_no_text_of_the_settings(folder: Path) -> None:
    config = settings.load(written(folder, FLAT.format("rcp")))
    assert SECRET not in f"{config!r} {config} {config.rcp!r} {config.rcp} {config.redacted()}"
    assert SECRET not in refusal(folder, FLAT.format("rcp").replace(f'"{SECRET}"', f'"{SECRET} "'))
    with pytest.raises(ValueError, match="contradict") as caught:
        Settings(rcp_url="https://a.example", rcp_token=SECRET, rcp_client_id="i", rcp_client_secret=SECRET)
    assert SECRET not in str(caught.value)


def test_client_tls_verifies_by_default() -> None:
    from ccp.server.external.client_tls import ClientTLS

    context = ClientTLS().context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
