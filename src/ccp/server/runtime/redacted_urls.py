"""Redaction of URLs for display: passwords, and query parameters that contain secrets."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_plus

HIDDEN: Final = "…"
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+")
_MISSPELT: Final = re.compile(
    r"\s*(?:(postgres(?:ql)?|https?|ldaps?):|([A-Za-z][A-Za-z0-9+.-]*):/|//)/*", re.IGNORECASE
)
"""The beginning of a URL with a missing slash, colon or scheme, so that a typing error reveals no password."""
_CONNINFO: Final = re.compile(r"(password\s*=\s*)(?:'(?:[^'\\]|\\.)*'|\S+)", re.IGNORECASE)
"""A password in a libpq connection string of keywords and values."""
_SECRET: Final = re.compile(
    r"pass|pwd?|secret|token|jwt|bearer|assertion|key|sig|auth|cred|sas|code|session", re.IGNORECASE
)
_HARMLESS: Final = frozenset({"sslkey", "passfile"})  # File names.


def hide_credentials(url: str) -> str:
    """A URL without its password and without the values of query parameters whose names suggest a secret.

    The URL may be malformed: a password may contain any character by mistake, so it ends at the last `@`. A text that
    does not begin like a URL is returned unchanged, except for the passwords of a libpq connection string.
    """
    scheme, separator, rest = url.partition("://")
    if separator:
        return f"{scheme}://{_hide_parameters(_hide_user(scheme.lower(), rest))}"
    if (start := _MISSPELT.match(url)) is not None:
        scheme = (start[1] or start[2] or "https").lower()
        return f"{start[0]}{_hide_parameters(_hide_user(scheme, url[start.end() :]))}"
    return _CONNINFO.sub(rf"\1{HIDDEN}", url)


def hide_in_text(text: str) -> str:
    """A text with the credentials of every URL in it hidden."""
    return _URL.sub(lambda found: hide_credentials(found[0]), text) if "://" in text else text


def _hide_user(scheme: str, rest: str) -> str:
    authority = re.match(r"[^/?#]*", rest)
    assert authority is not None, "the pattern matches the empty text too"
    web = scheme in ("http", "https", "ws", "wss", "ldap", "ldaps", "ftp")
    if "@" not in authority[0] and web and re.fullmatch(r"[^:]*(:\d*)?|\[[^\]]*\](:\d*)?", authority[0]):
        return rest  # A host with an optional port; a later @ belongs to the path.
    if (user := re.match(r"([^:/?#@\[]*):(.*)@", rest, re.DOTALL)) is not None:
        return f"{user[1]}:{HIDDEN}@{rest[user.end() :]}"
    if web and "@" in authority[0]:  # A user name without a password is often an access token.
        return f"{HIDDEN}@{rest.rpartition('@')[2]}"
    return rest


def _hide_parameters(rest: str) -> str:
    path, *parts = re.split(r"([?&;#])", rest)
    shown = [path]
    hiding = False
    for separator, part in zip(parts[::2], parts[1::2], strict=True):
        if hiding and separator in "?;":
            continue  # Part of a secret that was not encoded.
        name, equals, value = part.partition("=")
        plain = unquote_plus(name).strip().lower()
        within = unquote_plus(value)  # A parameter may contain a URL with credentials.
        hiding = bool(equals) and (
            (plain not in _HARMLESS and _SECRET.search(plain) is not None) or hide_in_text(within) != within
        )
        shown.append(f"{separator}{name}={HIDDEN}" if hiding else f"{separator}{part}")
    return "".join(shown)
