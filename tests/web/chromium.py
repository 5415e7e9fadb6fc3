"""Chromium without a window, which Playwright drives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
ALL_NAMES_HERE = "--host-resolver-rules=MAP * 127.0.0.1"  # all host names resolve to this machine


@contextmanager
def running(program: str, *flags: str) -> Iterator[Browser]:
    """Run the Chromium `program` with FLAGS and `flags` in the block, and yield the browser."""
    from playwright.sync_api import sync_playwright  # slow to import, so only tests with a browser import it

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*FLAGS, *flags])
        try:
            yield browser
        finally:
            browser.close()
