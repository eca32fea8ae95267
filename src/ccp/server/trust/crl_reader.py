"""Parser of CRLs: short ones in a thread, long ones in a separate process.

A thread is not enough for a long CRL: `cryptography` holds the interpreter lock while it parses the CRL and checks its
signature, some 30 ms per megabyte, and every request of the worker would wait. The remote server chooses the length.
The process costs half a second of another core; it parses one CRL and exits.

The process reads one line of JSON and the CRL from standard input. It writes one line of JSON, then an entry of 28
bytes for each revoked certificate: serial number (20 bytes, big endian, signed) and time (8 bytes, seconds since 1970).
"""

from __future__ import annotations

import base64
import struct
import subprocess
import sys
from collections.abc import Collection
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

import orjson

from ccp.errors import Unavailable
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.x509.certificates import Certificate
from ccp.x509.crl_ocsp import read_crl
from ccp.x509.revocation_evidence import EvidenceError, RevocationList

SHORT_CRL: Final = 65_536
"""Bytes of a CRL that is parsed in a thread: 2 ms under the interpreter lock."""
_TIMEOUT: Final = 60.0
_MAX_PROCESSES: Final = 2
_ENTRY: Final = struct.Struct(">20sq")


class CRLReader:
    """Parses CRLs without blocking the event loop. Belongs to one event loop."""

    def __init__(self) -> None:
        self._short = BlockingCalls("reading of a CRL", max_threads=4, timeout=10.0)
        self._long = BlockingCalls("reading of a long CRL", max_threads=_MAX_PROCESSES, timeout=2 * _TIMEOUT)

    async def read(
        self,
        crl: bytes,
        issuer: Certificate,
        now: datetime,
        last_number: int | None = None,
        url: str | None = None,
        names: Collection[str] = (),
    ) -> RevocationList:
        """Like `read_crl`, without blocking the event loop. Raises EvidenceError."""
        calls, read = (self._short, read_crl) if len(crl) <= SHORT_CRL else (self._long, _read_in_process)
        try:
            return await calls.run(read, crl, issuer, now, last_number, url, names)
        except EvidenceError:
            raise
        except Unavailable as exc:
            raise EvidenceError("The CRL could not be read now.") from exc


def _read_in_process(
    crl: bytes, issuer: Certificate, now: datetime, last_number: int | None, url: str | None, names: Collection[str]
) -> RevocationList:
    """Parse a CRL in a new process. Blocking. Raises EvidenceError."""
    job = {
        "issuer": base64.b64encode(issuer.der).decode(),
        "now": now.isoformat(),
        "last_number": None if last_number is None else str(last_number),
        "url": url,
        "names": list(names),
    }
    command = [sys.executable, "-P", "-m", __name__]
    try:
        done = subprocess.run(  # noqa: S603  this interpreter and module
            command, input=orjson.dumps(job) + b"\n" + crl, capture_output=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise EvidenceError("The CRL could not be read now.") from exc
    line, _, entries = done.stdout.partition(b"\n")
    if done.returncode != 0 or not line:
        raise EvidenceError("The CRL could not be read now.") from RuntimeError(
            done.stderr[-2_000:].decode(errors="replace")
        )
    result: dict[str, Any] = orjson.loads(line)
    if "error" in result:
        raise EvidenceError(*result["error"])
    revoked = {
        int.from_bytes(serial, "big", signed=True): datetime.fromtimestamp(time, UTC)
        for serial, time in _ENTRY.iter_unpack(entries)
    }
    return RevocationList(
        result["issuer"],
        None if result["number"] is None else int(result["number"]),
        datetime.fromisoformat(result["this_update"]),
        datetime.fromisoformat(result["next_update"]),
        MappingProxyType(revoked),
    )


def _main() -> None:
    line, _, crl = sys.stdin.buffer.read().partition(b"\n")
    job: dict[str, Any] = orjson.loads(line)
    number = job["last_number"]
    try:
        read = read_crl(
            crl,
            Certificate.load(base64.b64decode(job["issuer"])),
            datetime.fromisoformat(job["now"]),
            None if number is None else int(number),
            job["url"],
            job["names"],
        )
        entries = b"".join(
            _ENTRY.pack(serial.to_bytes(20, "big", signed=True), int(time.timestamp()))
            for serial, time in read.revoked.items()
        )
    except EvidenceError as exc:
        sys.stdout.buffer.write(orjson.dumps({"error": exc.messages}) + b"\n")
        return
    except (OverflowError, struct.error):  # No serial number of RFC 5280 is longer than 20 bytes.
        sys.stdout.buffer.write(orjson.dumps({"error": ("The CRL cannot be read.",)}) + b"\n")
        return
    result = {
        "issuer": read.issuer,
        "number": None if read.number is None else str(read.number),
        "this_update": read.this_update.isoformat(),
        "next_update": read.next_update.isoformat(),
    }
    sys.stdout.buffer.write(orjson.dumps(result) + b"\n" + entries)


if __name__ == "__main__":
    _main()
