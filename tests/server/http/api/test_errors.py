"""The shape of error answers, and what HTTP asks of a server besides."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import CapturedCall, CapturingLogger

from ccp.server.audit.pseudonyms import Pseudonyms
from ccp.server.audit.refusals import AccessDenialRecorder
from ccp.server.http.middleware import tracing as trace
from ccp.server.http.routes.opnc import BASE
from ccp.server.metrics import Metrics
from ccp.server.settings import Settings
from ccp.server.storage import connect
from ccp.testing.pki import PKI
from tests.server.http.api.answers import sentences
from tests.world import Pool, start

E, P = "DEEXAE00000001", "WEX0ERRORS0000000"
ALLOWED = {
    f"/contractData/emaid/{E}": {"GET", "HEAD"},
    f"/contractData/pcid/{P}": {"GET", "HEAD"},
    "/signedcontractdata": {"POST", "PUT"},
    f"/signedcontractdata/{E}": {"DELETE"},
    f"/signedcontractdata/{E}/{P}": {"GET", "HEAD"},
    f"/signedcontractdata/{E}/{P}/setdefault": {"POST"},
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", ALLOWED)
def test_method_that_a_path_does_not_know_is_405_and_says_which_it_knows(pool: Pool, path: str, method: str) -> None:
    if method in ALLOWED[path]:
        return
    answer = pool.client("everything").request(method, path)
    assert {name.strip() for name in answer.headers["allow"].split(",")} == ALLOWED[path]
    if method == "HEAD":
        assert (answer.status_code, answer.content) == (405, b"")
    else:
        assert sentences(answer, 405)[0].startswith("Method not allowed; use ")


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/contractData", "/contractData/", "/contractData/emaid", "/contractData/emaid/"),
        *("//signedcontractdata", f"/signedcontractdata//{P}", f"/signedcontractdata/{E}/{P}/default"),
        *("/../../etc/passwd", "/%2e%2e/%2e%2e"),
    ],
)
def test_error_for_an_unknown_path_is_404_without_a_redirect(pool: Pool, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = pool.http.request(method, BASE + path, headers={"Authorization": f"Bearer {pool.token('everything')}"})
        assert sentences(answer, 404) == ["There is nothing at this path."]


@pytest.mark.parametrize("path", ["/", "/opnc", "/opnc/v2/ccp/signedcontractdata", "/robots.txt", "/%00", "/%ff"])
def test_error_for_an_unknown_path_outside_of_the_api_has_the_same_shape(pool: Pool, path: str) -> None:
    sentences(pool.http.get(path), 404)


def test_answers_all_have_a_trace_id_of_their_own_and_headers_for_safety(pool: Pool) -> None:
    car = pool.car()
    pool.publish(car)
    answers = [
        pool.post(car),
        pool.oem.get(f"/contractData/pcid/{car.pcid}"),
        pool.post(pool.car()),
        pool.http.get("/"),
    ]
    for answer in answers:
        uuid.UUID(answer.headers["x-trace-id"])
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "strict-transport-security" not in answer.headers, "this is no TLS"
        assert "server" not in answer.headers
    assert len({answer.headers["x-trace-id"] for answer in answers}) == len(answers)


def test_trace_id_is_the_pools_own_and_not_the_callers(pool: Pool) -> None:
    answer = pool.http.get("/", headers={"X-Trace-Id": "mine"})
    assert answer.headers["x-trace-id"] != "mine"
    sentences(answer, 404)


def test_message_is_there_once_only(pool: Pool) -> None:
    answer = pool.client("everything").put("/signedcontractdata", content=b"[" * 5000)
    assert len(sentences(answer, 400)) == 1


def test_description_is_there_and_no_page_that_loads_scripts_for_it(pool: Pool) -> None:
    assert pool.http.get("/openapi.json").json()["openapi"].startswith("3.")
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect"):
        sentences(pool.http.get(path), 404)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"[" * 250_000, "The body has more than 12000 members and elements."),
        (b'{"a":' * 50_000, "The body has more than 12000 members and elements."),
        (b"{%s}" % b",".join(b'"a%x":0' % number for number in range(25_000)), "The body has more than 12000 members"),
        (b'{"emaid":[%s]}' % b",".join([b"0"] * 100_000), "The body has more than 12000 members and elements."),
        (b"[" * 12_000, "The body is not JSON: it is nested too deeply."),
        (b'{"emaid":%s%s}' % (b"[" * 5000, b"]" * 5000), "The body is not JSON: it is nested too deeply."),
        (b'{"emaid":"%s"}' % (b"\\u0041" * 40_000), "emaid : must match"),
        (b'{"emaid":%s}' % (b"9" * 200_000), "The body is not JSON: a number in it is too long."),
    ],
)
def test_body_of_many_parts_or_levels_is_refused_at_once(pool: Pool, body: bytes, sentence: str) -> None:
    client = pool.client("everything")
    client.put("/signedcontractdata", content=b"{}")
    took = []
    for _ in range(3):
        began = time.perf_counter()
        answer = client.put("/signedcontractdata", content=body)
        took.append(time.perf_counter() - began)
        assert any(each.startswith(sentence) for each in sentences(answer, 400)), answer.text
    assert min(took) < 0.1


def test_metadata_full_of_commas_is_no_body_of_many_parts(pool: Pool) -> None:
    pool.publish(pool.car(), body={"metaData": "{[,]}" * 2000, "unknown": "x" * 30_000})


def test_requests_go_over_one_connection(pool: Pool) -> None:
    """Responses are framed correctly, also those to requests whose body the server did not read."""
    for _ in range(3):
        assert pool.client(None).put("/signedcontractdata", content=b"x" * 5000).status_code == 401
        assert pool.client("everything").post("/nowhere", content=b"x" * 5000).status_code == 404
        assert pool.client("everything").get(f"/contractData/pcid/{P}").status_code == 403


def test_body_is_read_whatever_its_content_type_says(pool: Pool) -> None:
    contract = pool.contract(pool.car())
    for kind in ("application/json; charset=utf-8", "text/plain", "application/octet-stream"):
        answer = pool.cps.put(
            "/signedcontractdata", content=json.dumps(contract.body).encode(), headers={"Content-Type": kind}
        )
        assert answer.status_code == 201


def test_client_that_hangs_up_in_the_middle_of_its_body_harms_nobody(pool: Pool) -> None:
    address = ("127.0.0.1", int(pool.base_url.rsplit(":", 1)[1]))
    head = (
        f"PUT {BASE}/signedcontractdata HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {pool.token('cps')}\r\n"
        "Content-Length: 1000\r\n\r\n{"
    )
    for _ in range(3):
        with closing(socket.create_connection(address, timeout=5)) as connection:
            connection.sendall(head.encode())
    pool.publish(pool.car())


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[CapturedCall]:
    """What the pools of this process log of requests."""
    logger = CapturingLogger()
    monkeypatch.setattr(trace, "_log", logger)
    return logger.calls


@pytest.fixture
def broken(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool that a test may break."""
    with start({"iso2": pkis["iso2"]}, log_level="warning") as running:
        yield running


