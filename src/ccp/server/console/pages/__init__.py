"""The pages of the console: one module per subject, each with `register(console, parts)`."""

from typing import Final

from ccp.server.console.pages import anchors, overview, sessions, vehicles, why

REGISTER: Final = (overview.register, vehicles.register, why.register, anchors.register, sessions.register)
"""In the order of the navigation."""
