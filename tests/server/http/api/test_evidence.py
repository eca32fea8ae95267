"""What responders and lists can say when a contract is published, over HTTP, for every kind of key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ccp.testing.pki import CONTRACT, OCSP_RESPONDER, PKI, Credential, StatusURLs, algorithm_of, build_root
from ccp.testing.revocation import sign_crl, sign_ocsp_response
from ccp.x509.certificates import Certificate
from tests.scripted_server import Reply, Scripted, scripted
from tests.server.http.api.answers import sentences
from tests.server.http.api.responders import LOOPBACK, path_of, pki_with_responder
from tests.server.trust.revocation.made import serve_crl
from tests.world import AT, Contract, Pool, start

DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
EDITIONS = ["iso2", "iso20", "ed448"]
ALGORITHM = {"iso2": "P-256", "iso20": "P-521", "ed448": "Ed448"}
SUB1, SUB2 = "eMSP Sub1 CA SIM", "eMSP Sub2 CA SIM"


def now() -> datetime:
    return datetime.now(UTC)


# --- OCSP ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """reply: what the responder says about a certificate of this issuer. words: what the publisher is told."""

    reply: Callable[[Certificate, Credential], Reply]
    status: int
    words: str = ""


def says(**more: Any) -> Callable[[Certificate, Credential], Reply]:
    """A response of now that holds for an hour, unless `more` says otherwise. Functions are given the issuer."""

    def reply(certificate: Certificate, issuer: Credential) -> Reply:
        values = {name: value(issuer) if callable(value) else value for name, value in more.items()}
        times = {"this_update": now() - MINUTE, "next_update": now() + HOUR}
        return Reply(body=sign_ocsp_response(certificate, issuer, **{**times, **values}))

    return reply


def stranger(issuer: Credential) -> Credential:
    return PKI.generate(AT, algorithm=algorithm_of(issuer.key)).emsp_sub2


def in_its_name(issuer: Credential) -> Credential:
    """Return a CA with the issuer's name and another key."""
    return build_root(issuer.certificate.subject_cn, now=AT, algorithm=algorithm_of(issuer.key))


def about_another(certificate: Certificate, issuer: Credential) -> Reply:
    return says()(issuer.issue("another", CONTRACT, now=AT).certificate, issuer)


