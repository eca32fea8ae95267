"""Isolation of CAs in the refresh of revocation evidence."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from ccp.testing.pki import StatusURLs
from ccp.x509.certificates import Certificate
from tests.scripted_server import Received, Reply, Scripted, scripted
from tests.server.trust.revocation.made import AT, Bench, answer, branch, run


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted() as running:
        yield running


def test_refresh_of_one_issuer_is_not_delayed_by_another(server: Scripted) -> None:
    """The other CA's certificates are due first, and name the host of the victim's responder."""
    attacker, victim = (
        branch(addresses={"sub2": StatusURLs(ocsp=f"{server.url}/{name}")}) for name in ("attacker", "victim")
    )
    victim_asked, overtaken = threading.Event(), []

    async def test(bench: Bench) -> None:
        for one, path in ((attacker, "/attacker"), (victim, "/victim")):
            leaf: Certificate = one.contract().certificate
            response = answer(leaf, one.sub2)
            server.on(path, response)
            await bench.service.ensure_good([one.chain(leaf)], AT)

            def refreshing(request: Received, path: str = path, response: bytes = response) -> Reply:
                if path == "/victim":
                    victim_asked.set()
                else:
                    overtaken.append(victim_asked.wait(1.5))
                return Reply(body=response)

            server.on(path, refreshing)
        await bench.service.refresh_due(AT + timedelta(minutes=31))

    run(test)
    assert overtaken == [True]
