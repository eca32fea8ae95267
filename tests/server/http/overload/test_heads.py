"""Heads of requests that are shed without being parsed: only those that can be understood in one way."""

from __future__ import annotations

import httptools
import pytest

from ccp.server.http.overload import VEHICLE_REQUEST, read_head

PLAIN = b"Host: pool.example\r\nAuthorization: Bearer abc.def\r\nContent-Length: 12\r\n"


def test_head_that_is_plain_tells_its_length_and_whose_it_is() -> None:
    head = VEHICLE_REQUEST + PLAIN + b"\r\n"
    found = read_head(head)
    assert found is not None
    assert found.length == len(head) + 12
    assert found.authorization == b"Bearer abc.def"


@pytest.mark.parametrize(
    "extra", [b"Connection: keep-alive\r\n", b"Accept: */*\r\n", b"X-Forwarded-For: 192.0.2.1\r\n"]
)
def test_headers_that_are_usual_do_not_matter(extra: bytes) -> None:
    assert read_head(VEHICLE_REQUEST + extra + PLAIN + b"\r\n") is not None


@pytest.mark.parametrize(
    "fields",
    [
        b"Host: x\r\n",
        PLAIN + b"Content-Length: 12\r\n",
        PLAIN + b"content-length: 13\r\n",
        PLAIN + b"Content-Length : 13\r\n",
        PLAIN + b" Content-Length: 13\r\n",
        PLAIN + b"X: y\nContent-Length: 13\r\n",
        PLAIN + b"X: y\rContent-Length: 13\r\n",
        PLAIN + b"Transfer-Encoding: chunked\r\n",
        PLAIN + b"transfer-encoding: identity\r\n",
        PLAIN + b"Authorization: Bearer other\r\n",
        PLAIN + b"Expect: 100-continue\r\n",
        PLAIN + b"Connection: close\r\n",
        PLAIN + b"Connection: Upgrade\r\n",
        PLAIN + b"Upgrade: h2c\r\n",
        PLAIN + b"no colon\r\n",
        PLAIN + b": no name\r\n",
        b"Host: x\r\nContent-Length: -1\r\n",
        b"Host: x\r\nContent-Length: 1, 1\r\n",
        b"Host: x\r\nContent-Length: 0x10\r\n",
        b"Host: x\r\nContent-Length: 99999999999999999999\r\n",
    ],
)
def test_head_that_two_readers_understand_differently_is_left_to_the_parser(fields: bytes) -> None:
    assert read_head(VEHICLE_REQUEST + fields + b"\r\n") is None


@pytest.mark.parametrize("place", range(len(PLAIN)))
def test_head_with_any_byte_changed_is_read_as_the_parser_reads_it(place: int) -> None:
    for byte in b"\x00\t\n\r :,;ACchost0123456789-\x7f\xff":
        fields = PLAIN[:place] + bytes([byte]) + PLAIN[place + 1 :]
        head = VEHICLE_REQUEST + fields + b"\r\n"
        if head.find(b"\r\n\r\n") != len(head) - 4:
            continue
        found = read_head(head)
        if found is not None:
            assert parsed_length(head) in (None, found.length)


def parsed_length(head: bytes) -> int | None:
    """Where the parser sees the end of the message that begins with a head; None where it refuses it."""

    class Seen:
        ended = False

        def on_message_complete(self) -> None:
            self.ended = True

    seen = Seen()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(head)
        length = len(head)
        while not seen.ended:
            parser.feed_data(b"x")
            length += 1
            assert length < len(head) + 1_000_000
    except httptools.HttpParserError:
        return None
    return length
