"""Calls of an outbound client, and connections to services."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ccp.server.external.outbound import OutboundClient
from ccp.server.external.service_connection import ServiceConnection
from ccp.server.settings.services import ServiceSettings

T = TypeVar("T")


def with_outbound(call: Callable[[OutboundClient], Awaitable[T]]) -> T:
    """Run a call with a new outbound client, within ten seconds."""

    async def run() -> T:
        outbound = OutboundClient()
        try:
            async with asyncio.timeout(10):
                return await call(outbound)
        finally:
            await outbound.close()

    return asyncio.run(run())


def connection(outbound: OutboundClient, url: str, name: str = "service", **members: Any) -> ServiceConnection:
    """A connection to a service. members: of its settings."""
    return ServiceConnection(outbound, ServiceSettings(url=url, **members), name)
