"""Queries for the certificates that the fingerprints in the configuration refer to."""

from __future__ import annotations

from datetime import datetime

from ccp.server.storage.engine.query import Query, read_committed, retryable
from ccp.server.storage.queries.change_counters import ChangeCounter, bump
from ccp.server.storage.queries.contracts import microseconds


@read_committed
def list_all() -> Query[list[bytes]]:
    """Candidates (DER) for a configured fingerprint: stored issuer certificates, trusted certificates, and issuers of
    CRLs, which an earlier release stored.
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
    """Store a certificate whose fingerprint is configured. Returns whether it was new; then every worker reloads."""
    insert = """
    insert into issuer_certificate (fingerprint, certificate, seen_at) values ($1, $2, $3)
    on conflict (fingerprint) do nothing returning fingerprint
    """
    added = yield insert, (fingerprint, certificate, microseconds(now))
    if added:
        yield bump(ChangeCounter.ANCHORS)
    return bool(added)
