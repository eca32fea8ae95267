from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.external.neighbours.fakes import Fake, neighbour


@pytest.fixture
def fake() -> Iterator[Fake]:
    with neighbour() as running:
        yield running
