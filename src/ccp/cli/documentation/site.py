"""Builds the documentation site from docs/ and the generated pages, with Zensical."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from ccp.cli.documentation.api_pages import api_pages
from ccp.cli.documentation.command_pages import command_page
from ccp.cli.documentation.error_pages import error_pages
from ccp.cli.documentation.markdown import section
from ccp.errors import ConfigurationError

_MARK: Final = Path("reference", "error-codes.html")
"""A page by which an earlier site is recognised: other sites have no such page."""
_START: Final = ("Two commands", "A walk through all seven operations")
"""Sections of the README that are the page to start with."""
_TIMEOUT: Final = 300.0  # Seconds; a build takes ten.


def sources() -> Path:
    """The folder with docs/, README.md and CHANGELOG.md: in the wheel beside this module, else the source tree."""
    packaged = Path(__file__).parent / "sources"
    return packaged if packaged.exists() else Path(__file__).parents[4]


def generated_pages(source: Path) -> dict[str, str]:
    """The Markdown of every generated page by its path below docs/."""
    operations = (source / "docs" / "operations.md").read_text("utf-8")
    integrating = (source / "docs" / "integrating.md").read_text("utf-8")
    return {
        "start.md": _start((source / "README.md").read_text("utf-8")),
        "changelog.md": (source / "CHANGELOG.md").read_text("utf-8"),
        **{f"reference/api/{name}": text for name, text in api_pages(openapi_description()).items()},
        **{f"reference/{name}": text for name, text in error_pages().items()},
        "reference/commands.md": command_page(),
        "reference/metrics.md": _extract("Metrics", operations, "Metrics", "operations.md"),
        "reference/log-events.md": _extract("Log events", operations, "The log", "operations.md"),
        "reference/events.md": _extract("Events to partners", integrating, "Events", "integrating.md"),
    }


def openapi_description() -> Mapping[str, Any]:
    """The OpenAPI description of a pool with default settings. Needs the libraries of the server; opens no database."""
    from ccp.server.app import create_app
    from ccp.server.settings import Settings

    return create_app(Settings()).openapi()


def _start(readme: str) -> str:
    parts = [f"## {title}\n\n{section(readme, title)}" for title in _START]
    return "\n".join(("# Start\n", "Five minutes, in the source distribution.\n", *parts)).replace("](docs/", "](")


def _extract(title: str, text: str, heading: str, page: str) -> str:
    """A section of a document as a page below reference/, with headings one level higher."""
    body = re.sub(r"^##(#+) ", r"#\1 ", section(text, heading), flags=re.MULTILINE)
    body = re.sub(r"\]\((?!#|[a-z]+:)", "](../", body).replace("](#", f"](../{page}#")
    return f"# {title}\n\n{body}"


def stage(source: Path, folder: Path) -> None:
    """Write everything that the site generator reads into a folder: mkdocs.yml and docs/.

    source: as `sources` returns it.
    """
    docs = folder / "docs"
    shutil.copytree(source / "docs", docs, ignore=shutil.ignore_patterns("mkdocs.yml"))
    for path in docs.rglob("*.md"):
        path.write_text(path.read_text("utf-8").replace("](../CHANGELOG.md)", "](changelog.md)"), "utf-8")
    for name, text in generated_pages(source).items():
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    index = "          - decisions/README.md\n"
    records = "".join(f"          - decisions/{path.name}\n" for path in sorted((docs / "decisions").glob("[0-9]*.md")))
    config = (source / "docs" / "mkdocs.yml").read_text("utf-8")
    (folder / "mkdocs.yml").write_text(config.replace(index, index + records), "utf-8")


def build(directory: Path) -> int:
    """Build the site into a directory, and return the number of its files.

    directory: new, empty, or with an earlier site, which is replaced; a symbolic link is followed. Raises
    ConfigurationError for any other directory, and if the generator is not installed, finds a fault, such as a link
    that leads nowhere, or writes an incomplete file.
    """
    directory = directory.resolve()
    if directory.exists() and not (directory / _MARK).exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigurationError(f"{directory} is neither empty nor a documentation site.")
    with TemporaryDirectory(prefix="ccp-docs-") as name:
        folder = Path(name)
        stage(sources(), folder)
        _generate(folder)
        if directory.exists():
            shutil.rmtree(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / "site", directory)
    return sum(1 for path in directory.rglob("*") if path.is_file())


def _generate(folder: Path) -> None:
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(  # noqa: S603 the arguments are constants
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_TIMEOUT, check=False
    )
    if "No module named zensical" in done.stderr:
        raise ConfigurationError("Building the documentation needs Zensical; install opnc-ccp[docs].")
    if done.returncode:
        raise ConfigurationError(f"The documentation site cannot be built: {(done.stdout + done.stderr).strip()}")
    for path in sorted(each for each in (folder / "site").rglob("*") if each.is_file()):
        if not _is_whole(path):
            raise ConfigurationError(
                f"The documentation site cannot be built: {path.relative_to(folder / 'site')} is incomplete. "
                f"{folder.parent}, the directory for temporary files, may be full."
            )


def _is_whole(path: Path) -> bool:
    """Whether a file was written to its end. The generator reports success after a page that it could not write."""
    content = path.read_bytes()
    return bool(content) and (path.suffix != ".html" or content.rstrip().endswith(b"</html>"))
