"""Signing keys of access tokens: selection, rotation, revocation, and propagation to workers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc import jws

from ccp.errors import NotAuthenticated, NotFound
from ccp.ids import ProviderId
from ccp.server import settings
from ccp.server.access import authorization_server, token_keys
from ccp.server.access.authorization_server import AuthorizationServer
from ccp.server.access.client_secrets import hash_secret
from ccp.server.domain.parties import Party, PartyRole
from ccp.server.http.routes.opnc import BASE
from ccp.server.settings import MAX_TOKEN_LIFETIME
from ccp.server.storage import Store, connect
from ccp.server.storage.engine import schema
from ccp.server.storage.engine.query import Query
from ccp.server.storage.engine.stored_secrets import CODEC
from ccp.server.storage.queries import audit, parties, signing_keys
from ccp.server.storage.queries.signing_keys import TokenKey, current_key
from tests.cli.run import ccp as run
from tests.cli.run import ccp_error, ccp_ok
from tests.cli.served_sandbox import free_port, serving
from tests.server.storage.made import AT, new_database, read, sql, write

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)


def stored(kid: str, created: datetime = AT, starts: datetime | None = None, ends: datetime | None = None) -> TokenKey:
    return TokenKey(kid, "private", created, starts, ends)


# --- Which key signs -------------------------------------------------------------------------------------------------


def test_key_that_is_the_newest_to_have_started_signs() -> None:
    old, new = stored("old", ends=AT + DAY), stored("new", AT + HOUR, AT + HOUR + 30 * SECOND)
    assert current_key([new, old], AT + HOUR) == old
    assert current_key([old, new], AT + HOUR + 29 * SECOND) == old
    assert current_key([old, new], AT + HOUR + 30 * SECOND) == new


def test_key_of_an_older_release_signs_from_its_making() -> None:
    assert current_key([stored("a"), stored("b", AT + HOUR)], AT + HOUR) == stored("b", AT + HOUR)


def test_key_that_is_the_first_signs_before_its_start_if_no_other_has_started() -> None:
    soon, later = stored("soon", starts=AT + SECOND), stored("later", starts=AT + HOUR)
    assert current_key([later, soon], AT) == soon


def test_key_that_is_retired_neither_signs_nor_verifies() -> None:
    retired = stored("retired", ends=AT + HOUR)
    assert retired.verifies(AT + HOUR - SECOND)
    assert not retired.verifies(AT + HOUR)
    assert current_key([retired], AT + HOUR) is None


# --- Questions -------------------------------------------------------------------------------------------------------


@pytest.fixture
def url(tmp_path: Path) -> str:
    return new_database(tmp_path)


def kids(url: str) -> list[str]:
    return [key.kid for key in read(url, signing_keys.list_all())]


def test_rotation_retires_the_others_and_keeps_them_until_then(url: str) -> None:
    new = stored("new", AT + HOUR, AT + HOUR + 30 * SECOND)
    write(url, signing_keys.ensure(stored("old")), signing_keys.rotate(new, AT + 2 * DAY, AT + HOUR))
    assert read(url, signing_keys.list_all()) == [new, stored("old", ends=AT + 2 * DAY)]


def test_rotate_keeps_earlier_retirements_and_removes_retired_keys(url: str) -> None:
    write(
        url,
        signing_keys.ensure(stored("first")),
        signing_keys.rotate(stored("second", AT + HOUR), AT + DAY, AT + HOUR),
        signing_keys.rotate(stored("third", AT + 2 * HOUR), AT + 2 * DAY, AT + 2 * HOUR),
    )
    ends = {key.kid: key.retired_at for key in read(url, signing_keys.list_all())}
    assert ends == {"third": None, "second": AT + 2 * DAY, "first": AT + DAY}
    write(url, signing_keys.rotate(stored("fourth", AT + DAY), AT + 3 * DAY, AT + DAY))
    assert kids(url) == ["fourth", "third", "second"]


def test_keys_are_rotated_at_their_maximum_age(url: str) -> None:
    write(url, signing_keys.ensure(stored("old")))
    assert write(url, signing_keys.rotate_old(stored("new", AT + DAY), AT - SECOND, AT + 2 * DAY, AT + DAY)) is False
    assert write(url, signing_keys.rotate_old(stored("new", AT + DAY), AT, AT + 2 * DAY, AT + DAY)) is True
    assert write(url, signing_keys.rotate_old(stored("newer", AT + DAY), AT, AT + 2 * DAY, AT + DAY)) is False
    assert kids(url) == ["new", "old"]


def test_key_that_is_revoked_is_gone_and_another_goes_on_signing(url: str) -> None:
    write(url, signing_keys.ensure(stored("old")), signing_keys.rotate(stored("new", AT + HOUR), AT + DAY, AT + HOUR))
    assert write(url, signing_keys.revoke("old", stored("spare"))) is False
    assert kids(url) == ["new"]


@pytest.mark.parametrize("rotated", [False, True])
def test_key_that_is_the_last_to_sign_is_not_revoked_without_a_new_one(url: str, rotated: bool) -> None:
    write(url, signing_keys.ensure(stored("old")))
    if rotated:
        write(url, signing_keys.rotate(stored("new", AT + HOUR), AT + DAY, AT + HOUR))
    assert write(url, signing_keys.revoke("new" if rotated else "old", stored("spare", AT + 2 * HOUR))) is True
    assert kids(url) == (["spare", "old"] if rotated else ["spare"])


def test_key_that_is_not_there_is_not_found_for_revoking_and_nothing_changes(url: str) -> None:
    write(url, signing_keys.ensure(stored("old")))
    before = sql(url, "select * from change_count")
    with pytest.raises(NotFound, match="There is no key other"):
        write(url, signing_keys.revoke("other", stored("spare")))
    assert (kids(url), sql(url, "select * from change_count")) == (["old"], before)


def test_keys_that_are_retired_are_removed_and_counted_where_there_are_some(url: str) -> None:
    write(url, signing_keys.ensure(stored("old")), signing_keys.rotate(stored("new", AT + HOUR), AT + DAY, AT + HOUR))
    before = sql(url, "select * from change_count")
    assert write(url, signing_keys.remove_retired(AT + DAY - SECOND)) == 0
    assert sql(url, "select * from change_count") == before
    assert write(url, signing_keys.remove_retired(AT + DAY)) == 1
    assert kids(url) == ["new"]
    assert sql(url, "select * from change_count") != before


def driven(steps: Query[Any], *answers: list[Any]) -> list[str]:
    """The statements of a question, with what an engine would have answered to each."""
    statements = [next(steps)[0]]
    with suppress(StopIteration):
        for rows in answers:
            statement = steps.send(rows)[0]
            if statement is CODEC[0]:
                statement = steps.send([(None,)])[0]
            statements.append(statement)
    return [" ".join(statement.split()[:2]) for statement in statements]


def test_key_writes_check_again_after_waiting_for_another_worker() -> None:
    """As it is on an engine with several writers: what was read before the lock may be old by the time of it."""
    old, new = ("old", "private", 0, None, None), ("new", "private", int(AT.timestamp() * 1_000_000), None, None)
    rotating = signing_keys.rotate_old(stored("mine", AT), AT - DAY, AT + DAY, AT)
    assert driven(rotating, [old], [], [new, old]) == ["select kid,", "insert into", "select kid,"]
    first = signing_keys.ensure(stored("mine"))
    assert driven(first, [], [], [new]) == ["select kid,", "insert into", "select kid,"]


# --- Several workers, one database -----------------------------------------------------------------------------------

SECRET = "a secret for a test, not for use"
ISSUER = "https://ccp.example.com"


class Worker:
    """What one worker process knows: a connection and an authority of its own."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.authority = AuthorizationServer(store, issuer=ISSUER, lifetime=3600)

    async def keys(self) -> list[TokenKey]:
        return await self.store.read(signing_keys.list_all())

    async def token(self, at: datetime) -> str:
        return (await self.authority.issue("emsp", SECRET, at)).access_token

    async def takes(self, token: str, at: datetime) -> bool:
        try:
            return (await self.authority.authenticate(f"Bearer {token}", at)).client_id == "emsp"
        except NotAuthenticated:
            return False


