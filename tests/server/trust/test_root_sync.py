"""Synchronisation with a Root Certificate Pool: additions, removals, unusable entries."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ccp.errors import UpstreamError
from ccp.server.external.outbound import OutboundClient
from ccp.server.external.root_pool import RootCertificatePool
from ccp.server.runtime.background import BackgroundTasks
from ccp.server.storage import connect
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import anchors, change_counters
from ccp.server.trust.anchors import trusted_certificate
from ccp.server.trust.root_sync import RootSyncResult, SyncTrigger, root_sync_task, sync_roots
from ccp.testing.pki import PKI
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import AnchorRole
from tests.databases import with_schema
from tests.scripted_server import Received, Reply, Scripted, json_reply, scripted
from tests.server.external.calls import connection
from tests.server.trust.root_files import damaged, leaf_that_names_itself, root, rsa_root, signed_by_another
from tests.world import AT, b64


class World:
    """A store, and a Root Certificate Pool that lists what `lists` holds."""

    def __init__(self, database: Path, fake: Scripted) -> None:
        self.url = f"sqlite:///{database}"
        self.fake = fake
        self.lists: list[dict[str, Any]] = []
        fake.on("/rcp/rootcertificates", self._answer)
        with_schema(self.url)

    def _answer(self, call: Received) -> Reply:
        return json_reply({"rootCertificateCollection": self.lists})

    def list(self, certificate: Certificate, *types: str) -> None:
        self.lists.append({"caCertificate": b64(certificate.der), "rootTypeList": list(types)})

    def sync(self, *, prune: bool = False, path: str = "/rcp/") -> RootSyncResult:
        async def run() -> RootSyncResult:
            store, outbound = connect(self.url), OutboundClient()
            await store.open()
            try:
                rcp = RootCertificatePool(connection(outbound, self.fake.url + path))
                return await sync_roots(store, rcp, AT, prune=prune)
            finally:
                await outbound.close()
                await store.close()

        return asyncio.run(run())

    def write(self, change: Query[Any]) -> Any:
        async def run() -> Any:
            store = connect(self.url)
            await store.open()
            try:
                return await store.write(change)
            finally:
                await store.close()

        return asyncio.run(run())

    def held(self) -> dict[tuple[str, str], str]:
        """Source by role and fingerprint."""
        return {(entry.role, entry.fingerprint): entry.source for entry in self.write(anchors.list_all())}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with scripted() as fake:
        yield World(tmp_path / "ccp.db", fake)


def test_sync_roots_adds_listed_roles_and_notifies_workers(world: World) -> None:
    one, two = root("One"), root("Two")
    world.list(one, "V2G")
    world.list(two, "eMSP", "OEM")
    done = world.sync()
    expected = {("v2g", one.fingerprint), ("emsp", two.fingerprint), ("oem", two.fingerprint)}
    assert set(world.held()) == expected
    assert {(entry.role, entry.fingerprint) for entry in done.added} == expected
    assert set(world.held().values()) == {world.fake.url + "/rcp"}
    assert (done.delisted, done.unusable, done.pruned) == ((), (), False)
    assert world.write(change_counters.read_all())[change_counters.ChangeCounter.ANCHORS] == 3
    again = world.sync()
    assert (again.added, again.delisted) == ((), ())
    assert world.write(change_counters.read_all())[change_counters.ChangeCounter.ANCHORS] == 3


def test_sync_roots_reports_delisted_anchors_until_pruned(world: World) -> None:
    one, two = root("One"), root("Two")
    world.list(one, "V2G", "OEM")
    world.list(two, "V2G")
    world.sync()
    world.lists = []
    world.list(one, "V2G")
    for _ in range(2):
        done = world.sync()
        assert {(entry.role, entry.label) for entry in done.delisted} == {("v2g", "Two"), ("oem", "One")}
        assert not done.pruned
        assert len(world.held()) == 3
    done = world.sync(prune=True)
    assert done.pruned
    assert len(done.delisted) == 2
    assert set(world.held()) == {("v2g", one.fingerprint)}


def test_sync_roots_never_delists_anchors_of_other_sources(world: World) -> None:
    hand, other, pinned, plain = root("Hand"), root("Other"), root("Pinned"), root("Plain")
    world.list(pinned, "V2G")
    world.list(plain, "V2G")
    world.sync()
    world.write(anchors.add(trusted_certificate(hand, AnchorRole.V2G, "hand.pem", AT)))
    world.write(anchors.add(trusted_certificate(other, AnchorRole.V2G, "http://other/rcp", AT)))
    assert (
        world.write(anchors.add_by_operator(trusted_certificate(pinned, AnchorRole.V2G, "pinned.pem", AT, "mine")))
        is False
    )
    world.lists = []
    world.list(plain, "V2G")
    done = world.sync(prune=True)
    assert done.delisted == ()
    assert {fingerprint for _, fingerprint in world.held()} == {c.fingerprint for c in (hand, other, pinned, plain)}


def test_sync_roots_keeps_the_source_of_known_anchors(world: World) -> None:
    hand = root("Hand")
    world.write(anchors.add(trusted_certificate(hand, AnchorRole.V2G, "hand.pem", AT)))
    world.list(hand, "V2G")
    assert world.sync().added == ()
    assert set(world.held().values()) == {"hand.pem"}


def test_sync_roots_reports_unusable_certificates(world: World, pkis: dict[str, PKI]) -> None:
    good = root("Good")
    ended = root("Ended", (AT - timedelta(days=9), AT - timedelta(days=1)))
    bad = [
        damaged(root("Damaged")), signed_by_another(), rsa_root(), leaf_that_names_itself(), ended,
        pkis["iso2"].emsp_sub1.certificate,
    ]  # fmt: skip
    for certificate in (*bad, good):
        world.list(certificate, "V2G")
    done = world.sync()
    assert set(world.held()) == {("v2g", good.fingerprint)}
    assert len(done.unusable) == len(bad)
    for certificate in bad:
        assert any(certificate.display_name in sentence for sentence in done.unusable), certificate.display_name


def test_sync_roots_does_not_delist_expired_anchors(world: World) -> None:
    ended = root("Ended", (AT - timedelta(days=9), AT - timedelta(days=1)))
    world.write(anchors.add(trusted_certificate(ended, AnchorRole.V2G, world.fake.url + "/rcp", AT)))
    world.list(ended, "V2G")
    assert world.sync(prune=True).delisted == ()


def test_sync_roots_does_not_prune_on_unreadable_entries(world: World) -> None:
    one, two = root("One"), root("Two")
    world.list(one, "V2G")
    world.list(two, "V2G")
    world.sync()
    world.lists[1]["caCertificate"] = "garbled"
    done = world.sync(prune=True)
    assert [entry.label for entry in done.delisted] == ["Two"]
    assert not done.pruned
    assert "Nothing was removed" in done.unusable[-1]
    assert len(world.held()) == 2


@pytest.mark.parametrize("path", ["/rcp/", "/wrong/"])
def test_sync_roots_removes_nothing_on_empty_lists(world: World, path: str) -> None:
    world.list(root(), "V2G")
    world.sync()
    world.lists = []
    with pytest.raises(UpstreamError, match="no root certificate at all"):
        world.sync(prune=True, path=path)
    assert len(world.held()) == 1


def test_root_sync_task_adds_only_and_survives_failures(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccp.server.trust.root_sync._MAX_FIRST_DELAY", 0.01)
    monkeypatch.setattr("ccp.server.trust.root_sync._RETRY_DELAY", 0.05)
    one, two, gone = root("One"), root("Two"), root("Gone")
    world.write(anchors.add(trusted_certificate(gone, AnchorRole.V2G, world.fake.url + "/rcp", AT)))

    async def run() -> None:
        store, outbound = connect(world.url), OutboundClient()
        await store.open()
        world.fake.on("/rcp/rootcertificates", Reply(503))
        rcp = RootCertificatePool(connection(outbound, world.fake.url + "/rcp"))
        background = BackgroundTasks()
        background.add(root_sync_task(store, rcp, 0.05, lambda: datetime.now(UTC)))
        try:
            async with asyncio.timeout(8):
                while len(world.fake.received) < 2:  # noqa: ASYNC110  it counts in another thread
                    await asyncio.sleep(0.01)
                world.fake.on("/rcp/rootcertificates", world._answer)
                for number, certificate in enumerate((one, two), start=2):
                    world.list(certificate, "V2G")
                    while len(await store.read(anchors.list_all())) < number:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
        finally:
            await background.close()
            await outbound.close()
            await store.close()

    asyncio.run(run())
    assert {fingerprint for _, fingerprint in world.held()} == {c.fingerprint for c in (one, two, gone)}


def test_sync_trigger_reads_the_list_once_and_once_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"MAX_FIRST_DELAY": 1e6, "WAKE_DELAY": 0.01, "MIN_GAP": 0.05, "FOLLOW_UP": 0.5}.items():
        monkeypatch.setattr(f"ccp.server.trust.root_sync._{name}", seconds)
    world.list(root("One"), "V2G")

    async def run() -> None:
        store, outbound, trigger = connect(world.url), OutboundClient(), SyncTrigger()
        await store.open()
        rcp = RootCertificatePool(connection(outbound, world.fake.url + "/rcp"))
        background = BackgroundTasks()
        background.add(root_sync_task(store, rcp, 1e6, lambda: datetime.now(UTC), wake=trigger.wake))
        try:
            async with asyncio.timeout(20):
                for number, name in enumerate(("Two", "Three"), start=1):
                    for _ in range(1000):
                        trigger.request()
                    while len(await store.read(anchors.list_all())) < number:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    world.list(root(name), "V2G")  # The pool lists it after its event.
                while len(await store.read(anchors.list_all())) < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        finally:
            trigger.close()
            await background.close()
            await outbound.close()
            await store.close()

    asyncio.run(run())
    # One for each 1,000 requests, and the later one that both share; on a busy machine each has its own.
    assert len(world.fake.received) // len(AnchorRole) in (3, 4)
