"""`make release-check`: what it finds in a state that cannot be released, and two builds with the same bytes."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.packaging.package_index import skip_or_fail

ROOT = Path(__file__).resolve().parents[2]
READ = ("pyproject.toml", "CHANGELOG.md", "docs/upgrading.md", "src/ccp/__init__.py")


@pytest.fixture(scope="module")
def release() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("release_script", ROOT / ".ci" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the files that the checks of version and notes read."""
    for name in READ:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    versions = "src/ccp/server/storage/migrations/versions"
    shutil.copytree(ROOT / versions, tmp_path / versions, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), "utf-8")


def test_release_check_accepts_this_state(release: ModuleType, copy: Path) -> None:
    assert list(release.version_problems(copy, None)) == []
    assert list(release.upgrade_note_problems(copy)) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("src/ccp/__init__.py", '= "0', '= "9', "src/ccp/__init__.py: the version is 9"),
        ("CHANGELOG.md", "## 0", "## 9", "CHANGELOG.md: the first section is not '## 0"),
        ("CHANGELOG.md", "(unreleased)", "(soon)", "has neither a date nor 'unreleased'"),
        ("pyproject.toml", 'version = "0', 'version = "v0', "the version v0.1.0 is not of the form X.Y.Z"),
    ],
)
def test_release_check_finds_versions_that_differ(
    release: ModuleType, copy: Path, name: str, old: str, new: str, problem: str
) -> None:
    change(copy / name, old, new)
    assert any(problem in found for found in release.version_problems(copy, None))


def test_release_check_of_a_tag_needs_a_dated_section(release: ModuleType, copy: Path) -> None:
    version = release.project(copy)["version"]
    assert list(release.version_problems(copy, f"v{version}")) == [f"CHANGELOG.md: {version} has no date"]
    change(copy / "CHANGELOG.md", "(unreleased)", "(2027-01-31)")
    assert list(release.version_problems(copy, f"v{version}")) == []
    assert list(release.version_problems(copy, "v9.9.9")) == [f"The tag v9.9.9 is not v{version}"]


def test_release_check_of_a_tag_refuses_addresses_that_are_placeholders(release: ModuleType, copy: Path) -> None:
    assert list(release.address_problems(copy, None)) == []
    found = list(release.address_problems(copy, "v0.1.0"))
    assert len(found) > len(release.project(copy)["urls"]), "those, and the one of links in the README"
    assert all("is a placeholder" in problem for problem in found)
    text = (copy / "pyproject.toml").read_text("utf-8").replace("opnc-ccp.example", "pool.operator.eu/example")
    (copy / "pyproject.toml").write_text(text, "utf-8")
    assert list(release.address_problems(copy, "v0.1.0")) == []


def test_release_check_needs_upgrade_notes_with_the_revision(release: ModuleType, copy: Path) -> None:
    versions = copy / "src/ccp/server/storage/migrations/versions"
    (versions / "0999_later.py").touch()
    assert [found.rpartition("name ")[2] for found in release.upgrade_note_problems(copy)] == ["'Schema revision 0999'"]
    change(copy / "docs/upgrading.md", "## To 0", "## To 9")
    assert "there is no section 'To 0" in next(release.upgrade_note_problems(copy))


@pytest.mark.parametrize(
    ("stated", "accepted"),
    [
        (["MIT"], True),
        (["Apache-2.0 OR BSD-3-Clause"], True),
        (["MIT AND PSF-2.0"], True),
        (["(Apache-2.0 OR GPL-2.0-only)"], True),
        (["MIT AND GPL-3.0-only"], False),
        (["GPL-3.0-or-later"], False),
        (["LicenseRef-Proprietary"], False),
        (["SSPL-1.0"], False),
        (["declared license of some-package"], False),
        ([], False),
    ],
)
def test_release_check_names_licences_that_are_not_permitted(
    release: ModuleType, stated: list[str], accepted: bool
) -> None:
    assert (list(release.licence_problems({"package 1": stated})) == []) is accepted


