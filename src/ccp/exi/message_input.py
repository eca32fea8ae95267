"""A message in any form in which people keep one: EXI, XML, Base64, hexadecimal, or a JSON body of one of the APIs."""

from __future__ import annotations

import json
import re
from typing import Any

from ccp.errors import EXIError
from ccp.exi.base64_text import V2GTP_START, looks_like_xml, message_bytes
from ccp.exi.codec import encode
from ccp.exi.xml import from_xml

_MEMBERS = ("certificateInstallationRes", "certificateInstallationReq", "signedContractDataXML")
_EXI_START = 0x80  # Distinguishing bits of the EXI header; no text starts with this byte.


def exi_bytes(content: bytes) -> bytes:
    """Extract the EXI stream from a content in any of the forms above, or encode XML. Raises EXIError."""
    if content[:1] == bytes((_EXI_START,)):
        return content
    if looks_like_xml(content):
        return encode(from_xml(content))
    if content.startswith(V2GTP_START):
        raise EXIError("a message with its V2GTP header (01FE); remove these eight bytes")
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError as exc:
        raise EXIError("neither an EXI stream nor a text that contains one") from exc
    if text.startswith("{"):
        return message_bytes(_member(text), allow_xml=True)
    compact = re.sub(r"\s+", "", text)
    # Every message starts with the byte 80: "80…" in hexadecimal, "gJ…", "gB…" or "gC…" in Base64.
    if re.fullmatch(r"(80)([0-9A-Fa-f]{2})*", compact):
        return bytes.fromhex(compact)
    return message_bytes(text, allow_xml=True)


def _member(text: str) -> str:
    try:
        found = _search(json.loads(text))
    except (ValueError, RecursionError) as exc:
        raise EXIError("a text that is not JSON") from exc
    if found is None:
        raise EXIError(f"JSON without {', '.join(_MEMBERS[:-1])} or {_MEMBERS[-1]}")
    return found


def _search(value: Any) -> str | None:
    """Find the first message in a JSON body of the API, at any depth."""
    if isinstance(value, dict):
        named = next((value[name] for name in _MEMBERS if isinstance(value.get(name), str)), None)
        return named if named is not None else _search(list(value.values()))
    if isinstance(value, list):
        return next((found for member in value if (found := _search(member)) is not None), None)
    return None
