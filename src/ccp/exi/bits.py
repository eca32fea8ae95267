"""Scalars of a bit-packed EXI stream, and the limits within which they are read and written.

A value is read by `read_*(data, at, end, limit) -> (value, at)`: `data` is the stream followed by PADDING, `at` and
`end` are positions in bits. It is written by `pack_*(value, limit) -> (bits, width)`: one integer and its width, to
be shifted in behind what is already there. Octets in the stream are rarely aligned; taking them through one big
integer, and not bit by bit, is what makes this fast, and as every octet is taken once it stays linear.

What is wrong is raised as `CodecError`; the loops in `grammar` know place and path and turn it into `EXIError`.
"""

from __future__ import annotations

import functools
import re
from typing import Any

# Largest message. A -20 response with eight certificates of their greatest length stays under 16 KiB; four times that
# leaves room and bounds the work.
MAX_MESSAGE_BYTES = 65_536
# Any text when reading. X.500 names have no length in the schema; 1024 is far above what certificates carry.
MAX_TEXT_CHARACTERS = 1024
# Digests and signature values, which have no length in the schema: 132 octets for P-521, 512 for the largest RSA in
# use.
MAX_SIGNATURE_BYTES = 1024
# Magnitude of xs:integer. RFC 5280 allows serial numbers of 20 octets, some authorities use more.
MAX_INTEGER_BYTES = 40
# Octets of one unsigned integer of 64 bits (7 bits each), and of one code point (21 bits).
MAX_UNSIGNED_LONG_GROUPS = 10
MAX_CODE_POINT_GROUPS = 3
# The schema sets no bound on these lists. Real messages have one or four references, each with one transform.
MAX_REFERENCES = 8
MAX_TRANSFORMS = 2
MAX_XPATHS = 2

# Zero octets behind the stream, so that a look ahead never leaves the buffer.
PADDING = bytes(4)

from_bytes = int.from_bytes

# What XML 1.0 does not allow in text (and databases choke on), surrogates included.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Octets of one code point each, or one code point of several: the continued ones and the last (absent only where the
# stream ends). It matches everywhere, so that it is linear.
_RUN = re.compile(rb"[\x00-\x7f]+|[\x80-\xff]+[\x00-\x7f]?")


