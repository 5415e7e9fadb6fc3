"""Tests of the portal with a real browser, nginx, PAM passwords, a scanned QR code, and a simulated token."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pam_totp.core.record import HotpToken
from tests.services.namespace import ACCOUNTS
from tests.support.etc import SHADOW
from tests.support.site import KEY, TREE, codes, phone, until
from tests.web.accessible import NARROW_DARK, NARROW_LIGHT, assert_no_violations, in_looks
from tests.web.people import People, Person, Phone
from tests.web.served import Served, TlsPortal

if TYPE_CHECKING:
    from playwright.sync_api import Route

COLOURS = """property => [...document.querySelectorAll('html, body, main, main *')].filter(e => e.checkVisibility())
    .map(e => getComputedStyle(e)[property || 'backgroundColor'])"""


def test_a_scanned_phone_signs_in_and_its_replayed_code_is_refused(
    people: People, served: Served, tmp_path: Path
) -> None:
    alice = people()
    alice.sign_in()
    app = alice.add_phone(tmp_path / "qr.png")
    alice.fill(**{"The code that the app shows": app.code()})
    alice.press("Add phone")
    assert (alice.heading, alice.notice) == ("Your tokens", "phone is in use now.")
    alice.press("Sign out")
    assert "You are signed out." in alice.page.locator("main").inner_text()
    code = app.code()
    alice.sign_in(code=code)
    assert alice.heading == "Your tokens"
    thief = people()
    thief.sign_in(code=code)
    assert thief.heading == "Your code"
    assert thief.error.startswith("Refused")
    assert len(served.record("alice").tokens) == 1
    assert [c for c in alice.console_messages + thief.console_messages if "401" not in c] == [], (
        "the browser's console reports only responses of status 401"
    )
    assert {url.split("/")[2] for url in alice.requests} == {served.url.split("/")[2]}, "all requests go to the portal"


def test_a_token_pressed_out_of_step_is_resynchronised(people: People, served: Served, tmp_path: Path) -> None:
    factory = tmp_path / "factory"
    sim = [sys.executable, "-m", "token_sim.cli"]
    subprocess.run([*sim, "factory", "--count", "1", "--out", factory], cwd=TREE, check=True, stdout=subprocess.DEVNULL)
    serial, seed, _, _, counter = (factory / "seeds.csv").read_text().splitlines()[0].split(",")[:5]
    token = HotpToken(name="fob", secret=bytes.fromhex(seed), created=0, counter=int(counter), serial=serial)
    served.enrol("alice", token, phone())
    port = tmp_path / "port"
    # The path of a socket must be short, but pytest's folders have long names.
    with (
        tempfile.TemporaryDirectory(prefix="pam_totp-test-") as short,
        subprocess.Popen(
            [*sim, "run", factory / f"{serial}.token", "--link", port, "--control", f"{short}/control"],
            cwd=TREE,
            stdout=subprocess.DEVNULL,
        ) as simulator,
    ):
        try:
            until(port.exists, "the simulator creates its port")

            def press(times: int) -> list[str]:
                done = subprocess.run(
                    [*sim, "press", "--port", port, "-n", str(times)],
                    cwd=TREE,
                    text=True,
                    stdout=subprocess.PIPE,
                    check=True,
                )
                return done.stdout.split()

            press(25)  # 25 presses, so that the portal refuses a single code
            alice = people()
            alice.sign_in(code=press(1)[0])
            assert alice.error.startswith("Refused")
            alice.type_as_key_fob("One-time code", press(1)[0])
            assert alice.heading == "Your tokens"
            press(15)
            alice.page.goto("/resync?token=fob")
            alice.type_as_key_fob("Two codes in a row", press(1)[0])
            alice.type_as_key_fob("The next code", press(1)[0])
            assert alice.notice == "fob is back in step."
            (code,) = press(1)
        finally:
            simulator.terminate()
    again = people()
    again.sign_in(code=code)
    assert again.heading == "Your tokens"


def test_a_recovery_code_signs_in_when_the_phone_is_lost(people: People, served: Served) -> None:
    served.enrol("alice", HotpToken(name="fob", secret=KEY, created=0))
    alice = people(color_scheme="dark")
    alice.sign_in(code=codes(0))
    alice.press("Create new recovery codes")
    alice.page.get_by_label("A code from a token that you already use").fill(codes(1))
    alice.press("Create new codes")
    shown = alice.page.locator(".codes code").all_inner_texts()
    assert len(shown) == 10
    alice.page.emulate_media(media="print")
    assert not alice.page.get_by_role("button").first.is_visible(), "the printed page has no buttons"
    assert alice.page.locator(".codes").is_visible()
    alice.page.evaluate("document.querySelector('.ending').hidden = false")
    assert not alice.page.locator(".ending").is_visible(), "the warning of the session's end is not printed"
    assert set(alice.page.evaluate(COLOURS)) <= {"rgb(0, 0, 0)", "rgb(255, 255, 255)", "rgba(0, 0, 0, 0)"}, (
        "the print is black on white, even in dark mode with printed backgrounds"
    )
    assert set(alice.page.evaluate(COLOURS, "color")) == {"rgb(0, 0, 0)"}
    alice.page.emulate_media(media="screen")
    alice.press("I have kept them")
    lost = people(viewport={"width": 320, "height": 640})
    lost.sign_in()
    lost.press("Use a recovery code")
    assert_accessible(lost)
    lost.fill(Recovery_code="AAAA-AAAA-AAAA-AAAA")
    lost.press("Sign in")
    assert lost.error.startswith("Refused")
    lost.fill(Recovery_code=shown[4])  # the page of the refusal also contains the form for recovery codes
    lost.press("Sign in")
    assert lost.heading == "Your tokens"
    assert lost.notice.startswith("Recovery code used, 9 left.")
    lost.page.goto("/recovery/codes")
    assert shown[5] not in lost.page.content()


def test_one_of_two_browsers_with_the_same_code_signs_in(people: People, served: Served) -> None:
    served.enrol("alice", HotpToken(name="fob", secret=KEY, created=0))
    two = [people(), people()]
    for person in two:
        person.sign_in()
        person.page.get_by_label("One-time code").fill(codes(0))
    for person in two:  # both browsers send the code before either gets a response
        person.page.evaluate("setTimeout(() => document.querySelector('main form').requestSubmit(), 50)")
    for person in two:
        person.page.locator("h1:text-is('Your tokens'), .error").wait_for()
    assert sorted(person.heading for person in two) == ["Your code", "Your tokens"]


def test_a_session_stolen_before_the_code_is_worthless(people: People, served: Served) -> None:
    served.enrol("alice", HotpToken(name="fob", secret=KEY, created=0))
    alice, thief = people(), people()
    alice.sign_in()
    thief.context.add_cookies(alice.context.cookies())
    alice.page.get_by_label("One-time code").fill(codes(0))
    alice.press("Sign in")
    assert alice.heading == "Your tokens"
    thief.page.goto("/")
    assert thief.heading == "Your session has ended"


def test_the_cookie_over_tls_is_secure_and_for_this_host_only(people: People, tls_portal: TlsPortal) -> None:
    alice = people()
    alice.sign_in()
    (cookie,) = alice.context.cookies()
    assert cookie["name"] == "__Host-pam_totp"
    assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Lax")
    assert (cookie["domain"], cookie["path"], cookie["expires"]) == ("portal.example.org", "/", -1)
    assert alice.page.evaluate("document.cookie") == ""
    assert tls_portal.machine.log.wait_for("accepted", "user=alice", "by=password", f"rhost={alice.address}")


def test_a_portal_started_by_root_runs_as_store_owner_with_group_shadow(tls_portal: TlsPortal) -> None:
    status = Path(f"/proc/{tls_portal.process.pid}/status").read_text()
    status_fields = {name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())}
    assert status_fields["Name"] != ["nsenter"]
    owner = str(ACCOUNTS["pam_totp"])
    assert (status_fields["Uid"], status_fields["Gid"]) == ([owner] * 4, [owner] * 4)
    assert status_fields["Groups"] == [str(SHADOW)]
    assert {status_fields[capabilities][0].strip("0") for capabilities in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {
        ""
    }


def test_wrong_and_blank_passwords_and_unknown_users_get_the_same_error(people: People, tls_portal: TlsPortal) -> None:
    shown = set()
    for user, password in (("alice", "wrong"), ("no-such-user", "wrong"), ("root", tls_portal.password), ("bob", " ")):
        person = people()
        person.page.goto("/sign-in")
        person.fill(User_name=user, Password=password)
        person.press("Continue")
        shown.add((person.heading, person.error))
    assert shown == {("Sign in", "User name and password do not match.")}


def test_every_page_works_without_scripts(people: People, served: Served, tmp_path: Path) -> None:
    alice = people(java_script_enabled=False)
    alice.sign_in()
    alice.press("Add a phone")
    alice.press("Show the QR code")
    assert not alice.page.get_by_role("button", name="Copy").is_visible(), "a button that needs scripts is hidden"
    app = Phone(alice.scan(tmp_path / "qr.png")["secret"])
    alice.fill(**{"The code that the app shows": app.code()})
    alice.press("Add phone")
    assert alice.notice == "phone is in use now."
    assert len(served.record("alice").tokens) == 1


def test_sign_in_and_the_token_page_require_only_a_keyboard(people: People, served: Served) -> None:
    served.enrol("alice", HotpToken(name="fob", secret=KEY, created=0))
    alice = people()
    alice.page.goto("/sign-in")
    keys = alice.page.keyboard
    alice.wait_for_focus("User name")
    keys.type("alice")
    keys.press("Tab")
    keys.type(served.password)
    with alice.page.expect_navigation():
        keys.press("Enter")
    alice.wait_for_focus("One-time code")
    keys.type(codes(0))
    with alice.page.expect_navigation():
        keys.press("Enter")
    assert alice.heading == "Your tokens"
    focused = []
    for _ in range(12):
        keys.press("Tab")
        focused.append(alice.page.evaluate("document.activeElement.textContent.trim()"))
    for stop in ("Skip to content", "Sign out", "Bring back into step (fob)", "Rename (fob)", "Add a phone"):
        assert stop in focused, focused


def test_the_copy_button_copies_the_key(people: People, served: Served, tmp_path: Path) -> None:
    alice = people(permissions=["clipboard-read", "clipboard-write"])
    alice.sign_in()
    alice.add_phone(tmp_path / "qr.png")
    alice.page.get_by_role("button", name="Copy").click()
    alice.page.get_by_role("button", name="Copied").wait_for()
    shown = alice.page.locator(".key code").inner_text().replace(" ", "")
    assert alice.page.evaluate("navigator.clipboard.readText()") == shown


def stop_clock(person: Person) -> None:
    """Stop the clock of all pages that the user opens later, so that the test can advance it."""
    person.page.clock.install(time=0)
    person.page.clock.pause_at(1000)


def test_a_session_is_prolonged_in_its_page_and_its_end_is_announced(people: People, served: Served) -> None:
    alice = people()
    stop_clock(alice)
    alice.sign_in()
    warning = alice.page.get_by_role("alert")
    alice.page.get_by_role("link", name="Add a phone").click()
    alice.page.get_by_label("Name").fill("half-written")
    alice.page.clock.run_for(775_000)  # milliseconds
    assert not warning.is_visible()
    alice.page.clock.run_for(10_000)
    assert "Your session ends in two minutes." in warning.inner_text()
    warning.get_by_role("button", name="Stay signed in").press("Enter")
    warning.wait_for(state="hidden")
    assert alice.page.get_by_label("Name").input_value() == "half-written"
    alice.page.clock.run_for(785_000)
    assert warning.is_visible()
    alice.context.clear_cookies()
    with alice.page.expect_navigation():
        alice.page.clock.run_for(125_000)
    assert alice.heading == "Sign in", "the browser hides the page of the ended session"


# Return true if the element with the focus is on the screen, and at least partly visible beside the warning.
IS_SEEN = """() => {
    const e = document.activeElement, warning = document.querySelector('.ending');
    const box = e.getBoundingClientRect(), cover = warning.getBoundingClientRect();
    const isCovered = box.top >= cover.top && box.bottom <= cover.bottom && !warning.contains(e);
    return box.bottom > 0 && box.top < innerHeight && !isCovered;
}"""


def test_the_warning_is_accessible_and_does_not_cover_the_focus(people: People, served: Served) -> None:
    """WCAG 2.2, 2.4.11. The viewport has the size of a window of 1280 × 1024 pixels at a zoom of 400 %."""
    alice = people(viewport={"width": 320, "height": 256})
    # axe needs a running clock
    alice.page.add_init_script("const now = Date.now; window.later = 0; Date.now = () => now() + window.later;")
    alice.sign_in()
    alice.page.goto("/add-token")
    alice.page.get_by_text("This key fob is my own").click()
    alice.page.evaluate("window.later = 785_000")
    alice.page.get_by_role("alert").wait_for()
    assert_accessible(alice)
    covered = []
    for key in ["Tab"] * 16 + ["Shift+Tab"] * 16:
        alice.page.keyboard.press(key)
        if not alice.page.evaluate(IS_SEEN):
            covered.append(alice.page.evaluate("document.activeElement.outerHTML.slice(0, 60)"))
    assert covered == []


def test_after_stop_a_form_works_again_and_a_double_click_sends_once(people: People, served: Served) -> None:
    alice = people()
    stop_clock(alice)
    alice.page.goto("/sign-in")
    stopped: list[str] = []

    def stop(route: Route) -> None:
        stopped.append(route.request.method)
        route.abort("aborted")  # like the button Stop of the browser: the page remains open

    alice.page.route("**/sign-in", stop)
    alice.fill(User_name="alice", Password=served.password)
    button = alice.page.get_by_role("button", name="Continue")
    with alice.page.expect_event("requestfailed"):
        button.dblclick(no_wait_after=True)
    button.click(no_wait_after=True)
    assert stopped == ["POST"]
    alice.page.unroute("**/sign-in")
    alice.page.clock.run_for(1000)
    alice.press("Continue")
    assert alice.heading == "Your tokens"
    assert stopped == ["POST"]


def test_the_back_button_after_signing_out_shows_no_token(people: People, served: Served) -> None:
    alice = people()
    alice.sign_in()
    alice.press("Sign out")
    alice.page.go_back()
    alice.page.wait_for_load_state()
    assert alice.heading == "Sign in"


PAGES = (
    *("/", "/add-phone", "/add-phone/scan", "/add-token", "/add-token/next", "/resync?token=fob", "/rename?token=fob"),
    *("/remove?token=phone", "/recovery", "/recovery/codes", "/no-such-page"),
)


def test_every_page_is_accessible_and_fits_320_pixels(people: People, served: Served, tmp_path: Path) -> None:
    served.enrol("alice", HotpToken(name="fob", secret=KEY, created=0), phone())
    alice = people()
    alice.page.goto("/sign-in")
    assert_accessible_in_both_schemes(alice)
    alice.fill(User_name="alice", Password="wrong")
    alice.press("Continue")
    assert_accessible_in_both_schemes(alice)
    alice.sign_in()
    assert_accessible_in_both_schemes(alice)
    alice.page.get_by_label("One-time code").fill("000000")
    alice.press("Sign in")
    assert_accessible_in_both_schemes(alice)
    alice.page.get_by_label("One-time code").fill(codes(0))
    alice.press("Sign in")
    alice.press("Create new recovery codes")
    alice.page.get_by_label("A code from a token that you already use").fill(codes(1))
    alice.press("Create new codes")
    alice.page.goto("/add-phone")
    alice.page.get_by_label("Name").fill("x" * 100)
    alice.press("Show the QR code")
    for look in in_looks(alice.page, BOTH_SCHEMES):
        assert alice.scan(tmp_path / "qr.png")["kind"] == "totp", f"the QR code is dark on light: {look}"
    for path in PAGES:
        alice.page.goto(path)
        assert_accessible_in_both_schemes(alice)
    alice.press("Sign out")
    assert_accessible_in_both_schemes(alice)


BOTH_SCHEMES = (NARROW_LIGHT, NARROW_DARK)


def assert_accessible_in_both_schemes(person: Person) -> None:
    for _ in in_looks(person.page, BOTH_SCHEMES):
        assert_accessible(person)


def assert_accessible(person: Person) -> None:
    """Check that axe reports no violation, and that the page is at most 320 pixels wide."""
    assert_no_violations(person.page)
    assert person.page.evaluate("document.documentElement.scrollWidth") <= 320, person.page.url
