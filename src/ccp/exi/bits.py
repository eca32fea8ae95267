"""Scalar values of a bit-packed EXI stream, and the limits for reading and writing them.

`read_*(data, position, end, limit) -> (value, position)` reads a value: `data` is the stream followed by PADDING,
`position` and `end` are in bits. `pack_*(value, limit) -> (bits, width)` writes one: an integer and its width, which
the encoder shifts in after what it has. Bytes in the stream are rarely aligned; they are extracted through one big
integer and not bit by bit, which makes this fast, and linear because each byte is extracted once.

Errors are `CodecError`; the encoder and the decoder add position and path, and `codec` raises `EXIError`.
"""

from __future__ import annotations

import functools
import re
from typing import Any

# Largest message. A -20 response with eight certificates of maximum length is under 16 KiB. Four times that leaves room
# and bounds the work.
MAX_MESSAGE_BYTES = 65_536
# Any text when reading. X.500 names have no length in the schema; 1024 is far above what certificates contain.
MAX_TEXT_CHARACTERS = 1024
# Digests and signature values, which have no length in the schema: 132 bytes for P-521, 512 for the largest RSA in use.
MAX_SIGNATURE_BYTES = 1024
# Magnitude of xs:integer. RFC 5280 allows serial numbers of 20 bytes; some CAs use more.
MAX_INTEGER_BYTES = 40
# Bytes of one unsigned integer of 64 bits (7 bits each), and of one code point (21 bits).
MAX_UNSIGNED_LONG_GROUPS = 10
MAX_CODE_POINT_GROUPS = 3
# The schema has no limit for these lists. Real messages have one to four references with one transform each.
MAX_REFERENCES = 8
MAX_TRANSFORMS = 2
MAX_XPATHS = 2

# Zero bytes after the stream, so that a look-ahead never leaves the buffer.
PADDING = bytes(4)

from_bytes = int.from_bytes

# Characters that XML 1.0 does not allow in text (and that databases reject), surrogates included.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Code points of one byte each, or one code point of several bytes: those with the continuation bit, and the last one
# (missing only at the end of the stream). It matches everywhere, so matching is linear.
_RUN = re.compile(rb"[\x00-\x7f]+|[\x80-\xff]+[\x00-\x7f]?")


