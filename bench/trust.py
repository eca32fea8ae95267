"""The cost of certificate chains and revocation status, as multiples of one raw P-256 verification.

    python bench/trust.py

Chains of a leaf and two sub-CAs are measured in four ways, one row each:

- cold: the snapshot of anchors is new and has no cached issuer. Building the snapshot, which happens when anchors
  change, is not included.
- cached: the issuers are in the snapshot's cache; the leaf is not.
- reading included: starting from the bytes of a message. Cold parses three certificates, cached one leaf; the two
  sub-CAs are recognised by their bytes. This is the cost of a request, and the aims apply to it.
- certificates read: the same without parsing, for comparison.

A PUT is measured in this process, with the revocation status in the database.
"""

from __future__ import annotations

import asyncio
import base64
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console
from rich.table import Table

from ccp import verify
from ccp.ids import EMAID, PCID, Fingerprint
from ccp.server.app import build_services
from ccp.server.domain.parties import Caller, Party, PartyRole
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.storage.engine import schema
from ccp.server.storage.queries import contracts as contract_queries
from ccp.server.storage.queries import revocation as queries
from ccp.server.storage.queries.anchors import add_by_operator
from ccp.server.trust.anchors import trusted_certificate
from ccp.testing.partners import Car, issue_contract, namespace_of, sign_contract
from ccp.testing.pki import OCSP_RESPONDER, PKI, Credential, StatusURLs
from ccp.testing.revocation import sign_crl, sign_ocsp_response
from ccp.x509.certificates import Certificate
from ccp.x509.crl_ocsp import read_crl, read_ocsp
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import AnchorRole, Profile, Usage
from ccp.x509.revocation_evidence import CertificateRef, Evidence, RevocationList, RevocationStatus
from ccp.x509.revocation_policy import DeferredRevocation, NoRevocationCheck, check_refs
from request import best

console = Console(width=120)
AT = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)


def raw_verification() -> float:
    """One P-256 verification with a parsed key: the unit of all figures."""
    key = ec.generate_private_key(ec.SECP256R1())
    message = b"x" * 600
    signature = key.sign(message, ec.ECDSA(hashes.SHA256()))
    public, algorithm = key.public_key(), ec.ECDSA(hashes.SHA256())
    return best(lambda: public.verify(signature, message, algorithm))


_ROUNDS, _CALLS = 150, 8


def side_by_side(work: Callable[[], object]) -> tuple[float, float]:
    """Microseconds of CPU time of one call, and of one raw verification: the minimum over alternating rounds.

    The load of a machine changes from second to second; alternating rounds expose both to the same load.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    message, algorithm = b"x" * 600, ec.ECDSA(hashes.SHA256())
    signature, public = key.sign(message, algorithm), key.public_key()

    def timed_once(call: Callable[[], object], count: int) -> float:
        began = time.thread_time()
        for _ in range(count):
            call()
        return (time.thread_time() - began) / count * 1e6

    found = [
        (timed_once(work, _CALLS), timed_once(lambda: public.verify(signature, message, algorithm), 10))
        for _ in range(_ROUNDS)
    ]
    return min(cost for cost, _ in found), min(unit for _, unit in found)


def chains(pki: PKI) -> Table:
    table = Table("chain, P-256", "µs", "× one verification", "aim", box=None, header_style="bold")
    car = pki.vehicle("WEX0BENCH00000001", now=AT)
    cases = (
        ("vehicle", car, Usage.OEM_PROVISIONING),
        ("provisioning service", pki.cps, Usage.CPS),
        ("contract", pki.contract("DESIMC00000001", now=AT), Usage.CONTRACT),
    )
    for name, credential, usage in cases:
        for what, work, target in _of(pki, credential, usage):
            cost, unit = side_by_side(work)
            ratio = cost / unit
            shown = "" if target is None else f"≤ {target:g} {'ok' if ratio <= target else 'MISSED'}"
            table.add_row(f"{name}: {what}", f"{cost:.0f}", f"{ratio:.2f}", shown)
    return table


Case = tuple[str, Callable[[], object], float | None]
"""What is measured, and the ratio that is aimed at."""


def _of(pki: PKI, credential: Credential, usage: Usage) -> list[Case]:
    roots = [(AnchorRole.V2G, pki.v2g_root), (AnchorRole.EMSP, pki.emsp_root), (AnchorRole.OEM, pki.oem_root)]
    trusted = [(role, root.certificate) for role, root in roots]
    leaf_der = credential.certificate.der
    sub_ders = [one.der for one in credential.sub_cas]
    warm = TrustAnchors.build(trusted)
    unused = [TrustAnchors.build(trusted) for _ in range(2 * _ROUNDS * _CALLS)]
    asked = {"usage": usage, "now": AT, "profile": Profile.ISO2}

    def load() -> tuple[Certificate, list[Certificate]]:
        return Certificate.load(leaf_der), [Certificate.load(der) for der in sub_ders]

    def known() -> list[Certificate]:
        """The sub-CAs of a message, which are in the snapshot's cache."""
        return [warm.load_intermediate(der) for der in sub_ders]

    leaf, subs = load()
    # A certificate keeps what was read of it, so "read already" means loaded and nothing more, or everything.
    return [
        ("cold, reading included", lambda: unused.pop().verify(*load(), **asked), 7),
        ("cold, certificates read", lambda: unused.pop().verify(leaf, subs, **asked), None),
        ("cached, reading included", lambda: warm.verify(Certificate.load(leaf_der), known(), **asked), 2.5),
        ("cached, certificates read", lambda: warm.verify(leaf, subs, **asked), None),
        ("reading three certificates and nothing else", load, None),
    ]


