"""Twins of sub-CA certificates: the same name and key under another fingerprint, made without any key.

In ISO 15118-2 the chain of the provisioning service is not covered by the message's signature, so a publisher may send
any certificates in it that verify. (r, s) and (r, n - s) are both signatures of the same sub-CA certificate.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from ccp.server.sandbox.local_pool import loopback, running
from ccp.server.storage.queries.anchors import add
from ccp.server.trust.anchors import trusted_certificate
from ccp.testing.pki import PKI, SUB_CA2, StatusURLs, build_certificate
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import AnchorRole
from tests.scripted_server import Reply, Scripted, scripted
from tests.server.trust.revocation.made import crl, serve_crl
from tests.world import AT, Pool, new_emaid, start
from tests.x509.made import twin

UNRESOLVED = "The pool does not know yet which CA a fingerprint in its configuration means"


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with scripted() as running:
        yield running


@pytest.fixture
def pki(server: Scripted) -> PKI:
    """A PKI none of whose certificates names an address, so that the configured list is all there is."""
    return PKI.generate(AT)


def with_twin(pki: PKI) -> PKI:
    """The same PKI whose provisioning service sends the twin of its sub-CA."""
    sub2, sub1 = pki.cps.sub_cas
    return replace(pki, cps=replace(pki.cps, sub_cas=(twin(sub2), sub1)))


def put(pool: Pool, signer: PKI) -> httpx.Response:
    return pool.cps.put("/signedcontractdata", json=pool.contract(pool.car(), signer=signer).body)


@contextmanager
def watching(pki: PKI, server: Scripted, path: str, **options: Any) -> Iterator[Pool]:
    """A pool that has a CRL configured for the provisioning service's sub-CA, by fingerprint."""
    fingerprint = pki.cps_sub2.certificate.fingerprint
    with start({"iso2": pki}, crl_urls={fingerprint: server.url + path}, **options) as pool:
        yield pool


@contextmanager
def beside(pool: Pool) -> Iterator[Pool]:
    """Another server with the same settings on the same database, as after a restart."""
    with loopback() as (listening, url), running(pool.settings, listening), httpx.Client(base_url=url) as http:
        other = Pool(url, pool.settings, pool.world, pool.database, http, {"cps": pool.token("cps")})
        try:
            yield other
        finally:
            other.close()


def known_ca(pool: Pool, certificate: Certificate, role: AnchorRole = AnchorRole.V2G) -> None:
    pool.change(add(trusted_certificate(certificate, role, "test", AT)))


