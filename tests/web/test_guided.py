"""Tests of the guided enrolment: tickets, the first code, lost phones, recovery codes, clocks."""

from __future__ import annotations

import html
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pam_totp.core.oath import hotp
from pam_totp.core.record import HotpToken, Token, UserRecord
from pam_totp.operations.enroll import new_recovery_codes, new_token
from pam_totp.operations.tickets import issue_ticket, with_temporary_code
from pam_totp.store.file import FileStore
from pam_totp.system.portal_table import Appearance
from pam_totp.web.portal import App, FirstToken
from tests.support.site import KEY, Site, codes
from tests.web.kit import REFUSAL, Browser, Page, Portal, code_of_app, enroll_fob, key_on_page

WRONG = "0000-0000-0000-0000"
DAY = 86_400  # seconds
START, APP, SCAN, CODES, DONE = (
    "Set up your second factor",
    "Get an app on your phone",
    "Scan this with your app",
    "Your recovery codes",
    "You are set up",
)
HELP = Appearance(help={"": "Ask <b>us</b>."}, url="mailto:desk@example.org", telephone="12 34")
LOST = "Lost phone or key fob"


@pytest.fixture
def portal(site: Site) -> Portal:
    """Return the portal with its default way to a first token: a ticket."""
    return Portal(site, first_token=FirstToken.TICKET)


def ticket(portal: Portal, token: Token | None = None, seconds: float = DAY) -> str:
    """Create a ticket for alice that expires in `seconds`, and return the ticket."""
    now = int(portal.wall())
    new = token or new_token("totp", name="new phone", secret=b"n" * 20, algorithm="SHA1", digits=6, now=now)

    def change(record: UserRecord) -> tuple[UserRecord, str]:
        return issue_ticket(record, new, now + int(seconds))

    return FileStore(str(portal.site.store)).update("alice", change, create=True)


def recovery_codes(portal: Portal) -> list[str]:
    return FileStore(str(portal.site.store)).update("alice", lambda record: new_recovery_codes(record, 3))


def temporary_code(portal: Portal) -> str:
    ends = int(portal.wall()) + 60
    return FileStore(str(portal.site.store)).update("alice", lambda record: with_temporary_code(record, ends))


def fob_to_hand_out() -> HotpToken:
    return HotpToken(name="HT-7", secret=KEY, created=0, serial="HT-7", confirmed=False)


def codes_on_page(page: Page) -> list[str]:
    return re.findall(r"<code>([0-9A-Z-]{19})</code>", page.html)


def tokens(portal: Portal) -> list[str]:
    return [t.name for t in portal.site.record("alice").tokens if t.confirmed]


def at_scan_page(portal: Portal, proof: str) -> Browser:
    """Return the browser of a user without a token at the page with the QR code, after `proof`."""
    browser = portal.browser()
    assert browser.sign_in().heading == START
    assert browser.send(proof=proof).heading == APP
    assert browser.open("/set-up/scan").heading == SCAN
    return browser


def at_code_page(portal: Portal) -> Browser:
    """Return the browser of a user with a token at the page for the code, after the password."""
    browser = portal.browser()
    assert browser.sign_in().heading == "Your code"
    return browser


def after_proof(portal: Portal, proof: str, **fields: str) -> Browser:
    """Return the browser of a user with a lost token at the page with the QR code, after `proof`."""
    browser = at_code_page(portal)
    assert browser.open("/lost-phone").heading == LOST
    page = browser.send(proof=proof, **fields)
    assert page.heading == APP, page.error
    browser.open("/set-up/scan")
    return browser


def finish(portal: Portal, browser: Browser) -> Page:
    """Send the current code of the key on the page. Return the next page."""
    assert browser.page is not None
    return browser.send(code=code_of_app(key_on_page(browser.page), portal.wall))


# From a ticket