def reading(pki: PKI, unit: float) -> Table:
    table = Table("evidence, P-256", "µs", "× one verification", box=None, header_style="bold")
    issuer, leaf = pki.emsp_sub2, pki.contract("DESIMC00000001", now=AT).certificate
    times = {"this_update": AT, "next_update": AT + HOUR}
    direct = sign_ocsp_response(leaf, issuer, **times)
    delegated = sign_ocsp_response(leaf, issuer, responder=issuer.issue("OCSP", OCSP_RESPONDER, now=AT), **times)
    for name, data in (("OCSP response of the issuer", direct), ("OCSP response, delegated", delegated)):
        cost = best(lambda o=data: read_ocsp(o, leaf, issuer.certificate, AT, ""))  # type: ignore[misc]
        table.add_row(name, f"{cost:.0f}", f"{cost / unit:.2f}")
    for count in (1_000, 20_000):
        data = sign_crl(issuer, dict.fromkeys(range(1, count + 1), AT), **times)
        cost = best(lambda o=data: read_crl(o, issuer.certificate, AT), rounds=3)  # type: ignore[misc]
        table.add_row(f"CRL with {count} entries, {len(data) >> 10} KiB", f"{cost:.0f}", f"{cost / unit:.0f}")
    return table


async def stored(pki: PKI, unit: float) -> Table:
    """Revocation status in the database, and its cost for a PUT and a delivery."""
    table = Table("store (SQLite) and requests", "µs", "× one verification", box=None, header_style="bold")

    def row(name: str, cost: float) -> None:
        table.add_row(name, f"{cost:.0f}", f"{cost / unit:.2f}")

    with tempfile.TemporaryDirectory(prefix="ccp-bench-") as folder:
        settings = Settings(database=f"sqlite:///{Path(folder) / 'ccp.db'}", log_level="error")
        schema.upgrade(settings.database)
        built = build_services(settings, lambda: AT)
        store, service = built.store, built.revocation
        await store.open()
        try:
            issuer = pki.emsp_sub2.certificate
            began = time.perf_counter()
            revoked = RevocationList(issuer.issuer_key_id, 1, AT, AT + HOUR, dict.fromkeys(range(1, 100_001), AT))
            await load(store, revoked, issuer)
            row("load a CRL with 100,000 entries, first time", (time.perf_counter() - began) * 1e6)
            began = time.perf_counter()
            await load(store, replace(revoked, number=2), issuer)
            row("load it again, nothing new", (time.perf_counter() - began) * 1e6)

            car = Car.generate(pki, PCID.parse("WEX0BENCH00000002"), AT)
            emaid = EMAID.parse("DESIMC00000002")
            data = sign_contract(pki, issue_contract(pki, emaid, car.pcid, car.provisioning.certificate, AT), AT)
            anchors, namespace = pki.anchors(), namespace_of(pki)
            root = Fingerprint(pki.v2g_root.certificate.fingerprint)
            later = DeferredRevocation()

            def verified(revocation: NoRevocationCheck | DeferredRevocation) -> verify.VerifiedInstallationResponse:
                return verify.check_response(
                    verify.read_response(data, namespace),
                    emaid=emaid,
                    root=root,
                    anchors=anchors,
                    revocation=revocation,
                    now=AT,
                )

            verified(later)
            for chain in later.chains:
                for certificate, above in zip(chain.certificates, chain.certificates[1:], strict=False):
                    good = Evidence(
                        above.issuer_key_id,
                        certificate.serial_number,
                        RevocationStatus.GOOD,
                        AT,
                        AT + HOUR,
                        None,
                        "OCSP bench",
                    )
                    await store.write(queries.store_evidence(good))
            keys: tuple[CertificateRef, ...] = (await service.ensure_good(later.chains, AT)).keys
            for role, root_ca in ((AnchorRole.V2G, pki.v2g_root), (AnchorRole.EMSP, pki.emsp_root)):
                await store.write(add_by_operator(trusted_certificate(root_ca.certificate, role, "bench", AT)))
            await built.trust.refresh()
            caller = Caller(Party("bench", "bench", frozenset({PartyRole.CPS}), all_providers=True))
            message = base64.b64encode(data).decode()

            async def publish() -> None:
                arguments = {"emaid": emaid, "pcid": car.pcid, "namespace": namespace, "root": root, "metadata": None}
                await built.pool.publish(caller, message=message, now=AT, **arguments)

            await publish()
            read = await timed(lambda: store.read(queries.load(keys, service.rules)), 300)
            row("look up the evidence of both chains (6 certificates)", read)
            known = await store.read(queries.load(keys, service.rules))
            judged = best(lambda: check_refs(keys, known, service.rules, AT))
            row("judge it for a delivery", judged)
            look = await timed(lambda: store.read(contract_queries.by_vehicle(car.pcid)), 300)
            row("for comparison: look up a vehicle's contracts", look)

            row("read and verify a PUT, issuers cached, no revocation", best(lambda: verified(NoRevocationCheck())))
            row("processor time of a whole PUT without HTTP, evidence stored", await cpu(publish, 200))
        finally:
            await built.close()
    return table


