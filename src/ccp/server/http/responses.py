"""JSON responses, and their description in OpenAPI."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from pydantic import BaseModel
from starlette.responses import Response

from ccp.schemas.common import Error, JSONObject


class FastJSONResponse(Response):
    """A 200 response of the hot routes. Its headers differ in length only, so Starlette's work on them is skipped."""

    def __init__(self, members: JSONObject, headers: Mapping[str, str] | None = None) -> None:
        self.body = orjson.dumps(members)
        self.status_code = 200
        self.background = None
        self.raw_headers = [
            (b"content-length", str(len(self.body)).encode()),
            (b"content-type", b"application/json"),
        ]
        if headers:
            self.raw_headers += [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def json_response(members: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(orjson.dumps(members), status, headers, media_type="application/json")


def error_descriptions(statuses: Iterable[int]) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of an operation's error responses."""
    return {status: {"model": Error} for status in statuses}


def body_description(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """Return the OpenAPI description of a request body that a route reads itself."""
    return {"requestBody": {"required": required, "content": json_content(model.__name__)}}


def json_content(schema: str) -> dict[str, Any]:
    """Return the OpenAPI description of JSON content. schema: name of a component."""
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
