"""The page that explains messages: every form of a message, verdicts, hostile input; and the public page /try-it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from ccp import exi
from ccp.testing.pki import CONTRACT, PKI
from tests.server.console.browsing import Browser, Page
from tests.server.http.api.publications import bundle_of, signed
from tests.world import AT, SESSION, Pool, b64, post_body, start

FORMS: dict[str, Callable[[bytes], str]] = {
    "Base64": b64,
    "hexadecimal": lambda data: data.hex(),
    "XML": lambda data: exi.to_xml(exi.decode(data)).decode(),
    "JSON": lambda data: json.dumps({"signedContractDataCollection": [{"certificateInstallationRes": b64(data)}]}),
    "Base64 in lines": lambda data: "\n".join(b64(data)[place : place + 76] for place in range(0, len(b64(data)), 76)),
}
HOSTILE = "<img src=x onerror=alert(1)>\"'{{7*7}}"


def explained(person: Browser, message: str) -> Page:
    answer = person.act("/why", "/why", message=message)
    assert answer.status_code in (200, 400), answer.text
    return Page(answer.text)


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
@pytest.mark.parametrize("form", FORMS)
def test_why_reads_a_stored_message_in_every_form(pool: Pool, person: Browser, edition: str, form: str) -> None:
    contract = pool.publish(pool.car(edition))
    page = explained(person, FORMS[form](contract.message))
    assert "Every check passed: the pool would store the message and deliver it to the car." in page.text
    assert f"/console/contracts/{contract.emaid}" in page.links
    assert "CertificateInstallationRes" in page.text
    assert len(page.source) < 100_000


def test_why_names_what_is_wrong_after_one_byte_was_changed(pool: Pool, person: Browser) -> None:
    message = bytearray(pool.publish(pool.car()).message)
    message[2200] ^= 1
    page = explained(person, b64(bytes(message)))
    assert "The pool refuses the message" in page.text
    assert "failed" in page.text
    answer = pool.put(pool.contract(pool.car(), body={"certificateInstallationRes": b64(bytes(message))}))
    refused = [sentence for sentence in answer.json()["errorMessages"] if sentence in page.text]
    assert refused, (answer.json(), page.text)


def test_why_explains_a_contract_certificate_whose_name_is_no_emaid(pool: Pool, person: Browser) -> None:
    car, pki = pool.car(), pool.pki()
    bundle = bundle_of(pool, car, pki)
    nameless = replace(bundle, contract=pki.emsp_sub2.issue("no EMAID", CONTRACT, now=AT))
    page = explained(person, b64(signed(pki, nameless, car).message))
    assert "The pool refuses the message" in page.text
    assert "The contract certificate's common name is no EMAID." in page.text


def test_why_answers_a_request_as_the_pool_does(pool: Pool, person: Browser) -> None:
    car = pool.car()
    request = b64(car.request(SESSION, AT))
    assert "The request is valid, but the car gets no contract." in explained(person, request).text
    emaid = pool.publish(car).emaid
    page = explained(person, json.dumps(post_body(car.request(SESSION, AT), str(car.namespace))))
    assert "The request is valid, and the car gets a contract." in page.text
    assert f"/console/contracts/{emaid}" in page.links
    assert [item["emaid"] for item in pool.ask(car)] == [emaid]
    stranger = pool.car("stranger")
    page = explained(person, b64(stranger.request(SESSION, AT)))
    assert "The car gets no contract: the pool refuses its request." in page.text


def test_why_reads_without_causing_events_or_deliveries(pool: Pool, person: Browser) -> None:
    car = pool.car()
    pool.publish(car)
    before = pool.sql("select count(*) from outbox")
    explained(person, b64(car.request(SESSION, AT)))
    assert pool.sql("select count(*) from outbox") == before


@pytest.mark.parametrize("text", [HOSTILE, "80", "{}", "<a/>", "gJ" + "A" * 500, "\u2028", "{" * 5000])
def test_why_refuses_what_is_no_message_with_a_sentence(person: Browser, text: str) -> None:
    answer = person.act("/why", "/why", message=text)
    page = Page(answer.text)
    assert answer.status_code in (200, 400)
    assert "The text contains no message." in page.text or "cannot read the message" in page.text
    assert not [1 for name, _ in page.elements if name == "img" and _.get("src") == "x"]
    assert "49" not in page.text.replace(HOSTILE, "").split()


def test_why_refuses_a_form_that_is_too_large(pool: Pool, person: Browser) -> None:
    answer = person.act("/why", "/why", message="A" * 900_000)
    assert answer.status_code == 413, answer.status_code


def test_why_prefills_the_stored_message_for_an_admin_only(pool: Pool, person: Browser) -> None:
    contract = pool.publish(pool.car())
    path = f"/why?emaid={contract.emaid}"
    assert b64(contract.message) in person.page(path).text
    pool.sql("update console_session set role = 'viewer' where actor = 'admin'")
    assert b64(contract.message) not in person.page(path).text
    page = explained(person, b64(contract.message))
    assert str(contract.emaid) not in page.source.replace(b64(contract.message), "")


@pytest.fixture(scope="module")
def public(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool with the public page and without a console."""
    with start(pkis, try_it=True, try_it_per_minute=12) as running:
        yield running


def test_try_it_explains_a_message_without_a_session(public: Pool) -> None:
    contract = public.publish(public.car())
    with Browser(public.base_url) as visitor:
        empty = Page(visitor.http.get("/try-it").text)
        answer = visitor.http.post("/try-it", data={"message": b64(contract.message)})
        page = Page(answer.text)
        assert "Every check passed" in page.text
        assert not [link for link in page.links if link.startswith("/console")]
        request = Page(visitor.http.post("/try-it", data={"message": b64(public.car().request(SESSION, AT))}).text)
        assert "Every check passed." in request.text
        assert visitor.http.get("/console/login").status_code == 404
        styles = [str(given["href"]) for name, given in empty.elements if name == "link"]
        assert all(visitor.http.get(style).status_code == 200 for style in styles)
        policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert public.sql("select count(*) from contract") == [(1,)]


def test_try_it_limits_messages_of_one_address(public: Pool) -> None:
    with Browser(public.base_url) as visitor:
        statuses = [visitor.http.post("/try-it", data={"message": "80"}).status_code for _ in range(14)]
        answer = visitor.http.post("/try-it", data={"message": "80"})
    assert statuses[-1] == 429
    assert int(answer.headers["retry-after"]) >= 1


def test_try_it_is_off_by_default(pool: Pool) -> None:
    assert pool.http.get("/try-it").status_code == 404
