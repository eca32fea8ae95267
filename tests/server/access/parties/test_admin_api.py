"""Admin API over HTTP: authorisation, operations, and the absence of secrets in responses."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import schemathesis

from ccp.server.domain.authorization import ADMIN_TABLE, AdminOperation
from ccp.server.domain.parties import PartyRole
from ccp.server.http.routes.admin import BASE, NewParty
from ccp.testing.pki import PKI
from tests.cli.run import ccp_ok
from tests.schema_run import config, run
from tests.server.access.parties.admin_calls import (
    _NUMBERS,
    ADMINS,
    GOOD,
    NAME,
    PEERS,
    add_peers,
    call,
    fresh,
    new_wmi,
    ok,
    register_of,
    within_five_seconds,
)
from tests.server.http.api.answers import sentences
from tests.world import Pool, new_emaid, start

NOT_FOUND = ["There is no party with this client id."]


CALLS: dict[AdminOperation, tuple[str, str, dict[str, Any] | None, int]] = {
    AdminOperation.LIST_PARTIES: ("GET", "/parties", None, 200),
    AdminOperation.ADD_PARTY: ("POST", "/parties", {"name": "Called", "roles": ["cpo"]}, 201),
    AdminOperation.GET_PARTY: ("GET", "/parties/small_cps", None, 200),
    AdminOperation.EDIT_PARTY: ("PATCH", "/parties/small_cps", {"name": "called_cps"}, 200),
    AdminOperation.DISABLE_PARTY: ("POST", "/parties/small_cps/disable", None, 200),
    AdminOperation.ENABLE_PARTY: ("POST", "/parties/small_cps/enable", None, 200),
    AdminOperation.ROTATE_SECRET: ("POST", "/parties/small_cps/rotate-secret", {"overlap": 60}, 200),
    AdminOperation.LIST_PEERS: ("GET", "/peers", None, 200),
    AdminOperation.ADD_PEER: (
        "POST",
        "/peers",
        {"party_id": "called", "base_url": "https://c.example", "secret": "token"},
        201,
    ),
    AdminOperation.GET_PEER: ("GET", "/peers/far", None, 200),
    AdminOperation.EDIT_PEER: ("PATCH", "/peers/far", {"base_url": "https://new.example"}, 200),
    AdminOperation.DISABLE_PEER: ("POST", "/peers/far/disable", None, 200),
    AdminOperation.ENABLE_PEER: ("POST", "/peers/far/enable", None, 200),
    AdminOperation.ROTATE_PEER_SECRET: ("POST", "/peers/far/rotate-secret", {"secret": "token-2"}, 200),
    AdminOperation.REMOVE_PEER: ("DELETE", "/peers/gone", None, 200),
    AdminOperation.GET_ROLES: ("GET", "/roles", None, 200),
    AdminOperation.LIST_REFUSALS: ("GET", "/refusals", None, 200),
    AdminOperation.GET_STATISTICS: ("GET", "/statistics", None, 200),
    AdminOperation.GET_EXPIRY: ("GET", "/expiry", None, 200),
}


OTHERS = ["emsp", "cpo", "oem", "cps", "peer"]


# --- Who may call ----------------------------------------------------------------------------------------------------


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


def test_paths_are_lower_case_and_know_their_methods(place: Pool) -> None:
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
            ("POST", "/peers", {"party_id": "late", "base_url": "https://late.example", "secret": "token"}),
            ("PATCH", "/peers/far", {"base_url": "https://late.example"}),
            ("POST", "/peers/far/rotate-secret", {"secret": "late"}),
            ("DELETE", "/peers/far", None),
        ):
            answer = place.http.request(method, BASE + path, headers=headers, json=body)
            assert sentences(answer, 403) == ["The caller is not an admin any more."]
        assert register_of(place) == before


# --- Add -------------------------------------------------------------------------------------------------------------


def test_party_that_was_added_can_call_with_its_secret(place: Pool) -> None:
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


CLIENT_ID = 'client_id : must match "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"'


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
        ({**GOOD, "roles": ["king"]}, ["roles.0 : must be 'emsp', 'cpo', 'oem', 'cps', 'ccp', 'admin' or 'metrics'"]),
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
def test_party_that_makes_no_sense_is_400_with_everything_that_is_wrong(
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


def test_body_beyond_the_limit_is_413(place: Pool) -> None:
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
def test_page_that_cannot_be_is_400(place: Pool, query: str) -> None:
    assert sentences(call(place, "GET", f"/parties?{query}"), 400)[0].startswith(query.partition("=")[0] + " : ")


@pytest.mark.parametrize("client_id", ["absent", "OEM", "%00", "%ff", "a%2Fb", "..%2Foem", "é", "x" * 500])
@pytest.mark.parametrize("operation", [operation for operation, given in CALLS.items() if "small_cps" in given[1]])
def test_client_id_that_is_not_exactly_a_party_s_is_404(place: Pool, operation: AdminOperation, client_id: str) -> None:
    method, path, body, _ = CALLS[operation]
    before = register_of(place)
    assert sentences(call(place, method, path.replace("small_cps", client_id), json=body), 404) == NOT_FOUND
    assert register_of(place) == before


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


def test_role_table_is_the_one_that_the_command_prints(place: Pool) -> None:
    assert ok(call(place, "GET", "/roles")) == {"roles": json.loads(ccp_ok("party", "roles", "--json").out)}


# --- The description -------------------------------------------------------------------------------------------------


def test_requests_made_from_the_description_are_answered_as_it_says(pkis: dict[str, PKI]) -> None:
    """On a pool of its own: made-up requests disable parties and rename them."""
    with start({"iso2": pkis["iso2"]}, ADMINS) as pool:
        add_peers(pool)
        described = pool.http.get("/openapi.json").json()
        operations = {
            operation["operationId"]: f"{method.upper()} {path}"
            for path, item in described["paths"].items()
            for method, operation in item.items()
            if path.startswith(BASE)
        }
        assert set(operations) == set(AdminOperation)
        described["paths"] = {path: item for path, item in described["paths"].items() if path.startswith(BASE)}
        settings = config(
            pool,
            "admin",
            6,
            known={
                "name": ["Made up"],
                "client": ["cpo", "oem", "cps", "peer", "emsp"],
                "pool": PEERS,
                "url": ["https://made-up.example"],
            },
            places={
                "path.client_id": "client",
                "body.name": "name",
                "path.party_id": "pool",
                "body.base_url": "url",
                "body.token_url": "url",
            },
        )
        schema = schemathesis.openapi.from_dict(described, config=settings)

        @schema.hook("map_body")
        def agreeing(context: Any, body: Any) -> Any:
            """Roles and ids that belong together are nothing that the description knows."""
            if isinstance(body, dict) and body.get("base_url") == "https://made-up.example" and "party_id" in body:
                return {**body, "party_id": f"made-up-{next(_NUMBERS)}", "secret": "token", "client_id": "us"}
            if not isinstance(body, dict) or body.get("name") != "Made up":
                return body
            try:
                NewParty.model_validate_json(json.dumps(body))
            except ValueError:
                return body
            return {"name": f"Made up {next(_NUMBERS)}", "roles": ["cpo"], "operator_ids": ["DEEXC"]}

        answers, failures = run(schema)
        assert not failures, "\n\n".join(failures)
        for operation, (_, _, _, status) in CALLS.items():
            assert answers[operations[operation], status], (operation, answers)
        assert ccp_ok("audit", "verify", env={"CCP_DATABASE": pool.settings.database}).status == 0
