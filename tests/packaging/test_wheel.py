"""The wheel, installed into a clean virtual environment: each extra brings what its packages need, and nothing more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MESSAGE = ROOT / "tests" / "vectors" / "installation_res_iso2_opnc_example.b64"
OF_CRYPTOGRAPHY = {"cryptography", "cffi", "pycparser"}

pytestmark = pytest.mark.slow


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CCP_"))}
    return subprocess.run(
        [str(each) for each in command],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


class Installation:
    """A virtual environment with the wheel and one extra after the other."""

    def __init__(self, folder: Path) -> None:
        self._wheel = next(folder.glob("*.whl"))
        self.bin = folder / "venv" / "bin"
        run(sys.executable, "-m", "venv", folder / "venv")

    def install(self, extra: str = "") -> None:
        done = run(self.bin / "python", "-m", "pip", "install", "--quiet", f"{self._wheel}{extra}")
        if done.returncode:
            pytest.skip(f"The package index does not answer: {done.stderr[-300:]}")

    def packages(self) -> set[str]:
        listed = run(self.bin / "python", "-m", "pip", "list", "--format", "json").stdout
        return {each["name"].lower() for each in json.loads(listed)} - {"pip", "setuptools", "opnc-ccp"}

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        return run(self.bin / "python", "-c", code)

    def ccp(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return run(self.bin / "ccp", *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("wheel")
    done = run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", made, ROOT)
    if done.returncode:
        pytest.skip(
            f"The wheel cannot be built, probably because the package index does not answer: {done.stderr[-300:]}"
        )
    return made


def test_wheel_has_what_the_documentation_site_is_built_from(folder: Path) -> None:
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        names = {name.removeprefix("ccp/cli/documentation/sources/") for name in wheel.namelist()}
    assert {"README.md", "CHANGELOG.md", "docs/mkdocs.yml", "docs/operations.md", "docs/images/favicon.svg"} <= names


def test_wheel_brings_to_each_extra_what_its_packages_need(folder: Path) -> None:
    installed = Installation(folder)

    installed.install()
    assert installed.packages() == OF_CRYPTOGRAPHY
    done = installed.python("import ccp.exi, ccp.x509.path_validation, ccp.verify; print(*sorted(ccp.verify.__all__))")
    assert done.returncode == 0, done.stderr
    assert "verify_response" in done.stdout
    assert installed.python("import ccp.client").returncode != 0
    done = installed.ccp("--help")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "opnc-ccp[cli]" in done.stderr

    installed.install("[cli]")
    assert not installed.packages() & {"fastapi", "httpcore", "orjson", "structlog", "uvicorn"}
    done = installed.ccp("exi", "decode", MESSAGE)
    assert done.returncode == 0, done.stderr
    assert "CertificateInstallationRes" in done.stdout
    done = installed.ccp("verify", "--trust", folder, MESSAGE)
    assert done.returncode == 1, "no root is trusted"
    assert "Traceback" not in done.stderr
    assert "V2G root" in done.stdout
    done = installed.ccp("serve")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "opnc-ccp[server]" in done.stderr

    installed.install("[client]")
    done = installed.python("from ccp.client import AsyncClient, Client; import ccp.schemas; print(Client.__name__)")
    assert (done.returncode, done.stdout) == (0, "Client\n"), done.stderr
    assert not installed.packages() & {"fastapi", "uvicorn", "sqlalchemy", "httpx", "structlog"}

    installed.install("[testing]")
    done = installed.python("from ccp.testing import PKI; import ccp.testing.partners; print(PKI.__name__)")
    assert (done.returncode, done.stdout) == (0, "PKI\n"), done.stderr
