"""Encoding refuses messages that break the schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ccp.exi import EXIError, encode, iso2, iso20
from tests.exi.messages import Maker
from tests.exi.samples import CHAIN, REQUEST, RESPONSE

BROKEN: list[tuple[Callable[[], Any], str]] = [
    (lambda: REQUEST._replace(Header=None), "V2G_Message"),
    (lambda: REQUEST._replace(Body=None), "V2G_Message"),
    (lambda: REQUEST._replace(Body="x"), "V2G_Message/Body"),
    (lambda: REQUEST._replace(Header=("x",)), "V2G_Message/Header"),
    (lambda: REQUEST._replace(Header=iso2.Header("00")), "V2G_Message/Header/SessionID"),
    (lambda: REQUEST._replace(Header=iso2.Header(bytearray(3))), "V2G_Message/Header/SessionID"),
    (lambda: REQUEST._replace(Header=iso2.Header(bytes(9))), "V2G_Message/Header/SessionID"),
    (lambda: REQUEST._replace(Header=iso2.Header(None)), "V2G_Message/Header"),
    (
        lambda: REQUEST._replace(Header=iso2.Header(b"", iso2.Notification("Unknown"))),
        "V2G_Message/Header/Notification/FaultCode",
    ),
    (
        lambda: REQUEST._replace(Header=iso2.Header(b"", iso2.Notification("UnknownError", "x" * 65))),
        "V2G_Message/Header/Notification/FaultMsg",
    ),
    (
        lambda: REQUEST._replace(Body=REQUEST.Body._replace(Id="\ud800")),
        "V2G_Message/Body/CertificateInstallationReq/Id",
    ),
    (lambda: REQUEST._replace(Body=REQUEST.Body._replace(Id="\0")), "V2G_Message/Body/CertificateInstallationReq/Id"),
    (
        lambda: REQUEST._replace(Body=REQUEST.Body._replace(Id="x" * 1025)),
        "V2G_Message/Body/CertificateInstallationReq/Id",
    ),
    (
        lambda: REQUEST._replace(Body=REQUEST.Body._replace(OEMProvisioningCert=bytes(801))),
        "V2G_Message/Body/CertificateInstallationReq/OEMProvisioningCert",
    ),
    (
        lambda: REQUEST._replace(Body=REQUEST.Body._replace(ListOfRootCertificateIDs=())),
        "V2G_Message/Body/CertificateInstallationReq/ListOfRootCertificateIDs",
    ),
    (
        lambda: REQUEST._replace(Body=REQUEST.Body._replace(ListOfRootCertificateIDs=[])),
        "V2G_Message/Body/CertificateInstallationReq/ListOfRootCertificateIDs/RootCertificateID",
    ),
    (
        lambda: REQUEST._replace(Body=REQUEST.Body._replace(ListOfRootCertificateIDs=(None,))),
        "V2G_Message/Body/CertificateInstallationReq/ListOfRootCertificateIDs/RootCertificateID",
    ),
    (
        lambda: REQUEST._replace(
            Body=REQUEST.Body._replace(ListOfRootCertificateIDs=(iso2.X509IssuerSerial("x", 2**320),))
        ),
        "V2G_Message/Body/CertificateInstallationReq/ListOfRootCertificateIDs/RootCertificateID/X509SerialNumber",
    ),
    (
        lambda: REQUEST._replace(
            Body=REQUEST.Body._replace(ListOfRootCertificateIDs=(iso2.X509IssuerSerial("x", True),))
        ),
        "V2G_Message/Body/CertificateInstallationReq/ListOfRootCertificateIDs/RootCertificateID/X509SerialNumber",
    ),
    (
        lambda: RESPONSE._replace(Body=RESPONSE.Body._replace(ResponseCode=["OK"])),
        "V2G_Message/Body/CertificateInstallationRes/ResponseCode",
    ),
    (
        lambda: RESPONSE._replace(Body=RESPONSE.Body._replace(eMAID=iso2.EMAID("ID", "x" * 16))),
        "V2G_Message/Body/CertificateInstallationRes/eMAID",
    ),
    (
        lambda: Maker(1).iso20_req()._replace(MaximumContractCertificateChains=256),
        "CertificateInstallationReq/MaximumContractCertificateChains",
    ),
    (
        lambda: Maker(1).iso20_req()._replace(MaximumContractCertificateChains=-(10**6000)),
        "CertificateInstallationReq/MaximumContractCertificateChains",
    ),
    (
        lambda: Maker(1).iso20_req()._replace(Header=iso20.Header(b"", 2**64)),
        "CertificateInstallationReq/Header/TimeStamp",
    ),
    (
        lambda: Maker(1).iso20_res()._replace(RemainingContractCertificateChains=None),
        "CertificateInstallationRes",
    ),
    (
        lambda: RESPONSE._replace(
            Body=RESPONSE.Body._replace(ContractSignatureCertChain=CHAIN._replace(SubCertificates=(None,)))
        ),
        "V2G_Message/Body/CertificateInstallationRes/ContractSignatureCertChain/SubCertificates/Certificate",
    ),
    (
        lambda: Maker(1).iso20_req()._replace(PrioritizedEMAIDs=("x", None)),
        "CertificateInstallationReq/PrioritizedEMAIDs/EMAID",
    ),
    (
        lambda: Maker(1).iso20_req()._replace(PrioritizedEMAIDs=("x", "x" * 256)),
        "CertificateInstallationReq/PrioritizedEMAIDs/EMAID",
    ),
    (lambda: _with_keys(None, None, None), "CertificateInstallationRes/SignedInstallationData"),
    (lambda: _with_keys(b"", b"", None), "CertificateInstallationRes/SignedInstallationData"),
    (
        lambda: _with_keys(None, None, bytes(207)),
        "CertificateInstallationRes/SignedInstallationData/TPM_EncryptedPrivateKey",
    ),
    (
        lambda: tuple.__new__(iso2.V2G_Message, (REQUEST.Header,)),
        "V2G_Message",
    ),
    (lambda: None, ""),
    (lambda: (1, 2), ""),
]


def _with_keys(*keys: bytes | None) -> iso20.CertificateInstallationRes:
    response = Maker(1).iso20_res()
    data = iso20.SignedInstallationData(*response.SignedInstallationData[:4], *keys)
    return response._replace(SignedInstallationData=data)


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_message_that_breaks_the_schema_is_refused_with_its_path(number: int) -> None:
    make, path = BROKEN[number]
    with pytest.raises(EXIError) as caught:
        encode(make())
    assert caught.value.path == path
    assert caught.value.offset is None
