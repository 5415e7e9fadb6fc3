"""Tests of defects that users reported about other portals, with a real browser. Each test cites the report."""

from __future__ import annotations

import pytest

from pam_totp.core.record import HotpToken
from tests.support.site import KEY, codes, phone
from tests.web.people import People, Person
from tests.web.served import Served
from tests.web.test_browser import stop_clock
from tests.web.test_guided_browser import CODE, app_of, invite


def fob() -> HotpToken:
    return HotpToken(name="fob", secret=KEY, created=0)


def with_recovery_codes(newcomers: People, served: Served) -> Person:
    """Return alice at the page with her new recovery codes."""
    ticket = invite(served)
    alice = newcomers()
    alice.sign_in()
    alice.fill(Enrolment_ticket=ticket)
    alice.press("Begin")
    alice.press("I have an app")
    alice.fill(**{CODE: app_of(alice).code()})
    alice.press("Continue")
    assert alice.heading == "Your recovery codes"
    return alice


def test_signing_out_of_an_ended_session_is_no_error(people: People, served: Served) -> None:
    # https://github.com/shopsys/shopsys/issues/769
    alice = people()
    alice.sign_in()
    other = alice.context.new_page()
    other.goto("/")
    alice.press("Sign out")
    with other.expect_navigation():
        other.get_by_role("button", name="Sign out").click()
    assert other.locator("h1").inner_text() == "Signed out"


@pytest.mark.parametrize("way", ["reload", "back"])
def test_a_refused_code_is_not_sent_again_by_reload_or_back(people: People, served: Served, way: str) -> None:
    # https://github.com/mesutpiskin/keycloak-2fa-email-authenticator/issues/64
    # https://github.com/The-Wildfyre-Group/pin/issues/37
    served.enrol("alice", fob())
    alice = people()
    alice.sign_in(code="000000")
    assert alice.error.startswith("Refused")
    failures = served.record("alice").failures
    sent: list[str] = []
    alice.page.on("request", lambda request: sent.append(request.method))
    if way == "reload":
        alice.page.reload()
    else:
        alice.press("I have lost my phone")
        alice.page.go_back()
    assert alice.heading == "Your code"
    assert "POST" not in sent
    assert served.record("alice").failures == failures


def test_the_end_of_a_session_is_shown_after_the_skip_link(people: People, served: Served) -> None:
    # https://github.com/youtube/spfjs/pull/380
    alice = people()
    stop_clock(alice)
    alice.sign_in()
    alice.page.get_by_role("link", name="Skip to content").press("Enter")
    assert alice.page.url.endswith("#main")
    alice.context.clear_cookies()
    with alice.page.expect_navigation(url="**/sign-in"):
        alice.page.clock.run_for(1_000_000)
    assert alice.heading == "Sign in"


def test_a_copy_that_fails_is_said(newcomers: People, served_with_tickets: Served) -> None:
    # https://github.com/LanternOps/breeze/issues/4471
    alice = with_recovery_codes(newcomers, served_with_tickets)
    alice.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')); }")
    alice.page.get_by_role("button", name="Copy").click()
    alice.page.get_by_role("button", name="Not copied").wait_for()
    assert alice.console_messages == []


def test_browsers_do_not_translate_keys_codes_and_names(newcomers: People, served_with_tickets: Served) -> None:
    # https://github.com/MetaMask/metamask-extension/issues/7246
    alice = with_recovery_codes(newcomers, served_with_tickets)
    assert alice.page.evaluate("[...document.querySelectorAll('code, .user')].map(e => e.translate)") == [False] * 11
    alice.press("I have kept them")
    alice.press("Go to your tokens")
    assert alice.page.evaluate("document.querySelector('.tokens h2').translate") is False


def test_the_file_of_recovery_codes_names_host_and_user(newcomers: People, served_with_tickets: Served) -> None:
    # https://github.com/mozilla/fxa-content-server/issues/6071
    alice = with_recovery_codes(newcomers, served_with_tickets)
    with alice.page.expect_download() as download:
        alice.page.get_by_role("link", name="Save as text").click()
    host = alice.page.evaluate("location.host").replace(":", "-")
    assert download.value.suggested_filename == f"recovery-codes-{host}-alice.txt"


@pytest.mark.parametrize(("locale", "date"), [("en-GB", "1 Jan 2020"), ("en-US", "Jan 1, 2020")])
def test_dates_have_the_format_of_the_browsers_region(people: People, served: Served, locale: str, date: str) -> None:
    # https://github.com/steemit/condenser/issues/1967
    served.enrol("alice", fob(), phone(created=1_577_880_000))
    alice = people(locale=locale)
    alice.sign_in(code=codes(0))
    assert date in alice.page.locator("main").inner_text()


@pytest.mark.parametrize("tag", ["de-AT", "DE", "de_DE"])
def test_a_link_may_name_the_region_of_a_language(people: People, served: Served, tag: str) -> None:
    # https://github.com/alltuner/vibetuner/issues/1973
    alice = people()
    alice.page.goto(f"/sign-in?lang={tag}")
    assert alice.page.evaluate("document.documentElement.lang") == "de"
    alice.page.goto("/sign-in")
    assert alice.page.evaluate("document.documentElement.lang") == "de"


def test_search_engines_are_asked_not_to_list_the_portal(people: People, served: Served) -> None:
    # https://github.com/concretecms/concretecms/issues/7646
    answer = people().page.goto("/sign-in")
    assert answer is not None
    assert answer.headers["x-robots-tag"] == "noindex"


def test_the_qr_code_has_its_white_frame_in_high_contrast(newcomers: People, served_with_tickets: Served) -> None:
    # https://github.com/mozilla/fxa/pull/21252, https://github.com/Access4all/adg/issues/363
    ticket = invite(served_with_tickets)
    alice = newcomers(forced_colors="active", color_scheme="dark")
    alice.sign_in()
    alice.fill(Enrolment_ticket=ticket)
    alice.press("Begin")
    alice.press("I have an app")
    background = "getComputedStyle(document.querySelector('.qr')).backgroundColor"
    assert alice.page.evaluate(background) == "rgb(255, 255, 255)"
