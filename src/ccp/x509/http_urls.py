"""Validation of http and https URLs from certificates and partners. Pure; nothing is resolved.

Parsers disagree on blanks, line ends, backslashes and non-ASCII characters, so none of these is accepted.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

_VISIBLE: Final = re.compile(
    r"[!-\[\]-~]{1,2048}"
)  # Visible ASCII except the backslash, which some parsers read as "/".
# DNS labels (RFC 1035 clause 2.3.4), or an IPv6 address. No resolver finds any other name.
_HOST: Final = re.compile(r"(?=.{1,254}\Z)[^.]{1,63}(?:\.[^.]{1,63})*\.?|[^.]*:.*")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def split_http_url(url: str) -> SplitResult:
    """Split an http or https URL with a host and without credentials.

    Raises ValueError with a sentence for any other text. Source: RFC 3986, RFC 9110 clause 4.2.
    """
    if not _VISIBLE.fullmatch(url):
        raise ValueError("The text is no valid URL.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ValueError("The text is no valid URL.") from exc
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError("Only http and https URLs are called.")
    if parts.username is not None or parts.password is not None:
        raise ValueError("URLs with credentials are not called.")
    if port == 0 or not _HOST.fullmatch(parts.hostname):
        raise ValueError("The text is no valid URL.")
    return parts


def is_http_url(url: str) -> bool:
    """Whether `split_http_url` accepts a text."""
    try:
        split_http_url(url)
    except ValueError:
        return False
    return True


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host in lower case, and port of a URL. Raises ValueError. Source: RFC 6454 clause 4."""
    parts = split_http_url(url)
    return parts.scheme, str(parts.hostname), parts.port or _DEFAULT_PORTS[parts.scheme]
