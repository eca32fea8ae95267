"""ccp export, and import of what it wrote."""

from __future__ import annotations

import json
import os
import re
import stat
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ccp.ids import EMAID, PCID, WMI, ProviderId
from ccp.server.bulk import exporter
from ccp.server.bulk.exporter import ExportFilter
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import bulk, contracts
from ccp.testing.pki import PKI
from tests.cli.run import ccp, ccp_error, ccp_ok
from tests.durability.disk import small_disk
from tests.server.bulk.fleet import Database, body, database, jsonl, new_emaid, new_pcid
from tests.server.bulk.imports import counts, imported
from tests.server.storage.made import (
    AT,
    NO_LIMITS,
    broken_invariants,
    new_database,
    read,
    sql,
    variant,
    with_store,
    write,
)
from tests.world import Pool


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, pkis: dict[str, PKI]) -> Database:
    """Vehicles of two makers with several contracts and variants, some with a later default or none."""
    target = database(tmp_path_factory.mktemp("filled"), pkis)
    car, other, third = new_pcid("WEX"), new_pcid("WXB"), new_pcid("WXB")
    first, second, fourth = new_emaid("DEEXA"), new_emaid("NLEXB"), new_emaid("DEEXA")
    bodies = [
        body(pkis["iso2"], first, car, metaData="mit Umlaut: ü"),
        body(pkis["iso20"], first, car),
        body(pkis["ed448"], second, car),
        body(pkis["other_iso2"], first, car),
        body(pkis["iso2"], fourth, other),
        body(pkis["iso2"], pcid=third, defaultContract=False),
        body(pkis["iso2"], second, car),
        # More vehicles than one page has.
        *(body(pkis["iso2"]) for _ in range(120)),
    ]
    file = target.folder / "fleet.jsonl"
    file.write_bytes(jsonl(*bodies))
    imported(target, file)
    default = "update vehicle set default_emaid = ? where pcid = ?"
    sql(target.url, default, str(second), str(car))
    sql(target.url, "update contract set is_default = (emaid = ?) where pcid = ?", str(second), str(car))
    # Which variant is the newest is not what their keys say.
    sql(target.url, "update contract set updated_at = updated_at + 10000000 where metadata is not null")
    assert broken_invariants(target.url) == []
    return target


def exported(source: Database, *options: object) -> list[dict[str, Any]]:
    return [json.loads(each) for each in ccp_ok("export", "-", *options, env=source.env).out_bytes.splitlines()]


