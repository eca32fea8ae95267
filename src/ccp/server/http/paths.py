"""Paths and methods beyond the routes: HEAD for every GET, and hints for unknown paths and methods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

_HEAD: Final = "ccp.head"


def head_as_get(scope: Scope) -> Scope:
    """Return the scope of a HEAD request as that of a GET; other scopes unchanged."""
    is_head_request = scope["type"] == "http" and scope["method"] == "HEAD"
    return {**scope, "method": "GET", _HEAD: True} if is_head_request else scope


def is_head(scope: Scope) -> bool:
    """Return whether the request was a HEAD before `head_as_get`."""
    return _HEAD in scope


def known_path_without_slash(scope: Scope) -> str | None:
    """Return the path without trailing slashes, percent-encoded, if the pool knows it; else None."""
    path = scope["path"].rstrip("/")
    if path == scope["path"] or next(_routes(scope, path), None) is None:
        return None
    return quote(path, safe="/:@!$&'()*+,;=%")


def allowed_methods(scope: Scope) -> list[str]:
    """Return the methods of the path in all routes. GET implies HEAD (RFC 9110 clause 9.3.2)."""
    known = {
        method for route in _routes(scope, scope["path"]) if isinstance(route, Route) for method in route.methods or ()
    }
    return sorted(known | ({"HEAD"} if "GET" in known else set()))


def _routes(scope: Scope, path: str) -> Iterator[BaseRoute]:
    if "app" in scope:
        candidate = {**scope, "path": path}
        for route in scope["app"].routes:
            if route.matches(candidate)[0] is not Match.NONE:
                yield route
