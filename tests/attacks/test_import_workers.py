"""Failures between an import and its workers end the import with an error; it never hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ccp.testing.pki import PKI
from tests.cli.run import COMMAND, environment
from tests.server.bulk.fleet import body, database, jsonl
from tests.server.bulk.imports import users_of

WORKER = "A worker process of the import has ended; the log says why, or the system's log where it was killed."
EXCHANGE = "The exchange with a worker process of the import failed; the log says why."

# Python runs this at the start of each process, so that the defect is in the worker too.
DEFECT = """
import os, sys
if os.environ.get("CCP_DATABASE"):
    from ccp.server.bulk import import_worker as work

    def defect(*args):
        raise RuntimeError("an injected defect")

    async def check_batch(pool, caller, max_bytes, batch, channel):
        {what}

    work._check_batch = check_batch
    work.pairs_of = defect
"""
DEFECTS = {
    "a chunk cannot be checked": ("defect()", WORKER),
    "a worker exits": ("os._exit(0)", WORKER),
    "a worker answers what it was not asked": ("await channel.send(work.BatchResult(99, ()))", EXCHANGE),
    "an answer cannot be sent": ("await channel.send(work.BatchResult(batch.number, (lambda: 1,)))", WORKER),
    "an answer cannot be read": ("channel._writer.write(bytes(3) + bytes([1, 1]))", EXCHANGE),
    "evidence cannot be fetched": ("await channel.send(work.EvidenceRequest(0, batch.now, ()))", EXCHANGE),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_import_ends_on_a_defect_in_a_worker_or_its_channel(tmp_path: Path, pkis: dict[str, PKI], name: str) -> None:
    what, sentence = DEFECTS[name]
    empty = database(tmp_path / "pool", pkis)
    (tmp_path / "sitecustomize.py").write_text(DEFECT.format(what=what))
    file = tmp_path / "fleet.jsonl"
    file.write_bytes(jsonl(*(body(pkis["iso2"]) for _ in range(3))))
    done = subprocess.run(
        [*COMMAND, "import", str(file), "--workers", "1"],
        env=environment(**empty.env, PYTHONPATH=str(tmp_path)),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ccp: {sentence}"
    assert ("an injected defect" in done.stderr + done.stdout) == (
        name in ("a chunk cannot be checked", "evidence cannot be fetched")
    )
    assert not empty.emaids()


@pytest.mark.parametrize("interrupted", [False, True])
def test_import_waiting_for_input_ends_on_a_signal_or_dead_worker(
    tmp_path: Path, pkis: dict[str, PKI], interrupted: bool
) -> None:
    empty = database(tmp_path / "pool", pkis)
    with subprocess.Popen(
        [*COMMAND, "import", "-", "--workers", "1"], env=environment(**empty.env),
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not (workers := set(users_of(empty.folder)) - {process.pid, os.getpid()}):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.kill(*((process.pid, signal.SIGINT) if interrupted else (workers.pop(), signal.SIGKILL)))
            assert process.wait(30) == (130 if interrupted else 1)  # Its input is still open.
            assert process.stderr is not None
            assert process.stderr.read() == ("" if interrupted else f"ccp: {WORKER}\n")
        finally:
            process.kill()