class CodecError(Exception):
    """A value that cannot be read or written.

    names: when writing, element names from the innermost outwards; when reading, the element path. offset: in bits.
    """

    def __init__(self, reason: str, names: tuple[str, ...] = (), offset: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.names = list(names)
        self.offset = offset


TRUNCATED = "the stream ends too early"


def bytes_at(data: bytes, position: int, count: int) -> bytes:
    """`count` bytes from a bit position. The caller checks that there are as many."""
    first = position >> 3
    shift = position & 7
    if shift:
        return (from_bytes(data[first : first + count + 1]) >> 8 - shift).to_bytes(count + 1)[1:]
    return data[first : first + count]


def read_unsigned(data: bytes, position: int, end: int, groups: int) -> tuple[int, int]:
    """An unsigned integer of at most `groups` bytes with seven bits each, least significant first."""
    value = shift = 0
    for _ in range(groups):
        if position + 8 > end:
            raise CodecError(TRUNCATED)
        index = position >> 3
        byte = (data[index] << 8 | data[index + 1]) >> 8 - (position & 7) & 255
        position += 8
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise CodecError(f"an integer of more than {groups} bytes")


def encode_unsigned(value: int) -> bytes:
    """The encoding of an unsigned integer: seven bits a byte, least significant first."""
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def read_binary(data: bytes, position: int, end: int, limit: int) -> tuple[bytes, int]:
    """Binary data of at most `limit` bytes, with its length."""
    index = position >> 3
    count = (data[index] << 8 | data[index + 1]) >> 8 - (position & 7) & 255
    if count < 128:
        position += 8
    else:
        count, position = read_unsigned(data, position, end, MAX_UNSIGNED_LONG_GROUPS)
    if count > limit:
        raise CodecError(f"{count} bytes where at most {limit} are allowed")
    after = position + 8 * count
    if after > end:
        raise CodecError(TRUNCATED)
    first = position >> 3
    shift = position & 7
    if shift:
        return (from_bytes(data[first : first + count + 1]) >> 8 - shift).to_bytes(count + 1)[1:], after
    return data[first : first + count], after


def pack_binary(value: Any, limit: int) -> tuple[int, int]:
    """Write binary data of at most `limit` bytes."""
    if type(value) is not bytes:
        raise CodecError(f"bytes expected, not {type(value).__name__}")
    count = len(value)
    if count > limit:
        raise CodecError(f"{count} bytes where at most {limit} are allowed")
    encoded = (bytes((count,)) if count < 128 else encode_unsigned(count)) + value
    return from_bytes(encoded), 8 * len(encoded)


def read_text(data: bytes, position: int, end: int, limit: int) -> tuple[str, int]:
    """A literal string. The string table has capacity zero, so a reference into it is an error."""
    index = position >> 3
    count = (data[index] << 8 | data[index + 1]) >> 8 - (position & 7) & 255
    if count < 128:
        position += 8
    else:
        count, position = read_unsigned(data, position, end, MAX_UNSIGNED_LONG_GROUPS)
    count -= 2
    if count < 0:
        raise CodecError("a reference into the string table, which is not in use")
    if count > MAX_TEXT_CHARACTERS:
        raise CodecError(f"{count} characters where at most {MAX_TEXT_CHARACTERS} are read")
    after = position + 8 * count
    if after > end:
        raise CodecError(TRUNCATED)
    first = position >> 3
    shift = position & 7
    if shift:
        encoded = (from_bytes(data[first : first + count + 1]) >> 8 - shift).to_bytes(count + 1)[1:]
    else:
        encoded = data[first : first + count]
    if encoded.isascii():
        text = encoded.decode("ascii")
    else:
        room = min(MAX_CODE_POINT_GROUPS * count, end - position >> 3)
        text, used = _wide_text(bytes_at(data, position, room), count)
        after = position + 8 * used
    if not text.isprintable() and _FORBIDDEN.search(text):
        raise CodecError("a character that XML does not allow")
    return text, after


def _wide_text(encoded: bytes, count: int) -> tuple[str, int]:
    """The first `count` code points, and how many bytes they take. A hostile message may consist of them."""
    pieces: list[str] = []
    used = 0
    for run in _RUN.findall(encoded):
        size = len(run)
        if run[0] < 128:
            size = min(size, count)
            pieces.append(run[:size].decode("ascii"))
            count -= size
        else:
            if size == 2:
                value = run[0] & 127 | run[1] << 7
            elif size == MAX_CODE_POINT_GROUPS:
                value = run[0] & 127 | (run[1] & 127) << 7 | run[2] << 14
            else:
                value = -1
            if run[-1] > 127 and size < MAX_CODE_POINT_GROUPS:
                raise CodecError(TRUNCATED)
            if not 0 <= value <= 0x10FFFF:
                raise CodecError("a character outside of Unicode")
            pieces.append(chr(value))
            count -= 1
        used += size
        if not count:
            return "".join(pieces), used
    raise CodecError(TRUNCATED)


def pack_text(value: Any, limit: int) -> tuple[int, int]:
    """Write a string of at most `limit` characters."""
    if type(value) is not str:
        raise CodecError(f"str expected, not {type(value).__name__}")
    count = len(value)
    if count > limit:
        raise CodecError(f"{count} characters where at most {limit} are allowed")
    if not value.isprintable() and _FORBIDDEN.search(value):
        raise CodecError("a character that XML does not allow")
    count += 2
    encoded = bytes((count,)) if count < 128 else encode_unsigned(count)
    if value.isascii():
        encoded += value.encode("ascii")
    else:
        encoded += b"".join([encode_unsigned(ord(character)) for character in value])
    return from_bytes(encoded), 8 * len(encoded)


def pack_name(value: Any, limit: int) -> tuple[int, int]:
    """Like `pack_text`, cached: for texts with few values, such as names of algorithms."""
    if type(value) is not str:
        raise CodecError(f"str expected, not {type(value).__name__}")
    return _packed_name(value, limit)


_packed_name = functools.lru_cache(64)(pack_text)


def read_integer(data: bytes, position: int, end: int, limit: int) -> tuple[int, int]:
    """xs:integer of at most `limit` bytes: a sign bit, then the magnitude (of -v-1 if negative)."""
    if position >= end:
        raise CodecError(TRUNCATED)
    negative = data[position >> 3] >> 7 - (position & 7) & 1
    value, position = read_unsigned(data, position + 1, end, (8 * limit + 6) // 7)
    if value >> 8 * limit:
        raise CodecError(f"an integer of more than {limit} bytes")
    return (-value - 1 if negative else value), position


def pack_integer(value: Any, limit: int) -> tuple[int, int]:
    """Write an xs:integer with a magnitude of at most `limit` bytes."""
    if type(value) is not int:
        raise CodecError(f"int expected, not {type(value).__name__}")
    magnitude = -value - 1 if value < 0 else value
    if magnitude >> 8 * limit:
        raise CodecError(f"an integer of more than {limit} bytes")
    encoded = encode_unsigned(magnitude)
    return from_bytes(encoded) | (value < 0) << 8 * len(encoded), 8 * len(encoded) + 1


def read_unsigned_long(data: bytes, position: int, end: int, limit: int) -> tuple[int, int]:
    """xs:unsignedLong with a value of at most `limit`."""
    value, position = read_unsigned(data, position, end, MAX_UNSIGNED_LONG_GROUPS)
    if value > limit:
        raise CodecError(f"an integer above {limit}")
    return value, position


def pack_unsigned_long(value: Any, limit: int) -> tuple[int, int]:
    """Write an xs:unsignedLong of at most `limit`."""
    encoded = encode_unsigned(_ranged(value, limit))
    return from_bytes(encoded), 8 * len(encoded)


def read_unsigned_byte(data: bytes, position: int, end: int, limit: int) -> tuple[int, int]:
    """xs:unsignedByte, a field of eight bits."""
    if position + 8 > end:
        raise CodecError(TRUNCATED)
    index = position >> 3
    return (data[index] << 8 | data[index + 1]) >> 8 - (position & 7) & 255, position + 8


def pack_unsigned_byte(value: Any, limit: int) -> tuple[int, int]:
    """Write an xs:unsignedByte."""
    return _ranged(value, limit), 8


def _ranged(value: Any, limit: int) -> int:
    if type(value) is not int:
        raise CodecError(f"int expected, not {type(value).__name__}")
    if not 0 <= value <= limit:
        raise CodecError(f"a number that is not between 0 and {limit}")
    return value


def read_enumeration(data: bytes, position: int, end: int, names: tuple[str, ...]) -> tuple[str, int]:
    """A value of an enumeration, by its index (at most eight bits). names: all values, in schema order."""
    width = (len(names) - 1).bit_length()
    if position + width > end:
        raise CodecError(TRUNCATED)
    first = position >> 3
    index = (data[first] << 8 | data[first + 1]) >> 16 - width - (position & 7) & (1 << width) - 1
    if index >= len(names):
        raise CodecError(f"no value {index} in an enumeration of {len(names)}")
    return names[index], position + width


def pack_enumeration(value: Any, names: tuple[str, ...]) -> tuple[int, int]:
    """Write a value of an enumeration by its index."""
    if type(value) is not str or value not in names:
        raise CodecError("not one of the values of the enumeration")
    return names.index(value), (len(names) - 1).bit_length()
