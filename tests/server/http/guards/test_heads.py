"""An invalid request gets an error response and a closed connection; a valid but unusual one is answered."""

from __future__ import annotations

import socket

import pytest
from structlog.testing import CapturedCall, CapturingLogger

from ccp.server.http import protocol
from ccp.server.http.routes.opnc import BASE
from tests.server.http.guards.raw import ask, connected
from tests.world import Pool

HEAD = "POST /oauth/token HTTP/1.1\r\nHost: pool\r\n"
NEXT = "GET /health HTTP/1.1\r\nHost: pool\r\n\r\n"
"""Bytes that another parser might read as a second request."""

SMUGGLED = {
    "two lengths that differ": HEAD + "Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
    "two lengths that agree": HEAD + "Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "a list of lengths": HEAD + "Content-Length: 0, 0\r\n\r\n",
    "a signed length": HEAD + "Content-Length: +0\r\n\r\n",
    "a negative length": HEAD + "Content-Length: -1\r\n\r\n",
    "a hexadecimal length": HEAD + "Content-Length: 0x0\r\n\r\n",
    "an empty length": HEAD + "Content-Length:\r\n\r\n",
    "a length beyond 64 bits": HEAD + "Content-Length: 99999999999999999999\r\n\r\n",
    "a length and chunks": HEAD + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": HEAD + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two transfer codings": HEAD + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked that is not the last": HEAD + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a space before the colon": HEAD + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded header": HEAD + "A: b\r\n c\r\n\r\n",
    "a header that begins with a space": HEAD + " A: b\r\n\r\n",
    "a header without a name": HEAD + ": b\r\n\r\n",
    "a header without a colon": HEAD + "A\r\n\r\n",
    "lines that end with LF": "GET /health HTTP/1.1\nHost: pool\n\n",
    "a header that ends with LF": HEAD + "A: b\nB: c\r\n\r\n",
    "a header that ends with CR": HEAD + "A: b\rB: c\r\n\r\n",
    "a NUL in a header": HEAD + "A: b\x00c\r\n\r\n",
    "a control character in a name": HEAD + "A\x01: b\r\n\r\n",
    "no host": "GET /health HTTP/1.1\r\n\r\n",
    "two hosts": "GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two hosts in one": "GET /health HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "a host with a path": "GET /health HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a method in lower case": "get /health HTTP/1.1\r\nHost: pool\r\n\r\n",
    "a version that is none": "GET /health HTTP/1.9\r\nHost: pool\r\n\r\n",
    "the preface of HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a path beyond ASCII": "GET /\xff HTTP/1.1\r\nHost: pool\r\n\r\n",
    "noise": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}
OTHERWISE = {
    "another transfer coding": (501, HEAD + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "an unknown transfer coding": (501, HEAD + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "another protocol's version": (505, "GET /health HTTP/2.0\r\nHost: pool\r\n\r\n"),
    "HTTP/0.9": (505, "GET /health\r\n\r\n"),
    "a tunnel": (501, "CONNECT pool:443 HTTP/1.1\r\nHost: pool\r\n\r\n"),
}


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[CapturedCall]:
    """What the servers of this process log of requests that never became one."""
    logger = CapturingLogger()
    monkeypatch.setattr(protocol, "_log", logger)
    return logger.calls


@pytest.mark.parametrize("name", [*SMUGGLED, *OTHERWISE])
def test_request_that_is_ambiguous_is_refused_and_nothing_after_it_is_read(
    pool: Pool, log: list[CapturedCall], name: str
) -> None:
    status, sent = OTHERWISE.get(name) or (400, SMUGGLED[name])
    (answer,) = ask(pool.base_url, sent + NEXT)
    sentence = answer.refused(status)
    assert sentence.endswith(".")
    assert answer.headers["connection"] == "close"
    (call,) = log
    assert call.args == ("request handled",)
    assert (call.kwargs["status"], call.kwargs["outcome"]) == (status, "refused")
    assert call.kwargs["trace_id"] == answer.json["traceId"]
    assert call.kwargs["address"] == "127.0.0.1"


@pytest.mark.parametrize(
    "chunks",
    [
        "zz\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "1 \r\na\r\n0\r\n\r\n",
        "2\r\nabc\r\n",
        "1\na\n0\n\n",
        "f" * 17 + "\r\n",
        "-1\r\n",
    ],
)
@pytest.mark.parametrize("pieces", [1, 2])
def test_body_with_bad_chunks_is_refused_when_it_is_read(pool: Pool, chunks: str, pieces: int) -> None:
    head = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n"
    with connected(pool.base_url) as raw:
        if pieces == 2:
            raw.send(head + "1\r\na\r\n")
            raw.send(chunks + NEXT)
        else:
            raw.send(head + chunks + NEXT)
        (answer,) = raw.answers()
    assert answer.refused(400).startswith("The request is not valid HTTP: ")
    assert answer.headers["connection"] == "close"


def test_response_without_need_of_the_body_is_sent_before_bad_chunks_close(pool: Pool) -> None:
    (answer,) = ask(
        pool.base_url, "POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + NEXT
    )
    assert answer.refused(404) == "There is nothing at this path."
    assert answer.headers["connection"] == "close"


def test_header_fields_of_a_trailer_are_no_headers(pool: Pool) -> None:
    body = "4\r\ngran\r\n0\r\n"
    token = pool.token("cps")
    head = f"PUT {BASE}/signedcontractdata HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    with connected(pool.base_url) as raw:
        raw.send(f"{head}\r\n{body}Authorization: Bearer {token}\r\n\r\n")
        answer = raw.answer()
        assert answer is not None
        answer.refused(401)
        raw.send(f"{head}Authorization: Bearer {token}\r\n\r\n{body}Authorization: none\r\n\r\n")
        answer = raw.answer()
        assert answer is not None
        assert answer.refused(400) == "The body is not JSON: a value is expected at line 1, column 1, but there is 'g'."


# --- Sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (414, f"GET /{'a' * 4096} HTTP/1.1\r\nHost: x\r\n\r\n"),
        (414, f"GET /?{'a' * 100_000} HTTP/1.1\r\nHost: x\r\n\r\n"),
        (431, "GET / HTTP/1.1\r\nHost: x\r\n" + "A: b\r\n" * 100 + "\r\n"),
        (431, f"GET / HTTP/1.1\r\nHost: x\r\nA: {'b' * 32_768}\r\n\r\n"),
        (431, f"GET / HTTP/1.1\r\nHost: x\r\n{'b' * 32_768}: a\r\n\r\n"),
        (431, "GET / HTTP/1.1\r\nHost: x\r\n" + f"A: {'b' * 1000}\r\n" * 33 + "\r\n"),
    ],
)
def test_head_has_a_size_and_a_number_of_headers(pool: Pool, status: int, sent: str) -> None:
    (answer,) = ask(pool.base_url, sent)
    assert answer.refused(status)
    assert answer.headers["connection"] == "close"


