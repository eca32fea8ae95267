"""Check that the committed state can be released, and build what a release consists of.

    python .ci/release.py                        # make release-check
    python .ci/release.py --tag v0.2.0           # for that tag: the changelog's section has to be dated

Writes into `dist/`: wheel, sdist, software bill of materials (CycloneDX), licences of the dependencies, checksums.
Wheel and sdist are built twice, from copies of the commit in folders of different names, with different time zones and
default permissions; the bytes have to be the same. Exit status 1 where something is found, one line for each finding.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from license_expression import ExpressionError, LicenseSymbol, Licensing

ROOT: Final = Path(__file__).resolve().parents[1]
NAME: Final = "opnc-ccp"

# Licences (SPDX) that permit to use a package in a service and to distribute it in a container image beside this one.
# The weak copyleft of MPL-2.0 concerns changes of the package itself.
PERMITTED: Final = frozenset(
    {
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0", "MPL-2.0"),
        *("PSF-2.0", "Python-2.0", "Unlicense", "Zlib"),
    }
)
EXPECTED_IN_WHEEL: Final = ("ccp/py.typed", "ccp/server/storage/migrations/versions/0001_first.py", "licenses/LICENSE")
EXAMPLE_ADDRESS: Final = re.compile(r"https?://(?:[\w.-]+\.)?(?:example(?:\.(?:com|net|org))?|invalid)(?=[:/'\"])")
FORBIDDEN_IN_WHEEL: Final = re.compile(r"^(?:tests|bench|docs|deploy|\.ci)/|\.db$|\.key$|\.pem$")


def version_problems(root: Path, tag: str | None) -> Iterator[str]:
    """Compare the version of the project, the package, the changelog and the tag."""
    version = project(root)["version"]
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"pyproject.toml: the version {version} is not of the form X.Y.Z"
    stated = re.search(r'^__version__ = "(.*)"$', (root / "src/ccp/__init__.py").read_text("utf-8"), re.MULTILINE)
    if stated is None or stated[1] != version:
        yield f"src/ccp/__init__.py: the version is {stated and stated[1]}, that of pyproject.toml {version}"
    sections = re.findall(r"^## (\S+) \((.+)\)$", (root / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    if not sections or sections[0][0] != version:
        yield f"CHANGELOG.md: the first section is not '## {version} (…)'"
    elif not re.fullmatch(r"unreleased|20\d\d-\d\d-\d\d", sections[0][1]):
        yield f"CHANGELOG.md: {version} has neither a date nor 'unreleased'"
    elif tag is not None and sections[0][1] == "unreleased":
        yield f"CHANGELOG.md: {version} has no date"
    if tag is not None and tag != f"v{version}":
        yield f"The tag {tag} is not v{version}"


def placeholders(root: Path) -> list[str]:
    """Lines of pyproject.toml with an address that is an example (RFC 2606): on the package's page it leads nowhere."""
    lines = enumerate((root / "pyproject.toml").read_text("utf-8").splitlines(), 1)
    return [f"line {number}: {found[0]}" for number, line in lines if (found := EXAMPLE_ADDRESS.search(line))]


def address_problems(root: Path, tag: str | None) -> Iterator[str]:
    """Refuse a tagged release with addresses that are examples."""
    if tag is not None:
        for found in placeholders(root):
            yield f"pyproject.toml, {found} is a placeholder; set the address of this publication"


def upgrade_note_problems(root: Path) -> Iterator[str]:
    """Look for the notes of this version in docs/upgrading.md, and in them for the schema revision that it needs."""
    version = project(root)["version"]
    pages = re.split(r"^## ", (root / "docs/upgrading.md").read_text("utf-8"), flags=re.MULTILINE)
    notes = next((page for page in pages if page.startswith(f"To {version}\n")), None)
    head = sorted((root / "src/ccp/server/storage/migrations/versions").glob("0*.py"))[-1].name[:4]
    if notes is None:
        yield f"docs/upgrading.md: there is no section 'To {version}'"
    elif f"Schema revision {head}" not in notes:
        yield f"docs/upgrading.md: the section 'To {version}' does not name 'Schema revision {head}'"


