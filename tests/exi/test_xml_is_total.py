"""Reading XML is total: any bytes give a message or EXIError, in bounded time."""

from __future__ import annotations

import gc
import random
import time
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ccp.exi import EXIError, Message, bits, decode, encode, from_xml, iso2, to_xml, xmldsig
from ccp.exi.xml import MAX_XML_BYTES
from tests.exi.hostile_xml import READABLE, hostile_documents
from tests.exi.messages import KINDS, messages
from tests.exi.samples import REQUEST

SECONDS = 0.05
_SOURCES = [to_xml(message) for kind in KINDS for message in messages(kind, 10, seed=51)]
_PIECES = (
    *(b"<", b">", b"/>", b"</", b"&", b"&#", b";", b'"', b"'", b"=", b" ", b"<!--", b"-->", b"<![CDATA[", b"]]>"),
    *(b"<?x ?>", b"<!DOCTYPE x>", b"&lt;", b"&#x10FFFF;", b"&#0;", b"xmlns=''", b"xmlns:x='y'", b"\xff\xfe", b"\x00"),
    *(b"\xed\xa0\x80", b"\xef\xbf\xbf", b"encoding='UTF-7'", b"xsi:type='x:y'", b"\x80\x98", b"<x/>", b"ds:", b":"),
)


def outcome(document: bytes) -> Message | None:
    try:
        message = from_xml(document)
    except EXIError as error:
        sentence = str(error)
    else:
        sentence = ""
    if sentence:
        assert sentence.isprintable()
        assert len(sentence) < 500
        return None
    # What was read is a message in every respect.
    assert decode(encode(message)) == message
    return message


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200), st.sampled_from((b"", b"<?xml ", b"<", b"\xff\xfe<\x00", b"<x xmlns='")))
@example(b"", b"")
def test_from_xml_of_any_bytes_gives_a_message_or_an_error(data: bytes, start: bytes) -> None:
    outcome(start + data)


@settings(max_examples=800, deadline=None)
@given(
    st.sampled_from(_SOURCES),
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 40), st.one_of(st.sampled_from(_PIECES), st.binary(max_size=8))),
        min_size=1,
        max_size=4,
    ),
)
def test_from_xml_of_mutated_documents_gives_a_message_or_an_error(
    source: bytes, changes: list[tuple[float, int, bytes]]
) -> None:
    document = source
    for place, removed, inserted in changes:
        at = int(place * len(document))
        document = document[:at] + inserted + document[at + removed :]
    outcome(document)


def test_from_xml_of_truncated_and_repeated_documents_gives_an_error() -> None:
    for source in _SOURCES[::10]:
        for end in range(0, len(source), max(1, len(source) // 500)):
            assert outcome(source[:end]) is None
        assert outcome(source + source) is None


def test_from_xml_refuses_hostile_documents() -> None:
    for name, document in hostile_documents(MAX_XML_BYTES):
        assert len(document) <= MAX_XML_BYTES, name
        if name in READABLE:
            assert outcome(document) == REQUEST
        else:
            assert outcome(document) is None, name
    for name in ("a document type declaration", "a processing instruction"):
        declared = b"<!DOCTYPE V2G_Message>" if "type" in name else b"<?xml-stylesheet href='x'?>"
        with pytest.raises(EXIError, match=name):
            from_xml(to_xml(REQUEST).replace(b"?>", b"?>" + declared, 1))
    with pytest.raises(EXIError, match=f"{MAX_XML_BYTES + 1} bytes where at most {MAX_XML_BYTES}"):
        from_xml(b" " * (MAX_XML_BYTES + 1))


def test_from_xml_refuses_a_message_that_is_too_large() -> None:
    many = (iso2.X509IssuerSerial("\U0010ffff" * bits.MAX_TEXT_CHARACTERS, 1),) * 20
    assert isinstance(REQUEST.Body, iso2.CertificateInstallationReq)
    document = to_xml(REQUEST._replace(Body=REQUEST.Body._replace(ListOfRootCertificateIDs=many)))
    reference = xmldsig.Reference("\U0010ffff" * 1024, "€" * 1024, "€" * 1024, None, xmldsig.DigestMethod("d"), b"")
    info = xmldsig.SignedInfo(None, xmldsig.CanonicalizationMethod("c"), xmldsig.SignatureMethod("s"), (reference,))
    signature = xmldsig.Signature(None, info, xmldsig.SignatureValue(None, b""))
    signed = to_xml(REQUEST._replace(Header=iso2.Header(b"1", None, signature)))
    inside = signed[signed.index(b"<ds:Signature>") : signed.index(b"</v2g:Header>")]
    document = document.replace(b"</v2g:Header>", inside + b"</v2g:Header>", 1)
    assert len(document) <= MAX_XML_BYTES
    with pytest.raises(EXIError, match="where at most 65536 are allowed"):
        from_xml(document)


@pytest.mark.timing
@pytest.mark.slow
def test_from_xml_takes_bounded_time() -> None:
    slow = {}
    for name, document in hostile_documents(MAX_XML_BYTES):
        best = min(_seconds(document) for _ in range(5))
        if best > SECONDS:
            slow[name] = best
    assert not slow


def test_from_xml_takes_bounded_memory() -> None:
    peaks = {}
    for name, document in hostile_documents(MAX_XML_BYTES):
        tracemalloc.start()
        outcome(document)
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # A short attribute of twelve characters takes two strings.
    assert {name: peak for name, peak in peaks.items() if peak > 32 * MAX_XML_BYTES} == {}


def _seconds(document: bytes) -> float:
    start = time.thread_time()
    outcome(document)
    return time.thread_time() - start


def test_from_xml_leaves_nothing_to_the_garbage_collector() -> None:
    rng = random.Random(53)
    documents = [bytearray(rng.choice(_SOURCES)) for _ in range(200)]
    for document in documents[1:]:
        document[rng.randrange(len(document))] = rng.randrange(256)
    gc.collect()
    gc.disable()
    try:
        outcomes = [outcome(bytes(document)) is None for document in documents]
        assert gc.collect() < len(documents)  # A reader that is part of a cycle is several objects.
    finally:
        gc.enable()
    assert set(outcomes) == {True, False}
