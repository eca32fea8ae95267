"""Forms and cookies: what a browser sends, within bounds, and the protection against forged requests (CSRF)."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request

from ccp.errors import FieldError, NotAuthorised

MAX_FORM: Final = 65_536
"""Bytes of a form with ordinary fields."""
_MAX_FIELDS: Final = 50
CSRF_FIELD: Final = "csrf_token"
_PAGE: Final = re.compile(r"/console/[A-Za-z0-9~._%/-]*(?:\?[A-Za-z0-9~._%=&+-]*)?")
_DOT_SEGMENT: Final = re.compile(r"/(?:\.|%2e){1,2}(?=[/?]|$)", re.IGNORECASE)
"""A browser resolves such a segment, also a percent-encoded one. Source: URL standard, path state."""
_MEDIA_TYPE: Final = "application/x-www-form-urlencoded"


class Form(Mapping[str, str]):
    """The fields of a form. A field that is given several times is rejected."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._fields: Final = {name: [value for key, value in pairs if key == name] for name, _ in pairs}

    def __getitem__(self, name: str) -> str:
        values = self._fields[name]
        if len(values) > 1:
            raise FieldError(f"{name} : must be given once")
        return values[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def need(self, name: str) -> str:
        """The value of a field that must not be empty, without blanks at its ends. Raises FieldError."""
        value = self.get(name, "").strip()
        if not value:
            raise FieldError(f"{name} : must not be empty")
        return value


def parse_form(headers: Headers, body: bytes) -> Form:
    """Parse the body of a form. Raises FieldError."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != _MEDIA_TYPE:
        raise FieldError("The body is not a form.")
    try:
        text = body.decode("utf-8")
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError as exc:
        raise FieldError("The body is not a form.") from exc
    if any("\0" in value for pair in pairs for value in pair):
        raise FieldError("The form has a character that no field may have.")
    return Form(pairs)


def parse_time(name: str, text: str) -> datetime:
    """A time that a person has typed, or that a link of a page has: ISO 8601, in UTC unless it has an offset.

    name: of the field. Raises FieldError.
    """
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise FieldError(f"{name} : must be a time such as 2026-03-01T12:00, which is in UTC") from exc


def check_origin(request: Request, public_url: str) -> None:
    """Refuse a form that another site sent. Raises NotAuthorised.

    Browsers send `Origin` with every POST, and `Sec-Fetch-Site`, which no script can set. Source: Fetch standard,
    Fetch Metadata Request Headers.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.getlist("origin")
    own = len(origin) == 1 and _is_own(origin[0], request.headers.get("host", ""), public_url)
    if not own or site not in (None, "same-origin"):
        raise NotAuthorised("The form was not sent by a page of this console. Open the page again.")


def check_csrf(form: Form, expected: str) -> None:
    """Refuse a form without the session's token. Raises NotAuthorised."""
    if not hmac.compare_digest(form.get(CSRF_FIELD, "").encode("utf-8", "replace"), expected.encode()):
        raise NotAuthorised("The form does not belong to this session. Open the page again.")


def _is_own(origin: str, host: str, public_url: str) -> bool:
    """Whether an origin is that of the request's own host. Behind a proxy the request's scheme is not the browser's."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or not parts.netloc:
        return False
    public = urlsplit(public_url)
    return parts.netloc.lower() == host.lower() or (parts.scheme, parts.netloc) == (public.scheme, public.netloc)


def is_page(target: str) -> bool:
    """Whether a target of a redirect, which a request may name, is a page of the console."""
    if len(target) > 500 or "//" in target or _DOT_SEGMENT.search(target):
        return False
    return _PAGE.fullmatch(target) is not None
