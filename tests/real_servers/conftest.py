"""A browser for the tests of pages, and a record of the servers that probes were tried with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from tests.real_servers.browser import chromium
from tests.real_servers.tried import tried

__all__ = ["tried"]  # fixtures that pytest finds here

expect.set_options(timeout=30_000)  # a slow machine is not a fault of the page


@pytest.fixture(scope="module")  # not longer: with playwright's event loop, no other can run
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context()
    yield made
    made.close()
