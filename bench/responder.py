"""Effect of a dead OCSP responder on vehicles: POST under load, while the responder runs and after it is killed.

    python bench/responder.py [--seconds 4] [--connections 8]

Every certificate of the cars and contracts names the responder. The p99 with the responder killed is given as a ratio
to the p99 with it, in the same run; the aim is at most 1.5.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import dataclasses
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp
from rich.table import Table

from ccp import exi
from ccp.exi import iso2
from ccp.ids import EMAID, PCID
from ccp.schemas.opnc import SignedContractData
from ccp.server import settings
from ccp.server.app import build_services
from ccp.server.domain.parties import Caller
from ccp.server.sandbox import setup
from ccp.server.storage.engine import schema
from ccp.testing.partners import Car
from ccp.testing.pki import PKI, Credential, StatusURLs
from ccp.x509.certificates import Certificate
from request import console, free_port, load, message_of, serving, token_of

CARS = 40
Issued = Mapping[int, Credential]
"""Who issued a certificate, by its serial number."""


def respond(port: int, issued: Issued) -> None:
    """An OCSP responder that answers "good" for every issued certificate."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = ocsp.load_der_ocsp_request(self.rfile.read(int(self.headers["Content-Length"])))
            issuer = issued[asked.serial_number]
            now = datetime.now(UTC).replace(microsecond=0)
            body = (
                ocsp.OCSPResponseBuilder()
                .add_response_by_hash(
                    issuer_name_hash=asked.issuer_name_hash,
                    issuer_key_hash=asked.issuer_key_hash,
                    serial_number=asked.serial_number,
                    algorithm=hashes.SHA1(),
                    cert_status=ocsp.OCSPCertStatus.GOOD,
                    this_update=now,
                    next_update=now + timedelta(hours=1),
                    revocation_time=None,
                    revocation_reason=None,
                )
                .responder_id(ocsp.OCSPResponderEncoding.HASH, issuer.certificate.x509)
                .sign(issuer.key, hashes.SHA256())
                .public_bytes(serialization.Encoding.DER)
            )
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


async def furnish(config: settings.Settings, world: setup.World, bodies: list[dict[str, str]], at: datetime) -> None:
    """Publish the contracts with all checks, including OCSP."""
    built = build_services(config)
    await built.open()
    try:
        await setup.register(built.store, world, at)
        await built.trust.refresh()
        for body in bodies:
            data = SignedContractData.model_validate(body)
            await built.pool.publish(
                Caller(world.member("Example CPS").party),
                emaid=data.emaid,
                pcid=data.pcid,
                namespace=data.xsdMsgDefNamespace,
                message=data.certificateInstallationRes,
                root=None,
                metadata=None,
                now=at,
            )
    finally:
        await built.close()


def main() -> None:
    options = argparse.ArgumentParser(description="Whether a car waits when an OCSP responder dies.")
    options.add_argument("--seconds", type=float, default=4.0, help="duration of each load")
    options.add_argument("--connections", type=int, default=8)
    given = options.parse_args()
    at = datetime.now(UTC)
    port, ocsp_port = free_port(), free_port()
    addresses = StatusURLs(ocsp=f"http://127.0.0.1:{ocsp_port}/")
    pki = PKI.generate(at, status_urls=lambda name: addresses)
    world = dataclasses.replace(setup.build_world(at), pkis={"iso2": pki})
    cars = [Car.generate(pki, PCID.parse(f"WEX0BENCH{number:08d}"), at) for number in range(CARS)]
    bodies = [setup.publish_body(pki, EMAID.parse(f"DEEXAO{n:08d}"), car, at) for n, car in enumerate(cars)]
    issued = {car.provisioning.certificate.serial_number: pki.oem_sub2 for car in cars}
    for body in bodies:
        message = exi.decode(base64.b64decode(body["certificateInstallationRes"]))
        assert isinstance(message, iso2.V2G_Message)
        assert isinstance(message.Body, iso2.CertificateInstallationRes)
        contract = Certificate.load(message.Body.ContractSignatureCertChain.Certificate)
        issued[contract.serial_number] = pki.emsp_sub2
    for below, above in (
        (pki.cps, pki.cps_sub2), (pki.cps_sub2, pki.cps_sub1), (pki.cps_sub1, pki.v2g_root),
        (pki.emsp_sub2, pki.emsp_sub1), (pki.emsp_sub1, pki.emsp_root),
        (pki.oem_sub2, pki.oem_sub1), (pki.oem_sub1, pki.oem_root),
    ):  # fmt: skip
        issued[below.certificate.serial_number] = above
    with tempfile.TemporaryDirectory(prefix="ccp-bench-") as name:
        folder, base_url = Path(name), f"http://127.0.0.1:{port}"
        (folder / "ccp.toml").write_text(
            f'port = {port}\nbase_url = "{base_url}"\ndatabase = "sqlite:///ccp.db"\n'
            'egress_allow_networks = ["127.0.0.0/8"]\n'
        )
        config = settings.load(folder / "ccp.toml")
        schema.upgrade(config.database)
        responder = multiprocessing.get_context("fork").Process(target=respond, args=(ocsp_port, issued), daemon=True)
        responder.start()
        time.sleep(0.5)
        asyncio.run(furnish(config, world, bodies, at))
        with serving(folder / "ccp.toml"):
            cpo = world.member("Example CPO")
            token = token_of(f"{base_url}/oauth/token", cpo.party.client_id, cpo.secret)
            path = "/opnc/v1/ccp/signedcontractdata"
            requests = [
                message_of("POST", path, token, json.dumps(setup.request_body(car, at)).encode()) for car in cars
            ]
            table = Table("POST, 40 cars", "requests/s", "p50 ms", "p99 ms", "p99 ratio", box=None, header_style="bold")
            asyncio.run(load(port, requests, 1.0, given.connections))
            first = None
            for what in ("responder there", "responder killed midway", "responder gone"):
                killer = threading.Timer(given.seconds / 4, responder.kill)
                if what == "responder killed midway":
                    killer.start()
                rate, latencies = asyncio.run(load(port, requests, given.seconds, given.connections))
                killer.cancel()
                p50, p99 = latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]
                first = first or p99
                table.add_row(what, f"{rate:.0f}", f"{p50:.2f}", f"{p99:.2f}", f"{p99 / first:.2f}")
            console.print(table)
        responder.kill()


if __name__ == "__main__":
    main()
