"""Admin API over HTTP: authorisation, operations, and the absence of secrets in responses."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from schemathesis import engine
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events

from ccp.server.domain.authorization import ADMIN_TABLE, AdminOperation
from ccp.server.domain.parties import PartyRole
from ccp.server.http.routes.admin import BASE, NewParty
from ccp.testing.pki import PKI
from tests.cli.run import ccp_ok
from tests.server.http.api.answers import PATH_TOO_LONG, sentences
from tests.world import Pool, new_emaid, party, start

ADMINS = [party("admin", PartyRole.ADMIN), party("second_admin", PartyRole.ADMIN)]
NOT_FOUND = ["There is no party with this client id."]
_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def place(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool with two admins. Tests add parties of their own."""
    with start({"iso2": pkis["iso2"]}, ADMINS, refresh_interval=0.1) as running:
        yield running


def call(pool: Pool, method: str, path: str, caller: str | None = "admin", **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {pool.token(caller)}"} if caller else {}
    return pool.http.request(method, BASE + path, headers=headers, **options)


def ok(answer: httpx.Response, status: int = 200) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    members: dict[str, Any] = answer.json()
    return members


def fresh(pool: Pool, **members: Any) -> dict[str, Any]:
    """Add a party, by default a CPO. Returns the response with its client_secret."""
    number = next(_NUMBERS)
    body = {"name": f"Fresh {number}", "client_id": f"fresh-{number}", "roles": ["cpo"], **members}
    return ok(call(pool, "POST", "/parties", json=body), 201)


def new_wmi() -> str:
    return f"T{next(_NUMBERS):02d}"


def token_status(pool: Pool, client_id: str, secret: str) -> int:
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
    return pool.http.post("/oauth/token", data=form).status_code


def within_five_seconds(condition: Any) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 5
        time.sleep(0.05)


def register_of(pool: Pool) -> list[Any]:
    """Everything that a refused call must leave as it is."""
    return [pool.sql(f"select * from {table} order by 1, 2") for table in ("party", "party_owns", "party_secret")]


# --- Who may call ----------------------------------------------------------------------------------------------------

CALLS: dict[AdminOperation, tuple[str, str, dict[str, Any] | None, int]] = {
    AdminOperation.LIST_PARTIES: ("GET", "/parties", None, 200),
    AdminOperation.ADD_PARTY: ("POST", "/parties", {"name": "Called", "roles": ["cpo"]}, 201),
    AdminOperation.GET_PARTY: ("GET", "/parties/small_cps", None, 200),
    AdminOperation.EDIT_PARTY: ("PATCH", "/parties/small_cps", {"name": "called_cps"}, 200),
    AdminOperation.DISABLE_PARTY: ("POST", "/parties/small_cps/disable", None, 200),
    AdminOperation.ENABLE_PARTY: ("POST", "/parties/small_cps/enable", None, 200),
    AdminOperation.ROTATE_SECRET: ("POST", "/parties/small_cps/rotate-secret", {"overlap": 60}, 200),
    AdminOperation.GET_ROLES: ("GET", "/roles", None, 200),
}
OTHERS = ["emsp", "cpo", "oem", "cps", "peer"]


@pytest.mark.parametrize("operation", AdminOperation)
def test_admin_operations_refuse_other_callers(place: Pool, operation: AdminOperation) -> None:
    method, path, body, status = CALLS[operation]
    assert set(ADMIN_TABLE[operation]) == {PartyRole.ADMIN}
    before = register_of(place)
    assert sentences(call(place, method, path, None, json=body), 401) == ["A bearer token is needed."]
    for other in OTHERS:
        refused = call(place, method, path, other, json=body)
        assert sentences(refused, 403) == [f"{operation} is for the role admin."]
        # Neither a party that is not there nor a body that is none makes a difference.
        unknown = call(place, method, path.replace("small_cps", "absent"), other, content=b"{")
        assert sentences(unknown, 403) == [f"{operation} is for the role admin."]
    tampered = {"Authorization": f"Bearer {place.token('admin')[:-4]}AAAA"}
    sentences(place.http.request(method, BASE + path, headers=tampered, json=body), 401)
    assert register_of(place) == before
    ok(call(place, method, path, json=body), status)
    ok(call(place, "GET", "/roles", "everything"))


def test_the_paths_are_lower_case_and_know_their_methods(place: Pool) -> None:
    assert sentences(call(place, "GET", "/Parties"), 404) == ["There is nothing at this path."]
    assert sentences(place.http.get("/ADMIN/v1/roles"), 404) == ["There is nothing at this path."]
    assert sentences(place.http.get("/admin/V1/roles"), 404) == ["There is nothing at this path."]
    shouting = fresh(place, client_id="V1", name="Shouting")
    assert ok(call(place, "GET", "/parties/V1"))["name"] == shouting["name"]
    for method, path in (("DELETE", "/parties/cpo"), ("PUT", "/parties"), ("GET", "/parties/cpo/disable")):
        assert sentences(call(place, method, path), 405)[0].startswith("Method not allowed; use ")


def test_admin_disabled_by_another_process_changes_nothing(place: Pool) -> None:
    made = fresh(place, roles=["admin"])
    form = {"grant_type": "client_credentials", "client_id": made["client_id"], "client_secret": made["client_secret"]}
    token = place.http.post("/oauth/token", data=form).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    within_five_seconds(lambda: place.http.get(f"{BASE}/roles", headers=headers).status_code == 200)
    # The refresh after the party was added may still be pending.
    time.sleep(0.3)
    # Without counting the change: the worker's snapshot stays as it is.
    for change in ("enabled = false", "enabled = true, roles = '[\"cpo\"]'"):
        place.sql(f"update party set {change} where client_id = ?", made["client_id"])
        before = register_of(place)
        for method, path, body in (
            ("POST", "/parties", {"name": "Late", "roles": ["cpo"]}),
            ("PATCH", "/parties/cpo", {"name": "late"}),
            ("POST", "/parties/cpo/disable", None),
            ("POST", "/parties/cpo/rotate-secret", None),
        ):
            answer = place.http.request(method, BASE + path, headers=headers, json=body)
            assert sentences(answer, 403) == ["The caller is not an admin any more."]
        assert register_of(place) == before


# --- Add -------------------------------------------------------------------------------------------------------------


def test_added_party_can_call_with_its_secret(place: Pool) -> None:
    provider = f"DE{new_wmi()}"
    body = {"name": "Added eMSP", "roles": ["emsp", "cps"], "provider_ids": [f"de-{provider[2:].lower()}"]}
    answer = call(place, "POST", "/parties", json=body)
    reported = ok(answer, 201)
    secret = reported.pop("client_secret")
    assert answer.headers["location"] == f"{BASE}/parties/added-emsp"
    (life,) = reported.pop("secrets")
    assert life["expires_at"] is None
    assert reported == {
        "client_id": "added-emsp", "name": "Added eMSP", "roles": ["cps", "emsp"], "provider_ids": [provider],
        "all_providers": False, "wmis": [], "operator_ids": [], "enabled": True,
    }  # fmt: skip
    assert ok(call(place, "GET", "/parties/added-emsp")) == {**reported, "secrets": [life]}
    form = {"grant_type": "client_credentials", "client_id": "added-emsp", "client_secret": secret}
    token = place.http.post("/oauth/token", data=form).json()["access_token"]
    path = f"/opnc/v1/ccp/contractData/emaid/{new_emaid(provider)}"
    within_five_seconds(lambda: place.http.get(path, headers={"Authorization": f"Bearer {token}"}).status_code == 404)
    assert reported in json.loads(ccp_ok("party", "list", "--json", env={"CCP_DATABASE": place.settings.database}).out)


GOOD = {"name": "Refused", "roles": ["cpo"]}
CLIENT_ID = 'client_id : must match "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"'
NAME = "name : must be at most 100 printable characters, and a letter or digit among them"


@pytest.mark.parametrize(
    ("body", "reported"),
    [
        ({}, ["name : is missing", "roles : is missing"]),
        ({**GOOD, "name": 5}, ["name : must be a string"]),
        ({**GOOD, "name": None}, ["name : must not be null"]),
        ({**GOOD, "name": "\u0000"}, [NAME]),
        ({**GOOD, "name": "A\u202eB", "client_id": "a:b"}, [NAME, CLIENT_ID]),
        ({**GOOD, "client_id": None}, ["client_id : must not be null"]),
        ({**GOOD, "client_id": ""}, [CLIENT_ID]),
        ({**GOOD, "roles": []}, ["A party needs a role."]),
        ({**GOOD, "roles": ["king"]}, ["roles.0 : must be 'emsp', 'cpo', 'oem', 'cps', 'ccp' or 'admin'"]),
        ({**GOOD, "roles": "cpo"}, ["roles : must be an array"]),
        ({**GOOD, "wmi": ["WEX"]}, ["wmi : unknown member"]),
        ({**GOOD, "enabled": False}, ["enabled : unknown member"]),
        ({**GOOD, "wmis": ["ABC"]}, ["WMIs are for an OEM."]),
        ({**GOOD, "all_providers": True}, ["All providers are for a CPS."]),
        ({**GOOD, "all_providers": 1}, ["all_providers : must be true or false"]),
        ({**GOOD, "roles": ["emsp", "oem"]}, ["An eMSP needs a provider id.", "An OEM needs a WMI."]),
        ({**GOOD, "roles": ["oem"], "wmis": ["ABCD", "é"]}, [
            'WMI "ABCD" : must match "^[a-zA-Z0-9]{3}$"', 'WMI "\\u00e9" : must match "^[a-zA-Z0-9]{3}$"',
        ]),
        ({**GOOD, "roles": ["oem"], "wmis": [5]}, ["wmis.0 : must be a string"]),
        ({**GOOD, "roles": ["oem"], "wmis": ["wex"]}, ["The WMI WEX belongs to oem already."]),
        ({**GOOD, "roles": ["emsp"], "provider_ids": ["nl-exb"]}, [
            "The provider id NLEXB belongs to other_emsp already.",
        ]),
        ({**GOOD, "name": "EMSP"}, ["There is a party named EMSP already."]),
        ({**GOOD, "client_id": "Admin"}, ["The client id Admin is taken already."]),
        ([], ["The body is not a JSON object: it is an array."]),
        ("name", ["The body is not a JSON object: it is a string."]),
    ],
)  # fmt: skip
def test_a_party_that_makes_no_sense_is_400_with_everything_that_is_wrong(
    place: Pool, body: Any, reported: list[str]
) -> None:
    before = register_of(place)
    assert sentences(call(place, "POST", "/parties", json=body), 400) == reported
    assert register_of(place) == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"name": "\\ud800", "roles": ["cpo"]}', b"[" * 10_000])