def test_a_ticket_leads_to_a_phone_and_recovery_codes(portal: Portal) -> None:
    browser = at_scan_page(portal, ticket(portal))
    page = finish(portal, browser)
    assert page.heading == CODES
    shown = codes_on_page(page)
    assert len(shown) == 10
    record = portal.site.record("alice")
    assert (tokens(portal), record.ticket, len(record.recovery)) == (["new phone"], None, 10)
    assert browser.send().heading == DONE
    assert browser.open("/").heading == "Your tokens"
    assert browser.open("/set-up/codes").notice.startswith("Recovery codes are shown only once.")
    assert 'presented user=alice what=ticket token="new phone"' in portal.log[1]
    assert [line.split(": ", 1)[1].split(" created")[0] for line in portal.log[2:]] == [
        'accepted user=alice by=ticket token="new phone"',
        'changed user=alice what=enroll token="new phone"',
        portal.log[4].split(": ", 1)[1],
    ]
    assert "changed user=alice what=recovery" in portal.log[4]
    again = portal.browser()
    again.sign_in()
    assert again.send(proof=code_of_app(b"n" * 20, portal.wall, 1)).heading == "Your tokens"


def test_the_ticket_of_pam_totp_invite_is_taken(portal: Portal) -> None:
    done = portal.site.command("invite", "alice", "--json", "--output", "-")
    assert done.returncode == 0, done.stderr
    (made,) = json.loads(done.stdout)
    browser = at_scan_page(portal, made["ticket"])
    assert finish(portal, browser).heading == CODES
    assert tokens(portal) == ["phone"]


def test_until_the_first_code_the_same_key_is_shown_at_every_try(portal: Portal) -> None:
    given = ticket(portal)
    keys = set()
    for _ in range(2):
        browser = at_scan_page(portal, given)
        assert browser.page is not None
        keys.add(key_on_page(browser.page))
        assert browser.send(code="000000").error == "Wrong code. Enter a code from the new token."
        assert browser.open("/").heading == APP
    assert keys == {b"n" * 20}
    assert portal.site.record("alice").failures == 0
    assert finish(portal, at_scan_page(portal, given)).heading == CODES


def test_a_token_that_waits_for_its_ticket_is_shown_as_such(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(0))
    ticket(portal)
    page = browser.open("/")
    assert "not active yet: your ticket activates it" in page.text
    assert "Put new phone into use" not in page.text


def test_a_wrong_ticket_costs_what_a_refusal_costs_and_is_not_counted(portal: Portal) -> None:
    ended = ticket(portal, seconds=60)
    browser = portal.browser()
    browser.sign_in()
    portal.wall.advance(60)
    errors = []
    for proof in (WRONG, ended):
        page = browser.send(proof=proof)
        assert (page.status, page.heading) == (401, START)
        errors.append(page.error)
    assert set(errors) == {
        "Refused. Compare your answer with the ticket. A ticket works once, and only until it expires."
        " Ask for a new ticket if it has expired."
    }
    assert sum("refused user=alice reason=not-enrolled" in line for line in portal.log) == 2
    assert portal.site.record("alice").failures == 0
    assert browser.send(proof="123456").error == "A ticket has 16 letters and digits."
    assert browser.open("/set-up/scan").heading == "Your tokens"


def test_where_a_code_is_asked_a_ticket_is_taken_too(portal: Portal) -> None:
    enroll_fob(portal)
    browser = at_code_page(portal)
    assert browser.send(proof=WRONG).error == REFUSAL
    assert browser.send(proof=ticket(portal)).heading == APP
    assert browser.open("/add-phone").heading == APP, "the user is not signed in"
    browser.open("/set-up/scan")
    assert browser.page is not None
    assert "With the first code, this stops working: fob." in browser.page.text
    assert tokens(portal) == ["fob"], "the old token is valid until the first code"
    assert finish(portal, browser).heading == CODES
    assert tokens(portal) == ["new phone"]
    assert portal.site.record("alice").failures == 0
    assert any("what=remove token=fob" in line for line in portal.log)


def test_with_off_no_ticket_is_taken(site: Site) -> None:
    portal = Portal(site, first_token=FirstToken.OFF)
    given = ticket(portal)
    browser = portal.browser()
    assert browser.sign_in().heading == "Your tokens"
    page = browser.open("/set-up")
    assert (page.status, page.heading) == (403, "Ask your administrator")
    fields = {"csrf_token": page.csrf, "proof": given}
    assert browser.post("/set-up", fields).status == 403
    enroll_fob(portal, user="bob")
    other = portal.browser()
    other.sign_in("bob")
    assert other.send(proof=given).error == REFUSAL


