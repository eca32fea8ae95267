"""The documents name what the code has, and nothing else: settings with their defaults, log events, tasks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ccp.cli.documentation import settings_tables
from ccp.server.settings import Settings
from ccp.server.settings.reloading import RELOADABLE
from ccp.server.settings.services import SERVICES, ServiceSettings
from tests.documents import DOCS, ROOT, table

SOURCES = {path: path.read_text("utf-8") for path in sorted((ROOT / "src").rglob("*.py"))}
OPERATIONS = (DOCS / "operations.md").read_text("utf-8")


def section(title: str) -> str:
    return OPERATIONS.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def logged() -> Iterator[str]:
    """The name of every log event, which is the first argument of a call on a logger."""
    for text in SOURCES.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                of_logger = ast.unparse(node.func.value) in ("_log", "log")
                name = node.args[0] if node.args else None
                if of_logger and isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield name.value


def test_log_event_table_names_each_of_them_and_no_other() -> None:
    listed = {name for row in table(section("The log")) for name in re.findall(r"`([^`]+)`", row[0])}
    # The supervisor of background tasks picks the level first, and then calls the method.
    assert listed == set(logged()) | {"background task failed"}


def test_log_event_table_says_what_to_do_about_each() -> None:
    rows = table(section("The log"))
    assert {len(row) for row in rows} == {4}
    assert [row[0] for row in rows[1:] if len(row[3].split()) < 4] == []


@pytest.mark.parametrize("name", settings_tables.DOCUMENTS)
def test_settings_tables_are_those_of_the_code(name: str) -> None:
    text = (DOCS / name).read_text("utf-8")
    assert text == settings_tables.update(text), "run `make docs`"


def test_settings_tables_have_each_setting_with_its_meaning_once() -> None:
    rows = table((DOCS / "settings.md").read_text("utf-8").partition("\n## Reload\n")[0])
    names = [name.strip("`").removesuffix("_…") for name, _, meaning in rows if name.startswith("`") and meaning]
    assert sorted(names) == sorted(Settings.model_fields)


def test_settings_table_says_each_default() -> None:
    shown: dict[str, str] = {}
    for row in table((DOCS / "settings.md").read_text("utf-8")):
        names, defaults = (re.findall(r"`([^`]+)`", cell) for cell in row[:2])
        if len(names) == len(defaults):
            shown |= zip(names, defaults, strict=True)
    expected = {
        name: str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        for name, field in Settings.model_fields.items()
        if isinstance(field.default, bool | int | float | str)
    }
    assert {name: shown.get(name) for name in expected} == expected


def test_settings_that_a_reload_changes_stand_in_one_list() -> None:
    text = (DOCS / "settings.md").read_text("utf-8").partition("\n## Reload\n")[2].partition("\n## ")[0]
    listed = {name for line in re.findall(r"^- .*$", text, re.MULTILINE) for name in re.findall(r"`([a-z_]+)`", line)}
    assert listed == RELOADABLE


def test_settings_of_external_services_stand_in_one_table() -> None:
    text = (DOCS / "settings.md").read_text("utf-8")
    shape = table(text.partition("\n## External services\n")[2].partition("\n## ")[0])
    shown: dict[str, str] = {}
    for row in shape:
        names, defaults = (re.findall(r"`([^`]+)`", cell) for cell in row[:2])
        shown |= zip(names, defaults or [""] * len(names), strict=True)
    defaults = {name: field.default for name, field in ServiceSettings.model_fields.items()}
    expected = {name: str(value).lower() if isinstance(value, str | bool) else "" for name, value in defaults.items()}
    assert shown == expected
    assert set(SERVICES) == {name[1:-3] for name in re.findall(r"`[a-z]+_…`", text)}
    assert set(SERVICES) <= set(Settings.model_fields)


def test_documents_name_the_critical_background_tasks_and_their_number() -> None:
    names = re.search(r"`task` is one of the background tasks: ([^(]+)\(these (\w+) are critical", section("Metrics"))
    assert names is not None
    listed = re.findall(r"`(\w+)`", names[1])
    loaded = (
        SOURCES[ROOT / "src/ccp/server/app.py"]
        .partition("refresher = SnapshotRefresher(\n")[2]
        .partition("interval=")[0]
    )
    snapshots = [each for each in loaded.split("Snapshot(")[1:] if "critical=False" not in each]
    refreshed = {f"refresh_{name}" for each in snapshots for name in re.findall(r'"(\w+)"', each)[:1]}
    assert len(refreshed) > 3
    assert set(listed) == refreshed | {"poll_changes", "connection_reaper"}
    assert names[2] == ["five", "six", "seven", "eight", "nine"][len(listed) - 5]


def test_documents_name_every_limit_that_refuses() -> None:
    (row,) = (row for row in table(section("Metrics")) if row[0] == "`ccp_limited_total`")
    text = "".join(
        SOURCES[ROOT / f"src/ccp/server/{name}.py"] for name in ("access/rate_limits", "http/connection_limits")
    )
    counted = set(re.findall(r"_refuse\((?:\"|[^\n]*, \")(\w+)\"", text)) | set(re.findall(r"limited\(\"(\w+)\"", text))
    assert len(counted) > 7
    assert set(re.findall(r"`(\w+)`", row[2])) == counted


def test_documents_name_every_background_task() -> None:
    names = set()
    for text in SOURCES.values():
        names |= set(re.findall(r"(?:PeriodicTask|\.spawn|\.failed)\(\s*\"([a-z_]+)\"", text))
    assert {name for name in names if f"`{name}`" not in section("Metrics")} == set()


@pytest.mark.parametrize("path", [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"], ids=lambda path: path.name)
def test_document_links_lead_somewhere(path: Path) -> None:
    """Links to generated pages, which the navigation names, are checked in the built site."""
    generated = set(re.findall(r"- ([\w/-]+\.md)", (DOCS / "mkdocs.yml").read_text("utf-8")))
    for target, anchor in re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", path.read_text("utf-8")):
        other = (path.parent / target).resolve() if target else path
        if not other.exists() and other.is_relative_to(DOCS) and str(other.relative_to(DOCS)) in generated:
            continue
        assert other.exists(), target
        if anchor and other.suffix == ".md":  # Of a picture, #only-light and #only-dark name the theme that shows it.
            titles = re.findall(r"^#+ (.+)$", other.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor[1:] in anchors, anchor


def test_decision_records_have_numbers_of_their_own_and_stand_in_the_index() -> None:
    records = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    assert [path.name[:4] for path in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
    index = (DOCS / "decisions" / "README.md").read_text("utf-8")
    assert [path.name for path in records] == re.findall(r"\]\(([^)]+)\)", index)


def test_document_proofs_are_files_that_exist() -> None:
    for path in (DOCS / "security.md", DOCS / "performance.md"):
        for name in re.findall(r"`((?:tests|bench|src)/[\w/.]+)`", path.read_text("utf-8")):
            assert (ROOT / name).exists(), name


def test_documents_for_contributors_name_paths_and_targets_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = re.findall(r"`((?:src|tests|docs|bench|deploy|\.ci)/[\w/.-]*)`", text)
    assert len(named) > 40
    assert [path for path in named if not (ROOT / path).exists()] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", text)) <= targets
    assert text.count("?* ") == 10, "ten questions with their answers"
