"""The documentation site: it is built, its links lead somewhere, and it needs no other server."""

from __future__ import annotations

import os
import re
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from ccp.cli.commands import COMMANDS
from ccp.cli.documentation import site
from ccp.cli.documentation.api_pages import GROUPS
from ccp.errors.codes import ErrorCode
from tests.cli.run import ccp_error, ccp_ok
from tests.documents import DOCS

RESOURCES = {"img": "src", "script": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}
"""Attributes with the address of something that a browser loads by itself."""


class Page(HTMLParser):
    """The links, resources and anchors of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.resources: list[str] = []
        self.anchors: set[str] = set()
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.handlers += [name for name in values if name.startswith("on")]
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in RESOURCES and values.get("rel") != "canonical" and (address := values.get(RESOURCES[tag])):
            self.resources.append(address)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `ccp docs build` writes it."""
    directory = tmp_path_factory.mktemp("docs") / "site"
    assert "files in" in ccp_ok("docs", "build", directory).out
    return directory


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text("utf-8")) for path in sorted(built.rglob("*.html"))}


def test_documentation_links_lead_to_pages_and_anchors(built: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # Its addresses are absolute, because it is shown at any path.
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (
                parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors
            ):
                broken.append((path.name, link))
    assert len(pages) > 150
    assert broken == []


def test_documentation_has_each_page_to_which_the_console_links(built: Path, pages: dict[Path, Page]) -> None:
    templates = files("ccp.server.console") / "templates"
    links = set()
    for template in templates.iterdir():
        links |= set(re.findall(r'href="\{\{ documentation \}\}/([^"{]*)"', template.read_text("utf-8")))
    assert len(links) > 2
    for link in links:
        name, _, anchor = link.partition("#")
        page = pages[built / (name or "index.html")]
        assert not anchor or anchor in page.anchors, link


def test_documentation_loads_nothing_from_other_servers(built: Path, pages: dict[Path, Page]) -> None:
    """Neither by a page nor by a style sheet; addresses that lead elsewhere are links that people follow."""
    loaded = [(path.name, address) for path, page in pages.items() for address in page.resources]
    assert [each for each in loaded if urlsplit(each[1]).netloc] == []
    assert [path.name for path, page in pages.items() if page.handlers] == []
    missing = [
        (path, address)
        for path, page in pages.items()
        if path.name != "404.html"
        for address in page.resources
        if not address.startswith("data:") and not (path.parent / unquote(urlsplit(address).path)).exists()
    ]
    assert missing == []
    for sheet in built.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']+", sheet.read_text("utf-8")) == []


def test_documentation_has_a_page_for_each_error_code(pages: dict[Path, Page], built: Path) -> None:
    for each in ErrorCode:
        text = (built / "reference" / "errors" / f"{each}.html").read_text("utf-8")
        assert each in text
        assert "What to do" in text
        assert str(built / "reference" / "errors" / f"{each}.html") in {str(path) for path in pages}


def test_documentation_describes_every_operation_of_the_api(built: Path) -> None:
    text = {group.page: (built / "reference" / "api" / f"{group.page}.html").read_text("utf-8") for group in GROUPS}
    for path, methods in site.openapi_description()["paths"].items():
        group = next(group for group in GROUPS if path.startswith(group.prefix))
        for method in methods:
            assert f"{method.upper()} {path}" in text[group.page]


def test_documentation_describes_every_command(built: Path) -> None:
    text = (built / "reference" / "commands.html").read_text("utf-8")
    for name in COMMANDS:
        assert f"ccp {name}" in text
    assert "rotate-secret" in text
    assert "--replace" in text


def test_documentation_navigation_names_every_page_of_the_folder(built: Path) -> None:
    config = (DOCS / "mkdocs.yml").read_text("utf-8")
    listed = set(re.findall(r"- (?:[^:\n]+: )?([\w/-]+\.md)", config))
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if path.parent.name != "decisions"}
    assert written <= listed, "add the page to the navigation in docs/mkdocs.yml"
    for name in listed:
        assert (built / name.replace("README.md", "index.md").replace(".md", ".html")).exists(), name
    for record in (DOCS / "decisions").glob("[0-9]*.md"):
        assert (built / "decisions" / f"{record.stem}.html").exists()


def test_documentation_is_built_into_no_other_directory(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "is neither empty nor a documentation site" in ccp_error("docs", "build", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_documentation_replaces_no_site_of_others(tmp_path: Path) -> None:
    """Every site may have a site map."""
    (tmp_path / "sitemap.xml").write_text("<urlset/>")
    (tmp_path / "index.html").write_text("mine")
    assert "is neither empty nor a documentation site" in ccp_error("docs", "build", tmp_path)
    assert (tmp_path / "index.html").read_text() == "mine"


def test_documentation_is_built_anew_where_a_link_leads(tmp_path: Path) -> None:
    earlier = tmp_path / "release" / "reference"
    earlier.mkdir(parents=True)
    (earlier / "error-codes.html").write_text("earlier")
    (tmp_path / "current").symlink_to(tmp_path / "release")
    assert "files in" in ccp_ok("docs", "build", tmp_path / "current").out
    assert (tmp_path / "current").is_symlink()
    assert "What to do" in (tmp_path / "release/reference/errors/path-not-found.html").read_text("utf-8")


@pytest.mark.parametrize("kept", [0, 20_000])
def test_documentation_page_that_is_cut_off_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """The generator leaves such pages when the disk fills up, and reports success."""
    run = subprocess.run

    def run_on_a_full_disk(command: list[str], *, cwd: Path, **how: Any) -> Any:
        done = run(command, cwd=cwd, **how)
        assert done.returncode == 0, done.stderr
        os.truncate(cwd / "site" / "operations.html", kept)
        return done

    monkeypatch.setattr(site.subprocess, "run", run_on_a_full_disk)
    error = ccp_error("docs", "build", tmp_path / "site")
    assert "cannot be built: operations.html is incomplete" in error
    assert "may be full" in error
    assert not (tmp_path / "site").exists()


def test_documentation_fault_is_an_error_and_keeps_the_earlier_site(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a link that leads nowhere."""
    pages_of = site.generated_pages
    monkeypatch.setattr(site, "generated_pages", lambda source: {**pages_of(source), "start.md": "[x](nowhere.md)"})
    assert "cannot be built" in ccp_error("docs", "build", built)
    assert (built / "index.html").exists()


def test_documentation_diagrams_follow_light_and_dark() -> None:
    for path in DOCS.glob("images/*.svg"):
        text = path.read_text("utf-8")
        if path.name != "favicon.svg":
            assert "prefers-color-scheme: dark" in text, path
            assert "<title" in text, path
            assert "<desc" in text, path
