"""XML documents that shall cost a reader much, or make it fetch something."""

from __future__ import annotations

from collections.abc import Iterator

from ccp.exi import to_xml
from tests.exi.samples import REQUEST

READABLE = ("comments", "white space")
"""Those that are messages all the same."""


def hostile_documents(full: int) -> Iterator[tuple[str, bytes]]:
    """Names and documents. full: their size in bytes, at most."""
    request = to_xml(REQUEST)
    head, tail = request.split(b"</v2g:Header>")

    def filled(start: bytes, piece: bytes, end: bytes = b"") -> bytes:
        return start + piece * ((full - len(start) - len(end)) // len(piece)) + end

    yield "depth", filled(b"", b"<a>")
    yield "depth below the root", filled(head, b"<a>")
    yield "elements", filled(head, b"<a/>")
    yield "comments", filled(head, b"<!---->", b"</v2g:Header>" + tail)
    yield "comments in a text", filled(request.split(b"CN=root")[0], b"x<!---->", b"")
    yield "CDATA sections", filled(request.split(b"CN=root")[0], b"<![CDATA[x]]>", b"")
    yield "character references", filled(request.split(b"CN=root")[0], b"&#65;", b"")
    yield "a long name", b"<" + b"a" * (full - 3) + b"/>"
    yield "a long prefix", b"<" + b"a" * (full - 5) + b":b/>"
    yield "a long attribute", b"<a b='" + b"c" * (full - 9) + b"'/>"
    yield "attributes", b"<a" + b"".join(b" a%d=''" % number for number in range(full // 12)) + b"/>"
    yield (
        "qualified attributes",
        (b"<a xmlns:b='c'" + b"".join(b" b:a%d=''" % number for number in range(full // 14)) + b"/>"),
    )
    yield "namespaces", b"<a" + b"".join(b" xmlns:a%d='b'" % number for number in range(full // 19)) + b"/>"
    # The namespace is part of each attribute's name.
    start = b"<a xmlns:b='" + b"c" * (full // 2) + b"'"
    yield "a long namespace", start + b"".join(b" b:a%d=''" % number for number in range(full // 28)) + b"/>"
    yield "one namespace in depth", filled(b"", b"<a xmlns='b'>")
    yield "white space", filled(head, b" ", b"</v2g:Header>" + tail)
    yield "digits", filled(request.split(b"12345")[0], b"0", b"</ds:X509SerialNumber>")
    yield "more digits", filled(request.split(b"12345")[0], b"1", b"</ds:X509SerialNumber>")
    yield "digits before a letter", filled(request.split(b"12345")[0], b"0", b"x</ds:X509SerialNumber>")
    yield "spaces in an integer", filled(request.split(b"12345")[0], b" ", b"1</ds:X509SerialNumber>")
    yield "spaces in an Id", filled(request.split(b"ID1")[0], b" x", b'"/>')
    yield "spaces in Base64", filled(request.split(b"Y2Vy")[0], b"A ", b"</body:OEMProvisioningCert>")
    yield "Base64", filled(request.split(b"Y2Vy")[0], b"A", b"</body:OEMProvisioningCert>")
    yield "references", filled(b"<!DOCTYPE a [<!ENTITY b 'ccccccccccccccc'>]><a>", b"&b;", b"</a>")
    laughs = b"".join(b"<!ENTITY l%d '%s'>" % (n, b"&l%d;" % (n - 1) * 10) for n in range(1, 30))
    yield "entities in entities", b"<!DOCTYPE a [<!ENTITY l0 'lol'>" + laughs + b"]><a>&l29;</a>"
    yield "an external entity", b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>"
    yield "an external document type", b"<!DOCTYPE a SYSTEM 'http://127.0.0.1:9/x.dtd'><a/>"
    yield "parameter entities", b"<!DOCTYPE a [<!ENTITY % b SYSTEM 'file:///etc/passwd'> %b;]><a/>"
    yield "processing instructions", filled(b"", b"<?a b?>", b"<a/>")
