"""Tests of the pages for a user's own tokens, and of the record after each change."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pam_totp.core.oath import hotp
from pam_totp.core.record import HotpToken, TotpToken
from pam_totp.operations.enroll import new_recovery_codes
from pam_totp.web.filters import time_ago
from pam_totp.web.forms import Kind
from tests.support.site import KEY, codes, fob, phone
from tests.web.kit import REFUSAL, Browser, Page, Portal, code_of_app, enroll_fob, key_on_page

NOT_IN_A_ROW = "Wrong codes. Enter two codes in a row from this token."


def open_scan_page(browser: Browser, name: str = "phone") -> Page:
    browser.open("/add-phone")
    page = browser.send(name=name)
    assert page.heading == "Scan this with your app"
    return page


def test_a_phone_is_enrolled_by_its_first_code_which_is_used_up(portal: Portal) -> None:
    browser = portal.signed_in()
    key = key_on_page(open_scan_page(browser))
    assert not portal.site.path("alice").exists(), "the portal stores the token only after a right code"
    code = code_of_app(key, portal.wall)
    page = browser.send(code=code)
    assert (page.heading, page.notice) == ("Your tokens", "phone is in use now.")
    (token,) = portal.site.record("alice").tokens
    assert isinstance(token, TotpToken)
    assert (token.secret, token.confirmed, token.last_step) == (key, True, int(portal.wall()) // 30)
    assert len(key) == 20
    second = portal.browser()
    second.sign_in()
    assert second.send(proof=code).heading == "Your code", "the code of the enrolment counts as used"
    assert second.send(proof=code_of_app(key, portal.wall, 1)).heading == "Your tokens"


def test_the_qr_code_and_the_app_link_hold_the_shown_key(portal: Portal) -> None:
    page = open_scan_page(portal.signed_in())
    assert 'role="img"' in page.html
    assert "<svg" in page.html
    uri = re.search(r'href="(otpauth://[^"]*)"', page.html)
    assert uri
    assert re.sub(r"&amp;", "&", uri[1]).startswith("otpauth://totp/portal.example:alice?secret=")


def test_a_wrong_first_code_adds_nothing_and_keeps_the_key(portal: Portal) -> None:
    browser = portal.signed_in()
    key = key_on_page(open_scan_page(browser))
    page = browser.send(code="000000")
    assert (page.status, page.error) == (422, "Wrong code. Enter a code from the new token.")
    assert key_on_page(page) == key
    assert browser.send(code=code_of_app(key, portal.wall)).heading == "Your tokens"


def test_an_expired_enrolment_adds_nothing_with_a_clear_notice(portal: Portal) -> None:
    browser = portal.signed_in()
    key = key_on_page(open_scan_page(browser))
    portal.clock.advance(601)
    page = browser.send(code=code_of_app(key, portal.wall))
    assert page.notice == "This change was already made, or the page has expired. Check your tokens below."
    assert not portal.site.path("alice").exists()


def test_a_prolonged_page_keeps_its_qr_code(portal: Portal) -> None:
    browser = portal.signed_in()
    page = open_scan_page(browser)
    key = key_on_page(page)
    portal.clock.advance(100)
    assert 'data-seconds="500"' in browser.open(page.action).html, "the time limit of the QR code, not of the session"
    assert 'data-seconds="900"' in browser.open("/").html
    portal.clock.advance(499)
    browser.post("/prolong", {"csrf_token": page.csrf})
    portal.clock.advance(599)
    assert browser.open(page.action).heading == "Scan this with your app"
    assert browser.send(code=code_of_app(key, portal.wall)).heading == "Your tokens"
    portal.clock.advance(601)
    assert browser.post("/prolong", {"csrf_token": browser.open("/").csrf}).status == 200


def test_a_form_sent_twice_enrols_once(portal: Portal) -> None:
    browser = portal.signed_in()
    page = open_scan_page(browser)
    fields = {"csrf_token": page.csrf, "code": code_of_app(key_on_page(page), portal.wall)}
    twins = [portal.browser() for _ in range(8)]
    for twin in twins:
        twin.use_cookie(browser.cookie)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda twin: twin.post(page.action, fields, follow=False), twins))
    assert [t.name for t in portal.site.record("alice").tokens] == ["phone"]


def test_a_confirmed_qr_code_is_not_shown_again(portal: Portal) -> None:
    browser = portal.signed_in()
    scan = open_scan_page(browser)
    browser.send(code=code_of_app(key_on_page(scan), portal.wall))
    page = browser.open(scan.action)
    assert page.heading == "Your tokens"
    assert "This change was already made" in page.notice


def test_cancelling_deletes_the_key(portal: Portal) -> None:
    browser = portal.signed_in()
    page = open_scan_page(browser)
    cancel = page.action.replace("/scan?", "/cancel?")
    assert browser.post(cancel, {"csrf_token": page.csrf}).notice == "Nothing was added."
    assert browser.open(page.action).heading == "Your tokens"


def test_a_second_tab_takes_neither_the_key_nor_the_first_code_of_another(portal: Portal) -> None:
    portal.site.enrol(
        HotpToken(name="SM7", secret=b"7" * 20, created=0, serial="SM7", confirmed=False),
        HotpToken(name="SM8", secret=b"8" * 20, created=0, serial="SM8", confirmed=False),
        user="alice",
    )
    browser = portal.signed_in()
    pages = [open_scan_page(browser, "work"), open_scan_page(browser, "home")]
    keys = [key_on_page(page) for page in pages]
    assert keys[0] != keys[1]
    assert key_on_page(browser.open(pages[0].action)) == keys[0]
    waiting = []
    for serial, key in (("SM7", b"7"), ("SM8", b"8")):
        browser.open("/add-token")
        waiting.append((browser.send(serial=serial, codes=codes(0, key=key * 20)), codes(1, key=key * 20)))
    (first, code), _ = waiting
    assert browser.post(first.action, {"csrf_token": first.csrf, "codes": code}).notice == "SM7 is in use now."
    assert [t.name for t in portal.site.record("alice").tokens if t.confirmed] == ["SM7"]


def test_a_session_keeps_the_keys_of_eight_tabs(portal: Portal) -> None:
    browser = portal.signed_in()
    first, *_, last = [open_scan_page(browser, f"phone {n}") for n in range(9)]
    assert key_on_page(browser.open(last.action)) == key_on_page(last)
    assert browser.open(first.action).heading == "Your tokens"


def test_adding_a_second_phone_needs_a_code_of_the_first_token(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(0))
    key = key_on_page(open_scan_page(browser))
    code = code_of_app(key, portal.wall)
    assert browser.send(code=code).error == "Enter a code."
    for proof in (codes(0), "000000", code):
        page = browser.send(code=code, proof=proof)
        assert page.error == REFUSAL
    assert [t.name for t in portal.site.record("alice").tokens] == ["fob"]
    assert portal.site.record("alice").failures == 2, "only the two wrong codes count as failures, not the replay"
    assert browser.send(code=code, proof=codes(1)).notice == "phone is in use now."
    assert portal.site.counter("alice") == 2


def test_a_wrong_first_code_does_not_use_up_the_proof(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(0))
    key = key_on_page(open_scan_page(browser))
    browser.send(code="000000", proof=codes(1))
    assert portal.site.counter("alice") == 1
    assert browser.send(code=code_of_app(key, portal.wall), proof=codes(1)).heading == "Your tokens"


def test_a_first_token_added_elsewhere_must_give_its_code(portal: Portal) -> None:
    browser = portal.signed_in()
    page = open_scan_page(browser)
    code = code_of_app(key_on_page(page), portal.wall)
    enroll_fob(portal)
    assert browser.send(code=code).heading == "Your code"
    assert [t.name for t in portal.site.record("alice").tokens] == ["fob"]


def test_a_new_token_ends_the_users_other_sessions(portal: Portal) -> None:
    browser, other = portal.signed_in(), portal.signed_in()
    old = browser.cookie
    key = key_on_page(open_scan_page(browser))
    browser.send(code=code_of_app(key, portal.wall))
    assert browser.open("/").heading == "Your tokens"
    assert other.open("/").heading == "Your session has ended"
    assert browser.cookie != old


@pytest.mark.parametrize("name", ["fob", " fob ", "", " ", "x" * 300, "a\x07b", "\u202e"])
def test_an_invalid_name_is_reported_before_the_qr_code(portal: Portal, name: str) -> None:
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(0))
    browser.open("/add-phone")
    page = browser.send(name=name)
    assert page.status == 422
    assert page.error


def test_a_token_name_is_escaped_in_pages(portal: Portal) -> None:
    enroll_fob(portal, name='<b onclick="x">&amp;\'</b>')
    browser = portal.signed_in(code=codes(0))
    assert browser.page is not None
    assert "<b onclick" not in browser.page.html
    assert "&lt;b onclick=" in browser.page.html
    for page in ("rename", "resync", "remove"):
        html = browser.open(f"/{page}?token=%3Cb+onclick%3D%22x%22%3E%26amp%3B%27%3C%2Fb%3E")
        assert "<b onclick" not in html.html
        assert "onclick" in html.heading


# Key fobs


def test_a_handed_out_token_is_claimed_by_serial_and_two_codes(portal: Portal) -> None:
    enroll_fob(portal, serial="SM0001", confirmed=False)
    browser = portal.signed_in()
    browser.open("/add-token")
    assert browser.send(serial="SM0001", codes=codes(7) + " 000000").error
    assert browser.send(serial="SM0002", codes=codes(7, 2)).error.startswith(
        "You have no unconfirmed token with this serial number."
    )
    page = browser.send(serial="sm-0001", codes=codes(7, 2))
    assert (page.heading, page.notice) == ("Your tokens", "fob is in use now."), "the notice contains the token's name"
    (token,) = portal.site.record("alice").tokens
    assert isinstance(token, HotpToken)
    assert (token.confirmed, token.counter, token.name) == (True, 9, "fob")


def test_an_administrator_hands_out_a_token_by_its_serial(portal: Portal) -> None:
    key = f"hex:{KEY.hex()}\n"
    words = ("enroll", "alice", "--type", "hotp", "--name", "fob", "--secret-stdin", "--later")
    assert portal.site.command(*words, stdin=key).returncode == 2
    done = portal.site.command(*words, "--serial", "SM0001", stdin=key)
    assert "it is unconfirmed until its owner enters two codes in the portal" in done.stdout
    browser = portal.signed_in()
    assert browser.open("/add-token?serial=SM0001").html.count('value="SM0001"') == 1
    assert browser.send(serial="SM0001", codes=codes(0, 2)).heading == "Your tokens"
    assert portal.site.counter("alice") == 2


def test_a_token_handed_out_to_another_user_cannot_be_claimed(portal: Portal) -> None:
    enroll_fob(portal, user="bob", serial="SM0001", confirmed=False)
    browser = portal.signed_in("alice")
    browser.open("/add-token")
    assert browser.send(serial="SM0001", codes=codes(0, 2)).error.startswith("You have no unconfirmed token")
    assert not portal.site.record("bob").tokens[0].confirmed


@pytest.mark.parametrize("proof", [{}, {"proof": ""}, {"proof": "000000"}, {"proof": codes(0)}])
@pytest.mark.parametrize("form", [{"serial": "SM7"}, {"serial": "own", "key": f"hex:{b'8'.hex() * 20}"}])
def test_adding_a_hardware_token_needs_a_code_of_the_first_token(
    portal: Portal, form: dict[str, str], proof: dict[str, str]
) -> None:
    waiting = HotpToken(name="SM7", secret=b"7" * 20, created=0, serial="SM7", confirmed=False)
    portal.site.enrol(HotpToken(name="fob", secret=KEY, created=0), waiting, user="alice")
    browser = portal.signed_in(code=codes(0))
    browser.open("/add-token")
    fields = {**form, "codes": codes(0, 2, b"8" * 20 if "key" in form else b"7" * 20)}
    page = browser.send(**fields, **proof)
    assert page.error == "Enter a code." or page.error.startswith("Refused")
    assert [t.name for t in portal.site.record("alice").tokens if t.confirmed] == ["fob"]
    assert browser.send(**fields, proof=codes(1)).heading == "Your tokens"


def test_a_users_own_token_is_added_by_its_key(portal: Portal) -> None:
    browser = portal.signed_in()
    browser.open("/add-token")
    assert browser.send(serial="own", codes=codes(3, 2), key="hex:123").error.startswith("The key must be 112")
    assert browser.send(serial="own", codes=codes(3, 2), key=f"hex:{KEY.hex()}").heading == "Your tokens"
    assert portal.site.counter("alice") == 5


# Resynchronise


def test_two_codes_resynchronise_a_token_from_far_and_are_used_up(portal: Portal) -> None:
    portal.site.enrol(HotpToken(name="fob", secret=KEY, created=0), phone(), user="alice")
    browser = portal.signed_in(code=hotp(KEY[::-1], int(portal.wall()) // 30))
    browser.open("/resync?token=fob")
    assert browser.send(codes=codes(9000) + codes(9002)).error == NOT_IN_A_ROW
    assert portal.site.counter("alice") == 0
    assert browser.send(codes=codes(9000, 2)).notice == "fob is back in step."
    assert portal.site.counter("alice") == 9002
    assert any("changed user=alice what=resync token=fob" in line for line in portal.log)


def test_codes_one_at_a_time_put_a_key_fob_into_use(portal: Portal) -> None:
    enroll_fob(portal, serial="SM0001", confirmed=False)
    browser = portal.signed_in()
    browser.open("/add-token")
    page = browser.send(serial="SM0001", codes=codes(7))
    assert (page.heading, "Press the button again" in page.text) == ("The next code", True)
    assert browser.send(codes="12345").error.startswith("A code has 6 to 8 digits")
    assert browser.send(codes=codes(8)).notice == "fob is in use now."
    assert portal.site.counter("alice") == 9
    csrf = browser.open("/").csrf
    assert "already made" in browser.post("/add-token/next", {"csrf_token": csrf, "codes": codes(9)}).notice


def test_a_wrong_second_code_adds_nothing_and_starts_again(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(0))
    key = b"m" * 20
    fields = {"serial": "own", "key": f"hex:{key.hex()}", "codes": codes(0, 1, key)}
    browser.open("/add-token")
    assert browser.send(proof=codes(1), **fields).heading == "The next code"
    page = browser.send(codes="000000")
    assert (page.status, page.heading, page.error) == (422, "Add a key fob", NOT_IN_A_ROW)
    assert 'value="own"' in page.html
    assert key.hex() not in page.html
    assert portal.site.counter("alice") == 1, "the proof remains unused"
    assert browser.send(proof=codes(1), **fields).heading == "The next code"
    assert browser.send(codes=codes(1, 1, key)).notice == "own is in use now."
    assert portal.site.counter("alice") == 2


def test_codes_one_at_a_time_bring_a_token_back_into_step(portal: Portal) -> None:
    portal.site.enrol(HotpToken(name="fob", secret=KEY, created=0), phone(), user="alice")
    browser = portal.signed_in(code=codes(0))
    page = browser.open("/resync?token=fob")
    assert "Enter a code, press the button again, and enter the new code too" in page.text
    assert "wait for the next code" in browser.open("/resync?token=phone").text
    browser.send(codes=codes(300))
    browser.open("/resync?token=fob")
    page = browser.send(codes=codes(300))
    assert (page.status, "Now press the button again" in page.text) == (200, True), "the code was for another token"
    assert browser.send(codes=codes(300)).error == "", "the same code again, as at a double click"
    assert browser.send(codes=codes(301)).notice == "fob is back in step."
    assert portal.site.counter("alice") == 302


@pytest.mark.parametrize(
    ("kind", "digits", "algorithm"),
    [(Kind.EVERY_30_SECONDS, 8, "SHA256"), (Kind.EVERY_60_SECONDS, 6, "SHA1"), (Kind.BUTTON, 8, "SHA1")],
)
def test_a_users_own_key_fob_of_every_kind_is_added(portal: Portal, kind: Kind, digits: int, algorithm: str) -> None:
    browser = portal.signed_in()
    browser.open("/add-token")
    counters = (0, 1) if kind.period is None else (int(portal.wall()) // kind.period,)
    typed = " ".join(hotp(KEY, counter, digits, algorithm) for counter in counters)
    page = browser.send(
        serial="own", key=f"hex:{KEY.hex()}", codes=typed, kind=kind, digits=str(digits), algorithm=algorithm
    )
    assert page.notice == "own is in use now."
    (token,) = portal.site.record("alice").tokens
    assert (token.digits, token.algorithm, token.confirmed) == (digits, algorithm, True)
    assert getattr(token, "period", None) == kind.period


@pytest.mark.parametrize("field", ["kind", "digits", "algorithm"])
def test_an_impossible_kind_of_key_fob_is_refused(portal: Portal, field: str) -> None:
    browser = portal.signed_in()
    browser.open("/add-token")
    fields = {"serial": "own", "key": f"hex:{KEY.hex()}", "codes": codes(0, 2), field: "9"}
    assert browser.send(**fields).status == 422
    assert not portal.site.path("alice").exists()


def test_the_page_says_when_the_next_code_appears(portal: Portal) -> None:
    now = int(portal.wall())
    portal.site.enrol(phone(), user="alice")
    code = hotp(KEY[::-1], now // 30)
    browser = portal.signed_in(code=code)
    wait = 30 - now % 30
    for path in ("/recovery", "/add-token", "/remove?token=phone"):
        page = browser.open(path)
        if path != "/remove?token=phone":  # the only token cannot be removed
            assert f'The next code appears <span data-countdown="{wait}" data-now="now">in {wait} second' in page.html
    portal.wall.advance(wait)
    assert "data-countdown" not in browser.open("/recovery").html
    enroll_fob(portal, user="bob")
    assert "Press the button for a new code" in portal.signed_in("bob", codes(0)).open("/recovery").text


def test_the_kind_state_and_last_use_of_every_token_are_shown(portal: Portal) -> None:
    now = int(portal.wall())
    tokens = (
        HotpToken(name="a", secret=KEY, created=0, last_used=now - 86_400),
        phone(name="b", drift=2, last_used=now - 7_300),
        phone(name="c", secret=b"c" * 20, enabled=False),
        HotpToken(name="d", secret=b"d" * 20, created=0, confirmed=False, serial="D1"),
        phone(name="e", secret=b"e" * 20, serial="E1", period=60, last_used=now - 90),
    )
    portal.site.enrol(*tokens, user="alice")
    page = portal.signed_in(code=codes(0)).page
    assert page is not None
    for text in (
        "in step at its last code",
        "in step: its clock is 60 seconds ahead, which is corrected",
        "disabled by an administrator",
        "not active yet: enter two codes to activate it",
        "1970-01-01 00:00 UTC",
        "phone app: a new code every 30 seconds",
        "key fob: a new code every 60 seconds",
        "key fob: a new code at every press of the button",
        *("Last used less than a minute ago", "Last used 2 hours ago", "Last used 1 minute ago", "Last used never"),
    ):
        assert text in page.text, text
    assert time.strftime('title="%Y-%m-%d %H:%M UTC"', time.gmtime(now - 7_300)) in page.html


@pytest.mark.parametrize(
    ("age", "text"),
    [
        *(
            (0, "less than a minute ago"),
            (59, "less than a minute ago"),
            (60, "1 minute ago"),
            (3599, "59 minutes ago"),
        ),
        *((3600, "1 hour ago"), (86_399, "23 hours ago"), (86_400, "1 day ago"), (30 * 86_400, "30 days ago")),
        *((31 * 86_400, None), (-1, None)),
    ],
)
def test_a_recent_time_is_shown_as_its_age(portal: Portal, age: int, text: str | None) -> None:
    with portal.app.app_context():
        at = int(portal.wall()) - age
        shown = str(time_ago(at))
    exact = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
    assert shown.endswith(f'title="{exact}">{text or exact}</time>')


def test_the_page_shows_recent_logins_newest_first(portal: Portal) -> None:
    portal.site.enrol(fob(), user="alice")
    wrong = portal.browser()
    wrong.sign_in()
    wrong.send(proof="000000")
    page = portal.signed_in(code=codes(0))
    rows = re.findall(r"<li><time [^>]*>([^<]*)</time>: ([^<]*)</li>", page.open("/").html)
    where = "(this site from 127.0.0.1)"
    assert rows == [
        ("less than a minute ago", f"accepted with a code {where}"),
        ("less than a minute ago", f"refused: wrong code {where}"),
    ]


# Rename, remove


def test_a_token_is_renamed(portal: Portal) -> None:
    portal.site.enrol(HotpToken(name="fob", secret=KEY, created=0), phone(), user="alice")
    browser = portal.signed_in(code=codes(0))
    browser.open("/rename?token=fob")
    assert browser.send(name="phone").error == "You already have a token of that name."
    assert browser.send(name="key ring").notice == "fob was renamed to key ring."
    assert [t.name for t in portal.site.record("alice").tokens] == ["key ring", "phone"]


def test_a_token_is_removed_only_with_a_code(portal: Portal) -> None:
    portal.site.enrol(HotpToken(name="fob", secret=KEY, created=0), phone(), user="alice")
    browser = portal.signed_in(code=codes(0))
    browser.open("/remove?token=phone")
    assert browser.send(proof="000000").error.startswith("Refused")
    assert browser.send().error == "Enter a code."
    assert len(portal.site.record("alice").tokens) == 2
    assert browser.send(proof=codes(1)).notice == "phone was removed. Its codes are refused from now on."
    assert [t.name for t in portal.site.record("alice").tokens] == ["fob"]


def test_removing_a_token_ends_the_users_other_sessions(portal: Portal) -> None:
    portal.site.enrol(HotpToken(name="fob", secret=KEY, created=0), phone(), user="alice")
    first, second = portal.signed_in(code=codes(0)), portal.signed_in(code=codes(1))
    first.open("/remove?token=fob")
    assert "was removed" in first.send(proof=codes(2)).notice
    assert second.open("/").heading == "Your session has ended"


def test_the_last_active_token_cannot_be_removed(portal: Portal) -> None:
    portal.site.enrol(HotpToken(name="fob", secret=KEY, created=0), phone(enabled=False), user="alice")
    browser = portal.signed_in(code=codes(0))
    page = browser.open("/remove?token=fob")
    assert "This is your only token in use." in page.text
    csrf = browser.open("/remove?token=phone").csrf
    page = browser.post("/remove?token=fob", {"csrf_token": csrf, "proof": codes(1)})
    assert portal.site.record("alice").token("fob") is not None
    assert portal.site.counter("alice") == 1, "the code remains unused"


def test_two_racing_removals_leave_one_token(portal: Portal) -> None:
    portal.site.enrol(HotpToken(name="fob", secret=KEY, created=0), phone(), user="alice")
    browsers = [portal.signed_in(code=codes(0)), portal.signed_in(code=codes(1))]
    for browser, name in zip(browsers, ("fob", "phone"), strict=True):
        browser.open(f"/remove?token={name}")
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda pair: pair[0].send(proof=pair[1]), zip(browsers, (codes(2), codes(3)), strict=True)))
    assert len(portal.site.record("alice").tokens) == 1


def test_the_page_of_a_missing_token_redirects_to_the_list(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(0))
    for path in (
        "/remove?token=no-such-token",
        "/rename?token=no-such-token",
        "/resync?token=no-such-token",
        "/resync",
        "/remove?token=%00",
    ):
        page = browser.open(path)
        assert (page.heading, "This change was already made" in page.notice) == ("Your tokens", True), path


# Recovery codes


def test_recovery_codes_need_a_code_and_are_shown_until_saved(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(0))
    browser.open("/recovery")
    assert browser.send(proof=codes(0)).error.startswith("Refused")
    page = browser.send(proof=codes(1))
    shown = re.findall(r"<code>([0-9A-Z-]+)</code>", page.html)
    assert len(set(shown)) == 10
    assert re.findall(r"<code>([0-9A-Z-]+)</code>", browser.open("/recovery/codes").html) == shown, (
        "a reload shows the codes again"
    )
    assert browser.post("/recovery/kept", {"csrf_token": page.csrf}).heading == "Your tokens"
    assert "shown only once" in browser.open("/recovery/codes").notice
    stored = portal.site.path("alice").read_text()
    assert not any(code in stored or code.replace("-", "") in stored for code in shown)


def shown_codes(browser: Browser) -> list[str]:
    return re.findall(r"<code>([0-9A-Z-]+)</code>", browser.open("/recovery/codes").html)


def test_new_recovery_codes_end_the_users_other_sessions(portal: Portal) -> None:
    enroll_fob(portal)
    first, second = portal.signed_in(code=codes(0)), portal.signed_in(code=codes(1))
    first.open("/recovery")
    first.send(proof=codes(2))
    assert second.open("/").heading == "Your session has ended"
    assert len(shown_codes(first)) == 10


def test_recovery_codes_that_are_no_longer_valid_are_not_shown(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(0))
    browser.open("/recovery")
    browser.send(proof=codes(1))
    first = shown_codes(browser)
    portal.signed_in(code=first[3])
    assert shown_codes(browser) == first[:3] + first[4:], "a used code is not shown"
    portal.app.extensions["pam_totp"].config.store.update("alice", lambda record: new_recovery_codes(record, 2))
    assert "shown only once" in browser.open("/recovery/codes").notice
    browser.open("/recovery")
    browser.send(proof=codes(2))
    assert len(shown_codes(browser)) == 10


def test_the_recovery_form_sent_twice_shows_the_valid_codes(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(0))
    form = browser.open("/recovery")
    fields = {"csrf_token": form.csrf, "proof": codes(1)}
    first = re.findall(r"<code>([0-9A-Z-]+)</code>", browser.post("/recovery", fields).html)
    second = re.findall(r"<code>([0-9A-Z-]+)</code>", browser.post("/recovery", fields).html)
    assert first == second
    assert portal.signed_in(code=first[3])


def test_no_page_and_no_log_line_shows_a_key_in_use(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(0))
    for path in ("/", "/add-phone", "/add-token", "/rename?token=fob", "/resync?token=fob", "/recovery"):
        assert "GEZDGNBVGY3TQOJQ" not in browser.open(path).html.replace(" ", "")
    assert not any("GEZDGNBV" in line or codes(0) in line for line in portal.log)