def test_body_that_is_not_json_is_400(place: Pool, content: bytes) -> None:
    for method, path in (("POST", "/parties"), ("PATCH", "/parties/cpo")):
        (reported,) = sentences(call(place, method, path, content=content), 400)
        assert reported.startswith(("The body is not JSON: ", "The body is empty."))


def test_a_body_beyond_the_limit_is_413(place: Pool) -> None:
    body = {**GOOD, "operator_ids": ["DEEXC"] * 40_000}
    assert "larger than" in sentences(call(place, "POST", "/parties", json=body), 413)[0]


# --- Show and list ---------------------------------------------------------------------------------------------------


def test_pages_together_are_the_register(place: Pool) -> None:
    for _ in range(3):
        fresh(place)
    whole = ok(call(place, "GET", "/parties"))
    assert whole["next_cursor"] is None
    ids = [each["client_id"] for each in whole["parties"]]
    assert ids == sorted(ids)
    assert set(ids) == {row[0] for row in place.sql("select client_id from party")}
    found: list[dict[str, Any]] = []
    cursor: dict[str, Any] = {}
    for _ in range(len(ids)):
        page = ok(call(place, "GET", "/parties", params={"limit": 4, **cursor}))
        assert 1 <= len(page["parties"]) <= 4
        found += page["parties"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert found == whole["parties"]
    exactly = ok(call(place, "GET", "/parties", params={"limit": len(ids)}))
    assert exactly == whole


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=", "limit=9999999999999999999999", "cursor=a%00", "cursor=:"]
)
def test_a_page_that_cannot_be_is_400(place: Pool, query: str) -> None:
    assert sentences(call(place, "GET", f"/parties?{query}"), 400)[0].startswith(query.partition("=")[0] + " : ")