def test_the_ticket_of_a_key_fob_shows_no_key_and_takes_one_code_at_a_time(portal: Portal) -> None:
    browser = portal.browser()
    browser.sign_in()
    page = browser.send(proof=ticket(portal, fob_to_hand_out()))
    assert page.heading == "Put your key fob into use"
    assert "otpauth" not in page.html
    assert "<svg" not in page.html
    assert "HT-7" in page.text
    assert "Step 2 of 4" in page.text
    assert "The first code has arrived." in browser.send(code=codes(7)).text
    assert "The first code has arrived." in browser.send(code=codes(7)).text, "the form was sent twice"
    assert browser.send(code=codes(9)).error == "Wrong codes. Enter two codes in a row from this token."
    browser.send(code=codes(7))
    page = browser.send(code=codes(8))
    assert page.heading == CODES
    assert "Step 3 of 4" in page.text
    assert portal.site.counter("alice") == 9


def test_a_key_fob_without_a_ticket_is_still_put_into_use_by_its_codes(portal: Portal) -> None:
    portal.site.enrol(fob_to_hand_out(), user="alice")
    browser = portal.browser()
    assert browser.sign_in().heading == "Your tokens"
    assert "Put HT-7 into use" in browser.open("/set-up").text
    browser.open("/add-token?serial=HT-7")
    assert browser.send(serial="HT-7", codes=codes(0, 2)).notice == "HT-7 is in use now."


def test_a_key_fob_with_a_clock_needs_two_codes_too(portal: Portal) -> None:
    now = int(portal.wall())
    timed = new_token("totp", name="T1", secret=b"t" * 20, algorithm="SHA1", digits=6, now=now).with_serial("T1")
    browser = portal.browser()
    browser.sign_in()
    page = browser.send(proof=ticket(portal, timed))
    assert "Press the button" not in page.text
    assert "Now wait for the next code" in browser.send(code=code_of_app(b"t" * 20, portal.wall)).text
    assert browser.send(code=code_of_app(b"t" * 20, portal.wall, 1)).heading == CODES


def test_two_codes_of_a_key_fob_in_one_answer_suffice(portal: Portal) -> None:
    browser = portal.browser()
    browser.sign_in()
    browser.send(proof=ticket(portal, fob_to_hand_out()))
    assert browser.send(code=codes(3, 2)).heading == CODES


def test_a_ticket_that_ends_or_is_replaced_on_the_way_is_said(portal: Portal) -> None:
    given = ticket(portal)
    browser = at_scan_page(portal, given)
    other = at_scan_page(portal, given)
    key = b"n" * 20
    ticket(portal, new_token("totp", name="x", secret=b"x" * 20, algorithm="SHA1", digits=6, now=0))
    page = browser.send(code=code_of_app(key, portal.wall))
    assert (page.status, page.heading) == (410, "The ticket is no longer valid")
    assert other.open("/set-up/app").status == 410
    assert browser.send().notice == "Nothing was changed."
    assert tokens(portal) == []


def test_one_of_two_browsers_with_one_ticket_wins(portal: Portal) -> None:
    for _ in range(5):
        site_file = portal.site.path("alice")
        site_file.unlink(missing_ok=True)
        given = ticket(portal)
        browsers = [at_scan_page(portal, given) for _ in range(4)]
        with ThreadPoolExecutor(4) as threads:
            pages = list(threads.map(lambda browser: finish(portal, browser), browsers))
        assert sum(page.heading == CODES for page in pages) == 1, [page.text for page in pages]
        winner = next(page for page in pages if page.heading == CODES)
        record = portal.site.record("alice")
        assert (tokens(portal), len(record.recovery)) == (["new phone"], 10)
        assert len(codes_on_page(winner)) == 10
        assert sum("by=ticket" in line for line in portal.log) == 1
        portal.log.clear()


