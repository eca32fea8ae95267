"""Published certificates, read from a folder beside the repository; they may not be distributed with it."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path

import pytest

from ccp.exi import decode
from ccp.x509.certificates import Certificate

SHARED = Path(__file__).resolve().parents[3] / "shared"
HERE = Path(__file__).resolve().parents[1] / "vectors"


def _message_bytes(name: str) -> bytes:
    for folder in (HERE, SHARED / "vectors"):
        if (folder / name).exists():
            return base64.b64decode((folder / name).read_text())
    pytest.skip(f"{name} is not here")


def public_root() -> Certificate:
    path = SHARED / "opnc-spec/components/schemas/rootCertificate.v1.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    schema = json.loads(path.read_text())
    return Certificate.load(base64.b64decode(schema["properties"]["caCertificate"]["example"]))


def provisioning_service_xml() -> str:
    """The XML document of a provisioning service, in Base64."""
    path = SHARED / "opcp-spec/cps.v1.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    schema = json.loads(path.read_text())["components"]["schemas"]["CreateSignedContractDataResponse"]
    text: str = schema["x-examples"]["example"]["signedData"]
    return text


@cache
def response_chains() -> dict[str, tuple[Certificate, ...]]:
    """The CPS chain and the contract chain of the published response, leaf first."""
    body = decode(_message_bytes("installation_res_iso2_opnc_example.b64")).Body
    chains = {"cps": body.SAProvisioningCertificateChain, "contract": body.ContractSignatureCertChain}
    return {
        name: tuple(Certificate.load(der) for der in (chain.Certificate, *(chain.SubCertificates or ())))
        for name, chain in chains.items()
    }


@cache
def request_leaf() -> Certificate:
    return Certificate.load(decode(_message_bytes("installation_req_iso2_opcp_example.b64")).Body.OEMProvisioningCert)
