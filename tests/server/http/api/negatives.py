"""Negative responses to vehicles."""

from __future__ import annotations

import time

from ccp import exi
from ccp.exi import iso2
from ccp.ids import Namespace
from ccp.testing.partners import Car
from tests.server.http.api.answers import sentences
from tests.world import (
    AT,
    SESSION,
    Pool,
    post_body,
    read,
    response_bytes,
)

EDITIONS = ["iso2", "iso20", "ed448"]


def negative(pool: Pool, car: Car, encoded: bytes | None = None, session: bytes = SESSION) -> tuple[str, str]:
    """Ask for a car that must get nothing. Returns the response code of the message and the reason in words.

    The whole answer is checked in both of its forms.
    """
    body = post_body(encoded or car.request(session, AT), str(car.namespace))
    answer = pool.cpo.post("/signedcontractdata", json=body)
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["signedContractDataCollection"]
    assert sorted(item) == ["certificateInstallationRes", "emaid", "metaData", "pcid", "xsdMsgDefNamespace"]
    assert (item["emaid"], item["pcid"]) == ("ZZZZZ000000000", car.pcid)
    assert item["xsdMsgDefNamespace"] == str(car.namespace)
    message = exi.decode(response_bytes(item))
    assert message.Header.SessionID == session
    assert message.Header.Signature is None
    response = read(item)
    assert response.cps_certificate == response.contract_certificate == b"\0"
    lengths = (65, 48) if car.namespace is Namespace.ISO2 else (133, 94)
    assert (response.dh_public_key, response.encrypted_key) == tuple(map(bytes, lengths))
    if car.namespace is Namespace.ISO2:
        notification = message.Header.Notification
        assert notification.FaultCode == "UnknownError"
        assert 0 < len(notification.FaultMsg) <= 64
        assert message.Body.eMAID == iso2.EMAID("id4", "ZZZZZ000000000")
        assert message.Body.ContractSignatureEncryptedPrivateKey.Id == "id2"
        assert message.Body.DHpublickey.Id == "id3"
    else:
        assert abs(message.Header.TimeStamp - time.time()) < 60
        assert message.SignedInstallationData.Id == "id1"
        assert (message.EVSEProcessing, message.RemainingContractCertificateChains) == ("Finished", 0)
    bare = pool.cpo.post("/signedcontractdata", json=body, headers={"alwaysReturnEXI": "false"})
    assert sentences(bare, 404) == [item["metaData"]]
    return response.response_code, item["metaData"]
