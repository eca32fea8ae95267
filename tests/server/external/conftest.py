from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.external.scripted_server import ScriptedServer, scripted_server


@pytest.fixture
def fake() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running
