"""Publications that a test changes before it sends them."""

from __future__ import annotations

from typing import Any

from ccp.testing.partners import Car, IssuedContract, issue_contract, sign_contract
from ccp.testing.pki import PKI
from tests.server.http.api.answers import sentences
from tests.world import AT, Contract, Pool, new_emaid, put_body

EDITIONS = ["iso2", "iso20", "ed448"]


def refused(pool: Pool, contract: Contract, caller: str = "cps", **members: Any) -> list[str]:
    """Publish something that must not be stored. members: of the body, to replace."""
    before = pool.stored(contract.emaid)
    answer = pool.client(caller).put("/signedcontractdata", json={**contract.body, **members})
    messages = sentences(answer, 400)
    assert pool.stored(contract.emaid) == before
    return messages


def bundle_of(pool: Pool, car: Car, pki: PKI) -> IssuedContract:
    return issue_contract(pki, new_emaid(), car.pcid, car.provisioning.certificate, AT)


def signed(pki: PKI, bundle: IssuedContract, car: Car) -> Contract:
    encoded = sign_contract(pki, bundle, AT)
    body = put_body(encoded, bundle.emaid, car.pcid, str(car.namespace))
    return Contract(bundle.emaid, encoded, body, bundle.contract.certificate.der)