@pytest.mark.parametrize("client_id", ["absent", "OEM", "%00", "%ff", "a%2Fb", "..%2Foem", "é", "x" * 500])
@pytest.mark.parametrize("operation", [operation for operation, given in CALLS.items() if "small_cps" in given[1]])
def test_a_client_id_that_is_not_exactly_a_party_s_is_404(
    place: Pool, operation: AdminOperation, client_id: str
) -> None:
    method, path, body, _ = CALLS[operation]
    before = register_of(place)
    assert sentences(call(place, method, path.replace("small_cps", client_id), json=body), 404) == NOT_FOUND
    assert register_of(place) == before


# --- Edit ------------------------------------------------------------------------------------------------------------


def test_members_that_are_given_take_the_place_of_what_was_and_the_others_stay(place: Pool) -> None:
    first, second, third = new_wmi(), new_wmi(), new_wmi()
    made = fresh(place, roles=["oem"], wmis=[first, second])
    path = f"/parties/{made['client_id']}"
    kept = {name: made[name] for name in ("client_id", "name", "all_providers", "enabled", "provider_ids")}
    changed = ok(
        call(place, "PATCH", path, json={"wmis": [third, second], "roles": ["oem", "cpo"], "operator_ids": ["DEEXC"]})
    )
    assert changed == {
        **kept, "roles": ["cpo", "oem"], "wmis": sorted([second, third]), "operator_ids": ["DEEXC"]
    }  # fmt: skip
    assert ok(call(place, "PATCH", path, json={})) == changed
    assert sentences(call(place, "PATCH", path, json={"roles": ["cpo"]}), 400) == ["WMIs are for an OEM."]
    assert ok(call(place, "PATCH", path, json={"roles": ["cpo"], "wmis": []}))["wmis"] == []
    # What was given up is free, what was not given up never was.
    fresh(place, roles=["oem"], wmis=[first, second, third])
    assert sentences(call(place, "PATCH", path, json={"roles": ["oem"], "operator_ids": [], "wmis": [first]}), 400)


