"""A newcomer with the sandbox: from the first command to the reason of a refusal, within two minutes."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from playwright.sync_api import Browser

from tests.browser import pictures
from tests.browser.newcomer import STEPS, follow, sandbox
from tests.browser.visiting import ROOT, Visitor
from tests.cli.run import ccp_ok

PAGE = ROOT / "docs" / "see-it.md"


def test_sandbox_shows_a_newcomer_why_a_contract_is_valid_and_when_not(browser: Browser, tmp_path: Path) -> None:
    began = time.monotonic()
    with sandbox(tmp_path) as made:
        visitor = Visitor(browser, made.url)
        assert len(list(follow(visitor, made))) == len(STEPS) - 1
        visitor.keep("newcomer refused")
        assert visitor.problems == []
    assert time.monotonic() - began < 120


def test_sandbox_steps_are_those_of_the_document() -> None:
    numbered = re.findall(r"^\d\. (.+?)(?=\n\n|\n\d\. )", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert [" ".join(step.split()) for step in numbered[: len(STEPS)]] == list(STEPS)


def test_sandbox_address_and_credentials_are_printed_by_make_run(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed.")
    (tmp_path / "ccp.toml").touch()
    (tmp_path / "console.txt").write_text("as it was printed")
    shown = subprocess.run(
        ["make", "--dry-run", "run", f"SANDBOX={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert f"cat {tmp_path}/console.txt" in shown
    assert f"ccp sandbox {tmp_path}" in shown
    assert f"ccp serve --config {tmp_path}/ccp.toml" in shown


def test_sandbox_pictures_are_made_by_the_command(browser: Browser, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    shutil.copy(PAGE, docs)
    pictures.write(docs, ["vehicle", "why-refused"], ["ccp verify", "sed", "ccp why"], browser)
    folder = docs / "images" / "console"
    made = {path.name for path in folder.iterdir()}
    assert made == {name for name in pictures.names() if name.startswith(("vehicle", "why-refused", "terminal"))}
    assert all((folder / name).read_bytes().startswith(b"RIFF") for name in made if name.endswith("webp"))
    session = (docs / "see-it.md").read_text().partition("<!-- session: begin -->")[2]
    for line in ("    verified", "    NOT verified", "    reason     No contract is stored for the vehicle."):
        assert f"\n{line}\n" in session
    assert str(tmp_path.parent.parent) not in session
    drawn = ElementTree.parse(folder / "terminal.svg").getroot()
    shown = ["".join(one.itertext()) for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "NOT verified" in shown


def test_sandbox_pictures_of_the_documents_are_those_of_the_command() -> None:
    folder = PAGE.parent / "images" / "console"
    assert {path.name for path in folder.iterdir()} == pictures.names()
    assert sum(path.stat().st_size for path in folder.iterdir()) < pictures.MAX_BYTES
    used = set(re.findall(r"images/console/([\w.-]+)", PAGE.read_text("utf-8")))
    assert used == pictures.names()


def test_sandbox_pictures_show_pages_and_commands_that_exist() -> None:
    templates = {path.stem for path in (ROOT / "src/ccp/server/console/templates").iterdir()}
    assert {re.sub("-(valid|refused)|-it", "", name).replace("try", "try_it") for name in pictures.PAGES} <= templates
    known = ccp_ok("--help").out
    session = (PAGE.parent / "images" / "console" / "terminal.svg").read_text("utf-8")
    for command, _ in pictures.commands("a" * 100):
        program, name = command.split()[:2]
        assert program == "sed" or name in known
        assert (command if program == "ccp" else program) in re.sub("<[^>]+>", "", session)
