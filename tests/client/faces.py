"""Both faces of the client, called in the same way, so that every test is run with either."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ccp.client import AsyncClient, Client, Credentials
from tests.world import Pool

FACES = ["blocking", "awaited"]


class Face:
    """A client of either kind. Its methods block, whichever it is."""

    def __init__(self, kind: str, *args: Any, **options: Any) -> None:
        self._runner = asyncio.Runner() if kind == "awaited" else None
        self.client: Client | AsyncClient = (AsyncClient if self._runner else Client)(*args, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)
        return method if self._runner is None else lambda *args, **kwargs: self._run(method(*args, **kwargs))

    def _run(self, coroutine: Any) -> Any:
        assert self._runner is not None
        return self._runner.run(coroutine)

    def close(self) -> None:
        if self._runner is None:
            self.client.close()
        else:
            self._run(self.client.close())  # type: ignore[arg-type]
            self._runner.close()


@contextmanager
def face(kind: str, *args: Any, **options: Any) -> Iterator[Face]:
    client = Face(kind, *args, **options)
    try:
        yield client
    finally:
        client.close()


def credentials(pool: Pool, party: str, **more: Any) -> Credentials:
    return Credentials(party, pool.world.member(party).secret, **more)
