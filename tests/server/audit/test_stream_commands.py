"""Commands about the stream of the audit trail: its state, and verification of what it wrote."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from tests.cli.run import ccp, ccp_error, ccp_ok
from tests.databases import sql
from tests.server.audit.made import fill
from tests.server.audit.stream_process import confirmed, in_this_process
from tests.waiting import wait_until


def configured(url: str, folder: Path, **members: Any) -> tuple[object, ...]:
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in {"database": url, **members}.items())
    (folder / "ccp.toml").write_text(text)
    return ("--config", folder / "ccp.toml")


def test_stream_command_shows_what_the_receiver_has_and_what_waits(url: str, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    settings = {"audit_stream": "file", "audit_stream_file": str(file)}
    config = configured(url, tmp_path, **settings)
    fill(url, rows=2)
    with in_this_process(url, **settings):
        wait_until(lambda: confirmed(url) == 32)
        shown = json.loads(ccp_ok("audit", "stream", "--json", *config).out)
        assert (shown["rows"], shown["confirmed"], shown["waiting"]) == (32, 32, 0)
        assert f":{os.getpid()}:" in shown["sender"]
    fill(url, lanes=(3,), rows=3)
    lines = ccp_ok("audit", "stream", *config).lines
    assert lines[0] == "file: the receiver has 32 of 35 row(s)."
    assert re.fullmatch(r"3 row\(s\) wait; the oldest was written \d+ second\(s\) ago\.", lines[1])
    assert lines[2].startswith("No process sends now")
    (tmp_path / "other").mkdir()
    assert "audit_stream is not set" in ccp_error("audit", "stream", *configured(url, tmp_path / "other"))


def test_stream_files_are_verified_and_held_against_the_trail(url: str, tmp_path: Path) -> None:
    file, rotated = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    settings = {"audit_stream": "file", "audit_stream_file": str(file)}
    config = configured(url, tmp_path, **settings)
    fill(url, rows=3)
    with in_this_process(url, **settings):
        wait_until(lambda: confirmed(url) == 48)
    again = file.read_text().splitlines(keepends=True)[-20:]
    file.rename(rotated)
    fill(url, rows=2)
    with in_this_process(url, **settings):
        wait_until(lambda: confirmed(url) == 80)
    file.write_text("".join(again) + file.read_text())  # As after a crash: the last batch once more.
    ccp_ok("audit", "verify", "--against", rotated, "--against", file, *config)
    shown = ccp_ok("audit", "verify", rotated, file).lines
    assert shown[0] == "80 row(s)."
    assert "--against" in shown[-1]
    assert ccp("audit", "verify", file).status == 1, "the rows of the rotated file are missing"

    text = file.read_text().splitlines(keepends=True)
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text("".join([*text[:25], *text[26:]]))
    assert "are missing" in ccp("audit", "verify", rotated, damaged).out
    damaged.write_text("".join([*text[:-1], text[-1].replace('"ok"', '"no"')]))
    assert "its hash does not match" in ccp("audit", "verify", rotated, damaged).out
    damaged.write_text("".join([*text, again[0].replace('"ok"', '"no"')]))
    assert "out of sequence" in ccp("audit", "verify", rotated, damaged).out, "another row under the same number"

    sql(url, "update audit_head set number = 4 where lane = 2")
    sql(url, "delete from audit where lane = 2 and number = 5")
    done = ccp("audit", "verify", "--against", rotated, "--against", file, *config)
    assert done.status == 1
    assert "lane 2, row" in done.out
