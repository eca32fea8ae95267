"""The XML form of messages, in both directions."""

from __future__ import annotations

import codecs
import re

import pytest

from ccp.exi import EXIError, decode, encode, from_xml, iso2, iso20, to_xml
from tests.exi.messages import KINDS, Maker, messages
from tests.exi.samples import EXAMPLE, REQUEST, RESPONSE

REQUEST_XML, RESPONSE_XML = to_xml(REQUEST).decode(), to_xml(RESPONSE).decode()
XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
BODY = "V2G_Message/Body/CertificateInstallationRes"
SERIAL = "V2G_Message/Body/CertificateInstallationReq/ListOfRootCertificateIDs/RootCertificateID/X509SerialNumber"


def changed(text: str, *changes: tuple[str, str]) -> bytes:
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text.encode()


def refusal(document: bytes) -> EXIError:
    with pytest.raises(EXIError) as caught:
        from_xml(document)
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pretty", [False, True])
def test_xml_round_trips_messages(kind: str, pretty: bool) -> None:
    for message in messages(kind, 60, seed=31):
        assert from_xml(to_xml(message, pretty=pretty)) == _collapsed(message)


def _collapsed(value: object, name: str = "") -> object:
    """A message whose attributes have lost white space, as xs:ID and xs:anyURI do."""
    if isinstance(value, tuple):
        names = getattr(value, "_fields", [name] * len(value))
        items = [_collapsed(item, n) for item, n in zip(value, names, strict=True)]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if name in ("Id", "URI", "Type", "Algorithm") and isinstance(value, str):
        return re.sub("[ \t\n\r]+", " ", value.strip(" \t\n\r"))
    return value


def test_to_xml_has_the_names_and_namespaces_of_the_schema() -> None:
    assert REQUEST_XML == (
        '<?xml version="1.0" encoding="UTF-8"?><v2g:V2G_Message xmlns:v2g="urn:iso:15118:2:2013:MsgDef"'
        ' xmlns:header="urn:iso:15118:2:2013:MsgHeader" xmlns:body="urn:iso:15118:2:2013:MsgBody"'
        ' xmlns:types="urn:iso:15118:2:2013:MsgDataTypes" xmlns:ds="http://www.w3.org/2000/09/xmldsig#">'
        "<v2g:Header><header:SessionID>3132333435363738</header:SessionID></v2g:Header><v2g:Body>"
        '<body:CertificateInstallationReq body:Id="ID1">'
        "<body:OEMProvisioningCert>Y2VydGlmaWNhdGU=</body:OEMProvisioningCert><body:ListOfRootCertificateIDs>"
        "<types:RootCertificateID><ds:X509IssuerName>CN=root</ds:X509IssuerName>"
        "<ds:X509SerialNumber>12345</ds:X509SerialNumber></types:RootCertificateID></body:ListOfRootCertificateIDs>"
        "</body:CertificateInstallationReq></v2g:Body></v2g:V2G_Message>"
    )


def test_from_xml_reads_the_published_example() -> None:
    assert encode(from_xml(to_xml(decode(EXAMPLE)))) == EXAMPLE


