"""A full disk: a clear error, no loss, and recovery without a restart when space is freed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ccp.testing.pki import PKI
from tests.durability.disk import small_disk
from tests.server.storage.made import broken_invariants, sql
from tests.world import Pool, start


def fill(pool: Pool) -> list[str]:
    """Publish until the pool refuses. Returns the accepted EMAIDs."""
    taken: list[str] = []
    while True:
        contract = pool.contract(pool.car())
        answer = pool.cps.put("/signedcontractdata", json={**contract.body, "metaData": "x" * 10_000})
        if answer.status_code != 201:
            assert answer.status_code == 503, answer.text
            assert answer.headers["Retry-After"]
            assert answer.json()["errorMessages"] == ["The database cannot write now; nothing was changed, try again."]
            return taken
        taken.append(contract.emaid)
        assert len(taken) < 1000


def test_full_disk_fails_writes_serves_reads_and_recovers(tmp_path: Path, pkis: dict[str, PKI]) -> None:
    with small_disk(tmp_path / "disk", 4096) as disk:
        if disk is None:
            pytest.skip("may not mount a file system here")
        url = f"sqlite:///{disk}/ccp.db"
        with start(pkis, database=url) as pool:
            filler = disk / "filler"
            filler.write_bytes(bytes(2_000_000))
            car = pool.car()
            first = pool.publish(car)
            taken = [first.emaid, *fill(pool)]
            assert len(taken) > 5
            assert os.statvfs(disk).f_bavail < 8, "blocks; it is really full"
            assert {row[0] for row in sql(url, "select emaid from contract")} == set(taken)
            # Reads are served.
            assert len(pool.ask(car)) == 1
            assert pool.emsp.get(f"/contractData/emaid/{first.emaid}").status_code == 200
            assert pool.http.get("/health/ready").status_code == 200
            # Every write fails with a clear error.
            assert fill(pool) == []
            assert pool.oem.post(f"/signedcontractdata/{first.emaid}/{car.pcid}/setdefault").status_code in (200, 503)
            filler.unlink()
            later = pool.publish(pool.car())
            assert pool.emsp.delete(f"/signedcontractdata/{taken[1]}").status_code == 200
        left = ({*taken, later.emaid}) - {taken[1]}
        assert {row[0] for row in sql(url, "select emaid from contract")} == left
        assert sql(url, "pragma integrity_check") == [("ok",)]
        assert broken_invariants(url) == []
        events = sql(url, "select kind, count(*) from outbox where pcid <> '' group by kind order by kind")
        assert events == [("oem.contract.created", len(taken) + 1), ("oem.contract.deleted", 1)]
