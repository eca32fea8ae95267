"""The cost of a request: its parts in this process, then a real pool under load on loopback.

    python bench/request.py [--seconds 3] [--connections 16]

Times depend on the machine. Ratios to the unavoidable parts (reading the certificate and its key, one P-256
verification, one lookup), measured in the same run, are better comparable between machines.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console
from rich.table import Table

from ccp import exi
from ccp import verify as installation
from ccp.ids import Namespace
from ccp.server import settings
from ccp.server.app import build_services
from ccp.server.domain.parties import Caller, Party, PartyRole
from ccp.server.pool.operations import Pool
from ccp.server.sandbox.setup import create
from ccp.server.storage.queries import contracts as queries
from ccp.x509.certificates import Certificate
from ccp.x509.revocation_policy import NoRevocationCheck
from rig.processes import environment

console = Console(width=110)


def best(work: Callable[[], object], *, rounds: int = 7, seconds: float = 0.05) -> float:
    """Microseconds of one call: the fastest of some rounds."""
    work()
    began = time.perf_counter()
    work()
    calls = max(1, int(seconds / max(time.perf_counter() - began, 1e-7)))
    fastest = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            work()
        fastest = min(fastest, (time.perf_counter() - began) / calls)
    return fastest * 1e6


async def parts(folder: Path) -> None:
    """The cost of each part of a POST, and of a complete one without HTTP."""
    config = settings.load(folder / "ccp.toml")
    built = build_services(config)
    await built.open()
    store, trust, pool = built.store, built.trust, built.pool
    caller = Party("bench", "bench", frozenset({PartyRole.CPO, PartyRole.CPS}), all_providers=True)
    table = Table("part", "ISO 15118-2 µs", "ISO 15118-20 µs", "× unavoidable (-2)", box=None, header_style="bold")
    columns: list[dict[str, float]] = []
    for edition in ("iso2", "iso20"):
        body = json.loads(next(iter(sorted((folder / "samples" / edition).glob("request_*")))).read_text())
        publish = json.loads(next(iter(sorted((folder / "samples" / edition).glob("publish_*")))).read_text())
        columns.append(await _parts_of(pool, store, trust, caller, body, publish))
    unavoidable = columns[0]["unavoidable: certificate, key, ECDSA, lookup"]
    for name, cost in columns[0].items():
        table.add_row(name, f"{cost:.0f}", f"{columns[1][name]:.0f}", f"{cost / unavoidable:.2f}")
    console.print(table)
    await built.close()


async def _parts_of(pool, store, trust, caller, body, publish) -> dict[str, float]:  # type: ignore[no-untyped-def]
    namespace = Namespace(body["xsdMsgDefNamespace"])
    message = body["certificateInstallationReq"]
    request_data = base64.b64decode(message)
    response = base64.b64decode(publish["certificateInstallationRes"])
    now = datetime.now(UTC)
    request = installation.read_request(request_data, namespace)
    certificate = Certificate.load(request.certificate)
    pcid = installation.pcid_of(certificate)
    signature = request.parsed.message.Header.Signature.SignatureValue.value
    signed = exi.signed_info_fragment(request.parsed)
    stored = await store.read(queries.by_vehicle(pcid))
    contract = next(c for c in stored if c.namespace is namespace)

    def raw() -> None:
        """The part that no implementation can avoid: load the key and verify one signature."""
        key = x509.load_der_x509_certificate(request.certificate).public_key()
        if isinstance(key, ec.EllipticCurvePublicKey):
            half = len(signature) // 2
            r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
            algorithm = hashes.SHA256() if half == 32 else hashes.SHA512()
            key.verify(encode_dss(r, s), signed, ec.ECDSA(algorithm))

    async def timed(work, count: int) -> float:  # type: ignore[no-untyped-def]
        fastest = float("inf")
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(count):
                await work()
            fastest = min(fastest, (time.perf_counter() - began) / count)
        return fastest * 1e6

    lookup = await timed(lambda: store.read(queries.by_vehicle(pcid)), 500)
    verify = {"anchors": trust.anchors, "revocation": NoRevocationCheck(), "now": now}
    read = installation.read_response(response, namespace)
    return {
        "read the request (EXI)": best(lambda: installation.read_request(request_data, namespace)),
        "verify the vehicle (signature, chain)": best(lambda: installation.check_request(request, **verify)),
        "look the contracts up (SQLite)": lookup,
        "answer (splice)": best(lambda: installation.with_session(contract, request.session_id, now, 0)),
        "whole POST without HTTP": await timed(lambda: deliver(pool, caller, namespace, message), 200),
        "unavoidable: certificate, key, ECDSA, lookup": best(raw) + lookup,
        "verify a response (PUT, issuers cached)": best(
            lambda: installation.check_response(read, emaid=None, root=None, **verify)
        ),
        "whole PUT without HTTP, one after another": await timed(lambda: put(pool, caller, publish), 20),
    }


def encode_dss(r: int, s: int) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    return encode_dss_signature(r, s)


async def deliver(pool: Pool, caller: Party, namespace: Namespace, message: str) -> None:
    outcome = await pool.deliver(Caller(caller), namespace, message, broadcast=False, now=datetime.now(UTC))
    assert isinstance(outcome, list), outcome


async def put(pool: Pool, caller: Party, publish: dict[str, str]) -> None:
    from ccp.schemas.opnc import SignedContractData

    data = SignedContractData.model_validate(publish)
    await pool.publish(
        Caller(caller),
        emaid=data.emaid,
        pcid=data.pcid,
        namespace=data.xsdMsgDefNamespace,
        message=data.certificateInstallationRes,
        root=None,
        metadata=None,
        now=datetime.now(UTC),
    )


async def load(port: int, requests: Sequence[bytes], seconds: float, connections: int) -> tuple[float, list[float]]:
    """Requests per second and sorted latencies in ms, closed loop over keep-alive connections."""
    latencies: list[float] = []
    turn = itertools.cycle(requests)
    until = time.perf_counter() + seconds

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while time.perf_counter() < until:
                began = time.perf_counter()
                writer.write(next(turn))
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 "), head[:200]
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                latencies.append((time.perf_counter() - began) * 1e3)
        finally:
            writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(connections)))
    return len(latencies) / (time.perf_counter() - began), sorted(latencies)


def served(folder: Path, port: int, seconds: float, connections: int) -> None:
    """A real `ccp serve` under load: POST, and the health check for comparison."""
    credentials = json.loads((folder / "credentials.json").read_text())
    cpo = next(party for party in credentials["parties"] if party["role"] == "cpo")
    with serving(folder / "ccp.toml"):
        token = token_of(credentials["token_url"], cpo["client_id"], cpo["client_secret"])
        columns = ("one worker under load", "requests/s", "p50 ms", "p95 ms", "p99 ms")
        table = Table(*columns, box=None, header_style="bold")
        body2 = next(iter(sorted((folder / "samples" / "iso2").glob("request_*")))).read_bytes()
        body20 = next(iter(sorted((folder / "samples" / "iso20").glob("request_*")))).read_bytes()
        path = "/opnc/v1/ccp/signedcontractdata"
        for name, message in (
            ("a constant (/health)", message_of("GET", "/health", token, b"")),
            ("POST ISO 15118-2", message_of("POST", path, token, body2)),
            ("POST ISO 15118-20 (P-521)", message_of("POST", path, token, body20)),
        ):
            rate, latencies = asyncio.run(load(port, [message], seconds, connections))
            p50, p95, p99 = (latencies[int(len(latencies) * share)] for share in (0.50, 0.95, 0.99))
            table.add_row(name, f"{rate:.0f}", f"{p50:.2f}", f"{p95:.2f}", f"{p99:.2f}")
        console.print(table)


@contextmanager
def serving(config: Path) -> Iterator[None]:
    """Run a real `ccp serve` during the context."""
    server = subprocess.Popen(
        [sys.executable, "-c", "from ccp.cli import main; main()", "serve", "--config", str(config)],
        env=environment(CCP_LOG_LEVEL="error", CCP_RATE_LIMIT_PER_PARTY="0"),  # One party asks for all of it.
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


def message_of(method: str, path: str, token: str, body: bytes) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def token_of(url: str, client_id: str, secret: str) -> str:
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(url, urllib.parse.urlencode(form).encode(), timeout=5) as answer:
                token: str = json.load(answer)["access_token"]
                return token
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    options = argparse.ArgumentParser(description="What a request costs.")
    options.add_argument("--seconds", type=float, default=3.0, help="duration of each load")
    options.add_argument("--connections", type=int, default=16)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="ccp-bench-") as name:
        folder, port = Path(name) / "sandbox", free_port()
        create(folder, f"http://127.0.0.1:{port}", datetime.now(UTC), store_samples=True)
        console.print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}")
        asyncio.run(parts(folder))
        served(folder, port, given.seconds, given.connections)


if __name__ == "__main__":
    main()
