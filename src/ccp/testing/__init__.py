"""Test kit for Plug & Charge: what trustme is for TLS.

It generates complete PKIs and plays the partners of a Contract Certificate Pool, with real cryptography. Use it to test
a pool, a CPS, or a back end of charging stations, without certificates from a test lab:

    from ccp.testing import PKI, Car, Provider

    pki = PKI.generate(edition="iso2")                      # or "iso20"
    car = Car.generate(pki, "WEX0TEST000000001")
    contract = Provider(pki, "DEEXA").sign_contract(car)    # contract.message: the signed CertificateInstallationRes

    session_id = bytes.fromhex("0011223344556677")
    request = car.request(session_id)                       # the signed CertificateInstallationReq
    response = deliver(contract.message, request)           # your system under test
    emaid, private_key = car.install(response, session_id)  # verifies and decrypts like a car, or raises
    assert emaid == contract.emaid

To test a pool of your own:

1. Add the certificates of `pki.trust_list()` to the pool's trust list, each with its role.
2. Publish `contract.message` for `contract.emaid`, `contract.pcid` and `contract.namespace`.
3. Send `request` as a charging station does, and give the response to `car.install`.

`Car.install` raises an error that names the failed check: another session id, an invalid chain or signature, a key for
another car. For negative tests, sign with a PKI that the pool does not trust, or issue certificates with a `Template`
of your own. `StatusURLs`, `sign_crl` and `sign_ocsp_response` add revocation.
"""

from ccp.testing.partners import (
    Car,
    IssuedContract,
    Provider,
    SignedContract,
    issue_contract,
    new_session_id,
    sign_contract,
)
from ccp.testing.pki import PKI, Credential, StatusURLs, Template
from ccp.testing.revocation import sign_crl, sign_ocsp_response

__all__ = [
    "PKI",
    "Car",
    "Credential",
    "IssuedContract",
    "Provider",
    "SignedContract",
    "StatusURLs",
    "Template",
    "issue_contract",
    "new_session_id",
    "sign_contract",
    "sign_crl",
    "sign_ocsp_response",
]
