"""PKIs of every kind that a message can be signed with."""

from __future__ import annotations

import pytest

from ccp.testing.pki import PKI
from tests.verify.messages import KINDS


@pytest.fixture(scope="module", params=KINDS)
def pki(request: pytest.FixtureRequest, pkis: dict[str, PKI]) -> PKI:
    return pkis[request.param]