def test_error_of_ours_is_500_in_the_same_shape_and_is_in_the_log(broken: Pool, log: list[CapturedCall]) -> None:
    car = broken.car()
    contract = broken.publish(car)
    for party in ("emsp", "oem", "cpo"):
        broken.token(party)
    # What the code does not expect: a serial number that is no number.
    broken.sql("update contract set root_serial = 'not a number'")
    answers = [
        broken.emsp.get(f"/contractData/emaid/{contract.emaid}"),
        broken.oem.get(f"/contractData/pcid/{car.pcid}"),
        broken.post(car),
    ]
    deadline = time.monotonic() + 30  # The line is written after the answer.
    traces = {answer.headers["x-trace-id"] for answer in answers}
    while not traces <= {call.kwargs.get("trace_id") for call in log} and time.monotonic() < deadline:
        time.sleep(0.01)
    lines = {call.kwargs["trace_id"]: call.kwargs for call in log if call.kwargs.get("trace_id") in traces}
    for answer in answers:
        assert sentences(answer, 500) == ["Something went wrong here; the trace id finds it in the log."]
        line = lines[answer.json()["traceId"]]
        assert line["outcome"] == "crashed"
        assert isinstance(line.pop("exc_info"), ValueError)
        assert contract.emaid not in str(line)
        assert car.pcid not in str(line)
    assert broken.publish(broken.car())


def test_database_that_does_not_answer_is_503_and_says_when_to_try_again(broken: Pool) -> None:
    car = broken.car()
    contract, request = broken.contract(car), broken.post(car)
    assert request.status_code == 200
    broken.sql("alter table emaid_claim rename to elsewhere")
    broken.sql("alter table contract rename to elsewhere_too")
    for answer in (
        broken.emsp.get(f"/contractData/emaid/{E}"),
        broken.oem.get(f"/contractData/pcid/{P}"),
        broken.post(car, headers={"alwaysReturnEXI": "false"}),
        broken.cps.put("/signedcontractdata", json=contract.body),
        broken.oem.get(f"/signedcontractdata/{E}/{P}"),
        broken.oem.post(f"/signedcontractdata/{E}/{P}/setdefault"),
        broken.emsp.delete(f"/signedcontractdata/{E}"),
    ):
        (sentence,) = sentences(answer, 503)
        assert sentence.startswith("The database cannot write now") or sentence.startswith("The database does not")
        assert int(answer.headers["retry-after"]) > 0
    assert broken.http.get("/health").status_code == 200


def test_error_by_a_panic_of_a_library_is_a_500_with_a_line_in_the_log(log: list[CapturedCall]) -> None:
    """PyO3 raises PanicException, which is no Exception, where Rust code panics."""
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})("index out of bounds")

    async def panics(scope: Scope, receive: Receive, send: Send) -> None:
        raise panic

    async def receive() -> Message:
        raise AssertionError("there is no body")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    settings = Settings(base_url="http://pool.example")
    tracing = trace.TraceMiddleware(
        panics, Pseudonyms(settings), AccessDenialRecorder(connect(settings.database)), Metrics()
    )
    asyncio.run(tracing({"type": "http", "method": "GET", "path": "/x", "headers": []}, receive, send))
    assert sent[0]["status"] == 500
    (line,) = (call.kwargs for call in log if call.kwargs.get("outcome") == "crashed")
    assert line["exc_info"] is panic
