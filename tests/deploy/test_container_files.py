"""The image and the compose file, as far as they can be checked without a registry."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from ccp.server.storage.engine.secret_codec import CLEAR, SecretCodec
from tests.deploy.tools import DEPLOY, ROOT, run, tool

CONTAINERFILE = (DEPLOY / "Containerfile").read_text("utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))


def test_containerfile_passes_hadolint() -> None:
    run("hadolint", DEPLOY / "Containerfile")


def test_containerfile_copies_only_what_the_build_context_has() -> None:
    context = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    kept = {line[1:] for line in context if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.+)$", CONTAINERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert Path(source).parts[0] in kept, f"{source} is not in the build context"


def test_containerfile_runs_without_root_and_without_tags_that_move() -> None:
    assert re.search(r"^USER 10001:10001$", CONTAINERFILE, re.MULTILINE)
    images = re.findall(r"^ARG PYTHON=(.+)$", CONTAINERFILE, re.MULTILINE)
    images += [service["image"] for service in COMPOSE["services"].values()]
    for image in images:
        assert re.fullmatch(r"opnc-ccp:local|\S+:v?\d+\.\d+(\.\d+)?(-\S+)?", image), image


def test_constraints_pin_every_dependency_within_its_limits() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pinned = {}
    for line in (DEPLOY / "constraints.txt").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            name, _, version = line.partition("==")
            pinned[name.lower().replace("_", "-")] = version
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["client"], *extras["cli"], *extras["server"]]:
        needed = Requirement(text)
        if needed.name != "opnc-ccp":
            assert pinned[needed.name.lower()] in needed.specifier, text


def test_compose_file_fits_the_schema() -> None:
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_compose_services_mount_only_files_and_volumes_that_exist() -> None:
    for name, service in COMPOSE["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                made_by_the_operator = source.endswith("metrics-secret")
                assert made_by_the_operator or (DEPLOY / source).exists(), f"{name}: {source}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {source}"


def test_compose_pool_is_read_only_and_has_no_rights() -> None:
    for name in ("pool", "migrate"):
        service = COMPOSE["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_compose_nginx_file_differs_in_the_address_of_the_pool_alone() -> None:
    plain = (DEPLOY / "nginx" / "nginx.conf").read_text("utf-8").splitlines()
    compose = (DEPLOY / "compose" / "nginx.conf").read_text("utf-8").splitlines()
    differing = [(a.strip(), b.strip()) for a, b in zip(plain, compose, strict=True) if a != b]
    assert differing[1:] == [("server 127.0.0.1:8020;", "server pool:8020;")]
    assert differing[0][0].startswith("#")


def test_certificates_script_makes_a_chain_once_and_keeps_keys_private(tmp_path: Path) -> None:
    openssl = tool("openssl")
    for name in ("tls", "database-tls", "nginx-tls", "pool-secrets", "database-secrets"):
        (tmp_path / name).mkdir()
    script = ["/bin/sh", str(DEPLOY / "compose" / "certificates.sh")]
    env = {"TOP": str(tmp_path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    subprocess.run(script, env=env, check=True, timeout=60)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for leaf, host in (("database-tls/database.pem", "database"), ("nginx-tls/fullchain.pem", "localhost")):
        command = [openssl, "verify", "-purpose", "sslserver", "-verify_hostname", host]
        subprocess.run(
            [*command, "-CAfile", str(tmp_path / "tls/ca.pem"), str(tmp_path / leaf)], check=True, timeout=60
        )
    for path in files:
        private = path.suffix == ".key" or path.name in ("privkey.pem", "password", "pgpass", "secrets-key")
        assert path.stat().st_mode & 0o777 == (0o600 if private else 0o644), path
    password = (tmp_path / "database-secrets/password").read_text()
    assert (tmp_path / "pool-secrets/pgpass").read_text() == f"database:5432:ccp:ccp:{password}\n"
    assert SecretCodec(tmp_path / "pool-secrets/secrets-key").newest != CLEAR
    subprocess.run(script, env=env, check=True, timeout=60)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("service", ["pool", "migrate"])
def test_compose_settings_are_settings_of_the_pool(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ccp.server import settings

    for name, value in COMPOSE["services"][service]["environment"].items():
        if name.startswith("CCP_"):
            assert name.removeprefix("CCP_").lower() in settings.Settings.model_fields, name
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CCP_CONFIG", str(DEPLOY / "compose" / "ccp.toml"))
    effective = settings.load(None)
    assert effective.database.startswith("postgresql://ccp@database/ccp?sslmode=verify-full")
    assert "172.16.0.0/12" in map(str, effective.trusted_proxies)
