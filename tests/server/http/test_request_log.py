"""The log event of a request: 404 with path and address, probes at debug, an unreachable database."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.types import Receive, Scope, Send
from structlog.testing import CapturedCall, CapturingLogger

from ccp.server import logging
from ccp.server.audit.pseudonyms import Pseudonyms
from ccp.server.audit.refusals import AccessDenialRecorder
from ccp.server.http.middleware import tracing
from ccp.server.http.middleware.tracing import TraceMiddleware
from ccp.server.metrics import Metrics
from ccp.server.settings import Settings
from ccp.testing.pki import PKI
from tests.databases import Server
from tests.server.storage.made import sql
from tests.world import AT, SESSION, Pool, new_emaid, new_pcid, post_body, start


class EveryLevel(CapturingLogger):
    def is_enabled_for(self, level: int) -> bool:
        return True


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[CapturedCall]:
    logger = EveryLevel()
    monkeypatch.setattr(tracing, "_log", logger)
    return logger.calls


def event_of(log: list[CapturedCall], answer: httpx.Response) -> CapturedCall:
    (found,) = [entry for entry in log if entry.kwargs.get("trace_id") == answer.headers["X-Trace-Id"]]
    return found


# --- 404 -------------------------------------------------------------------------------------------------------------


def test_request_log_of_a_404_has_path_and_address(pool: Pool, log: list[CapturedCall]) -> None:
    line = event_of(log, pool.http.get("/opnc/v2/nothing", params={"token": "secret-1"})).kwargs
    assert (line["path"], line["address"], line["status"]) == ("/opnc/v2/nothing", "127.0.0.1", 404)
    assert "secret-1" not in str(line)


def test_request_log_of_an_unknown_contract_has_its_path_without_ids(pool: Pool, log: list[CapturedCall]) -> None:
    emaid, pcid = new_emaid(), new_pcid()
    line = event_of(log, pool.oem.get(f"/signedcontractdata/{emaid}/{pcid}")).kwargs
    assert line["status"] == 404
    assert line["path"].startswith("/opnc/v1/ccp/signedcontractdata/")
    assert str(emaid) not in str(line)
    assert str(pcid) not in str(line)


@pytest.mark.parametrize(
    ("asked", "shown"),
    [("/a%3Fclient_secret=secret-2", "/a"), ("/" + "x" * 13 + "/" + "ab." * 400, None), ("/%1b[31m%0Afoo", None)],
    ids=["encoded query", "long", "control characters"],
)
def test_request_log_path_is_bounded_and_has_no_query(
    pool: Pool, log: list[CapturedCall], asked: str, shown: str | None
) -> None:
    line = event_of(log, pool.http.get(asked)).kwargs
    assert "secret-2" not in str(line)
    assert len(line["path"]) <= 200
    assert shown is None or line["path"] == shown
    written = logging._as_json(None, "info", dict(line))
    assert written.isprintable()


def test_request_log_of_other_outcomes_has_no_path(pool: Pool, log: list[CapturedCall]) -> None:
    assert "path" not in event_of(log, pool.oem.get("/contractData/pcid/!")).kwargs


# --- Probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/metrics"])
def test_request_log_of_a_probe_is_debug(pool: Pool, log: list[CapturedCall], path: str) -> None:
    answer = pool.http.get(path)
    assert answer.status_code == 200
    assert event_of(log, answer).method_name == "debug"


def test_request_log_of_a_path_like_a_probe_is_info(pool: Pool, log: list[CapturedCall]) -> None:
    assert event_of(log, pool.http.get("/healthy")).method_name == "info"


# --- A database that is away -----------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def away(request: pytest.FixtureRequest, pkis: dict[str, PKI]) -> Iterator[tuple[Pool, dict[str, Any]]]:
    """A pool with a contract whose database then goes away."""
    if request.param == "sqlite":
        with start(pkis, opcp=True) as pool:
            prepared = prepare(pool)
            for (name,) in pool.sql("select name from sqlite_master where type = 'table' and name not like 'sqlite_%'"):
                pool.sql(f'alter table "{name}" rename to "{name}_away"')
            yield pool, prepared
        return
    server: Server = request.getfixturevalue("postgres")
    with start(pkis, opcp=True, database=server.database()) as pool:
        prepared = prepare(pool)
        server.kill()
        try:
            yield pool, prepared
        finally:
            server.start()


def prepare(pool: Pool) -> dict[str, Any]:
    for name in ("emsp", "cpo", "oem", "cps", "everything"):
        pool.token(name)
    car = pool.car()
    contract = pool.publish(car)
    return {"car": car, "contract": contract, "more": pool.contract(car).body}


def test_request_log_of_an_unreachable_database_has_its_own_outcome(
    away: tuple[Pool, dict[str, Any]], log: list[CapturedCall]
) -> None:
    pool, prepared = away
    car, contract = prepared["car"], prepared["contract"]
    body = post_body(car.request(SESSION, AT), str(car.namespace))
    root = pool.base_url
    calls: list[tuple[str, str, str, dict[str, Any]]] = [
        ("cps", "PUT", "/signedcontractdata", {"json": prepared["more"]}),
        ("cpo", "POST", "/signedcontractdata", {"json": body}),
        ("cpo", "POST", "/signedcontractdata", {"json": body, "headers": {"alwaysReturnEXI": "false"}}),
        ("emsp", "GET", f"/contractData/emaid/{contract.emaid}", {}),
        ("oem", "GET", f"/contractData/pcid/{car.pcid}", {}),
        ("oem", "GET", f"/signedcontractdata/{contract.emaid}/{car.pcid}", {}),
        ("oem", "POST", f"/signedcontractdata/{contract.emaid}/{car.pcid}/setdefault", {}),
        ("emsp", "DELETE", f"/signedcontractdata/{contract.emaid}", {}),
        ("oem", "GET", f"{root}/opnc/v1/event/endpoints", {}),
        ("everything", "GET", f"{root}/admin/v1/parties", {}),
        ("emsp", "GET", f"{root}/v1/ccp/lookupContract/{contract.emaid}", {}),
        ("oem", "GET", f"{root}/v1/ccp/signedContractData/{car.pcid}", {}),
        ("cpo", "GET", f"{root}/health", {}),
        ("cpo", "GET", f"{root}/health/ready", {}),
    ]
    for who, method, path, how in calls:
        answer = pool.client(who).request(method, path, **how)
        line = event_of(log, answer)
        place = (method, path, answer.status_code, answer.text, line)
        vehicle = (method, path) == ("POST", "/signedcontractdata") and "headers" not in how
        assert answer.status_code == (200 if vehicle else 503), place
        assert int(answer.headers["Retry-After"]) >= 1, place
        assert (line.kwargs["outcome"], line.method_name) == ("database_unavailable", "info"), place
    member = pool.world.member("emsp")
    answer = pool.http.post(
        "/oauth/token", data={"grant_type": "client_credentials", "client_id": "emsp", "client_secret": member.secret}
    )
    assert event_of(log, answer).kwargs["outcome"] in ("ok", "database_unavailable"), answer.text
    metrics = pool.http.get("/metrics").text
    assert 'outcome="database_unavailable"' in metrics
    assert 'outcome="crashed"' not in metrics


def test_request_log_of_a_read_only_database_has_its_own_outcome(
    pkis: dict[str, PKI], postgres: Server, log: list[CapturedCall]
) -> None:
    url = postgres.database()
    with start(pkis, database=url) as pool:
        prepared = prepare(pool)
        name = url.rpartition("/")[2].partition("?")[0]
        sql(url, f"alter database {name} set default_transaction_read_only = on")
        sql(url, "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() "
                 f"and datname = '{name}'")  # fmt: skip
        answer = pool.cps.put("/signedcontractdata", json=prepared["more"])
        assert (answer.status_code, int(answer.headers["Retry-After"]) >= 1) == (503, True)
        assert event_of(log, answer).kwargs["outcome"] == "database_unavailable"
        assert pool.ask(prepared["car"]), "vehicles are served"


# --- Standard error --------------------------------------------------------------------------------------------------

_PROGRAM = """
import structlog
from ccp.server import logging
from ccp.server.settings import Settings
logging.configure(Settings(log_format="{form}", log_level="debug"))
log = structlog.get_logger("x")
for level in ("debug", "info", "warning", "error"):
    getattr(log, level)("happened")
