"""Pictures for the documents, made from a running sandbox: `make pictures`.

    python -m tests.browser.pictures [docs]   # writes docs/images/console/*, and times and session in docs/see-it.md

A person who looks at the console in both themes on a desktop and a phone, and a session in a terminal.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser

from ccp.client import Client, Credentials
from ccp.ids import PCID
from ccp.testing.partners import Car, new_session_id
from ccp.testing.pki import PKI
from tests.browser.newcomer import PCID as SAMPLE
from tests.browser.newcomer import break_one_byte, follow, sandbox
from tests.browser.terminal import Session
from tests.browser.visiting import ROOT, SIZES, THEMES, Visitor, chromium
from tests.cli.served_sandbox import Sandbox

EMAID: Final = "DEEXAC00000001"
STRANGER: Final = "WEX0SANDBOX000099"
"""A car without a contract."""
PAGES: Final = ("overview", "vehicle", "contract", "why-valid", "why-refused", "refusals", "try-it")
_WINDOWS: Final = {"desktop": (1120, 720), "phone": (360, 720)}
MAX_BYTES: Final = 1_000_000
"""Of all pictures together."""
_SAMPLE: Final = f".sandbox/samples/iso2/publish_{EMAID}.json"


def commands(message: str) -> list[tuple[str, int]]:
    """The session in the terminal: commands and their exit status. message: Base64, of which one byte is changed."""
    place = len(message) * 2 // 3
    found = re.compile(r"[A-Za-z0-9]{16}").search(message, place)  # Long enough to be there once, nothing to escape.
    assert found is not None
    old = found[0]
    new = old[:-1] + ("A" if old[-1] != "A" else "B")
    return [
        ("ccp demo", 0),
        ("ccp doctor", 1),  # A warning: there is no proxy.
        (f"ccp verify {_SAMPLE} --trust .sandbox/trust", 0),
        (f"sed s/{old}/{new}/ {_SAMPLE} > broken.json", 0),
        ("ccp verify broken.json --trust .sandbox/trust", 1),
        (f"ccp why {STRANGER}", 0),
        ("ccp expiry", 0),
    ]


def names() -> set[str]:
    """The files of all pictures."""
    pages = {f"{page}-{theme}-{size}.webp" for page in PAGES for theme in THEMES for size in _WINDOWS}
    return pages | {"terminal.svg"}


def ask(made: Sandbox) -> None:
    """Let the sample cars ask for their contracts, and one that has none."""
    secret = next(one["client_secret"] for one in made.credentials["parties"] if one["role"] == "cpo")
    pki, now = PKI.load(made.directory / "pki" / "iso2"), datetime.now(UTC)
    stranger = Car.generate(pki, PCID.parse(STRANGER), now)
    with Client(made.url, credentials=Credentials("example-cpo", secret)) as cpo:
        for path in sorted(made.directory.glob("samples/*/request_*.json")):
            sent = json.loads(path.read_text())
            cpo.deliver(sent["certificateInstallationReq"], sent["xsdMsgDefNamespace"])
        cpo.deliver(stranger.request(new_session_id(), now), stranger.namespace)


def console(browser: Browser, made: Sandbox, folder: Path, pages: Sequence[str]) -> list[float]:
    """Write the pictures of these pages of the console. Returns the seconds of a newcomer's steps."""
    visitor = Visitor(browser, made.url)
    seconds = list(follow(visitor, made))
    page = visitor.page

    def take(name: str) -> None:
        if name not in pages:
            return
        page.evaluate("document.activeElement.blur()")
        for theme in THEMES:
            for size, pixels in _WINDOWS.items():
                visitor.look(theme, pixels)
                visitor.picture(folder / f"{name}-{theme}-{size}.webp")
        visitor.look("light", SIZES["desktop"])

    take("why-refused")
    addresses = {
        "overview": "/overview", "vehicle": f"/vehicles/{SAMPLE}", "contract": f"/contracts/{EMAID}",
        "refusals": "/refusals",
    }  # fmt: skip
    for name, path in addresses.items():
        if name in pages:
            visitor.open(path)
            take(name)
    visitor.open(f"/why?emaid={EMAID}")
    page.get_by_role("button", name="Explain").click()
    take("why-valid")
    message = page.locator("#message").input_value()
    visitor.open("/try-it")
    page.locator("#message").fill(message)
    break_one_byte(visitor)
    page.get_by_role("button", name="Explain").click()
    take("try-it")
    visitor.close()
    assert visitor.problems == []
    return seconds


def terminal(made: Sandbox, programs: Sequence[str]) -> Session:
    """Record the commands of these programs beside the sandbox. Raises AssertionError for an unexpected exit status."""
    session = Session(shown=(str(made.directory.parent), "/srv/ccp-try"))
    message = json.loads((made.directory / "samples/iso2" / f"publish_{EMAID}.json").read_text())
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command, status in commands(message["certificateInstallationRes"]):
        if not command.startswith(tuple(programs)):
            continue
        found = session.run(command, made.directory.parent, environment)
        assert found == status, (command, found, session.transcript)
    return session


def between(text: str, mark: str, new: str) -> str:
    """Replace what is between two marks of a document."""
    pattern = rf"(<!-- {mark}: begin -->\n).*?(<!-- {mark}: end -->)"
    assert re.search(pattern, text, re.DOTALL), mark
    return re.sub(pattern, lambda found: found[1] + new + found[2], text, flags=re.DOTALL)


def write(
    docs: Path, pages: Sequence[str] = PAGES, programs: Sequence[str] = ("ccp", "sed"), browser: Browser | None = None
) -> None:
    """Write the pictures below a folder `docs`, and into its see-it.md the times and the session."""
    folder = docs / "images" / "console"
    with tempfile.TemporaryDirectory() as name, sandbox(Path(name), ".sandbox") as made:
        ask(made)
        session = terminal(made, programs)
        with nullcontext(browser) if browser else chromium() as running:
            seconds = console(running, made, folder, pages)
    (folder / "terminal.svg").write_text(session.svg("opnc-ccp: two minutes in a terminal"), encoding="utf-8")
    page = docs / "see-it.md"
    text = page.read_text("utf-8")
    shown = ", ".join(f"{each:.1f}" for each in seconds)
    measured = f"A script does steps 2 to 6 in {sum(seconds):.1f} seconds ({shown}); the rest is time to read.\n"
    text = between(text, "times", measured)
    indented = "".join(f"    {line}".rstrip() + "\n" for line in session.transcript.splitlines())
    page.write_text(between(text, "session", f"\n{indented}\n"), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs")