def test_head_without_an_end_is_not_kept(pool: Pool) -> None:
    with connected(pool.base_url) as raw:
        raw.send("GET / HTTP/1.1\r\nHost: x\r\nA: ")
        sent = 0
        with pytest.raises(OSError):  # noqa: PT012  the server stops reading
            raw.socket.settimeout(5)
            while sent < 512 << 20:
                sent += raw.socket.send(b"b" * 65_536)
    assert sent < 128 << 20, "what is not read waits in the buffers of the system"


def test_head_at_the_limit_is_answered(pool: Pool) -> None:
    with connected(pool.base_url) as raw:
        for sent in (
            f"GET /{'a' * 4095} HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\n" + "A: b\r\n" * 99 + "\r\n",
            f"GET / HTTP/1.1\r\nHost: x\r\nA: {'b' * 32_000}\r\n\r\n",
        ):
            raw.send(sent)
            answer = raw.answer()
            assert answer is not None
            assert answer.refused(404) == "There is nothing at this path."


def test_body_that_is_announced_too_large_is_refused_before_it_is_sent(pool: Pool) -> None:
    largest = pool.settings.max_body
    token = pool.token("cps")
    head = f"PUT {BASE}/signedcontractdata HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    with connected(pool.base_url) as raw:
        raw.send(f"{head}Expect: 100-continue\r\nContent-Length: {largest + 1}\r\n\r\n")
        (answer,) = raw.answers()
    assert answer.refused(413) == f"The body is larger than {largest} bytes."
    assert answer.headers["connection"] == "close", "the server does not know whether the body follows"


@pytest.mark.parametrize("chunked", [False, True])
def test_body_that_is_a_bit_too_large_costs_the_request_and_not_the_connection(pool: Pool, chunked: bool) -> None:
    largest = pool.settings.max_body
    token = pool.token("cps")
    head = f"PUT {BASE}/signedcontractdata HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    body = b"x" * (largest + 1)
    with connected(pool.base_url) as raw:
        if chunked:
            raw.send(f"{head}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n")
            raw.send(body + b"\r\n0\r\n\r\n")
        else:
            raw.send(f"{head}Content-Length: {len(body)}\r\n\r\n")
            raw.send(body)
        raw.send(NEXT)
        first, second = raw.answer(), raw.answer()
    assert first is not None
    assert first.refused(413) == f"The body is larger than {largest} bytes."
    assert second is not None
    assert second.json == {"status": "ok"}


