"""What a newcomer does: find the sample car, read why its contract is valid, break one byte, read why it is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.browser.visiting import Visitor
from tests.cli.run import ccp_process
from tests.cli.served_sandbox import Sandbox, free_port, serving

PCID: Final = "WEX0SANDBOX000001"
BROKEN: Final = "The pool refuses the message: it would not store it, and no car would get it."
STEPS: Final = (
    "Enter `make run`. It creates the sandbox and starts the pool.",
    "Open the address that it prints, and log in with the client id and the secret that it prints.",
    f"Enter `{PCID}`, the sample car, into the search field.",
    "Open its default contract. *12 of 12 checks passed*; both certificate chains lead to a trusted root.",
    "Choose *Examine the stored message*, then *Explain*. Each check has its verdict and what it found.",
    "Change one character in the middle of the message, and choose *Explain* again. The pool refuses the message, and "
    "the failed checks say why.",
)
"""As the documents tell them."""


@contextmanager
def sandbox(folder: Path, name: str = "sandbox") -> Iterator[Sandbox]:
    """A sandbox that is served, by the commands of `make run`."""
    port = free_port()
    done = ccp_process("sandbox", folder / name, "--port", port)
    assert done.returncode == 0, done.stderr
    made = Sandbox(folder / name)
    with serving(made.url, "--config", folder / name / "ccp.toml"):
        yield made


def printed(made: Sandbox) -> tuple[str, str, str]:
    """The console's address, the client id and the secret, out of what the sandbox printed."""
    address, client_id, secret, _ = (made.directory / "console.txt").read_text().splitlines()
    return address.partition(": ")[2], client_id.split()[-1], secret.split()[-1]


def follow(visitor: Visitor, made: Sandbox) -> Iterator[float]:
    """Do every step but the first. Yields the seconds of each, and checks what the person reads."""
    page = visitor.page
    began = time.monotonic()

    def elapsed() -> float:
        nonlocal began
        took, began = time.monotonic() - began, time.monotonic()
        return took

    address, client_id, secret = printed(made)
    visitor.log_in(secret, client_id, address)
    page.wait_for_url("**/console/overview")
    yield elapsed()
    page.get_by_role("search").get_by_role("textbox").fill(PCID)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/vehicles/{PCID}")
    yield elapsed()
    page.locator("dl.facts a").first.click()
    page.wait_for_url("**/contracts/*")
    assert "12 of 12 checks passed" in visitor.text
    assert page.get_by_text("trusted: ").count() == 2
    yield elapsed()
    page.get_by_role("link", name="Examine the stored message").click()
    page.get_by_role("button", name="Explain").click()
    assert "Every check passed" in page.locator(".verdict").inner_text()
    yield elapsed()
    break_one_byte(visitor)
    page.get_by_role("button", name="Explain").click()
    assert page.locator(".verdict .sentence").inner_text() == BROKEN
    assert page.locator(".badge.bad", has_text="failed").count() >= 1
    assert len(page.locator(".verdict p").nth(1).inner_text()) > 20
    yield elapsed()


def break_one_byte(visitor: Visitor) -> None:
    """Change one character in the middle of the message, with the keyboard."""
    area = visitor.page.locator("#message")
    text = area.input_value()
    place = len(text) * 2 // 3
    area.evaluate("(area, place) => { area.focus(); area.setSelectionRange(place, place + 1); }", place)
    visitor.page.keyboard.type("A" if text[place] != "A" else "B")
    assert len(area.input_value()) == len(text)
