"""A pool with a console, partners that send markup in every field that they control, and an OpenID provider."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from ccp.server.storage.queries import peers, webhooks
from ccp.server.storage.queries.peers import Peer
from ccp.server.trust.anchors import AnchorRole, add_anchor, trusted_certificate
from ccp.testing.partners import Car
from ccp.testing.pki import CPS, PKI, SUB_CA2, build_root
from tests.scripted_server import Reply, Scripted, scripted
from tests.server.console.browsing import admin
from tests.server.console.openid_provider import CLIENT_ID, SECRET, OpenIDProvider, openid_provider
from tests.server.events.receiver import webhook
from tests.tls_files import PrivateCA
from tests.waiting import wait_until
from tests.world import AT, Contract, Pool, start

HOSTILE = "'\"><img src=/xss onerror=alert(1)><script>alert(1)</script>"
"""Markup of 58 characters, which fit into a common name. A page that does not escape it has an element of it."""


@dataclass
class Place:
    """The pool, the systems around it, and what is stored. webhook_id: one event of it was given up."""

    pool: Pool
    receiver: Scripted
    provider: OpenIDProvider
    car: Car
    contract: Contract
    webhook_id: str

    @property
    def secret(self) -> str:
        return self.pool.world.member("admin").secret

    def broken(self) -> bytes:
        """The message of the contract with one byte changed."""
        message = bytearray(self.contract.message)
        message[2200] ^= 1
        return bytes(message)

    def give_up(self) -> str:
        """Let the webhook refuse an event for ever. Returns the EMAID of the event."""
        self.receiver.on("/hooks", Reply(400, HOSTILE.encode()))
        emaid = str(self.pool.publish(self.pool.car()).emaid)
        wait_until(lambda: self.pool.sql("select 1 from delivery where emaid = ? and state = 'dead'", emaid))
        self.receiver.on("/hooks", Reply(200))
        return emaid


@contextmanager
def place(pkis: dict[str, PKI], folder: Path) -> Iterator[Place]:
    """A running place."""
    ca = PrivateCA(folder)
    with (
        scripted() as receiver,
        openid_provider(ca.server("provider")) as provider,
        start(pkis, [admin(), admin("other_admin")], **_options(provider, ca)) as pool,
    ):
        yield _filled(pool, receiver, provider)


def _options(provider: OpenIDProvider, ca: PrivateCA) -> dict[str, Any]:
    return {
        "console": True,
        "try_it": True,
        "try_it_per_minute": 0,
        "login_failures_per_minute": 0,
        "rate_limit_unauthenticated": 0,
        "refresh_interval": 0.05,
        "statistics_interval": 10,
        "event_dispatch": True,
        "event_allow_http": True,
        "event_pings_per_minute": 0,
        "egress_allow_networks": ("127.0.0.0/8",),
        "console_oidc": {
            "issuer": provider.issuer,
            "client_id": CLIENT_ID,
            "client_secret": SECRET,
            "name": f"Example {HOSTILE}",
            "admin_roles": ["pool-admin"],
            "viewer_roles": ["pool-viewer"],
            "ca": str(ca.ca),
        },
    }


def _filled(pool: Pool, receiver: Scripted, provider: OpenIDProvider) -> Place:
    """Store what a partner can store, with markup wherever a partner may write a text."""
    root = build_root(HOSTILE, now=AT).certificate
    pool.change(add_anchor(trusted_certificate(root, AnchorRole.EMSP, HOSTILE, AT, HOSTILE), HOSTILE, AT))
    pool.sql("update party set name = ? where client_id = 'oem'", HOSTILE)
    subscribed = webhook(
        f"{receiver.url}/hooks", "oem", "oem.contract.created", description=HOSTILE, metadata={HOSTILE: HOSTILE}
    )
    pool.change(webhooks.put(subscribed))
    car = pool.car()
    contract = pool.publish(car, signer=hostile_pki(pool.pki()), body={"metaData": HOSTILE})
    pool.publish(car, valid=(AT - timedelta(days=300), AT + timedelta(days=9)))
    pool.change(peers.add(Peer("DE*PEER", "https://peer.example", client_id=HOSTILE, secret="s", enabled=False), AT))
    here = Place(pool, receiver, provider, car, contract, subscribed.id)
    here.give_up()
    headers = {"User-Agent": HOSTILE, "X-Trace-Id": HOSTILE, "X-Request-Id": HOSTILE, "traceparent": HOSTILE}
    pool.http.get("/opnc/v1/ccp/contractData/emaid/DEEXAC00000001", headers={**headers, "Authorization": HOSTILE})
    pool.http.post("/oauth/token", data={"grant_type": "client_credentials", "client_id": HOSTILE}, headers=headers)
    for path in (f"/contractData/emaid/{HOSTILE}", f"/contractData/pcid/{HOSTILE}"):
        assert pool.emsp.get(path, headers=headers).status_code >= 400
    assert pool.put(pool.contract(car, body={"emaid": HOSTILE, "pcid": HOSTILE})).status_code == 400
    assert pool.post(pool.car("stranger"), headers=headers).status_code == 200  # With a reason in place of a contract.
    assert pool.post(pool.car(), headers=headers).status_code == 200
    return here


def hostile_pki(pki: PKI) -> PKI:
    """The PKI with markup in the names of its issuing CA and of its CPS."""
    return dataclasses.replace(
        pki,
        emsp_sub2=pki.emsp_sub1.issue(HOSTILE, SUB_CA2, now=AT),
        cps=pki.cps_sub2.issue(HOSTILE, CPS, now=AT),
    )