async def workers(url: str, number: int) -> list[Worker]:
    found = []
    for _ in range(number):
        store = connect(url)
        await store.open()
        found.append(Worker(store))
    return found


@pytest.fixture
def registered(url: str) -> str:
    emsp = Party("emsp", "emsp", frozenset({PartyRole.EMSP}), frozenset({ProviderId("DEEXA")}))
    write(url, parties.add(emsp, hash_secret(SECRET), AT))
    return url


def test_replace_old_keys_rotates_in_one_worker_and_audits_it(registered: str) -> None:
    async def all_at_once() -> None:
        found = await workers(registered, 4)
        await asyncio.gather(*(worker.authority.refresh_keys(AT) for worker in found))
        assert len(await found[0].keys()) == 1
        later = AT + 31 * DAY
        await asyncio.gather(*(token_keys.replace_old_keys(worker.store, 30 * 86_400, later) for worker in found))
        for worker in found:
            await worker.store.close()

    asyncio.run(all_at_once())
    new, old = read(registered, signing_keys.list_all())
    assert new.starts_at == AT + 31 * DAY + token_keys.KEY_ACTIVATION_DELAY
    assert old.retired_at is not None
    assert old.retired_at >= new.starts_at + timedelta(seconds=MAX_TOKEN_LIFETIME)
    rows = sql(registered, "select actor, subject from audit where action = 'key.rotated'")
    assert [(actor, json.loads(subject)) for actor, subject in rows] == [(audit.POOL, {"kid": new.kid})]


