"""The codec is total: any bytes give a message or EXIError, in bounded time."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from ccp.exi import EXIError, Message, decode, decode_fragment, encode, from_json, iso2, iso20, parse, to_json, xmldsig
from ccp.exi import bits as limits
from ccp.exi.codec import _AUTOMATON
from tests.exi.messages import KINDS, Maker, messages
from tests.exi.samples import EXAMPLE, REQUEST, RESPONSE, Stream

pytestmark = pytest.mark.slow

MUTATIONS = 20_000
SECONDS = 0.025


def _mutated(rng: random.Random, encoded: bytes) -> bytes:
    made = bytearray(encoded)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        # Most of a message is certificates; structure is found at its beginning and its end.
        place = rng.choice(
            (rng.randrange(len(made)), rng.randrange(min(60, len(made))), len(made) - 1 - rng.randrange(4))
        )
        match rng.randrange(6):
            case 0 | 1:
                made[place] ^= 1 << rng.randrange(8)
            case 2:
                made[place] = rng.choice((0, 255, 128, 127, rng.randrange(256)))
            case 3:
                del made[place : place + rng.randint(1, 20)]
            case 4:
                made[place:place] = rng.randbytes(rng.randint(1, 20))
            case 5:
                del made[place:]
        if len(made) < 4:
            break
    return bytes(made)


def _read(encoded: bytes) -> tuple[Message | None, EXIError | None]:
    try:
        return parse(encoded).message, None
    except EXIError as error:
        return None, error


def _written(message: Message) -> tuple[bytes | None, str]:
    try:
        return encode(message), ""
    except EXIError as error:
        return None, error.reason


@pytest.mark.parametrize("kind", KINDS)
def test_codec_gives_a_message_or_an_error_for_mutated_and_truncated_messages(kind: str) -> None:
    rng = random.Random(f"mutations of {kind}")
    sources = [encode(message) for message in messages(kind, 40, seed=41)]
    read = 0
    for number in range(MUTATIONS // len(KINDS)):
        encoded = _mutated(rng, sources[number % len(sources)])
        message, error = _read(encoded)
        if message is None:
            assert error is not None
            assert error.offset is not None
            assert 0 <= error.offset <= 8 * len(encoded)
            continue
        read += 1
        # What was read can be written again, unless a text is longer than receivers take.
        written, reason = _written(message)
        if written is None:
            assert "characters where at most" in reason
        else:
            assert decode(written) == message
            assert from_json(to_json(message)) == message
    assert 0 < read < MUTATIONS // len(KINDS)


def test_decode_of_random_bytes_gives_a_message_or_an_error() -> None:
    rng = random.Random(43)
    for start in (b"\x80", b"\x80\x98\x02\x00", b"\x80\x1c\x04\x00", b"\x80\x20\x04\x00"):
        for _ in range(2000):
            encoded = start + rng.randbytes(rng.randint(0, 200))
            for grammar in (None, "iso2", "iso20", "xmldsig"):
                try:
                    decode(encoded) if grammar is None else decode_fragment(encoded, grammar)
                except EXIError:
                    continue


def _hostile() -> Iterator[tuple[str, bytes]]:
    full = limits.MAX_MESSAGE_BYTES
    yield "zeros behind a message", EXAMPLE + bytes(full - len(EXAMPLE))
    yield "zeros behind a message, then garbage", EXAMPLE + bytes(full - len(EXAMPLE) - 1) + b"\1"
    for fill in (b"\0", b"\xff", b"\x80", b"\x55", b"\xaa", b"\x01", b"\x7f"):
        for start in (b"\x80", b"\x80\x98", b"\x80\x98\x02\x00", b"\x80\x1c", b"\x80\x20", b"\x80\x20\x04\x00"):
            yield f"{start.hex()} and {fill.hex()}", start + fill * (full - len(start))
    # As much as the schema and our bounds allow, with texts that need the slow way.
    name = "\U0010ffff" * limits.MAX_TEXT_CHARACTERS
    reference = xmldsig.Reference(
        "i" * 800,
        "ä" * 500,
        "#" * 800,
        (xmldsig.Transform("ü" * 200, ("ö" * 300,) * limits.MAX_XPATHS),) * limits.MAX_TRANSFORMS,
        xmldsig.DigestMethod("d" * 500),
        bytes(limits.MAX_SIGNATURE_BYTES),
    )
    info = xmldsig.SignedInfo("x", xmldsig.CanonicalizationMethod("c"), xmldsig.SignatureMethod("s"), (reference,) * 8)
    signature = xmldsig.Signature("s", info, xmldsig.SignatureValue("v", bytes(limits.MAX_SIGNATURE_BYTES)))
    serial = -(2 ** (8 * limits.MAX_INTEGER_BYTES)) + 1
    header = iso2.Header(bytes(8), iso2.Notification("UnknownError", "x" * 64), signature)
    some = tuple(iso2.X509IssuerSerial("a" * 10, serial) for _ in range(20))
    request = iso2.V2G_Message(header, iso2.CertificateInstallationReq("ID", bytes(800), some))
    yield "a full signature", encode(request)
    many = (iso2.X509IssuerSerial(name, serial),) * 20
    yield "full names", encode(REQUEST._replace(Body=REQUEST.Body._replace(ListOfRootCertificateIDs=many)))
    half = (iso2.X509IssuerSerial("é" + "a" * 1023, serial),) * 20
    yield (
        "names that are nearly ASCII",
        encode(REQUEST._replace(Body=REQUEST.Body._replace(ListOfRootCertificateIDs=half))),
    )
    turns = (iso2.X509IssuerSerial("aé" * 512, serial),) * 20
    yield (
        "names of alternating letters",
        encode(REQUEST._replace(Body=REQUEST.Body._replace(ListOfRootCertificateIDs=turns))),
    )
    everything = iso20.CertificateInstallationReq(
        iso20.Header(bytes(8), 2**64 - 1, signature),
        iso20.OEMProvisioningCertificateChain("I", bytes(1600), (bytes(500),) * 3),
        some,
        255,
        ("€" * 20,) * 8,
    )
    yield "everything", encode(everything)
    # Code points that never end, in the place of an Id.
    start = parse(encode(REQUEST)).elements[0].start + 1
    for filler in (b"\x80", b"\xff", b"\x80\x80\x80\x01"):
        encoded = Stream(encode(REQUEST), start).add(b"\x82\x08").encoded()
        at = start + 16
        filled = Stream(encoded, at).encoded() + filler * 15000
        yield f"endless characters {filler.hex()}", filled
    yield "an endless integer", Stream(encode(RESPONSE), 18).encoded() + b"\xff" * 60000


@pytest.mark.timing
def test_codec_takes_long_for_no_bytes() -> None:
    cases = list(_hostile())
    cases += [(kind, encode(max(messages(kind, 50, seed=44), key=lambda m: len(encode(m))))) for kind in KINDS]
    slow = {}
    for name, encoded in cases:
        assert len(encoded) <= limits.MAX_MESSAGE_BYTES
        # No step is made yet, as for the first message of a process. The processor's time counts, and a machine that
        # is busy with something else gets more tries: what takes too long by itself never gets below.
        best = SECONDS
        for _ in range(20):
            for state in _AUTOMATON.states.values():
                state.clear()
            best = min(best, _seconds(encoded))
            if best < SECONDS:
                break
        else:
            slow[name] = best
    assert not slow


def _seconds(encoded: bytes) -> float:
    start = time.thread_time()
    _read(encoded)
    return time.thread_time() - start


def test_states_are_made_once_and_their_number_is_bounded_by_the_declarations() -> None:
    states = len(_AUTOMATON.states)
    assert states < 2000
    maker = Maker(45)
    for _ in range(100):
        for kind in KINDS:
            decode(encode(getattr(maker, kind)()))
    assert len(_AUTOMATON.states) == states
