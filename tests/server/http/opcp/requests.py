"""Requests to the OPCP routes of a pool."""

from __future__ import annotations

from typing import Any

import httpx

from tests.world import Pool


def call(pool: Pool, party: str | None, method: str, path: str, **options: Any) -> httpx.Response:
    """Send a request with the token of a party (None: without a token). options: as for `httpx.Client.request`."""
    headers = {**({"Authorization": f"Bearer {pool.token(party)}"} if party else {}), **options.pop("headers", {})}
    return pool.http.request(method, f"/v1{path}", headers=headers, **options)