def test_a_form_sent_twice_enrols_once_and_shows_the_codes(portal: Portal) -> None:
    browser = at_scan_page(portal, ticket(portal))
    assert browser.page is not None
    form = {"csrf_token": browser.page.csrf, "code": code_of_app(b"n" * 20, portal.wall)}
    twin = portal.browser()
    twin.use_cookie(browser.cookie)
    assert browser.post("/set-up/scan", form).heading == CODES
    page = twin.post("/set-up/scan", form)
    assert "was ignored" in page.text
    assert "Set-Cookie" not in page.response.headers
    assert "You have not kept your recovery codes yet." in browser.open("/").text


# From the password


def test_a_password_leads_to_a_phone_where_the_site_allows_it(site: Site) -> None:
    portal = Portal(site)
    browser = portal.browser()
    assert browser.sign_in().heading == "Your tokens"
    assert browser.open("/set-up").heading == START
    assert browser.send().heading == APP
    browser.open("/set-up/scan")
    assert finish(portal, browser).heading == CODES
    assert tokens(portal) == ["phone"]
    assert len(portal.site.record("alice").recovery) == 10


def test_with_password_a_ticket_is_taken_too(site: Site) -> None:
    portal = Portal(site)
    browser = portal.browser()
    browser.sign_in()
    browser.open("/set-up?ticket=yes")
    given = ticket(portal)
    assert browser.send(proof=given).heading == APP
    browser.open("/set-up/scan")
    assert finish(portal, browser).heading == CODES
    assert tokens(portal) == ["new phone"]


def test_a_token_from_elsewhere_ends_the_way_by_the_password(site: Site) -> None:
    portal = Portal(site)
    browser = portal.browser()
    browser.sign_in()
    browser.open("/set-up")
    browser.send()
    browser.open("/set-up/scan")
    enroll_fob(portal)
    assert finish(portal, browser).heading == "Your code"
    assert tokens(portal) == ["fob"]


def test_the_way_needs_its_session(portal: Portal) -> None:
    enroll_fob(portal)
    for browser, heading in ((portal.browser(), "Sign in"), (at_code_page(portal), "Your code")):
        for path in ("/set-up", "/set-up/app", "/set-up/scan", "/set-up/codes", "/set-up/done"):
            assert browser.open(path).heading == heading, path
    signed_in = portal.signed_in(code=codes(0))
    for path in ("/set-up", "/set-up/app", "/set-up/scan", "/lost-phone"):
        assert signed_in.open(path).heading == "Your tokens", path


def test_a_session_stolen_before_the_ticket_is_worthless_after_it(portal: Portal) -> None:
    browser = portal.browser()
    browser.sign_in()
    thief = portal.browser()
    thief.use_cookie(browser.cookie)
    browser.send(proof=ticket(portal))
    assert thief.open("/set-up/scan").heading == "Your session has ended"
    browser.open("/set-up/scan")
    thief.use_cookie(browser.cookie)
    finish(portal, browser)
    assert thief.open("/set-up/codes").heading == "Your session has ended"


# A lost phone


@pytest.mark.parametrize("kind", ["recovery", "temporary", "ticket"])
def test_one_proof_removes_the_lost_phone_and_adds_the_new_one(portal: Portal, kind: str) -> None:
    enroll_fob(portal)
    make: Any = {"recovery": lambda: recovery_codes(portal)[1], "temporary": lambda: temporary_code(portal)}
    proof = make.get(kind, lambda: ticket(portal))()
    browser = after_proof(portal, proof)
    before = portal.site.record("alice")
    assert tokens(portal) == ["fob"], "nothing is used up before the first code"
    assert browser.send(code="000000").status == 422
    assert portal.site.record("alice") == before
    old = portal.site.record("alice").recovery
    page = finish(portal, browser)
    assert page.heading == CODES
    record = portal.site.record("alice")
    assert tokens(portal) == ["new phone" if kind == "ticket" else "phone"]
    assert (record.temporary, len(record.recovery)) == (None, 10)
    assert not set(record.recovery) & set(old)
    assert record.refused == record.failures == 0
    assert any("what=remove token=fob" in line for line in portal.log)
    again = at_code_page(portal)
    again.open("/lost-phone")
    assert again.send(proof=proof).error.startswith("Refused. Compare the code with your list or ticket.")


