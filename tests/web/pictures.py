"""A program that takes pictures of the portal for the documentation: `python -m tests.web.pictures FOLDER`, as root.

The program writes three files for each page: 1280 pixels wide, 320 pixels wide, and 1280 pixels wide in dark colours.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from pam_totp.core.record import HotpToken
from tests.services.namespace import Machine
from tests.support.isolation import isolate
from tests.support.site import KEY, codes, phone
from tests.web.conftest import FLAGS
from tests.web.people import Person, Phone
from tests.web.served import TlsPortal

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


def main(folder: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as made,
        tempfile.TemporaryDirectory() as program,
        sync_playwright() as playwright,
    ):
        machine = Machine(Path(made))
        try:
            served = TlsPortal(machine, Path(program))
            flags = [*FLAGS, "--host-resolver-rules=MAP * 127.0.0.1"]
            chromium = playwright.chromium.launch(executable_path=served.browser, args=flags)
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
            chromium.close()
        finally:
            machine.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        isolate(Path(home))
        main(Path(sys.argv[1]))
