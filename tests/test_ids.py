"""Identifiers: what is accepted, what it becomes, what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccp.errors import FieldError
from ccp.ids import EMAID, PCID, WMI, Fingerprint, Namespace, OperatorId, ProviderId, check_digit, parse_session_id


@pytest.mark.parametrize(
    ("emaid", "digit"),
    # Published examples of the check digit calculation.
    list(
        zip(
            [
                "NN123ABCDEFGHI",
                "FRXYZ123456789",
                "ITA1B2C3E4F5G6",
                "ESZU8WOX834H1D",
                "PT73902837ABCZ",
                "DE83DUIEN83QGZ",
                "DE83DUIEN83ZGQ",
                "DE8AA001234567",
            ],
            "T24RZDM0",
            strict=True,
        )
    ),
)
def test_check_digits_are_those_of_the_published_examples(emaid: str, digit: str) -> None:
    assert check_digit(emaid) == digit


@pytest.mark.parametrize(
    ("sent", "canonical"),
    [
        ("DE-8AA-001234567", "DE8AA001234567"),
        ("de8aa001234567", "DE8AA001234567"),
        ("DE8AA0012345670", "DE8AA001234567"),  # correct check digit
        ("DE-8AA-001234567-0", "DE8AA001234567"),
        ("DE8AA0012345671", "DE8AA0012345671"),  # fifteenth character is no check digit
        ("DE8AA0_1234567X", "DE8AA0_1234567X"),
        ("DEICECOPNCCERT", "DEICECOPNCCERT"),
        ("DE-ICE-" + "A" * 28 + "-", "DEICE" + "A" * 28),
    ],
)
def test_emaids_become_canonical(sent: str, canonical: str) -> None:
    assert EMAID.parse(sent) == canonical
    assert EMAID.parse(sent).provider == canonical[:5]


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "DE8AA00123456",
        "D18AA001234567",
        "DE--8AA001234567",
        "DE8AA00123456é",
        "DE8AA0012345ſ67",
        "DE8AA001234567\n",
        "DE-ICE-" + "A" * 28 + "-A",
    ],
)
def test_emaid_that_is_invalid_is_refused_with_the_published_pattern(sent: str) -> None:
    with pytest.raises(FieldError, match="emaid : must match"):
        EMAID.parse(sent)


def test_pcids_are_compared_in_upper_case_and_keep_their_length() -> None:
    assert PCID.parse("wdbn0123456789abc") == "WDBN0123456789ABC"
    assert PCID.parse("WDBN0123456789ABCD") != PCID.parse("WDBN0123456789ABC")
    assert PCID.parse("wdbn0123456789abc").wmi == WMI.parse("WDB")
    for bad in ("WDBN0123456789AB", "WDBN0123456789ABCDE", "WDBN0123456789AB-", "WDBN0123456789ABſ"):
        with pytest.raises(FieldError, match="pcid : must match"):
            PCID.parse(bad)


def test_fingerprints_are_lower_case() -> None:
    assert Fingerprint.parse("AB" * 32) == "ab" * 32
    with pytest.raises(FieldError):
        Fingerprint.parse("AB" * 31)


def test_namespaces_have_aliases_and_nothing_else_passes() -> None:
    for alias in ("urn:iso:15118:20:2022:MsgDef", "urn:iso:std:iso:15118:-20:CommonMessages"):
        assert Namespace.parse(alias) is Namespace.ISO20
    assert Namespace.parse("urn:iso:15118:2:2013:MsgDef") is Namespace.ISO2
    with pytest.raises(FieldError, match="xsdMsgDefNamespace"):
        Namespace.parse("urn:iso:15118:2:2010:MsgDef")


def test_party_ids() -> None:
    assert ProviderId.parse("de-8aa") == "DE8AA"
    assert OperatorId.parse("de*ice") == "DEICE"
    with pytest.raises(FieldError):
        ProviderId.parse("DE8AAA")


@pytest.mark.parametrize(
    ("sent", "expected"), [("", b""), ("00", b"\0"), ("0011aAfF22334455", bytes.fromhex("0011aaff22334455"))]
)
def test_session_ids(sent: str, expected: bytes) -> None:
    assert parse_session_id(sent) == expected


@pytest.mark.parametrize("sent", ["0", "0g", "00" * 9, " 00", "٠٠"])
def test_session_id_that_is_invalid_is_refused(sent: str) -> None:
    with pytest.raises(FieldError, match="sessionID"):
        parse_session_id(sent)


@given(st.text(max_size=40))
def test_ids_of_any_text_are_read_or_a_field_error(text: str) -> None:
    for kind in (EMAID, PCID, WMI, Fingerprint, ProviderId):
        try:
            parsed = kind.parse(text)
        except FieldError:
            continue
        assert kind.parse(parsed) == parsed, "canonical ids are fixed points"


@given(st.from_regex(r"[A-Z]{2}[A-Z0-9]{12}", fullmatch=True), st.integers(0, 12))
def test_check_digit_notices_a_swap_of_neighbours(emaid: str, place: int) -> None:
    swapped = emaid[:place] + emaid[place + 1] + emaid[place] + emaid[place + 2 :]
    if swapped != emaid:
        assert check_digit(swapped) != check_digit(emaid)
