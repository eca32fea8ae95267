"""`ccp serve` with two workers and a service as in production: client certificate, OAuth 2.0, settings in a table."""

from __future__ import annotations

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.cli.run import ccp_ok
from tests.cli.served_sandbox import BASE, Sandbox, free_port, serving
from tests.scripted_server import Received, Reply, Scripted, error, granted, scripted
from tests.tls_files import PrivateCA
from tests.waiting import wait_until

SECRET = "hunter2-of-the-pool"


class ProvisioningPool:
    """A Provisioning Certificate Pool that knows no vehicle, and forgets its tokens when it restarts."""

    def __init__(self, server: Scripted) -> None:
        self.server = server
        self.valid: set[str] = set()
        self.accepted: list[str] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        server.on("/oauth/token", self._grant)
        server.on("/v1/oem/provCerts/*", self._refuse)

    def _grant(self, received: Received) -> Reply:
        with self._lock:
            token = f"granted-token-{next(self._numbers)}"
            self.valid.add(token)
        return granted(token, 86_400)

    def _refuse(self, received: Received) -> Reply:
        token = received.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.valid:
            return error(401, "The token is not valid.")
        self.accepted.append(token)
        return error(404, "The OEM provisioning certificate with given PCID is not found.")


@pytest.mark.slow
@pytest.mark.server
def test_served_services_renew_their_tokens_and_log_no_secret(tmp_path: Path) -> None:
    port = free_port()
    folder = tmp_path / "sandbox"
    ccp_ok("sandbox", folder, "--port", port)
    ca = PrivateCA(tmp_path)
    client = ca.issue("pool", client=True)
    (folder / "secret").write_text(f"{SECRET}\n")
    with scripted(ca.server(mutual=True)) as server:
        pcp = ProvisioningPool(server)
        with (folder / "ccp.toml").open("a") as file:
            file.write(f"""
workers = 2
log_level = "debug"
require_known_vehicle = false
[pcp]
url = "{server.url}"
dialect = "opcp"
token_url = "{server.url}/oauth/token"
client_id = "pool"
client_secret_file = "secret"
audience = "{server.url}"
ca = "{ca.ca}"
tls_cert = "{client.cert}"
tls_key = "{client.key}"
""")
        log = tmp_path / "log"
        sandbox = Sandbox(folder)
        with serving(sandbox.url, "--config", folder / "ccp.toml", log=log) as http:
            cps = sandbox.token(http, "cps")
            body = sandbox.samples("publish")[0]

            def visit() -> None:
                """Publish on a connection of its own, which either worker may accept. Publication uses no cache."""
                with httpx.Client(base_url=sandbox.url, timeout=10, headers=cps) as fresh:
                    assert fresh.put(f"{BASE}/signedcontractdata", json=body).status_code == 201

            def used() -> set[str]:
                with ThreadPoolExecutor(8) as callers:
                    for visited in [callers.submit(visit) for _ in range(8)]:
                        visited.result()
                return set(pcp.accepted)

            wait_until(lambda: len(used()) == 2)
            assert len(server.asked("/oauth/token")) == 2, "one for each worker"
            # It restarts and has forgotten them.
            before = len(server.received)
            pcp.valid.clear()
            pcp.accepted.clear()

            wait_until(lambda: len(used()) == 2)
            renewals = [one for one in server.received[before:] if one.target == "/oauth/token"]
            assert len(renewals) == 2
            assert all(json.loads(one.body)["client_secret"] == SECRET for one in renewals)
        text = log.read_text()
        assert "request handled" in text
        for hidden in (SECRET, "granted-token", client.key.read_text().splitlines()[1]):
            assert hidden not in text
