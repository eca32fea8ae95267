"""ccp exi and ccp verify: messages in every form they are handed around in."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ccp import exi
from ccp.ids import EMAID, PCID
from ccp.testing.partners import Car, issue_contract, sign_contract
from ccp.testing.pki import PKI
from tests.cli.run import ccp, ccp_error, ccp_ok
from tests.databases import with_schema
from tests.world import AT, SESSION
from tests.x509.published import public_root

NOT_EXI = "not Base64 (RFC 4648 clause 4)"
EXAMPLE = Path(__file__).resolve().parents[1] / "vectors" / "installation_res_iso2_opnc_example.b64"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def messages(pkis: dict[str, PKI]) -> dict[str, bytes]:
    """A request and a response of each edition."""
    made = {}
    for name in ("iso2", "iso20", "ed448"):
        pki = pkis[name]
        car = Car.generate(pki, PCID("WEX0CLI0000000001"), AT)
        contract = issue_contract(pki, EMAID("DEEXAX00000001"), car.pcid, car.provisioning.certificate, AT)
        made[f"{name} response"] = sign_contract(pki, contract, AT)
        made[f"{name} request"] = car.request(SESSION, AT)
    return made


def b64(data: bytes) -> bytes:
    return base64.b64encode(data)


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "binary": lambda data: data,
    "base64": b64,
    "base64 in lines": lambda data: base64.encodebytes(data),
    "base64 with blanks around": lambda data: b"\n  " + b64(data) + b"\r\n",
    "hex": lambda data: data.hex().encode(),
    "HEX": lambda data: data.hex(" ", 4).upper().encode(),
    "body of a PUT": lambda data: json.dumps(
        {"emaid": "x", "metaData": "für später", "certificateInstallationRes": b64(data).decode()}, ensure_ascii=False
    ).encode(),
    "body of a POST": lambda data: json.dumps({"certificateInstallationReq": b64(data).decode()}, indent=1).encode(),
    "XML": lambda data: exi.to_xml(exi.decode(data)),
    "XML in UTF-16": lambda data: exi.to_xml(exi.decode(data)).partition(b"?>")[2].decode().encode("utf-16"),
    "Base64 of XML": lambda data: base64.encodebytes(exi.to_xml(exi.decode(data))),
    "body of a PUT with XML": lambda data: json.dumps(
        {"signedContractDataXML": b64(exi.to_xml(exi.decode(data))).decode()}
    ).encode(),
    "answer of a POST": lambda data: json.dumps(
        {"signedContractDataCollection": [{"certificateInstallationRes": b64(data).decode()}]}
    ).encode(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["iso2 response", "iso20 request"])
def test_exi_decode_reads_every_input_format(messages: dict[str, bytes], folder: Path, form: str, kind: str) -> None:
    data = messages[kind]
    (folder / "message").write_bytes(FORMS[form](data))
    expected = exi.to_json(exi.decode(data))
    assert json.loads(ccp_ok("exi", "decode", "message", "--full").out) == expected
    assert json.loads(ccp_ok("exi", "decode", "-", "--full", stdin=FORMS[form](data)).out) == expected


@pytest.mark.parametrize("kind", ["iso2 response", "iso2 request", "iso20 response", "iso20 request", "ed448 response"])
def test_exi_encode_restores_the_same_bytes(messages: dict[str, bytes], folder: Path, kind: str) -> None:
    data = messages[kind]
    (folder / "message.json").write_bytes(ccp_ok("exi", "decode", "-", "--full", stdin=data).out_bytes)
    assert ccp_ok("exi", "encode", "message.json", "--to", "binary").out_bytes == data
    assert ccp_ok("exi", "encode", "message.json").out == b64(data).decode() + "\n"
    assert ccp_ok("exi", "encode", "message.json", "--to", "hex").out == data.hex() + "\n"


@pytest.mark.parametrize("kind", ["iso2 response", "iso2 request", "iso20 response", "iso20 request", "ed448 response"])
def test_exi_decode_prints_xml_that_encode_reads(messages: dict[str, bytes], kind: str) -> None:
    data = messages[kind]
    printed = ccp_ok("exi", "decode", "-", "--xml", stdin=data).out_bytes
    assert exi.from_xml(printed) == exi.decode(data)
    assert len(printed.splitlines()) > 20
    assert ccp_ok("exi", "encode", "-", "--to", "binary", stdin=printed).out_bytes == data
    compact = exi.to_xml(exi.decode(data))
    assert ccp_ok("exi", "encode", "-", "--to", "binary", stdin=compact).out_bytes == data
    assert ccp_error("exi", "encode", "-", stdin=compact[:-1]).startswith(
        "not well-formed XML (unclosed token) at line 1"
    )


def test_exi_decode_prints_no_character_that_controls_a_terminal() -> None:
    name = "CN=\u202egnp\u0085\x7fä\r\n<&>"
    roots = (exi.iso2.X509IssuerSerial(name, 1),)
    message = exi.iso2.V2G_Message(
        exi.iso2.Header(b"1"), exi.iso2.CertificateInstallationReq("ID1", b"certificate", roots)
    )
    printed = ccp_ok("exi", "decode", "-", "--xml", stdin=exi.encode(message)).out_bytes
    assert printed.replace(b"\n", b"").decode("ascii").isprintable()
    assert exi.from_xml(printed) == message


def test_exi_round_trip_of_the_published_example() -> None:
    full = ccp_ok("exi", "decode", EXAMPLE, "--full").out_bytes
    assert ccp_ok("exi", "encode", "-", stdin=full).out.strip() == "".join(EXAMPLE.read_text().split())


def test_exi_encode_refuses_summarised_certificates(messages: dict[str, bytes], pkis: dict[str, PKI]) -> None:
    for kind in ("iso2 response", "iso2 request", "iso20 response", "iso20 request"):
        shown = ccp_ok("exi", "decode", "-", stdin=messages[kind]).out
        assert '"fingerprint"' in shown
        assert b64(pkis["iso2"].cps.certificate.der).decode() not in shown
        assert ccp_error("exi", "encode", "-", stdin=shown.encode()) == (
            "summarised certificates, which cannot be written back; print the message with --full"
        )
    response = json.loads(ccp_ok("exi", "decode", "-", stdin=messages["iso2 response"]).out)
    chain = response["V2G_Message"]["Body"]["CertificateInstallationRes"]["SAProvisioningCertificateChain"]
    assert chain["Certificate"]["fingerprint"] == pkis["iso2"].cps.certificate.fingerprint
    assert chain["Certificate"]["subject"].startswith("CN=CPS SIM")
    assert [sub["subject"][:9] for sub in chain["SubCertificates"]["Certificate"]] == ["CN=CPS Su"] * 2


@pytest.mark.parametrize(
    ("garbage", "sentence"),
    [
        (b"", "the text is empty"),
        (b"\x01\xfe\x80\x01\x00\x00\x00\x01\x80", "V2GTP header (01FE)"),
        (b"hello", NOT_EXI),
        (b"\x00\x01\x02", "U+0000 at character 1"),
        (b"\xff\xfe", "neither an EXI stream nor a text that contains one"),
        ("gü==".encode(), NOT_EXI),
        (b"{", "a text that is not JSON"),
        (b'{"a": ' * 100_000, "a text that is not JSON"),
        (b"{}", "JSON without certificateInstallationRes, certificateInstallationReq or signedContractDataXML"),
        (b'{"certificateInstallationRes": 5}', "JSON without certificateInstallationRes"),
        (b'{"certificateInstallationRes": "**"}', NOT_EXI),
        (b"8098", "at bit"),
        (b"\x80", "at bit"),
        (b"\x80\x98" + bytes(50), "at bit"),
        (b"gJg=", "at bit"),
    ],
)
def test_exi_decode_refuses_garbage_in_one_sentence(garbage: bytes, sentence: str) -> None:
    assert sentence in ccp_error("exi", "decode", "-", stdin=garbage)


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b"[]", b"5", b'{"V2G_Message": {}}', b'{"Nothing": {}}', b"\xff\xfe", b"[" * 100_000]
)
def test_exi_encode_refuses_json_that_is_no_message(garbage: bytes) -> None:
    assert ccp_error("exi", "encode", "-", stdin=garbage)


def test_exi_decode_reports_a_missing_file() -> None:
    for command in ("decode", "encode"):
        assert ccp_error("exi", command, "none.exi") == "none.exi cannot be read: No such file or directory."


# --- Verifying -------------------------------------------------------------------------------------------------------


@pytest.fixture
def trust(folder: Path, pkis: dict[str, PKI]) -> Path:
    """A directory of anchors: those of one role in its own folder."""
    for name in ("iso2", "iso20", "ed448"):
        pki = pkis[name]
        for role, certificates in {
            "v2g": [pki.v2g_root],
            "emsp": [pki.emsp_root],
            "oem": [pki.oem_root, pki.oem_sub1, pki.oem_sub2],
        }.items():
            (folder / "trust" / role).mkdir(parents=True, exist_ok=True)
            for number, credential in enumerate(certificates):
                (folder / "trust" / role / f"{name}{number}.pem").write_bytes(credential.certificate.pem())
    return folder / "trust"


def report(data: bytes, *arguments: object, status: int = 0) -> dict[str, Any]:
    done = ccp("verify", "-", "--json", *arguments, stdin=data)
    assert done.status == status, done
    found: dict[str, Any] = json.loads(done.out)
    return found


@pytest.mark.parametrize("name", ["iso2", "iso20", "ed448"])
@pytest.mark.parametrize("kind", ["request", "response"])
def test_verify_reports_every_check_of_a_valid_message(
    messages: dict[str, bytes], trust: Path, name: str, kind: str
) -> None:
    found = report(messages[f"{name} {kind}"], "--trust", trust)
    assert found["passed"] is True
    assert {check["verdict"] for check in found["checks"]} == {"passed"}
    assert [check["number"] for check in found["checks"]] == list(range(1, len(found["checks"]) + 1))
    number = "2:2013" if name == "iso2" else "20:2020"
    claimed = "CertificateInstallationReq" if kind == "request" else "CertificateInstallationRes"
    assert found["message"] == f"{claimed} (urn:iso:15118:{number}:MsgDef)"


def test_verify_accepts_the_published_example(folder: Path) -> None:
    (folder / "anchors" / "v2g").mkdir(parents=True)
    (folder / "anchors" / "v2g" / "root.pem").write_bytes(public_root().pem())
    data = base64.b64decode(EXAMPLE.read_text())
    found = report(data, "--trust", folder / "anchors", "--at", "2025-01-01T00:00:00Z")
    assert found["passed"] is True
    chains = [check["evidence"][-1] for check in found["checks"] if check["subject"].startswith("chain of")]
    assert len(chains) == 2
    assert all(public_root().fingerprint in last for last in chains)
    assert report(data, "--trust", folder / "anchors", "--at", "2035-01-01T00:00:00Z", status=1)["passed"] is False


def test_verify_prints_checks_and_verdict(messages: dict[str, bytes], trust: Path, pkis: dict[str, PKI]) -> None:
    lines = ccp_ok("verify", "-", "--trust", trust, stdin=messages["iso2 response"]).lines
    assert lines[-1] == "verified"
    assert any(pkis["iso2"].v2g_root.certificate.fingerprint in line for line in lines)
    done = ccp("verify", "-", "--trust", trust, "--at", "2001-01-01T00:00:00Z", stdin=messages["iso2 response"])
    assert done.status == 1
    assert done.lines[-1] == "NOT verified"
    assert done.lines[0].endswith("checked at 2001-01-01T00:00:00Z")
    assert any("is not valid before" in line for line in done.lines)


def test_verify_at_uses_and_prints_utc(messages: dict[str, bytes], trust: Path) -> None:
    data = messages["iso2 response"]
    late = (AT + timedelta(days=3000)).isoformat()
    found = report(data, "--trust", trust, "--at", late, status=1)
    reasons = {check["subject"]: check["reason"] for check in found["checks"] if check["verdict"] == "failed"}
    assert reasons["chain of the contract certificate to an eMSP or V2G root"] == (
        "The validUntil date of contract certificate is in the past."
    )
    assert "signature of the provisioning service" not in reasons
    found = report(data, "--trust", trust, "--at", "2001-01-01T01:30:00+02:00", status=1)
    assert found["at"] == "2000-12-31T23:30:00+00:00"


@pytest.mark.parametrize("at", ["yesterday", "2025-13-01T00:00:00Z", "2025-01-01", "2025-01-01T00:00:00", ""])
def test_verify_refuses_an_invalid_time(messages: dict[str, bytes], trust: Path, at: str) -> None:
    assert ccp_error("verify", "-", "--trust", trust, "--at", at, stdin=messages["iso2 response"]).startswith("--at ")


def test_verify_trust_reads_anchors_by_role(messages: dict[str, bytes], folder: Path, trust: Path) -> None:
    data = messages["iso2 response"]
    (trust / "v2g" / "iso20.pem").rename(trust / "oem" / "moved.pem")
    report(data, "--trust", trust, status=1)
    (trust / "oem" / "moved.pem").rename(trust / "moved.pem")
    report(data, "--trust", trust)


def test_verify_reports_why_a_modified_message_fails(messages: dict[str, bytes], trust: Path) -> None:
    message = exi.decode(messages["iso2 response"])
    body = message.Body._replace(DHpublickey=message.Body.DHpublickey._replace(value=bytes(65)))  # type: ignore[union-attr]
    found = report(exi.encode(message._replace(Body=body)), "--trust", trust, status=1)  # type: ignore[call-arg]
    failed = {check["subject"]: check["reason"] for check in found["checks"] if check["verdict"] == "failed"}
    assert failed == {
        "signature of the provisioning service": "The digest of DHpublickey does not match.",
        "DH public key": "The DH public key is no point on SECP256R1.",
    }


def test_verify_reports_invalid_bytes_as_a_failed_check(trust: Path) -> None:
    found = report(b"\x80\x98\x00", "--trust", trust, status=1)
    assert (found["message"], found["passed"], len(found["checks"])) == ("no message", False, 1)


def test_verify_without_trust_uses_the_pools_anchors(messages: dict[str, bytes], folder: Path, trust: Path) -> None:
    with_schema(f"sqlite:///{folder / 'ccp.db'}")
    report(messages["iso20 request"], status=1)
    ccp_ok("trust", "add", trust / "oem", "--role", "oem")
    report(messages["iso20 request"])
    report(messages["iso2 request"])


def test_verify_reports_a_missing_directory(messages: dict[str, bytes]) -> None:
    assert ccp_error("verify", "-", "--trust", "none", stdin=messages["iso2 request"]) == "There is no directory none."
    assert ccp_error("verify", "none.exi", "--trust", ".") == "none.exi cannot be read: No such file or directory."
