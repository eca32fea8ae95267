"""The documentation site that a pool builds by itself: once for all workers, and never at the cost of requests."""

from __future__ import annotations

import asyncio
import gzip
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from ccp.cli.documentation import builder
from ccp.server.http import documentation_build
from ccp.server.http.documentation_site import SharedSite, SiteFile, SiteState
from ccp.server.http.routes import documentation
from ccp.server.runtime.background import BackgroundTasks
from ccp.server.settings import Settings
from ccp.testing.pki import PKI
from tests.captured_logs import captured_logs
from tests.cli.run import ccp_ok, environment
from tests.cli.served_sandbox import Sandbox, free_port, serving
from tests.waiting import wait_until
from tests.world import Pool, expired_car, start

FILES = {
    "index.html": SiteFile(gzip.compress(b"<h1>Front</h1>"), "text/html; charset=utf-8", '"a"', "default-src 'none'"),
    "big.json": SiteFile(gzip.compress(os.urandom(100_000)), "application/json", '"b"', "default-src 'none'"),
}


@pytest.fixture
def shared() -> SharedSite:
    return SharedSite.create()


# --- The file that workers share -------------------------------------------------------------------------------------


def test_shared_site_is_read_as_it_was_written_and_written_once(shared: SharedSite) -> None:
    assert shared.state() is SiteState.BUILDING
    shared.write(FILES)
    assert shared.state() is SiteState.READY
    shared.write({"index.html": FILES["index.html"]})
    assert shared.read() == FILES
    if sys.platform == "linux":
        assert "memfd" in os.readlink(f"/proc/self/fd/{shared.descriptor}"), "it needs no directory"


def _claim(shared: SharedSite, held: Any, go_on: Any) -> None:
    held.put(shared.claim())
    go_on.wait(30)


def test_shared_site_is_claimed_by_one_process_until_it_ends(shared: SharedSite) -> None:
    context: Any = multiprocessing.get_context("fork")
    held, go_on = context.Queue(), context.Event()
    other = context.Process(target=_claim, args=(shared, held, go_on))
    other.start()
    assert held.get(timeout=30)
    assert not shared.claim()
    other.kill()
    other.join()
    assert shared.claim()


# --- The process that builds -----------------------------------------------------------------------------------------


def build(shared: SharedSite) -> list[Any]:
    """Build to the end. Returns the log events."""
    with captured_logs(documentation_build) as log:
        asyncio.run(documentation_build.build(shared))
    return log


def test_build_that_fails_is_logged_with_what_to_do(shared: SharedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documentation_build, "_BUILDER", "ccp.cli.documentation.nothing")
    (event,) = build(shared)
    assert (event["event"], event["log_level"]) == ("documentation not built", "warning")
    assert "No module named" in event["reason"]
    assert "documentation_directory" in event["hint"]
    assert shared.state() is SiteState.FAILED
    assert build(shared) == [], "it is not tried again"


