"""A program that takes pictures of the portal for the documentation: `python -m tests.web.pictures FOLDER`, as root.

The program writes three files for each page: 1280 pixels wide, 320 pixels wide, and 1280 pixels wide in dark colours.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pam_totp.core.oath import hotp
from pam_totp.core.record import HotpToken
from pam_totp.core.secretfile import unbase32
from tests.services.namespace import Machine
from tests.support.isolation import isolate
from tests.support.site import KEY, codes, phone
from tests.web.chromium import ALL_NAMES_HERE, running
from tests.web.people import Person, Phone
from tests.web.served import TlsPortal
from tests.web.test_guided_browser import CODE, PROOF, app_key, app_of, fob, invite

LOOKS: dict[str, dict[str, Any]] = {
    "1280": {"viewport": {"width": 1280, "height": 800}},
    "320": {"viewport": {"width": 320, "height": 640}, "device_scale_factor": 2},
    "dark": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
}


def take_pictures(person: Person, folder: Path, look: str) -> None:
    """Take a picture of each page as alice, a user with a key fob."""

    def take(name: str) -> None:
        person.page.screenshot(path=folder / f"portal-{name}-{look}.png", full_page=True)

    person.page.goto("/sign-in")
    take("sign-in")
    person.sign_in()
    take("code")
    person.press("Use a recovery code")
    take("recovery-code")
    person.press("Use a code from your phone app or key fob")
    person.page.get_by_label("One-time code").fill("000 000")
    person.press("Sign in")
    take("refused")
    person.page.get_by_label("One-time code").fill(codes(0))
    person.press("Sign in")
    person.press("Add a phone")
    take("add-phone")
    person.press("Show the QR code")
    take("scan")
    app = Phone(person.page.locator(".key code").inner_text().replace(" ", ""))
    person.page.get_by_label("The code that the app shows").fill(app.code())
    person.page.get_by_label("A code from a token that you already use").fill(codes(1))
    person.press("Add phone")
    take("tokens")
    for page in ("add-token", "resync?token=fob", "rename?token=fob", "remove?token=phone", "recovery"):
        person.page.goto(f"/{page}")
        take(page.partition("?")[0])
    person.page.get_by_label("A code from a token that you already use").fill(codes(2))
    person.press("Create new codes")
    take("recovery-codes")


def take_guided_pictures(person: Person, folder: Path, look: str) -> None:
    """Take a picture of each page of the guided enrolment, as alice with a ticket, and of pages for a lost phone."""

    def take(name: str, *, full: bool = True) -> None:
        person.page.screenshot(path=folder / f"guided-{name}-{look}.png", full_page=full)

    ticket = invite(person.served)
    person.sign_in()
    take("1-start")
    person.fill(Enrolment_ticket=ticket)
    person.press("Begin")
    take("2-app")
    person.press("I have an app")
    app = app_of(person)
    take("3-scan")
    person.page.get_by_text("Or type the key").click()
    person.fill(**{CODE: hotp(unbase32(app_key(person)), int(time.time()) // 30 + 14)})
    person.press("Continue")
    take("3-clock")
    person.fill(**{CODE: app.code()})
    person.press("Continue")
    take("4-codes")
    person.page.emulate_media(media="print")
    take("4-paper")
    person.page.emulate_media(media="screen")
    proof = person.page.locator(".codes code").first.inner_text()
    person.press("I have kept them")
    take("5-done")
    person.press("Go to your tokens")
    person.press("Sign out")
    person.sign_in()
    take("6-code")
    person.press("I have lost my phone")
    take("7-lost")
    person.fill(**{PROOF: proof})
    person.press("Continue")
    person.press("I have an app")
    take("8-replace")
    handed_out = fob(confirmed=False)
    ticket = invite(person.served, handed_out, token=handed_out)
    person.press("Cancel")
    person.press("Set up your second factor")
    person.fill(Enrolment_ticket=ticket)
    person.press("Begin")
    take("9-fob")
    person.fill(**{"The code that the key fob shows": codes(0)})
    person.press("Continue")
    take("9-next")


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as program:
        machine = Machine(Path(made))
        try:
            served = TlsPortal(machine, Path(program))
            guided = TlsPortal(machine, Path(program), "ticket", (8444, 444))
            with running(served.browser, ALL_NAMES_HERE) as chromium:
                for look, context in LOOKS.items():
                    served.delete_all_users()
                    now = int(time.time())
                    fob = HotpToken(name="fob", secret=KEY, created=now - 9_000_000, serial="SM00000042")
                    served.enrol(
                        "alice", fob, phone(name="tablet", created=now - 4_000_000, last_used=now - 7_000, drift=1)
                    )
                    person = Person(chromium, served, **context)
                    take_pictures(person, folder, look)
                    person.close()
                    served.delete_all_users()
                    person = Person(chromium, guided, **context)
                    take_guided_pictures(person, folder, look)
                    person.close()
        finally:
            machine.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        isolate(Path(home))
        main(Path(sys.argv[1]))
