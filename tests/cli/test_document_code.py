"""Code in the documents: commands and options exist, settings exist, programs compile, and paths are routes."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ccp.cli.commands import COMMANDS, load
from ccp.cli.documentation import site
from ccp.server.declaration.entries import AnchorEntry, PartyEntry, PeerEntry
from ccp.server.settings import Settings
from ccp.server.settings import names as setting_names
from ccp.server.settings.services import ServiceSettings, flatten_tables
from tests.cli.run import ccp_ok
from tests.document_code import DEPLOYMENT, DOCUMENTS, calls_in, code_of, fault_of_call, options_of
from tests.documents import DOCS, ROOT

ROUTES = {
    *("/admin/v1", "/opnc/v1", "/opnc/v1/ccp", "/v1", "/v1/ccp", "/.well-known", "/.well-known/est"),
    *("/health", "/health/live", "/health/ready", "/metrics", "/oauth/token", "/openapi.json"),
    *("/docs", "/console", "/try-it", "/.well-known/openid-configuration", "/.well-known/jwks.json"),
}
"""Paths that no description of an interface has, and beginnings of paths."""
FOREIGN = {"/pki", "/opnc/v1/rcp", "/opnc/v1/pki", "/opnc/v1/pcp", "/cpo/…", "/{ca}/cacerts/{iso-version}/{algorithm}/"}
"""Paths of other systems, which the documents name."""
TERMS_OF_DATABASES = {"synchronous", "synchronous_commit", "fsync"}


def test_document_commands_and_their_options_exist() -> None:
    faults, calls = [], 0
    for path in DOCUMENTS:
        for code in code_of(path):
            for words in calls_in(code.text, inline=code.language == "inline"):
                calls += 1
                faults += [(path.name, fault)] if (fault := fault_of_call(words)) else []
    assert faults == []
    assert calls > 250


def test_document_commands_in_deployment_files_exist() -> None:
    faults, calls = [], 0
    for path in DEPLOYMENT:
        for words in calls_in(path.read_text("utf-8"), inline=False):
            calls += 1
            faults += [(path.name, fault)] if (fault := fault_of_call(words)) else []
    assert faults == []
    assert calls > 5


def test_document_options_without_a_command_are_of_some_command() -> None:
    known = {option for name in COMMANDS for option in options_of(load(name))} | {"--help", "--version"}
    for path in sorted(DOCS.glob("how-to/*.md")) + [DOCS / f"{name}.md" for name in ("operations", "doctor", "trust")]:
        for code in code_of(path):
            if code.language == "inline" and re.match(r"--[a-z]", code.text):
                assert re.match(r"[a-z-]+", code.text)[0] in known, (path.name, code.text)  # type: ignore[index]


def toml_of(path: Path) -> Iterator[dict[str, object]]:
    for code in code_of(path):
        block = code.language == "toml" or (
            code.language == "indented" and re.match(r"(?:#[^\n]*\n)*\s*(?:\[+\w+\]+\n|\w+ = [\"\[{\dtf])", code.text)
        )
        if block:
            yield tomllib.loads(re.sub(r"(?m)^\s+(?=\w+ = )", "", code.text))


def test_document_settings_files_are_toml_and_name_settings(tmp_path: Path) -> None:
    """Files that a settings file names are not there."""
    found = 0
    for path in DOCUMENTS:
        for values in toml_of(path):
            found += 1
            if values.keys() <= {"party", "peer", "anchor"}:
                continue
            assert list(setting_names.problems(Settings.model_fields, flatten_tables(values), {})) == [], path.name
    assert found > 5


def test_document_declarations_have_members_that_exist() -> None:
    entries = {"party": PartyEntry, "peer": PeerEntry, "anchor": AnchorEntry}
    found = 0
    for values in toml_of(DOCS / "declaring.md"):
        for kind, each in values.items():
            for entry in each:  # type: ignore[attr-defined]
                found += 1
                entries[kind].model_validate(entry)
    assert found > 1


def test_document_settings_in_a_sentence_exist() -> None:
    """Such as `metrics = "admin"`: the name is a setting, and the value is TOML."""
    known = setting_names.known_names(Settings.model_fields) | set(ServiceSettings.model_fields) | {"enabled"}
    found = 0
    for path in DOCUMENTS:
        for code in code_of(path):
            matched = re.fullmatch(r"([a-z_]+) = (.+)", code.text) if code.language == "inline" else None
            if matched and matched[1] not in TERMS_OF_DATABASES:
                found += 1
                assert matched[1] in known, (path.name, code.text)
                if "…" not in matched[2]:
                    tomllib.loads(code.text)
    assert found > 20


def test_document_programs_compile() -> None:
    found = 0
    for path in DOCUMENTS:
        for code in code_of(path):
            python = code.language == "python" or (
                code.language == "indented" and re.match(r"(?:from \S+ )?import |(?:async )?def |class ", code.text)
            )
            if python:
                found += 1
                compile(code.text, path.name, "exec")
    assert found > 10


def test_document_json_can_be_read() -> None:
    """The bodies of requests and responses, but for values that are cut short with an ellipsis."""
    found = 0
    for path in DOCUMENTS:
        for code in code_of(path):
            if code.language not in ("http", "json", "indented"):
                continue
            for body in re.findall(r"(?ms)^[{\[](?=[\s\"]).*?^[}\]]$", code.text):
                found += 1
                json.loads(body)
    assert found > 10


_PATH = re.compile(
    r"(?:(?:GET|PUT|POST|DELETE|PATCH) )?(?:https://ccp\.example|…)?(/(?!etc|var|opt|run|usr)[\w./{}-]+…?)(?:\?\S*)?"
)


def is_part_of(path: list[str], described: list[str]) -> bool:
    """Whether consecutive segments of a described path, are these, or parameters after the first."""
    return any(
        (described[start] == path[0] or path[0].startswith("{"))
        and all(one == other or "{" in other for one, other in zip(path, described[start:], strict=False))
        for start in range(len(described) - len(path) + 1)
    )


def test_document_paths_are_routes() -> None:
    source = "".join(path.read_text("utf-8") for path in (ROOT / "src/ccp/server/console").rglob("*.py"))
    console = [f"/console{each}" for each in re.findall(r"\.(?:page|action)\(\s*\"(/[^\"]+)", source)]
    described = [each.strip("/").split("/") for each in (*site.openapi_description()["paths"], *console)]
    wrong, found = [], 0
    for path in DOCUMENTS:
        for code in code_of(path) if path.name not in ("CONTRIBUTING.md", "life-of-a-request.md") else ():
            matched = _PATH.fullmatch(code.text) if code.language == "inline" else None
            if matched is None or matched[1] in ROUTES | FOREIGN:
                continue
            found += 1
            segments = matched[1].rstrip("…").strip("/").split("/")
            wrong += [] if any(is_part_of(segments, each) for each in described) else [(path.name, code.text)]
    assert wrong == []
    assert found > 80


def test_document_how_to_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the how-to pages, as printed: to connect a partner, with a new pool; else, with the sandbox.

    The blocks "Try it" run in `tests/end_to_end/test_how_tos.py`.
    """
    ccp_ok("sandbox", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.toml").write_text(f'database = "sqlite:///{tmp_path}/new.db"\n')
    ccp_ok("db", "upgrade", "--config", "new.toml")
    for name in ("emsp-root.pem", "oem-root.pem", "NEW.pem"):
        shutil.copy(sorted((tmp_path / "trust").rglob("*.pem"))[0], name)
    ran = []
    for page in ("connect-a-csms", "connect-an-emsp", "connect-an-oem", "move-a-fleet", "rotate"):
        config = "new.toml" if page.startswith("connect") else "ccp.toml"
        for code in code_of(DOCS / "how-to" / f"{page}.md"):
            if code.language == "bash":
                continue
            for words in calls_in(code.text, inline=code.language == "inline"):
                line = " ".join(words)
                if re.search(r"\b(?:ID|KEY_ID|TRACE_ID|PARTY_ID|SERVICE)\b|^trust remove", line):
                    continue  # The reader puts in a value that the page does not know.
                words = line.replace("NAME", "example-cpo").replace("ROLE", "emsp").split()
                ccp_ok(*words, "--config", config)
                ran.append(line)
    assert len(ran) >= 11, ran