def test_from_xml_reads_any_prefixes_and_default_namespaces() -> None:
    default = re.sub("(</?)ds:", r"\1", REQUEST_XML)
    default = default.replace(
        "<types:RootCertificateID>", '<types:RootCertificateID xmlns="http://www.w3.org/2000/09/xmldsig#">'
    )
    other = re.sub("body(?=[:=])", "a", REQUEST_XML).replace("v2g:", "").replace(":v2g=", "=")
    for text in (default, other):
        assert text != REQUEST_XML
        assert from_xml(text.encode()) == REQUEST


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([("<v2g:Body>", "<x:Body>")], "a prefix without"),
        ([("<v2g:Body>", "<:Body>")], "a prefix without"),
        ([("<v2g:Body>", "<v2g:v2g:Body>")], "a prefix without"),
        ([("<v2g:Body>", "<v2g:>")], "whose name is not quoted here where Body"),
        ([("<v2g:Body>", "<xmlns:Body>")], "a prefix without"),
        ([(" body:Id=", " x:Id=")], "a prefix without"),
        ([("<v2g:Header>", '<v2g:Header xmlns:x="urn:x">'), ("<v2g:Body>", '<v2g:Body x:y="1">')], "a prefix without"),
        ([("<v2g:Body>", '<v2g:Body xmlns:v2g="urn:x">')], "Body in another namespace"),
        ([("<v2g:Body>", '<v2g:Body xmlns:x="">')], "a namespace declaration"),
        ([("<v2g:Body>", '<v2g:Body xmlns:="urn:x">')], "a namespace declaration"),
        ([("<v2g:Body>", '<v2g:Body xmlns:x:y="urn:x">')], "a namespace declaration"),
        ([("<v2g:Body>", '<v2g:Body xmlns:xml="urn:x">')], "a namespace declaration"),
        ([("<v2g:Body>", '<v2g:Body xmlns:xmlns="urn:x">')], "a namespace declaration"),
        ([("<v2g:Body>", '<v2g:Body xmlns="http://www.w3.org/XML/1998/namespace">')], "a namespace declaration"),
        ([("<v2g:Body>", '<v2g:Body xmlns:x="http://www.w3.org/2000/xmlns/">')], "a namespace declaration"),
        ([("<v2g:Body>", '<v2g:Body xmlns:x="u" xmlns:y="u" x:a="" y:a="">')], "the attribute a twice"),
        ([("<v2g:Body>", '<v2g:Body xmlns:x="u" xmlns:x="u">')], "duplicate attribute"),
    ],
)
def test_from_xml_refuses_wrong_namespaces(changes: list[tuple[str, str]], reason: str) -> None:
    assert reason in refusal(changed(REQUEST_XML, *changes)).reason


def test_from_xml_reads_namespaces_by_their_scope() -> None:
    declared = 'xmlns:v2g="urn:iso:15118:2:2013:MsgDef"'
    document = changed(
        REQUEST_XML,
        (f" {declared}", ""),
        ("<v2g:V2G_Message", f"<v2g:V2G_Message {declared} xmlns:xml='http://www.w3.org/XML/1998/namespace' xmlns=''"),
        ("<v2g:Header>", "<v2g:Header xmlns:v2g='urn:iso:15118:2:2013:MsgDef' xmlns:b='urn:of:the:header only'>"),
        ("<header:SessionID>", "<v2g:SessionID xmlns:v2g='urn:iso:15118:2:2013:MsgHeader'>"),
        ("</header:SessionID>", "</v2g:SessionID>"),
        ("<v2g:Body>", "<Body xmlns='urn:iso:15118:2:2013:MsgDef' xmlns:b='urn:iso:15118:2:2013:MsgBody'>"),
        ("</v2g:Body>", "</Body>"),
        (" body:Id=", " b:Id="),
    )
    assert from_xml(document) == REQUEST


def test_from_xml_ignores_comments_schema_locations_and_declared_types() -> None:
    document = changed(
        REQUEST_XML,
        ("<v2g:V2G_Message", f'<!-- a --><v2g:V2G_Message {XSI} xsi:schemaLocation="urn:a b.xsd"'),
        ("<v2g:Body>", '<v2g:Body xsi:type="body:BodyType" xsi:noNamespaceSchemaLocation="x"><!-- <x/> -->'),
        ("<body:OEMProvisioningCert>", '<body:OEMProvisioningCert xsi:type=" types:certificateType ">Y2<!-- -->'),
        ("Y2VydGlmaWNhdGU=", "VydGlmaWNhdGU="),
        (
            "<ds:X509SerialNumber>",
            '<ds:X509SerialNumber xmlns:x="http://www.w3.org/2001/XMLSchema" xsi:type="x:integer">',
        ),
        ("</v2g:V2G_Message>", "</v2g:V2G_Message><!-- z -->\n"),
    )
    assert from_xml(document) == REQUEST


@pytest.mark.parametrize(
    "named", ["body:OtherType", "types:BodyType", "BodyType", "x:BodyType", "", ":", "body:", "body:BodyType x"]
)
def test_from_xml_refuses_other_types(named: str) -> None:
    document = changed(
        REQUEST_XML, ("<v2g:V2G_Message", f"<v2g:V2G_Message {XSI}"), ("<v2g:Body>", f'<v2g:Body xsi:type="{named}">')
    )
    error = refusal(document)
    assert error.path == "V2G_Message/Body"
    assert "xsi:type" in error.reason