@pytest.mark.parametrize(
    ("body", "reported"),
    [
        ({"name": None}, "name : must not be null"),
        ({"name": ""}, NAME),
        ({"name": "CPO"}, "There is a party named CPO already."),
        ({"client_id": "other"}, "client_id : unknown member"),
        ({"enabled": False}, "enabled : unknown member"),
        ({"roles": []}, "A party needs a role."),
        ({"wmis": ["WXB"]}, "The WMI WXB belongs to other_oem already."),
        ({"wmis": None}, "wmis : must not be null"),
    ],
)
def test_an_edit_that_makes_no_sense_is_400_and_nothing_of_it_happens(
    place: Pool, body: dict[str, Any], reported: str
) -> None:
    before = register_of(place)
    assert reported in sentences(call(place, "PATCH", "/parties/oem", json=body), 400)
    assert register_of(place) == before


def test_an_id_that_is_taken_from_a_party_is_refused_to_it_within_five_seconds(place: Pool) -> None:
    wmi, other = new_wmi(), new_wmi()
    made = fresh(place, roles=["oem"], wmis=[wmi, other])
    form = {"grant_type": "client_credentials", "client_id": made["client_id"], "client_secret": made["client_secret"]}
    headers = {"Authorization": "Bearer " + place.http.post("/oauth/token", data=form).json()["access_token"]}
    path = f"/opnc/v1/ccp/contractData/pcid/{wmi}0TEST000000001"
    within_five_seconds(lambda: place.http.get(path, headers=headers).status_code == 404)
    ok(call(place, "PATCH", f"/parties/{made['client_id']}", json={"wmis": [other]}))
    within_five_seconds(lambda: place.http.get(path, headers=headers).status_code == 403)