@pytest.mark.parametrize("name", ["fleet.jsonl", "fleet.jsonl.gz"])
def test_export_and_import_into_an_empty_pool_round_trips(
    tmp_path: Path, filled: Database, pkis: dict[str, PKI], name: str
) -> None:
    file = tmp_path / name
    ccp_ok("export", file, env=filled.env)
    assert (file.read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    target = database(tmp_path / "pool", pkis)
    assert counts(imported(target, file))["created"] == len(sql(filled.url, "select distinct emaid from contract"))
    assert target.contracts() == filled.contracts()
    vehicles = "select pcid, default_emaid from vehicle order by pcid"
    assert sql(target.url, vehicles) == sql(filled.url, vehicles)
    # What follows from the order of times: the newest variant of a contract, and the oldest contract of a vehicle.
    newest = "select emaid, namespace, root_fingerprint from contract order by emaid, updated_at, namespace"
    assert sql(target.url, newest) == sql(filled.url, newest)
    oldest = "select pcid, emaid, min(created_at) as born from contract group by pcid, emaid order by pcid, born"
    assert [row[:2] for row in sql(target.url, oldest)] == [row[:2] for row in sql(filled.url, oldest)]
    # So the next export is identical, byte for byte.
    assert exported(target) == exported(filled)


def test_export_line_is_a_valid_put_body(filled: Database, pool: Pool) -> None:
    lines = exported(filled)
    assert len(lines) == sql(filled.url, "select count(*) from contract")[0][0]
    for each in lines[:8]:
        assert pool.cps.put("/signedcontractdata", json=each).status_code == 201


def test_export_filters_combine(filled: Database) -> None:
    lines = exported(filled)
    pcids = [each["pcid"] for each in lines]
    assert pcids == sorted(pcids)

    def these(**wanted: tuple[str, ...]) -> list[dict[str, Any]]:
        return [each for each in lines if all(each[name].startswith(values) for name, values in wanted.items())]

    assert exported(filled, "--wmi", "wxb") == these(pcid=("WXB",)) != []
    assert exported(filled, "--provider-id", "NL-EXB") == these(emaid=("NLEXB",)) != []
    assert exported(filled, "--wmi", "WXB", "--wmi", "WEX") == lines
    iso20 = "urn:iso:15118:20:2022:MsgDef"
    assert exported(filled, "--namespace", iso20) == these(xsdMsgDefNamespace=("urn:iso:15118:20:",)) != []
    both = exported(filled, "--namespace", iso20, "--provider-id", "NLEXB")
    assert both == these(xsdMsgDefNamespace=("urn:iso:15118:20:",), emaid=("NLEXB",)) != []
    assert exported(filled, "--wmi", "XXX") == []
    assert "wmi" in ccp_error("export", "-", "--wmi", "too long", env=filled.env)


def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the vehicles whose contracts are read from now on."""
    seen: list[str] = []
    real = bulk.by_vehicle

    def noting(pcid: PCID) -> Any:
        seen.append(pcid)
        return real(pcid)

    monkeypatch.setattr(bulk, "by_vehicle", noting)
    return seen


@pytest.mark.parametrize("name", ["sqlite", "postgresql"])
def test_export_of_a_provider_or_wmi_uses_an_index(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    url = new_database(tmp_path) if name == "sqlite" else request.getfixturevalue("postgres").emptied()
    fleet = [(EMAID(f"DEEX{provider}X{n:08d}"), PCID(f"{maker}{n:014d}")) for n, (provider, maker) in enumerate(
        [("A", "WEX"), ("A", "WEY"), ("Z", "WEX"), ("Z", "WEZ"), ("B", "WEX"), ("0", "WXB"), ("9", "ZZZ")] * 40
    )]  # fmt: skip
    # A second contract of its provider and one of another, so that an index leads to the vehicle three times.
    fleet += [(EMAID(f"DEEX{provider}Y{n:08d}"), PCID(f"WEX{0:014d}")) for n, provider in enumerate("AABZ")]
    write(url, *(contracts.publish(variant(emaid, pcid), AT, NO_LIMITS) for emaid, pcid in fleet))

    async def use(store: Store) -> None:
        for wanted in (
            ExportFilter(providers=frozenset({ProviderId("DEEXA")})),
            ExportFilter(providers=frozenset({ProviderId("DEEXZ"), ProviderId("DEEX9")})),
            ExportFilter(wmis=frozenset({WMI("WEX")})),
            ExportFilter(wmis=frozenset({WMI("ZZZ"), WMI("WEZ")})),
            ExportFilter(frozenset({ProviderId("DEEXZ")}), frozenset({WMI("WEX")})),
            ExportFilter(wmis=frozenset({WMI("AAA")})),
        ):
            expected = {
                (emaid, pcid)
                for emaid, pcid in fleet
                if (not wanted.providers or emaid.provider in wanted.providers)
                and (not wanted.wmis or pcid.wmi in wanted.wmis)
            }
            for plain in (True, False):  # By the index, and without it where the database sorts otherwise.
                with monkeypatch.context() as patch:
                    if not plain:
                        patch.setattr(exporter, "sorts_by_character", partial(constant, False))
                    seen = looked_at(patch)
                    found = [json.loads(line) async for line in exporter.lines(store, wanted)]
                    assert len(found) == len(expected)
                    assert {(each["emaid"], each["pcid"]) for each in found} == expected
                    if plain:
                        assert set(seen) == {pcid for _, pcid in expected}

    with_store(url, use)


def constant(value: bool) -> Query[bool]:
    yield "select 1", ()
    return value


def test_sorts_by_character_detects_the_collation(tmp_path: Path) -> None:
    assert read(new_database(tmp_path), bulk.sorts_by_character())
    steps = iter(bulk.sorts_by_character())
    statement, _ = next(steps)
    pairs = re.findall(r"'(..)'", statement)
    with pytest.raises(StopIteration) as stop:
        steps.send([(pair,) for pair in sorted(pairs, key=lambda pair: (pair == "AA", pair))])  # As in Danish.
    assert stop.value.value is False


@pytest.mark.parametrize(
    ("prefix", "following"), [("WEX", "WEY"), ("WEZ", "WF"), ("WZZ", "X"), ("ZZZ", None), ("WE9", "WEA")]
)
def test_export_range_of_ids_ends_before_the_next_prefix(prefix: str, following: str | None) -> None:
    assert bulk._following(prefix) == following


def test_export_replaces_the_file_atomically(tmp_path: Path, filled: Database) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        if disk is None:
            pytest.skip("may not mount a file system here")
        file = disk / "fleet.jsonl"
        file.write_text("an older one")
        done = ccp("export", file, env=filled.env)
        assert done.status == 1
        assert "No space left" in done.err
        assert file.read_text() == "an older one"
        assert os.listdir(disk) == ["fleet.jsonl"]
