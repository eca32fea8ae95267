"""JSON bodies that no two readers read alike, or none reads at all: refused with a sentence, at every operation."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import zlib
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccp.errors import FieldError
from ccp.schemas import json_input
from ccp.schemas.json_bodies import read_body
from ccp.schemas.opnc import GetSignedContractDataReq
from ccp.server.http.routes.admin import BASE as ADMIN
from ccp.server.http.routes.opnc import BASE
from tests.server.http.api.answers import sentences
from tests.world import AT, ISO2, SESSION, Pool, b64, post_body

EVENTS = "/opnc/v1/event/endpoints"
OPERATIONS = [
    ("PUT", f"{BASE}/signedcontractdata"),
    ("POST", f"{BASE}/signedcontractdata"),
    ("PUT", "/v1/ccp/signedContractData"),
    ("POST", "/v1/ccp/signedContractData"),
    ("POST", EVENTS),
    ("PUT", f"{EVENTS}/00000000-0000-4000-8000-000000000000"),
    ("POST", f"{EVENTS}/00000000-0000-4000-8000-000000000000/secret"),
    ("POST", "/v1/webhook/endpoints"),
    ("POST", f"{ADMIN}/parties"),
    ("PATCH", f"{ADMIN}/parties/cpo"),
    ("POST", f"{ADMIN}/parties/cpo/rotate-secret"),
]


def send(pool: Pool, method: str, path: str, content: bytes, **headers: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {pool.token('everything')}", "Content-Type": "application/json", **headers}
    return pool.http.request(method, path, content=content, headers=headers)


SYNTAX: list[tuple[bytes, str]] = [
    (b'{"a": 1,\n "b": 2,}', "a comma stands before the end at line 2, column 9."),
    (b'{"a" 1}', "':' is expected at line 1, column 6, but there is '1'."),
    (b'{"a": 1\n"b": 2}', "',' or the end of the object or array is expected at line 2, column 1, but there is '\"'."),
    (b"{'a': 1}", 'a member name in double quotes is expected at line 1, column 2, but there is "\'".'),
    (b'{"a": True}', "a value is expected at line 1, column 7, but there is True."),
    ('{"é": é}'.encode(), "a value is expected at line 1, column 7, but there is U+00E9."),
    (b'{"a": "b', "a string without end begins at line 1, column 7."),
    (b'{"a": ', "a value is expected at line 1, column 6, but the body ends."),
    (b'{"a": "b\tc"}', "a string has a control character, which must be escaped, at line 1, column 9."),
    (b'{"a": "\\x41"}', "a string has an invalid escape sequence at line 1, column 8."),
    (b'{"a": "\\ud83d"}', "an escape sequence is half of a surrogate pair."),
    (b'{"a": 1} {"b": 2}', "the end of the body is expected at line 1, column 10, but there is '{'."),
    (b"emaid=DEEXAC00000001&pcid=x", "a value is expected at line 1, column 1, but there is 'e'."),
    (b'\xef\xbb\xbf{"a": 1}', "it begins with a byte order mark (EF BB BF), which must be left out."),
    ('{"a": 1}'.encode("utf-16"), "it looks like UTF-16, and must be UTF-8."),
    ('{"a": 1}'.encode("utf-16-be"), "it looks like UTF-16, and must be UTF-8."),
    ('{"a": 1}'.encode("utf-32"), "it looks like UTF-32, and must be UTF-8."),
    ('{"a": 1}'.encode("utf-32-be"), "it looks like UTF-32, and must be UTF-8."),
    (b'{"a": "\xe9"}', "it is not UTF-8, byte E9 at offset 7."),
    (gzip.compress(b"{}", mtime=0), "it looks like gzip, and must be sent without compression."),
    (b'{"a": NaN}', "NaN is not a number of JSON."),
    (b'{"a": [Infinity]}', "Infinity is not a number of JSON."),
    (b'{"a": {"b": -Infinity}}', "-Infinity is not a number of JSON."),
]


@pytest.mark.parametrize(("content", "sentence"), SYNTAX, ids=range(len(SYNTAX)))
def test_json_that_is_invalid_is_refused_with_its_position_at_every_operation(
    pool: Pool, content: bytes, sentence: str
) -> None:
    for method, path in OPERATIONS:
        answer = send(pool, method, path, content)
        assert sentences(answer, 400) == [f"The body is not JSON: {sentence}"], (method, path)


def test_token_endpoint_reads_json_as_strictly(pool: Pool) -> None:
    credentials = {"grant_type": "client_credentials", "client_id": "cpo"}
    good = json.dumps({**credentials, "client_secret": pool.world.member("cpo").secret})
    json_type = {"Content-Type": "application/json"}
    assert pool.http.post("/oauth/token", content=good, headers=json_type).status_code == 200
    for content, sentence in (
        (good[:-1] + ', "scope": "cpo", "scope": ""}', "scope : is given more than once"),
        (good[:-1] + ', "scope": NaN}', "The body is not JSON: NaN is not a number of JSON."),
        (good[:-1] + ",}", "The body is not JSON: a comma stands before the end at line 1, column"),
        ("\ufeff" + good, "The body is not JSON: it begins with a byte order mark"),
    ):
        answer = pool.http.post("/oauth/token", content=content.encode(), headers=json_type)
        assert answer.status_code == 400
        assert answer.json()["error"] == "invalid_request"
        assert answer.json()["error_description"].startswith(sentence)


@pytest.mark.parametrize(
    ("value", "kind"),
    [([], "an array"), ("x", "a string"), (5, "a number"), (1.5, "a number"), (True, "true or false"), (None, "null")],
)
def test_json_that_is_no_object_is_named(pool: Pool, value: Any, kind: str) -> None:
    for method, path in OPERATIONS:
        reported = sentences(send(pool, method, path, json.dumps(value).encode()), 400)
        assert reported == [f"The body is not a JSON object: it is {kind}."]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "GZIP", "identity, gzip", "x-unknown"])
def test_body_with_a_content_coding_is_415_at_every_operation_that_reads_one(pool: Pool, coding: str) -> None:
    contract = pool.contract(pool.car())
    plain = json.dumps(contract.body).encode()
    content = {"gzip": gzip.compress(plain), "deflate": zlib.compress(plain)}.get(coding, plain)
    headers = {"Content-Encoding": coding}
    for method, path in [*OPERATIONS, ("POST", "/oauth/token")]:
        answer = send(pool, method, path, content, **headers)
        (reported,) = sentences(answer, 415)
        assert reported.startswith("The body has the content coding ")
        assert coding.partition(",")[0] in reported
        assert answer.headers["accept-encoding"] == "identity"
    assert pool.stored(contract.emaid) == 0


def test_body_with_the_coding_identity_is_read(pool: Pool) -> None:
    contract = pool.contract(pool.car())
    headers = {"Content-Encoding": "Identity"}
    assert pool.cps.put("/signedcontractdata", json=contract.body, headers=headers).status_code == 201


def test_member_that_is_given_twice_is_refused_and_nothing_is_stored(pool: Pool) -> None:
    first, second = pool.contract(pool.car()), pool.contract(pool.car())
    body = json.dumps(first.body)
    name, other = '"emaid"', json.dumps(str(second.emaid))
    for content in (
        body[:-1] + f", {name}: {other}" + "}",
        "{" + f"{name}: {other}, " + body[1:],
        body[:-1] + f', "\\u0065maid": {other}' + "}",
        body[:-1] + ', "emaid": null}',
    ):
        answer = pool.cps.put("/signedcontractdata", content=content.encode())
        assert sentences(answer, 400) == ["emaid : is given more than once"], content[:80]
    for unknown in (', "x": 1, "x": 1}', ', "x": {"y": [{"z": 1, "z": 2}]}}', ', "": "", "": ""}'):
        answer = pool.cps.put("/signedcontractdata", content=(body[:-1] + unknown).encode())
        (reported,) = sentences(answer, 400)
        assert reported.endswith(" : is given more than once")
    assert pool.stored(first.emaid) == pool.stored(second.emaid) == 0
    # Texts that look like members are none, and the same name in other objects is another one.
    tricky = {**first.body, "metaData": '","emaid":"DEEXA', "x": {"emaid": 1}, "y": ["emaid", "emaid", {"emaid": 2}]}
    assert pool.cps.put("/signedcontractdata", json=tricky).status_code == 201


def test_vehicles_request_with_a_member_twice_is_refused(pool: Pool) -> None:
    car = pool.car()
    pool.publish(car)
    body = post_body(car.request(SESSION, AT), str(car.namespace))
    text = json.dumps(body)
    content = text[:-1] + ', "certificateInstallationReq": ' + json.dumps(b64(b"\x80")) + "}"
    for path in (f"{BASE}/signedcontractdata", "/v1/ccp/signedContractData"):
        answer = send(pool, "POST", path, content.encode())
        assert sentences(answer, 400) == ["certificateInstallationReq : is given more than once"]
    assert pool.cpo.post("/signedcontractdata", content=text.encode()).status_code == 200


def test_admins_change_with_a_member_twice_is_refused(pool: Pool) -> None:
    path = f"{ADMIN}/parties/small_cps"
    before = send(pool, "GET", path, b"").json()
    content = b'{"all_providers": false, "name": "one", "name": "two"}'
    assert sentences(send(pool, "PATCH", path, content), 400) == ["name : is given more than once"]
    assert send(pool, "GET", path, b"").json() == before


MISSING = "is missing"
NULL = "must not be null"


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        (
            {"certificateInstallationResponse": "x"},
            [f"certificateInstallationRes : {MISSING} (given: certificateInstallationResponse)"],
        ),
        ({"certificateInstallationRes": None}, [f"certificateInstallationRes : {NULL}"]),
        ({}, [f"certificateInstallationRes : {MISSING}"]),
        ({"certificateInstallationRes": ""}, ["certificateInstallationRes : must not be empty"]),
        ({"certificateInstallationRes": ["gJg="]}, ["certificateInstallationRes : must be a string"]),
        (
            {f"name{number}": 1 for number in range(9)},
            [f"certificateInstallationRes : {MISSING} (given: name0, name1, name2, name3, name4, …)"],
        ),
        (
            {"a\u202eb\x1b": 1, "x" * 100: 1},
            [f'certificateInstallationRes : {MISSING} (given: "a\\u202eb\\u001b", {"x" * 40}…)'],
        ),
    ],
)
def test_members_that_are_missing_or_null_are_told_apart_and_unknown_ones_named(
    pool: Pool, members: dict[str, Any], sentence: list[str]
) -> None:
    body = {"emaid": "DEEXAC00000001", "pcid": "WEX0JSON000000001", "xsdMsgDefNamespace": ISO2, **members}
    content = json.dumps(body).encode()
    assert sentences(send(pool, "PUT", f"{BASE}/signedcontractdata", content), 400) == sentence
    # OPCP has two members for the message, and needs one of them.
    in_opcp = [each.replace(MISSING, f"{MISSING}, and so is signedContractDataXML") for each in sentence]
    assert sentences(send(pool, "PUT", "/v1/ccp/signedContractData", content), 400) == in_opcp


@pytest.mark.parametrize("number", ["1e999", "-1e999", "123456789012345678901234567890"])
def test_metadata_with_a_number_that_cannot_be_kept_is_refused(pool: Pool, number: str) -> None:
    """Not kept as null."""
    body = f'{{"url": "https://8.8.8.8/", "enabledEvents": "oem.contract.created", "metadata": {{"a": [{number}]}}}}'
    answer = send(pool, "POST", EVENTS, body.encode())
    assert sentences(answer, 400) == ["metadata : has a number or a text that JSON cannot carry"]


def test_members_that_are_missing_or_null_differ_in_requests_webhooks_and_parties(pool: Pool) -> None:
    for method, path, members, sentence in (
        ("POST", f"{BASE}/signedcontractdata", {"xsdMsgDefNamespace": ISO2}, f"certificateInstallationReq : {MISSING}"),
        (
            "POST",
            f"{BASE}/signedcontractdata",
            {"xsdMsgDefNamespace": ISO2, "certificateInstallationReq": None},
            f"certificateInstallationReq : {NULL}",
        ),
        ("POST", EVENTS, {"url": "https://hooks.example/x"}, f"enabledEvents : {MISSING}"),
        ("POST", EVENTS, {"url": "https://hooks.example/x", "events": None}, f"enabledEvents : {NULL}"),
        ("POST", EVENTS, {"url": None, "enabledEvents": ["oem.contract.created"]}, f"url : {NULL}"),
        ("POST", EVENTS, {"URL": 1, "enabledEvents": ["oem.contract.created"]}, f"url : {MISSING} (given: URL)"),
        ("POST", f"{ADMIN}/parties", {"name": "x"}, f"roles : {MISSING}"),
        ("PATCH", f"{ADMIN}/parties/cpo", {"name": None}, f"name : {NULL}"),
        (
            "PATCH",
            f"{ADMIN}/parties/cpo",
            {"operator_id": []},
            "operator_id : unknown member, did you mean operator_ids?",
        ),
    ):
        assert sentences(send(pool, method, path, json.dumps(members).encode()), 400) == [sentence]


# --- The two readers agree -------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=12,
)
MEMBERS = {"certificateInstallationReq": base64.b64encode(b"\x80").decode(), "xsdMsgDefNamespace": ISO2}


OTHERS = st.text(max_size=9).filter(lambda name: name != "metadata")


@given(st.dictionaries(OTHERS, JSON, max_size=4), st.booleans(), st.sampled_from([None, 1]))
def test_body_without_repeated_members_is_read_whatever_else_it_has(
    more: dict[str, Any], escaped: bool, indent: int | None
) -> None:
    content = json.dumps({**more, **MEMBERS}, ensure_ascii=escaped, indent=indent).encode()
    assert read_body(GetSignedContractDataReq, content).certificateInstallationReq == "gA=="


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", *MEMBERS, "metadata"]), st.text(max_size=5)), max_size=4),
    st.booleans(),
)
def test_name_that_is_there_twice_is_found_wherever_it_is(more: list[tuple[str, str]], escaped: bool) -> None:
    members = [*MEMBERS.items(), *more]

    def written(name: str) -> str:
        return '"' + "".join(f"\\u{ord(c):04x}" for c in name) + '"' if escaped else json.dumps(name)

    content = "{" + ",".join(f"{written(name)}:{json.dumps(value)}" for name, value in members) + "}"
    repeated = len({name for name, _ in members}) < len(members)
    if repeated:
        with pytest.raises(FieldError, match="is given more than once"):
            read_body(GetSignedContractDataReq, content.encode())
    else:
        read_body(GetSignedContractDataReq, content.encode())


@given(st.binary(max_size=60))
def test_json_body_of_any_bytes_gives_a_value_or_a_sentence(data: bytes) -> None:
    for read in (json_input.load, lambda given: read_body(GetSignedContractDataReq, given)):
        with contextlib.suppress(FieldError):
            read(data)
            continue
        with pytest.raises(FieldError) as caught:
            read(data)
        assert all(sentence.isprintable() for sentence in caught.value.messages)
