"""Webhook delivery: transactional outbox, fan-out to webhooks, HTTP attempts with retries.

    transaction of a change -> outbox -> fan-out: one delivery per webhook -> HTTP attempts until accepted or given up

`message` builds the HTTP request, `Subscribers` caches who subscribed to what, `Dispatcher` sends, `BufferedNotifier`
writes events that have no transaction of their own, and `webhooks` manages the webhooks of parties. Tables and locks:
`ccp.server.storage.queries.outbox`.
"""

from ccp.server.events.delivery_notices import BufferedNotifier, EventSink, NullSink
from ccp.server.events.dispatcher import Dispatcher
from ccp.server.events.subscribers import Subscribers

__all__ = ["BufferedNotifier", "Dispatcher", "EventSink", "NullSink", "Subscribers"]
