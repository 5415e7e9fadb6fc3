"""As people use it: a real browser, the portal behind nginx, real passwords, a phone's camera, a pressed token."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from pam_totp.core.record import HotpToken
from tests.etc import SHADOW
from tests.services.namespace import ACCOUNTS
from tests.site import KEY, TREE, codes, phone, until
from tests.web.people import People, Person, Phone
from tests.web.served import BehindTls, Served


def test_scan_confirm_sign_out_sign_in_and_the_replay_is_refused(
    people: People, served: Served, tmp_path: Path
) -> None:
    alice = people()
    alice.sign_in()
    mine = alice.add_phone(tmp_path / "qr.png")
    alice.fill(**{"The code that the app shows": mine.code()})
    alice.press("Add phone")
    assert (alice.heading, alice.notice) == ("Your tokens", "phone is in use now.")
    alice.press("Sign out")
    assert "You are signed out." in alice.page.locator("main").inner_text()
    code = mine.code()
    alice.sign_in(code=code)
    assert alice.heading == "Your tokens"
    thief = people()
    thief.sign_in(code=code)
    assert thief.heading == "Your code"
    assert thief.error.startswith("Refused;")
    assert len(served.record("alice").tokens) == 1
    assert [c for c in alice.complaints + thief.complaints if "401" not in c] == [], "not a word in the console"
    assert {url.split("/")[2] for url in alice.requests} == {served.url.split("/")[2]}, "nobody else is asked"


def test_a_pressed_token_is_brought_back_into_step(people: People, served: Served, tmp_path: Path) -> None:
    made = tmp_path / "factory"
    sim = [sys.executable, "-m", "token_sim.cli"]
    subprocess.run([*sim, "factory", "--count", "1", "--out", made], cwd=TREE, check=True, stdout=subprocess.DEVNULL)
    serial, seed, _, _, counter = (made / "seeds.csv").read_text().splitlines()[0].split(",")[:5]
    token = HotpToken(name="fob", secret=bytes.fromhex(seed), created=0, counter=int(counter), serial=serial)
    served.enrol("alice", token, phone())
    port = tmp_path / "port"
    # The token's own socket would be deep in pytest's folders, whose names grow with every run.
    with (
        tempfile.TemporaryDirectory(prefix="pam_totp-test-") as short,
        subprocess.Popen(
            [*sim, "run", made / f"{serial}.token", "--link", port, "--control", f"{short}/control"],
            cwd=TREE,
            stdout=subprocess.DEVNULL,
        ) as simulator,
    ):
        try:
            until(port.exists, "the simulator makes its port")

            def press(times: int) -> list[str]:
                done = subprocess.run(
                    [*sim, "press", "--port", port, "-n", str(times)],
                    cwd=TREE,
                    text=True,
                    stdout=subprocess.PIPE,
                    check=True,
                )
                return done.stdout.split()

            press(25)  # in a pocket: farther than one code reaches
            alice = people()
            alice.sign_in(code=press(1)[0])
            assert alice.error.startswith("Refused;")
            alice.page.get_by_label("One-time code").fill(" ".join(press(2)))
            alice.press("Sign in")
            assert alice.heading == "Your tokens"
            press(15)
            alice.page.goto("/resync?token=fob")
            alice.page.get_by_label("Two codes in a row").fill(" ".join(press(2)))
            alice.press("Bring back into step")
            assert alice.notice == "fob is back in step."
            (code,) = press(1)
        finally:
            simulator.terminate()
    again = people()
    again.sign_in(code=code)
    assert again.heading == "Your tokens"


def test_a_recovery_code_gets_in_when_the_phone_is_lost(people: People, served: Served) -> None:
    served.enrol("alice", HotpToken(name="fob", secret=KEY, created=0))
    alice = people()
    alice.sign_in(code=codes(0))
    alice.press("Make new recovery codes")
    alice.page.get_by_label("A code of a token you have").fill(codes(1))
    alice.press("Make new ones")
    shown = alice.page.locator(".codes code").all_inner_texts()
    assert len(shown) == 10
    alice.page.emulate_media(media="print")
    assert not alice.page.get_by_role("button").first.is_visible(), "on paper there are the codes alone"
    assert alice.page.locator(".codes").is_visible()
    alice.page.emulate_media(media="screen")
    alice.press("I have kept them")
    lost = people(viewport={"width": 320, "height": 640})
    lost.sign_in()
    lost.press("Use a recovery code")
    fits(lost)
    lost.fill(Recovery_code="AAAA-AAAA-AAAA-AAAA")
    lost.press("Sign in")
    assert lost.error.startswith("Refused;")
    lost.fill(Recovery_code=shown[4])  # the form is still the one with letters on its keyboard
    lost.press("Sign in")
    assert lost.heading == "Your tokens"
    assert lost.notice.startswith("Recovery code used, 9 left.")
    lost.page.goto("/recovery/codes")
    assert shown[5] not in lost.page.content()


def test_of_two_browsers_with_one_code_one_gets_in(people: People, served: Served) -> None:
    served.enrol("alice", HotpToken(name="fob", secret=KEY, created=0))
    two = [people(), people()]
    for person in two:
        person.sign_in()
        person.page.get_by_label("One-time code").fill(codes(0))
    for person in two:  # neither waits for the other's answer
        person.page.evaluate("setTimeout(() => document.querySelector('main form').requestSubmit(), 50)")
    for person in two:
        person.page.locator("h1:text-is('Your tokens'), .error").wait_for()
    assert sorted(person.heading for person in two) == ["Your code", "Your tokens"]


def test_a_session_stolen_before_the_code_is_worth_nothing(people: People, served: Served) -> None:
    served.enrol("alice", HotpToken(name="fob", secret=KEY, created=0))
    alice, thief = people(), people()
    alice.sign_in()
    thief.context.add_cookies(alice.context.cookies())
    alice.page.get_by_label("One-time code").fill(codes(0))
    alice.press("Sign in")
    assert alice.heading == "Your tokens"
    thief.page.goto("/")
    assert thief.heading == "Sign in"


def test_the_cookie_is_what_it_should_be_over_tls(people: People, behind_tls: BehindTls) -> None:
    alice = people()
    alice.sign_in()
    (cookie,) = alice.context.cookies()
    assert cookie["name"] == "__Host-pam_totp"
    assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Lax")
    assert (cookie["domain"], cookie["path"], cookie["expires"]) == ("portal.example.org", "/", -1)
    assert alice.page.evaluate("document.cookie") == ""
    assert behind_tls.machine.log.wait_for("accepted", "user=alice", "by=password", f"rhost={alice.address}")


def test_started_as_root_it_is_the_stores_owner_in_the_group_shadow_and_no_more(behind_tls: BehindTls) -> None:
    status = Path(f"/proc/{behind_tls.process.pid}/status").read_text()
    told = {name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())}
    assert told["Name"] != ["nsenter"]
    owner = str(ACCOUNTS["pam_totp"])
    assert (told["Uid"], told["Gid"]) == ([owner] * 4, [owner] * 4)
    assert told["Groups"] == [str(SHADOW)]
    assert {told[capabilities][0].strip("0") for capabilities in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {""}


def test_a_wrong_password_a_blank_one_and_an_unknown_user_are_refused_by_pam(
    people: People, behind_tls: BehindTls
) -> None:
    said = set()
    for user, password in (("alice", "wrong"), ("nobody-here", "wrong"), ("root", behind_tls.password), ("bob", " ")):
        person = people()
        person.page.goto("/sign-in")
        person.fill(User_name=user, Password=password)
        person.press("Go on")
        said.add((person.heading, person.error))
    assert said == {("Sign in", "User name and password do not match.")}


def test_without_scripts_everything_works(people: People, served: Served, tmp_path: Path) -> None:
    alice = people(java_script_enabled=False)
    alice.sign_in()
    alice.press("Add a phone")
    alice.press("Show the QR code")
    assert not alice.page.get_by_role("button", name="Copy").is_visible(), "no button that does nothing"
    mine = Phone(alice.scan(tmp_path / "qr.png")["secret"])
    alice.fill(**{"The code that the app shows": mine.code()})
    alice.press("Add phone")
    assert alice.notice == "phone is in use now."
    assert len(served.record("alice").tokens) == 1


def test_a_keyboard_is_enough(people: People, served: Served) -> None:
    served.enrol("alice", HotpToken(name="fob", secret=KEY, created=0))
    alice = people()
    alice.page.goto("/sign-in")
    keys = alice.page.keyboard
    keys.type("alice")  # the first field has the focus
    keys.press("Tab")
    keys.type(served.password)
    with alice.page.expect_navigation():
        keys.press("Enter")
    keys.type(codes(0))
    with alice.page.expect_navigation():
        keys.press("Enter")
    assert alice.heading == "Your tokens"
    reached = []
    for _ in range(12):
        keys.press("Tab")
        reached.append(alice.page.evaluate("document.activeElement.textContent.trim()"))
    for stop in ("Skip to the page", "Sign out", "Bring back into step (fob)", "Rename fob", "Add a phone"):
        assert stop in reached, reached


def test_the_key_is_copied_by_a_button(people: People, served: Served, tmp_path: Path) -> None:
    alice = people(permissions=["clipboard-read", "clipboard-write"])
    alice.sign_in()
    alice.add_phone(tmp_path / "qr.png")
    alice.page.get_by_role("button", name="Copy").click()
    alice.page.get_by_role("button", name="Copied").wait_for()
    shown = alice.page.locator(".key code").inner_text().replace(" ", "")
    assert alice.page.evaluate("navigator.clipboard.readText()") == shown


def test_the_back_button_after_signing_out_shows_nothing(people: People, served: Served) -> None:
    alice = people()
    alice.sign_in()
    alice.press("Sign out")
    alice.page.go_back()
    alice.page.wait_for_load_state()
    assert alice.heading == "Sign in"


PAGES = (
    *("/", "/add-phone", "/add-phone/scan", "/add-token", "/resync?token=fob", "/rename?token=fob"),
    *("/remove?token=phone", "/recovery", "/recovery/codes", "/no-such-page"),
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_shuts_anybody_out_or_is_wider_than_a_small_phone(
    people: People, served: Served, scheme: str, tmp_path: Path
) -> None:
    served.enrol("alice", HotpToken(name="fob", secret=KEY, created=0), phone())
    alice = people(viewport={"width": 320, "height": 640}, color_scheme=scheme)
    alice.page.goto("/sign-in")
    fits(alice)
    alice.fill(User_name="alice", Password="wrong")
    alice.press("Go on")
    fits(alice)
    alice.sign_in()
    fits(alice)
    alice.page.get_by_label("One-time code").fill("000000")
    alice.press("Sign in")
    fits(alice)
    alice.page.get_by_label("One-time code").fill(codes(0))
    alice.press("Sign in")
    alice.press("Make new recovery codes")
    alice.page.get_by_label("A code of a token you have").fill(codes(1))
    alice.press("Make new ones")
    alice.page.goto("/add-phone")
    alice.page.get_by_label("Name").fill("x" * 100)
    alice.press("Show the QR code")
    assert alice.scan(tmp_path / "qr.png")["kind"] == "totp", "dark on light, whatever the scheme"
    for path in PAGES:
        alice.page.goto(path)
        fits(alice)
    alice.press("Sign out")
    fits(alice)


def fits(person: Person) -> None:
    """axe finds nothing, and nothing stands out of a window of 320 pixels."""
    found = Axe().run(person.page)
    assert found.violations_count == 0, (person.page.url, found.generate_report())
    assert person.page.evaluate("document.documentElement.scrollWidth") <= 320, person.page.url
