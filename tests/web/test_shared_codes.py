"""Tests of sshd, the portal, Django and Flask with one store: all four together accept each code only once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.services.namespace import Machine, Sshd
from tests.services.test_ssh import is_in
from tests.web import applications
from tests.web.people import People, Person
from tests.web.served import TlsPortal

WIDE = "window = 5"  # steps: the test uses codes of four steps at once


@pytest.fixture
def shared(machine: Machine, tls_portal: TlsPortal) -> Machine:
    """Return a machine where sshd starts a helper, the portal opens the store, and the applications ask the service."""
    assert tls_portal.machine is machine
    applications.start(machine)
    applications.admit(machine, WIDE)
    machine.stack("sshd", machine.module_line())
    return machine


def django(person: Person, code: str) -> bool:
    """Sign in to the Django example with a password and `code`. Return True if the private page appears."""
    person.page.goto(f"{applications.DJANGO}/login/")
    person.fill(**{"Username:": "alice", "Password:": person.served.password})
    person.press("Go on")
    person.page.get_by_label("One-time code").fill(code)
    person.press("Sign in")
    return is_signed_in(person, "Hello, alice")


def flask(person: Person, code: str) -> bool:
    """Sign in to the Flask example with a password and `code`. Return True if the private page appears."""
    person.page.goto(f"{applications.FLASK}/login")
    person.fill(User_name="alice", Password=person.served.password)
    person.press("Go on")
    person.page.get_by_label("One-time code").fill(code)
    person.press("Go on")
    return is_signed_in(person, "Hello, alice.")


def checking_portal(person: Person, code: str) -> bool:
    """Sign in to the portal without a store. Return True if the portal accepts the code."""
    person.sign_in(code=code, at=applications.PORTAL)
    return is_signed_in(person, "Your code was accepted")


def is_signed_in(person: Person, welcome: str) -> bool:
    """Return True if the page contains the text `welcome`. Otherwise check that the page shows a refusal."""
    signed_in = person.page.get_by_text(welcome, exact=True).count() == 1
    assert signed_in or "refused" in person.page.get_by_role("alert").inner_text().lower()
    return signed_in


def test_a_code_used_by_one_application_is_refused_by_all(
    people: People, shared: Machine, sshd: Sshd, tmp_path: Path
) -> None:
    def over_ssh(code: str) -> bool:
        return is_in(sshd.ssh("alice", "NumberOfPasswordPrompts=1").asks("One-time code: ").says(code))

    alice = people()
    alice.sign_in()
    app = alice.add_phone(tmp_path / "qr.png")
    alice.fill(**{"The code that the app shows": app.code()})
    alice.press("Add phone")
    alice.press("Sign out")

    first, second, third, fourth = (app.code() for _ in range(4))
    assert over_ssh(first)
    for application in (django, flask, checking_portal):
        assert not application(people(), first), application.__name__
    alice.sign_in(code=first)
    assert (alice.heading, alice.error[:7]) == ("Your code", "Refused")

    assert django(people(), second)
    assert not over_ssh(second)
    assert flask(people(), third)
    assert not django(people(), third)
    checked = people()
    assert checking_portal(checked, fourth)
    assert not over_ssh(fourth)
    checked.page.goto(f"{applications.PORTAL}/add-phone")
    assert checked.page.get_by_role("heading", name="Page not found").is_visible(), (
        "only a portal with a store serves this page"
    )

    for service, times in (("web", 3), ("sshd", 2), ("pam_totp-portal", 2)):
        refusals = [line for line in shared.log.module_lines() if f"({service}:auth): refused user=alice" in line]
        replays = [line for line in refusals if "reason=replayed" in line]
        blanks = [line for line in refusals if "reason=malformed" in line]  # at the second prompt of sshd
        assert (len(replays), len(blanks)) == (times, times if service == "sshd" else 0)
        assert len(refusals) == len(replays) + len(blanks)
