"""Databases with many parties and webhooks."""

from __future__ import annotations

from ccp.server.domain.parties import Party, PartyRole
from ccp.server.domain.subscriptions import EventKind
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import parties as queries
from ccp.server.storage.queries import webhooks
from tests.server.events.receiver import webhook
from tests.server.storage.made import AT, write
from tests.world import party


def oem(number: int) -> Party:
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return party(f"oem-{number}", PartyRole.OEM, wmis=f"X{digits[number // 36]}{digits[number % 36]}")


def add_parties(url: str, more: int) -> None:
    """Add an OEM and an eMSP with a webhook each, and `more` other OEMs."""

    def first() -> Query[None]:
        yield from queries.add(party("maker", PartyRole.OEM, wmis="WEX"), "hash", AT)
        yield from queries.add(party("emsp", PartyRole.EMSP, providers="DEEXA"), "hash", AT)
        yield from webhooks.put(webhook("http://maker.example/", "maker"))
        yield from webhooks.put(webhook("http://emsp.example/", "emsp", EventKind.DELIVERED.value))

    def other(number: int) -> Query[None]:
        yield from queries.add(oem(number), "hash", AT)
        yield from webhooks.put(webhook(f"http://{number}.example/", f"oem-{number}"))

    write(url, first(), *map(other, range(more)))
