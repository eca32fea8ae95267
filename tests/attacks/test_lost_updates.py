"""Lost updates: ETag and If-Match prevent one operator from undoing another's change of a party."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from ccp.server.domain.parties import PartyRole
from ccp.server.http.routes.admin import BASE
from ccp.testing.pki import PKI
from tests.cli.run import COMMAND, environment
from tests.databases import Server
from tests.server.http.api.answers import sentences
from tests.world import Pool, party, start

ADMINS = [party("admin", PartyRole.ADMIN), party("second_admin", PartyRole.ADMIN)]
NOT_AS_READ = ["The party is not as If-Match says; read it again."]
MALFORMED = ["If-Match : must be * or entity tags in quotation marks, as ETag has them"]
_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def place(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start({"iso2": pkis["iso2"]}, ADMINS) as running:
        yield running


def call(pool: Pool, method: str, path: str, caller: str = "admin", **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {pool.token(caller)}", **options.pop("headers", {})}
    return pool.http.request(method, BASE + path, headers=headers, **options)


def fresh(pool: Pool) -> tuple[str, str]:
    """The path of a new party, and its ETag."""
    number = next(_NUMBERS)
    body = {"name": f"Tagged {number}", "client_id": f"tagged-{number}", "roles": ["cpo"], "operator_ids": ["DEAAA"]}
    made = call(pool, "POST", "/parties", json=body)
    assert made.status_code == 201
    path = f"/parties/tagged-{number}"
    assert tag(pool, path) == made.headers["etag"]
    return path, made.headers["etag"]


def tag(pool: Pool, path: str) -> str:
    answer = call(pool, "GET", path)
    assert answer.status_code == 200
    value = answer.headers["etag"]
    assert value.startswith('"')
    assert value.endswith('"')
    assert call(pool, "HEAD", path).headers["etag"] == value
    return value


def patch(pool: Pool, path: str, tag: str | None, caller: str = "admin", **members: Any) -> httpx.Response:
    headers = {} if tag is None else {"If-Match": tag}
    return call(pool, "PATCH", path, caller, json=members, headers=headers)


def test_party_change_with_a_stale_etag_is_412(place: Pool) -> None:
    path, first = fresh(place)
    done = patch(place, path, first, operator_ids=["DEAAA", "DEBBB"])
    assert done.status_code == 200
    second = done.headers["etag"]
    assert second == tag(place, path) != first
    refused = patch(place, path, first, "second_admin", operator_ids=["DEAAA", "DECCC"])
    assert sentences(refused, 412) == NOT_AS_READ
    assert call(place, "GET", path).json()["operator_ids"] == ["DEAAA", "DEBBB"]
    assert patch(place, path, second, "second_admin", operator_ids=["DEAAA", "DEBBB", "DECCC"]).status_code == 200
    assert call(place, "GET", path).json()["operator_ids"] == ["DEAAA", "DEBBB", "DECCC"]


def test_party_change_without_if_match_or_with_star_succeeds(place: Pool) -> None:
    path, _ = fresh(place)
    for value in (None, "*"):
        name = f"However {next(_NUMBERS)}"
        assert patch(place, path, value, name=name).status_code == 200
        assert call(place, "GET", path).json()["name"] == name


def test_if_match_list_matches_any_etag(place: Pool) -> None:
    path, current = fresh(place)
    assert sentences(patch(place, path, '"one", "two"', name="Neither"), 412) == NOT_AS_READ
    lines = [("If-Match", '"one"'), ("If-Match", f'"two" ,, {current}')]
    token = ("Authorization", f"Bearer {place.token('admin')}")
    answer = place.http.patch(BASE + path, json={"name": f"Listed {next(_NUMBERS)}"}, headers=[token, *lines])
    assert answer.status_code == 200, answer.text


def test_if_match_weak_etag_never_matches(place: Pool) -> None:
    path, current = fresh(place)
    assert sentences(patch(place, path, f"W/{current}", name="Weak"), 412) == NOT_AS_READ
    for wrong in (current.strip('"'), current[:-1], "", "*, " + current, f"{current} {current}", "w/" + current):
        assert sentences(patch(place, path, wrong, name="Malformed"), 400) == MALFORMED, wrong
    assert tag(place, path) == current


def test_if_match_applies_to_every_write_of_a_party(place: Pool) -> None:
    path, stale = fresh(place)
    assert patch(place, path, stale, name=f"Heeded {next(_NUMBERS)}").status_code == 200
    before = place.sql("select * from party_secret order by 1, 2")
    for action in ("disable", "enable", "rotate-secret"):
        headers = {"If-Match": stale}
        assert sentences(call(place, "POST", f"{path}/{action}", headers=headers), 412) == NOT_AS_READ, action
    assert call(place, "GET", path).json()["enabled"] is True
    assert place.sql("select * from party_secret order by 1, 2") == before
    for action in ("rotate-secret", "disable", "enable"):
        headers = {"If-Match": tag(place, path)}
        assert call(place, "POST", f"{path}/{action}", headers=headers).status_code == 200, action


def test_etag_changes_with_every_member_of_the_party(place: Pool) -> None:
    path, first = fresh(place)
    tags = [first]
    for action in ("disable", "enable", "rotate-secret"):
        assert call(place, "POST", f"{path}/{action}").status_code == 200
        tags.append(tag(place, path))
    assert tags[2] == tags[0], "enabled again it is as it was"
    assert len(set(tags)) == 3
    # A change to what it is already changes nothing.
    assert patch(place, path, tags[-1], operator_ids=["de*aaa"]).headers["etag"] == tags[-1]


def test_if_match_is_evaluated_after_authentication(place: Pool) -> None:
    path, _ = fresh(place)
    assert place.http.patch(BASE + path, json={}, headers={"If-Match": "x"}).status_code == 401
    assert sentences(patch(place, path, "x", "cpo", name="x"), 403)
    assert sentences(patch(place, "/parties/missing", '"x"', name="x"), 404)


def compete(pool: Pool) -> None:
    """One of eight concurrent changes with the same ETag succeeds; the audit trail has only this one."""
    path, first = fresh(pool)
    names = [f"Racer {next(_NUMBERS)}" for _ in range(8)]
    for caller in ("admin", "second_admin"):
        pool.token(caller)
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(
                lambda at: patch(pool, path, first, ("admin", "second_admin")[at % 2], name=names[at]), range(8)
            )
        )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 7
    (won,) = [name for name, answer in zip(names, answers, strict=True) if answer.status_code == 200]
    assert call(pool, "GET", path).json()["name"] == won


def test_etag_lets_one_of_several_concurrent_changes_succeed(place: Pool) -> None:
    for _ in range(3):
        compete(place)


def test_etag_lets_one_of_several_concurrent_changes_succeed_on_postgresql(
    pkis: dict[str, PKI], postgres: Server
) -> None:
    with start({}, ADMINS, database=postgres.database(empty=True)) as pool:
        compete(pool)


def test_command_line_changes_add_up_and_change_the_etag(place: Pool) -> None:
    """A command names what it adds and removes, in one transaction, so that no command undoes another."""
    path, first = fresh(place)
    env = environment(CCP_DATABASE=place.settings.database, CCP_LOG_LEVEL="error")
    ids = ["DEWWA", "DEWWB", "DEWWC"]
    edit = [*COMMAND, "party", "edit", path.removeprefix("/parties/"), "--add-operator-id"]
    commands = [subprocess.Popen([*edit, each], env=env, stdout=subprocess.DEVNULL) for each in ids]
    assert [command.wait(60) for command in commands] == [0, 0, 0]
    assert call(place, "GET", path).json()["operator_ids"] == ["DEAAA", *ids]
    assert sentences(patch(place, path, first, operator_ids=["DEAAA"]), 412) == NOT_AS_READ


def test_openapi_describes_etag_and_if_match(place: Pool) -> None:
    paths = place.http.get("/openapi.json").json()["paths"]
    one = paths[f"{BASE}/parties/{{client_id}}"]
    assert one["get"]["responses"]["200"]["headers"]["ETag"]
    assert one["patch"]["responses"]["200"]["headers"]["ETag"]
    writes = [one["patch"]] + [
        paths[f"{BASE}/parties/{{client_id}}/{action}"]["post"] for action in ("disable", "enable", "rotate-secret")
    ]
    for operation in writes:
        assert "412" in operation["responses"]
        (header,) = [each for each in operation["parameters"] if each["name"] == "If-Match"]
        assert header["in"] == "header"
        assert header["required"] is False
    assert "412" not in one["get"]["responses"]