def test_the_user_says_which_of_several_tokens_is_lost(portal: Portal) -> None:
    now = int(portal.wall())
    phone = new_token("totp", name="phone", secret=b"p" * 20, algorithm="SHA1", digits=6, now=now)
    portal.site.enrol(
        HotpToken(name="fob", secret=KEY, created=0, serial="SM1"), phone.confirmed_without_code(), user="alice"
    )
    proofs = recovery_codes(portal)
    browser = at_code_page(portal)
    page = browser.open("/lost-phone")
    assert re.findall(r'type="radio" value="([^"]*)"', page.html.replace("checked ", "")) == ["phone", "fob", ""]
    browser = after_proof(portal, proofs[0], lost="phone")
    assert "With the first code, this stops working: phone." in browser.open("/set-up/scan").text
    finish(portal, browser)
    assert tokens(portal) == ["fob", "phone"]
    assert portal.site.record("alice").token("phone") != phone
    portal.wall.advance(60)
    (proof,) = recovery_codes(portal)[:1]
    finish(portal, after_proof(portal, proof, lost=""))
    assert tokens(portal) == ["phone"]


def test_a_proof_used_elsewhere_meanwhile_changes_nothing(portal: Portal) -> None:
    enroll_fob(portal)
    proof = recovery_codes(portal)[0]
    browser = after_proof(portal, proof)
    portal.signed_in(code=proof)
    assert finish(portal, browser).error == REFUSAL
    assert tokens(portal) == ["fob"]


def test_one_recovery_code_in_two_browsers_replaces_once(portal: Portal) -> None:
    enroll_fob(portal)
    proof = recovery_codes(portal)[0]
    browsers = [after_proof(portal, proof) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        pages = list(threads.map(lambda browser: finish(portal, browser), browsers))
    assert sum(page.heading == CODES for page in pages) == 1
    assert len(tokens(portal)) == 1


def test_a_wrong_proof_for_a_lost_phone_is_refused_and_not_counted(portal: Portal) -> None:
    enroll_fob(portal)
    browser = at_code_page(portal)
    browser.open("/lost-phone")
    page = browser.send(proof=WRONG)
    assert (page.status, page.heading) == (401, LOST)
    assert "refused user=alice reason=wrong" in portal.log[-1]
    record = portal.site.record("alice")
    assert (record.failures, record.refused) == (0, 1)
    assert browser.send(proof=codes(0)).error.startswith("Recovery codes, temporary codes and tickets have")
    assert browser.open("/set-up/scan").heading == "Your code"


def test_cancelling_leads_back_and_changes_nothing(portal: Portal) -> None:
    enroll_fob(portal)
    before = portal.site.record("alice")
    proof = recovery_codes(portal)[0]
    browser = after_proof(portal, proof)
    page = browser.page
    assert page is not None
    assert browser.post("/set-up/cancel", {"csrf_token": page.csrf}).heading == "Your code"
    assert portal.site.record("alice").tokens == before.tokens
    assert browser.send(proof=proof).heading == "Your tokens", "the recovery code is not used up"


def test_a_temporary_code_is_shown_as_such(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.signed_in(code=temporary_code(portal))
    assert browser.page is not None
    assert browser.page.notice == "You signed in with a temporary code, which is used up now."
    assert any("by=temporary" in line for line in portal.log)


# The clock of the phone


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        (2, "1 minute ahead"),
        (-2, "1 minute behind"),
        (14, "7 minutes ahead"),
        (-120, "60 minutes behind"),
        (1680, "840 minutes ahead"),
    ],
)
def test_a_wrong_clock_of_the_phone_is_said(portal: Portal, steps: int, text: str) -> None:
    portal.wall.at = 1_795_000_000.0  # each code around this time belongs to only one step within 14 hours
    browser = at_scan_page(portal, ticket(portal))
    page = browser.send(code=code_of_app(b"n" * 20, portal.wall, steps))
    assert page.error.startswith(f"The clock of your phone seems to be {text}.")
    assert finish(portal, browser).heading == CODES


