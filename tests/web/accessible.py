"""axe, a program that examines a page in a real browser for barriers.

Rules:
- The browser receives the program once for each page object: sending it for each address takes longer than axe itself.
- Only the rules about colours and scrolling run in dark mode, because the other rules examine the elements. A test of
  pages in dark mode also examines the same pages in light mode.
- A test of several looks loads each page once, and changes the look of the loaded page: a load takes longer than axe.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from axe_playwright_python.sync_playwright import Axe, AxeResults

if TYPE_CHECKING:
    from playwright.sync_api import Page

_LOADER = f"window.loadAxe = () => {{ {Axe().axe_script} }};"
_OF_COLOURS = ["color-contrast", "link-in-text-block", "scrollable-region-focusable"]
_RUN = f"""async () => {{
    if (!window.loadAxe) return null;
    if (!window.axe) loadAxe();
    const rules = matchMedia('(prefers-color-scheme: dark)').matches ? {{runOnly: {json.dumps(_OF_COLOURS)}}} : {{}};
    const {{violations}} = await axe.run({{resultTypes: ['violations'], ...rules}});
    return {{violations}};
}}"""

NARROW_LIGHT, WIDE_DARK = (320, "light"), (1280, "dark")  # pixels, and the colour scheme
NARROW_DARK = (320, "dark")


def in_looks(page: Page, looks: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Give the page each of the looks, each time before the caller's checks."""
    for width, scheme in looks:
        page.set_viewport_size({"width": width, "height": 640})
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        yield width, scheme


def assert_no_violations(page: Page) -> None:
    """Check that axe reports no violation on the page."""
    found = page.evaluate(_RUN)
    if found is None:
        page.add_init_script(_LOADER)  # load axe at each later address
        page.evaluate(_LOADER)
        found = page.evaluate(_RUN)
    result = AxeResults(found)
    assert result.violations_count == 0, (page.url, result.generate_report())