# --- Disable and enable ----------------------------------------------------------------------------------------------


def test_a_disabled_party_is_refused_within_five_seconds_and_an_enabled_one_is_not(place: Pool) -> None:
    made = fresh(place, roles=["emsp"], provider_ids=[f"DE{new_wmi()}"])
    client_id, secret = made["client_id"], made["client_secret"]
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
    headers = {"Authorization": "Bearer " + place.http.post("/oauth/token", data=form).json()["access_token"]}
    path = f"/opnc/v1/ccp/contractData/emaid/{new_emaid(made['provider_ids'][0])}"
    within_five_seconds(lambda: place.http.get(path, headers=headers).status_code == 404)
    for _ in range(2):
        assert ok(call(place, "POST", f"/parties/{client_id}/disable"))["enabled"] is False
    assert token_status(place, client_id, secret) == 401
    within_five_seconds(lambda: place.http.get(path, headers=headers).status_code == 401)
    assert ok(call(place, "GET", f"/parties/{client_id}"))["enabled"] is False
    for _ in range(2):
        assert ok(call(place, "POST", f"/parties/{client_id}/enable"))["enabled"] is True
    assert token_status(place, client_id, secret) == 200
    within_five_seconds(lambda: place.http.get(path, headers=headers).status_code == 404)


def test_admin_cannot_lock_itself_out(place: Pool) -> None:
    before = register_of(place)
    assert sentences(call(place, "POST", "/parties/admin/disable"), 400) == ["An admin cannot disable itself."]
    for roles in (["cpo"], ["oem", "cpo"]):
        answer = call(
            place, "PATCH", "/parties/admin", json={"roles": roles, "wmis": ["LCK"] if "oem" in roles else []}
        )
        assert sentences(answer, 400) == ["An admin cannot give up its own role admin."]
    assert register_of(place) == before
    assert ok(call(place, "PATCH", "/parties/admin", json={"roles": ["admin", "cpo"]}))["roles"] == ["admin", "cpo"]
    assert ok(call(place, "PATCH", "/parties/admin", json={"roles": ["admin"]}))["roles"] == ["admin"]
    ok(call(place, "POST", "/parties/admin/disable", "second_admin"))
    within_five_seconds(lambda: call(place, "GET", "/roles").status_code == 401)
    ok(call(place, "POST", "/parties/admin/enable", "second_admin"))
    within_five_seconds(lambda: call(place, "GET", "/roles").status_code == 200)
    database = {"CCP_DATABASE": place.settings.database}
    ccp_ok("party", "disable", "second_admin", env=database)
    within_five_seconds(lambda: call(place, "GET", "/roles", "second_admin").status_code == 401)
    ccp_ok("party", "enable", "second_admin", env=database)
    within_five_seconds(lambda: call(place, "GET", "/roles", "second_admin").status_code == 200)


# --- Secrets ---------------------------------------------------------------------------------------------------------


def test_after_a_rotation_both_secrets_are_good_and_the_older_one_ends(place: Pool) -> None:
    made = fresh(place)
    client_id, older = made["client_id"], made["client_secret"]
    reported = ok(call(place, "POST", f"/parties/{client_id}/rotate-secret", json={"overlap": 2}))
    newer = reported["client_secret"]
    assert newer != older
    assert [life["expires_at"] is None for life in reported["secrets"]] == [True, False]
    assert token_status(place, client_id, newer) == 200
    assert token_status(place, client_id, older) == 200
    within_five_seconds(lambda: token_status(place, client_id, older) == 401)
    assert token_status(place, client_id, newer) == 200
    assert ok(call(place, "GET", f"/parties/{client_id}"))["secrets"] == reported["secrets"][:1]


