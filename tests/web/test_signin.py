"""Tests of the sign-in: the two steps, the sessions, and messages that hide whether a user name exists."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from pam_totp.core.record import HotpToken
from pam_totp.web.sessions import Step
from tests.support.site import KEY, ME, Site, codes
from tests.web.kit import PASSWORD, REFUSAL, Browser, Page, Portal, code_of_app, enroll_fob, key_on_page

ENDED = "Your session has ended"
NO_CODE = "A code has 6 to 8 digits. Codes in a row must have the same length."
NO_RECOVERY_CODE = "A recovery code has 16 letters and digits."
REFUSED_RECOVERY = (
    "Refused. Compare the code with your list. Each recovery code works once, so try one that you have not used."
)
WRONG = "User name and password do not match."


def test_a_user_without_token_signs_in_by_password_alone(portal: Portal) -> None:
    page = portal.browser().sign_in("alice")
    assert page.heading == "Your tokens"
    assert "You have no token yet." in page.text


def test_a_user_with_a_token_needs_a_code_too(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.browser()
    assert browser.sign_in().heading == "Your code"
    for path in ("/", "/add-phone", "/add-token", "/recovery", "/resync?token=fob", "/remove?token=fob"):
        assert browser.open(path).heading == "Your code", path
    assert browser.send(proof=codes(0)).heading == "Your tokens"


def test_a_wrong_code_is_refused_counted_and_logged_as_at_any_login(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.browser()
    browser.sign_in()
    page = browser.send(proof="000000")
    assert (page.status, page.heading) == (401, "Your code")
    assert page.error == REFUSAL
    assert portal.site.record("alice").failures == 1
    assert "pam_totp(pam_totp-portal:auth): refused user=alice reason=wrong rhost=127.0.0.1" in portal.log


def test_a_used_code_and_a_wrong_code_get_the_same_message(portal: Portal) -> None:
    enroll_fob(portal)
    portal.signed_in(code=codes(0))
    browser = portal.browser()
    browser.sign_in()
    replayed, wrong = browser.send(proof=codes(0)).error, browser.send(proof="000000").error
    assert replayed == wrong


NO_SHAPE = ("12345", "123456789", "1" * 25, "12345a", "-", "\u200b\u200b", "1234 567 8901 23", "٣" * 5, "²" * 6)


def test_a_shape_error_is_said_and_neither_counted_nor_logged(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.browser()
    browser.sign_in()
    stored, lines = portal.site.path("alice").read_bytes(), list(portal.log)
    for proof in NO_SHAPE:
        page = browser.send(proof=proof)
        assert (page.status, page.error) == (422, NO_CODE), proof
    browser.open("/code?recovery=yes")
    for proof in (*NO_SHAPE, codes(0), "AAAA-AAAA-AAAA-AAA", "AAAA-AAAA-AAAA-AAAU"):
        page = browser.send(proof=proof)
        assert (page.status, page.error) == (422, NO_RECOVERY_CODE), proof
    assert (portal.site.path("alice").read_bytes(), portal.log) == (stored, lines)


def test_every_refusal_of_the_right_shape_is_the_same(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(3))
    browser.open("/recovery")
    used, *_ = re.findall(r"<code>([0-9A-Z-]+)</code>", browser.send(proof=codes(4)).html)
    portal.signed_in(code=used)
    for path, proofs in (
        ("/code", ("000000", "00000000", codes(3), codes(4), codes(3, 2), "000000" * 2, "AAAA-AAAA-AAAA-AAAA")),
        ("/code?recovery=yes", ("AAAA-AAAA-AAAA-AAAA", "0" * 16, used)),
    ):
        browser = portal.browser()
        browser.sign_in()
        pages = set()
        for proof in proofs:
            browser.open(path)
            page = browser.send(proof=proof)
            pages.add((page.status, without_csrf(page)))
        assert len(pages) == 1
        assert page.error == (REFUSAL if path == "/code" else REFUSED_RECOVERY)


def spelled(code: str) -> str:
    """Return the code with full-width digits, white space, dashes and invisible characters."""
    wide = code.translate({ord("0") + i: 0xFF10 + i for i in range(10)})
    return f"\u200b {wide[:3]}\u2013\xa0{wide[3:]}\ufeff\t"


def test_codes_and_names_are_read_in_every_spelling(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.browser()
    space = "".join(c for c in map(chr, range(0x3001)) if c.isspace())
    browser.sign_in(f"\u200b{space}alice\ufeff{space}")
    assert browser.send(proof=spelled(codes(0))).heading == "Your tokens"
    assert portal.passwords.users == ["alice"]
    browser.open("/add-phone")
    key = key_on_page(browser.send(name=" phone\u200b"))
    page = browser.send(code=spelled(code_of_app(key, portal.wall)), proof=spelled(codes(1)))
    assert page.notice == "phone is in use now."
    browser.open("/resync?token=fob")
    assert browser.send(codes=spelled(codes(50, 2))).notice == "fob is back in step."
    browser.open("/add-token")
    fields = {"serial": "\ufeffown ", "key": f"hex:{b'm'.hex() * 20}", "codes": spelled(codes(0, 2, b"m" * 20))}
    assert browser.send(proof=spelled(codes(52)), **fields).notice == "own is in use now."
    browser.open("/recovery")
    recovery, *_ = re.findall(r"<code>([0-9A-Z-]+)</code>", browser.send(proof=spelled(codes(53))).html)
    browser = portal.browser()
    browser.sign_in()
    browser.open("/code?recovery=yes")
    assert browser.send(proof=f" \u200b{recovery.lower().replace('-', chr(0x2011))}\xa0").heading == "Your tokens"


def test_a_user_name_of_white_space_is_not_looked_up(portal: Portal) -> None:
    page = portal.browser().sign_in(" \u200b")
    assert (page.status, page.error, portal.passwords.users) == (422, "Enter your user name.", [])


def test_codes_in_a_row_and_recovery_codes_are_accepted(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(400, 2))
    browser.open("/recovery")
    page = browser.send(proof=codes(402))
    recovery = re.findall(r"<code>([0-9A-Z-]+)</code>", page.html)
    assert len(recovery) == 10
    second = portal.signed_in(code=recovery[0].lower())
    assert second.page is not None
    assert second.page.notice == "Recovery code used, 9 left."


def test_earlier_refusals_are_shown_after_a_sign_in(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.browser()
    browser.sign_in()
    browser.send(proof="000000")
    assert browser.send(proof=codes(0)).notice == "", (
        "the notice does not count refusals of the same sign-in, as at a login"
    )
    browser = portal.browser()
    browser.sign_in()
    browser.send(proof="000000")
    assert portal.signed_in(code=codes(1)).page.notice == "1 answer was refused since the last login."  # type: ignore[union-attr]


def test_codes_one_at_a_time_sign_in_out_of_step(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.browser()
    browser.sign_in()
    assert browser.send(proof=codes(400)).error == REFUSAL
    assert browser.send(proof=codes(401)).heading == "Your tokens"
    assert (portal.site.counter("alice"), portal.site.record("alice").failures) == (402, 0)


def test_codes_of_two_sign_ins_are_no_row(portal: Portal) -> None:
    enroll_fob(portal)
    first, second = portal.browser(), portal.browser()
    for browser in (first, second):
        browser.sign_in()
    first.send(proof=codes(400))
    assert second.send(proof=codes(401)).error == REFUSAL
    assert first.send(proof=codes(402)).error == REFUSAL, "the codes are not in a row"
    assert first.send(proof=codes(403)).error == REFUSAL, "a third code starts a new pair, as at a login"
    assert first.send(proof=codes(404)).heading == "Your tokens"


def test_a_third_code_is_needed_after_many_failures(portal: Portal) -> None:
    portal.site.enrol(
        HotpToken(name="fob", secret=KEY, created=0), user="alice", failures=20, failures_at=int(portal.wall())
    )
    browser = portal.browser()
    browser.sign_in()
    for counter in (400, 401):
        assert browser.send(proof=codes(counter)).error == REFUSAL
    assert browser.send(proof=codes(402)).heading == "Your tokens"


def test_one_of_many_browsers_with_the_same_code_signs_in(portal: Portal) -> None:
    enroll_fob(portal)
    browsers = [portal.browser() for _ in range(20)]
    for browser in browsers:
        browser.sign_in()
    with ThreadPoolExecutor(len(browsers)) as threads:
        headings = list(threads.map(lambda b: b.send(proof=codes(0)).heading, browsers))
    assert sorted(headings) == ["Your code"] * 19 + ["Your tokens"]


# Disclosure to attackers, and stolen sessions


def without_csrf(page: Page) -> str:
    return re.sub(r'value="[^"]*"', "", page.html)


def test_unknown_user_wrong_password_and_blank_get_the_same_page(portal: Portal) -> None:
    enroll_fob(portal)
    pages = []
    for user, password in (("alice", "wrong"), ("alice", ""), ("no-such-user", "wrong"), ("no-such-user", "")):
        page = portal.browser().sign_in(user, password)
        assert (page.status, page.error) == (401, WRONG)
        pages.append(without_csrf(page))
    assert len(set(pages)) == 1


def test_a_session_stolen_before_the_code_is_worthless_after_it(portal: Portal) -> None:
    enroll_fob(portal)
    browser, thief = portal.browser(), portal.browser()
    browser.sign_in()
    thief.use_cookie(browser.cookie)
    assert thief.open("/").heading == "Your code"
    browser.send(proof=codes(0))
    assert thief.open("/").heading == ENDED


def test_a_session_planted_before_the_password_is_worthless_after_it(portal: Portal) -> None:
    attacker, victim = portal.browser(), portal.browser()
    attacker.open("/sign-in")
    victim.use_cookie(attacker.cookie)
    victim.sign_in()
    assert victim.open("/").heading == "Your tokens"
    assert attacker.open("/").heading == "Sign in"


def test_every_step_starts_a_new_session_and_ends_the_old_one(portal: Portal) -> None:
    browser = portal.browser()
    names: list[str] = []

    def step(page: Page, heading: str) -> None:
        assert page.heading == heading
        for name in names:
            thief = portal.browser()
            thief.use_cookie(name)
            assert thief.open("/").heading == ("Sign in" if "." in name else ENDED)
        names.append(browser.cookie)

    enroll_fob(portal)
    step(browser.open("/sign-in"), "Sign in")
    step(browser.sign_in(), "Your code")
    step(browser.send(proof=codes(0)), "Your tokens")
    browser.open("/add-token")
    added = {"serial": "own", "key": f"hex:{b'm'.hex() * 20}", "codes": codes(0, 2, b"m" * 20)}
    step(browser.send(proof=codes(1), **added), "Your tokens")
    browser.post("/sign-out", {"csrf_token": browser.open("/").csrf})
    step(browser.sign_in(), "Your code")
    assert len(set(names)) == len(names)


def test_an_invented_session_id_is_not_signed_in(portal: Portal) -> None:
    browser = portal.browser()
    for name in ("", "x", "A" * 43, "\xff" * 10, "../../etc", ".", "..", "a.1.b", "\xff.1.a"):
        browser.use_cookie(name)
        assert browser.open("/").heading in (ENDED, "Sign in")


def test_signing_out_ends_the_session_on_the_server(portal: Portal) -> None:
    browser, copy = portal.signed_in(), portal.browser()
    copy.use_cookie(browser.cookie)
    page = browser.post("/sign-out", {"csrf_token": browser.open("/").csrf})
    assert "You are signed out." in page.text
    assert portal.signed_in().open("/signed-out").heading == "Your tokens", (
        "a signed-in user is redirected from the page for signed-out users"
    )
    assert copy.open("/").heading == ENDED


@pytest.mark.parametrize(("wait", "heading"), [(299.0, "Your code"), (301.0, ENDED)])
def test_the_time_between_password_and_code_is_limited(portal: Portal, wait: float, heading: str) -> None:
    enroll_fob(portal)
    browser = portal.browser()
    browser.sign_in()
    portal.clock.advance(wait)
    assert browser.open("/").heading == heading


def test_an_idle_session_ends_under_a_title_of_its_own(portal: Portal) -> None:
    browser = portal.signed_in()
    portal.clock.advance(890)
    assert browser.open("/").heading == "Your tokens"
    portal.clock.advance(910)
    page = browser.open("/")
    assert page.heading == ENDED
    assert "<title>Your session has ended – " in page.html
    assert page.notice == "You were signed out. Changes that a page confirmed were made. Sign in again."
    portal.clock.advance(4000)
    assert portal.browser().open("/").heading == "Sign in"
    assert browser.send(user="alice", password=PASSWORD).status == 400, "the form before sign-in has expired"
    assert browser.open("/sign-in").heading == "Sign in", "only a signed-in user sees the end of the session"


def test_no_session_lasts_longer_than_an_hour_unless_prolonged(portal: Portal) -> None:
    browser = portal.signed_in()
    for _ in range(6):
        portal.clock.advance(590)
        assert browser.open("/").heading == "Your tokens"
    portal.clock.advance(100)
    assert browser.open("/").heading == ENDED


def seconds_left(page: Page) -> int:
    (seconds,) = re.findall(r'data-seconds="(\d+)"', page.html)
    return int(seconds)


def test_a_user_prolongs_a_session_ten_times(portal: Portal) -> None:
    browser = portal.signed_in()

    def prolong() -> int:
        page = browser.post("/prolong", {"csrf_token": browser.open("/").csrf})
        seconds: int = page.response.get_json()["seconds"]
        return seconds

    assert seconds_left(browser.open("/")) == 900
    assert prolong() == 900, "a prolongation far before the total limit is not counted"
    for _ in range(5):
        portal.clock.advance(700)
        assert seconds_left(browser.open("/")) == min(900, 3600 - portal.clock.at + 1_000_000)
    for _ in range(10):
        assert prolong() == 900
        portal.clock.advance(850)
    assert 0 < prolong() < 900, "the eleventh prolongation does not extend the total limit"
    portal.clock.advance(900)
    assert browser.open("/").heading == ENDED
    assert browser.post("/prolong", {"csrf_token": "x"}).status == 400


def test_prolonging_needs_the_csrf_token_and_revives_no_session(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.browser()
    csrf = browser.sign_in().csrf
    assert browser.post("/prolong", {}).status in (400, 415)
    portal.clock.advance(290)
    assert browser.post("/prolong", {"csrf_token": csrf}).response.get_json() == {"seconds": 300}
    portal.clock.advance(299)
    assert browser.open("/").heading == "Your code"
    portal.clock.advance(301)
    assert browser.post("/prolong", {"csrf_token": csrf}).status == 400
    assert browser.open("/").heading == ENDED


def test_the_password_is_not_enough_once_the_user_has_a_token(portal: Portal) -> None:
    browser = portal.signed_in()
    enroll_fob(portal)
    assert browser.open("/").heading == "Your code"
    assert browser.send(proof=codes(0)).heading == "Your tokens"


def test_an_old_form_changes_nothing_and_gets_a_clear_page(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.browser()
    sign_in = browser.open("/sign-in")
    browser.send(user="alice", password=PASSWORD)
    assert browser.page is not None
    code = browser.page
    browser.send(proof=codes(0))
    for old, fields in ((sign_in, {"user": "alice", "password": PASSWORD}), (code, {"proof": codes(1)})):
        page = browser.post(old.action, {"csrf_token": old.csrf, **fields})
        assert page.status == 400
        assert "This form has expired and was ignored." in page.text
        assert "Go to your tokens" in page.text
    assert browser.open("/").heading == "Your tokens"
    assert portal.site.counter("alice") == 1, "the old form does not use up its code"


def test_the_error_page_for_an_old_cookie_keeps_the_new_session(portal: Portal) -> None:
    browser = portal.signed_in()
    old = Browser(portal.app)
    old.use_cookie("x" * 43)
    page = old.post("/code", {"csrf_token": "x", "proof": "123456"}, follow=False)
    assert page.status == 400
    assert "Set-Cookie" not in page.response.headers
    assert browser.open("/").heading == "Your tokens"


def test_without_a_readable_store_sign_in_fails(portal: Portal) -> None:
    enroll_fob(portal)
    portal.site.path("alice").chmod(0o644)
    page = portal.browser().sign_in()
    assert page.status == 503
    assert "Your tokens are not available now." in page.text
    assert any("error user" in line or ": error" in line for line in portal.log)


def test_a_form_before_sign_in_is_kept_by_the_browser_alone(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pam_totp.web.sessions.MAX_SESSIONS", 10)
    signed_in, reader = portal.signed_in("bob"), portal.browser()
    reader.open("/sign-in")
    for _ in range(50):
        portal.browser().open("/sign-in")
    assert [s.user for s in portal.app.extensions["pam_totp"].sessions._sessions.values()] == ["bob"]
    assert signed_in.open("/").heading == "Your tokens"
    assert reader.send(user="alice", password=PASSWORD).heading == "Your tokens"


@pytest.mark.parametrize("change", ["token", "time", "signature"])
def test_a_changed_session_before_sign_in_is_not_accepted(portal: Portal, change: str) -> None:
    browser = portal.browser()
    browser.open("/sign-in")
    token, time, signature = browser.cookie.split(".")
    changed = {"token": ("0" * 40, time, signature), "time": (token, "999999", signature)}
    browser.use_cookie(".".join(changed.get(change, (token, time, "0" * 64))))
    page = browser.send(user="alice", password=PASSWORD)
    assert (page.status, portal.passwords.users) == (400, [])


def test_a_form_before_sign_in_lasts_an_hour(portal: Portal) -> None:
    for wait, status in ((3599.0, 200), (3601.0, 400)):
        browser = portal.browser()
        browser.open("/sign-in")
        portal.clock.advance(wait)
        assert browser.send(user="alice", password=PASSWORD).status == status


def test_the_server_stores_a_digest_of_the_session_id(portal: Portal) -> None:
    browser = portal.signed_in()
    sessions = portal.app.extensions["pam_totp"].sessions
    assert [s.step for s in sessions._sessions.values()] == [Step.SIGNED_IN]
    assert browser.cookie not in repr(sessions._sessions)
    assert len(browser.cookie) == 43, "a session id has 256 bits"


# The portal with --socket: it opens no store, and the service checks the codes


def test_with_socket_the_portal_checks_codes_and_changes_nothing(site: Site) -> None:
    site.config.write_text(f'[clients]\n"{ME}" = "pam_totp-portal"\n')
    site.start()
    portal = Portal(site, store=None, socket=str(site.socket))
    site.enrol()
    browser = portal.browser()
    assert browser.sign_in(ME).heading == "Your code"
    assert browser.send(proof="000000").error.startswith("Refused")
    page = browser.send(proof=codes(0))
    assert (page.heading, page.notice) == ("Your code was accepted", "1 answer was refused since the last login.")
    for path in ("/add-phone", "/add-token", "/recovery", "/remove?token=fob", "/rename?token=fob"):
        assert browser.open(path).status == 404
    assert site.log.has("pam_totp(pam_totp-portal:auth): accepted", f"user={ME}", "rhost=127.0.0.1")


def test_with_socket_a_user_without_token_is_asked_and_refused(site: Site) -> None:
    site.start()
    browser = Portal(site, store=None, socket=str(site.socket)).browser()
    assert browser.sign_in(ME).heading == "Your code"
    assert browser.send(proof="123456").error.startswith("Refused")


def test_with_socket_and_no_service_sign_in_fails(site: Site) -> None:
    browser = Portal(site, store=None, socket=str(site.socket)).browser()
    browser.sign_in(ME)
    page = browser.send(proof="123456")
    assert (page.status, "not available now" in page.text) == (503, True)