def test_replace_old_keys_with_lifetime_zero_only_removes_retired_keys(registered: str) -> None:
    async def look_after() -> None:
        (worker,) = await workers(registered, 1)
        await worker.authority.refresh_keys(AT)
        await token_keys.replace_old_keys(worker.store, 0, AT + 1000 * DAY)
        assert len(await worker.keys()) == 1
        await token_keys.rotate(worker.store, "cli:test", AT)
        await token_keys.replace_old_keys(worker.store, 0, AT + 1000 * DAY)
        await worker.store.close()

    asyncio.run(look_after())
    assert len(kids(registered)) == 1


def test_key_id_that_is_unknown_reloads_keys_at_most_once_a_second(
    registered: str,
) -> None:
    async def meet() -> None:
        first, second = await workers(registered, 2)
        for worker in (first, second):
            await worker.authority.refresh_parties()
            await worker.authority.refresh_keys(AT)
        accepted = await second.token(AT)
        await token_keys.rotate(first.store, "cli:test", AT + SECOND, timedelta(0))
        await first.authority.refresh_keys(AT)
        newest = await first.token(AT + SECOND)
        second.authority._loaded = time.monotonic()
        assert not await second.takes(newest, AT), "within a second of its last look it does not look again"
        second.authority._loaded -= 1
        assert await second.takes(newest, AT)
        assert await second.takes(accepted, AT)
        for worker in (first, second):
            await worker.store.close()

    asyncio.run(meet())


def test_issue_refreshes_parties_for_a_party_registered_just_now(registered: str) -> None:
    async def hurry() -> None:
        (worker,) = await workers(registered, 1)
        await worker.authority.refresh_keys(AT)
        assert await worker.takes(await worker.token(AT), AT)
        await worker.store.close()

    asyncio.run(hurry())


def test_token_cache_evicts_the_oldest_token(registered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authorization_server, "_CACHED_TOKENS", 3)

    async def fill() -> None:
        (worker,) = await workers(registered, 1)
        await worker.authority.refresh_keys(AT)
        issued = [await worker.token(AT) for _ in range(4)]
        for token in issued:
            assert await worker.takes(token, AT)
        assert [worker.authority.is_cached(f"Bearer {token}") for token in issued] == [False, True, True, True]
        assert await worker.takes(issued[0], AT), "it is verified anew"
        await worker.store.close()

    asyncio.run(fill())


def test_change_of_a_party_forgets_no_token_and_of_no_other_party_anything(registered: str) -> None:
    async def change() -> None:
        (worker,) = await workers(registered, 1)
        await worker.authority.refresh_parties()
        await worker.authority.refresh_keys(AT)
        token = await worker.token(AT)
        assert await worker.takes(token, AT)
        await worker.store.write(parties.add(Party("cpo", "cpo", frozenset({PartyRole.CPO})), "hash", AT))
        before = worker.authority._parties.get("emsp")
        await worker.authority.refresh_parties()
        assert worker.authority.is_registered("cpo")
        assert worker.authority.is_cached(f"Bearer {token}")
        assert worker.authority._parties.get("emsp") is before
        await worker.store.close()

    asyncio.run(change())