try:
    1 / 0
except ZeroDivisionError as exc:
    log.error("failed", exc_info=exc)
"""


def written(form: str, *, journal: bool) -> list[str]:
    """What a process writes to its standard error, which is a journal if it says so."""
    with tempfile.TemporaryFile() as file:
        status = os.fstat(file.fileno())
        named = f"{status.st_dev}:{status.st_ino}" if journal else f"{status.st_dev}:{status.st_ino + 1}"
        env = {**os.environ, "JOURNAL_STREAM": named}
        command = [sys.executable, "-c", _PROGRAM.format(form=form)]
        subprocess.run(command, stderr=file, env=env, check=True, cwd=Path(__file__).parents[3])
        file.seek(0)
        return io.TextIOWrapper(file).read().splitlines()


@pytest.mark.parametrize("form", ["json", "console"])
def test_log_in_the_journal_begins_each_line_with_its_priority(form: str) -> None:
    lines = written(form, journal=True)
    assert [line[:3] for line in lines[:5]] == ["<7>", "<6>", "<4>", "<3>", "<3>"]
    assert {line[:3] for line in lines[4:]} == {"<3>"}, "the lines of a traceback too"
    if form == "json":
        assert [json.loads(line[3:])["event"] for line in lines] == ["happened"] * 4 + ["failed"]
        assert all("timestamp" in json.loads(line[3:]) for line in lines)
    else:
        assert "T" not in lines[1].split("[")[0], "no time: the journal has its own"


@pytest.mark.parametrize("form", ["json", "console"])
def test_log_elsewhere_has_its_time_and_no_priority(form: str) -> None:
    lines = written(form, journal=False)
    assert not any(line.startswith("<") for line in lines)
    assert all("timestamp" in json.loads(line) for line in lines) if form == "json" else lines[0][:2] == "20"


# --- Requests without an answer --------------------------------------------------------------------------------------


def test_request_log_of_a_cancelled_request_is_not_ok(log: list[CapturedCall]) -> None:
    """A worker that ends cancels its requests, and then there is no status."""

    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async def unused(*_: object) -> Any:
        raise AssertionError

    async def run() -> None:
        metrics = Metrics()
        middleware = TraceMiddleware(never, Pseudonyms(Settings()), AccessDenialRecorder(cast(Any, None)), metrics)
        scope = {"type": "http", "method": "GET", "path": "/opnc/v1/event/endpoints", "raw_path": b"", "headers": []}
        task = asyncio.create_task(middleware(scope, unused, unused))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        text = metrics.render("text/plain")[0].decode()
        assert 'outcome="unanswered",status="0"' in text
        assert 'outcome="ok"' not in text

    asyncio.run(run())
    (line,) = log
    assert (line.kwargs["status"], line.kwargs["outcome"]) == (0, "unanswered")