def test_release_check_reads_licences_of_a_bill_of_materials(release: ModuleType) -> None:
    bill = {
        "components": [
            {"name": "one", "version": "1", "licenses": [{"expression": "MIT OR Apache-2.0"}]},
            {"name": "two", "version": "2", "licenses": [{"license": {"id": "ISC"}}, {"license": {"name": "a\ntext"}}]},
            {"name": "none", "version": "3"},
            {"name": "opnc-ccp", "version": "0"},
        ]
    }
    assert release.licences_of(bill) == {"one 1": ["MIT OR Apache-2.0"], "two 2": ["ISC"], "none 3": []}


@pytest.mark.slow
def test_release_builds_have_the_same_bytes(release: ModuleType, tmp_path: Path) -> None:
    if subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, check=False).returncode:
        pytest.skip("There is no git repository, so nothing is committed.")
    dist = tmp_path / "dist"
    try:
        problems = list(release.build_problems(tmp_path / "work", dist))
    except RuntimeError as exc:
        skip_or_fail(str(exc))
    assert problems == []
    assert sorted(file.suffix for file in dist.iterdir()) == [".gz", ".whl"]
    assert list(release.content_problems(dist)) == []


def test_release_workflow_checks_before_it_publishes_with_attestations() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text("utf-8"))
    jobs = workflow["jobs"]
    commands = "\n".join(step.get("run", "") for step in jobs["build"]["steps"])
    assert "make release-check TAG=" in commands
    assert workflow["permissions"] == {}
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write", "attestations": "write"}
    uses = [step["uses"].split("@")[0] for step in jobs["publish"]["steps"] if "uses" in step]
    assert uses[-2:] == ["actions/attest-build-provenance", "pypa/gh-action-pypi-publish"]
    assert all("run" not in step for step in jobs["publish"]["steps"]), "the job with the rights runs no code of ours"


def test_release_workflow_attaches_the_bill_of_materials_to_the_release(tmp_path: Path) -> None:
    """The step is run as it stands, with a `gh` that notes how it is called."""
    attach = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text("utf-8"))["jobs"]["attach"]
    assert attach["needs"] == "publish", "a release that the index refused gets no files"
    assert attach["permissions"] == {"contents": "write"}
    (download, upload) = attach["steps"]
    assert download["with"] == {"name": "release", "path": "release"}
    (tmp_path / "bin").mkdir()
    gh = tmp_path / "bin" / "gh"
    gh.write_text('#!/bin/sh\nprintf "%s\\n" "$*" >> calls\n[ "$2" != view ] || [ -e exists ]\n')
    gh.chmod(0o755)
    (tmp_path / "release" / "packages").mkdir(parents=True)
    names = ["opnc_ccp-1.2.3.cdx.json", "SHA256SUMS", "packages/opnc_ccp-1.2.3.whl"]
    for name in names:
        (tmp_path / "release" / name).touch()

    def run() -> list[str]:
        (tmp_path / "calls").unlink(missing_ok=True)
        env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "GITHUB_REF_NAME": "v1.2.3"}
        subprocess.run(["bash", "-e", "-c", upload["run"]], cwd=tmp_path, env=env, check=True)
        return (tmp_path / "calls").read_text().splitlines()

    view, create, uploaded = run()
    assert view == "release view v1.2.3"
    assert create.startswith("release create v1.2.3 --verify-tag ")
    assert set(uploaded.split()) == {"release", "upload", "v1.2.3", "--clobber", *(f"release/{name}" for name in names)}
    (tmp_path / "exists").touch()
    assert [call.split()[1] for call in run()] == ["view", "upload"], "a maintainer made the release before"


def test_release_workflow_fits_its_schema() -> None:
    done = subprocess.run(
        ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", ROOT / ".github/workflows/publish.yml"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{ROOT / '.venv' / 'bin'}:/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