def test_token_that_is_cached_ends_with_its_key_even_if_it_claims_to_last_longer(registered: str) -> None:
    """Who stole a key that is retired since signs for a time when it should be worthless."""

    async def forge() -> None:
        (worker,) = await workers(registered, 1)
        await worker.authority.refresh_parties()
        await worker.authority.refresh_keys(AT)
        worker.authority._lifetime = 365 * 86_400
        forged = await worker.token(AT)
        await token_keys.rotate(worker.store, "cli:test", AT)
        await worker.authority.refresh_keys(AT)
        (retired_at,) = [key.retired_at for key in await worker.keys() if key.retired_at is not None]
        assert await worker.takes(forged, retired_at - SECOND)
        assert not await worker.takes(forged, retired_at)
        worker.authority.clear_token_cache()
        assert not await worker.takes(forged, retired_at)
        await worker.store.close()

    asyncio.run(forge())


# --- A pool with two workers -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one party in it, and a configuration."""
    directory = tmp_path_factory.mktemp("keys")
    (directory / "ccp.toml").write_text(f'database = "sqlite:///ccp.db"\nport = {free_port()}\nworkers = 2\n')
    url = settings.load(directory / "ccp.toml").database
    schema.upgrade(url)
    emsp = Party("emsp", "emsp", frozenset({PartyRole.EMSP}), frozenset({ProviderId("DEEXA")}))
    write(url, parties.add(emsp, hash_secret(SECRET), AT))
    return directory


class Served:
    """Two workers that run; every call is a connection of its own, so that both are met."""

    def __init__(self, folder: Path, url: str) -> None:
        self.config = folder / "ccp.toml"
        self.url = url

    def token(self) -> str:
        form = {"grant_type": "client_credentials", "client_id": "emsp", "client_secret": SECRET}
        answer = httpx.post(f"{self.url}/oauth/token", data=form, timeout=10)
        assert answer.status_code == 200, answer.text
        token: str = answer.json()["access_token"]
        return token

    def statuses(self, token: str, times: int = 8) -> set[int]:
        path = f"{self.url}{BASE}/contractData/emaid/DEEXAC12345678"
        headers = {"Authorization": f"Bearer {token}"}
        return {httpx.get(path, headers=headers, timeout=10).status_code for _ in range(times)}

    def published(self, times: int = 8) -> list[set[str]]:
        """The keys as each of several answers has them."""
        path = f"{self.url}/.well-known/jwks.json"
        return [{key["kid"] for key in httpx.get(path, timeout=10).json()["keys"]} for _ in range(times)]

    def listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(ccp_ok("keys", "list", "--json", "--config", self.config).out)
        return found


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    url = settings.load(folder / "ccp.toml").public_url
    with serving(url, "--config", folder / "ccp.toml", log=folder / "log"):
        yield Served(folder, url)


def kid_of(token: str) -> str:
    kid: str = jws.extract_compact(token.encode()).headers()["kid"]
    return kid


def settles_within_five_seconds(is_settled: Callable[[], bool]) -> None:
    """Twelve answers in a row are as they should be, and none that is not comes later than five seconds from now.

    Each is asked for over a connection of its own, so both workers have given some of the twelve.
    """
    began = time.monotonic()
    in_a_row = 0
    while in_a_row < 12:
        in_a_row = in_a_row + 1 if is_settled() else 0
        assert in_a_row or time.monotonic() - began < 5
        time.sleep(0 if in_a_row else 0.05)


def test_rotation_refuses_no_token_and_publishes_the_new_key_before_it_signs(served: Served) -> None:
    (before,) = served.listed()
    held = [served.token()]
    made = json.loads(ccp_ok("keys", "rotate", "--signs-in", 3, "--json", "--config", served.config).out)
    assert [key["state"] for key in served.listed()] == ["published", "signs"]
    seen_published = False
    began = time.monotonic()
    while kid_of(held[-1]) == before["kid"]:
        assert time.monotonic() - began < 20
        seen_published = seen_published or all(made["kid"] in each for each in served.published(4))
        held.append(served.token())
        for token in (held[0], held[-1]):
            assert served.statuses(token, 4) == {404}
    assert kid_of(held[-1]) == made["kid"]
    assert seen_published, "all workers published the key before one signed with it"
    assert time.monotonic() - began > 1.5
    assert [key["state"] for key in served.listed()] == ["signs", "verifies"]
    assert served.statuses(held[0]) == served.statuses(held[-1]) == {404}
    assert {kid_of(served.token()) for _ in range(6)} <= {before["kid"], made["kid"]}


