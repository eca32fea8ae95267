"""Base64 input: white space anywhere, nothing else, and what a wrong text looks like."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccp.errors import EXIError
from ccp.exi.base64_text import message_bytes

EXI = bytes.fromhex("80980210") + bytes(range(251, 256)) * 7
MESSAGES = st.binary(max_size=200).map(lambda rest: b"\x80" + rest)
TEXT = base64.b64encode(EXI).decode()
V2GTP = bytes.fromhex("01fe800100000027")


def problem(text: str) -> str:
    with pytest.raises(EXIError) as caught:
        message_bytes(text)
    sentence = str(caught.value)
    assert sentence.isascii()
    assert sentence.isprintable()
    assert len(sentence) < 160
    return sentence


def url_safe(encoded: bytes) -> str:
    return base64.urlsafe_b64encode(encoded).decode()


@given(MESSAGES, st.data())
def test_base64_text_is_read_without_white_space_wherever_it_stands(message: bytes, data: st.DataObject) -> None:
    text = list(base64.b64encode(message).decode())
    for at in data.draw(st.lists(st.integers(0, len(text)), max_size=10)):
        text.insert(at, data.draw(st.sampled_from(" \t\n\r\f\v")))
    assert message_bytes("".join(text)) == message


@given(st.text(max_size=60))
def test_base64_text_of_any_characters_gives_bytes_or_a_sentence(text: str) -> None:
    try:
        found = message_bytes(text)
    except EXIError:
        problem(text)
    else:
        assert base64.b64encode(found).decode() == re.sub(r"[ \t\n\r\f\v]", "", text)


@given(MESSAGES, st.data())
def test_base64_text_with_a_changed_character_never_gives_other_bytes_silently(
    message: bytes, data: st.DataObject
) -> None:
    text = base64.b64encode(message).decode()
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.characters()) + text[at + 1 :]
    try:
        found = message_bytes(changed)
    except EXIError:
        return
    assert base64.b64encode(found).decode() == "".join(changed.split())


@given(MESSAGES)
def test_base64_text_in_other_encodings_of_a_message_is_named(message: bytes) -> None:
    text = base64.b64encode(message).decode()
    for hexadecimal in (message.hex(), message.hex().upper(), message.hex(":"), message.hex(" "), "0x" + message.hex()):
        assert "looks like hexadecimal" in problem(hexadecimal)
    assert "looks like double Base64" in problem(base64.b64encode(text.encode()).decode())
    assert "V2GTP header (01FE)" in problem(base64.b64encode(V2GTP + message).decode())
    assert "V2GTP header (01FE)" in problem((V2GTP + message).hex())
    if text.endswith("="):
        assert "padding is missing" in problem(text.rstrip("="))
    if "+" in text or "/" in text:
        assert "URL-safe alphabet" in problem(url_safe(message))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the text is empty"),
        (" \r\n\t", "the text is empty"),
        (url_safe(EXI), "URL-safe alphabet (- and _ in the place of + and /)"),
        (url_safe(EXI + b"\xff").rstrip("="), "URL-safe alphabet (- and _ in the place of + and /), and its padding"),
        ("gJg=="[:-2], "its padding is missing (= at the end)"),
        ("gJgC==", "it has too much padding"),
        ("gJgCE", "its length is impossible, so it is probably cut off"),
        ("gJh=", "bits beyond the last byte"),
        ("gJg=gJg=", "padding (=) at character 4, before the end"),
        ("gJgC\u00a0", "U+00A0 at character 5"),
        ("gJ\x1bC", "U+001B at character 3"),
        ("gJ%2B", "'%' at character 3"),
        ("<V2G_Message/>", "it looks like XML"),
        ('\ufeff<?xml version="1.0"?>', "it looks like XML"),
        (base64.b64encode(b"<?xml version='1.0'?>").decode(), "looks like Base64 of XML"),
        ('{"V2G_Message": {}}', "it looks like JSON"),
        ("-----BEGIN EXI-----\ngJg=\n-----END EXI-----", "it looks like PEM"),
        ("data:application/byte-stream;base64,gJg=", "it looks like a data URL"),
        (base64.b64encode(b"\x1f\x8b\x08\x00").decode(), "looks like Base64 of gzip"),
        (base64.b64encode(EXI.hex().encode()).decode(), "looks like hexadecimal in Base64"),
        (base64.encodebytes(TEXT.encode()).decode(), "looks like double Base64"),
        ("deadbeef0123456789abcdef0123456789abcdef", "looks like hexadecimal"),
    ],
)
def test_base64_error_names_what_the_text_looks_like(text: str, sentence: str) -> None:
    assert sentence in problem(text)


def test_base64_text_that_is_no_exi_is_left_to_the_codec() -> None:
    for encoded in (bytes(3), bytes(60), b"$EXI\x80", b"\x81\x98"):
        assert message_bytes(base64.b64encode(encoded).decode()) == encoded