async def load(store: Store, revoked: RevocationList, issuer: Certificate) -> None:
    loaded = await store.write(
        queries.store_crl(
            revoked,
            url="http://crl.example",
            issuer_certificate=issuer.der,
            etag=None,
            last_modified=None,
            now=AT,
            refresh_at=AT + HOUR,
        )
    )
    assert loaded


async def timed(work, count: int) -> float:  # type: ignore[no-untyped-def]
    fastest = float("inf")
    for _ in range(7):
        began = time.perf_counter()
        for _ in range(count):
            await work()
        fastest = min(fastest, (time.perf_counter() - began) / count)
    return fastest * 1e6


async def cpu(work, count: int) -> float:  # type: ignore[no-untyped-def]
    """CPU time of all threads, in microseconds; waiting for the disk is not included."""
    fastest = float("inf")
    for _ in range(5):
        began = time.process_time()
        for _ in range(count):
            await work()
        fastest = min(fastest, (time.process_time() - began) / count)
    return fastest * 1e6


def main() -> None:
    console.print(f"Python {platform.python_version()}, {platform.machine()}")
    unit = raw_verification()
    pki = PKI.generate(AT, status_urls=lambda name: StatusURLs(ocsp="http://ocsp.example"))
    keyed = best(lambda: x509.load_der_x509_certificate(pki.cps.certificate.der).public_key())
    console.print(f"one raw P-256 verification: {unit:.0f} µs; reading a certificate and its key: {keyed:.0f} µs more")
    console.print(chains(pki))
    console.print(reading(pki, unit))
    console.print(asyncio.run(stored(pki, unit)))


if __name__ == "__main__":
    main()
