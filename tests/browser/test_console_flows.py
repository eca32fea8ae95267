"""What a person does in the console, in a real browser."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.place import Place
from tests.browser.visiting import PHONE, Visitor
from tests.scripted_server import Reply, Scripted, scripted
from tests.world import Pool, b64

DROPPED = """([area, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], "message.exi"));
  const target = document.querySelector(area);
  for (const type of ["dragover", "drop"])
    target.dispatchEvent(new DragEvent(type, {dataTransfer: files, bubbles: true, cancelable: true}));
}"""


def heading(page: Page) -> str:
    return page.locator("h1").inner_text()


def explain(visitor: Visitor, message: bytes) -> str:
    """Paste a message as Base64 on the page Why. Returns the verdict."""
    page = visitor.open("/why")
    page.locator("#message").fill(b64(message))
    page.get_by_role("button", name="Explain").click()
    return page.locator(".verdict .sentence").inner_text()


def test_console_lets_a_person_in_with_the_right_secret_only(here: Place, visitor: Visitor) -> None:
    visitor.log_in("wrong", path="/console/anchors")
    assert "Client id or secret is wrong" in visitor.page.get_by_role("alert").inner_text()
    visitor.keep("log-in refused")
    assert visitor.context.cookies() == []
    visitor.log_in(here.secret, path="/console/anchors")
    assert heading(visitor.page) == "Trust anchors"
    visitor.page.get_by_role("button", name="Log out").click()
    assert "You are logged out." in visitor.text
    visitor.page.goto("/console/anchors")
    assert "/console/login" in visitor.page.url
    visitor.page.go_back()
    assert "Trust anchors" not in visitor.text  # Not out of the cache of the browser either.


@pytest.mark.parametrize("notation", ["{0}", "{1}-{2}-{3}"])
def test_console_finds_a_contract_and_its_vehicle(here: Place, person: Visitor, notation: str) -> None:
    emaid, pcid = str(here.contract.emaid), str(here.car.pcid)
    field = person.page.get_by_role("search").get_by_role("textbox")
    field.fill(notation.format(emaid, emaid[:2], emaid[2:5], emaid[5:]).lower())
    field.press("Enter")
    person.page.wait_for_url(f"**/console/contracts/{emaid}")
    assert "12 of 12 checks passed" in person.text
    person.page.get_by_role("search").get_by_role("textbox").fill(pcid.lower())
    person.page.get_by_role("button", name="Find").click()
    person.page.wait_for_url(f"**/console/vehicles/{pcid}")
    assert "what the car would get now" in person.text


def test_console_says_why_a_message_is_valid_and_why_not(here: Place, person: Visitor) -> None:
    person.open(f"/contracts/{here.contract.emaid}")
    person.page.get_by_role("link", name="Examine the stored message").first.click()
    person.page.get_by_role("button", name="Explain").click()
    verdict = person.page.locator(".verdict .sentence").inner_text()
    assert verdict == "Every check passed: the pool would store the message and deliver it to the car."
    person.keep("why valid")
    assert "refuses the message" in explain(person, here.broken())
    failed = person.page.locator("tr", has=person.page.get_by_text("failed", exact=True))
    assert failed.count() >= 1
    assert len(failed.first.locator("td").last.inner_text()) > 20  # The sentence.
    person.keep("why refused")


@pytest.mark.parametrize("path", ["/console/why", "/try-it"])
def test_message_is_dropped_as_a_file(here: Place, person: Visitor, path: str) -> None:
    page = person.page
    page.goto(path)
    page.evaluate(DROPPED, ["#message", b64(here.contract.message)])
    expect(page.locator("#message")).to_have_value(re.compile(".{100}"))
    assert base64.b64decode(page.locator("#message").input_value()) == here.contract.message
    page.get_by_role("button", name="Explain").click()
    assert "Every check passed" in page.locator(".verdict .sentence").inner_text()


def test_message_is_chosen_as_a_file(here: Place, person: Visitor, tmp_path: Path) -> None:
    file = tmp_path / "message.exi"
    file.write_bytes(here.broken())
    page = person.open("/why")
    page.locator("#file").set_input_files(file)
    expect(page.locator("#message")).to_have_value(re.compile(".{100}"))
    page.get_by_role("button", name="Explain").click()
    assert "refuses the message" in page.locator(".verdict .sentence").inner_text()


def test_event_that_was_given_up_is_sent_again(here: Place, person: Visitor) -> None:
    emaid = here.give_up()
    before = here.receiver.count("/hooks")
    page = person.open(f"/webhooks/{here.webhook_id}?state=dead")
    row = page.locator("tr", has_text=emaid)
    assert "dead" in row.inner_text()
    row.get_by_role("button", name="Send again").click()
    assert page.get_by_role("status").inner_text()
    here.receiver.wait("/hooks", before + 1)
    person.keep("event sent again")


def test_secret_of_a_webhook_is_replaced(here: Place, person: Visitor) -> None:
    page = person.open(f"/webhooks/{here.webhook_id}")
    page.get_by_label("The previous secret").select_option("now")
    page.get_by_role("button", name="Make a new secret").click()
    secret = page.get_by_role("region", name="New secret").inner_text().strip()
    assert here.pool.sql("select secret from webhook where id = ?", here.webhook_id) == [(secret,)]
    page.get_by_role("link", name="Done").click()
    assert secret not in page.content()


def test_secret_of_a_party_is_replaced(here: Place, person: Visitor) -> None:
    page = person.open("/parties/small_cps")
    page.get_by_label("The previous secret").select_option("0")
    page.get_by_role("button", name="Make a new secret").click()
    secret = page.get_by_role("region", name="New secret").inner_text().strip()
    assert granted(here.pool, "small_cps", secret) == 200
    assert granted(here.pool, "small_cps", here.pool.world.member("small_cps").secret) == 401
    person.keep("new secret")


def granted(pool: Pool, client_id: str, secret: str) -> int:
    """The status of a request for a token."""
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
    return pool.http.post("/oauth/token", data=form).status_code


@pytest.fixture
def viewer(here: Place, browser: Browser) -> Iterator[Visitor]:
    """A person whom the OpenID provider makes a viewer."""
    here.provider.reset()
    here.provider.user["roles"] = ["pool-viewer"]
    one = Visitor(browser, here.pool.base_url, here.provider.server.url, ignore_https_errors=True)
    one.page.goto("/console/login")
    one.page.get_by_role("link", name="Log in with Example").click()
    one.page.wait_for_url("**/console/overview")
    yield one
    one.close()
    assert one.problems == []


def test_console_refuses_a_viewer_actions_and_shows_no_id(here: Place, viewer: Visitor) -> None:
    page = viewer.page
    assert "viewer" in page.locator(".who").inner_text()
    ids = {str(here.contract.emaid), str(here.car.pcid)}
    for path in page.locator("nav a").evaluate_all("links => links.map((link) => link.getAttribute('href'))"):
        page.goto(path)
        assert not [id for id in ids if id in page.content()], path
        buttons = page.get_by_role("button").all_inner_texts()
        assert set(buttons) <= {"Log out", "Explain", "Look up", "Show", ""}, (path, buttons)
    for path in (f"/console/contracts/{here.contract.emaid}", "/console/sessions", "/console/search?q=x"):
        page.goto(path)
        assert "Status 403" in viewer.text, path
    viewer.keep("viewer is refused")
    viewer.open(f"/webhooks/{here.webhook_id}")
    assert page.locator("tbody tr").count() >= 1
    assert not [id for id in ids if id in page.content()]
    token = page.locator("form[action$='/logout'] input[name=csrf_token]").get_attribute("value")
    refused = act_as(viewer, f"/console/webhooks/{here.webhook_id}/disable", str(token))
    assert refused == 403
    assert here.pool.sql("select enabled from webhook where id = ?", here.webhook_id) == [(1,)]


def act_as(visitor: Visitor, path: str, token: str) -> int:
    """Send the form of an action that the page does not offer. Returns the status."""
    with visitor.page.expect_navigation() as navigation:
        visitor.page.evaluate(
            """([path, token]) => {
              const form = document.querySelector("form[action$='/logout']");
              form.action = path;
              form.elements.csrf_token.value = token;
              form.submit();
            }""",
            [path, token],
        )
    answer = navigation.value
    assert answer is not None
    return answer.status


def test_session_that_expires_sends_to_the_login_and_back(here: Place, person: Visitor) -> None:
    person.open("/parties")
    here.pool.sql("update console_session set seen_at = seen_at - 1801000000")
    person.page.get_by_role("link", name="Audit trail").click()
    assert "/console/login" in person.page.url
    person.keep("session expired")
    person.page.get_by_label("Client id").fill("admin")
    person.page.get_by_label("Client secret").fill(here.secret)
    person.page.get_by_role("button", name="Log in", exact=True).click()
    assert heading(person.page) == "Audit trail"


@pytest.fixture
def elsewhere(here: Place) -> Iterator[Scripted]:
    """A page of another origin with forms for the console: one waits for a click, one sends itself."""
    base, webhook_id = here.pool.base_url, here.webhook_id
    attack = (
        f"<form method=post action='{base}/console/webhooks/{webhook_id}/disable'><input name=csrf_token value=x>"
        f"<button>Win a car</button></form><img src='{base}/console/overview'>"
        f"<iframe src='{base}/console/overview'></iframe>"
        f"<iframe name=hidden></iframe><form target=hidden id=out method=post action='{base}/console/logout'></form>"
        "<script>document.getElementById('out').submit()</script>"
    )
    with scripted() as server:
        server.on("/", Reply(200, attack.encode(), {"Content-Type": "text/html"}))
        yield server


def test_form_of_another_origin_changes_nothing(here: Place, browser: Browser, elsewhere: Scripted) -> None:
    victim = Visitor(browser, here.pool.base_url, elsewhere.url)
    try:
        victim.log_in(here.secret)
        # Another port of the same host is same-site: the browser sends the cookie there, so the console has to refuse.
        for origin in (elsewhere.url, elsewhere.url.replace("127.0.0.1", "localhost")):
            victim.page.goto(origin)
            victim.page.get_by_role("button", name="Win a car").click()
            victim.page.wait_for_url("**/disable")
            assert "was not sent by a page of this console" in victim.text
            assert not [frame for frame in victim.page.frames[1:] if "Needs attention" in frame.content()]
        assert here.pool.sql("select enabled from webhook where id = ?", here.webhook_id) == [(1,)]
        victim.open("/overview")
        assert "Needs attention" in victim.text  # Still logged in.
    finally:
        victim.close()


def test_console_is_used_with_the_keyboard_alone(here: Place, visitor: Visitor) -> None:
    page = visitor.page
    page.goto("/console/")
    page.keyboard.type("admin")  # The first field has the focus.
    page.keyboard.press("Tab")
    page.keyboard.type(here.secret)
    page.keyboard.press("Enter")
    page.wait_for_url("**/console/overview")
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to content"
    assert page.locator(".skip").bounding_box()["y"] >= 0  # type: ignore[index]
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.reload()
    tab_to(page, "EMAID or PCID")
    page.keyboard.type(str(here.car.pcid))
    page.keyboard.press("Enter")
    page.wait_for_url("**/console/vehicles/*")
    tab_to(page, str(here.contract.emaid))
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/console/contracts/{here.contract.emaid}")
    tab_to(page, "Every check of the message")
    page.keyboard.press("Enter")
    assert page.get_by_role("table").first.is_visible()
    tab_to(page, "Log out")
    page.keyboard.press("Enter")
    page.wait_for_url("**/console/login*")


def focused(page: Page) -> str:
    """The name of the element that has the focus."""
    name: str = page.evaluate(
        "(document.activeElement.getAttribute('aria-label') || document.activeElement.innerText || '').trim()"
    )
    return name


def tab_to(page: Page, name: str) -> None:
    """Press Tab until an element has the focus. Each stop on the way has to show that it has it."""
    for _ in range(80):
        page.keyboard.press("Tab")
        outline = page.evaluate(
            """() => { const one = document.activeElement, label = one.closest('label'),
            style = getComputedStyle(label && one.classList.contains('unseen') ? label : one);
            return [one.tagName, style.outlineStyle, parseFloat(style.outlineWidth)]; }"""
        )
        assert outline[0] == "BODY" or (outline[1] != "none" and outline[2] >= 2), (focused(page), outline)
        if focused(page) == name:
            return
    raise AssertionError(f"{name} cannot be reached")


def test_console_is_used_on_a_phone(here: Place, person: Visitor) -> None:
    person.look("light", PHONE)
    person.open("/overview")
    person.page.get_by_role("link", name="Health").click()
    person.page.get_by_role("button", name="Examine now").click()
    assert "Findings" in person.text
    person.keep("health examined phone")
