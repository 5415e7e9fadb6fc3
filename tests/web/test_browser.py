"""As people use it: a real browser, the portal behind nginx, real passwords, a phone's camera, a pressed token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.web.people import Person, Phone
from tests.web.served import Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium

People = Callable[..., Person]


@pytest.fixture
def people(_chromium: Chromium, served: Served) -> Iterator[People]:
    """As many people as a test needs, each with a browser of their own."""
    there: list[Person] = []

    def one(**context: Any) -> Person:
        there.append(Person(_chromium, served, **context))
        return there[-1]

    yield one
    for person in there:
        person.close()


def add_phone(person: Person, picture: Path) -> Phone:
    person.press("Add a phone")
    person.press("Show the QR code")
    seen = person.scan(picture)
    assert (seen["kind"], seen["label"], seen["digits"]) == ("totp", "/portal.example.org:alice", "6")
    assert person.page.locator(".key code").inner_text().replace(" ", "") == seen["secret"]
    return Phone(seen["secret"])


def test_scan_confirm_sign_out_sign_in_and_the_replay_is_refused(
    people: People, served: Served, tmp_path: Path
) -> None:
    alice = people()
    alice.sign_in()
    mine = add_phone(alice, tmp_path / "qr.png")
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
