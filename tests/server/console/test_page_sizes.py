"""No page has more than 100 KB, with the most that a pool can hold, and nothing in a list is out of reach."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from ccp import exi
from ccp.server.audit.pseudonyms import Pseudonyms
from ccp.server.console.identifiers import HandleCipher, IdDisplay
from ccp.server.console.messages import MAX_ECHOED, MessageTree
from ccp.testing.pki import PKI
from tests.server.console.browsing import Browser, Page, admin, logged_in
from tests.server.console.largest_pool import MANY, QUOTES, Largest, fill, longest_request
from tests.world import Pool, b64, start

LIMIT = 100_000


@pytest.fixture(scope="module")
def filled(pkis: dict[str, PKI]) -> Iterator[tuple[Pool, Largest]]:
    options = {"console": True, "try_it": True, "try_it_per_minute": 0, "login_failures_per_minute": 0}
    with start(pkis, [admin(), admin("second_admin")], **options) as pool:
        yield pool, fill(pool)


@pytest.fixture
def visitor(filled: tuple[Pool, Largest]) -> Iterator[Browser]:
    with logged_in(filled[0]) as one:
        yield one


@pytest.mark.parametrize("role", ["admin", "viewer"])
def test_pages_of_the_largest_pool_are_small(filled: tuple[Pool, Largest], visitor: Browser, role: str) -> None:
    pool, largest = filled
    pool.sql("update console_session set role = ? where agent <> 'x'", role)
    waiting, seen, sizes = list(largest.pages) if role == "admin" else ["/overview"], set[str](), dict[str, int]()
    while waiting and len(seen) < 150:
        path = waiting.pop(0)
        kind = re.sub(r"(?<=.)/.*|\?.*", "", path)
        if path in seen or "/export" in path or [each.split("/")[1] for each in seen].count(kind[1:]) > 12:
            continue
        seen.add(path)
        answer = visitor.get(path)
        assert answer.status_code in (200, 303, 400, 404), (path, answer.text)
        sizes[path] = len(answer.content)
        waiting += [link.removeprefix("/console") for link in Page(answer.text).links if link.startswith("/console/")]
    assert {path: size for path, size in sizes.items() if size >= LIMIT} == {}
    kinds = {re.split(r"[/?]", path)[1] for path in sizes}
    assert {"vehicles", "contracts", "why", "refusals", "parties", "webhooks", "partners", "peers", "anchors", "audit",
            "health", "overview", "contested"} <= kinds  # fmt: skip


def test_page_of_the_health_of_the_largest_pool_is_small(filled: tuple[Pool, Largest], visitor: Browser) -> None:
    visitor.http.timeout = httpx.Timeout(60)
    answer = visitor.act("/health", "/health/examine")
    assert (answer.status_code, len(answer.content) < LIMIT) == (200, True), len(answer.content)


def test_page_of_the_largest_message_is_small(filled: tuple[Pool, Largest], visitor: Browser) -> None:
    pool, largest = filled
    request = longest_request(pool, pool.car("iso20"))
    assert len(request) > 20_000
    response = exi.to_xml(exi.decode(largest.contract.message)).decode()
    stored = b64(largest.contract.message)
    texts = {
        "long request": b64(request),
        "response as XML": response,
        "whole": stored[:100] + "\n" * (MAX_ECHOED - len(stored)) + stored[100:],
        "not whole": QUOTES * 60_000,
        "unreadable, whole": QUOTES * (MAX_ECHOED // 5),
    }
    for name, text in texts.items():
        answer = visitor.act("/why", "/why", message=text)
        assert answer.status_code in (200, 400), name
        assert len(answer.content) < LIMIT, (name, len(answer.content))
        public = visitor.http.post("/try-it", data={"message": text})
        assert public.status_code in (200, 400), name
        assert len(public.content) < LIMIT, (name, len(public.content))
    assert QUOTES * (MAX_ECHOED // 5) in Page(answer.text).text


def test_message_is_shown_again_in_its_field_as_far_as_it_fits(filled: tuple[Pool, Largest], visitor: Browser) -> None:
    contract = filled[0].contract(filled[0].car())
    assert b64(contract.message) in visitor.act("/why", "/why", message=b64(contract.message)).text
    spaced = b64(contract.message)[:100] + " " * MAX_ECHOED + b64(contract.message)[100:]
    answer = visitor.act("/why", "/why", message=spaced)
    assert "shown again as Base64" in answer.text
    assert b64(contract.message) in answer.text
    request = longest_request(filled[0], filled[0].car("iso20"))
    assert "too long to be shown again" in visitor.act("/why", "/why", message=b64(request)).text


@pytest.mark.parametrize(("path", "pattern", "number"), [
    ("/vehicles/{pcid}", r"/contracts/(\w+)", 16),
    ("/contracts/{emaid}", r"\?variant=([0-9a-f-]+)", 24),
    ("/partners", r"/console/peers/(DE%2A\d+)", MANY),
    ("/anchors", r"<code class=\"fingerprint\">(0{50}[0-9a-f]+)<", 2 * MANY),
    ("/parties", r"/parties/(many-\d+)", MANY),
    ("/contested", r"/vehicles/(WEXCONTESTED\d+)", MANY),
])  # fmt: skip
def test_pages_show_the_largest_lists_in_parts(
    filled: tuple[Pool, Largest], visitor: Browser, path: str, pattern: str, number: int
) -> None:
    largest = filled[1]
    path = path.format(pcid=largest.car.pcid, emaid=largest.contract.emaid)
    found, parts = set[str](), 0
    while path:
        page = visitor.page(path)
        parts += 1
        found |= set(re.findall(pattern, page.source))
        path = next(
            (link for link, text in zip(page.links, page.link_texts, strict=True) if text in ("Next", "Next page")), ""
        )
    assert len(found) >= number
    assert parts > 1


def test_message_tree_ends_where_the_page_is_full(pool: Pool) -> None:
    ids = IdDisplay(Pseudonyms(pool.settings), HandleCipher(None), in_full=True)  # type: ignore[arg-type]
    message = {"Body": {"Roots": [{"Name": QUOTES * 150, "Number": each} for each in range(200)]}}
    for size, whole in ((24_000, False), (1_000_000, True)):
        tree = MessageTree(ids, size)
        members = tree.members(message)
        shown = sum(1 for each in members[0].children[0].children for _ in each.children)
        assert (tree.is_whole, shown == 400) == (whole, whole)


def test_portion_that_does_not_exist_is_refused(visitor: Browser) -> None:
    for text in ("0", "-1", "x", "1.5", "9" * 30, "²"):
        assert visitor.get("/anchors", params={"from": text}).status_code == 400, text
    assert visitor.get("/anchors", params={"from": "9999999"}).status_code == 200
