"""Byte for byte against EXIficient. What its jar does differently has a case of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ccp.exi import ISO2, ISO20, decode, encode, encode_fragment, encode_signed_info, from_json, iso2, iso20, to_json
from ccp.exi.json import _dump
from ccp.exi.schema import ElementType
from ccp.exi.xmldsig import (
    SIGNED_INFO,
    CanonicalizationMethod,
    DigestMethod,
    Reference,
    SignatureMethod,
    SignedInfo,
    Transform,
)
from tests.exi import judge as judging
from tests.exi.messages import KINDS, Maker, messages

MESSAGES = 500
NAMESPACES = {"iso2": judging.ISO2, "iso20": judging.ISO20}
_EXI = "http://www.w3.org/TR/canonical-exi/"


@pytest.fixture(scope="module")
def judge() -> judging.Judge:
    if reason := judging.missing():
        pytest.skip(reason)
    return judging.judge()


def _plain(value: Any) -> Any:
    """The jar shows HMACOutputLength as a list, an artefact of how Java binds mixed content; it takes both."""
    if isinstance(value, dict):
        return {name: _plain(v[0] if name == "HMACOutputLength" else v) for name, v in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", KINDS)
def test_judge_writes_and_reads_random_messages_as_the_codec_does(judge: judging.Judge, kind: str) -> None:
    namespace = NAMESPACES[kind.split("_")[0]]
    for number, message in enumerate(messages(kind, MESSAGES, seed=2024, judge=True)):
        ours = encode(message)
        text = judge.decode(ours, namespace)
        theirs = judge.encode(json.dumps(to_json(message)), namespace)
        assert theirs == ours
        assert _plain(json.loads(text)) == to_json(decode(theirs)) == to_json(message)
        assert from_json(_plain(json.loads(text))) == message
        if number < 5:
            assert judge.plain_decode(ours, namespace) == text
            assert judge.plain_encode(json.dumps(to_json(message)), namespace) == theirs


def test_decode_accepts_the_endless_form_of_a_full_list_of_exificient(
    judge: judging.Judge,
) -> None:
    roots = tuple(iso2.X509IssuerSerial(f"CN={n}", n) for n in range(20))
    message = iso2.V2G_Message(iso2.Header(b"\1"), iso2.CertificateInstallationReq("ID1", b"\2", roots))
    ours = encode(message)
    theirs = judge.plain_encode(json.dumps(to_json(message)), judging.ISO2)
    assert theirs != ours
    assert decode(theirs) == decode(ours) == message


def test_judge_writes_empty_values_that_the_codec_reads(judge: judging.Judge) -> None:
    chain = iso2.CertificateChain(None, b"", (b"", b"\1"))
    body = iso2.CertificateInstallationRes(
        "FAILED",
        chain,
        chain,
        iso2.ContractSignatureEncryptedPrivateKey("a", b""),
        iso2.DHpublickey("b", b""),
        iso2.EMAID("c", ""),
    )
    message = iso2.V2G_Message(iso2.Header(b"", iso2.Notification("UnknownError", "")), body)
    theirs = judge.plain_encode(json.dumps(to_json(message)), judging.ISO2)
    assert theirs != encode(message)
    assert decode(theirs) == message
    assert json.loads(judge.plain_decode(encode(message), judging.ISO2)) == to_json(message)


def _iso2_elements(maker: Maker) -> list[tuple[str, Any]]:
    return [
        ("CertificateInstallationReq", maker.iso2_req_body()),
        ("ContractSignatureCertChain", maker.iso2_chain()._replace(Id="chain")),
        ("ContractSignatureEncryptedPrivateKey", iso2.ContractSignatureEncryptedPrivateKey("k", maker.encoded(48))),
        ("DHpublickey", iso2.DHpublickey("dh", maker.encoded(65))),
        ("eMAID", maker.iso2_emaid()),
    ]


def _text(record: ElementType, name: str, value: Any) -> str:
    return json.dumps({name: _dump(record, value)})


@pytest.mark.parametrize("seed", range(12))
def test_iso2_fragments_are_written_as_exificient_does(judge: judging.Judge, seed: int) -> None:
    for name, value in _iso2_elements(Maker(seed, judge=True)):
        theirs = judge.plain_encode(_text(iso2.FRAGMENTS[name][1], name, value), judging.ISO2)
        assert theirs == encode_fragment(name, value, ISO2), name


@pytest.mark.parametrize("seed", range(12))
def test_iso20_fragments_are_written_as_exificient_does(judge: judging.Judge, seed: int) -> None:
    maker = Maker(seed, judge=True)
    name, chain = "OEMProvisioningCertificateChain", maker.iso20_oem_chain()
    theirs = judge.plain_encode(_text(iso20.FRAGMENTS[name][1], name, chain), judging.ISO20)
    assert theirs == encode_fragment(name, chain, ISO20)

    # The jar does not know that SignedInstallationData is to be a fragment and writes a document (the code of its
    # root has 6 bits); the content is the same.
    name, signed = "SignedInstallationData", maker.iso20_signed()
    theirs = judge.plain_encode(_text(iso20.FRAGMENTS[name][1], name, signed), judging.ISO20)
    document = f"{int.from_bytes(theirs):0{8 * len(theirs)}b}"[14:]
    ours = encode_fragment(name, signed, ISO20)
    content = f"{int.from_bytes(ours):0{8 * len(ours)}b}"[17:]
    end = content.rindex(f"{iso20.FRAGMENT_END:09b}")
    assert document[:end] == content[:end]
    assert set(document[end:]) <= {"0"}


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_signed_info_is_written_as_exificient_does(judge: judging.Judge, count: int) -> None:
    # The jar replaces the algorithms by those of ISO 15118-2 and drops what it does not expect, so this is all it can
    # do.
    reference = Reference(
        None, None, "#ID1", (Transform(_EXI),), DigestMethod("http://www.w3.org/2001/04/xmlenc#sha256"), bytes(32)
    )
    method = SignatureMethod("http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256")
    signed_info = SignedInfo(None, CanonicalizationMethod(_EXI), method, (reference,) * count)
    theirs = judge.plain_encode(_text(SIGNED_INFO, "SignedInfo", signed_info), judging.XMLDSIG)
    assert theirs == encode_signed_info(signed_info)
    assert json.loads(judge.plain_decode(theirs, judging.XMLDSIG)) == {"SignedInfo": _dump(SIGNED_INFO, signed_info)}
