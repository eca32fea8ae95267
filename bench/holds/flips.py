"""Single-bit flips in messages, certificates, OCSP responses and CRLs over real HTTP: no 500, no wrong acceptance."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import re
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from cryptography.x509 import ocsp
from typer.testing import CliRunner

sys.path.insert(2, str(Path(__file__).parents[2]))

from tests.x509.rich import rich_pki

from ccp import exi
from ccp.cli.root import app as commands
from ccp.ids import EMAID, PCID
from ccp.schemas.common import encode_base64
from ccp.server import logging, settings
from ccp.server.app import build_services
from ccp.server.domain.parties import PartyRole
from ccp.server.sandbox import setup
from ccp.server.storage.engine import schema
from ccp.testing.partners import Car, issue_contract, sign_contract
from ccp.testing.pki import OCSP_RESPONDER, PKI, Credential, StatusURLs
from ccp.testing.revocation import sign_crl, sign_ocsp_response
from ccp.verify.trust_folder import is_self_issued
from ccp.x509.certificates import Certificate
from request import token_of
from rig import processes, world
from rig.hostility import flipped
from rig.report import Row
from rig.world import PATH

AIMS: Final = (
    "One bit of a message, certificate, OCSP response or CRL is flipped, every bit in turn, for chains of four "
    "profiles: P-256, P-521 and Ed448, names of many attribute types, alternative names, policies, status "
    "addresses. The result is published (as a dry run and for real), sent as a request, added as a trust anchor, or "
    "returned by a responder. Aims: no response is a 500, and only flips outside the signed parts are accepted."
)

_TARGET: Final = PATH + "/signedcontractdata"
_THREADS: Final = 4
_SHORT: Final = 60
"""Bits of each kind and profile in the short form."""
_MISTAKES: Final = ('"outcome": "crashed"', '"outcome":"crashed"', "Traceback (most recent call last)", "panicked at")
_HOSTS: Final = 40  # Of the responder: the pool asks each host twenty times a second at most.


@dataclass(frozen=True, slots=True)
class Profile:
    name: str
    pki: PKI
    car: Car
    emaid: EMAID
    response: bytes
    request: bytes


def _profiles(at: datetime, url: str) -> list[Profile]:
    made: list[tuple[str, PKI]] = [
        ("P-256", PKI.generate(at)),
        ("P-256, rich", rich_pki(at, url=url)),
        ("P-521, rich", rich_pki(at, "P-521", full=True, url=url)),
        ("Ed448, rich", rich_pki(at, "Ed448", full=True, url=url)),
    ]
    found = []
    for number, (name, pki) in enumerate(made):
        car = Car.generate(pki, PCID.parse(f"WXA0FLIPS{number:08d}"), at)
        emaid = EMAID.parse(f"DEEXAF{number:08d}")
        bundle = issue_contract(pki, emaid, car.pcid, car.provisioning.certificate, at)
        _note(pki, car.provisioning, bundle.contract)
        found.append(Profile(name, pki, car, emaid, sign_contract(pki, bundle, at), car.request(bytes(range(8)), at)))
    return found


def _note(pki: PKI, car: Credential, contract: Credential) -> None:
    """Register every certificate below a root, and its issuer, with the responder."""
    for credential, issuer in (
        *((pki.cps, pki.cps_sub2), (pki.cps_sub2, pki.cps_sub1), (pki.cps_sub1, pki.v2g_root)),
        *((contract, pki.emsp_sub2), (pki.emsp_sub2, pki.emsp_sub1), (pki.emsp_sub1, pki.emsp_root)),
        *((car, pki.oem_sub2), (pki.oem_sub2, pki.oem_sub1), (pki.oem_sub1, pki.oem_root)),
    ):
        _ISSUED[credential.certificate.serial_number] = credential.certificate, issuer


_IDLE_SECONDS: Final = 3.0
"""After which a connection is not used again."""


class Pool:
    """A real pool and its callers. statuses: HTTP status codes, by what was flipped."""

    def __init__(self, port: int, tokens: dict[PartyRole, str]) -> None:
        self._port, self._tokens = port, tokens
        self._local = threading.local()

    def send(self, method: str, path: str, body: dict[str, Any], role: PartyRole) -> tuple[int, dict[str, Any]]:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None or time.monotonic() - self._local.used > _IDLE_SECONDS:  # The pool may have closed it.
            connection = self._local.connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        headers = {"Authorization": f"Bearer {self._tokens[role]}", "Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
        self._local.used = time.monotonic()
        return answer.status, json.loads(content) if content else {}

    def publish(self, profile: Profile, message: bytes, dry: bool) -> tuple[int, bool]:
        """The status code, and whether the message was accepted."""
        body = {
            "certificateInstallationRes": encode_base64(message),
            "emaid": profile.emaid,
            "pcid": profile.car.pcid,
            "xsdMsgDefNamespace": profile.car.namespace,
        }
        status, answer = self.send("PUT", _TARGET + ("?dryRun=true" if dry else ""), body, PartyRole.CPS)
        return status, bool(answer.get("passed")) if dry else status == 201

    def deliver(self, profile: Profile, message: bytes) -> tuple[int, bool]:
        body = {"certificateInstallationReq": encode_base64(message), "xsdMsgDefNamespace": profile.car.namespace}
        status, answer = self.send("POST", _TARGET, body, PartyRole.CPO)
        items = answer.get("signedContractDataCollection", [])
        return status, status == 200 and "metaData" not in items[0]


@dataclass(slots=True)
class Tally:
    """Outcomes of flips: status codes, accepted flips, and those that must not be accepted."""

    statuses: Counter[int]
    accepted: int = 0
    wrong: list[int] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.wrong = []


def _each_bit(
    data: bytes, short: bool, act: Callable[[bytes], tuple[int, bool]], may_pass: Callable[[bytes], bool]
) -> Tally:
    """Flip every bit (short: some, evenly spaced; an odd step covers every bit position of a byte)."""
    tally = Tally(Counter())
    step = max(1, 8 * len(data) // _SHORT) | 1 if short else 1

    def one(bit: int) -> tuple[int, tuple[int, bool]]:
        return bit, act(flipped(data, bit))

    with ThreadPoolExecutor(_THREADS) as threads:
        for bit, (status, accepted) in threads.map(one, range(0, 8 * len(data), step)):
            tally.statuses[status] += 1
            if accepted:
                tally.accepted += 1
                if not may_pass(flipped(data, bit)):
                    tally.wrong.append(bit)
    return tally


def _same_but_header(original: bytes) -> Callable[[bytes], bool]:
    """Whether two messages differ in the header only, which no signature covers."""
    wanted = _signed_parts(original)

    def same(changed: bytes) -> bool:
        return _signed_parts(changed) == wanted

    return same


def _signed_parts(message: bytes) -> object:
    read = exi.decode(message)
    body = getattr(read, "Body", None)
    if body is not None:  # ISO 15118-2
        return body, read.Header.Signature
    # In -20 what a vehicle lists and how many chains are left is not signed.
    fields = ("OEMProvisioningCertificateChain", "CPSCertificateChain", "SignedInstallationData")
    return [getattr(read, name, None) for name in fields], read.Header.Signature


def _row(what: str, tally: Tally) -> Row:
    summary = ", ".join(f"{status}: {count:,}" for status, count in sorted(tally.statuses.items()))
    bad = tally.statuses[500]
    figure = f"{bad} and {len(tally.wrong)} of {sum(tally.statuses.values()):,} ({summary}; accepted {tally.accepted})"
    return Row(what, "no 500, no wrong acceptance", figure, not bad and not tally.wrong)


def run(short: bool, folder: Path) -> Iterator[Row]:
    at = datetime.now(UTC).replace(microsecond=0)
    config, database = folder / "ccp.toml", f"sqlite:///{folder / 'ccp.db'}"
    config.write_text(
        f'base_url = "{world.BASE_URL}"\negress_allow_networks = ["127.0.0.0/8"]\nlog_level = "error"\n'
        "rate_limit_per_party = 0\nrate_limit_per_address = 0\n"
    )
    schema.upgrade(database)
    loaded = settings.load(config, database=database)
    logging.configure(loaded)
    warnings.simplefilter("ignore")
    asked = PKI.generate(at)
    members = tuple(world._member(role, "A") for role in (PartyRole.CPO, PartyRole.CPS))
    log = folder / "server.log"
    with ExitStack() as stack:
        responder = stack.enter_context(_responder(asked, at))
        profiles = _profiles(at, f"http://127.0.0.1:{responder}/rich")
        known = {profile.name: profile.pki for profile in profiles} | {"asked": asked}
        asyncio.run(_register(loaded, setup.World(known, members), at))
        server = stack.enter_context(processes.serving(config, database, 1 if short else 2, log))
        url = f"http://127.0.0.1:{server.port}/oauth/token"
        tokens = {next(iter(m.party.roles)): token_of(url, m.party.client_id, m.secret) for m in members}
        pool = Pool(server.port, tokens)
        yield from _messages(pool, profiles, short)
        yield from _evidence(pool, asked, responder, short, at)
    yield from _trust(profiles, folder, short)
    mistakes = sum(log.read_text("utf-8", "replace").count(word) for word in _MISTAKES)
    yield Row("crashes, tracebacks and panics in the log", "0", f"{mistakes}", mistakes == 0)


async def _register(loaded: settings.Settings, known: setup.World, at: datetime) -> None:
    built = build_services(loaded)
    await built.open()
    try:
        await setup.register(built.store, known, at)
    finally:
        await built.close()


def _messages(pool: Pool, profiles: Sequence[Profile], short: bool) -> Iterator[Row]:
    for profile in profiles:
        for dry in (True, False):
            assert pool.publish(profile, profile.response, dry)[1], profile.name
        assert pool.deliver(profile, profile.request)[1], profile.name
        same = _same_but_header(profile.response)
        for dry in (True, False):
            tally = _each_bit(
                profile.response, short, lambda data, p=profile, dry=dry: pool.publish(p, data, dry), same
            )
            yield _row(f"PUT{' as dry run' if dry else ''}, {profile.name}", tally)
        same = _same_but_header(profile.request)
        tally = _each_bit(profile.request, short, lambda data, p=profile: pool.deliver(p, data), same)
        yield _row(f"POST, {profile.name}", tally)


# --- Responders and lists --------------------------------------------------------------------------------------------


@contextmanager
def _responder(pki: PKI, at: datetime) -> Iterator[int]:
    """An OCSP responder that answers "good" for any certificate, with the bit flipped that the path names."""
    issuer = pki.emsp_sub2
    times = {"this_update": at - timedelta(minutes=1), "next_update": at + timedelta(hours=8)}
    signer = issuer.issue("OCSP", OCSP_RESPONDER, now=at)
    crl = sign_crl(issuer, dict.fromkeys(range(1, 4), at), **times)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            request = ocsp.load_der_ocsp_request(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            certificate, its_issuer = _ISSUED[request.serial_number]
            delegated = signer if "delegated" in self.path else None
            self._say(sign_ocsp_response(certificate, its_issuer, **times, responder=delegated))

        def do_GET(self) -> None:
            self._say(crl, 404 if self.path.endswith(".crl") else 200)  # The rich profiles' own list is not there.

        def _say(self, data: bytes, status: int = 200) -> None:
            bit = re.search(r"/b(\d+)", self.path)
            if bit is not None:
                data = flipped(data, int(bit[1]) % (8 * len(data)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # The pool hangs up on it at times.
    server.request_queue_size = 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


_ISSUED: Final[dict[int, tuple[Certificate, Credential]]] = {}
"""Certificates that the responder answers about, and their issuers, by serial number."""


def _evidence(pool: Pool, pki: PKI, port: int, short: bool, at: datetime) -> Iterator[Row]:
    car = Car.generate(pki, PCID.parse("WXA0ASKED00000001"), at)
    numbers = iter(range(10**8))

    def publish(path: str, crl: bool, number: int, dry: bool) -> tuple[int, bool]:
        url = f"http://127.0.1.{number % _HOSTS + 1}:{port}/{path}/{number}"
        named = StatusURLs(crl=url) if crl else StatusURLs(ocsp=url)
        own = replace(pki, emsp_sub2=replace(pki.emsp_sub2, status_urls=named))
        emaid = EMAID.parse(f"DEEXAA{number:08d}")
        bundle = issue_contract(own, emaid, car.pcid, car.provisioning.certificate, at)
        leaf = bundle.contract.certificate
        _ISSUED[leaf.serial_number] = leaf, pki.emsp_sub2
        profile = Profile("", own, car, emaid, b"", b"")
        return pool.publish(profile, sign_contract(own, bundle, at), dry)

    for what, path, crl, length in (
        ("OCSP response", "plain", False, 400),
        ("OCSP response with the responder's certificate", "delegated", False, 1000),
        ("CRL", "list", True, 420),
    ):
        assert publish(path, crl, next(numbers), True) == (200, True), what
        tally = Tally(Counter())

        def publish_flipped(job: tuple[int, int], path: str = path, crl: bool = crl) -> tuple[int, tuple[int, bool]]:
            return job[0], publish(f"{path}/b{job[0]}", crl, job[1], dry=bool(job[0] % 4))

        step = max(1, 8 * length // _SHORT) | 1 if short else 1
        jobs = [(bit, next(numbers)) for bit in range(0, 8 * length, step)]
        with ThreadPoolExecutor(_THREADS) as threads:
            found = threads.map(publish_flipped, jobs)
            for bit, (status, accepted) in found:
                tally.statuses[status] += 1
                if accepted:
                    tally.accepted += 1
                    tally.wrong.append(bit)
        yield _row(what, tally)


# --- Trust -----------------------------------------------------------------------------------------------------------


def _trust(profiles: Sequence[Profile], folder: Path, short: bool) -> Iterator[Row]:
    """`ccp trust add` of flipped certificates, in this process. A root is accepted only if its signature verifies."""
    config = folder / "trust.toml"
    config.write_text(f'base_url = "{world.BASE_URL}"\ndatabase = "sqlite:///{folder / "trust.db"}"\n')
    schema.upgrade(f"sqlite:///{folder / 'trust.db'}")
    runner, file = CliRunner(), folder / "flipped.der"
    for profile in profiles:
        statuses: Counter[str] = Counter()
        wrong = crashed = 0
        for certificate in (profile.pki.v2g_root.certificate, profile.pki.cps_sub2.certificate):
            bits = 8 * len(certificate.der)
            for bit in range(0, bits, max(1, bits // _SHORT) | 1 if short else 1):
                for pem in (False, True) if bit % 8 == 0 else (False,):
                    data = flipped(certificate.der, bit)
                    if pem:
                        text = base64.encodebytes(data)
                        data = b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"
                    file.write_bytes(data)
                    done = runner.invoke(
                        commands, ["trust", "add", str(file), "--role", "v2g", "--config", str(config)]
                    )
                    failure = done.exception
                    expected = (
                        failure is None or isinstance(failure, SystemExit) or type(failure).__module__ == "ccp.errors"
                    )
                    crashed += not expected
                    added = "added" in done.output
                    statuses["added" if added else "refused"] += 1
                    wrong += (
                        added
                        and certificate is profile.pki.v2g_root.certificate
                        and not _holds(flipped(certificate.der, bit))
                    )
        summary = ", ".join(f"{name} {count:,}" for name, count in sorted(statuses.items()))
        yield Row(
            f"trust add, root and sub-CA, {profile.name}",
            "no crash, no root with an invalid signature",
            f"{crashed} and {wrong} of {sum(statuses.values()):,} ({summary})",
            not crashed and not wrong,
        )


def _holds(data: bytes) -> bool:
    """Whether the certificate is an intermediate now, or a root whose own signature verifies."""
    certificate = Certificate.load(data)
    return not is_self_issued(certificate) or certificate.self_signature_error is None