def test_from_xml_reads_white_space_as_the_types_say() -> None:
    request = changed(
        REQUEST_XML,
        ("<v2g:Header>", " \n<v2g:Header>\t\r\n"),
        ("3132333435363738", "\n  3132333435363738\t"),
        ('body:Id="ID1"', 'body:Id=" ID1\n"'),
        ("Y2VydGlmaWNhdGU=", "\n Y2Vy dGlm\naWNh&#13; dGU =\n"),
        (">12345<", "> +0012345\n<"),
    )
    assert from_xml(request) == REQUEST
    # xs:string keeps white space. Line ends become line feeds before the schema sees them.
    kept = from_xml(changed(REQUEST_XML, ("CN=root", " CN= \t&#13;\r\nroot ")))
    assert isinstance(kept, iso2.V2G_Message)
    assert isinstance(kept.Body, iso2.CertificateInstallationReq)
    assert kept.Body.ListOfRootCertificateIDs[0].X509IssuerName == " CN= \t\r\nroot "
    assert refusal(changed(RESPONSE_XML, (">OK<", "> OK<"))).path == f"{BODY}/ResponseCode"
    # White space is allowed where the signature's schema allows text, other text is not supported.
    signed = to_xml(next(m for m in messages("iso2_req", 50, seed=5) if m.Header.Signature)).decode()
    method = re.search("<ds:CanonicalizationMethod [^>]*/>", signed)
    assert method is not None
    spaced, filled = (f"{method[0][:-2]}>{text}</ds:CanonicalizationMethod>" for text in (" \n", " x "))
    assert from_xml(changed(signed, (method[0], spaced))) == from_xml(signed.encode())
    assert refusal(changed(signed, (method[0], filled))).path.endswith("CanonicalizationMethod")


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("-0", 0), ("+00", 0), ("-0012", -12), ("0" * 900 + "7", 7)])
def test_from_xml_reads_integers_as_the_schema_writes_them(text: str, number: int) -> None:
    message = from_xml(changed(REQUEST_XML, ("12345", text)))
    assert isinstance(message, iso2.V2G_Message)
    assert isinstance(message.Body, iso2.CertificateInstallationReq)
    assert message.Body.ListOfRootCertificateIDs[0].X509SerialNumber == number


def test_from_xml_takes_an_absent_session_id_of_iso2_as_one_zero_byte() -> None:
    for text, message in ((REQUEST_XML, REQUEST), (RESPONSE_XML, RESPONSE)):
        document = re.sub("<header:SessionID>.*</header:SessionID>", "", text).encode()
        assert from_xml(document) == message._replace(Header=iso2.Header(b"\0"))
    header = to_xml(Maker(1).iso20_req()).decode()
    without = re.sub("<types:SessionID>.*</types:SessionID>|<types:SessionID/>", "", header)
    assert without != header
    assert refusal(without.encode()).path == "CertificateInstallationReq/Header"


def test_from_xml_reads_utf8_and_utf16_and_nothing_else() -> None:
    text = REQUEST_XML.replace("CN=root", "CN=ä漢😀").replace('<?xml version="1.0" encoding="UTF-8"?>', "")
    expected = from_xml(text.encode())
    for document in (
        b"\xef\xbb\xbf" + text.encode(),
        f'<?xml version="1.0" encoding="utf-8"?>{text}'.encode(),
        text.encode("utf-16"),
        codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        f'<?xml version="1.0" encoding="UTF-16"?>{text}'.encode("utf-16"),
    ):
        assert from_xml(document) == expected
    for encoding in ("ISO-8859-1", "windows-1252", "US-ASCII", "UTF-7", "IBM037", "no-such", "utf_8", "UTF-32"):
        declared = f'<?xml version="1.0" encoding="{encoding}"?>{REQUEST_XML.partition("?>")[2]}'.encode()
        assert "encoding" in refusal(declared).reason
    for document in (
        text.encode("utf-32"),
        text.encode("latin-1", "replace") + b"\xe4",
        changed(REQUEST_XML, ('encoding="UTF-8"', 'encoding="UTF-16"')),
        changed(REQUEST_XML, ('version="1.0"', 'version="1.1"')),
        REQUEST_XML.encode().replace(b"root", b"\xed\xa0\x80"),
        changed(REQUEST_XML, ("root", "&#xFFFF;")),
        changed(REQUEST_XML, ("root", "&#0;")),
    ):
        refusal(document)


