"""Tests of the guided enrolment with a real browser."""

from __future__ import annotations

import re
import time
from pathlib import Path

from pam_totp.core.record import HotpToken, Token, UserRecord
from pam_totp.operations.enroll import new_recovery_codes
from pam_totp.operations.tickets import issue_ticket, new_phone
from tests.support.site import KEY, codes
from tests.web.people import People, Person, Phone
from tests.web.served import APP, TELEPHONE, Served
from tests.web.test_browser import COLOURS, assert_accessible, assert_accessible_in_both_schemes

CODE = "The code that the app shows"
PROOF = "Recovery code, temporary code or ticket"
SMALL = {"viewport": {"width": 320, "height": 640}}


def invite(served: Served, *tokens: Token, token: Token | None = None) -> str:
    """Write alice's record with `tokens` and a ticket for `token`, by default for a new phone. Return the ticket."""
    now = int(time.time())
    record = UserRecord(user="alice", tokens=tokens)
    record, ticket = issue_ticket(record, token or new_phone(record, now), now + 3600)
    served.enrol("alice", *record.tokens, ticket=record.ticket)
    return ticket


def fob(*, confirmed: bool = True) -> HotpToken:
    return HotpToken(name="HT-7", secret=KEY, created=0, serial="HT-7", confirmed=confirmed)


def app_key(person: Person) -> str:
    """Return the key on the page, even if its section is closed."""
    return (person.page.locator(".key code").text_content() or "").replace(" ", "")


def app_of(person: Person) -> Phone:
    """Return the phone app with the key on the page."""
    return Phone(app_key(person))


def test_from_a_password_and_a_ticket_to_a_code_and_recovery_codes(
    newcomers: People, served_with_tickets: Served, tmp_path: Path
) -> None:
    ticket = invite(served_with_tickets)
    alice = newcomers(permissions=["clipboard-read", "clipboard-write"])
    alice.sign_in()
    assert alice.heading == "Set up your second factor"
    alice.fill(Enrolment_ticket=ticket.lower().replace("-", " "))
    alice.press("Begin")
    link = alice.page.get_by_role("link", name=APP.name)
    assert link.get_attribute("href") == APP.url
    alice.press("I have an app")
    uri = alice.scan(tmp_path / "qr.png")
    assert (uri["kind"], uri["label"]) == ("totp", "/portal.example.org:alice")
    assert (
        alice.page.get_by_role("link", name="Open in an app on this device").get_attribute("href") or ""
    ).startswith("otpauth://totp/")
    app = Phone(uri["secret"])
    alice.fill(**{CODE: app.code()})
    alice.press("Continue")
    shown = alice.page.locator(".codes code").all_inner_texts()
    assert (alice.heading, len(shown)) == ("Your recovery codes", 10)
    alice.page.get_by_role("button", name="Copy").click()
    alice.page.get_by_role("button", name="Copied").wait_for()
    assert alice.page.evaluate("navigator.clipboard.readText()").split() == shown
    with alice.page.expect_download() as download:
        alice.page.get_by_role("link", name="Save as text").click()
    host = alice.page.evaluate("location.host").replace(":", "-")
    assert download.value.suggested_filename == f"recovery-codes-{host}-alice.txt"
    saved = Path(download.value.path()).read_text()
    assert [line for line in saved.splitlines() if line in shown] == shown
    assert TELEPHONE in saved
    alice.press("I have kept them")
    assert alice.heading == "You are set up"
    alice.press("Go to your tokens")
    alice.press("Sign out")
    alice.sign_in(code=app.code())
    assert alice.heading == "Your tokens"
    assert served_with_tickets.record("alice").ticket is None
    assert alice.console_messages == []


def test_the_guided_way_requires_only_a_keyboard(newcomers: People, served_with_tickets: Served) -> None:
    ticket = invite(served_with_tickets)
    alice = newcomers(**SMALL)
    alice.sign_in()
    keys = alice.page.keyboard
    alice.type_as_key_fob("Enrolment ticket", ticket)

    def tab_to(text: str) -> None:
        for _ in range(25):
            keys.press("Tab")
            if alice.page.evaluate("document.activeElement.textContent.trim()") == text:
                return
        raise AssertionError(text)

    def follow(text: str) -> None:
        tab_to(text)
        with alice.page.expect_navigation():
            keys.press("Enter")

    follow("I have an app")
    app = app_of(alice)
    tab_to("Or type the key")
    keys.press("Enter")
    assert alice.page.locator(".key code").is_visible()
    for _ in range(25):
        keys.press("Tab")
        if alice.page.evaluate("document.activeElement.id") == "code":
            break
    alice.type_as_key_fob(CODE, app.code())
    follow("I have kept them")
    assert alice.heading == "You are set up"


