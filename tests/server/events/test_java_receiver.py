"""A receiver in Java through a rotation: an independent HMAC, HTTP server and comparison."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ccp.testing.pki import PKI
from tests.server.events.webhook_api import CREATED, call, ok, subscribe
from tests.world import Pool, start

pytestmark = pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed")

SOURCE = Path(__file__).with_name("JavaReceiver.java")


@pytest.fixture(scope="module")
def java() -> Iterator[str]:
    """The receiver's URL, to which a path with its secret at the end is added."""
    with subprocess.Popen(["java", str(SOURCE)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    options: dict[str, Any] = {"event_allow_http": True, "egress_allow_networks": ("127.0.0.0/8",)}
    with start({}, event_pings_per_minute=0, **options) as running:
        yield running


def test_java_receiver_accepts_events_through_a_rotation(pool: Pool, java: str) -> None:
    made = subscribe(pool, "oem", CREATED, url=java + "/unknown")

    def pinged(secret: str) -> tuple[int, bool]:
        """Let the receiver know this secret. Returns what it answers, and whether to the previous one."""
        ok(call(pool, "oem", "PUT", f"/{made['id']}", json={"url": f"{java}/{secret}"}))
        result = ok(call(pool, "oem", "POST", f"/{made['id']}/ping"))
        return result["status"], result["previousSecret"]

    assert pinged(made["secret"]) == (200, False)
    assert pinged("another") == (401, False)
    new = ok(call(pool, "oem", "POST", f"/{made['id']}/secret"))["secret"]
    assert pinged(made["secret"]) == (200, True)
    assert pinged(new) == (200, False)
    last = ok(call(pool, "oem", "POST", f"/{made['id']}/secret", json={"overlap": 0}))["secret"]
    assert pinged(new) == pinged(made["secret"]) == (401, False)
    assert pinged(last) == (200, False)
