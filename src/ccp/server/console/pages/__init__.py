"""The pages of the console: one module per subject, each with `register(console, parts)`."""

from typing import Final

from ccp.server.console.pages import (
    anchors,
    audit,
    health,
    overview,
    parties,
    partners,
    refusals,
    sessions,
    vehicles,
    webhooks,
    why,
)

REGISTER: Final = (
    overview.register,
    vehicles.register,
    why.register,
    refusals.register,
    parties.register,
    webhooks.register,
    partners.register,
    anchors.register,
    audit.register,
    health.register,
    sessions.register,
)
"""In the order of the navigation."""