def test_two_secrets_are_the_most_and_one_that_is_ended_ends_at_once(place: Pool) -> None:
    made = fresh(place)
    client_id, path = made["client_id"], f"/parties/{made['client_id']}/rotate-secret"
    first, second = made["client_secret"], ok(call(place, "POST", path))["client_secret"]
    assert sentences(call(place, "POST", path), 400)[0].startswith(f"{made['name']} has two valid secrets already.")
    third = ok(call(place, "POST", path, json={"end": "newer"}))["client_secret"]
    assert [token_status(place, client_id, each) for each in (first, second, third)] == [200, 401, 200]
    fourth = ok(call(place, "POST", path, json={"end": "older", "overlap": 60}))["client_secret"]
    assert [token_status(place, client_id, each) for each in (first, third, fourth)] == [401, 200, 200]
    fifth = ok(call(place, "POST", path, json={"overlap": 0}))
    assert len(fifth["secrets"]) == 1
    assert [token_status(place, client_id, each) for each in (third, fourth, fifth["client_secret"])] == [401, 401, 200]


@pytest.mark.parametrize(
    ("body", "reported"),
    [
        ({"overlap": -1}, "overlap : must be 0 to 7776000 seconds"),
        ({"overlap": 7_776_001}, "overlap : must be 0 to 7776000 seconds"),
        ({"overlap": 10**30}, "overlap : must be 0 to 7776000 seconds"),
        ({"overlap": "60"}, "overlap : must be an integer"),
        ({"overlap": 1.5}, "overlap : must be an integer"),
        ({"overlap": None}, "overlap : must not be null"),
        ({"end": "both"}, "end : must be 'older' or 'newer'"),
        ({"end": None}, "end : must not be null"),
        ({"now": True}, "now : unknown member"),
        ([], "The body is not a JSON object: it is an array."),
    ],
)
def test_a_rotation_that_makes_no_sense_is_400_and_no_secret_is_made(place: Pool, body: Any, reported: str) -> None:
    before = register_of(place)
    assert sentences(call(place, "POST", "/parties/peer/rotate-secret", json=body), 400) == [reported]
    assert register_of(place) == before


def test_no_answer_holds_a_hash_or_a_secret_but_the_one_that_was_just_made(place: Pool) -> None:
    made = fresh(place)
    path, secret = f"/parties/{made['client_id']}", made["client_secret"]
    rotation = call(place, "POST", f"{path}/rotate-secret", json={})
    newer = rotation.json()["client_secret"]
    others = [
        call(place, "GET", path), call(place, "GET", "/parties"), call(place, "POST", f"{path}/disable"),
        call(place, "POST", f"{path}/enable"), call(place, "PATCH", path, json={"operator_ids": ["DEEXC"]}),
        call(place, "POST", f"{path}/rotate-secret"),
        call(place, "POST", "/parties", json={**GOOD, "name": made["name"]}),
    ]  # fmt: skip
    assert secret not in rotation.text
    for answer in (rotation, *others):
        assert "argon2" not in answer.text
        for kept in place.sql("select hash from party_secret"):
            assert kept[0] not in answer.text
    for answer in others:
        assert "client_secret" not in answer.text
        assert secret not in answer.text
        assert newer not in answer.text
    trail = str(place.sql("select * from audit"))
    assert secret not in trail
    assert newer not in trail
    assert "argon2" not in trail


# --- Trail and table -------------------------------------------------------------------------------------------------


