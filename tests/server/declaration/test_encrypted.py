"""ccp apply on a database with encrypted secrets: alone, with a damaged secret, and while its key changes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from ccp.server.storage.engine.secret_codec import SecretCodec
from ccp.testing.pki import PKI
from tests.cli.run import COMMAND, ccp, ccp_ok, environment
from tests.databases import Server, sql
from tests.server.declaration.files import DECLARED, PEER_SECRET, VARIABLES, prepare_files
from tests.server.storage.made import new_database
from tests.server.storage.storage_keys import keys_in_use, stored_values, write_keys

PEERS = """
[[peer]]
party_id = "pool-{number}"
base_url = "https://pool-{number}.example/{version}"
client_id = "us"
secret_env = "POOL_B_SECRET"
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, pkis: dict[str, PKI]) -> str:
    prepare_files(tmp_path, pkis["iso2"])
    (tmp_path / "pool.toml").write_text(DECLARED)
    if request.param == "sqlite":
        return new_database(tmp_path)
    server: Server = request.getfixturevalue("postgres")
    return server.database()


def variables(url: str, keys: Path) -> dict[str, str]:
    return environment(CCP_DATABASE=url, CCP_SECRETS_KEY_FILE=str(keys), **VARIABLES)


def test_apply_encrypts_secrets_and_a_second_run_finds_them_equal(url: str, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", 1)
    done = ccp_ok("apply", tmp_path / "pool.toml", "--json", env=variables(url, keys))
    assert json.loads(done.out)["summary"]["add"] == 7
    assert keys_in_use(url) == {SecretCodec(keys).newest}
    assert PEER_SECRET not in repr(stored_values(url))
    ccp_ok("apply", tmp_path / "pool.toml", "--dry-run", env=variables(url, keys))
    other = variables(url, keys) | {"POOL_B_SECRET": "another-secret-of-pool-b"}
    changed = ccp("apply", tmp_path / "pool.toml", "--dry-run", env=other)
    assert changed.status == 2
    assert changed.out.count("secret         changed") == 2


def test_apply_replaces_a_damaged_secret_that_the_file_names(url: str, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", 1)
    ccp_ok("apply", tmp_path / "pool.toml", env=variables(url, keys))
    sql(url, "update peer set secret = substr(secret, 1, 40) || 'AAAA' where party_id = 'pool-b'")
    damaged = stored_values(url)["peer.secret"]
    without = DECLARED.replace('secret_env = "POOL_B_SECRET"\n', "").replace("pool-b.example", "new.example")
    (tmp_path / "without.toml").write_text(without)
    ccp_ok("apply", tmp_path / "without.toml", env=variables(url, keys))
    assert stored_values(url)["peer.secret"] == damaged, "the registered secret stays"
    done = ccp_ok("apply", tmp_path / "pool.toml", env=variables(url, keys))
    assert "secret         changed" in done.out
    assert "damaged" not in ccp_ok("peer", "list", env=variables(url, keys)).out


def test_apply_while_the_storage_key_rotates_neither_fails_nor_mixes_keys(url: str, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", 1, 2)
    files = []
    for version in (1, 2):
        files.append(tmp_path / f"pool{version}.toml")
        files[-1].write_text("".join(PEERS.format(number=number, version=version) for number in range(40)))
    ccp_ok("apply", files[0], env=variables(url, keys))
    other = write_keys(tmp_path / "other", 2, 1)
    commands: list[tuple[Path, tuple[object, ...]]] = [
        (keys, ("apply", files[1])),
        (other, ("keys", "rotate-storage", "--no-vacuum")),
        (other, ("apply", files[0])),
        (keys, ("peer", "disable", "pool-7")),
    ]
    running = [
        subprocess.Popen(
            [*COMMAND, *map(str, arguments)], env=variables(url, file), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for file, arguments in commands
    ]  # fmt: skip
    for process in running:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0 or "former values may still be in" in err, err
    assert keys_in_use(url) == {SecretCodec(other).newest}
    ccp_ok("apply", files[0], env=variables(url, other))
    assert len(json.loads(ccp_ok("peer", "list", "--json", env=variables(url, other)).out)) == 40
