"""Stored contracts in bounded portions.

Each portion examines at most `limit` rows of an index and returns the cursor of the next portion, so its time does not
depend on the number of contracts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

from ccp.ids import EMAID
from ccp.server.domain.subscriptions import UndeliverableReason
from ccp.server.storage.engine.query import Query, Row, long_read

PORTION: Final = 500

Cursor: TypeAlias = Row
"""The key of the last row that a portion examined."""

FIRST_CONTRACT: Final[Cursor] = (-1, "")
FIRST_CERTIFICATE: Final[Cursor] = ("", "")


class Portion(NamedTuple):
    """Contracts to look at under their lock. following: cursor of the next portion; None after the last one."""

    emaids: list[EMAID]
    following: Cursor | None


def portion(emaids: Iterable[str], examined: Sequence[Row], limit: int) -> Portion:
    """A portion of each of these contracts once. examined: keys of the rows that were read, in order."""
    return Portion([EMAID(emaid) for emaid in dict.fromkeys(emaids)], following(examined, limit))


def following(examined: Sequence[Row], limit: int) -> Cursor | None:
    """The cursor of the next portion; None after the last one. examined: keys of the rows that were read, in order."""
    return tuple(examined[-1]) if len(examined) == limit else None


@long_read
def revoked(after: Cursor = FIRST_CERTIFICATE, limit: int = PORTION, *, unreported: bool = False) -> Query[Portion]:
    """Contracts whose certificate is revoked. A portion counts revoked certificates, few of which are of contracts.

    unreported: only those without an event about it.
    """
    rows = yield (
        "select issuer, serial from evidence where status = 'revoked' and (issuer, serial) > ($1, $2) "
        "order by issuer, serial limit $3",
        (*after, limit),
    )
    if not rows:
        return Portion([], None)
    found = yield (
        "select c.emaid, c.undeliverable from evidence e join contract c "
        "on c.certificate_issuer = e.issuer and c.certificate_serial = e.serial "
        "where e.status = 'revoked' and (e.issuer, e.serial) > ($1, $2) and (e.issuer, e.serial) <= ($3, $4)",
        (*after, *rows[-1]),
    )
    emaids = (emaid for emaid, reported in found if not unreported or reported != UndeliverableReason.REVOKED)
    return portion(emaids, rows, limit)