@pytest.mark.parametrize("path", [f"{BASE}/signedcontractdata", "/nowhere", "/oauth/token"])
def test_body_without_an_end_is_not_read_for_ever(pool: Pool, path: str) -> None:
    with connected(pool.base_url) as raw:
        raw.send(f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        raw.socket.settimeout(5)
        sent = 0
        with pytest.raises(OSError):  # noqa: PT012
            while sent < 512 << 20:
                sent += raw.socket.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
    assert sent < 128 << 20, "what is not read waits in the buffers of the system"


def test_body_in_chunks_of_one_octet_is_not_read_for_ever(pool: Pool) -> None:
    sent = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode() + b"1\r\nx\r\n" * 200_000
    with connected(pool.base_url) as raw:
        try:
            raw.send(sent)
        except OSError:
            return  # The answer may be lost with the connection: more than is ever taken was sent.
        (answer,) = raw.answers()
    assert answer.refused(413)


# --- What is odd and right -------------------------------------------------------------------------------------------


def test_client_that_expects_100_continue_gets_it(pool: Pool) -> None:
    body = "grant_type=password&client_id=a&client_secret=b"
    with connected(pool.base_url) as raw:
        raw.send(f"{HEAD}Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n")
        first = raw.answer()
        assert first is not None
        assert first.status == 100
        raw.send(body)
        second = raw.answer()
        assert second is not None
        assert second.json["error"] == "unsupported_grant_type"
        raw.send(NEXT)
        third = raw.answer()
        assert third is not None
        assert third.status == 200


def test_client_of_http_1_0_is_answered_and_the_connection_ends(pool: Pool) -> None:
    for sent in ("GET /health HTTP/1.0\r\n\r\n", "GET /health HTTP/1.0\r\nHost: x\r\nExpect: 100-continue\r\n\r\n"):
        (answer,) = ask(pool.base_url, sent)
        assert (answer.status, answer.json) == (200, {"status": "ok"})


def test_head_that_wishes_another_protocol_is_read_even_with_a_body(pool: Pool) -> None:
    """As the HTTP client of Java sends its first request to a server without TLS."""
    body = "grant_type=password&client_id=a&client_secret=b"
    wish = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA\r\n"
    with connected(pool.base_url) as raw:
        raw.send(f"{HEAD}{wish}Content-Length: {len(body)}\r\n\r\n")
        raw.send(body)
        answer = raw.answer()
        assert answer is not None
        assert answer.json["error"] == "unsupported_grant_type"
        raw.send(f"GET /health HTTP/1.1\r\nHost: x\r\n{wish}\r\n" + NEXT)
        for _ in range(2):
            answer = raw.answer()
            assert answer is not None
            assert answer.status == 200


def test_head_with_an_absolute_target_is_read_for_its_path(pool: Pool) -> None:
    with connected(pool.base_url) as raw:
        for path in ("/health", ""):
            raw.send(f"GET http://pool.example{path} HTTP/1.1\r\nHost: x\r\n\r\n")
        first, second = raw.answer(), raw.answer()
    assert first is not None
    assert first.status == 200
    assert second is not None
    assert second.status == 404


def test_requests_that_are_sent_ahead_are_answered_in_their_order(pool: Pool) -> None:
    paths = ["/health", "/nowhere", "/openapi.json"]
    with connected(pool.base_url) as raw:
        raw.send("".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths * 3))
        statuses = [answer.status for _ in paths * 3 if (answer := raw.answer()) is not None]
    assert statuses == [200, 404, 200] * 3


def test_requests_with_large_bodies_that_are_sent_ahead_are_answered(pool: Pool) -> None:
    body = "x" * 120_000
    request = f"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    with connected(pool.base_url) as raw:
        raw.send(request * 4)
        assert [answer.status for _ in range(4) if (answer := raw.answer()) is not None] == [404] * 4


def test_input_that_is_invalid_after_valid_requests_is_answered_after_them(pool: Pool) -> None:
    answers = ask(pool.base_url, NEXT + "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n" + "nonsense\r\n\r\n" + NEXT)
    assert [answer.status for answer in answers] == [200, 404, 400]
    assert answers[-1].refused(400)


def test_requests_behind_one_that_ends_the_connection_are_not_answered(pool: Pool) -> None:
    (answer,) = ask(pool.base_url, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + NEXT)
    assert answer.status == 200


def test_requests_that_are_pipelined_are_limited(pool: Pool) -> None:
    answers = ask(pool.base_url, NEXT * 10_000)
    assert len(answers) == 17
    assert [answer.status for answer in answers[:-1]] == [200] * 16
    assert answers[-1].headers["connection"] == "close"


def test_connection_that_ends_in_the_middle_harms_no_other_request(pool: Pool) -> None:
    for sent in (f"{HEAD}Content-Length: 100\r\n\r\nabc", "GET / HT", ""):
        with connected(pool.base_url) as raw:
            raw.send(sent)
            raw.socket.shutdown(socket.SHUT_WR)
            assert raw.answers() == []
    assert pool.http.get("/health").status_code == 200
