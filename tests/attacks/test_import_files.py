"""Drop folders that other users can write to: links, forged checkpoints, and archives with hardly any content."""

from __future__ import annotations

import gzip
import json
import stat
import zlib
from pathlib import Path

import pytest

from ccp.errors import ConfigurationError
from ccp.server.access.token_bucket import SharedTokenBucket
from ccp.server.bulk.checkpoint import Checkpoint, default_path
from ccp.server.bulk.lines import InputOffset, InputSource
from ccp.server.storage.engine.write_lock import WriteLock
from ccp.testing.pki import PKI
from tests.cli.run import ccp, ccp_error, ccp_ok
from tests.server.bulk.fleet import Database, body, database, jsonl, line
from tests.server.storage.made import sql

VICTIM = b"what the link points to"


@pytest.fixture
def target(tmp_path: Path, pkis: dict[str, PKI]) -> Database:
    return database(tmp_path / "pool", pkis)


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "drop"
    folder.mkdir()
    return folder


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    file = tmp_path / "victim"
    file.write_bytes(VICTIM)
    return file


def broken_off(drop: Path, pkis: dict[str, PKI], name: str = "fleet.jsonl.gz") -> Path:
    """An archive that ends within a line: 32 contracts are stored, and a checkpoint remains."""
    file = drop / name
    file.write_bytes(gzip.compress(jsonl(*(body(pkis["iso2"]) for _ in range(40))))[:-500])
    return file


def mode(file: Path) -> int:
    return stat.S_IMODE(file.lstat().st_mode)


# --- Links -----------------------------------------------------------------------------------------------------------


def test_checkpoint_is_beside_the_database_and_follows_no_link(
    target: Database, drop: Path, victim: Path, pkis: dict[str, PKI]
) -> None:
    file = broken_off(drop, pkis)
    for ending in (".checkpoint", ".checkpoint.new", ".checkpoint.part"):
        file.with_name(file.name + ending).symlink_to(victim)
    assert "cannot be read after line" in ccp_error("import", file, env=target.env)
    checkpoint = default_path(str(file), target.url)
    assert checkpoint.parent == target.folder
    assert mode(checkpoint) == 0o600
    assert json.loads(checkpoint.read_bytes())["counts"] == {"created": 32}
    assert victim.read_bytes() == VICTIM


@pytest.mark.parametrize("linked", ["checkpoint", "refused"])
def test_import_refuses_a_link_on_the_command_line(
    target: Database, drop: Path, victim: Path, pkis: dict[str, PKI], linked: str
) -> None:
    file, link = broken_off(drop, pkis), drop / "link"
    link.symlink_to(victim)
    assert ccp_error("import", file, f"--{linked}", link, env=target.env) == (
        f"{link} cannot be used: it is a symbolic link."
    )
    link.unlink()
    link.hardlink_to(victim)
    assert ccp_error("import", file, f"--{linked}", link, env=target.env) == (
        f"{link} cannot be used: it has a second name (hard link)."
    )
    assert victim.read_bytes() == VICTIM
    assert target.emaids() == set()


def test_report_of_rejected_lines_has_mode_0600(target: Database, drop: Path) -> None:
    file, report = drop / "fleet.jsonl", drop / "refused.jsonl"
    file.write_bytes(b"{}\n")
    report.write_bytes(b"older\n")
    report.chmod(0o666)
    assert ccp("import", file, "--refused", report, env=target.env).status == 1
    assert mode(report) == 0o600
    assert [json.loads(each)["line"] for each in report.read_text().splitlines()] == [1]


def test_import_folder_refuses_links_out_of_it(target: Database, drop: Path, pkis: dict[str, PKI]) -> None:
    outside = drop.parent / "outside.jsonl"
    outside.write_bytes(jsonl(body(pkis["iso2"])))
    (drop / "1.jsonl").write_bytes(jsonl(body(pkis["iso2"])))
    (drop / "2.jsonl").symlink_to("1.jsonl")
    ccp_ok("import", drop, env=target.env)
    before = target.emaids()
    (drop / "3.jsonl").symlink_to(outside)
    assert ccp_error("import", drop, env=target.env) == (
        f"{drop / '3.jsonl'} is a link to a file outside of {drop}; links out of a folder are not followed."
    )
    assert target.emaids() == before


