"""OCSP responders, and a pool whose certificates name them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ccp.testing.pki import PKI, Algorithm
from tests.scripted_server import scripted
from tests.server.http.api.responders import LOOPBACK, Responder, pki_with_responder
from tests.server.http.api.revocable import cas
from tests.world import Pool, start


@pytest.fixture(scope="module")
def responder() -> Iterator[Responder]:
    with scripted() as server:
        yield Responder(server)


@pytest.fixture(scope="module")
def named(responder: Responder) -> dict[str, PKI]:
    """iso2 and iso20, whose certificates all name a responder that answers."""
    made = {}
    algorithms: dict[str, Algorithm] = {"iso2": "P-256", "iso20": "P-521"}
    for edition, algorithm in algorithms.items():
        pki = made[edition] = pki_with_responder(f"{responder.server.url}/{edition}", algorithm=algorithm)
        responder.register(*cas(pki), prefix=f"/{edition}")
    return made


@pytest.fixture(scope="module")
def around(named: dict[str, PKI], pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool whose certificates name responders, except for those of the PKIs `plain` and `ed448`."""
    worlds = {**named, "plain": pkis["iso2"], "ed448": pkis["ed448"], "stranger": pkis["stranger"]}
    with start(worlds, egress_allow_networks=LOOPBACK) as pool:
        yield pool
