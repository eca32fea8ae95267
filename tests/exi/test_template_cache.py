"""The template cache decodes exactly what the decoding loop decodes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ccp.exi import EXIError, ParsedMessage, codec, encode, parse
from ccp.exi.template_cache import _MAX_CACHED_BYTES, _MAX_TEMPLATES, _MAX_TEMPLATES_OF_LENGTH, TemplateCache
from tests.exi.messages import KINDS, messages
from tests.exi.samples import EXAMPLE, REQUEST


def uncached(data: bytes, monkeypatch: pytest.MonkeyPatch) -> ParsedMessage | str:
    """The result with an empty cache."""
    with monkeypatch.context() as patch:
        patch.setattr(codec, "_TEMPLATES", TemplateCache())
        return outcome(data)


def outcome(data: bytes) -> ParsedMessage | str:
    try:
        return parse(data)
    except EXIError as exc:
        return str(exc)


def with_other_binaries(value: Any, rng: random.Random) -> Any:
    """The same message with other binary values of the same lengths."""
    if type(value) is bytes:
        return rng.randbytes(len(value))
    if not isinstance(value, tuple):
        return value
    return tuple.__new__(type(value), [with_other_binaries(item, rng) for item in value])


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_TEMPLATES", TemplateCache())


@pytest.mark.parametrize("kind", KINDS)
def test_template_cache_decodes_a_similar_message_like_the_loop(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(f"cache of {kind}")
    known = 0
    for message in messages(kind, 150):
        parse(encode(message))
        other = encode(with_other_binaries(message, rng))
        known += codec._TEMPLATES.find(other) is not None
        assert outcome(other) == uncached(other, monkeypatch)
    assert known > 75, "most match: all but those with empty values, and those that are too long"


@pytest.mark.parametrize("kind", KINDS)
def test_template_cache_compares_every_bit_outside_of_binary_values(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(f"flips in {kind}")
    for message in messages(kind, 20):
        data = encode(message)
        parse(data)
        for _ in range(60):
            # Structure is found at the beginning and between values, so half of the flips are near the start.
            bit = rng.randrange(rng.choice((8 * len(data), min(8 * len(data), 800))))
            changed = bytearray(data)
            changed[bit >> 3] ^= 128 >> (bit & 7)
            assert outcome(bytes(changed)) == uncached(bytes(changed), monkeypatch)


@pytest.mark.parametrize("data", [encode(REQUEST), EXAMPLE], ids=["request", "response"])
def test_template_cache_detects_every_changed_bit_of_a_message(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    parse(data)
    for bit in range(0, 8 * len(data), 7):
        changed = bytearray(data)
        changed[bit >> 3] ^= 128 >> (bit & 7)
        assert outcome(bytes(changed)) == uncached(bytes(changed), monkeypatch)


def test_template_cache_matches_no_message_of_another_length(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(REQUEST)
    parse(data)
    for other in (data + b"\0", data[:-1], data + b"\1"):
        assert outcome(other) == uncached(other, monkeypatch)


def test_template_cache_is_bounded() -> None:
    cache = codec._TEMPLATES
    for seed in range(3 * _MAX_TEMPLATES):
        for each in messages(KINDS[seed % len(KINDS)], 1, seed):
            parse(encode(each))
    kept = cache._by_length
    assert 0 < sum(map(len, kept.values())) == cache._count <= _MAX_TEMPLATES
    assert max(map(len, kept.values())) <= _MAX_TEMPLATES_OF_LENGTH
    assert max(kept) <= _MAX_CACHED_BYTES