def project(root: Path) -> Mapping[str, Any]:
    """The project table of pyproject.toml."""
    table: Mapping[str, Any] = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command. Returns its output; raises RuntimeError with it on failure."""
    done = subprocess.run(  # noqa: S603
        [str(each) for each in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command[:4]))} …: {done.stdout[-2000:]}")
    return done.stdout


def committed(folder: Path) -> None:
    """Write the files of the last commit into a new folder."""
    folder.mkdir(parents=True)
    archive = folder.with_suffix(".tar")
    run("git", "archive", "--output", archive, "HEAD")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    archive.unlink()


def build(source: Path, output: Path, *, umask: int, zone: str) -> None:
    """Build sdist and wheel of a source folder. Times in them are that of the commit."""
    moment = run("git", "log", "-1", "--format=%ct").strip()
    code = f"import os, sys; os.umask({umask}); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    run(
        *(sys.executable, "-c", code, "-m", "build", "--outdir", output, source),
        SOURCE_DATE_EPOCH=moment,
        TZ=zone,
        PYTHONHASHSEED=str(umask),
    )


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder, hexadecimal."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def build_problems(work: Path, dist: Path) -> Iterator[str]:
    """Build twice and compare the files. Leaves them in dist."""
    for place, umask, zone in (("one", 0o022, "UTC"), ("a longer name/two", 0o077, "Asia/Kathmandu")):
        committed(work / place)
        build(work / place, work / f"dist-{umask}", umask=umask, zone=zone)
    first, second = checksums(work / f"dist-{0o022}"), checksums(work / f"dist-{0o077}")
    for name in sorted(first.keys() | second.keys()):
        if first.get(name) != second.get(name):
            yield f"{name}: two builds differ"
    shutil.copytree(work / f"dist-{0o022}", dist, dirs_exist_ok=True)


def content_problems(dist: Path) -> Iterator[str]:
    """Look into the wheel."""
    wheel = next(dist.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for expected in EXPECTED_IN_WHEEL:
        if not any(name.endswith(expected) for name in names):
            yield f"{wheel.name}: {expected} is missing"
    for name in names:
        if FORBIDDEN_IN_WHEEL.search(name):
            yield f"{wheel.name}: {name} does not belong into it"


def metadata_problems(dist: Path) -> Iterator[str]:
    """Let twine check the metadata as a package index would."""
    files = [*dist.glob("*.whl"), *dist.glob("*.tar.gz")]
    try:
        run(sys.executable, "-m", "twine", "check", "--strict", *files)
    except RuntimeError as exc:
        yield str(exc)


def material_problems(work: Path, dist: Path) -> Iterator[str]:
    """Install the wheel with all extras, and list what it brings: bill of materials, licences."""
    version = project(ROOT)["version"]
    python = work / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", work / "venv")
    wheel = next(dist.glob("*.whl"))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", f"{wheel}[all]")
    bill = dist / f"{NAME}-{version}.cdx.json"
    run(
        *(sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--validate"),
        *("--pyproject", ROOT / "pyproject.toml", "--output-file", bill, python),
    )
    licences = licences_of(json.loads(bill.read_text("utf-8")))
    lines = [f"{name}  {', '.join(found) or 'unknown'}" for name, found in sorted(licences.items())]
    (dist / f"{NAME}-{version}-licences.txt").write_text("\n".join(lines) + "\n", "utf-8")
    yield from licence_problems(licences)


def licences_of(bill: Mapping[str, Any]) -> dict[str, list[str]]:
    """Licences by 'name version' of a CycloneDX document; the project itself is not in it."""
    found: dict[str, list[str]] = {}
    for component in bill.get("components", ()):
        if component["name"] == NAME:
            continue
        stated = [
            each.get("expression") or each["license"].get("id") or each["license"].get("name", "")
            for each in component.get("licenses", ())
        ]
        names = {text for text in stated if text and "\n" not in text}  # Without whole texts of licences.
        found[f"{component['name']} {component['version']}"] = sorted(names)
    return found


def licence_problems(licences: Mapping[str, list[str]]) -> Iterator[str]:
    """Name packages without a permitted licence. Entries of a package repeat its terms in other words."""
    for package, stated in sorted(licences.items()):
        if not any(map(is_permitted, stated)):
            yield f"{package}: its licence is not in the list of permitted ones: {', '.join(stated) or 'unknown'}"


def is_permitted(expression: str) -> bool:
    """Whether an SPDX expression permits use under the listed licences: of OR one part has to, of AND each."""
    try:
        parsed = Licensing().parse(expression)
    except ExpressionError:
        return False

    def evaluate(part: Any) -> bool:
        if isinstance(part, LicenseSymbol):
            return part.key in PERMITTED
        combine = any if part.operator == " OR " else all
        return combine(map(evaluate, part.args))

    return parsed is not None and evaluate(parsed)


def upgrade_problems() -> Iterator[str]:
    """Upgrade databases of every earlier schema revision."""
    try:
        run(sys.executable, "-m", "pytest", "-q", "tests/server/storage/test_upgrades.py")
    except RuntimeError as exc:
        yield str(exc)


def report(what: str, problems: Callable[[], Iterable[str]]) -> bool:
    """Run one check and print its result. Returns whether it found nothing."""
    try:
        found = list(problems())
    except (RuntimeError, OSError, StopIteration) as exc:
        found = [str(exc) or "A file of the release is missing."]
    print(f"{'ok     ' if not found else 'PROBLEM'}  {what}", flush=True)
    for problem in found:
        print(f"         {problem}")
    return not found


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that the committed state can be released, and build it.")
    parser.add_argument("--tag", help="tag of the release, v and the version")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder for the results; it is emptied")
    options = parser.parse_args()
    dist: Path = options.output
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir(parents=True)
    if run("git", "status", "--porcelain").strip():
        print("note     The working tree has changes that are not committed; they are not part of what is built.")
    if options.tag is None:
        for found in placeholders(ROOT):
            print(f"note     pyproject.toml, {found} is a placeholder; with a tag the release is refused.")
    with tempfile.TemporaryDirectory(prefix="ccp-release-") as folder:
        work = Path(folder)
        fine = [
            report("version, changelog and tag agree", lambda: version_problems(ROOT, options.tag)),
            report("addresses of the project are real", lambda: address_problems(ROOT, options.tag)),
            report("upgrade notes are present", lambda: upgrade_note_problems(ROOT)),
            report("two builds of wheel and sdist have the same bytes", lambda: build_problems(work, dist)),
            report("the wheel has what it needs and nothing else", lambda: content_problems(dist)),
            report("twine accepts the metadata", lambda: metadata_problems(dist)),
            report("bill of materials, licences of dependencies", lambda: material_problems(work, dist)),
            report("databases of every earlier schema revision upgrade", upgrade_problems),
        ]
    sums = checksums(dist)
    (dist / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()), "utf-8")
    for name, digest in sums.items():
        print(f"{digest}  {name}")
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
