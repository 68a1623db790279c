"""Headless Chromium from Debian, and a watch for what a page must not do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

from tests.real_servers.process import require


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a Chromium; it is closed when the block ends."""
    program = require("chromium", "chromium")
    with sync_playwright() as playwright:
        # Chromium has no sandbox as root; the pages come from this machine.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watch:
    """Records errors on a page, and requests that leave its origin."""

    def __init__(self, page: Page, origin: str) -> None:
        self.troubles: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self._console(message.type, message.text))
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("request", lambda request: self._request(request.url, origin))

    def _console(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.troubles.append(text)

    def _request(self, url: str, origin: str) -> None:
        self.requests.append(url)
        if urlsplit(url)._replace(path="", query="", fragment="").geturl() != origin:
            self.troubles.append(f"a request to {url}")
