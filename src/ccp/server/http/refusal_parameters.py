"""Parameters and cursors of the lists of refused deliveries, in the admin API and for owners."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeAlias

from fastapi import Query
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from ccp.errors import FieldError
from ccp.errors.codes import ErrorCode
from ccp.ids import EMAID
from ccp.server.pool.refusal_reports import parse_pcid
from ccp.server.storage.queries import refusals
from ccp.server.storage.queries.refusals import Refusal

PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 200


def _pcid(value: object) -> object:
    try:
        return value if value is None else parse_pcid(str(value))
    except FieldError as exc:
        raise PydanticCustomError("field", "{sentence}", {"sentence": str(exc)}) from exc


def _emaid(value: object) -> object:
    try:
        return value if value is None else EMAID.parse(str(value))
    except FieldError as exc:
        raise PydanticCustomError("field", "{sentence}", {"sentence": str(exc)}) from exc


def _date_time(value: object) -> object:
    """A time as in RFC 3339; pydantic alone takes numbers and dates too."""
    if isinstance(value, str) and not _DATE_TIME.fullmatch(value):
        raise PydanticCustomError("field", "must be a time from 1970 on as in RFC 3339, such as 2026-01-31T12:00:00Z")
    return value


def _in_utc(value: datetime | None) -> datetime | None:
    try:
        return value if value is None else value.astimezone(UTC)
    except OverflowError as exc:
        raise PydanticCustomError("field", "must be a time before the year 10000 in UTC") from exc


_DATE_TIME: Final = re.compile(
    r"(19[7-9]\d|[2-9]\d{3})-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)

PCIDQuery: TypeAlias = Annotated[
    Any,
    BeforeValidator(_pcid),
    WithJsonSchema({"type": "string"}),
    Query(description="The vehicle, with or without separators."),
]
EMAIDQuery: TypeAlias = Annotated[
    Any, BeforeValidator(_emaid), WithJsonSchema({"type": "string"}), Query(description="The contract.")
]
CodeQuery: TypeAlias = Annotated[ErrorCode | None, Query(description="The code of the refusal.")]
SinceQuery: TypeAlias = Annotated[
    AwareDatetime | None,
    BeforeValidator(_date_time),
    AfterValidator(_in_utc),
    Query(description="From this time on."),
]
UntilQuery: TypeAlias = Annotated[
    AwareDatetime | None,
    BeforeValidator(_date_time),
    AfterValidator(_in_utc),
    Query(description="Up to this time."),
]
LimitQuery: TypeAlias = Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE, description="Records on the page, at most.")]
CursorQuery: TypeAlias = Annotated[
    str | None,
    Query(
        description="The cursor that the previous page names; without it, the first page.",
        pattern=r"^[0-9]{1,18}\.[0-9a-f-]{36}(\.[0-9]{1,2})?$",
    ),
]


def read_cursor(text: str | None) -> tuple[int, str]:
    """Return the place in the list after which a page begins."""
    if text is None:
        return refusals.FIRST
    at, _, id_ = text.partition(".")
    return int(at), id_


def next_cursor(found: list[Refusal], limit: int) -> tuple[list[Refusal], str | None]:
    """Return the records of a page, and the cursor of the next one. found: one more than the limit, if there is one."""
    if len(found) <= limit:
        return found, None
    page = found[:limit]
    at, id_ = page[-1].cursor
    return page, f"{at}.{id_}"
