"""The encoding loop: for each slot it looks up the code of the production and appends code and value.

It writes only the form that the EXI specification requires.
"""

from __future__ import annotations

from typing import Any

from ccp.exi.bits import CodecError
from ccp.exi.schema import ElementType


def write(element: ElementType, value: Any, bits: int, width: int, out: list[bytes]) -> tuple[int, int]:
    """Append the content of an element and its end.

    bits, width: what is not yet in `out`; the new state of both is returned. value: of the element.
    Raises CodecError with the names of the elements inside of this one, innermost first.
    """
    cls, codes, encoders = element.table or element.encoding_table()
    slots = value if type(value) is cls else element.split(value)
    name = ""
    try:
        for (name, max_items, pack, limit, inner, after, full), item in zip(encoders, slots):  # noqa: B905 (strict costs 10 %)
            if item is None:
                continue
            if max_items is not None:
                if type(item) is not tuple or len(item) > max_items:
                    many = f"more than {max_items} {name}: " if type(item) is tuple else ""
                    raise CodecError(f"{many}a tuple of at most {max_items} items expected")
                for each in item:
                    code, size = codes[name]
                    bits, width = write(inner, each, bits << size | code, width + size, out)
                    codes = after
                if len(item) == max_items:
                    codes = full
                continue
            code, size = codes[name]
            if pack is None:
                bits, width = write(inner, item, bits << size | code, width + size, out)
            else:
                packed, more = pack(item, limit)
                bits = (bits << size | code) << more | packed
                width += size + more
                if width > 512:
                    rest = width & 7
                    out.append((bits >> rest).to_bytes(width >> 3))
                    bits &= (1 << rest) - 1
                    width = rest
            codes = after
        name = ""
        code, size = codes[""]
    except CodecError as error:
        if name and name != "value":
            error.names.append(name)
        raise
    except KeyError:
        raise CodecError(f"{_expected(codes)} expected" + (f" before {name}" if name else "")) from None
    return bits << size | code, width + size


def _expected(codes: dict[str, tuple[int, int]]) -> str:
    return " or ".join(name or "the end" for name in codes)


def flush(bits: int, width: int, out: list[bytes]) -> bytes:
    """The bytes of all that was written. The last byte is padded with zero bits."""
    pad = -width & 7
    out.append((bits << pad).to_bytes(width + pad >> 3))
    return b"".join(out)
