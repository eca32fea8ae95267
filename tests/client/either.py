"""The synchronous and the asynchronous client behind one interface, so that each test runs with both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ccp.client import AsyncClient, Client, Credentials
from tests.world import Pool

KINDS = ["sync", "async"]


class EitherClient:
    """A client of either kind, whose methods block."""

    def __init__(self, kind: str, *args: Any, **options: Any) -> None:
        self._runner = asyncio.Runner() if kind == "async" else None
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
def connect(kind: str, *args: Any, **options: Any) -> Iterator[EitherClient]:
    """Open a client of this kind for a block."""
    client = EitherClient(kind, *args, **options)
    try:
        yield client
    finally:
        client.close()


def credentials(pool: Pool, party: str, **more: Any) -> Credentials:
    """The credentials of one of the pool's registered parties."""
    return Credentials(party, pool.world.member(party).secret, **more)