def test_key_that_is_revoked_ends_its_tokens_in_all_workers_within_five_seconds(served: Served) -> None:
    held = served.token()
    assert served.statuses(held) == {404}
    signing_kid = kid_of(held)
    assert (
        f"{signing_kid} is revoked." in ccp_ok("keys", "revoke", "--yes", signing_kid, "--config", served.config).lines
    )
    settles_within_five_seconds(lambda: served.statuses(held, 1) == {401})
    assert all(signing_kid not in each for each in served.published())
    fresh = served.token()
    assert kid_of(fresh) != signing_kid
    assert served.statuses(fresh) == {404}


def test_party_that_is_disabled_is_refused_by_all_workers_within_five_seconds(served: Served) -> None:
    held = served.token()
    assert served.statuses(held) == {404}
    ccp_ok("party", "disable", "emsp", "--config", served.config)
    settles_within_five_seconds(lambda: served.statuses(held, 1) == {401})
    form = {"grant_type": "client_credentials", "client_id": "emsp", "client_secret": SECRET}
    assert httpx.post(f"{served.url}/oauth/token", data=form, timeout=10).status_code == 401


# --- Commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(url: str) -> dict[str, str]:
    return {"CCP_DATABASE": url}


def test_keys_are_listed_rotated_and_revoked_by_command(url: str, environment: dict[str, str]) -> None:
    assert ccp_ok("keys", "list", env=environment).lines == ["key  state  created  signs from  verifies until"]
    write(url, signing_keys.ensure(token_keys.new_key(AT)))
    (old,) = kids(url)
    out = ccp_ok("keys", "rotate", env=environment).out
    new = next(kid for kid in kids(url) if kid != old)
    assert out.startswith(f"{new} signs from ")
    lines = ccp_ok("keys", "list", env=environment).lines
    assert [line.split()[:2] for line in lines[1:]] == [[new, "published"], [old, "signs"]]
    assert ccp_ok("keys", "revoke", "--yes", old, env=environment).lines == [f"{old} is revoked."]
    revoked = json.loads(ccp_ok("keys", "revoke", "--yes", new, "--json", env=environment).out)
    assert revoked == {"revoked": new, "made": kids(url)[0]}
    listed = json.loads(ccp_ok("keys", "list", "--json", env=environment).out)
    assert [key["state"] for key in listed] == ["signs"]
    assert all("private" not in json.dumps(key).lower() for key in listed)
    audited = sql(url, "select action, subject from audit where action like 'key.%' order by at, lane, number")
    assert [(action, json.loads(subject)["kid"]) for action, subject in audited] == [
        ("key.rotated", new), ("key.revoked", old), ("key.revoked", new), ("key.rotated", kids(url)[0]),
    ]  # fmt: skip


def test_key_that_is_new_is_never_named_like_an_option() -> None:
    assert not [kid for kid in (token_keys.new_key(AT).kid for _ in range(400)) if kid.startswith("-")]


def test_key_that_is_named_like_an_option_can_be_revoked(url: str, environment: dict[str, str]) -> None:
    write(url, signing_keys.ensure(replace(token_keys.new_key(AT), kid="-E")))
    assert ccp_ok("keys", "revoke", "--yes", "--", "-E", env=environment).lines[0] == "-E is revoked."


def test_key_that_is_not_there_cannot_be_revoked(url: str, environment: dict[str, str]) -> None:
    assert ccp_error("keys", "revoke", "--yes", "nothing", env=environment) == "There is no key nothing."


def test_key_cannot_sign_before_workers_have_had_time_to_know_it(environment: dict[str, str]) -> None:
    assert run("keys", "rotate", "--signs-in", 0, env=environment).status == 2


def test_token_is_one_however_many_spaces_stand_before_it(registered: str) -> None:
    """Else one party could fill what is remembered of all parties' tokens with its own."""

    async def ask() -> None:
        (worker,) = await workers(registered, 1)
        await worker.authority.refresh_keys(AT)
        token = await worker.token(AT)
        for spaces in range(1, 20):
            assert await worker.takes(" " * spaces + token + " " * spaces, AT)
        assert worker.authority.is_cached(f"Bearer   {token}")
        assert len(worker.authority._known) == 1
        await worker.store.close()

    asyncio.run(ask())
