"""ProvisioningCertificatePool: parsing, cache and circuit breaker."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ccp.errors import UpstreamError
from ccp.ids import Namespace
from ccp.server.external.circuit_breaker import _FAILURES
from ccp.server.external.outbound import OutboundClient
from ccp.server.external.provisioning_pool import _MAX_CACHED, ProvisioningCertificatePool, key_fingerprint
from ccp.testing.pki import PKI
from tests.scripted_server import CLOSE, HANG, JSON, NOT_HTTP, Reply, Scripted, error, json_reply, text_reply
from tests.server.external.calls import connection, with_outbound
from tests.server.external.examples import chain_body
from tests.world import AT, b64, new_pcid


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def pcp(out: OutboundClient, fake: Scripted, clock: Clock | None = None) -> ProvisioningCertificatePool:
    url = fake.url + "/opnc/v1/pcp"
    return ProvisioningCertificatePool(connection(out, url, token="token"), clock or time.monotonic)


def test_provisioning_pool_queries_chains_by_pcid(fake: Scripted, pkis: dict[str, PKI]) -> None:
    pcid = new_pcid()
    vehicle = pkis["iso2"].vehicle(pcid, now=AT)
    fake.on(f"/opnc/v1/pcp/provisioningcertificates/{pcid}", json_reply(chain_body(vehicle)))
    chain = with_outbound(lambda out: pcp(out, fake).get_chain(pcid))
    assert chain is not None
    assert chain.certificate == vehicle.certificate
    assert chain.sub_cas == vehicle.sub_cas
    assert chain.key_for(Namespace.ISO2) == key_fingerprint(vehicle.certificate)
    assert chain.key_for(Namespace.ISO20) is None
    assert fake.received[0].headers["authorization"] == "Bearer token"


@pytest.mark.parametrize("shape", range(4))
def test_provisioning_pool_ignores_wrappers_and_casing(fake: Scripted, pkis: dict[str, PKI], shape: int) -> None:
    pcid = new_pcid()
    vehicle = pkis["iso2"].vehicle(pcid, now=AT)
    whole = chain_body(vehicle)
    inner = whole["provisioningCertificate"]
    chain = inner["provisioningCertificateChain"]
    published = {name.replace("CA", "Ca"): text for name, text in chain.items()}
    shapes = [inner, chain, {"provisioningCertificate": {"provisioningCertificateChain": published}}, published]
    fake.on("*", json_reply(shapes[shape]))
    found = with_outbound(lambda out: pcp(out, fake).get_chain(pcid))
    assert found is not None
    assert found.sub_cas == vehicle.sub_cas


def test_provisioning_pool_accepts_chains_without_sub_cas(fake: Scripted, pkis: dict[str, PKI]) -> None:
    pcid = new_pcid()
    vehicle = pkis["iso2"].vehicle(pcid, now=AT)
    fake.on("*", json_reply({"certificate": b64(vehicle.certificate.der)}))
    found = with_outbound(lambda out: pcp(out, fake).get_chain(pcid))
    assert found is not None
    assert found.sub_cas == ()


def test_provisioning_chain_edition_is_named_or_inferred_from_the_key(fake: Scripted, pkis: dict[str, PKI]) -> None:
    pcid = new_pcid()

    def edition(name: str, **more: Any) -> Namespace:
        fake.on("*", json_reply(chain_body(pkis[name].vehicle(pcid, now=AT), **more)))
        chain = with_outbound(lambda out: pcp(out, fake).get_chain(pcid))
        assert chain is not None
        return chain.namespace

    assert edition("iso2") is Namespace.ISO2
    assert edition("iso20") is Namespace.ISO20
    assert edition("ed448") is Namespace.ISO20
    assert edition("iso2", xsdMsgDefNamespace="urn:iso:15118:20:2022:MsgDef") is Namespace.ISO20
    assert edition("iso20", xsdMsgDefNamespace="nonsense") is Namespace.ISO20


def test_provisioning_pool_caches_chains_and_bypasses_the_cache(fake: Scripted, pkis: dict[str, PKI]) -> None:
    pcid = new_pcid()
    old, new = (pkis["iso2"].vehicle(pcid, now=AT) for _ in range(2))
    fake.on("*", json_reply(chain_body(old)))

    async def visit(out: OutboundClient) -> list[Any]:
        clock = Clock()
        pool = pcp(out, fake, clock)
        seen = [await pool.get_chain(pcid)]
        fake.on("*", json_reply(chain_body(new)))
        seen.append(await pool.get_chain(pcid))
        seen.append(await pool.get_chain(pcid, fresh=True))
        fake.on("*", json_reply(chain_body(old)))
        pool.invalidate(pcid)
        seen.append(await pool.get_chain(pcid))
        fake.on("*", json_reply(chain_body(new)))
        clock.now += 60
        seen.append(await pool.get_chain(pcid))
        return [chain.certificate for chain in seen]

    assert with_outbound(visit) == [one.certificate for one in (old, old, new, old, new)]
    assert len(fake.received) == 4


@pytest.mark.parametrize("status", [404, 403, 302])
def test_provisioning_pool_caches_unknown_vehicles(fake: Scripted, pkis: dict[str, PKI], status: int) -> None:
    pcid = new_pcid()
    fake.on("*", error(status, "The OEM provisioning certificate with given PCID is not found."))

    async def visit(out: OutboundClient) -> bool:
        clock = Clock()
        pool = pcp(out, fake, clock)
        assert await pool.get_chain(pcid) is None
        fake.on("*", json_reply(chain_body(pkis["iso2"].vehicle(pcid, now=AT))))
        assert await pool.get_chain(pcid) is None
        clock.now += 10
        return await pool.get_chain(pcid) is not None

    assert with_outbound(visit)
    assert len(fake.received) == 2


def test_provisioning_pool_cache_is_bounded(fake: Scripted) -> None:
    async def visit(out: OutboundClient) -> int:
        pool = pcp(out, fake, Clock())
        for number in range(_MAX_CACHED + 5):
            pool._store(new_pcid(), None)
            assert len(pool._cache) == min(number + 1, _MAX_CACHED)
        return len(pool._cache)

    assert with_outbound(visit) == _MAX_CACHED


def _broken(pki: PKI) -> dict[str, Reply]:
    stranger = pki.vehicle(new_pcid(), now=AT)
    return {
        "500": Reply(500),
        "503": Reply(503),
        "404 of a proxy": Reply(404, b"404 page not found\n", {"Content-Type": "text/plain; charset=utf-8"}),
        "drop": CLOSE,
        "not http": NOT_HTTP,
        "not json": text_reply(b"<html>"),
        "empty": Reply(200),
        "nothing in it": json_reply({}),
        "not an object": json_reply([5]),
        "no certificate": json_reply({"certificate": "AAAA"}),
        "number": json_reply({"certificate": 5}),
        "another vehicle's": json_reply(chain_body(stranger)),
        "too large": Reply(200, b'"' + b"A" * 100_000 + b'"', JSON),
    }


@pytest.mark.parametrize("how", range(13))
def test_provisioning_pool_failure_is_none_or_an_error(fake: Scripted, pkis: dict[str, PKI], how: int) -> None:
    fake.on("*", list(_broken(pkis["iso2"]).values())[how])
    pcid = new_pcid()
    assert with_outbound(lambda out: pcp(out, fake).get_chain(pcid)) is None
    with pytest.raises(UpstreamError):
        with_outbound(lambda out: pcp(out, fake).fetch_chain(pcid))


def test_provisioning_pool_circuit_opens_after_timeouts(fake: Scripted, pkis: dict[str, PKI]) -> None:
    fake.on("*", HANG)
    pcid = new_pcid()

    async def visit(out: OutboundClient) -> list[float]:
        clock = Clock()
        pool = pcp(out, fake, clock)
        times = []
        for attempt in range(_FAILURES + 1):
            began = time.monotonic()
            assert await pool.get_chain(pcid, timeout=1.0 if attempt == 0 else 0.1) is None
            times.append(time.monotonic() - began)
        fake.on("*", json_reply(chain_body(pkis["iso2"].vehicle(pcid, now=AT))))
        clock.now += 10
        assert await pool.get_chain(pcid) is not None
        return times

    times = with_outbound(visit)
    assert 0.9 < times[0] < 1.5
    assert times[-1] < 0.05
    assert len(fake.received) == _FAILURES + 1


def test_key_fingerprint_depends_on_the_key_only(pkis: dict[str, PKI]) -> None:
    import hashlib

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from ccp.testing.pki import OEM_PROVISIONING, build_certificate, subject_name

    pcid = new_pcid()
    for name in ("iso2", "iso20", "ed448"):
        pki = pkis[name]
        one, other = pki.vehicle(pcid, now=AT), pki.vehicle(pcid, now=AT)
        assert key_fingerprint(one.certificate) == key_fingerprint(one.certificate)
        assert key_fingerprint(one.certificate) != key_fingerprint(other.certificate)
        renewed = build_certificate(
            one.key.public_key(),
            subject=subject_name(pcid, "OEM"),
            issuer=pki.oem_sub2.certificate,
            signer=pki.oem_sub2.key,
            template=OEM_PROVISIONING,
            valid=(AT, AT + OEM_PROVISIONING.lifetime),
            agreement_key=one.agreement_key,
        )
        assert renewed != one.certificate
        assert key_fingerprint(renewed) == key_fingerprint(one.certificate)
        if one.agreement_key is None:
            spki = one.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            assert key_fingerprint(one.certificate) == hashlib.sha256(spki).hexdigest()
