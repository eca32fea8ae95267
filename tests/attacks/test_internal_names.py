"""Partners do not learn which names exist inside the operator's network, nor have the pool call them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import CapturingLogger

from ccp.server.external import outbound as module
from ccp.server.external import resolver
from ccp.server.external.outbound import OutboundClient, OutboundError
from ccp.testing.pki import PKI, StatusURLs
from tests.server.events.webhook_api import call
from tests.server.http.api.answers import sentences
from tests.world import AT, Pool, start

KNOWN = {"inside.corp.test": "10.1.2.3", "metadata.corp.test": "169.254.169.254", "six.corp.test": "fd00::1"}
SPECIAL = [
    "127.0.0.1", "10.1.2.3", "169.254.169.254", "192.0.0.8", "192.88.99.1", "[::1]", "[fd00::1]", "[3fff::1]",
    "[::ffff:10.0.0.1]", "[64:ff9b::a00:1]", "2130706433", "0x7f.1", "127.1", "localhost",
]  # fmt: skip
SUB2 = "eMSP Sub2 CA SIM"


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    system = resolver.system_lookup

    def lookup(host: str) -> list[str]:
        if host in KNOWN:
            return [KNOWN[host]]
        if host.endswith(".corp.test"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if host == "public.test":
            return ["93.184.216.34"]
        return system(host)

    def naming(host: str) -> Any:
        return PKI.generate(
            AT, status_urls=lambda ca: StatusURLs(ocsp=f"http://{host}/x") if ca == SUB2 else StatusURLs()
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolver, "system_lookup", lookup)
        pkis = {"iso2": PKI.generate(AT), "there": naming("inside.corp.test"), "nowhere": naming("nothing.corp.test")}
        with start(pkis) as running:
            yield running


def subscribe(pool: Pool, host: str) -> Any:
    return call(pool, "oem", "POST", json={"url": f"https://{host}/x", "enabledEvents": ["oem.contract.created"]})


def test_publisher_cannot_distinguish_internal_and_unknown_hosts(pool: Pool) -> None:
    statement = {}
    for kind, host in (("there", "inside.corp.test"), ("nowhere", "nothing.corp.test")):
        contract = pool.contract(pool.car(), signer=kind)
        (sentence,) = sentences(pool.put(contract), 503)
        statement[kind] = sentence.replace(host, "HOST").replace(str(contract.emaid), "EMAID")
    assert statement["there"] == statement["nowhere"]
    assert statement["there"].endswith("HOST cannot be reached.")


@pytest.mark.parametrize("host", [*SPECIAL, *KNOWN, "nothing.corp.test"])
def test_webhook_at_an_internal_host_is_refused(pool: Pool, host: str) -> None:
    answer = subscribe(pool, host)
    assert sentences(answer, 400) == [f"url : {host.strip('[]')} cannot be reached from this pool"]
    assert pool.sql("select count(*) from webhook") == [(0,)]


def test_webhook_may_not_move_to_an_internal_host(pool: Pool) -> None:
    made = subscribe(pool, "public.test")
    assert made.status_code == 201, made.text
    path = f"/{made.json()['id']}"
    moved = call(pool, "oem", "PUT", path, json={"url": "https://inside.corp.test/x"})
    assert sentences(moved, 400) == ["url : inside.corp.test cannot be reached from this pool"]
    KNOWN["public.test"] = "10.0.0.1"  # Its owner has moved it meanwhile.
    try:
        off = call(pool, "oem", "PUT", path, json={"url": "https://public.test/x", "status": "disabled"})
        assert (off.status_code, off.json()["status"]) == (200, "disabled")
    finally:
        del KNOWN["public.test"]
        call(pool, "oem", "DELETE", path)


def test_webhook_at_an_unresolved_host_is_accepted(pool: Pool) -> None:
    made = subscribe(pool, "hooks.example")
    assert made.status_code == 201
    call(pool, "oem", "DELETE", f"/{made.json()['id']}")


def test_host_reason_of_an_internal_name_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    log = CapturingLogger()
    monkeypatch.setattr(module, "_log", log)

    async def test() -> None:
        outbound = OutboundClient()
        for host in ("127.0.0.1", "hooks.example"):
            with pytest.raises(OutboundError) as caught:
                await outbound.request("GET", f"http://{host}/", block_private=True, owner="emsp")
            assert str(caught.value) == f"{host} cannot be reached."
        await outbound.close()

    asyncio.run(test())
    refused, failed = log.calls
    assert (refused.method_name, refused.args) == ("warning", ("outbound address refused",))
    assert refused.kwargs == {
        "host": "127.0.0.1",
        "owner": "emsp",
        "reason": "127.0.0.1 is not at a public address, which egress_allow_networks does not permit.",
    }
    assert (failed.method_name, failed.args) == ("info", ("outbound request failed",))
    assert "hooks.example was not resolved" in failed.kwargs["reason"]
