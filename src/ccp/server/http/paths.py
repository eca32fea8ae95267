"""Paths and methods beyond what routes say: HEAD wherever GET is, and answers that name the right path or methods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

_HEAD: Final = "ccp.head"


def head_as_get(scope: Scope) -> Scope:
    """A HEAD as the GET that it is answered like; anything else as it is."""
    is_one = scope["type"] == "http" and scope["method"] == "HEAD"
    return {**scope, "method": "GET", _HEAD: True} if is_one else scope


def is_head(scope: Scope) -> bool:
    return _HEAD in scope


def known_path_without_slash(scope: Scope) -> str | None:
    """The path without slashes at its end, percent-encoded, if that is one that the pool knows."""
    path = scope["path"].rstrip("/")
    if path == scope["path"] or next(_routes(scope, path), None) is None:
        return None
    return quote(path, safe="/:@!$&'()*+,;=%")


def allowed_methods(scope: Scope) -> list[str]:
    """The methods that any route knows at the path; GET brings HEAD with it (RFC 9110 clause 9.3.2)."""
    known = {method for route in _routes(scope, scope["path"]) if isinstance(route, Route) for method in _of(route)}
    return sorted(known | ({"HEAD"} if "GET" in known else set()))


def _of(route: Route) -> set[str]:
    return route.methods or set()


def _routes(scope: Scope, path: str) -> Iterator[BaseRoute]:
    if "app" in scope:
        asked = {**scope, "path": path}
        for route in scope["app"].routes:
            if route.matches(asked)[0] is not Match.NONE:
                yield route
