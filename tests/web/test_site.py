"""Tests of the site's name, logo, colours and help on the pages of the portal, on screen and printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pam_totp.core.record import HotpToken
from pam_totp.system.portal_table import Appearance, Logo
from tests.conftest import as_root
from tests.services.namespace import COPY, LIBRARIES, Machine
from tests.support.site import KEY, PATIENCE, TREE, Site, codes, until
from tests.web.accessible import assert_no_violations
from tests.web.chromium import running
from tests.web.kit import Portal, enroll_fob
from tests.web.people import Person
from tests.web.served import PlainPortal, listens, missing_programs, plain_portal

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium

PORT = 8445  # the port of a portal on the test machine
# A logo with its own style sheet, 8 times as wide as high.
LOGO = Logo(
    b'<svg xmlns="http://www.w3.org/2000/svg" width="800" height="100" viewBox="0 0 800 100">'
    b"<style>rect { fill: #00ff00; }</style><rect width='800' height='100'/></svg>",
    "image/svg+xml",
)
OURS = Appearance(
    name="Example University",
    logo=LOGO,
    accent="#7a1020",
    accent_dark="#f0a0b0",
    help={"en": "Ask the library's desk.", "de": "Fragen Sie in der Bibliothek."},
    url="https://help.example/two-factor",
    telephone="+49 (0)30 123-456",
)


# Pages


def test_every_page_has_the_name_and_the_help_of_the_site(site: Site) -> None:
    portal = Portal(site, appearance=OURS)
    enroll_fob(portal)
    browser = portal.browser()
    shown = [browser.open("/sign-in"), browser.sign_in(password="wrong"), browser.sign_in()]
    shown.append(browser.send(proof=codes(0)))
    shown += [browser.open(path) for path in ("/add-phone", "/recovery", "/no-such-page")]
    browser.open("/recovery")
    shown.append(browser.send(proof=codes(1)))
    assert [page.status for page in shown] == [200, 401, 200, 200, 200, 200, 404, 200]
    for page in shown:
        assert page.text.count("Example University") == 3, "the title, the header and the printed footer show the name"
        assert "Need help? Ask the library's desk. https://help.example/two-factor +49 (0)30 123-456" in page.text
        assert '<a href="tel:+4930123456">' in page.html
        assert '<img class="logo" src="/site/logo" alt="">' in page.html


def test_without_the_table_the_pages_have_the_issuer_only(portal: Portal) -> None:
    page = portal.browser().open("/sign-in")
    assert "Sign in – portal.example" in page.text
    assert "Need help?" not in page.text
    assert "/site/" not in page.html


def test_the_help_is_marked_with_its_language(site: Site) -> None:
    browser = Portal(site, appearance=OURS).browser()
    assert "<p>Fragen Sie in der Bibliothek.</p>" in browser.open("/sign-in?lang=de").html
    assert '<p lang="en">Ask the library' in browser.open("/sign-in?lang=fr").html
    plain = Portal(site, appearance=Appearance(help={"": "Ask us."})).browser()
    assert "<p>Ask us.</p>" in plain.open("/sign-in?lang=fr").html


def test_markup_of_the_site_file_is_text(site: Site) -> None:
    ours = Appearance(name="<b>A&B</b>", help={"": "<script>1</script>"}, url="https://help.example/?a=1&b='2'")
    html = Portal(site, appearance=ours).browser().open("/sign-in").html
    assert "<b>" not in html
    assert "<script>" not in html
    assert "&lt;b&gt;A&amp;B&lt;/b&gt;" in html
    assert 'href="https://help.example/?a=1&amp;b=&#39;2&#39;"' in html


def test_the_files_of_the_site_are_cached_and_not_limited(site: Site) -> None:
    portal = Portal(site, appearance=OURS, rate_limits=True, per_address=1)
    client = portal.browser().client
    for path, kind in (("/site/logo", "image/svg+xml"), ("/site/colours.css", "text/css; charset=utf-8")):
        for _ in range(50):
            response = client.get(path, base_url="https://portal.example")
        assert (response.status_code, response.headers["Content-Type"]) == (200, kind)
        assert response.headers["Cache-Control"] == "max-age=3600"
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert "Set-Cookie" not in response.headers
        assert "Vary" not in response.headers
    assert client.get("/site/logo", base_url="https://portal.example").data == LOGO.content


def test_a_site_without_a_logo_or_colours_has_no_files(portal: Portal) -> None:
    browser = portal.browser()
    assert [browser.open(path).status for path in ("/site/logo", "/site/colours.css")] == [404, 404]


def test_the_portal_does_not_start_with_a_mistake_in_its_table(site: Site) -> None:
    site.config.write_text('[portal]\naccent = "#ffcc00"\n')
    done = site.command("portal", "--config", site.config)
    assert done.returncode != 0
    assert "portal.accent: the contrast of #ffcc00 to #e8f1fc is 1.32:1, and must be at least 4.5:1" in done.stderr
    assert done.stderr.count("\n") == 1


@as_root
def test_the_command_serves_the_table_of_its_site_file_below_its_path(machine: Machine) -> None:
    machine.write("/etc/pam.d/pam_totp-portal", (TREE / "pam_totp" / "web" / "pam_totp-portal").read_text())
    machine.write("/etc/logo.svg", LOGO.content.decode())
    machine.write(
        "/etc/portal.toml",
        '[portal]\nname = "Example"\nlogo = "/etc/logo.svg"\naccent = "#7a1020"\nhelp.de = "Fragen Sie."\n',
    )
    python = ["env", f"PYTHONPATH={COPY}:{LIBRARIES}", "PYTHONDONTWRITEBYTECODE=1", os.path.realpath(sys.executable)]
    words = ["--listen", f"127.0.0.1:{PORT}", "--path", "otp/", "--config", "/etc/portal.toml"]
    process = machine.start(*python, "-m", "pam_totp.cli", "portal", *words)
    try:
        until(lambda: listens(machine, PORT), "the portal listens")

        def read(path: str) -> str:
            url = f"http://127.0.0.1:{PORT}{path}"
            program = f"import urllib.request; print(urllib.request.urlopen({url!r}).read().decode(), end='')"
            done = machine.run(*python, "-c", program)
            assert done.returncode == 0, done.stderr
            return done.stdout

        page = read("/otp/sign-in?lang=de")
        assert "– Example</title>" in page
        assert "Fragen Sie." in page
        assert 'href="/otp/site/colours.css?light=%237a1020&amp;dark=%23' in page
        assert read("/otp/site/logo") == LOGO.content.decode()
        assert "--accent: #7a1020;" in read("/otp/site/colours.css")
        assert read("/otp/health") == read("/health") == "ok\n"
    finally:
        process.terminate()
        process.wait(PATIENCE)


# A real browser


@pytest.fixture(scope="module")
def ours() -> Iterator[PlainPortal]:
    reason = missing_programs()
    if reason is not None:
        pytest.skip(reason)
    with plain_portal(appearance=OURS) as served:
        yield served


@pytest.fixture(scope="module")
def chromium(ours: PlainPortal) -> Iterator[Chromium]:
    with running(ours.browser) as browser:
        yield browser


@pytest.fixture
def alice(chromium: Chromium, ours: PlainPortal, request: pytest.FixtureRequest) -> Iterator[Person]:
    """Yield a user with a key fob, and a browser with the options of `request.param`."""
    ours.delete_all_users()
    ours.enrol("alice", HotpToken(name="fob", secret=KEY, created=0))
    person = Person(chromium, ours, **request.param)
    yield person
    person.close()


def look(width: int, scheme: str) -> dict[str, object]:
    return {"viewport": {"width": width, "height": 640}, "color_scheme": scheme}


PIXEL = """image => {
    const context = document.createElement('canvas').getContext('2d');
    context.drawImage(image, 0, 0);
    return [...context.getImageData(20, 20, 1, 1).data];
}"""


def colour(person: Person, selector: str, name: str) -> str:
    return str(person.page.locator(selector).first.evaluate("(e, name) => getComputedStyle(e)[name]", name))


@pytest.mark.parametrize(
    ("alice", "accent", "ink"),
    [
        (look(320, "light"), "rgb(122, 16, 32)", "rgb(255, 255, 255)"),
        (look(1280, "dark"), "rgb(240, 160, 176)", "rgb(13, 22, 34)"),
    ],
    indirect=["alice"],
)
def test_the_pages_of_a_site_are_accessible_in_both_themes(alice: Person, accent: str, ink: str) -> None:
    alice.sign_in()
    for path in ("/sign-in", "/code", "/no-such-page"):
        alice.page.goto(path)
        assert_no_violations(alice.page)
        assert alice.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        assert (colour(alice, "main .button, main button", "backgroundColor")) == accent
        assert (colour(alice, "main .button, main button", "color")) == ink
        assert alice.page.locator("header .logo").is_visible()
        assert alice.page.locator(".site").is_visible()
        assert not alice.page.locator(".site .logo").is_visible()
    box, screen = alice.page.locator("header .logo").bounding_box(), alice.page.viewport_size
    assert box is not None
    assert screen is not None
    assert box["height"] <= 56
    assert box["width"] <= screen["width"] - 32
    assert alice.page.locator("header .logo").evaluate(PIXEL) == [0, 255, 0, 255], "the logo has its own style sheet"
    assert [line for line in alice.console_messages if "404" not in line] == []


@pytest.mark.parametrize("alice", [look(1280, "dark")], indirect=True)
def test_paper_has_the_name_the_logo_and_the_help_in_black_on_white(alice: Person) -> None:
    alice.sign_in(code=codes(0))
    alice.page.goto("/recovery")
    alice.page.get_by_label("A code from a token that you already use").fill(codes(1))
    alice.press("Create new codes")
    alice.page.emulate_media(media="print")
    for selector in (".site .logo", ".site .print", "#help", ".site a[href^=tel]", ".site a[href^=https]", ".codes"):
        assert alice.page.locator(selector).is_visible(), selector
    assert not alice.page.locator(".languages").is_visible()
    assert not alice.page.locator("header").is_visible()
    paper = alice.page.locator(".site").inner_text()
    for text in ("Example University", "Ask the library's desk.", str(OURS.url), str(OURS.telephone)):
        assert text in paper
    assert {colour(alice, selector, "color") for selector in (".site .print", "#help", ".site a")} == {"rgb(0, 0, 0)"}
    assert colour(alice, "body", "backgroundColor") == "rgb(255, 255, 255)"