def test_build_without_a_process_is_logged(shared: SharedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nothing/python")
    (event,) = build(shared)
    assert event["reason"] == "The process cannot be started: No such file or directory."


def test_build_that_takes_too_long_is_ended(shared: SharedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documentation_build, "_TIMEOUT", 0.05)
    (event,) = build(shared)
    assert event["reason"] == "It took longer than 0.05 seconds."


def test_documentation_directory_that_is_unusable_at_a_later_start_serves_none(tmp_path: Path) -> None:
    """The first start refuses it; a worker that replaces another has vehicles to serve."""
    with captured_logs(documentation) as log:
        assert documentation.site_of(Settings(documentation_directory=tmp_path), may_build=True) is None
    (event,) = log
    assert (event["event"], event["log_level"]) == ("documentation not served", "error")
    assert "has no index.html" in event["reason"]


def test_build_that_is_cancelled_leaves_no_files(
    shared: SharedSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the pool stops."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    async def test() -> None:
        background = BackgroundTasks()
        task = background.spawn("documentation", documentation_build.build(shared))
        async with asyncio.timeout(30):
            while not os.listdir(tmp_path):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await background.close()
        assert task.cancelled()

    asyncio.run(test())
    assert list(tmp_path.iterdir()) == []
    assert shared.state() is SiteState.BUILDING, "another worker may build it"


def test_build_gets_no_setting_and_no_secret_of_the_pool(shared: SharedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    async def start_process(*command: str, **how: Any) -> None:
        seen.update(how["env"])
        raise OSError("not in this test")

    monkeypatch.setenv("CCP_PCP_WEBHOOK_SECRET", "secret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "secret")
    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_process)
    build(shared)
    assert "PATH" in seen
    assert "secret" not in seen.values()


def test_build_needs_the_extra_and_the_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert documentation_build.prepare(Settings(documentation=True)) is not None
    assert documentation_build.prepare(Settings(documentation=False)) is None
    assert documentation_build.prepare(Settings(documentation_directory=tmp_path)) is None
    monkeypatch.setattr(documentation_build, "_GENERATOR", "a_package_that_is_not_installed")
    assert documentation_build.prepare(Settings(documentation=True)) is None


def test_builder_says_in_one_line_why_there_is_no_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copied folder reports an error for each of its files."""
    missing = tmp_path / "missing"

    def copy(directory: Path) -> int:
        shutil.copytree(tmp_path, directory)
        return 0

    (tmp_path / "page.md").symlink_to(missing)
    monkeypatch.setattr(builder.site, "build", copy)
    with pytest.raises(SystemExit) as ended:
        builder.main(str(SharedSite.create().descriptor))
    reason = str(ended.value)
    assert reason.startswith("[Errno 2] No such file or directory")
    assert reason.endswith("The environment variable TMPDIR names the directory for temporary files.")
    assert reason.count(str(missing)) <= 1


# --- What /docs answers ----------------------------------------------------------------------------------------------


class Unattended(documentation.BuiltSite):
    """A site that no process builds."""

    def open(self, background: BackgroundTasks) -> None:
        pass


@contextmanager
def documented(pkis: dict[str, PKI], shared: SharedSite) -> Iterator[Pool]:
    with patch.object(documentation, "site_of", lambda *_, **__: Unattended(shared)), start(pkis) as pool:
        yield pool


def test_documentation_page_says_that_the_site_is_being_built(pkis: dict[str, PKI], shared: SharedSite) -> None:
    with documented(pkis, shared) as pool:
        answer = pool.http.get("/docs/reference/errors/path-not-found.html")
        assert (answer.status_code, answer.headers["retry-after"], answer.headers["refresh"]) == (503, "3", "3")
        assert "is being built" in answer.text
        assert answer.headers["x-error-code"] == "temporarily-unavailable"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        shared.write(FILES)
        assert pool.http.get("/docs/").text == "<h1>Front</h1>"
        for coding in ("identity", "gzip"):
            content = pool.http.get("/docs/big.json", headers={"Accept-Encoding": coding}).content
            assert content == gzip.decompress(FILES["big.json"].compressed)


def test_documentation_page_says_that_the_site_cannot_be_built(pkis: dict[str, PKI], shared: SharedSite) -> None:
    shared.fail()
    with documented(pkis, shared) as pool:
        answer = pool.http.get("/docs/")
        assert (answer.status_code, "refresh" in answer.headers) == (503, False)
        assert "could not be built" in answer.text
        assert "documentation not built" in answer.text
        assert pool.http.get("/health/ready").status_code == 200


def test_refusal_links_to_the_page_of_its_code(pkis: dict[str, PKI], shared: SharedSite, pool: Pool) -> None:
    with documented(pkis, shared) as linking:
        answer = linking.post(expired_car(linking.pki()))
        link = '</docs/reference/errors/provisioning-certificate-expired.html>; rel="help"'
        assert answer.headers["link"] == link
        assert (
            linking.http.get("/opnc/v1/ccp/nothing").headers["link"].endswith('errors/path-not-found.html>; rel="help"')
        )
        assert "link" not in linking.http.get("/health/live").headers
    assert "link" not in pool.http.get("/opnc/v1/ccp/nothing").headers, "a pool without documentation"


# --- A whole server --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_documentation_is_built_once_for_all_workers_even_if_the_builder_dies(tmp_path: Path) -> None:
    ccp_ok("sandbox", tmp_path / "DIR", "--port", free_port(), "--no-store")
    sandbox = Sandbox(tmp_path / "DIR")
    config = sandbox.directory / "ccp.toml"
    config.write_text(config.read_text() + "documentation = true\n")
    log, temporary = tmp_path / "log", tmp_path / "tmp"
    temporary.mkdir()
    arguments = ("--config", config, "--workers", 2)
    bare = environment()
    del bare["CCP_DOCUMENTATION"]
    with (
        patch.object(sys.modules[serving.__module__], "environment", lambda **more: bare | more),
        serving(sandbox.url, *arguments, log=log, temporary=temporary) as http,
    ):
        first = http.get("/docs/")
        assert (first.status_code, "is being built" in first.text) == (503, True)
        parent = next(pid for pid in children(os.getpid()) if str(config).encode() in _command(pid))
        wait_until(lambda: [pid for pid in children(parent) if children(pid)])
        worker = next(pid for pid in children(parent) if children(pid))
        for pid in (worker, *children(worker)):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: _status(http, "/docs/") == 200, timeout=120)
        refused = http.get("/opnc/v1/ccp/nothing")
        page = http.get(refused.headers["link"].partition(">")[0].removeprefix("<"))
        assert (page.status_code, "What to do" in page.text) == (200, True)
        assert http.get("/docs/nothing.html").status_code == 404
        assert http.get("/console/login").status_code == 200
        wait_until(lambda: "documentation built" in log.read_text())
    built = [line for line in log.read_text().splitlines() if re.search(r"documentation (not )?built", line)]
    assert ["documentation built" in line for line in built] == [True]
    assert "Traceback" not in log.read_text()
    assert [path.name for path in temporary.iterdir() if not path.name.startswith("ccp-docs-")] == []


def _status(http: Any, path: str) -> int:
    try:
        return int(http.get(path).status_code)
    except Exception:  # The worker of this connection was killed.
        return 0


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