def test_the_clock_is_said_for_a_further_phone_but_not_for_a_key_fob(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(0))
    browser.open("/add-phone")
    key = key_on_page(browser.send(name="phone"))
    page = browser.send(code=code_of_app(key, portal.wall, 100), proof=codes(1))
    assert "50 minutes ahead" in page.error
    assert portal.site.counter("alice") == 1
    step = int(portal.wall()) // 30
    late = {"serial": "T1", "key": f"hex:{(b't' * 20).hex()}", "kind": "every 30 seconds", "digits": "6"}
    browser.open("/add-token")
    page = browser.send(**late, algorithm="SHA1", codes=hotp(b"t" * 20, step + 100), proof=codes(1))
    assert page.error == "Wrong code. Enter a code from the new token."


# Pages


def test_the_site_chooses_the_apps(site: Site) -> None:
    apps = (App.parse("Aegis=https://getaegis.app/"), App.parse("Tom & Jerry = https://a.example/?x=1&y=2"))
    portal = Portal(site, apps=apps, first_token=FirstToken.TICKET)
    browser = portal.browser()
    browser.sign_in()
    page = browser.send(proof=ticket(portal))
    links = re.findall(r'<li><a href="([^"]*)" rel="noreferrer">([^<]*)</a>', page.html)
    assert [(html.unescape(a), html.unescape(b)) for a, b in links] == [(app.url, app.name) for app in apps]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Aegis",
        "=https://a.example",
        "Aegis=http://a.example",
        "A=javascript:alert(1)",
        "A=https://",
        "A=https://a b",
    ],
)
def test_an_app_without_a_name_or_an_https_address_is_a_usage_error(site: Site, text: str) -> None:
    done = site.command("portal", "--app", text)
    assert done.returncode == 2
    assert done.stderr.startswith("pam-totp: ")


def test_recovery_codes_are_saved_as_text_with_date_host_and_contact(site: Site) -> None:
    portal = Portal(site, first_token=FirstToken.TICKET, appearance=HELP)
    portal.wall.at = 1_795_000_000.0
    browser = at_scan_page(portal, ticket(portal))
    page = finish(portal, browser)
    shown = codes_on_page(page)
    assert "Made on 2026-11-18 at portal.example." in page.text
    assert "<p>Ask &lt;b&gt;us&lt;/b&gt;.</p>" in page.html
    (copied,) = re.findall(r'data-copy="([^"]*)"', page.html)
    assert copied.split() == shown
    file = browser.open("/recovery/codes.txt")
    assert file.response.headers["Content-Type"] == "text/plain; charset=utf-8"
    name = "recovery-codes-portal.example-alice.txt"
    assert file.response.headers["Content-Disposition"] == f'attachment; filename="{name}"'
    assert file.response.headers["Cache-Control"] == "no-store"
    assert file.html.splitlines() == [
        "Recovery codes of alice for portal.example. Each works once. Cross out each code that you use.",
        *("", *shown, ""),
        "Made on 2026-11-18 at portal.example. Older codes no longer work.",
        *("Need help?", "Ask <b>us</b>.", "desk@example.org", "12 34"),
    ]
    browser.post("/set-up/codes", {"csrf_token": page.csrf})
    assert browser.open("/recovery/codes.txt").status == 404


def test_no_guided_page_has_inline_or_third_party_code(portal: Portal) -> None:
    enroll_fob(portal)
    browser = after_proof(portal, recovery_codes(portal)[0])
    pages = [at_code_page(portal).open("/lost-phone"), browser.open("/set-up/app"), browser.open("/set-up/scan")]
    pages.append(finish(portal, browser))
    pages.append(browser.send())
    for page in pages:
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|<script(?! src=\"/static/)", page.html)
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', page.html)
    assert pages[-1].heading == DONE


def test_with_socket_there_is_no_guided_way(site: Site) -> None:
    portal = Portal(site, store=None)
    browser = portal.browser()
    page = browser.sign_in()
    assert "I have lost my phone" not in page.text
    for path in ("/lost-phone", "/set-up", "/set-up/scan"):
        assert browser.open(path).status == 404


def test_wrong_tickets_are_limited(site: Site) -> None:
    portal = Portal(site, first_token=FirstToken.TICKET, rate_limits=True)
    browser = portal.browser()
    browser.sign_in()
    assert [browser.send(proof="x").status for _ in range(21)] == [422] * 20 + [429]
