"""Admin API: edit, disable, enable and rotation of secrets."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli.run import ccp_ok
from tests.server.access.parties.admin_calls import (
    GOOD,
    NAME,
    call,
    fresh,
    new_wmi,
    ok,
    register_of,
    within_five_seconds,
)
from tests.server.http.api.answers import sentences
from tests.world import Pool, new_emaid


def token_status(pool: Pool, client_id: str, secret: str) -> int:
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
    return pool.http.post("/oauth/token", data=form).status_code


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
def test_admin_api_edit_that_makes_no_sense_is_400_and_nothing_of_it_happens(
    place: Pool, body: dict[str, Any], reported: str
) -> None:
    before = register_of(place)
    assert reported in sentences(call(place, "PATCH", "/parties/oem", json=body), 400)
    assert register_of(place) == before


def test_id_that_is_taken_from_a_party_is_refused_to_it_within_five_seconds(place: Pool) -> None:
    wmi, other = new_wmi(), new_wmi()
    made = fresh(place, roles=["oem"], wmis=[wmi, other])
    form = {"grant_type": "client_credentials", "client_id": made["client_id"], "client_secret": made["client_secret"]}
    headers = {"Authorization": "Bearer " + place.http.post("/oauth/token", data=form).json()["access_token"]}
    path = f"/opnc/v1/ccp/contractData/pcid/{wmi}0TEST000000001"
    within_five_seconds(lambda: place.http.get(path, headers=headers).status_code == 404)
    ok(call(place, "PATCH", f"/parties/{made['client_id']}", json={"wmis": [other]}))
    within_five_seconds(lambda: place.http.get(path, headers=headers).status_code == 403)


# --- Disable and enable ----------------------------------------------------------------------------------------------


def test_party_that_is_disabled_is_refused_in_five_seconds_and_an_enabled_one_not(place: Pool) -> None:
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


def test_rotation_keeps_both_secrets_valid_until_the_older_one_ends(place: Pool) -> None:
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


def test_secrets_are_two_at_most_and_one_that_is_ended_ends_at_once(place: Pool) -> None:
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
def test_rotation_that_makes_no_sense_is_400_and_no_secret_is_made(place: Pool, body: Any, reported: str) -> None:
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
