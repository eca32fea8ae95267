"""Chromium, and a visitor that records what a page asks for and what it complains about."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
DESKTOP, PHONE = (1280, 900), (360, 740)
SIZES = {"desktop": DESKTOP, "phone": PHONE}
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
NOT_HERE = "Chromium is not installed (Debian's package chromium)."


def executable() -> str | None:
    """The path of Chromium, or None. Playwright's own download is not used."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running browser without windows. Skips the test where there is none."""
    path = executable()
    if path is None:
        pytest.skip(NOT_HERE)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """A person with a browser of their own. origins: that pages may ask."""

    def __init__(self, browser: Browser, base_url: str, *origins: str, **options: Any) -> None:
        self.base_url = base_url
        self.origins = {base_url, *origins}
        width, height = DESKTOP
        given = {"viewport": {"width": width, "height": height}, "reduced_motion": "reduce", **options}
        self.context: BrowserContext = browser.new_context(base_url=base_url, **given)
        self.context.set_default_timeout(20_000)
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.context.on("request", self._requested)
        self.context.on("console", lambda message: self._complained(message.type, message.text))
        self.context.on("weberror", lambda error: self.problems.append(f"exception: {error.error}"))
        self.context.on("dialog", self._dialog)
        self.page: Page = self.context.new_page()

    def close(self) -> None:
        self.context.close()

    def _requested(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss"):
            self.requests.append(request.url)
            if f"{parts.scheme}://{parts.netloc}" not in self.origins:
                self.problems.append(f"request to another origin: {request.url}")

    def _complained(self, kind: str, text: str) -> None:
        refused = re.search(r"the server responded with a status of (400|403|404|413|429)", text)
        if kind in ("error", "warning") and not refused:
            self.problems.append(f"console: {text}")

    def _dialog(self, dialog: Any) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def log_in(self, secret: str, name: str = "admin", path: str = "/console/") -> None:
        """Log in with the credentials of an admin party."""
        self.page.goto(path)
        self.page.get_by_label("Client id").fill(name)
        self.page.get_by_label("Client secret").fill(secret)
        self.page.get_by_role("button", name="Log in", exact=True).click()

    def open(self, path: str) -> Page:
        """Open a page below /console, which must be there."""
        answer = self.page.goto(path if path.startswith("/") and "/try-it" in path else f"/console{path}")
        assert answer is not None
        assert answer.status == 200, (path, answer.status)
        return self.page

    @property
    def text(self) -> str:
        """The visible text of the page, with single blanks."""
        return " ".join(self.page.inner_text("body").split())

    def look(self, theme: Theme, size: tuple[int, int]) -> None:
        """Change theme and window."""
        self.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        self.page.set_viewport_size({"width": size[0], "height": size[1]})

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write a WebP picture of the window, or of the whole page up to 2,400 pixels."""
        session = self.context.new_cdp_session(self.page)
        options: dict[str, Any] = {"format": "webp", "quality": 46}
        if whole:
            width, height = self.page.evaluate("[innerWidth, Math.min(2400, document.documentElement.scrollHeight)]")
            options |= {
                "captureBeyondViewport": True,
                "clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
            }
        data = session.send("Page.captureScreenshot", options)["data"]
        session.detach()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))

    def keep(self, name: str) -> None:
        """Keep a picture of the whole page as a build artefact: in OPNC_CCP_SCREENSHOTS, else in build/screenshots."""
        folder = Path(os.environ.get("OPNC_CCP_SCREENSHOTS", str(ROOT / "build" / "screenshots")))
        self.picture(folder / f"{re.sub('[^a-z0-9-]+', '-', name.lower()).strip('-')}.webp", whole=True)