def test_the_codes_of_a_key_fob_with_a_ticket_are_typed_by_the_key_fob(
    newcomers: People, served_with_tickets: Served
) -> None:
    handed_out = fob(confirmed=False)
    ticket = invite(served_with_tickets, handed_out, token=handed_out)
    alice = newcomers(**SMALL)
    alice.sign_in()
    alice.type_as_key_fob("Enrolment ticket", ticket)
    assert_accessible(alice)
    alice.type_as_key_fob("The code that the key fob shows", codes(3))
    assert_accessible(alice)
    alice.type_as_key_fob("The next code", codes(4))
    assert alice.heading == "Your recovery codes"


def test_a_lost_phone_is_replaced_by_a_recovery_code(newcomers: People, served_with_tickets: Served) -> None:
    record, shown = new_recovery_codes(UserRecord(user="alice", tokens=(fob(),)), 2)
    served_with_tickets.enrol("alice", fob(), salt=record.salt, recovery=record.recovery)
    alice = newcomers(java_script_enabled=False, **SMALL)
    alice.sign_in()
    alice.press("I have lost my phone")
    alice.fill(**{PROOF: shown[0]})
    alice.press("Continue")
    alice.press("I have an app")
    assert "stops working: HT-7" in alice.page.locator("main").inner_text()
    alice.fill(**{CODE: app_of(alice).code()})
    alice.press("Continue")
    assert alice.heading == "Your recovery codes"
    assert [t.name for t in served_with_tickets.record("alice").tokens] == ["phone"]


def test_one_ticket_in_two_browsers_at_once_enrols_one(newcomers: People, served_with_tickets: Served) -> None:
    ticket = invite(served_with_tickets)
    two = [newcomers(), newcomers()]
    for person in two:
        person.sign_in()
        person.fill(Enrolment_ticket=ticket)
        person.press("Begin")
        person.press("I have an app")
        person.fill(**{CODE: app_of(person).code()})
    for person in two:  # both browsers send the code before either gets a response
        person.page.evaluate("setTimeout(() => document.querySelector('main form').requestSubmit(), 50)")
    for person in two:  # the loser keeps the page, with an error, if the portal works on both codes at once
        refused = person.page.get_by_text("This ticket was used or replaced")
        person.page.locator("h1:not(:text-is('Scan this with your app'))").or_(refused).first.wait_for()
    assert [person.heading for person in two].count("Your recovery codes") == 1
    assert len(served_with_tickets.record("alice").recovery) == 10


def test_recovery_codes_print_on_one_page_with_date_host_and_contact(
    newcomers: People, served_with_tickets: Served, tmp_path: Path
) -> None:
    ticket = invite(served_with_tickets)
    alice = newcomers(color_scheme="dark")
    alice.sign_in()
    alice.fill(Enrolment_ticket=ticket)
    alice.press("Begin")
    alice.press("I have an app")
    alice.fill(**{CODE: app_of(alice).code()})
    alice.press("Continue")
    alice.page.emulate_media(media="print")
    paper = alice.page.locator("body").inner_text()
    assert re.search(r"Made on \d{4}-\d\d-\d\d at (portal\.example\.org|localhost)", paper)
    assert TELEPHONE in paper
    assert "I have kept them" not in paper
    assert "Step" not in paper
    assert set(alice.page.evaluate(COLOURS)) <= {"rgb(0, 0, 0)", "rgb(255, 255, 255)", "rgba(0, 0, 0, 0)"}
    assert set(alice.page.evaluate(COLOURS, "color")) == {"rgb(0, 0, 0)"}
    alice.page.emulate_media()
    pdf = alice.page.pdf(path=tmp_path / "codes.pdf", print_background=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1


def test_every_guided_page_is_accessible_and_fits_320_pixels(newcomers: People, served_with_tickets: Served) -> None:
    ticket = invite(served_with_tickets)
    alice = newcomers()
    alice.sign_in()
    assert_accessible_in_both_schemes(alice)
    alice.fill(Enrolment_ticket="0000-0000-0000-0000")
    alice.press("Begin")
    assert_accessible_in_both_schemes(alice)
    alice.fill(Enrolment_ticket=ticket)
    alice.press("Begin")
    assert_accessible_in_both_schemes(alice)
    alice.press("I have an app")
    assert_accessible_in_both_schemes(alice)
    alice.fill(**{CODE: "000000"})
    alice.press("Continue")
    assert alice.error == "Wrong code. Enter a code from the new token."
    alice.page.get_by_text("Or type the key").click()
    assert_accessible_in_both_schemes(alice)
    alice.fill(**{CODE: app_of(alice).code()})
    alice.press("Continue")
    assert_accessible_in_both_schemes(alice)
    alice.press("I have kept them")
    assert_accessible_in_both_schemes(alice)
    served_with_tickets.enrol("alice", fob(), HotpToken(name="x" * 60, secret=KEY[::-1], created=0))
    bob = newcomers()
    bob.sign_in()
    assert_accessible_in_both_schemes(bob)
    bob.press("I have lost my phone")
    assert_accessible_in_both_schemes(bob)
    bob.fill(**{PROOF: "0000-0000-0000-0000"})
    bob.press("Continue")
    assert_accessible_in_both_schemes(bob)
