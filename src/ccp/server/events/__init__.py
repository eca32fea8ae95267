"""Telling partners what happened: from the outbox to their webhooks.

    a change's transaction -> outbox -> fan-out: one delivery for each webhook -> HTTP, until it is taken or given up

`message` is what goes over the line, `Subscribers` what is known of who wants what, `Dispatcher` sends, and `HandedOut`
gathers what is told of without a change. What is stored and how it is locked: `ccp.server.storage.queries.outbox`.
"""

from ccp.server.events.delivery_notices import HandedOut, Nobody, Outlet
from ccp.server.events.dispatcher import Dispatcher
from ccp.server.events.subscribers import Subscribers

__all__ = ["Dispatcher", "HandedOut", "Nobody", "Outlet", "Subscribers"]
