"""PKIService: when a revocation counts as done, and which certificates are revoked."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import timedelta

import pytest

from ccp.errors import ConfigurationError, FieldError, Unavailable, UpstreamError
from ccp.ids import Namespace
from ccp.server.external.outbound import OutboundClient
from ccp.server.external.pki_service import PKIService, RevocationReason, is_issued_by_operator
from ccp.server.external.services import ExternalServices
from ccp.server.settings import Settings
from ccp.testing.partners import Car, issue_contract, sign_contract
from ccp.testing.pki import CONTRACT, PKI
from ccp.x509.certificates import Certificate
from ccp.x509.issuer_map import IssuerMap
from tests.scripted_server import CLOSE, HANG, JSON, NOT_HTTP, Reply, Scripted, error, json_reply, nowhere, text_reply
from tests.server.external.calls import connection, with_outbound
from tests.server.external.examples import stored_contract
from tests.world import AT, b64, new_emaid, new_pcid
from tests.x509.made import twin

PATH = "/opnc/v1/pki/pki/revokeCertificate"
REASON = RevocationReason.CESSATION_OF_OPERATION


def revoked(fake: Scripted, certificate: bytes = b"certificate", seconds: float = 5.0) -> None:
    async def revoke(out: OutboundClient) -> None:
        await PKIService(connection(out, fake.url + "/opnc/v1/pki", token="token"), timeout=seconds).revoke(
            certificate, RevocationReason.KEY_COMPROMISE
        )

    with_outbound(revoke)


@pytest.mark.parametrize("answer", [Reply(200), Reply(204), json_reply({}), text_reply(b"OK", "text/plain")])
def test_pki_service_revokes_on_success_responses(fake: Scripted, answer: Reply) -> None:
    fake.on(PATH, answer)
    revoked(fake)
    (call,) = fake.received
    assert call.method == "POST"
    assert json.loads(call.body) == {"certificate": b64(b"certificate"), "revocationReason": "keyCompromise"}
    assert call.headers["content-type"] == "application/json"
    assert call.headers["authorization"] == "Bearer token"


@pytest.mark.parametrize(
    "answer",
    [error(400, "Not yours."), Reply(401), Reply(403), Reply(404), Reply(500), Reply(503), Reply(202), Reply(301),
     error(200, "It did not work."), text_reply(b"<html>Log in"), Reply(200, b"{", JSON),
     text_reply(b"A" * 100_000, "text/plain"), error(500, "already revoked"), error(400, "alreadyrevoked"),
     CLOSE, NOT_HTTP],
    ids=lambda answer: f"{answer.status}-{answer.body[:20]!r}",
)  # fmt: skip
def test_pki_service_raises_without_retry_on_other_responses(fake: Scripted, answer: Reply) -> None:
    fake.on(PATH, answer)
    with pytest.raises(UpstreamError):
        revoked(fake)
    assert len(fake.received) == 1


def test_pki_service_times_out(fake: Scripted) -> None:
    fake.on(PATH, HANG)
    began = time.monotonic()
    with pytest.raises(UpstreamError, match="does not answer"):
        revoked(fake, seconds=0.3)
    assert time.monotonic() - began < 1.5


def test_pki_service_raises_if_unreachable() -> None:
    with pytest.raises(UpstreamError, match="does not answer"):
        with_outbound(lambda out: PKIService(connection(out, nowhere())).revoke(b"", REASON))


@pytest.mark.parametrize("status", [400, 409])
def test_pki_service_accepts_already_revoked(fake: Scripted, status: int) -> None:
    fake.on(PATH, error(status, "The certificate has already been revoked."))
    revoked(fake)


# --- Whose certificates ---


def known(*cas: Certificate) -> IssuerMap[bool]:
    """What `operator_cas` is when these are configured and have been seen."""
    found = IssuerMap(dict.fromkeys((one.fingerprint for one in cas), True))
    for one in cas:
        found.resolve(one)
    return found


@pytest.mark.parametrize("edition", ["iso2", "iso20", "ed448"])
def test_is_issued_by_operator_for_contracts_of_operator_cas(pkis: dict[str, PKI], edition: str) -> None:
    pki = pkis[edition]
    contract = stored_contract(pki)
    cas = [getattr(pki, name).certificate for name in ("emsp_sub2", "emsp_sub1", "emsp_root", "cps_sub2")]
    assert is_issued_by_operator(contract, known(cas[0]))
    assert is_issued_by_operator(contract, known(*cas))
    assert not is_issued_by_operator(contract, known(*cas[1:]))
    assert not is_issued_by_operator(contract, known())


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_is_issued_by_operator_for_twin_ca_certificates(pkis: dict[str, PKI], edition: str) -> None:
    pki = pkis[edition]
    sub2 = pki.emsp_sub2.certificate
    assert is_issued_by_operator(stored_contract(pki), known(twin(sub2)))
    assert not is_issued_by_operator(stored_contract(pki), known(twin(pki.emsp_sub1.certificate)))


def test_is_issued_by_operator_requires_the_signature(pkis: dict[str, PKI]) -> None:
    ours, theirs = pkis["iso2"], pkis["other_iso2"]
    assert ours.emsp_sub2.certificate.subject_name == theirs.emsp_sub2.certificate.subject_name
    contract = theirs.emsp_sub2.issue(new_emaid(), CONTRACT, now=AT)
    dressed = replace(contract, sub_cas=(ours.emsp_sub2.certificate, *contract.sub_cas))
    car = Car.generate(theirs, new_pcid(), AT)
    bundle = issue_contract(theirs, new_emaid(), car.pcid, car.provisioning.certificate, AT)
    message = sign_contract(theirs, replace(bundle, contract=dressed), AT)
    signed = stored_contract(theirs)._replace(response=message, certificate=contract.certificate.der)
    assert is_issued_by_operator(signed, known(theirs.emsp_sub2.certificate))
    assert not is_issued_by_operator(signed, known(ours.emsp_sub2.certificate))


def test_revoke_issued_revokes_operator_certificates_once(fake: Scripted, pkis: dict[str, PKI]) -> None:
    fake.on(PATH, Reply(200))
    ours, theirs = stored_contract(pkis["iso2"]), stored_contract(pkis["other_iso2"])
    variants = [ours, theirs, ours._replace(updated_at=AT + timedelta(days=1))]
    fingerprint = pkis["iso2"].emsp_sub2.certificate.fingerprint.upper()

    async def revoke(out: OutboundClient) -> list[bytes]:
        service = PKIService(connection(out, fake.url + "/opnc/v1/pki"), operator_cas=[fingerprint])
        # Until the CA behind the fingerprint is known, a contract of another may be one of its twin's.
        with pytest.raises(Unavailable, match="does not know yet which CA"):
            await service.revoke_issued([ours, theirs], REASON)
        assert fake.received == []
        service.operator_cas.resolve(pkis["iso2"].emsp_sub2.certificate)
        return [certificate.der for certificate in await service.revoke_issued(variants, REASON)]

    assert with_outbound(revoke) == [ours.certificate]
    assert [json.loads(call.body)["certificate"] for call in fake.received] == [b64(ours.certificate)]
    assert ours.namespace is Namespace.ISO2


def test_revoke_issued_stops_at_the_first_failure(fake: Scripted, pkis: dict[str, PKI]) -> None:
    fake.on(PATH, Reply(500))
    fingerprint = pkis["iso2"].emsp_sub2.certificate.fingerprint
    variants = [stored_contract(pkis["iso2"]), stored_contract(pkis["iso2"])]

    async def revoke(out: OutboundClient) -> None:
        await PKIService(connection(out, fake.url + "/opnc/v1/pki"), operator_cas=[fingerprint]).revoke_issued(
            variants, REASON
        )

    with pytest.raises(UpstreamError):
        with_outbound(revoke)
    assert len(fake.received) == 1


# --- Reasons and settings ---


def test_revocation_reason_parses_published_values() -> None:
    assert RevocationReason.parse(None) is REASON
    assert RevocationReason.parse("keyCompromise") is RevocationReason.KEY_COMPROMISE
    for text in ("", "KEYCOMPROMISE", "certificateHold"):
        with pytest.raises(FieldError, match="X-Revocation-Reason : must be one of"):
            RevocationReason.parse(text)


def test_external_services_are_those_that_are_configured() -> None:
    async def build(out: OutboundClient) -> None:
        none = ExternalServices.from_settings(Settings(), out)
        assert none.connections == {}
        assert not any((none.root_pool, none.provisioning_pool, none.pki_service))
        some = ExternalServices.from_settings(
            Settings(rcp_url="https://a/rcp", pcp_url="https://a/pcp", pki_url="https://a/pki"), out
        )
        assert some.root_pool
        assert some.provisioning_pool
        assert some.pki_service
        with pytest.raises(ConfigurationError, match="pki_url"):
            ExternalServices.from_settings(Settings(operator_cas=("ab" * 32,)), out)
        with pytest.raises(ConfigurationError, match="operator_cas"):
            ExternalServices.from_settings(Settings(operator_cas=("nonsense",), pki_url="https://a/pki"), out)

    with_outbound(build)
