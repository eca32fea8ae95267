"""What is read by the outline of a message that was read before is what the reading loop reads."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ccp.exi import EXIError, ParsedMessage, codec, encode, parse
from ccp.exi.template_cache import _ALIKE, _LONGEST, _MOST, TemplateCache
from tests.exi.messages import KINDS, messages
from tests.exi.test_codec import EXAMPLE, REQUEST


def anew(octets: bytes, monkeypatch: pytest.MonkeyPatch) -> ParsedMessage | str:
    """What the loop says, with nothing remembered."""
    with monkeypatch.context() as patch:
        patch.setattr(codec, "_OUTLINES", TemplateCache())
        return told(octets)


def told(octets: bytes) -> ParsedMessage | str:
    try:
        return parse(octets)
    except EXIError as exc:
        return str(exc)


def with_other_octets(value: Any, rng: random.Random) -> Any:
    """The same message with other binary values of the same lengths."""
    if type(value) is bytes:
        return rng.randbytes(len(value))
    if not isinstance(value, tuple):
        return value
    return tuple.__new__(type(value), [with_other_octets(item, rng) for item in value])


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_OUTLINES", TemplateCache())


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_like_one_before_is_read_as_the_loop_reads_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(f"outlines of {kind}")
    known = 0
    for message in messages(kind, 150):
        parse(encode(message))
        other = encode(with_other_octets(message, rng))
        known += codec._OUTLINES.find(other) is not None
        assert told(other) == anew(other, monkeypatch)
    assert known > 75, "most are recognised: those without values that are empty or messages that are too long"


@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_outside_of_the_values_is_passed_over(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(f"flips in {kind}")
    for message in messages(kind, 20):
        octets = encode(message)
        parse(octets)
        for _ in range(60):
            # Structure is found at the beginning and between values, so half of the flips are near the start.
            bit = rng.randrange(rng.choice((8 * len(octets), min(8 * len(octets), 800))))
            changed = bytearray(octets)
            changed[bit >> 3] ^= 128 >> (bit & 7)
            assert told(bytes(changed)) == anew(bytes(changed), monkeypatch)


@pytest.mark.parametrize("octets", [encode(REQUEST), EXAMPLE], ids=["request", "response"])
def test_a_bit_of_a_message_that_changes_is_seen_or_in_a_value(octets: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    parse(octets)
    for bit in range(0, 8 * len(octets), 7):
        changed = bytearray(octets)
        changed[bit >> 3] ^= 128 >> (bit & 7)
        assert told(bytes(changed)) == anew(bytes(changed), monkeypatch)


def test_another_length_is_another_message(monkeypatch: pytest.MonkeyPatch) -> None:
    octets = encode(REQUEST)
    parse(octets)
    for other in (octets + b"\0", octets[:-1], octets + b"\1"):
        assert told(other) == anew(other, monkeypatch)


def test_what_is_remembered_is_bounded() -> None:
    outlines = codec._OUTLINES
    for seed in range(3 * _MOST):
        for each in messages(KINDS[seed % len(KINDS)], 1, seed):
            parse(encode(each))
    kept = outlines._of_length
    assert 0 < sum(map(len, kept.values())) == outlines._count <= _MOST
    assert max(map(len, kept.values())) <= _ALIKE
    assert max(kept) <= _LONGEST
