"""Any body gets a response that is valid against the schema of its version, or the API's 400."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ccp.schemas.ocpp import PATH
from ccp.testing.pki import PKI
from tests.server.http.api.answers import sentences
from tests.server.http.ocpp.payloads import check, payload
from tests.world import Pool, start


@pytest.fixture(scope="module")
def furnished(pkis: dict[str, PKI]) -> Iterator[tuple[Pool, list[dict[str, Any]]]]:
    """A pool, and payloads of cars with and without contracts."""
    with start(pkis, rate_limit_per_party=0, rate_limit_per_address=0) as pool:
        bodies = []
        for edition in ("iso2", "iso20", "ed448"):
            for count in range(3):
                car = pool.car(edition)
                for _ in range(count):
                    pool.publish(car)
                bodies.append(payload(car))
        yield pool, bodies


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=60),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=6,
)
MEMBERS = {
    "iso15118SchemaVersion": st.sampled_from(["urn:iso:15118:2:2013:MsgDef", "15118-20", ""]) | st.text(max_size=60),
    "action": st.sampled_from(["Install", "Install", "Update", "Other"]),
    "exiRequest": st.binary(max_size=300).map(lambda data: base64.b64encode(b"\x80" + data).decode())
    | st.sampled_from(["", "A" * 5604, "gJg" + "A" * 11_001])
    | st.text(max_size=60),
    "maximumContractCertificateChains": st.integers(-1, 300) | st.floats(0, 3) | st.just(10**30),
    "prioritizedEMAIDs": st.lists(st.text(max_size=260), max_size=9),
    "customData": st.dictionaries(st.text(max_size=10), ANYTHING, max_size=2),
}
CHANGES = st.fixed_dictionaries({}, optional={name: values | ANYTHING for name, values in MEMBERS.items()})
QUERIES = st.fixed_dictionaries(
    {"ocppVersion": st.sampled_from(["2.0.1", "2.1"])},
    optional={
        "maxExiResponse": st.integers(1000, 9000).map(str),
        "broadcast": st.sampled_from(["true", "false"]),
    },
)


@given(st.integers(0, 8), CHANGES, st.sets(st.sampled_from(sorted(MEMBERS)), max_size=1), QUERIES)
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_body_payload_gets_a_valid_response_or_400(
    furnished: tuple[Pool, list[dict[str, Any]]],
    number: int,
    change: dict[str, Any],
    without: set[str],
    query: dict[str, str],
) -> None:
    pool, bodies = furnished
    body = {name: value for name, value in {**bodies[number], **change}.items() if name not in without}
    _post(pool, orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS) if _writable(body) else b"{}", query)


@given(st.binary(max_size=200) | ANYTHING.map(lambda value: orjson.dumps(value) if _writable(value) else b"[]"))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_body_gets_a_valid_response_or_400(furnished: tuple[Pool, list[dict[str, Any]]], body: bytes) -> None:
    _post(furnished[0], body, {"ocppVersion": "2.1"})


@given(st.integers(0, 8), st.integers(0, 4000), st.integers(1, 255), st.integers(0, 12), QUERIES)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_body_with_a_damaged_message_gets_a_valid_response(
    furnished: tuple[Pool, list[dict[str, Any]]], number: int, place: int, flip: int, cut: int, query: dict[str, str]
) -> None:
    pool, bodies = furnished
    message = bytearray(base64.b64decode(bodies[number]["exiRequest"]))
    message[place % len(message)] ^= flip
    changed = message[: len(message) - cut]
    body = {**bodies[number], "exiRequest": base64.b64encode(changed).decode()}
    assert _post(pool, orjson.dumps(body), query) == 200


def _writable(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:  # Integers beyond 64 bits, and halves of surrogate pairs.
        return False
    return True


def _post(pool: Pool, body: bytes, query: dict[str, str]) -> int:
    headers = {"Authorization": f"Bearer {pool.token('cpo')}", "Content-Type": "application/json"}
    answer = pool.http.post(PATH, content=body, headers=headers, params=query)
    if answer.status_code == 400:
        assert sentences(answer, 400)
    else:
        assert answer.status_code == 200, answer.text
        found = answer.json()
        check(found, query["ocppVersion"])
        assert len(found["exiResponse"]) <= int(query.get("maxExiResponse", "17000"))
        assert (found["status"] == "Failed") == ("statusInfo" in found)
    return answer.status_code