def test_admin_api_change_is_audited_with_admin_and_trace_id(place: Pool) -> None:
    made = fresh(place)
    answers = [
        call(place, "PATCH", f"/parties/{made['client_id']}", json={"operator_ids": ["DEEXC"]}),
        call(place, "POST", f"/parties/{made['client_id']}/disable"),
        call(place, "POST", f"/parties/{made['client_id']}/enable", "second_admin"),
        call(place, "POST", f"/parties/{made['client_id']}/rotate-secret"),
    ]
    rows = place.sql(
        "select actor, action, outcome, trace_id from audit where json_extract(subject, '$.party') = ? order by at",
        made["client_id"],
    )
    assert [row[:3] for row in rows] == [
        ("admin", "party.added", "ok"), ("admin", "party.edited", "ok"), ("admin", "party.disabled", "ok"),
        ("second_admin", "party.enabled", "ok"), ("admin", "secret.rotated", "ok"),
    ]  # fmt: skip
    assert [row[3] for row in rows[1:]] == [answer.headers["x-trace-id"] for answer in answers]


def test_the_role_table_is_the_one_that_the_command_prints(place: Pool) -> None:
    assert ok(call(place, "GET", "/roles")) == {"roles": json.loads(ccp_ok("party", "roles", "--json").out)}


# --- The description -------------------------------------------------------------------------------------------------


def test_requests_made_from_the_description_are_answered_as_it_says(pkis: dict[str, PKI]) -> None:
    """On a pool of its own: made-up requests disable parties and rename them."""
    with start({"iso2": pkis["iso2"]}, ADMINS) as pool:
        described = pool.http.get("/openapi.json").json()
        operations = {
            operation["operationId"]: f"{method.upper()} {path}"
            for path, item in described["paths"].items()
            for method, operation in item.items()
            if path.startswith(BASE)
        }
        assert set(operations) == set(AdminOperation)
        described["paths"] = {path: item for path, item in described["paths"].items() if path.startswith(BASE)}
        checks = (
            "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
            "negative_data_rejection",
        )  # fmt: skip
        config = SchemathesisConfig.from_dict(
            {
                "base-url": pool.base_url,
                "seed": 20,
                "headers": {"Authorization": f"Bearer {pool.token('admin')}"},
                "generation": {"max-examples": 6, "deterministic": True, "no-shrink": True},
                "dictionaries": {
                    "name": {"values": ["Made up"]},
                    "client": {"values": ["cpo", "oem", "cps", "peer", "emsp"]},
                },
                "parameters": {
                    "path.client_id": {"dictionary": "client", "probability": 0.7},
                    "body.name": {"dictionary": "name", "probability": 0.5},
                },
                "checks": {"enabled": False, **{name: {"enabled": True} for name in checks}},
                "phases": {"stateful": {"enabled": False}},
            }
        )
        schema = schemathesis.openapi.from_dict(described, config=config)

        @schema.hook("map_body")
        def agreeing(context: Any, body: Any) -> Any:
            """Roles and ids that belong together are nothing that the description knows."""
            if not isinstance(body, dict) or body.get("name") != "Made up":
                return body
            try:
                NewParty.model_validate_json(json.dumps(body))
            except ValueError:
                return body
            return {"name": f"Made up {next(_NUMBERS)}", "roles": ["cpo"], "operator_ids": ["DEEXC"]}

        answers: Counter[tuple[str, int]] = Counter()
        failures: dict[str, str] = {}
        for event in engine.from_schema(schema).execute():
            if isinstance(event, events.FatalError):
                raise event.exception
            if isinstance(event, events.NonFatalError):
                failures[event.label] = str(event.value)
            elif isinstance(event, events.ScenarioFinished):
                label = event.recorder.label
                for case_id, interaction in event.recorder.interactions.items():
                    if interaction.response is not None:
                        if interaction.response.status_code == PATH_TOO_LONG:
                            continue
                        answers[label, interaction.response.status_code] += 1
                    for check in event.recorder.checks.get(case_id, []):
                        if check.failure_info is not None:
                            failure = check.failure_info.failure
                            failures[f"{label}: {failure.title}"] = (
                                f"{failure.message}\n{check.failure_info.code_sample}"
                            )
        assert not failures, "\n\n".join(f"{title}\n{text}" for title, text in failures.items())
        for operation, (_, _, _, status) in CALLS.items():
            assert answers[operations[operation], status], (operation, answers)
        assert ccp_ok("audit", "verify", env={"CCP_DATABASE": pool.settings.database}).status == 0