CASES = {
    "good": Case(says(), 201),
    "revoked": Case(says(revoked_at=AT - DAY), 400, "was revoked at"),
    "unknown": Case(says(unknown=True), 503, "Its OCSP responder does not know it."),
    "stale": Case(says(this_update=now() - DAY, next_update=now() - HOUR), 503, "The OCSP response is stale since"),
    "from the future": Case(says(this_update=now() + HOUR, next_update=now() + DAY), 503, "is from the future"),
    "forged": Case(says(responder=in_its_name), 503, "The signature of the OCSP response does not hold."),
    "wrong serial": Case(about_another, 503, "The OCSP response is about another certificate."),
    "delegated": Case(says(responder=lambda issuer: issuer.issue("OCSP", OCSP_RESPONDER, now=AT)), 201),
    "not for OCSP": Case(says(responder=lambda issuer: issuer.issue("x", CONTRACT, now=AT)), 503, "is not authorised"),
    "of another CA": Case(
        says(responder=lambda issuer: stranger(issuer).issue("OCSP", OCSP_RESPONDER, now=AT)), 503, "is not authorised"
    ),
    "oversized": Case(lambda certificate, issuer: Reply(body=bytes(131_073)), 503, "sent more than 131072 bytes"),
    "redirect": Case(
        lambda certificate, issuer: Reply(status=302, headers={"Location": "/elsewhere"}), 503, "the HTTP status 302"
    ),
    "hanging": Case(lambda certificate, issuer: Reply(delay=30), 503, "did not answer within 2 s"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with scripted() as running:
        yield running


@pytest.fixture(scope="module")
def responders() -> Iterator[dict[str, Scripted]]:
    """One for each key algorithm: the circuit of a host opens after several failures in a row."""
    with ExitStack() as stack:
        yield {edition: stack.enter_context(scripted()) for edition in EDITIONS}


@pytest.fixture(scope="module")
def asking(responders: dict[str, Scripted]) -> Iterator[Pool]:
    """Of each kind of key a PKI whose contracts name a responder, and one whose Sub-CA 2 does."""
    pkis = {}
    for edition, responder in responders.items():
        algorithm: Any = ALGORITHM[edition]
        pkis[edition] = pki_with_responder(responder.url, SUB2, algorithm=algorithm)
        pkis[f"{edition} sub"] = pki_with_responder(responder.url, SUB1, algorithm=algorithm)
    with start(pkis, egress_allow_networks=LOOPBACK) as pool:
        yield pool


def published(pool: Pool, contract: Contract, status: int, words: str) -> None:
    """Publish it: the status, the one sentence, and that it is stored or not."""
    answer = pool.put(contract)
    assert answer.status_code == status, answer.text
    if words:
        (message,) = sentences(answer, status)
        assert words in message
    assert ("Retry-After" in answer.headers) is (status == 503)
    assert pool.stored(contract.emaid) == (status == 201)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("edition", EDITIONS)
def test_publisher_is_told_what_the_responder_says(
    asking: Pool, responders: dict[str, Scripted], edition: str, name: str
) -> None:
    case, issuer, responder = CASES[name], asking.pki(edition).emsp_sub2, responders[edition]
    contract = asking.contract(asking.car(edition))
    responder.on(path_of(SUB2), case.reply(Certificate.load(contract.certificate), issuer))
    began = time.monotonic()
    published(asking, contract, case.status, case.words)
    assert time.monotonic() - began < 4
    assert responder.count("/elsewhere") == 0


@pytest.mark.parametrize("edition", EDITIONS)
def test_publisher_is_told_of_a_revoked_sub_ca(asking: Pool, responders: dict[str, Scripted], edition: str) -> None:
    pki = asking.pki(f"{edition} sub")
    responders[edition].on(path_of(SUB1), says(revoked_at=AT - DAY)(pki.emsp_sub2.certificate, pki.emsp_sub1))
    contract = asking.contract(asking.car(edition), signer=f"{edition} sub")
    published(asking, contract, 400, f'Certificate "{SUB2}" was revoked at')


def test_address_that_is_not_public_is_not_called(server: Scripted) -> None:
    pki = pki_with_responder(server.url + "/private")
    with start({"iso2": pki}) as pool:
        answer = pool.put(pool.contract(pool.car()))
        messages = sentences(answer, 503)
    assert len(messages) == 6
    assert all("127.0.0.1 cannot be reached." in sentence for sentence in messages)
    assert not [request for request in server.received if request.path.startswith("/private")]


# --- Lists -----------------------------------------------------------------------------------------------------------


def times(since: timedelta = MINUTE, until: timedelta = DAY) -> dict[str, Any]:
    return {"this_update": now() - since, "next_update": now() + until}


LISTS: dict[str, tuple[Callable[[Credential, Certificate], bytes], int, str]] = {
    "good": (lambda issuer, leaf: sign_crl(issuer, {7: AT - DAY}, **times()), 201, ""),
    "revoked": (lambda issuer, leaf: sign_crl(issuer, {leaf.serial_number: AT - DAY}, **times()), 400, "was revoked"),
    "stale": (lambda issuer, leaf: sign_crl(issuer, {}, **times(DAY, -HOUR)), 503, "The CRL is stale since"),
    "forged": (lambda issuer, leaf: sign_crl(in_its_name(issuer), {}, **times()), 503, "is not signed by"),
    "of another CA": (lambda issuer, leaf: sign_crl(in_its_own(issuer), {}, **times()), 503, "The CRL is not of"),
    "no list": (lambda issuer, leaf: b"<html>", 503, "The CRL cannot be read."),
}


def in_its_own(issuer: Credential) -> Credential:
    return PKI.generate(AT, algorithm=algorithm_of(issuer.key)).oem_sub2


@pytest.fixture(scope="module")
def listing(server: Scripted, pkis: dict[str, PKI]) -> Iterator[Pool]:
    """Of each kind of key one PKI for each case: what a list said once is not asked for again."""
    made = {edition: pkis[edition] for edition in EDITIONS}
    for edition in EDITIONS:
        for name in (*LISTS, "sub", "numbers"):
            below = SUB1 if name == "sub" else SUB2
            made[f"{edition} {name}"] = PKI.generate(
                AT,
                algorithm=ALGORITHM[edition],  # type: ignore[arg-type]
                status_urls=lambda ca, below=below, url=list_path(edition, name): (
                    StatusURLs(crl=server.url + url) if ca == below else StatusURLs()
                ),
            )
    with start(made, egress_allow_networks=LOOPBACK) as pool:
        yield pool


def list_path(edition: str, name: str) -> str:
    return f"/{edition}-{name.replace(' ', '-')}.crl"


@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize("name", LISTS)
def test_publisher_is_told_what_the_list_says(listing: Pool, server: Scripted, edition: str, name: str) -> None:
    make, status, words = LISTS[name]
    contract = listing.contract(listing.car(edition), signer=f"{edition} {name}")
    issuer = listing.pki(f"{edition} {name}").emsp_sub2
    server.on(list_path(edition, name), make(issuer, Certificate.load(contract.certificate)))
    published(listing, contract, status, words)


@pytest.mark.parametrize("edition", EDITIONS)
def test_publisher_is_told_of_a_sub_ca_on_a_list(listing: Pool, server: Scripted, edition: str) -> None:
    pki = listing.pki(f"{edition} sub")
    revoked = {pki.emsp_sub2.certificate.serial_number: AT - DAY}
    server.on(list_path(edition, "sub"), sign_crl(pki.emsp_sub1, revoked, **times()))
    contract = listing.contract(listing.car(edition), signer=f"{edition} sub")
    published(listing, contract, 400, f'Certificate "{SUB2}" was revoked at')


def test_crl_is_asked_for_conditionally_and_its_number_may_not_fall(listing: Pool, server: Scripted) -> None:
    name, path = "iso2 numbers", list_path("iso2", "numbers")
    issuer = listing.pki(name).emsp_sub2

    def contract() -> Contract:
        return listing.contract(listing.car(), signer=name)

    until, made = timedelta(seconds=4), time.monotonic()
    serve_crl(server, path, sign_crl(issuer, {}, number=5, **times(until=until)), etag='"5"')
    published(listing, contract(), 201, "")
    published(listing, contract(), 201, "")
    assert server.count(path) == 1
    # The list runs out in real time: the pool has verified it as current before.
    time.sleep(max(0.0, made + 5 - time.monotonic()))
    # The same list, which has run out meanwhile: its server says that it has no newer one.
    published(listing, contract(), 503, "The CRL is stale, and its server has no newer one.")
    last = [request for request in server.received if request.path == path][-1]
    assert last.headers["if-none-match"] == '"5"'
    serve_crl(server, path, sign_crl(issuer, {}, number=4, **times()), etag='"4"')
    published(listing, contract(), 503, "The CRL has the number 4, the one before it had 5.")
    serve_crl(server, path, sign_crl(issuer, {}, number=6, **times()), etag='"6"')
    published(listing, contract(), 201, "")
