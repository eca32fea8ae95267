"""Pages of vehicles and contracts: what a car would get is what it gets, chains, search, and what a viewer sees."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import pytest

from ccp.ids import EMAID, Namespace, check_digit
from ccp.server.console.identifiers import HandleCipher
from ccp.testing.partners import Car
from tests.server.console.browsing import Browser, Page
from tests.world import Pool, new_emaid, new_pcid, opened

HOSTILE = '"><script>alert(1)</script>{{7*7}}'


def delivered_on(page: Page) -> list[str]:
    """The contracts that the page says the car gets, in order, of both editions."""
    source = page.source
    found = []
    for part in source.split('<ol class="answer">')[1:]:
        found += [link.rpartition("/")[2] for link in Page(part.partition("</ol>")[0]).links]
    return found


def default_chosen(pool: Pool, car: Car) -> None:
    pool.publish(car)
    chosen = pool.publish(car).emaid
    pool.publish(car)
    assert pool.oem.post(f"/signedcontractdata/{chosen}/{car.pcid}/setdefault").status_code == 200


def default_expired(pool: Pool, car: Car) -> None:
    pool.expire(pool.publish(car).emaid)
    pool.publish(car)


def two_without_a_default(pool: Pool, car: Car) -> None:
    default_expired(pool, car)
    pool.publish(car)


def variants_of_two_roots(pool: Pool, car: Car) -> None:
    emaid = pool.publish(car).emaid
    if car.namespace is Namespace.ISO2:
        pool.publish(car, emaid, signer="other_iso2")


def only_expired(pool: Pool, car: Car) -> None:
    pool.expire(pool.publish(car).emaid)


def several(pool: Pool, car: Car) -> None:
    for _ in range(3):
        pool.publish(car)


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
@pytest.mark.parametrize(
    "prepare",
    [default_chosen, default_expired, two_without_a_default, variants_of_two_roots, only_expired, several],
)
def test_vehicle_page_shows_what_the_car_gets(
    pool: Pool, person: Browser, edition: str, prepare: Callable[[Pool, Car], None]
) -> None:
    car = pool.car(edition)
    prepare(pool, car)
    body = pool.post(car).json()
    items = [item["emaid"] for item in body["signedContractDataCollection"] if "metaData" not in item]
    page = person.page(f"/vehicles/{car.pcid}")
    assert delivered_on(page) == items
    if not items:
        refusal = body["signedContractDataCollection"][0]["metaData"]
        assert any(sentence in page.text for sentence in refusal.split(": ", 1)), (refusal, page.text)


def test_vehicle_page_gives_the_reason_of_a_refusal(pool: Pool, person: Browser) -> None:
    car = pool.car()
    pool.expire(pool.publish(car).emaid)
    page = person.page(f"/vehicles/{car.pcid}")
    assert "No contract of the vehicle is valid now." in page.text
    assert "The contract certificate has expired." in page.text
    assert "No contract of the vehicle is signed for its version of ISO 15118." in page.text


def test_contract_page_shows_both_chains_up_to_trusted_roots(pool: Pool, person: Browser) -> None:
    contract = pool.publish(pool.car())
    page = person.page(f"/contracts/{contract.emaid}")
    assert page.text.count("trusted: eMSP") == page.text.count("trusted: V2G") == 1
    assert "12 of 12 checks passed" in page.text
    assert len([1 for name, given in page.elements if given.get("class") == "chain"]) == 2
    assert "contract.published" in page.text
    assert len(page.source) < 100_000


def test_contract_page_explains_a_message_that_cannot_be_read(pool: Pool, person: Browser) -> None:
    contract = pool.publish(pool.car())
    pool.sql("update contract set response = ? where emaid = ?", contract.message[:-40], str(contract.emaid))
    page = person.page(f"/contracts/{contract.emaid}")
    assert "not valid" in page.text
    assert "0 of 0 checks passed" in page.text


def test_contract_page_names_the_certificate_that_is_revoked(pool: Pool, person: Browser) -> None:
    contract = pool.publish(pool.car())
    issuer, serial = pool.sql(
        "select certificate_issuer, certificate_serial from contract where emaid = ?", str(contract.emaid)
    )[0]
    pool.sql(
        "insert into evidence (issuer, serial, status, this_update, next_update, revoked_at, source) "
        "values (?, ?, 'revoked', 0, 0, 0, 'CRL http://crl.example/ca')",
        *(issuer, serial),
    )
    page = person.page(f"/contracts/{contract.emaid}")
    assert "revoked" in page.text
    assert "CRL http://crl.example/ca since 1970-01-01 00:00 UTC" in page.text
    assert "not delivered" in page.text


@pytest.mark.parametrize("notation", ["{0}", "{0:l}", "{1}-{2}-{3}", "{1}-{2}-{3}{4}", " {1} {2} {3} ", "{1}{2}{3}{4}"])
def test_search_finds_a_contract_in_every_notation(pool: Pool, person: Browser, notation: str) -> None:
    emaid = str(pool.publish(pool.car()).emaid)
    parts = (emaid, emaid[:2], emaid[2:5], emaid[5:], check_digit(emaid))
    text = emaid.lower() if "l}" in notation else notation.format(*parts)
    answer = person.get("/search", params={"q": text})
    assert (answer.status_code, answer.headers["location"]) == (303, f"/console/contracts/{emaid}")


def test_search_finds_a_vehicle_and_says_when_nothing_is_stored(pool: Pool, person: Browser) -> None:
    car = pool.car()
    pool.publish(car)
    answer = person.get("/search", params={"q": str(car.pcid).lower()})
    assert answer.headers["location"] == f"/console/vehicles/{car.pcid}"
    unknown = new_pcid()
    answer = person.get("/search", params={"q": str(unknown)})
    assert (answer.status_code, str(unknown) in answer.text) == (404, True)
    assert "neither an EMAID" in person.get("/search", params={"q": HOSTILE}).text
    assert HOSTILE not in person.get("/search", params={"q": HOSTILE}).text
    assert person.get(f"/contracts/{new_emaid()}").status_code == 404
    assert person.get(f"/vehicles/{unknown}").status_code == 404


def test_contract_page_escapes_metadata(pool: Pool, person: Browser) -> None:
    contract = pool.publish(pool.car(), body={"metaData": HOSTILE})
    page = person.page(f"/contracts/{contract.emaid}")
    assert HOSTILE in page.text, "as text"
    assert not [1 for name, _ in page.elements if name == "script"]


def test_vehicle_page_shows_a_viewer_no_id(pool: Pool, person: Browser) -> None:
    car = pool.car()
    emaids = [pool.publish(car).emaid for _ in range(2)]
    contract_page, vehicle_page = f"/contracts/{emaids[0]}", f"/vehicles/{car.pcid}"
    assert str(emaids[0]) in person.page(vehicle_page).text
    pool.sql(
        "insert into delivery (pcid, rev, part, webhook_id, event_id, kind, emaid, namespace, payload, created_at, "
        "queued_at, lease_until, attempts, state, last_error) "
        "values (?, 1, 0, 'a-hook', 'an-event', 'emsp.contract.created', ?, '', '{}', 1, 1, 1, 1, 'dead', ?)",
        car.pcid, emaids[0], f"no {emaids[0]} here",
    )  # fmt: skip
    pool.sql("update console_session set role = 'viewer' where actor = 'admin'")
    assert person.get("/search", params={"q": str(emaids[0])}).status_code == 403
    assert [person.get(path).status_code for path in (contract_page, vehicle_page)] == [403, 403]
    handles = viewer_handles(pool, emaids[0], car)
    for path in handles:
        page = person.page(path)
        for secret in (str(car.pcid), *map(str, emaids)):
            assert secret not in page.source, path
        assert re.search("no [0-9a-f]{16} here", page.text), path
    assert all(link.startswith(("/console/", "#")) for link in person.page(handles[1]).links)


def viewer_handles(pool: Pool, emaid: EMAID, car: Car) -> tuple[str, str]:
    """Addresses of the pages of a contract and a vehicle, as a viewer gets them in lists."""

    async def sealed() -> tuple[str, str]:
        async with opened(pool.settings) as store:
            cipher = HandleCipher(store)
            await cipher.open()
            return cipher.seal(emaid), cipher.seal(car.pcid)

    contract, vehicle = asyncio.run(sealed())
    return f"/contracts/{contract}", f"/vehicles/{vehicle}"
