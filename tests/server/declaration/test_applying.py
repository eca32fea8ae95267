"""Applying a declaration while others change the registers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ccp.server.declaration import applying
from ccp.server.declaration.differences import Kind
from ccp.server.declaration.reader import Declaration, read_declaration
from ccp.server.declaration.writer import write_declaration
from ccp.server.domain.actor import Actor
from ccp.server.pool.peer_registry import PeerRegistry
from ccp.server.settings import Settings
from ccp.server.storage import Store, connect
from ccp.server.storage.engine import schema
from ccp.server.storage.queries.peers import Peer
from tests.server.declaration.files import recorded
from tests.world import AT

BY = Actor("cli:tester")
LATE = Peer("late", "https://late.example", token="token")
PARTY = b'[[party]]\nname = "Example CPO"\nroles = ["cpo"]\n'


@pytest.fixture
def url(tmp_path: Path) -> str:
    database = f"sqlite:///{tmp_path / 'ccp.db'}"
    schema.upgrade(database)
    return database


def declaration(content: bytes = PARTY) -> Declaration:
    return read_declaration(content, Path(), Settings(), {})


def test_apply_prune_removes_nothing_that_appeared_after_the_question(url: str) -> None:
    declared = declaration()

    async def run(store: Store) -> None:
        await PeerRegistry(store).add(replace(LATE, party_id="seen"), BY, AT)
        plan = await applying.prepare(store, declared, AT, prune=True)
        assert plan.differences.removed == {(Kind.PEER, "seen")}
        await PeerRegistry(store).add(LATE, BY, AT)
        with pytest.raises(applying.ChangedMeanwhile):
            await applying.apply(store, declared, plan, BY, AT)
        assert [peer.party_id for peer in await PeerRegistry(store).list_all()] == ["late", "seen"]

    asyncio.run(opened(url, run))
    assert recorded(url) == ["peer.added", "peer.added"]


def test_apply_takes_up_what_another_process_has_changed_meanwhile(url: str) -> None:
    """Another process adds the declared party: its secret stays, and the one generated here is not shown."""
    declared = declaration()

    async def run(store: Store) -> None:
        plan = await applying.prepare(store, declared, AT, prune=False)
        assert list(plan.generated) == ["example-cpo"]
        other = await applying.prepare(store, declared, AT, prune=False)
        await applying.apply(store, declared, other, BY, AT)
        done = await applying.apply(store, declared, plan, BY, AT)
        assert (done.differences.changes, done.generated) == ((), {})

    asyncio.run(opened(url, run))
    assert recorded(url) == ["party.added"]


def test_apply_secrets_file_is_removed_when_the_change_fails(url: str, tmp_path: Path) -> None:
    declared, path = declaration(), tmp_path / "secrets.toml"

    async def run(store: Store) -> None:
        plan = await applying.prepare(store, declared, AT, prune=False)

        def fail(keep: Callable[[applying.Plan], None], kept: applying.Plan) -> None:
            keep(kept)
            assert path.read_text().startswith('"example-cpo" = "')
            raise OSError("disk full")

        async def attempt() -> None:
            with applying.kept_secrets(path) as keep:
                await applying.apply(store, declared, plan, BY, AT, lambda kept: fail(keep, kept))

        with pytest.raises(OSError, match="disk full"):
            await attempt()
        assert not path.exists()

    asyncio.run(opened(url, run))
    assert recorded(url) == []


def test_apply_of_the_written_state_changes_nothing_for_a_party_without_ids(url: str) -> None:
    """A disabled party may have given its ids to another one."""
    active = declaration(b'[[party]]\nname = "Example eMSP"\nroles = ["emsp"]\nprovider_ids = ["DEEXA"]\n')
    retired = declaration(b'[[party]]\nname = "Example eMSP"\nroles = ["emsp"]\nenabled = false\n')

    async def run(store: Store) -> None:
        for declared in (active, retired):
            await applying.apply(store, declared, await applying.prepare(store, declared, AT, prune=False), BY, AT)
        written = declaration((await write_declaration(store)).encode())
        assert [(each.party.enabled, each.party.provider_ids) for each in written.parties] == [(False, frozenset())]
        assert (await applying.prepare(store, written, AT, prune=True)).differences.changes == ()

    asyncio.run(opened(url, run))


async def opened(url: str, run: object) -> None:
    store = connect(url)
    await store.open()
    try:
        await run(store)  # type: ignore[operator]
    finally:
        await store.close()


def test_apply_compares_each_secret_once_with_each_stored_hash(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comparing takes most of the time, on purpose: argon2."""
    (tmp_path / "secret").write_text("a client secret that is long enough")
    parties = b"".join(
        PARTY.replace(b"CPO", b"CPO %d" % number)
        + b'client_id = "p%d"\nsecret_file = "%s"\n' % (number, str(tmp_path / "secret").encode())
        for number in range(3)
    )
    compared: list[str] = []
    matching = applying.matching_hash

    def counted(hashes: list[str], secret: str) -> str | None:
        compared.extend(hashes)
        return matching(hashes, secret)

    monkeypatch.setattr(applying, "matching_hash", counted)

    async def run(store: Store) -> None:
        first = declaration(parties)
        await applying.apply(store, first, await applying.prepare(store, first, AT, prune=False), BY, AT)
        assert compared == [], "new parties have no hash"
        changed = declaration(parties.replace(b"CPO 1", b"CPO one"))
        shown = await applying.prepare(store, changed, AT, prune=False, dry_run=True)
        assert len(compared) == 3
        plan = await applying.prepare(store, changed, AT, prune=False, earlier=shown)
        assert (len(compared), plan.matching) == (3, shown.matching)
        # Another process gives a party another secret: only that one is compared again, and is changed back.
        (tmp_path / "secret").write_text("another secret of the same party")
        other = declaration(parties)
        other = replace(other, parties=tuple(each for each in other.parties if each.party.client_id == "p2"))
        await applying.apply(store, other, await applying.prepare(store, other, AT, prune=False), BY, AT)
        compared.clear()
        done = await applying.apply(store, changed, plan, BY, AT)
        assert len(compared) == 1
        assert {change.after.client_id for change in done.differences.parties} == {"p1", "p2"}

    asyncio.run(opened(url, run))


def test_apply_compares_again_when_a_rename_moves_an_entry_to_another_party(url: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"the client secret of entry {name}")

    def entry(label: bytes, secret: str) -> bytes:
        return PARTY.replace(b"CPO", label) + b'secret_file = "%s"\n' % str(tmp_path / secret).encode()

    async def run(store: Store) -> None:
        first = declaration(entry(b"CPO one", "one") + b'client_id = "p1"\n')
        await applying.apply(store, first, await applying.prepare(store, first, AT, prune=False), BY, AT)
        both = declaration(entry(b"CPO one", "one") + entry(b"CPO two", "two"))
        shown = await applying.prepare(store, both, AT, prune=False, dry_run=True)
        assert shown.matching.keys() == {"p1"}
        renamed = declaration(entry(b"CPO two", "one") + b'client_id = "p1"\n')
        await applying.apply(store, renamed, await applying.prepare(store, renamed, AT, prune=False), BY, AT)
        plan = await applying.prepare(store, both, AT, prune=False, earlier=shown)
        assert plan.matching == {}, "the entry that p1 has now names another secret"

    asyncio.run(opened(url, run))
