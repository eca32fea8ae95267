"""What a viewer sees: no id of a contract or a vehicle in any response, on any page, in whatever way it is written.

The pool of the test names ids wherever a partner, an operator or a certificate can put one.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from urllib.parse import unquote

import httpx
import pytest

from ccp import exi
from ccp.ids import EMAID, PCID, check_digit
from ccp.server.storage.queries import peers, webhooks
from ccp.server.storage.queries.peers import Peer
from ccp.server.storage.queries.vehicle_lock import microseconds
from ccp.server.trust.anchors import AnchorRole, add_anchor, trusted_certificate
from ccp.testing.partners import Car
from ccp.testing.pki import PKI, build_root
from tests.server.console.browsing import Browser, Page, admin, logged_in
from tests.server.events.receiver import webhook
from tests.waiting import wait_until
from tests.world import AT, SESSION, Contract, Pool, b64, expired_car, post_body, start

EMAIDS = tuple(EMAID.parse(f"DEEXAZQ{number:07}") for number in range(8000, 8006))
PCIDS = tuple(PCID.parse(f"WEXZQ{number:012}") for number in range(7000, 7004))


@dataclass
class Known:
    """The pool, and a message of each kind."""

    pool: Pool
    car: Car
    contract: Contract
    webhook_id: str


def notations(emaid: EMAID) -> list[str]:
    """Ways to write an EMAID."""
    parts = (emaid[:2], emaid[2:5], emaid[5:])
    return [str(emaid), emaid.lower(), "-".join(parts), "*".join(parts), f"{'-'.join(parts)}-{check_digit(emaid)}"]


@pytest.fixture(scope="module")
def known(pkis: dict[str, PKI]) -> Iterator[Known]:
    options = {"console": True, "keep_refused_requests": True, "refresh_interval": 0.05}
    with start(pkis, [admin()], login_failures_per_minute=0, **options) as pool:
        yield filled(pool)


def filled(pool: Pool) -> Known:
    """Put ids everywhere."""
    named = f"of {', '.join(notations(EMAIDS[4]))} and {PCIDS[0]}."
    pki = pool.pki()
    car = Car.generate(pki, PCIDS[0], AT)
    contract = pool.publish(car, EMAIDS[0], body={"metaData": named})
    pool.publish(car, EMAIDS[1])
    pool.publish(Car.generate(pool.pki("iso20"), PCIDS[1], AT), EMAIDS[2])
    pool.oem.post(f"/signedcontractdata/{EMAIDS[1]}/{PCIDS[0]}/setdefault")
    withdrawn = pool.publish(Car.generate(pki, PCIDS[2], AT), EMAIDS[3])
    assert pool.emsp.delete(f"/signedcontractdata/{withdrawn.emaid}").status_code == 200
    for refused in (expired_car(pki, PCIDS[3]), Car.generate(pki, PCIDS[2], AT)):
        assert pool.post(refused).status_code == 200
    pool.oem.get(f"/signedcontractdata/{EMAIDS[4]}/{PCIDS[0]}")
    body = post_body(car.request(SESSION, AT), str(car.namespace))
    assert pool.oem.post("/signedcontractdata", json=body).status_code == 403
    assert pool.client("other_emsp").get(f"/contractData/emaid/{EMAIDS[0]}").status_code in (403, 404)
    form = {"grant_type": "client_credentials", "client_id": str(EMAIDS[0]), "client_secret": "x"}
    assert pool.http.post("/oauth/token", data=form).status_code == 401
    root = build_root(f"Root of {EMAIDS[4]}", now=AT).certificate
    anchor = trusted_certificate(root, AnchorRole.EMSP, named, AT, named)
    pool.change(add_anchor(anchor, f"admin of {EMAIDS[4]}", AT))
    made = webhook(f"https://hooks.example/{EMAIDS[4]}", "oem", "oem.contract.created", description=named)
    pool.change(webhooks.put(made))
    pool.change(peers.add(Peer("DE*PEER", f"https://peer.example/{PCIDS[0]}", client_id="me", secret="s"), AT))
    pool.sql("update party set name = ? where client_id = 'emsp'", f"eMSP {named}")
    wait_until(lambda: len(pool.sql("select 1 from refusal")) >= 3)
    pool.sql("update refusal set reason = reason || ?, check_name = ?", named, named)
    wait_until(lambda: bool(pool.sql("select 1 from audit where action = 'access.refused'")))
    details = {"before": {"name": named}, named: [named], "party": "oem"}
    subject = json.dumps({"emaid": EMAIDS[0], "pcid": PCIDS[0], **details})
    pool.sql("update audit set subject = ? where action = 'party.added'", subject)
    for number, emaid in enumerate(EMAIDS):
        pool.sql(
            "insert into delivery (pcid, rev, part, webhook_id, event_id, kind, emaid, namespace, payload, created_at, "
            "queued_at, lease_until, attempts, state, last_error) "
            "values (?, ?, 0, ?, ?, 'emsp.contract.delivered.to.oem', ?, '', ?, 1, 1, 1, 1, 'dead', ?)",
            PCIDS[0], 100 + number, made.id, f"event-{number}", emaid, json.dumps({"emaid": emaid}), named,
        )  # fmt: skip
    pool.sql(
        "insert into handed_out (pcid, client_id, request, contracts, expires_at) values (?, 'cpo', 'x', ?, ?)",
        PCIDS[0], json.dumps([[each, False] for each in EMAIDS]), microseconds(AT),
    )  # fmt: skip
    pool.sql("update vehicle set contested = ? where pcid = ?", json.dumps(EMAIDS[2:]), PCIDS[0])
    return Known(pool, car, contract, made.id)


@pytest.fixture
def viewer(known: Known) -> Iterator[Browser]:
    with logged_in(known.pool) as one:
        known.pool.sql("update console_session set role = 'viewer'")
        yield one


def check(answer: httpx.Response, about: object) -> None:
    """No id is in a response, as it is, encoded for an address or an element, in Base64 or hexadecimal."""
    head = " ".join(f"{name}: {value}" for name, value in answer.headers.items())
    text = f"{head}\n{answer.text}"
    shown = [text, unescape(text), unquote(text)]
    for encoded in re.findall(r"[A-Za-z0-9+/_-]{16,}={0,2}", text):
        plain = encoded.rstrip("=").translate(str.maketrans("-_", "+/"))
        for begin in range(4):
            with_end = plain[begin : begin + (len(plain) - begin) // 4 * 4]
            shown.append(base64.b64decode(with_end).decode("latin-1"))
        try:
            shown.append(bytes.fromhex(encoded).decode("latin-1"))
        except (ValueError, binascii.Error):
            continue
    compact = [re.sub(r"[-*./:_\s]", "", each).upper() for each in shown]
    for secret in (*EMAIDS, *PCIDS):
        assert not [each for each in compact if secret in each], (about, secret)


def test_viewer_pages_show_no_id(known: Known, viewer: Browser) -> None:
    waiting = ["/console/", "/console/overview", "/console/contested", "/console/audit?days=31", "/console/nothing"]
    waiting += [f"/console/webhooks/{known.webhook_id}", "/console/peers/DE*PEER", "/console/parties/emsp"]
    seen = set[str]()
    while waiting:
        path = waiting.pop(0)
        if path in seen:
            continue
        seen.add(path)
        answer = viewer.get(path)
        assert answer.status_code in (200, 303, 400, 404), (path, answer.text)
        check(answer, path)
        waiting += [link.partition("#")[0] for link in Page(answer.text).links if link.startswith("/console")]
        if "location" in answer.headers:
            waiting.append(answer.headers["location"])
    kinds = {re.sub(r"/console/(\w+).*", r"\1", path) for path in seen}
    assert {"vehicles", "contracts", "why", "refusals", "parties", "webhooks", "peers", "audit", "anchors"} <= kinds
    assert len([path for path in seen if "/vehicles/~" in path]) == len(PCIDS)
    assert len([path for path in seen if "/contracts/~" in path]) >= len(EMAIDS)


def test_viewer_pages_explain_a_message_without_its_ids(known: Known, viewer: Browser) -> None:
    broken = bytearray(known.contract.message)
    broken[2200] ^= 1
    request = known.car.request(SESSION, AT)
    newer = Car.generate(known.pool.pki("iso20"), PCIDS[1], AT).request(SESSION, AT)
    expired = expired_car(known.pool.pki(), PCIDS[3]).request(SESSION, AT)
    for data in (known.contract.message, bytes(broken), request, newer, expired):
        xml = "" if data == bytes(broken) else exi.to_xml(exi.decode(data)).decode()
        body = json.dumps({"certificateInstallationRes": b64(data), "emaid": EMAIDS[0], "pcid": PCIDS[0]})
        for text in (b64(data), data.hex(), xml, body):
            check(viewer.act("/why", "/why", message=text), text[:30])
    for text in (f"nothing about {EMAIDS[0]}", f'{{"emaid": "{EMAIDS[0]}"}}', f"<a>{PCIDS[0]}</a>", f"<{PCIDS[0]}/>"):
        answer = viewer.act("/why", "/why", message=text)
        assert answer.status_code == 400
        check(answer, text)


@pytest.mark.parametrize("text", [*notations(EMAIDS[0]), PCIDS[0], PCIDS[0].lower()])
def test_viewer_pages_repeat_no_id_that_is_typed_nor_its_pseudonym(known: Known, viewer: Browser, text: str) -> None:
    shown = set[str]()
    for path, name in (
        ("/why", "q"), ("/search", "q"), ("/refusals", "id"), ("/refusals", "caller"), ("/refusals", "since"),
        ("/refusals", "code"), ("/audit", "id"), ("/audit", "actor"), ("/audit", "until"), ("/audit", "days"),
        ("/overview", "period"), ("/parties", "after"), ("/webhooks", "after"), ("/contested", "after"),
        ("/anchors", "from"), (f"/webhooks/{known.webhook_id}", "state"), ("/overview", "notice"),
    ):  # fmt: skip
        answer = viewer.get(path, params={name: text})
        check(answer, (path, name))
        if answer.status_code in (400, 403) or (path, name) in (("/audit", "actor"), ("/refusals", "caller")):
            shown |= set(re.findall(r"(?<![0-9a-f-])[0-9a-f]{16}(?![0-9a-f-])", Page(answer.text).text))
    assert shown == set()
    for path in ("/vehicles/", "/contracts/", "/parties/", "/webhooks/", "/peers/", "/nothing/"):
        answer = viewer.get(f"{path}{text}")
        assert answer.status_code in (400, 403, 404), path
        check(answer, path)


def test_viewer_pages_have_no_download(known: Known, viewer: Browser) -> None:
    answer = viewer.get("/audit/export?days=31")
    assert answer.status_code == 403
    check(answer, "export")
    token = viewer.page("/overview").form("/logout").fields["csrf_token"]
    for path in (
        f"/vehicles/{PCIDS[0]}",
        f"/parties/{EMAIDS[0]}/disable",
        f"/webhooks/{PCIDS[0]}/ping",
        "/why/x",
    ):
        refused = viewer.post(path, {"csrf_token": token, "event_id": EMAIDS[0]})
        assert refused.status_code in (403, 404), path
        check(refused, path)


def test_ids_are_found_by_the_check_of_this_file(known: Known) -> None:
    for text in (*notations(EMAIDS[0])[:4], b64(b"xy" + PCIDS[0].encode() + b"zz"), PCIDS[0].encode().hex()):
        with pytest.raises(AssertionError):
            check(httpx.Response(200, text=f"<p>{text}</p>"), text)
    with logged_in(known.pool) as person, pytest.raises(AssertionError):
        check(person.get(f"/vehicles/{PCIDS[0]}"), "an admin")