def test_export_replaces_a_link_and_not_its_target(target: Database, drop: Path, victim: Path) -> None:
    file = drop / "fleet.jsonl"
    for name in ("fleet.jsonl", "fleet.jsonl.part"):
        (drop / name).symlink_to(victim)
    ccp_ok("export", file, env=target.env)
    assert not file.is_symlink()
    assert mode(file) == 0o600
    assert victim.read_bytes() == VICTIM


def test_import_files_that_are_shared_are_not_opened_through_links(tmp_path: Path, victim: Path) -> None:
    link, absent = tmp_path / "limits", tmp_path / "absent"
    link.symlink_to(victim)
    with pytest.raises(ConfigurationError, match="it is a symbolic link"):
        SharedTokenBucket.prepare(link)
    (tmp_path / "ccp.db-writelock").symlink_to(absent)
    write_lock = WriteLock(tmp_path / "ccp.db", 0.1)
    with write_lock.hold():
        pass
    write_lock.close()
    assert not absent.exists()
    assert victim.read_bytes() == VICTIM


# --- Forged checkpoints ----------------------------------------------------------------------------------------------

CHANGED = "or it was changed. Delete it to start from"


def test_checkpoint_with_changed_numbers_is_refused(target: Database, drop: Path, pkis: dict[str, PKI]) -> None:
    file = broken_off(drop, pkis)
    ccp_error("import", file, env=target.env)
    checkpoint = default_path(str(file), target.url)
    found = json.loads(checkpoint.read_bytes())
    checkpoint.write_text(json.dumps({**found, "counts": {"created": 1_000_000}}))
    assert CHANGED in ccp_error("import", file, env=target.env)
    checkpoint.write_text(json.dumps({**found, "report": "/etc/passwd", "report_bytes": 0}))
    assert CHANGED in ccp_error("import", file, env=target.env)
    checkpoint.write_text(json.dumps(found))
    assert "cannot be read after line" in ccp_error("import", file, env=target.env)


def end_offset(file: Path) -> InputOffset:
    """The offset of the end of an input, which any reader of the input can compute."""
    *_, last = InputSource.of(str(file)).chunks(262_144)
    return last.end


def test_checkpoint_that_is_forged_skips_no_line(target: Database, drop: Path, pkis: dict[str, PKI]) -> None:
    """The attacker has the input and the source code, but not the database."""
    file, made = drop / "fleet.jsonl", drop / "made"
    contract = body(pkis["iso2"])
    file.write_bytes(jsonl(contract))
    Checkpoint(end_offset(file), {"created": 1_000_000}, None, 0).save(made, b"a guess")
    assert CHANGED in ccp_error("import", file, "--checkpoint", made, env=target.env)
    made.unlink()
    ccp_ok("import", file, "--checkpoint", made, env=target.env)
    assert target.emaids() == {contract["emaid"]}


def test_checkpoint_that_does_not_fit_the_input_is_refused(target: Database, drop: Path, pkis: dict[str, PKI]) -> None:
    file, empty = drop / "fleet.jsonl", drop / "empty.jsonl"
    file.write_bytes(b"\n" + jsonl(body(pkis["iso2"])))
    empty.write_bytes(b"")
    ccp_ok("import", empty, env=target.env)  # Makes the key.
    (key,) = sql(target.url, "select value from pool_secret where name = 'import_checkpoint_key'")[0]
    checkpoint = default_path(str(file), target.url)
    for counts in ({"created": 1_000_000}, {"created": 2}, {}):
        Checkpoint(end_offset(file), counts, None, 0).save(checkpoint, bytes.fromhex(key))
        assert ccp_error("import", file, env=target.env).startswith("The checkpoint is of another input than ")
    Checkpoint(end_offset(file), {"created": 1}, None, 0).save(checkpoint, bytes.fromhex(key))
    assert json.loads(ccp_ok("import", file, "--json", env=target.env).out)["lines"] == 1


def test_checkpoint_of_another_database_skips_no_line(
    target: Database, drop: Path, tmp_path: Path, pkis: dict[str, PKI]
) -> None:
    other = database(tmp_path / "other", pkis)
    file, checkpoint = broken_off(drop, pkis), drop / "checkpoint"
    assert default_path(str(file), target.url) != default_path(str(file), other.url)
    for each in (target, other):  # The first one notes that 32 lines are done; the second must not believe it.
        assert ccp("import", file, "--checkpoint", checkpoint, env=each.env).status == 1
    assert CHANGED in ccp_error("import", file, "--checkpoint", checkpoint, env=other.env)
    assert (len(target.emaids()), len(other.emaids())) == (32, 0)


