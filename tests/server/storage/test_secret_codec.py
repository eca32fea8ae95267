"""Encryption of secrets: keys, places, and what is refused."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from ccp.errors import ConfigurationError
from ccp.server.storage.engine.secret_codec import CLEAR, Place, SecretCodec, UnreadableSecret, key_of
from tests.server.storage.storage_keys import key, write_keys

PLACE = Place("peer", "secret", "DEABC")


def test_codec_encrypts_and_decrypts(tmp_path: Path) -> None:
    codec = SecretCodec(write_keys(tmp_path / "keys", 1))
    for secret in ("x", "ü€😀", "", "two\nlines", "a" * 10_000):
        stored = codec.encrypt(codec.newest, PLACE, secret)
        assert stored.isascii()
        assert key_of(stored) == codec.newest
        assert not secret or len(secret) < 3 or secret not in stored
        assert codec.decrypt(PLACE, stored) == secret


def test_codec_uses_a_new_nonce_for_each_value(tmp_path: Path) -> None:
    codec = SecretCodec(write_keys(tmp_path / "keys", 1))
    assert len({codec.encrypt(codec.newest, PLACE, "the same") for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "other",
    [
        Place("peer", "secret", "DEABD"),
        Place("peer", "token", "DEABC"),
        Place("webhook", "secret", "DEABC"),
        Place("peer", "secret\0DEABC", ""),
    ],
)
def test_codec_refuses_a_value_of_another_place(other: Place, tmp_path: Path) -> None:
    codec = SecretCodec(write_keys(tmp_path / "keys", 1))
    stored = codec.encrypt(codec.newest, PLACE, "the secret")
    with pytest.raises(UnreadableSecret, match="changed, or copied") as found:
        codec.decrypt(other, stored)
    assert "the secret" not in str(found.value)


def test_codec_refuses_every_changed_value(tmp_path: Path) -> None:
    codec = SecretCodec(write_keys(tmp_path / "keys", 1))
    stored = codec.encrypt(codec.newest, PLACE, "the secret")
    head, _, sealed = stored.rpartition(":")
    content = base64.b64decode(sealed)
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1
        with pytest.raises(UnreadableSecret):
            codec.decrypt(PLACE, f"{head}:{base64.b64encode(flipped).decode()}")
    for end in range(len("ccp-secret:"), len(stored)):
        with pytest.raises(UnreadableSecret):
            codec.decrypt(PLACE, stored[:end])


@pytest.mark.parametrize(
    "text", ["ccp-secret:", "ccp-secret:1:0123456789abcdef:AAAA", "ccp-secret:clear:", "ccp-secret:2:x"]
)
@pytest.mark.parametrize("keys", [(), (1,)])
def test_codec_keeps_a_clear_text_that_looks_encrypted(text: str, keys: tuple[int, ...], tmp_path: Path) -> None:
    # Another system chooses the secret of a subscription, so this text may come from outside.
    codec = SecretCodec(write_keys(tmp_path / "keys", *keys) if keys else None)
    for key_id in {CLEAR, codec.newest}:
        assert codec.decrypt(PLACE, codec.encrypt(key_id, PLACE, text)) == text


def test_codec_reads_clear_text_and_values_of_older_keys(tmp_path: Path) -> None:
    older = SecretCodec(write_keys(tmp_path / "older", 1))
    stored = older.encrypt(older.newest, PLACE, "the secret")
    codec = SecretCodec(write_keys(tmp_path / "keys", 2, 1))
    assert codec.newest != older.newest
    assert codec.decrypt(PLACE, stored) == codec.decrypt(PLACE, "the secret") == "the secret"


def test_codec_names_a_missing_key(tmp_path: Path) -> None:
    first = SecretCodec(write_keys(tmp_path / "first", 1))
    stored = first.encrypt(first.newest, PLACE, "the secret")
    second = SecretCodec(write_keys(tmp_path / "second", 2))
    with pytest.raises(UnreadableSecret, match=f"storage key {first.newest}, which is not in .*second"):
        second.decrypt(PLACE, stored)
    with pytest.raises(UnreadableSecret, match="secrets_key_file is not set"):
        SecretCodec().decrypt(PLACE, stored)
    with pytest.raises(UnreadableSecret, match="No secret can be stored"):
        second.encrypt(first.newest, PLACE, "the secret")


def test_codec_reads_the_file_again_for_an_unknown_key(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys", 1)
    codec = SecretCodec(path)
    newer = SecretCodec(write_keys(tmp_path / "newer", 2))
    stored = newer.encrypt(newer.newest, PLACE, "the secret")
    os.utime(path, ns=(1, 1))
    path.write_text("not a key\n")
    with pytest.raises(UnreadableSecret):  # Being replaced: the known key stays in use.
        codec.decrypt(PLACE, stored)
    assert codec.decrypt(PLACE, codec.encrypt(codec.newest, PLACE, "known")) == "known"
    path.write_text(f"{key(2)}\n{key(1)}\n")
    assert codec.decrypt(PLACE, stored) == "the secret"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("# only a comment\n", "has no key"),
        ("c2hvcnQ=\n", "line 1 of .* is not a key of 32 bytes in Base64"),
        ("0" * 64 + "\n", "line 1 of .* is not a key"),
        ("my pass phrase\n", "line 1 of .* is not a key"),
        (base64.b64encode(b"A" * 32).decode(), "the key in line 1 of .* is not random"),
        (f"{key(1)}\n{key(2)[:-4]}\n", "line 2 of"),
        ("".join(f"{key(number)}\n" for number in range(17)), "more than 16 keys"),
        ("\0" * 20_000, "too big"),
    ],
)
def test_codec_refuses_an_unusable_file_without_quoting_it(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=reason) as found:
        SecretCodec(path)
    assert "secrets_key_file" in str(found.value)
    assert not content.strip() or len(content) < 5 or content.splitlines()[0] not in str(found.value)


def test_codec_refuses_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path, "not a regular file")):
        with pytest.raises(ConfigurationError, match=reason):
            SecretCodec(path)
