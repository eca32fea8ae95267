from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.external.scripted_server import Fake, scripted_server


@pytest.fixture
def fake() -> Iterator[Fake]:
    with scripted_server() as running:
        yield running
