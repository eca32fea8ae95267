"""Parsing and verification of tokens and key sets: any input gives a token or TokenError."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccp.server.access.jose import MalformedToken, TokenError, UnknownKey, parse_compact, parse_jwk_set, verify
from tests.server.access.tokens.issuer import encoded, key, key_set, signed

HEADER = encoded(b'{"alg":"ES256","kid":"1"}')


@pytest.mark.parametrize(
    "token",
    [
        "", ".", "..", "...", "a.b.c", "a.b.c.d.e", "\u00e9.\u00e9.\u00e9", "\ud800.a.b", f"{HEADER}.e30",
        f"{HEADER}.W10.AA", f"{HEADER}.bnVsbA.AA", f"{HEADER}.MQ.AA", f"{HEADER}.!!.AA", f"{HEADER}=.e30.AA",
        "W10.e30.AA", "bnVsbA.e30.AA",
        f"{encoded(json.dumps(['alg']).encode())}.e30.AA",
        f"{encoded(b'[' * 3000)}.e30.AA",
        f"{HEADER}.{encoded(b'[' * 12_000)}.AA",
        f"{HEADER}.{encoded(b'{' + b' ' * 20_000 + b'}')}.AA",
        f"{encoded(b' ' * 5000)}.e30.AA",
        f"{HEADER}.e30.{'A' * 5000}",
        f"{encoded(json.dumps({'alg': 1}).encode())}.e30.AA",
        f"{encoded(json.dumps({'alg': 'ES256', 'kid': 1}).encode())}.e30.AA",
        f"{encoded(json.dumps({'alg': 'ES256', 'typ': None}).encode())}.e30.AA",
        f"{encoded(json.dumps({'kid': '1'}).encode())}.e30.AA",
        f"{HEADER}.{encoded(b'{}{}')}.AA",
        f"{HEADER}.{encoded(bytes([0xFF]))}.AA",
    ],
)  # fmt: skip
def test_token_that_is_invalid_is_malformed(token: str) -> None:
    began = time.monotonic()
    with pytest.raises(MalformedToken):
        parse_compact(token)
    assert time.monotonic() - began < 0.5


@given(st.text() | st.binary().map(encoded).map(lambda part: f"{HEADER}.{part}.AA"))
def test_token_of_any_text_is_read_or_malformed(text: str) -> None:
    with suppress(MalformedToken):
        parse_compact(text)


@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "x"]), st.none() | st.booleans()
                       | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=3)))  # fmt: skip
def test_header_of_any_kind_is_refused_in_order_where_the_key_is_not_known(header: dict[str, object]) -> None:
    token = f"{encoded(json.dumps(header).encode())}.e30.AA"
    with pytest.raises(TokenError):
        verify(parse_compact(token), [], ("ES256",))


def test_token_without_kid_is_not_guessed_at_where_several_keys_fit() -> None:
    one, two, other = key(), key(), key("RS256")
    token = parse_compact(signed({}, one, kid=None))
    keys, _ = parse_jwk_set(key_set(one, other))
    verify(token, keys, ("ES256",))
    keys, _ = parse_jwk_set(key_set(one, two))
    with pytest.raises(UnknownKey):
        verify(token, keys, ("ES256",))


def test_keys_of_one_name_are_all_tried_since_sets_may_hold_such() -> None:
    one, two = key(kid="same"), key(kid="same")
    keys, unusable = parse_jwk_set(key_set(one, two))
    assert unusable == []
    for signer in (one, two):
        assert verify(parse_compact(signed({"a": 1}, signer)), keys, ("ES256",)).claims == {"a": 1}


def test_algorithm_list_that_is_empty_allows_nothing() -> None:
    one = key()
    keys, _ = parse_jwk_set(key_set(one))
    with pytest.raises(TokenError):
        verify(parse_compact(signed({}, one)), keys, ())


def test_parse_jwk_set_explains_unusable_keys() -> None:
    document = {
        "keys": [{"kty": "oct", "k": "AA"}, {"kty": "RSA", "n": "AA", "e": "AQAB"}, {"kty": "EC", "use": "enc"}]
    }
    keys, unusable = parse_jwk_set(json.dumps(document).encode())
    assert keys == ()
    assert unusable == [
        "key 1: not a public key of a supported type",
        "key 2: an RSA key of less than 2048 or more than 8192 bits",
        "key 3: not for signatures",
    ]


def flips(data: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 0x80 >> bit % 8
        yield bytes(changed)


@pytest.mark.parametrize("algorithm", ["ES256", "ES512", "RS256", "Ed25519"])
def test_key_set_with_a_flipped_bit_is_read_or_no_json(algorithm: str) -> None:
    whole = key_set(key(algorithm))
    for changed in flips(whole):
        with suppress(ValueError):
            parse_jwk_set(changed)


def test_token_with_a_flipped_bit_is_refused() -> None:
    one = key()
    keys, _ = parse_jwk_set(key_set(one))
    token = signed({"a": 1}, one)
    same = 0
    for changed in flips(token.encode()):
        text = changed.decode("latin-1")
        try:
            verify(parse_compact(text), keys, ("ES256",))
        except TokenError:
            continue
        same += 1
    # The last character of the signature has bits that say nothing (RFC 4648 clause 3.5).
    assert same <= 4
