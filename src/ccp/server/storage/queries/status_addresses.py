"""Queries for diagnosis: from which addresses the pool gets the revocation status of stored certificates.

The tables may have a row for each of a million contracts. So nothing is counted or scanned: the next issuer is found
by an index, and one certificate of each issuer stands for all of its certificates.
"""

from __future__ import annotations

from ccp.server.storage.engine.query import Query, long_read


@long_read
def list_crl_urls(limit: int) -> Query[list[str]]:
    """The addresses of stored CRLs. The table has one row for each issuer and address."""
    rows = yield "select distinct url from crl order by url limit $1", (limit,)
    return [row[0] for row in rows]


@long_read
def list_watched_samples(max_issuers: int) -> Query[list[bytes]]:
    """One certificate (DER) of each issuer whose certificates are checked again by OCSP, of so many issuers at most."""
    found: list[bytes] = []
    after = ""
    while len(found) < max_issuers:
        rows = yield (
            "select issuer, certificate from watched_certificate where issuer > $1 order by issuer limit 1",
            (after,),
        )
        if not rows:
            break
        after = rows[0][0]
        found.append(bytes(rows[0][1]))
    return found
