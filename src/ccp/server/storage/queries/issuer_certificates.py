"""Queries for the certificates that fingerprints in the configuration stand for."""

from __future__ import annotations

from datetime import datetime

from ccp.server.storage.engine.query import Query, read_committed, retryable
from ccp.server.storage.queries.change_counters import ChangeCounter, bump
from ccp.server.storage.queries.contracts import microseconds


@read_committed
def list_all() -> Query[list[bytes]]:
    """Certificates (DER) in which a configured fingerprint may be found: those that were remembered for it, trusted
    ones, and issuers of CRLs that were loaded, which an earlier release noted.
    """
    found = []
    for select in (
        "select certificate from issuer_certificate",
        "select distinct certificate from trust_anchor",
        "select distinct issuer_certificate from crl",
    ):
        found += [bytes(certificate) for (certificate,) in (yield select, ())]
    return list(dict.fromkeys(found))


@retryable
def add(fingerprint: str, certificate: bytes, now: datetime) -> Query[bool]:
    """Keep a certificate whose fingerprint is configured. Returns whether it was new; then every worker looks anew."""
    insert = """
    insert into issuer_certificate (fingerprint, certificate, seen_at) values ($1, $2, $3)
    on conflict (fingerprint) do nothing returning fingerprint
    """
    added = yield insert, (fingerprint, certificate, microseconds(now))
    if added:
        yield bump(ChangeCounter.ANCHORS)
    return bool(added)
