"""Construction of the console for one worker."""

from __future__ import annotations

from starlette.routing import BaseRoute

from ccp.server.console.application import Console
from ccp.server.console.login import Login
from ccp.server.console.pages import REGISTER
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.rendering import Rendering
from ccp.server.console.sessions import Sessions
from ccp.server.console.try_it import TryIt


class OperatorConsole:
    """The console of one worker."""

    def __init__(self, parts: ConsoleParts) -> None:
        self._parts = parts
        rendering = Rendering(has_documentation=parts.has_documentation)
        self._login = Login(parts, Sessions(parts.store, parts.config), rendering)
        console = Console(parts, rendering, self._login)
        for register in REGISTER:
            register(console, parts)
        self.routes: list[BaseRoute] = [*console.static_routes()]
        if parts.config.console:
            self.routes += console.routes()
        if parts.config.try_it:
            self.routes += TryIt(parts, rendering).routes(console.error_page)

    async def open(self) -> None:
        """Load the keys of the console, or create them. Raises Unavailable."""
        await self._parts.cipher.open()
        await self._login.open()
