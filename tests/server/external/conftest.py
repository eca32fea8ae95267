from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scripted_server import Scripted, scripted


@pytest.fixture
def fake() -> Iterator[Scripted]:
    with scripted() as running:
        yield running
