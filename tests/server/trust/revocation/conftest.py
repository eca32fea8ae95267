"""A scripted responder, and a chain whose certificates name it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ccp.testing.pki import StatusURLs
from tests.scripted_server import Scripted, scripted
from tests.server.trust.revocation.made import (
    Branch,
    answer,
    branch,
    crl,
    serve_crl,
)


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted() as running:
        yield running


@pytest.fixture
def made(server: Scripted) -> Branch:
    """Sub-CA 1 and contracts name an OCSP responder, Sub-CA 2 a CRL that lists nothing."""
    made = branch(
        addresses={
            "root": StatusURLs(ocsp=server.url + "/root"),
            "sub1": StatusURLs(crl=server.url + "/sub1.crl"),
            "sub2": StatusURLs(ocsp=server.url + "/sub2"),
        }
    )
    server.on("/root", answer(made.sub1.certificate, made.root))
    serve_crl(server, "/sub1.crl", crl(made.sub1))
    return made
