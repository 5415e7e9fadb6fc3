"""Tests of the spellings of a host name: the portal expects the name that a real browser sends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pam_totp.web.host_header import canonical, is_listed
from tests.support.isolation import installed_browser
from tests.web.chromium import running

if TYPE_CHECKING:
    from playwright.sync_api import Page

SPELLINGS = (
    *("LOCALHOST", "www.example.org.", "a_b.example", "ab--cd.example", "[0:0::1]", "[::ffff:1.2.3.4]", "1.2.3.4."),
    *(
        "BÜCHER.example",
        "bu\u0308cher\u3002example",
        "XN--BCHER-KVA.example",
        "xn--zzzz.example",
        "ＥＸＡＭＰＬＥ．ｃｏｍ",
    ),
    *("faß.example", "STRAẞE.example", "ΒΌΛΟΣ.example", "βόλος.example", "ς.example", "\U0001d6bab.example"),
    *("İstanbul.example", "ıx.example", "\u212bngstrom.example", "\u212a.example", "\u017f.example", "\u0345a.example"),
    *("例え.example", "عربي.example", "ꭰꭱ.example", "ǆ.example", "ﬀ.example", "Ⓐ.example", "℡.example", "¼.example"),
    *("☃.example", "☎\ufe0f.example", "a\u00adb.example", "a\u200bb.example", "a\ufeffb.example", "a\u2060b.example"),
    *("क्\u200dष.example", "نامه\u200cای.example", "１.2.3.4", "é" * 56 + ".example"),
)
IMPOSSIBLE = (
    *(
        "portal.a\u200db",
        "a\u200db.example",
        "a\u200cb.example",
        "\u200da.example",
        "नी\u200d.example",
        "a\u2488b.example",
        "portal.0x1",
    ),
    *("999.1.1.1", "a.9", "[::1%eth0]", "[::1", "a<b.example", "\u00e9" * 70 + ".example"),
)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    browser = installed_browser()
    if browser is None:
        pytest.skip("requires chromium-headless-shell")
    with running(browser) as chromium:
        yield chromium.new_page()


def sent(page: Page, host: str) -> str | None:
    """Return the name that the browser sends for a host in the address bar, or None if the browser refuses the host."""
    script = "host => { try { return new URL(`https://${host}/`).host } catch { return null } }"
    found: str | None = page.evaluate(script, host)
    return found


@pytest.mark.parametrize("host", SPELLINGS)
def test_a_host_is_known_as_a_real_browser_sends_it(page: Page, host: str) -> None:
    name = sent(page, host)
    assert name is not None
    assert is_listed(name, [canonical(host)]), (name, canonical(host))


@pytest.mark.parametrize("host", IMPOSSIBLE)
def test_a_host_that_a_real_browser_refuses_is_refused_at_the_start(page: Page, host: str) -> None:
    if not host.startswith("é"):  # Chromium's URL has no limit, but DNS has
        assert sent(page, host) is None
    with pytest.raises(ValueError, match="must be one host name or address"):
        canonical(host)
