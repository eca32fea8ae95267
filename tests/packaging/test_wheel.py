"""The wheel, installed into a clean virtual environment: each extra brings what its packages need, and nothing more."""

from __future__ import annotations

import email
import email.policy
import json
import os
import re
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from markdown_it import MarkdownIt

from tests.cli.served_sandbox import free_port
from tests.packaging.package_index import skip_or_fail
from tests.waiting import wait_until

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

    def __init__(self, folder: Path, name: str = "venv") -> None:
        self._wheel = next(folder.glob("*.whl"))
        self.bin = folder / name / "bin"
        run(sys.executable, "-m", "venv", folder / name)

    def install(self, extra: str = "") -> None:
        done = run(self.bin / "python", "-m", "pip", "install", "--quiet", f"{self._wheel}{extra}")
        if done.returncode:
            skip_or_fail(done.stdout + done.stderr)

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
        skip_or_fail(done.stdout + done.stderr)
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
    assert not any(name.startswith("opentelemetry") for name in installed.packages())

    installed.install("[otel]")
    done = installed.python("import ccp.server.app, ccp.server.tracing.spans; print('ready')")
    assert (done.returncode, done.stdout) == (0, "ready\n"), done.stderr


def test_wheel_serves_its_documentation_with_the_extra_docs(folder: Path, tmp_path: Path) -> None:
    """Without a checkout, without another setting, and with the pages of error codes to which refusals link."""
    installed = Installation(folder, "with-docs")
    installed.install("[docs]")
    port = free_port()
    assert installed.ccp("sandbox", tmp_path / "DIR", "--port", port, "--no-store").returncode == 0
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CCP_"))}
    command = [installed.bin / "ccp", "serve", "--config", tmp_path / "DIR" / "ccp.toml"]
    log = tmp_path / "log"
    with log.open("wb") as err, subprocess.Popen(command, env=kept, cwd=tmp_path, stderr=err) as server:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
                wait_until(lambda: is_there(http, "/docs/"), timeout=180, describe=log.read_text)
                assert "<title>opnc-ccp" in http.get("/docs/").text
                refused = http.get("/opnc/v1/ccp/nothing")
                address = refused.headers["link"].removeprefix("<").partition(">")[0]
                assert address == "/docs/reference/errors/path-not-found.html"
                page = http.get(address)
                assert (page.status_code, "What to do" in page.text) == (200, True)
                assert "max_contracts_per_vehicle" in http.get("/docs/settings.html").text
        finally:
            server.terminate()
            server.wait(30)
    assert f"documentation: http://127.0.0.1:{port}/docs/" in log.read_text()
    assert "Traceback" not in log.read_text()


def is_there(http: httpx.Client, path: str) -> bool:
    with suppress(httpx.TransportError):
        return http.get(path).status_code == 200
    return False


# --- What the wheel carries ------------------------------------------------------------------------------------------


def test_wheel_carries_licence_typed_marker_and_a_description_that_leads_somewhere(folder: Path) -> None:
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        (metadata_name,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        (entry_points,) = [name for name in names if name.endswith(".dist-info/entry_points.txt")]
        metadata = email.message_from_bytes(wheel.read(metadata_name), policy=email.policy.default)
        assert b"ccp = ccp.cli:main" in wheel.read(entry_points)
        (licence,) = [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert "ccp/py.typed" in names
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert (metadata["License-Expression"], metadata["License-File"]) == ("Apache-2.0", "LICENSE")
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload()
    assert text.lstrip().startswith("# opnc-ccp")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 20
    assert [each for each in targets if not each.startswith(("https://", "#"))] == []
    # As a package index renders it: blocks of code, tables and images became such, nothing is left as source.
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert html.count("<table>") >= 2
    assert "<img " in html
    assert html.count("<pre>") >= 3
    assert "```" not in html
    assert "](" not in re.sub(r"<(pre|code)>.*?</\1>", "", html, flags=re.DOTALL)


SHELLS = ("bash", "zsh", "fish")


def test_wheel_completes_commands_and_names_documents_by_url(folder: Path, tmp_path: Path) -> None:
    installed = Installation(folder)
    installed.install("[server]")
    home = {"HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "TERM": "dumb"}
    for shell in SHELLS:
        # The shell is the parent process, by which completion is detected; only its name has to be right.
        script = f'"{installed.bin}/ccp" --show-completion; exit $?'
        detected = run("bash", "-c", f"exec -a {shell} bash -c '{script}'", **home)
        named = run(installed.bin / "ccp", "--show-completion", shell, **home)
        assert (detected.returncode, named.returncode) == (0, 0), detected.stderr + named.stderr
        assert detected.stdout.strip() == named.stdout.strip()
        assert f"complete_{shell}" in named.stdout
        done = run(installed.bin / "ccp", "--install-completion", shell, **home)
        assert (done.returncode, done.stderr) == (0, "")
        (file,) = re.findall(r"is installed in (.+); it takes effect in a new", done.stdout)
        assert f"complete_{shell}" in Path(file).read_text()
        assert Path(file).is_relative_to(tmp_path)
    assert run(installed.bin / "ccp", "--show-completion", "tcsh").returncode == 1

    # In a real shell: what is offered for words that are begun.
    path = f"{installed.bin}:{os.environ['PATH']}"
    offered = run("bash", "-c", _COMPLETE, PATH=path, **home)
    assert offered.stdout.split() == ["trust", "add", "list", "show", "remove", "export", "sync", "--offline"], offered
    for variables, expected in (
        ({"_CCP_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "ccp doctor --off"}, "--offline"),
        (
            {
                "_CCP_COMPLETE": "complete_fish",
                "_TYPER_COMPLETE_ARGS": "ccp tr",
                "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            },
            "trust\t",
        ),
    ):  # fmt: skip
        assert expected in run(installed.bin / "ccp", **variables, **home).stdout

    url = f"sqlite:///{tmp_path}/none.db"
    done = run(installed.bin / "ccp", "backup", "x.db", CCP_DATABASE="postgresql://ccp@127.0.0.1:1/ccp", **home)
    assert re.search(r"see https://\S+/docs/database\.md\.$", done.stderr.strip()), done.stderr
    done = run(installed.bin / "ccp", "doctor", "--offline", CCP_DATABASE=url, CCP_PORT="1", **home)
    assert done.returncode == 2
    assert re.search(r"Every code: https://\S+/docs/doctor\.md$", done.stdout.strip())


_COMPLETE = """
source "$HOME/.bash_completions/ccp.sh"
for line in "ccp tr" "ccp trust " "ccp doctor --off"; do
    read -ra COMP_WORDS <<< "$line"
    [[ $line == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )) COMPREPLY=()
    _ccp_completion ccp
    printf '%s\\n' "${COMPREPLY[@]}"
done
"""