@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize("half", ["\ud83d", "\ud83dA", "\ud83d<", "\ude00\ud83d", "\ud83d\ud83d\ude00"])
def test_from_xml_refuses_half_of_a_surrogate_pair(half: str, order: str) -> None:
    """expat joins it with the next character, whatever that is, so the message would have another text."""
    mark = codecs.BOM_UTF16_LE if order == "le" else codecs.BOM_UTF16_BE
    text = REQUEST_XML.partition("?>")[2].replace("CN=root", f"CN={half}root")
    for start in (b"", mark):
        error = refusal(start + text.encode(f"utf-16-{order}", "surrogatepass"))
        assert error.reason.startswith("not UTF-16 at byte ")
        from_xml(start + text.replace(half, "\U0001f600").encode(f"utf-16-{order}"))
    for data in (b"\0", b"\0\0", b"<\0", b"\0<", mark, mark + b"<"):
        refusal(data)


@pytest.mark.parametrize(
    ("document", "path", "reason"),
    [
        (b"", "", "no element found"),
        (b"<", "", "not well-formed"),
        (b"\x80\x98", "", "not well-formed"),
        (b"<x/>", "", "none of the messages"),
        (b"<V2G_Message/>", "", "in another namespace than urn:iso:15118:2:2013:MsgDef"),
        (changed(REQUEST_XML, ("</v2g:Body>", "")), "V2G_Message/Body", "mismatched tag"),
        (changed(REQUEST_XML, ("</v2g:V2G_Message>", "")), "V2G_Message", "no element found"),
        (changed(REQUEST_XML, ("</v2g:V2G_Message>", "</v2g:V2G_Message><x/>")), "", "junk after"),
        (changed(REQUEST_XML, ("<v2g:Header>", "<header:Header>"), ("</v2g:Header>", "</header:Header>")),
         "V2G_Message", "Header in another namespace"),
        (changed(REQUEST_XML, ("<v2g:Header>", "<v2g:Other/><v2g:Header>")), "V2G_Message", "Other where Header"),
        (changed(RESPONSE_XML, ("<body:ResponseCode>OK</body:ResponseCode>", "")), BODY,
         "SAProvisioningCertificateChain where ResponseCode is expected"),
        (changed(REQUEST_XML, ("</v2g:Body>", "</v2g:Body><v2g:Body/>")), "V2G_Message", "Body where the end"),
        (changed(REQUEST_XML, ("<v2g:Body>", "<v2g:Body>text")), "V2G_Message/Body", "text between elements"),
        (changed(REQUEST_XML, ("<v2g:Body>", "<v2g:Body a='b'>")), "V2G_Message/Body", "an unknown attribute a"),
        (changed(REQUEST_XML, ("<v2g:Body>", "<v2g:Body xml:lang='b'>")), "V2G_Message/Body", "attribute lang"),
        (changed(REQUEST_XML, ("<v2g:Body>", f"<v2g:Body {XSI} xsi:nil='false'>")),
         "V2G_Message/Body", "attribute nil"),
        (changed(REQUEST_XML, (" body:Id=", " Id=")), "V2G_Message/Body/CertificateInstallationReq",
         "Id in the namespace urn:iso:15118:2:2013:MsgBody is missing"),
        (changed(REQUEST_XML, (' body:Id="ID1"', "")), "V2G_Message/Body/CertificateInstallationReq", "Id is missing"),
        (changed(REQUEST_XML, ("3132333435363738", "<x/>")), "V2G_Message/Header/SessionID", "x where text"),
        (changed(REQUEST_XML, ("3132333435363738", "31 32")), "V2G_Message/Header/SessionID", "hexadecimal"),
        (changed(REQUEST_XML, ("3132333435363738", "00" * 9)), "V2G_Message/Header/SessionID", "9 bytes where"),
        (changed(REQUEST_XML, ("12345<", "<")), SERIAL, "integer"),
        (changed(REQUEST_XML, ("12345<", "1.0<")), SERIAL, "integer"),
        (changed(REQUEST_XML, ("12345<", "１<")), SERIAL, "integer"),
        (changed(REQUEST_XML, ("12345<", "1" * 101 + "<")), SERIAL, "integer"),
        (changed(REQUEST_XML, ("12345<", "1 2<")), SERIAL, "integer"),
        (changed(REQUEST_XML, ("12345<", "+<")), SERIAL, "integer"),
        (changed(REQUEST_XML, ("12345<", "+-1<")), SERIAL, "integer"),
        (changed(REQUEST_XML, ("12345<", "0" * 200 + "1" * 101 + "<")), SERIAL, "integer"),
        (changed(REQUEST_XML, (">CN=root<", f">{'x' * 1025}<")), SERIAL.replace("SerialNumber", "IssuerName"), "1025"),
        (changed(RESPONSE_XML, (">OK<", ">Fine<")), f"{BODY}/ResponseCode", "enumeration"),
        (changed(RESPONSE_XML, (">bGVhZg==<", ">bGVhZg<")), f"{BODY}/SAProvisioningCertificateChain/Certificate",
         "Base64"),
        (changed(RESPONSE_XML, (">bGVhZg==<", ">bGVhZh==<")), f"{BODY}/SAProvisioningCertificateChain/Certificate",
         "Base64"),
        (changed(RESPONSE_XML, (">bGVhZg==<", ">bGVh-g==<")), f"{BODY}/SAProvisioningCertificateChain/Certificate",
         "Base64"),
        (changed(RESPONSE_XML, ('types:Id="ID4"', f'types:Id="{"x" * 1025}"')), f"{BODY}/eMAID/Id", "1025"),
    ],
)  # fmt: skip
def test_from_xml_refuses_a_wrong_document_with_its_path(document: bytes, path: str, reason: str) -> None:
    error = refusal(document)
    assert error.path == path
    assert reason in error.reason
    assert error.offset is None
    assert re.search("at line [0-9]+, column [0-9]+$", error.reason)