def test_twin_certificate_is_accepted_by_openssl(pki: PKI, tmp_path: Path) -> None:
    sub2 = pki.cps_sub2.certificate
    other = twin(sub2)
    assert other.fingerprint != sub2.fingerprint
    assert (other.canonical_issuer_key_id, other.issuer_key_id) == (sub2.canonical_issuer_key_id, sub2.issuer_key_id)
    files = {"root": pki.v2g_root.certificate, "sub1": pki.cps_sub1.certificate, "twin": other}
    for name, certificate in files.items():
        (tmp_path / f"{name}.pem").write_bytes(certificate.pem())
    command = ["openssl", "verify", "-CAfile", "root.pem", "-untrusted", "sub1.pem", "twin.pem"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout.strip() == "twin.pem: OK", done


def test_provisioning_service_that_is_revoked_is_refused_as_signed_and_under_a_twin(pki: PKI, server: Scripted) -> None:
    serve_crl(server, "/revoked.crl", crl(pki.cps_sub2, pki.cps.certificate))
    with watching(pki, server, "/revoked.crl") as pool:
        for signer in (pki, with_twin(pki), pki):
            answer = put(pool, signer)
            assert answer.status_code == 400, answer.text
            assert "was revoked at" in answer.text
        assert pool.sql("select count(*) from contract") == [(0,)]


def test_twin_certificates_are_both_unavailable_without_the_list(pki: PKI, server: Scripted) -> None:
    with watching(pki, server, "/not-there.crl") as pool:
        for signer in (pki, with_twin(pki)):
            answer = put(pool, signer)
            assert answer.status_code == 503, answer.text
            assert "cannot be established now" in answer.text


def test_twin_certificate_before_the_ca_was_ever_seen_does_not_pass(pki: PKI, server: Scripted) -> None:
    serve_crl(server, "/first.crl", crl(pki.cps_sub2, pki.cps.certificate))
    with watching(pki, server, "/first.crl") as pool:
        answer = put(pool, with_twin(pki))
        assert answer.status_code == 503, answer.text
        assert UNRESOLVED in answer.text
        dry = pool.cps.put(
            "/signedcontractdata", json=pool.contract(pool.car(), signer=with_twin(pki)).body, params={"dryRun": "true"}
        )
        assert dry.json()["passed"] is False
        assert put(pool, pki).status_code == 400
        assert put(pool, with_twin(pki)).status_code == 400


def test_ca_in_the_trust_store_is_known_before_any_message(pki: PKI, server: Scripted) -> None:
    serve_crl(server, "/known.crl", crl(pki.cps_sub2, pki.cps.certificate))
    with watching(pki, server, "/known.crl") as pool:
        known_ca(pool, pki.cps_sub2.certificate)
        answer = _until(lambda: put(pool, with_twin(pki)), 400)
        assert "was revoked at" in answer.text


def test_ca_of_a_fingerprint_outlasts_a_restart(pki: PKI, server: Scripted) -> None:
    serve_crl(server, "/kept.crl", crl(pki.cps_sub2))
    with watching(pki, server, "/kept.crl") as pool:
        assert put(pool, pki).status_code == 201
        found = pool.sql("select fingerprint, certificate from issuer_certificate")
        assert found == [(pki.cps_sub2.certificate.fingerprint, pki.cps_sub2.certificate.der)]
        serve_crl(server, "/kept.crl", crl(pki.cps_sub2, pki.cps.certificate, number=2), '"2"')
        pool.sql("delete from crl")
        with beside(pool) as again:
            assert put(again, with_twin(pki)).status_code == 400


def test_twin_certificate_of_a_sound_chain_is_a_valid_certificate(pki: PKI, server: Scripted) -> None:
    serve_crl(server, "/sound.crl", crl(pki.cps_sub2))
    with watching(pki, server, "/sound.crl") as pool:
        assert put(pool, pki).status_code == 201
        car, emaid = pool.car(), new_emaid()
        pool.publish(car, emaid, signer=with_twin(pki))
        assert pool.ask(car)[0]["emaid"] == emaid
        # What was noted with the contract names the CA, not the twin: without its list the contract waits.
        past, future = (int((AT + timedelta(days=days)).timestamp()) * 1_000_000 for days in (-1, 1))
        pool.sql("update crl set next_update = ?, refresh_at = ?", past, future)
        _until(
            lambda: pool.post(car),
            200,
            lambda: "The revocation status of the vehicle's contract is not known now" in pool.post(car).text,
        )


@pytest.mark.parametrize("algorithm", ["P-256", "P-521"])
def test_ca_certificate_that_is_renewed_is_the_same_issuer(algorithm: Any, server: Scripted) -> None:
    """Not a twin but another certificate of the CA: later validity, same name and key."""
    pki = PKI.generate(AT, algorithm=algorithm)
    renewed = _renewed(pki)
    edition = "iso2" if algorithm == "P-256" else "iso20"
    serve_crl(server, "/renewed.crl", crl(pki.cps_sub2, pki.cps.certificate))
    urls = {pki.cps_sub2.certificate.fingerprint: server.url + "/renewed.crl"}
    with start({edition: pki}, crl_urls=urls) as pool:
        for signer in (pki, replace(pki, cps=replace(pki.cps, sub_cas=(renewed, pki.cps.sub_cas[1])))):
            contract = pool.contract(pool.car(edition), signer=signer)
            answer = pool.cps.put("/signedcontractdata", json=contract.body)
            assert answer.status_code == 400, answer.text
            assert "was revoked at" in answer.text


def test_ocsp_requests_with_sha256_go_by_the_issuer_too(server: Scripted) -> None:
    addressed = PKI.generate(AT, status_urls=lambda name: StatusURLs(ocsp=server.url + "/ocsp"))
    bodies: list[bytes] = []

    def answering(request: Any) -> Any:
        bodies.append(request.body)
        return Reply(status=404)

    server.on("/ocsp", answering)
    fingerprint = addressed.cps_sub2.certificate.fingerprint
    with start({"iso2": addressed}, ocsp_sha256=(fingerprint,), egress_allow_networks=("127.0.0.0/8",)) as pool:
        known_ca(pool, addressed.cps_sub2.certificate)
        sha256 = bytes.fromhex("0609608648016503040201")
        _until(
            lambda: (bodies.clear(), put(pool, with_twin(addressed)))[1], 503, lambda: any(sha256 in b for b in bodies)
        )


# --- DELETE ---


@pytest.fixture
def pki_service() -> Iterator[Scripted]:
    with scripted() as fake:
        fake.on("/pki/revokeCertificate", Reply(200))
        yield fake


def test_contract_under_a_twin_of_an_operator_ca_is_revoked_on_delete(pki: PKI, pki_service: Scripted) -> None:
    sub2, sub1 = pki.emsp_sub2.certificate, pki.emsp_sub1.certificate
    sends_twin = replace(pki, emsp_sub2=replace(pki.emsp_sub2, certificate=twin(sub2)))
    cas = (sub2.fingerprint,)
    with start({"iso2": pki}, pki_url=pki_service.url, operator_cas=cas) as pool:
        contract = pool.publish(pool.car(), signer=sends_twin)
        answer = pool.emsp.delete(f"/signedcontractdata/{contract.emaid}")
        assert answer.status_code == 503, answer.text
        assert UNRESOLVED in answer.text
        assert (pool.stored(contract.emaid), pki_service.received) == (1, [])
        known_ca(pool, sub2, AnchorRole.EMSP)
        _until(lambda: pool.emsp.delete(f"/signedcontractdata/{contract.emaid}"), 200)
        assert pool.stored(contract.emaid) == 0
        assert len(pki_service.received) == 1
    assert sub1.issuer_name != sub2.issuer_name


def _renewed(pki: PKI) -> Certificate:
    old = pki.cps_sub2.certificate
    return build_certificate(
        pki.cps_sub2.key.public_key(),
        subject=old.x509.subject,
        issuer=pki.cps_sub1.certificate,
        signer=pki.cps_sub1.key,
        template=SUB_CA2,
        valid=(AT - timedelta(hours=1), AT + timedelta(days=4000)),
    )


def _until(act: Any, status: int, also: Any = lambda: True) -> Any:
    """Repeat a request until a worker has taken over what another process wrote, for thirty seconds at most."""
    deadline = time.monotonic() + 30
    while True:
        answer = act()
        assert answer.status_code != 201, answer.text
        if answer.status_code == status and also():
            return answer
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
