"""Tests of the first token: the permission to add a first token, and the texts of the pages before the QR code."""

from __future__ import annotations

import pytest

from pam_totp.web.portal import Config, FirstToken
from tests.support.site import KEY, Site, codes
from tests.web.kit import Browser, FixedPassword, Page, Portal, code_of_app, enroll_fob, key_on_page

SERIAL = "SM01"


def by_administrator(site: Site) -> Portal:
    return Portal(site, first_token=FirstToken.OFF)


def asks_for_the_administrator(page: Page) -> bool:
    return "Your administrator adds your first token." in page.text


def every_page(browser: Browser) -> list[Page]:
    """Return the pages on which a user adds a phone, both after a GET and after a POST."""
    fields = {"csrf_token": browser.open("/").csrf, "name": "phone", "code": "123456"}
    pages = [browser.open(path) for path in ("/add-phone", "/add-phone/scan")]
    return pages + [browser.post(path, fields) for path in ("/add-phone", "/add-phone/scan")]


def test_by_default_a_ticket_is_needed_for_the_first_token(site: Site) -> None:
    assert Config(passwords=FixedPassword()).first_token is FirstToken.TICKET
    shown = " ".join(site.command("portal", "--help").stdout.split())
    assert "--first-token {off,ticket,password}" in shown
    assert "the password alone (password) (ticket)" in shown


def test_without_a_token_no_page_shows_a_qr_code(site: Site) -> None:
    portal = by_administrator(site)
    browser = portal.signed_in()
    page = browser.open("/")
    assert asks_for_the_administrator(page)
    assert "/add-phone" not in page.html
    for page in every_page(browser):
        assert asks_for_the_administrator(page), page.text
        assert "<svg" not in page.html
        assert "otpauth" not in page.html
    assert not portal.site.path("alice").exists()


def test_a_user_cannot_add_a_first_token_with_their_own_key(site: Site) -> None:
    browser = by_administrator(site).signed_in()
    page = browser.open("/add-token")
    assert "I have its key" not in page.text
    page = browser.send(serial="own", codes=codes(0, 2), key=f"hex:{KEY.hex()}")
    assert (page.status, page.error) == (422, "An administrator must add your first token.")
    assert not site.path("alice").exists() or not site.record("alice").tokens


def test_a_first_token_that_an_administrator_assigned_is_activated(site: Site) -> None:
    portal = by_administrator(site)
    enroll_fob(portal, serial=SERIAL, confirmed=False)
    browser = portal.signed_in()
    page = browser.open("/")
    assert not asks_for_the_administrator(page), "the administrator has assigned a token"
    assert "Put fob into use" in page.text
    browser.open(f"/add-token?serial={SERIAL}")
    assert browser.send(serial=SERIAL, codes=codes(5) + codes(7)).status == 422
    assert browser.send(serial=SERIAL, codes=codes(5, 2)).notice == "fob is in use now."
    assert portal.browser().sign_in().heading == "Your code"


def test_a_user_with_a_token_adds_a_phone_with_its_code(site: Site) -> None:
    portal = by_administrator(site)
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(0))
    assert not asks_for_the_administrator(browser.open("/"))
    browser.open("/add-phone")
    key = key_on_page(browser.send(name="phone"))
    assert browser.send(code=code_of_app(key, portal.wall), proof=codes(1)).notice == "phone is in use now."


def test_a_key_on_the_page_is_invalid_after_the_removal_of_the_last_token(site: Site) -> None:
    portal = by_administrator(site)
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(0))
    browser.open("/add-phone")
    page = browser.send(name="phone")
    site.command("remove", "alice", "--all", "--yes")
    assert asks_for_the_administrator(browser.post(page.action, {"csrf_token": page.csrf, "code": "123456"}))
    assert not site.path("alice").exists()


@pytest.mark.parametrize("words", [["--first-token", "on"], ["--first-token"], ["--no-first-token"]])
def test_another_value_is_a_usage_error(site: Site, words: list[str]) -> None:
    assert site.command("portal", *words).returncode == 2