class CodecError(Exception):
    """Something wrong with the value at hand. `names` collects the element names outwards while writing."""

    def __init__(self, reason: str, names: tuple[str, ...] = (), offset: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.names = list(names)
        self.offset = offset


TRUNCATED = "the stream ends too early"


def bytes_at(data: bytes, at: int, count: int) -> bytes:
    """`count` octets from bit position `at`; there must be that many."""
    first = at >> 3
    shift = at & 7
    if shift:
        return (from_bytes(data[first : first + count + 1]) >> 8 - shift).to_bytes(count + 1)[1:]
    return data[first : first + count]


def read_unsigned(data: bytes, at: int, end: int, groups: int) -> tuple[int, int]:
    """An unsigned integer of at most `groups` octets of seven bits, least significant first."""
    value = shift = 0
    for _ in range(groups):
        if at + 8 > end:
            raise CodecError(TRUNCATED)
        index = at >> 3
        octet = (data[index] << 8 | data[index + 1]) >> 8 - (at & 7) & 255
        at += 8
        value |= (octet & 127) << shift
        if octet < 128:
            return value, at
        shift += 7
    raise CodecError(f"an integer of more than {groups} octets")


def encode_unsigned(value: int) -> bytes:
    """The octets of an unsigned integer."""
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def read_binary(data: bytes, at: int, end: int, limit: int) -> tuple[bytes, int]:
    index = at >> 3
    count = (data[index] << 8 | data[index + 1]) >> 8 - (at & 7) & 255
    if count < 128:
        at += 8
    else:
        count, at = read_unsigned(data, at, end, MAX_UNSIGNED_LONG_GROUPS)
    if count > limit:
        raise CodecError(f"{count} octets where at most {limit} are allowed")
    after = at + 8 * count
    if after > end:
        raise CodecError(TRUNCATED)
    first = at >> 3
    shift = at & 7
    if shift:
        return (from_bytes(data[first : first + count + 1]) >> 8 - shift).to_bytes(count + 1)[1:], after
    return data[first : first + count], after


def pack_binary(value: Any, limit: int) -> tuple[int, int]:
    if type(value) is not bytes:
        raise CodecError(f"bytes expected, not {type(value).__name__}")
    count = len(value)
    if count > limit:
        raise CodecError(f"{count} octets where at most {limit} are allowed")
    octets = (bytes((count,)) if count < 128 else encode_unsigned(count)) + value
    return from_bytes(octets), 8 * len(octets)


def read_text(data: bytes, at: int, end: int, limit: int) -> tuple[str, int]:
    """A literal string. There is no string table (its capacity is zero), so a reference into it is an error."""
    index = at >> 3
    count = (data[index] << 8 | data[index + 1]) >> 8 - (at & 7) & 255
    if count < 128:
        at += 8
    else:
        count, at = read_unsigned(data, at, end, MAX_UNSIGNED_LONG_GROUPS)
    count -= 2
    if count < 0:
        raise CodecError("a reference into the string table, which is not in use")
    if count > MAX_TEXT_CHARACTERS:
        raise CodecError(f"{count} characters where at most {MAX_TEXT_CHARACTERS} are read")
    after = at + 8 * count
    if after > end:
        raise CodecError(TRUNCATED)
    first = at >> 3
    shift = at & 7
    if shift:
        octets = (from_bytes(data[first : first + count + 1]) >> 8 - shift).to_bytes(count + 1)[1:]
    else:
        octets = data[first : first + count]
    if octets.isascii():
        text = octets.decode("ascii")
    else:
        room = min(MAX_CODE_POINT_GROUPS * count, end - at >> 3)
        text, used = _wide_text(bytes_at(data, at, room), count)
        after = at + 8 * used
    if not text.isprintable() and _FORBIDDEN.search(text):
        raise CodecError("a character that XML does not allow")
    return text, after


def _wide_text(octets: bytes, count: int) -> tuple[str, int]:
    """The first `count` code points, and how many octets they take. All of a hostile message may pass through here."""
    pieces: list[str] = []
    used = 0
    for run in _RUN.findall(octets):
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
    if type(value) is not str:
        raise CodecError(f"str expected, not {type(value).__name__}")
    count = len(value)
    if count > limit:
        raise CodecError(f"{count} characters where at most {limit} are allowed")
    if not value.isprintable() and _FORBIDDEN.search(value):
        raise CodecError("a character that XML does not allow")
    count += 2
    octets = bytes((count,)) if count < 128 else encode_unsigned(count)
    if value.isascii():
        octets += value.encode("ascii")
    else:
        octets += b"".join([encode_unsigned(ord(character)) for character in value])
    return from_bytes(octets), 8 * len(octets)


def pack_name(value: Any, limit: int) -> tuple[int, int]:
    """As `pack_text`, for texts of which there are few, such as the names of algorithms."""
    if type(value) is not str:
        raise CodecError(f"str expected, not {type(value).__name__}")
    return _packed_name(value, limit)


_packed_name = functools.lru_cache(64)(pack_text)


def read_integer(data: bytes, at: int, end: int, limit: int) -> tuple[int, int]:
    """xs:integer of at most `limit` octets: a sign bit, then the magnitude (of -v-1 when negative)."""
    if at >= end:
        raise CodecError(TRUNCATED)
    negative = data[at >> 3] >> 7 - (at & 7) & 1
    value, at = read_unsigned(data, at + 1, end, (8 * limit + 6) // 7)
    if value >> 8 * limit:
        raise CodecError(f"an integer of more than {limit} octets")
    return (-value - 1 if negative else value), at


def pack_integer(value: Any, limit: int) -> tuple[int, int]:
    if type(value) is not int:
        raise CodecError(f"int expected, not {type(value).__name__}")
    magnitude = -value - 1 if value < 0 else value
    if magnitude >> 8 * limit:
        raise CodecError(f"an integer of more than {limit} octets")
    octets = encode_unsigned(magnitude)
    return from_bytes(octets) | (value < 0) << 8 * len(octets), 8 * len(octets) + 1


def read_unsigned_long(data: bytes, at: int, end: int, limit: int) -> tuple[int, int]:
    """xs:unsignedLong, at most `limit`."""
    value, at = read_unsigned(data, at, end, MAX_UNSIGNED_LONG_GROUPS)
    if value > limit:
        raise CodecError(f"an integer above {limit}")
    return value, at


def pack_unsigned_long(value: Any, limit: int) -> tuple[int, int]:
    octets = encode_unsigned(_ranged(value, limit))
    return from_bytes(octets), 8 * len(octets)


def read_unsigned_byte(data: bytes, at: int, end: int, limit: int) -> tuple[int, int]:
    """xs:unsignedByte, a field of eight bits."""
    if at + 8 > end:
        raise CodecError(TRUNCATED)
    index = at >> 3
    return (data[index] << 8 | data[index + 1]) >> 8 - (at & 7) & 255, at + 8


def pack_unsigned_byte(value: Any, limit: int) -> tuple[int, int]:
    return _ranged(value, limit), 8


def _ranged(value: Any, limit: int) -> int:
    if type(value) is not int:
        raise CodecError(f"int expected, not {type(value).__name__}")
    if not 0 <= value <= limit:
        raise CodecError(f"a number that is not between 0 and {limit}")
    return value


def read_enumeration(data: bytes, at: int, end: int, names: tuple[str, ...]) -> tuple[str, int]:
    """One of the names of an enumeration, by its index (of at most eight bits)."""
    width = (len(names) - 1).bit_length()
    if at + width > end:
        raise CodecError(TRUNCATED)
    first = at >> 3
    index = (data[first] << 8 | data[first + 1]) >> 16 - width - (at & 7) & (1 << width) - 1
    if index >= len(names):
        raise CodecError(f"no value {index} in an enumeration of {len(names)}")
    return names[index], at + width


def pack_enumeration(value: Any, names: tuple[str, ...]) -> tuple[int, int]:
    if type(value) is not str or value not in names:
        raise CodecError("not one of the values of the enumeration")
    return names.index(value), (len(names) - 1).bit_length()
