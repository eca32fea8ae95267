"""The JSON form of messages, in both directions."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from ccp.exi import EXIError, encode, from_json, iso2, iso20, to_json
from tests.exi.messages import KINDS, Maker, messages
from tests.exi.samples import REQUEST, RESPONSE


@pytest.mark.parametrize("kind", KINDS)
def test_json_round_trips_messages(kind: str) -> None:
    for message in messages(kind, 60, seed=31):
        shown = to_json(message)
        assert from_json(json.loads(json.dumps(shown))) == message


def test_to_json_has_the_shape_of_the_schema() -> None:
    assert to_json(RESPONSE) == {
        "V2G_Message": {
            "Header": {"SessionID": "00"},
            "Body": {
                "CertificateInstallationRes": {
                    "ResponseCode": "OK",
                    "SAProvisioningCertificateChain": {
                        "Certificate": "bGVhZg==",
                        "SubCertificates": {"Certificate": ["c3Vi"]},
                    },
                    "ContractSignatureCertChain": {
                        "Id": "ID1",
                        "Certificate": "bGVhZg==",
                        "SubCertificates": {"Certificate": ["c3Vi"]},
                    },
                    "ContractSignatureEncryptedPrivateKey": {"Id": "ID2", "value": "A" * 64},
                    "DHpublickey": {"Id": "ID3", "value": "A" * 87 + "="},
                    "eMAID": {"Id": "ID4", "value": "DEICECOPNCCERT"},
                }
            },
        }
    }
    request = to_json(Maker(1).iso20_req())
    assert list(request) == ["CertificateInstallationReq"]
    roots = to_json(REQUEST)["V2G_Message"]["Body"]["CertificateInstallationReq"]["ListOfRootCertificateIDs"]
    assert roots == {"RootCertificateID": [{"X509IssuerName": "CN=root", "X509SerialNumber": 12345}]}


def test_from_json_reads_serial_numbers_as_numbers_and_digits() -> None:
    for serial in (0, -1, 2**63, 2**160, -(2**160), 2**320 - 1):
        for form in (serial, str(serial)):
            shown = to_json(REQUEST)
            body = shown["V2G_Message"]["Body"]["CertificateInstallationReq"]
            body["ListOfRootCertificateIDs"]["RootCertificateID"][0]["X509SerialNumber"] = form
            message = from_json(shown)
            assert isinstance(message, iso2.V2G_Message)
            assert isinstance(message.Body, iso2.CertificateInstallationReq)
            assert message.Body.ListOfRootCertificateIDs[0].X509SerialNumber == serial


_BODY = ("V2G_Message", "Body", "CertificateInstallationReq")


@pytest.mark.parametrize(
    ("where", "value", "path"),
    [
        (("V2G_Message",), None, "V2G_Message"),
        (("V2G_Message", "Header"), [], "V2G_Message/Header"),
        (("V2G_Message", "Header", "SessionID"), "0", "V2G_Message/Header/SessionID"),
        (("V2G_Message", "Header", "SessionID"), "0g", "V2G_Message/Header/SessionID"),
        (("V2G_Message", "Header", "SessionID"), "é", "V2G_Message/Header/SessionID"),
        (("V2G_Message", "Header", "SessionID"), 0, "V2G_Message/Header/SessionID"),
        (("V2G_Message", "Header", "SessionID"), None, "V2G_Message/Header/SessionID"),
        (("V2G_Message", "Header", "SessionID"), "00" * 9, "V2G_Message/Header/SessionID"),
        (("V2G_Message", "Header", "Other"), "00", "V2G_Message/Header"),
        (("V2G_Message", "Header", "Signature"), {}, "V2G_Message/Header/Signature/SignedInfo"),
        (("V2G_Message", "Body"), {}, "V2G_Message/Body"),
        ((*_BODY, "Id"), 1, "/".join((*_BODY, "Id"))),
        ((*_BODY, "Id"), "\ud800", "/".join((*_BODY, "Id"))),
        ((*_BODY, "OEMProvisioningCert"), "A", "/".join((*_BODY, "OEMProvisioningCert"))),
        ((*_BODY, "OEMProvisioningCert"), "AA==\n", "/".join((*_BODY, "OEMProvisioningCert"))),
        ((*_BODY, "OEMProvisioningCert"), "A-_A", "/".join((*_BODY, "OEMProvisioningCert"))),
        ((*_BODY, "OEMProvisioningCert"), "ü", "/".join((*_BODY, "OEMProvisioningCert"))),
        ((*_BODY, "ListOfRootCertificateIDs"), [], "/".join((*_BODY, "ListOfRootCertificateIDs"))),
        (
            (*_BODY, "ListOfRootCertificateIDs"),
            {"RootCertificateID": []},
            "/".join((*_BODY, "ListOfRootCertificateIDs", "RootCertificateID")),
        ),
        (
            (*_BODY, "ListOfRootCertificateIDs"),
            {"RootCertificateID": {}},
            "/".join((*_BODY, "ListOfRootCertificateIDs", "RootCertificateID")),
        ),
        (
            (*_BODY, "ListOfRootCertificateIDs"),
            {"RootCertificateID": [{"X509IssuerName": "x", "X509SerialNumber": 1}] * 21},
            "/".join((*_BODY, "ListOfRootCertificateIDs", "RootCertificateID")),
        ),
        *[
            (
                (*_BODY, "ListOfRootCertificateIDs"),
                {"RootCertificateID": [{"X509IssuerName": "x", "X509SerialNumber": serial}]},
                "/".join((*_BODY, "ListOfRootCertificateIDs", "RootCertificateID", "X509SerialNumber")),
            )
            for serial in (1.0, True, None, "", "x", "1" * 101, "1" * 5000, "１", " 1", 2**320, 10**9000)
        ],
    ],
)
def test_json_with_a_wrong_member_is_refused_with_its_path(where: tuple[str, ...], value: Any, path: str) -> None:
    shown = copy.deepcopy(to_json(REQUEST))
    place = shown
    for name in where[:-1]:
        place = place[name]
    place[where[-1]] = value
    with pytest.raises(EXIError) as caught:
        from_json(shown)
    assert caught.value.path == path


def test_json_without_a_mandatory_member_or_with_an_unknown_one_is_refused() -> None:
    def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        found = []
        if isinstance(value, dict):
            found = [path]
            for name, item in value.items():
                found += places(item, (*path, name))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                found += places(item, (*path, index))
        return found

    optional = {"Id", "Type", "URI", "Transforms", "XPath", "HMACOutputLength", "Signature", "Notification", "FaultMsg"}
    optional |= {"SubCertificates", "PrioritizedEMAIDs"}
    for kind in KINDS:
        message = messages(kind, 6, seed=32)[3]
        shown = to_json(message)
        for place in places(shown):
            for change in ("unknown", "missing"):
                other = copy.deepcopy(shown)
                target = other
                for step in place:
                    target = target[step]
                for name in list(target) if change == "missing" else ["Unknown"]:
                    if change == "unknown":
                        target[name] = "x"
                    elif name in optional:
                        continue
                    else:
                        kept = dict(target)
                        del target[name]
                    with pytest.raises(EXIError):
                        from_json(other)
                    if change == "missing":
                        target.clear()
                        target.update(kept)


@pytest.mark.parametrize("value", [None, [], {}, "x", {"Other": {}}, {"V2G_Message": {}, "Other": {}}, {1: 2}, 5])
def test_json_with_other_values_is_refused(value: object) -> None:
    with pytest.raises(EXIError):
        from_json(value)


def test_body_with_two_messages_is_refused() -> None:
    shown = to_json(REQUEST)
    shown["V2G_Message"]["Body"].update(to_json(RESPONSE)["V2G_Message"]["Body"])
    with pytest.raises(EXIError) as caught:
        from_json(shown)
    assert caught.value.path == "V2G_Message/Body"


def test_json_with_two_encrypted_keys_or_none_is_refused() -> None:
    shown = to_json(Maker(1).iso20_res())
    data = shown["CertificateInstallationRes"]["SignedInstallationData"]
    data.update(SECP521_EncryptedPrivateKey="AA==", X448_EncryptedPrivateKey="AA==")
    with pytest.raises(EXIError) as caught:
        from_json(shown)
    assert caught.value.path == "CertificateInstallationRes/SignedInstallationData"
    for name in ("SECP521", "X448", "TPM"):
        data.pop(f"{name}_EncryptedPrivateKey", None)
    with pytest.raises(EXIError):
        from_json(shown)


def test_message_that_breaks_the_schema_is_not_shown() -> None:
    for broken in (None, REQUEST._replace(Header=None), iso20.Header(b"", 1)):  # type: ignore[arg-type]
        with pytest.raises(EXIError):
            to_json(broken)  # type: ignore[arg-type]
        with pytest.raises(EXIError):
            encode(broken)  # type: ignore[arg-type]
