"""Responses and events of a Provisioning Certificate Pool, and a stored contract."""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timedelta
from typing import Any, Final

from ccp import verify
from ccp.ids import PCID
from ccp.server.domain.contracts import SignedContract, signed_contract
from ccp.server.external.provisioning_pool import key_fingerprint
from ccp.testing.partners import Car, issue_contract, sign_contract
from ccp.testing.pki import PKI, Credential
from ccp.x509.revocation_policy import NoRevocationCheck
from tests.scripted_server import Scripted, json_reply
from tests.world import AT, b64, new_emaid, new_pcid

HAPPENED: Final = AT - timedelta(minutes=30)


def chain_body(vehicle: Credential, **more: Any) -> dict[str, Any]:
    """The published response with a vehicle's chain."""
    sub2, sub1 = vehicle.sub_cas
    chain = {
        "certificate": b64(vehicle.certificate.der),
        "subCA1Certificate": b64(sub1.der),
        "subCA2Certificate": b64(sub2.der),
    }
    return {"provisioningCertificate": {"provisioningCertificateChain": chain, **more}}


def serve_chain(pcp: Scripted, car: Car) -> str:
    """Let the fake pool return a car's chain. Returns the fingerprint of its key."""
    pcp.on(f"/provisioningcertificates/{car.pcid}", json_reply(chain_body(car.provisioning)))
    return key_fingerprint(car.provisioning.certificate)


def provisioning_event(
    kind: str, pcid: Any, at: datetime | str | None = HAPPENED, namespace: str | None = None
) -> bytes:
    """The body of an event about a vehicle's provisioning certificate."""
    members: dict[str, Any] = {
        "eventId": str(uuid.uuid4()),
        "eventType": kind,
        "timestamp": at.isoformat() if isinstance(at, datetime) else at,
        "payload": {"emaid": "DEEXAC000000001", "pcid": pcid},
    }
    if namespace is not None:
        members["xsdMsgDefNamespace"] = namespace
    return json.dumps(members).encode()


def stored_contract(pki: PKI) -> SignedContract:
    """A contract as the pool stores it."""
    emaid, pcid = new_emaid(), new_pcid()
    car = Car.generate(pki, pcid, AT)
    message = sign_contract(pki, issue_contract(pki, emaid, pcid, car.provisioning.certificate, AT), AT)
    verified = verify.check_response(
        verify.read_response(message, car.namespace),
        emaid=emaid,
        root=None,
        anchors=pki.anchors(),
        revocation=NoRevocationCheck(),
        now=AT,
    )
    return signed_contract(verified, PCID(pcid), None, AT)
