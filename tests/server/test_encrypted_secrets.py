"""A pool whose database has encrypted secrets: webhooks, peers, tokens, commands, files, backup and restore."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from ccp.server.settings import Settings
from ccp.server.storage.engine import schema
from ccp.server.storage.engine.secret_codec import CLEAR, SecretCodec
from ccp.server.storage.queries import peers, signing_keys
from ccp.testing.pki import PKI
from tests.cli.run import CommandResult, ccp, ccp_ok, environment
from tests.databases import Server, sql
from tests.diagnoses import doctor
from tests.server.events.receiver import Receiver, receiving, states
from tests.server.events.verifiers import any_signature
from tests.server.events.webhook_api import call, ok, subscribe
from tests.server.storage.made import new_database, read
from tests.server.storage.storage_keys import keys_in_use, stored_values, write_keys
from tests.waiting import wait_until
from tests.world import Pool, start

QUICK: dict[str, Any] = {
    "event_dispatch": True, "event_allow_http": True, "egress_allow_networks": ("127.0.0.0/8",), "event_timeout": 5,
    "event_secret_overlap": 3600,
}  # fmt: skip
PEER = peers.Peer("peer-pool", "https://peer.example", client_id="us", secret="the client secret at the peer")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def options(request: pytest.FixtureRequest) -> dict[str, str]:
    if request.param == "sqlite":
        return {}
    server: Server = request.getfixturevalue("postgres")
    return {"database": server.database()}


def configuration(settings: Settings, folder: Path, keys: Path | None) -> Path:
    values = {"database": settings.database} | ({} if keys is None else {"secrets_key_file": str(keys)})
    file = folder / "ccp.toml"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return file


def command(settings: Settings, folder: Path, keys: Path | None, *arguments: str) -> CommandResult:
    return ccp(*arguments, "--config", configuration(settings, folder, keys), env=environment())


def delivered(pool: Pool, receiver: Receiver, made: dict[str, str], count: int) -> None:
    pool.publish(pool.car())
    wait_until(lambda: [state for state, *_ in states(pool.settings.database, made["id"])] == ["delivered"] * count)
    assert any_signature(receiver.sent[-1], made["secret"])


def file_bytes(database: Path) -> bytes:
    """Everything that SQLite keeps of a database."""
    return b"".join(path.read_bytes() for path in sorted(database.parent.glob(f"{database.name}*")))


def texts_of(pool: Pool, made: dict[str, str]) -> list[bytes]:
    """Secrets of the pool in clear text, as they could be found in a file."""
    stored = stored_values(pool.settings.database)
    return [
        made["secret"].encode(),
        (PEER.secret or "").encode(),
        *(stored["pool_secret.value"][0].encode()[:64], stored["token_key.private_key"][0].encode()[80:160]),
    ]


def test_pool_signs_and_serves_while_its_storage_key_is_rotated(
    pkis: dict[str, PKI], receiver: Receiver, options: dict[str, str], tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "keys", 1)
    with start({"iso2": pkis["iso2"]}, refresh_interval=0.1, **QUICK, **options, secrets_key_file=keys) as pool:
        url = pool.settings.database
        pool.change(peers.add(PEER, datetime.now(UTC)))
        made = subscribe(pool, url=receiver.url + "/events")
        delivered(pool, receiver, made, 1)
        ok(call(pool, "oem", "POST", f"/{made['id']}/secret"))
        first = SecretCodec(keys).newest
        assert keys_in_use(url) == {first}

        write_keys(keys, 2, 1)  # The running pool is not told.
        done = command(pool.settings, tmp_path, keys, "keys", "rotate-storage", "--json")
        assert done.status == 0, done.err
        shown = json.loads(done.out)
        assert (shown["before"], shown["files"]) == (first, {"cleared": True})
        assert set(shown["secrets"]) == {
            "token_key.private_key", "pool_secret.value", "peer.secret", "webhook.secret", "webhook.previous_secrets",
        }  # fmt: skip
        assert keys_in_use(url) == {shown["after"]} == {SecretCodec(keys).newest}

        new = ok(call(pool, "oem", "POST", f"/{made['id']}/secret"))  # Read and written under the new key.
        delivered(pool, receiver, {**made, "secret": new["secret"]}, 2)
        assert keys_in_use(url) == {shown["after"]}
        # A token of before, and the key set.
        assert pool.oem.get("/contractData", params={"pcid": "WEX0TEST000000001"}).status_code in (200, 404)
        assert httpx.get(f"{pool.base_url}/.well-known/jwks.json").status_code == 200


def test_pool_files_hold_no_clear_secret_after_encryption(
    pkis: dict[str, PKI], receiver: Receiver, tmp_path: Path
) -> None:
    with start({"iso2": pkis["iso2"]}, **QUICK) as pool:
        pool.change(peers.add(PEER, datetime.now(UTC)))
        made = subscribe(pool, url=receiver.url + "/events")
        delivered(pool, receiver, made, 1)
        texts = texts_of(pool, made)
        assert all(text in file_bytes(pool.database) for text in texts)
        done = command(pool.settings, tmp_path, write_keys(tmp_path / "keys", 1), "keys", "rotate-storage")
        assert done.status == 0, done.err
        found = file_bytes(pool.database)
        assert [text for text in texts if text in found] == []


@pytest.mark.parametrize("numbers", [(), (2,)])
def test_secrets_key_file_that_lacks_the_key_fails_commands_with_one_sentence(
    pkis: dict[str, PKI], options: dict[str, str], numbers: tuple[int, ...], tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "keys", 1)
    with start({"iso2": pkis["iso2"]}, **options, secrets_key_file=keys) as pool:
        pool.change(peers.add(PEER, datetime.now(UTC)))
        others = write_keys(tmp_path / "others", *numbers) if numbers else None
        for arguments in (
            ("peer", "list"), ("peer", "show", "peer-pool"), ("peer", "remove", "peer-pool", "--yes"), ("keys", "list"),
            ("keys", "rotate"), ("keys", "rotate-storage"), ("keys", "rotate-storage", "--clear-text"),
            ("webhook", "list"), ("party", "list"), ("trust", "list"), ("serve", "--port", "0"),
            ("audit", "verify"), ("purge", "--yes"),
        ):  # fmt: skip
            done = command(pool.settings, tmp_path, others, *arguments)
            assert done.status == 1, arguments
            assert done.out == "", arguments
            assert done.err.count("\n") == 1, (arguments, done.err)
            assert "The database's secrets are encrypted with the storage key" in done.err, arguments
        assert command(pool.settings, tmp_path, keys, "peer", "list").status == 0
        assert keys_in_use(pool.settings.database) == {SecretCodec(keys).newest}


def test_backup_and_restore_need_the_key_of_the_backup(pkis: dict[str, PKI], tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", 1)
    with start({"iso2": pkis["iso2"]}, secrets_key_file=keys) as pool:
        pool.change(peers.add(PEER, datetime.now(UTC)))
        copy = tmp_path / "copy.db"
        done = command(pool.settings, tmp_path, None, "backup", str(copy))  # Needs no key: it copies what is stored.
        assert done.status == 0, done.err
        assert (PEER.secret or "").encode() not in copy.read_bytes()
    restored = Settings(database=f"sqlite:///{tmp_path / 'restored.db'}")
    for others, reason in ((None, "secrets_key_file is not set"), (write_keys(tmp_path / "others", 2), "is not in")):
        refused = command(restored, tmp_path, others, "restore", str(copy))
        assert refused.status == 1
        assert reason in refused.err
        assert not (tmp_path / "restored.db").exists()
    done = command(restored, tmp_path, keys, "restore", str(copy))
    assert done.status == 0, done.err
    assert keys_in_use(restored.database) == {SecretCodec(keys).newest}  # The new token key too.
    assert "peer-pool" in command(restored, tmp_path, keys, "peer", "list").out
    back = command(restored, tmp_path, keys, "keys", "rotate-storage", "--clear-text")
    assert back.status == 0, back.err
    assert keys_in_use(restored.database) == {CLEAR}
    assert "peer-pool" in command(restored, tmp_path, None, "peer", "list").out


def test_rotate_storage_without_keys_is_one_sentence(tmp_path: Path) -> None:
    settings = Settings(database=f"sqlite:///{tmp_path / 'ccp.db'}")
    schema.upgrade(settings.database)
    done = command(settings, tmp_path, None, "keys", "rotate-storage")
    assert done.status == 1
    assert done.err.count("\n") == 1
    assert "secrets_key_file is not set" in done.err


def key_set(pool: Pool) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = httpx.get(f"{pool.base_url}/.well-known/jwks.json").json()["keys"]
    return keys


def damaged(pool: Pool, table: str, row: str) -> None:
    pool.sql(
        f"update {table} set secret = substr(secret, 1, 30) || 'AAAA' || substr(secret, 35) "
        f"where {'party_id' if table == 'peer' else 'id'} = ?", row,
    )  # fmt: skip


def test_pool_with_a_damaged_peer_and_webhook_serves_the_others(
    pkis: dict[str, PKI], receiver: Receiver, tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "keys", 1)
    with start({"iso2": pkis["iso2"]}, refresh_interval=0.1, **QUICK, secrets_key_file=keys) as pool:
        pool.change(peers.add(PEER, datetime.now(UTC)))
        pool.change(peers.add(replace(PEER, party_id="other-pool"), datetime.now(UTC)))
        bad, made = (subscribe(pool, url=receiver.url + path) for path in ("/bad", "/events"))
        damaged(pool, "peer", "peer-pool")
        damaged(pool, "webhook", bad["id"])
        body = {"url": receiver.url + "/bad", "enabledEvents": bad["enabledEvents"], "description": "edited"}
        ok(call(pool, "oem", "PUT", f"/{bad['id']}", json=body))
        delivered(pool, receiver, made, 1)
        select = "select state, last_error from delivery where webhook_id = ?"
        refused = [("waiting", "The pool cannot read the secret of this webhook; it needs a new one.")]
        wait_until(lambda: pool.sql(select, bad["id"]) == refused, describe=lambda: pool.sql(select, bad["id"]))
        assert {request.path for request in receiver.sent} == {"/events"}

        listed = command(pool.settings, tmp_path, keys, "peer", "list")
        assert [line.split()[0] for line in listed.out.splitlines()[1:]] == ["other-pool", "peer-pool"]
        assert listed.out.splitlines()[2].rstrip().endswith("enabled, damaged secret")
        assert "damaged secret" in command(pool.settings, tmp_path, keys, "webhook", "list").out
        shown = command(pool.settings, tmp_path, keys, "peer", "show", "peer-pool")
        assert "`ccp peer rotate-secret peer-pool`" in shown.err
        called = command(pool.settings, tmp_path, keys, "peer", "test", "peer-pool")
        assert (called.status, called.err.count("\n")) == (1, 1)
        report = doctor("--offline", "--config", configuration(pool.settings, tmp_path, keys))
        assert sorted(each["subject"] for each in report.findings("database.secret-unreadable")) == [
            "peer peer-pool", f"webhook {bad['id']}",
        ]  # fmt: skip

        new = ok(call(pool, "oem", "POST", f"/{bad['id']}/secret"))  # The partner helps itself.
        assert new["previousValidUntil"] == []
        assert command(pool.settings, tmp_path, keys, "peer", "remove", "peer-pool", "--yes").status == 0
        assert "damaged" not in command(pool.settings, tmp_path, keys, "peer", "list").out
        assert (
            "database.secret-unreadable"
            not in doctor("--offline", "--config", configuration(pool.settings, tmp_path, keys)).codes
        )


def test_token_key_that_is_damaged_is_listed_and_can_be_revoked(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    variables = {"CCP_DATABASE": url}
    assert ccp_ok("keys", "rotate", env=variables).out
    sql(url, "update token_key set private_key = 'ccp-secret:1:damaged'")
    assert read(url, signing_keys.list_all()) == []
    (listed,) = ccp_ok("keys", "list", env=variables).lines[1:]
    kid, state, *_ = listed.split()
    assert state == "damaged"
    assert ccp_ok("keys", "revoke", "--yes", kid, env=variables).lines[0] == f"{kid} is revoked."
    assert "damaged" not in ccp_ok("keys", "list", env=variables).out


def test_pool_whose_storage_key_is_lost_gets_a_new_one(
    pkis: dict[str, PKI], options: dict[str, str], tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "keys", 1)
    with start({"iso2": pkis["iso2"]}, **options, secrets_key_file=keys) as pool:
        pool.change(peers.add(PEER, datetime.now(UTC)))
        settings = pool.settings
        write_keys(keys, 2)
        refused = command(settings, tmp_path, keys, "peer", "list")
        assert "If the key is lost: `ccp keys rotate-storage --help`." in refused.err
        report = doctor("--offline", "--config", configuration(settings, tmp_path, keys))
        assert report.status == 2
        assert "--discard-unreadable" in report.finding("database.secrets-key-missing")["action"]
        asked = command(settings, tmp_path, keys, "keys", "rotate-storage", "--discard-unreadable")
        assert asked.status == 1
        assert "peer.secret  peer-pool" in asked.err
        assert "confirm with --yes" in asked.err
        assert keys_in_use(settings.database) == {SecretCodec(write_keys(tmp_path / "former", 1)).newest}

        done = command(settings, tmp_path, keys, "keys", "rotate-storage", "--discard-unreadable", "--yes")
        assert done.status == 0, done.err
        assert "  peer.secret  peer-pool  `ccp peer rotate-secret peer-pool`" in done.lines
        variables = environment(CCP_PEER_SECRET="the new secret")
        renewed = ccp(
            "peer", "rotate-secret", "peer-pool", "--config", configuration(settings, tmp_path, keys), env=variables
        )
        assert renewed.status == 0, renewed.err
        assert command(settings, tmp_path, keys, "keys", "rotate").status == 0
        assert keys_in_use(settings.database) == {SecretCodec(keys).newest}
        again = command(settings, tmp_path, keys, "keys", "rotate-storage", "--discard-unreadable")
        assert again.status == 0
        assert again.out == f"All secrets were encrypted with the key {SecretCodec(keys).newest} already.\n"
        # The running pool, whose file has the new key only, goes on with new token keys.
        stored = {row[0] for row in sql(settings.database, "select kid from token_key")}
        wait_until(lambda: {key["kid"] for key in key_set(pool)} == stored)
        car = pool.car()
        pool.publish(car)
        assert len(pool.listed(car)) == 1
