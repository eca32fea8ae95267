"""Queries for the CRLs in the database, for operators."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ccp.server.storage.engine.query import Query, long_read, retryable
from ccp.server.storage.queries.audit import Action, Entry
from ccp.server.storage.queries.contracts import instant


@dataclass(frozen=True, slots=True)
class CRLRecord:
    """The latest list of an issuer from one URL.

    issuer: its `Certificate.issuer_key_id`. number: None without a CRL number.
    """

    issuer: str
    url: str
    issuer_certificate: bytes
    number: int | None
    this_update: datetime
    next_update: datetime
    fetched_at: datetime


@long_read
def list_all(url: str | None = None) -> Query[list[CRLRecord]]:
    """All lists, or those from one address."""
    select = """
    select issuer, url, issuer_certificate, number, this_update, next_update, fetched_at from crl
    where url = $1 or $1 is null order by url, issuer
    """
    return [
        CRLRecord(
            issuer,
            place,
            bytes(certificate),
            None if number is None else int(number),
            instant(this_update),
            instant(next_update),
            instant(fetched_at),
        )
        for issuer, place, certificate, number, this_update, next_update, fetched_at in (yield select, (url,))
    ]


@retryable
def accept_any_number(issuer: str, url: str) -> Query[CRLRecord | None]:
    """Accept the next list with any CRL number, and fetch it soon. Returns the list as it was; None without one."""
    held = next((record for record in (yield from list_all(url)) if record.issuer == issuer), None)
    if held is not None:
        # Validators are cleared too, or the server would answer that the list is unchanged.
        yield (
            "update crl set number = null, etag = null, last_modified = null, refresh_at = 0 "
            "where issuer = $1 and url = $2",
            (issuer, url),
        )
    return held


def accepted_entry(held: CRLRecord, label: str, actor: str, now: datetime) -> Entry:
    """The audit entry."""
    subject = {"issuer": held.issuer, "label": label, "url": held.url, "number": held.number}
    return Entry(now, actor, Action.CRL_NUMBER_ACCEPTED, subject)