def test_from_xml_refuses_more_items_than_the_schema_allows() -> None:
    root = re.search("<types:RootCertificateID>.*</types:RootCertificateID>", REQUEST_XML)
    assert root is not None
    full = from_xml(changed(REQUEST_XML, (root[0], root[0] * 20)))
    assert isinstance(full, iso2.V2G_Message)
    assert isinstance(full.Body, iso2.CertificateInstallationReq)
    assert len(full.Body.ListOfRootCertificateIDs) == 20
    refusal(changed(REQUEST_XML, (root[0], root[0] * 21)))
    refusal(changed(REQUEST_XML, (root[0], "")))
    signed = to_xml(next(m for m in messages("iso2_req", 50, seed=5) if m.Header.Signature)).decode()
    reference = re.search("<ds:Reference.*?</ds:Reference>", signed)
    assert reference is not None
    assert "more than 8 Reference" in refusal(changed(signed, (reference[0], reference[0] * 9))).reason
    key = "</ds:SignatureValue>"
    assert "KeyInfo is not supported" in refusal(changed(signed, (key, f"{key}<ds:KeyInfo/>"))).reason


def test_from_xml_requires_exactly_one_encrypted_key() -> None:
    text = to_xml(Maker(1).iso20_res()).decode()
    key = re.search("<v2g:[A-Z0-9]+_EncryptedPrivateKey>.*_EncryptedPrivateKey>", text)
    assert key is not None
    for other in ("", key[0] * 2):
        error = refusal(changed(text, (key[0], other)))
        assert error.path.startswith("CertificateInstallationRes/SignedInstallationData")


def test_from_xml_requires_a_message_in_the_body() -> None:
    for inside in ("", "<body:SessionStopReq/>", "<body:BodyElement/>"):
        text = re.sub("(<v2g:Body>).*(</v2g:Body>)", rf"\1{inside}\2", REQUEST_XML)
        error = refusal(text.encode())
        assert error.path == "V2G_Message/Body"
        assert "CertificateInstallationReq or CertificateInstallationRes" in error.reason


def test_from_xml_reads_bytes_only_and_to_xml_messages_only() -> None:
    for wrong in (REQUEST_XML, bytearray(b"<a/>"), None):
        with pytest.raises(TypeError):
            from_xml(wrong)  # type: ignore[arg-type]
    for broken in (None, REQUEST._replace(Header=None), iso20.Header(b"", 1)):  # type: ignore[arg-type]
        with pytest.raises(EXIError):
            to_xml(broken)  # type: ignore[arg-type]
