"""Secrets in the database under changing keys, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ccp.errors import ConfigurationError
from ccp.server.domain.parties import Party, PartyRole
from ccp.server.domain.subscriptions import PreviousSecret
from ccp.server.events.secret_rotation import rotated
from ccp.server.storage import Store, connect, storage_key_rotation
from ccp.server.storage.engine import schema
from ccp.server.storage.engine.secret_codec import CLEAR, DamagedSecret, SecretCodec, UnreadableSecret, key_id_of
from ccp.server.storage.queries import (
    parties,
    peers,
    secrets,
    signing_keys,
    storage_keys,
    subscribers,
    subscriptions,
    webhooks,
)
from ccp.server.storage.queries.peers import Peer
from ccp.server.storage.queries.signing_keys import TokenKey
from ccp.server.storage.queries.subscriptions import Subscription
from ccp.server.storage.storage_key_rotation import StorageKeyRotation
from tests.databases import Server, sql
from tests.server.events.receiver import webhook
from tests.server.storage.made import AT, new_database
from tests.server.storage.storage_keys import key, keys_in_use, stored_values, write_keys

T = TypeVar("T")
TEXTS = {
    "token_key.private_key": "-----BEGIN PRIVATE KEY-----\nthe private key of tokens\n-----END PRIVATE KEY-----\n",
    "pool_secret.value": "the key of log pseudonyms",
    "peer.secret": "the client secret at a peer",
    "peer.token": "the access token for a peer",
    "webhook.secret": "the secret of a webhook",
    "webhook.previous_secrets": "the previous secret of a webhook",
    "subscription.secret": "the secret of a subscription",
}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return new_database(tmp_path)
    server: Server = request.getfixturevalue("postgres")
    return server.database()


def use(url: str, keys: Path | None, work: Callable[[Store], Awaitable[T]]) -> T:
    async def run() -> T:
        store = connect(url, 3, secrets_key_file=keys)
        await store.open()
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def fill(url: str, keys: Path | None) -> None:
    """Store a secret in every column."""
    hook = webhook("https://hooks.example/x", "oem", secret=TEXTS["webhook.secret"], id="hook")
    previous = PreviousSecret(TEXTS["webhook.previous_secrets"], AT + timedelta(days=1))

    async def work(store: Store) -> None:
        await store.write(parties.add(Party("oem", "oem", roles=frozenset({PartyRole.OEM})), "hash", AT))
        await store.write(signing_keys.ensure(TokenKey("kid", TEXTS["token_key.private_key"], AT)))
        await store.write(secrets.ensure("log_key", TEXTS["pool_secret.value"]))
        await store.write(
            peers.add(Peer("peer", "https://peer.example", client_id="x", secret=TEXTS["peer.secret"]), AT)
        )
        await store.write(peers.add(Peer("other", "https://peer.example", token=TEXTS["peer.token"]), AT))
        await store.write(webhooks.put(replace(hook, previous_secrets=(previous,))))
        await store.write(
            subscriptions.put(Subscription("sub", "rcp", "https://x", "1", TEXTS["subscription.secret"], (), AT, AT))
        )

    use(url, keys, work)


def readable(url: str, keys: Path | None) -> dict[str, str | None]:
    """Every secret as the pool reads it."""

    async def work(store: Store) -> dict[str, str | None]:
        (signing,) = await store.read(signing_keys.list_all())
        other, peer = await store.read(peers.list_all())
        (hook,) = await store.read(subscribers.list_page("", 10))
        (subscription,) = await store.read(subscriptions.list_all())
        return {
            "token_key.private_key": signing.private_key,
            "pool_secret.value": await store.read(secrets.find("log_key")),
            "peer.secret": peer.secret,
            "peer.token": other.token,
            "webhook.secret": hook.webhook.secret,
            "webhook.previous_secrets": hook.webhook.previous_secrets[0].value,
            "subscription.secret": subscription.secret,
        }

    return use(url, keys, work)


def rotate(url: str, keys: Path | None, **options: Any) -> StorageKeyRotation:
    return use(url, keys, lambda store: storage_key_rotation.rotate(store, "cli:test", AT, **options))


def test_storage_keys_encrypt_every_secret_of_a_new_database(url: str, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", 1)
    fill(url, keys)
    assert {name: len(found) for name, found in stored_values(url).items()} == dict.fromkeys(TEXTS, 1)
    assert keys_in_use(url) == {SecretCodec(keys).newest}
    assert not [text for text in TEXTS.values() if text in repr(stored_values(url))]
    assert readable(url, keys) == TEXTS


def test_storage_key_rotation_encrypts_clear_text_and_goes_back(url: str, tmp_path: Path) -> None:
    fill(url, None)
    assert keys_in_use(url) == {CLEAR}
    keys = write_keys(tmp_path / "keys", 1)
    done = rotate(url, keys)
    assert (done.before, done.after, done.changed) == (CLEAR, SecretCodec(keys).newest, dict.fromkeys(TEXTS, 1))
    assert keys_in_use(url) == {SecretCodec(keys).newest}
    assert readable(url, keys) == TEXTS
    again = rotate(url, keys)
    assert (again.before, again.total) == (done.after, 0)
    back = rotate(url, keys, clear_text=True)
    assert (back.after, back.total) == (CLEAR, 7)
    assert readable(url, None) == TEXTS
    actions = [
        row[0] for row in sql(url, "select action from audit where action like 'storage_key%' order by lane, number")
    ]
    assert sorted(actions) == ["storage_key.rotated"] * 3 + ["storage_key.selected"] * 2


def test_storage_key_rotation_changes_the_key_of_every_secret(url: str, tmp_path: Path) -> None:
    fill(url, write_keys(tmp_path / "keys", 1))
    both = write_keys(tmp_path / "keys", 2, 1)
    assert readable(url, both) == TEXTS
    assert rotate(url, both).total == 7
    alone = write_keys(tmp_path / "keys", 2)
    assert keys_in_use(url) == {SecretCodec(alone).newest}
    assert readable(url, alone) == TEXTS
    assert sql(url, "select count(*) from storage_key") == [(1,)]


def test_storage_key_rotation_goes_on_after_an_interruption(url: str, tmp_path: Path) -> None:
    fill(url, write_keys(tmp_path / "keys", 1))
    both = write_keys(tmp_path / "keys", 2, 1)
    first = storage_key_rotation.SECRET_COLUMNS[0]

    async def interrupted(store: Store) -> None:
        target = await store.read(storage_keys.newest_key())
        await store.write(storage_keys.select_key(target))
        await store.write(storage_keys.reencrypt(first, "", target))

    use(url, both, interrupted)
    assert len(keys_in_use(url)) == 2
    assert readable(url, both) == TEXTS
    with pytest.raises(ConfigurationError, match=f"storage key {SecretCodec(write_keys(tmp_path / 'k', 1)).newest}"):
        readable(url, write_keys(tmp_path / "new", 2))  # The older key was removed too early.
    assert rotate(url, both).total == 6
    assert readable(url, write_keys(tmp_path / "new", 2)) == TEXTS


def test_storage_key_in_use_is_that_of_the_database_in_every_process(url: str, tmp_path: Path) -> None:
    """A worker that still has the older order of keys writes with the new key as soon as it was selected."""
    fill(url, write_keys(tmp_path / "keys", 1))
    older, newer = write_keys(tmp_path / "older", 1, 2), write_keys(tmp_path / "newer", 2, 1)

    async def work(worker: Store) -> None:
        command = connect(url, 3, secrets_key_file=newer)
        await command.open()
        await storage_key_rotation.rotate(command, "cli:test", AT)
        await command.close()
        await worker.write(peers.edit("peer", lambda peer: replace(peer, secret="another secret")))

    use(url, older, work)
    assert keys_in_use(url) == {SecretCodec(newer).newest}


def test_storage_key_rotation_loses_no_concurrent_write(url: str, tmp_path: Path) -> None:
    fill(url, write_keys(tmp_path / "keys", 1))
    both = write_keys(tmp_path / "keys", 2, 1)

    async def work(store: Store) -> StorageKeyRotation:
        async def edit() -> None:
            for number in range(20):
                await store.write(peers.edit("peer", lambda peer, n=number: replace(peer, secret=f"secret {n}")))  # type: ignore[misc]
                hook = await store.read(webhooks.find("hook"))
                assert hook is not None
                await store.write(webhooks.put(replace(hook, secret=f"secret {number}")))
                await store.read(signing_keys.list_all())

        rotation, _ = await asyncio.gather(storage_key_rotation.rotate(store, "cli:test", AT), edit())
        return rotation

    use(url, both, work)
    alone = write_keys(tmp_path / "keys", 2)
    found = readable(url, alone)
    assert (found["peer.secret"], found["webhook.secret"]) == ("secret 19", "secret 19")
    assert keys_in_use(url) == {SecretCodec(alone).newest}


@pytest.mark.parametrize("numbers", [(), (2,)])
def test_store_without_the_key_of_the_database_is_refused_in_one_sentence(
    url: str, numbers: tuple[int, ...], tmp_path: Path
) -> None:
    fill(url, write_keys(tmp_path / "keys", 1))
    others = write_keys(tmp_path / "others", *numbers) if numbers else None
    with pytest.raises(ConfigurationError) as found:
        use(url, others, lambda store: store.read(peers.list_all()))
    (sentence,) = found.value.messages
    assert sentence.startswith("The database's secrets are encrypted with the storage key ")
    assert ("others" if numbers else "secrets_key_file is not set") in sentence


def test_secret_that_was_moved_to_another_row_is_not_taken(url: str, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", 1)
    fill(url, keys)
    sql(url, "update peer set token = (select secret from peer where party_id = 'peer') where party_id = 'other'")
    other, peer = use(url, keys, lambda store: store.read(peers.list_all()))
    assert (other.token, peer.secret, peer.damage) == (None, TEXTS["peer.secret"], None)
    assert "The token of peer other in the database cannot be decrypted" in str(other.damage)
    with pytest.raises(UnreadableSecret, match=r"The token of peer other .* `ccp keys rotate-storage --discard-unread"):
        rotate(url, write_keys(tmp_path / "keys", 2, 1))


def damage(url: str) -> dict[str, list[str]]:
    """Change a character of every stored secret. Returns what is stored then."""
    for table, _, column in storage_key_rotation.SECRET_COLUMNS:
        sql(url, f"update {table} set {column} = substr({column}, 1, 30) || 'AAAA' || substr({column}, 35)")
    return stored_values(url)


def test_damaged_secrets_stay_as_they_are_through_edits_and_give_way_to_new_ones(url: str, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", 1)
    fill(url, keys)
    stored = damage(url)

    async def edit(store: Store) -> None:
        before, after = await store.write(peers.disable("peer"))
        assert (before.enabled, after.enabled, after.secret) == (True, False, None)
        hook = await store.read(webhooks.find("hook"))
        assert hook is not None
        assert hook.damage is not None
        assert hook.valid_secrets(AT) == ("",)
        await store.write(webhooks.put(replace(hook, description="edited")))
        assert [each.secret for each in await store.read(subscriptions.list_all())] == [None]
        assert await store.read(signing_keys.list_all()) == []
        assert await store.read(signing_keys.list_damaged()) == [TokenKey("kid", "", AT)]

    use(url, keys, edit)
    assert stored_values(url) == stored
    assert [row[0] for row in sql(url, "select description from webhook")] == ["edited"]

    async def renew(store: Store) -> None:
        await store.write(peers.edit("peer", lambda peer: replace(peer, secret="new", damage=None)))
        await store.write(peers.remove("other"))
        hook = await store.read(webhooks.find("hook"))
        assert hook is not None
        made = rotated(hook, None, 3600, AT)
        assert made.previous_secrets == ()
        await store.write(webhooks.put(made))
        assert (await store.read(webhooks.find("hook"))) == made
        assert await store.write(signing_keys.revoke("kid", TokenKey("next", "a private key", AT)))
        assert [key.kid for key in await store.read(signing_keys.list_all())] == ["next"]
        (peer,) = await store.read(peers.list_all())
        assert (peer.secret, peer.damage) == ("new", None)

    use(url, keys, renew)


@pytest.mark.parametrize("lost", [True, False])
def test_storage_key_rotation_discards_what_it_cannot_decrypt(url: str, lost: bool, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", 1)
    fill(url, keys)
    if lost:
        write_keys(keys, 2)
    else:
        damage(url)

    async def discard(store: Store) -> StorageKeyRotation:
        found = await store.read(storage_keys.list_unreadable())
        assert [f"{each.column.table}.{each.column.column}" for each in found] == list(TEXTS)
        assert found[-1].advice == "`ccp neighbour subscribe --renew rcp`"
        return await storage_key_rotation.rotate(store, "cli:test", AT, discard=True)

    async def run() -> StorageKeyRotation:
        store = connect(url, 3, secrets_key_file=keys, may_lack_keys=True)
        await store.open()
        try:
            return await discard(store)
        finally:
            await store.close()

    done = asyncio.run(run())
    assert done.discarded == (
        "token_key.private_key kid", "pool_secret.value log_key", "peer.secret peer", "peer.token other",
        "webhook.secret hook", "webhook.previous_secrets hook", "subscription.secret sub",
    )  # fmt: skip
    assert sql(url, "select count(*) from storage_key") == [(1,)]
    assert keys_in_use(url) == {SecretCodec(keys).newest}

    async def left(store: Store) -> None:
        assert await store.read(storage_keys.list_unreadable()) == []
        assert await store.read(signing_keys.list_all()) == []
        assert await store.read(secrets.find("log_key")) is None
        assert [(peer.secret, peer.token, peer.damage) for peer in await store.read(peers.list_all())] == [
            (None, None, None)
        ] * 2
        hook = await store.read(webhooks.find("hook"))
        assert hook is not None
        assert len(hook.secret) == 43
        assert (hook.previous_secrets, hook.damage) == ((), None)
        assert [each.secret for each in await store.read(subscriptions.list_all())] == [None]

    use(url, keys, left)
    (subject,) = [row[0] for row in sql(url, "select subject from audit where action = 'storage_key.rotated'")]
    assert '"discarded_count":7' in subject


def test_fan_out_reads_no_secret(url: str, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", 1)
    fill(url, keys)
    sql(url, "update webhook set secret = 'ccp-secret:1:unknown:'")
    found = use(url, keys, lambda store: store.read(subscribers.list_by_event("oem.contract.created", "", 5)))
    assert [subscriber.webhook.secret for subscriber in found] == [""]


def test_storage_key_warnings_say_what_is_not_encrypted(url: str, tmp_path: Path) -> None:
    def warnings(keys: Path | None) -> list[str]:
        return use(url, keys, lambda store: store.read(storage_keys.warnings()))

    keys = write_keys(tmp_path / "keys", 1)
    assert warnings(None) == warnings(keys) == []
    fill(url, None)
    assert warnings(None) == []
    assert "in clear text although secrets_key_file is set" in warnings(keys)[0]
    use(url, keys, lambda store: store.write(peers.edit("peer", lambda peer: replace(peer, secret="x"))))
    assert "in clear text although secrets_key_file is set" in warnings(keys)[0]
    rotate(url, keys)
    assert warnings(keys) == []
    assert "newest key of secrets_key_file is not in use" in warnings(write_keys(tmp_path / "two", 2, 1))[0]


def test_migration_back_is_refused_while_secrets_are_encrypted(url: str, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", 1)
    fill(url, keys)
    with pytest.raises(ConfigurationError, match="rotate-storage --clear-text"):
        schema.downgrade(url, "0015")
    rotate(url, keys, clear_text=True)
    assert schema.downgrade(url, "0015")[1] == "0015"


def test_key_id_says_nothing_about_the_key(tmp_path: Path) -> None:
    assert key_id_of(b"x" * 32) not in (b"x" * 32).hex()
    assert SecretCodec(write_keys(tmp_path / "keys", 1)).newest not in key(1)


def test_secret_under_a_foreign_key_costs_its_row_only(url: str, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", 1)
    fill(url, keys)
    foreign = "ccp-secret:1:0123456789abcdef:" + "A" * 60
    sql(url, f"update peer set token = '{foreign}' where party_id = 'other'")
    other, peer = use(url, keys, lambda store: store.read(peers.list_all()))
    assert (other.token, peer.secret, peer.damage) == (None, TEXTS["peer.secret"], None)
    assert "names the storage key 0123456789abcdef, which this database does not use" in str(other.damage)
    (found,) = use(url, keys, lambda store: store.read(storage_keys.list_unreadable()))
    assert (found.row, found.reason) == ("other", other.damage)
    for table, primary, column in storage_key_rotation.SECRET_COLUMNS:
        sql(url, f"update {table} set {column} = '{foreign}' where {primary} <> '' and {column} is not null")

    async def everything(store: Store) -> None:
        assert await store.read(signing_keys.list_all()) == []
        assert [each.damage is None for each in await store.read(peers.list_all())] == [False, False]
        (hook,) = await store.read(subscribers.list_page("", 10))
        assert hook.webhook.damage is not None
        assert [each.secret for each in await store.read(subscriptions.list_all())] == [None]
        assert await store.read(secrets.find("log_key")) is None
        assert await store.write(secrets.ensure("log_key", "made anew")) == "made anew"
        assert await store.read(secrets.find("log_key")) == "made anew"
        assert len(await store.read(storage_keys.list_unreadable())) == 6

    use(url, keys, everything)


def test_secret_under_a_key_of_the_database_that_the_process_lacks_is_no_damage(url: str, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", 1)
    fill(url, keys)

    async def work(store: Store) -> None:
        both = write_keys(tmp_path / "both", 2, 1)
        command = connect(url, 3, secrets_key_file=both)
        await command.open()
        await storage_key_rotation.rotate(command, "cli:test", AT)
        await command.close()
        with pytest.raises(UnreadableSecret, match="which is not in") as found:
            await store.read(peers.list_all())
        assert not isinstance(found.value, DamagedSecret)

    use(url, keys, work)