def test_checkpoint_from_before_a_restore_skips_no_line(target: Database, drop: Path, pkis: dict[str, PKI]) -> None:
    empty, file, checkpoint = drop / "empty.jsonl", broken_off(drop, pkis), drop / "checkpoint"
    empty.write_bytes(b"")
    ccp_ok("import", empty, env=target.env)  # Makes the key.
    ccp_ok("backup", drop / "backup.db", env=target.env)
    assert ccp("import", file, "--checkpoint", checkpoint, env=target.env).status == 1
    ccp_ok("restore", drop / "backup.db", "--replace", "--yes", env=target.env)
    assert CHANGED in ccp_error("import", file, "--checkpoint", checkpoint, env=target.env)
    assert target.emaids() == set()


def test_checkpoint_for_postgresql_is_in_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    first, second = (default_path("fleet.jsonl", f"postgresql://ccp@db.example/{name}") for name in ("one", "two"))
    assert first.parent == second.parent == tmp_path / "state" / "opnc-ccp"
    assert mode(first.parent) == 0o700
    assert first != second


# --- Input that holds nothing ----------------------------------------------------------------------------------------


def packed(*parts: bytes, times: int = 1) -> bytes:
    """A gzip file of the parts, the last one repeated."""
    packer = zlib.compressobj(1, wbits=31)
    *before, last = parts
    data = b"".join(packer.compress(part) for part in (*before, *[last] * times))
    return data + packer.flush()


def test_import_stops_after_a_thousand_empty_lines(target: Database, drop: Path, pkis: dict[str, PKI]) -> None:
    file, contract = drop / "fleet.jsonl.gz", body(pkis["iso2"])
    many = b"\n" * 1_000_000
    file.write_bytes(packed(jsonl(*[contract] * 32), many, times=60))
    assert ccp_error("import", file, env=target.env) == (
        f"{file} cannot be read after line 1353: too many lines without content."
    )
    assert target.emaids() == {contract["emaid"]}, "what came before is stored"
    (drop / "plain.jsonl").write_bytes(many)
    assert "too many lines without content" in ccp_error("import", drop / "plain.jsonl", env=target.env)


def test_import_counts_short_lines_as_lines_without_content(target: Database, drop: Path, pkis: dict[str, PKI]) -> None:
    file, report, contract = drop / "fleet.jsonl.gz", drop / "refused.jsonl", body(pkis["iso2"])
    file.write_bytes(packed(jsonl(contract), b"0\n" * 1_000_000, times=30))
    assert ccp_error("import", file, "--refused", report, env=target.env) == (
        f"{file} cannot be read after line 1012: too many lines without content."
    )
    assert target.emaids() == {contract["emaid"]}
    assert report.stat().st_size < 1_000_000


def test_import_limits_the_expansion_of_white_space(target: Database, drop: Path) -> None:
    file = drop / "fleet.jsonl.gz"
    file.write_bytes(packed(b" " * (1 << 20), times=128))
    assert ccp_error("import", file, env=target.env).endswith("it expands to more than 100 times its size.")
    file.write_bytes(packed((b" " * 200_000 + b"\n") * 5, times=500))
    assert ccp_error("import", file, env=target.env).endswith(
        "after line 603: it expands to more than 100 times its size."
    )
    body_file = drop / "one.json"
    body_file.write_bytes(packed(b" " * (1 << 20), times=128))
    assert ccp_error("import", body_file, env=target.env).endswith("it expands to more than 100 times its size.")


def test_import_stops_after_a_megabyte_of_empty_gzip_members(target: Database, drop: Path) -> None:
    file = drop / "fleet.jsonl.gz"
    file.write_bytes(gzip.compress(b"") * 100_000)
    assert ccp_error("import", file, env=target.env).endswith("compressed bytes without content.")


def test_import_accepts_empty_lines_and_equal_lines(target: Database, drop: Path, pkis: dict[str, PKI]) -> None:
    file, contract = drop / "fleet.jsonl.gz", body(pkis["iso2"])
    file.write_bytes(gzip.compress(b"\n" * 900 + (line(contract) + b"\n \n") * 200))
    summary = json.loads(ccp_ok("import", file, "--json", env=target.env).out)
    assert (summary["created"], summary["unchanged"]) == (1, 199)
