"""The unavoidable parts of a POST, called directly in the libraries: certificate and key, verification, lookup.

As a program it is the bare loop: all parts in turn without HTTP, for a given time.

    python bench/rig/parts.py FILE DATABASE BEGIN SECONDS       # BEGIN: of the monotonic clock
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ccp import exi
from ccp import verify as installation
from ccp.ids import Namespace
from ccp.server.storage.engine.schema import sqlite_file
from ccp.server.storage.queries import contracts as queries

SHA256 = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class Item:
    """Of one vehicle: certificate (DER), signature (DER) over these bytes, PCID."""

    certificate: bytes
    signature: bytes
    signed: bytes
    pcid: str


def items_of(requests: Iterable[tuple[bytes, str]]) -> list[Item]:
    """requests: ISO 15118-2 messages (EXI) with the PCIDs of their vehicles."""
    found = []
    for data, pcid in requests:
        request = installation.read_request(data, Namespace.ISO2)
        raw = request.parsed.message.Header.Signature.SignatureValue.value  # type: ignore[union-attr]
        half = len(raw) // 2
        signature = encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
        found.append(Item(request.certificate, signature, exi.signed_info_fragment(request.parsed), pcid))
    return found


def save(items: Iterable[Item], file: Path) -> None:
    rows = [[item.certificate.hex(), item.signature.hex(), item.signed.hex(), item.pcid] for item in items]
    file.write_text(json.dumps(rows))


def _load(file: Path) -> list[Item]:
    return [Item(*map(bytes.fromhex, row[:3]), row[3]) for row in json.loads(file.read_text())]


def statement(pcid: Any) -> str:
    """The pool's own query for the contracts of a vehicle."""
    text, _ = next(iter(queries.by_vehicle(pcid)))
    return text


def _connection(database: str) -> sqlite3.Connection:
    connection = sqlite3.connect(sqlite_file(database), isolation_level=None)
    connection.execute("pragma query_only = on")
    return connection


def measured(items: list[Item], database: str | None, seconds: float = 0.4) -> dict[str, float]:
    """CPU time of each part, in microseconds. database: SQLite; None omits the lookup."""
    certificates = [item.certificate for item in items]
    keys = [x509.load_der_x509_certificate(der).public_key() for der in certificates]
    signed = [(key, item.signature, item.signed) for key, item in zip(keys, items, strict=True)]

    def parse(der: bytes) -> None:
        x509.load_der_x509_certificate(der).public_key()

    def verify(given: tuple[Any, bytes, bytes]) -> None:
        given[0].verify(given[1], given[2], SHA256)

    found = {
        "ECDSA verification, P-256": _cpu(verify, signed, seconds),
        "certificate with its key": _cpu(parse, certificates, seconds),
    }
    if database is not None:
        connection = _connection(database)
        text = statement(items[0].pcid).replace("$", "?")

        def look(pcid: str) -> None:
            if not connection.execute(text, (pcid,)).fetchall():
                raise RuntimeError("A contract is missing.")

        found["prepared lookup, SQLite"] = _cpu(look, [item.pcid for item in items], seconds)
        connection.close()
    return found


def _cpu(work: Callable[[Any], None], inputs: list[Any], seconds: float) -> float:
    calls = 0
    until = time.perf_counter() + seconds
    began = time.thread_time()
    while time.perf_counter() < until:
        for each in inputs[:100]:
            work(each)
        inputs = inputs[100:] + inputs[:100]
        calls += min(100, len(inputs))
    return (time.thread_time() - began) / calls * 1e6


async def fetched(items: list[Item], database: str, seconds: float = 0.4) -> float:
    """CPU time of one prepared fetch with asyncpg, in microseconds."""
    connection = await asyncpg.connect(database)
    try:
        prepared = await connection.prepare(statement(items[0].pcid))
        calls = 0
        until = time.perf_counter() + seconds
        began = time.thread_time()
        while time.perf_counter() < until:
            for item in items[:100]:
                if not await prepared.fetch(item.pcid):
                    raise RuntimeError("A contract is missing.")
            calls += min(100, len(items))
        return (time.thread_time() - began) / calls * 1e6
    finally:
        await connection.close()


def loops(file: Path, database: str, processes: int, seconds: float) -> tuple[float, float]:
    """Rounds per second of several concurrent bare loops, and CPU seconds per round."""
    begin = time.monotonic() + 1.5
    command = [sys.executable, __file__, str(file), database, str(begin), str(seconds)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    results = [json.loads(process.communicate(timeout=seconds + 30)[0]) for process in started]
    rounds = sum(each["rounds"] for each in results)
    return sum(each["rounds"] / each["seconds"] for each in results), sum(each["cpu"] for each in results) / rounds


def main() -> None:
    file, database, begin, seconds = sys.argv[1:]
    items = _load(Path(file))
    connection = _connection(database)
    text = statement(items[0].pcid).replace("$", "?")
    rounds = 0
    time.sleep(max(0.0, float(begin) - time.monotonic()))
    started, used = time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - started) < float(seconds):
        for item in items[:50]:
            key: Any = x509.load_der_x509_certificate(item.certificate).public_key()
            key.verify(item.signature, item.signed, SHA256)
            connection.execute(text, (item.pcid,)).fetchall()
        items = items[50:] + items[:50]
        rounds += 50
    print(json.dumps({"rounds": rounds, "seconds": elapsed, "cpu": time.process_time() - used}))


if __name__ == "__main__":
    main()
