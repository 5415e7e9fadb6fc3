"""One code, one login, wherever: sshd, the portal, Django, Flask. All of them are the real ones, over one store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.services.namespace import Machine, Sshd
from tests.services.test_ssh import is_in
from tests.web import applications
from tests.web.people import People, Person
from tests.web.served import BehindTls

WIDE = "window = 5"  # steps: a person waits half a minute for the next code; here all are used at once


@pytest.fixture
def shared(machine: Machine, behind_tls: BehindTls) -> Machine:
    """sshd spawns the helper, the portal opens the store, the applications ask the service: three ways to a record."""
    assert behind_tls.machine is machine
    applications.start(machine)
    applications.admit(machine, WIDE)
    machine.stack("sshd", machine.ours())
    return machine


def django(person: Person, code: str) -> bool:
    """Sign in to the example project, password and code; whether the private page comes."""
    person.page.goto(f"{applications.DJANGO}/login/")
    person.fill(**{"Username:": "alice", "Password:": person.served.password})
    person.press("Go on")
    person.page.get_by_label("One-time code").fill(code)
    person.press("Sign in")
    return came_in(person, "Hello, alice")


def flask(person: Person, code: str) -> bool:
    """The same at the Flask example."""
    person.page.goto(f"{applications.FLASK}/login")
    person.fill(User_name="alice", Password=person.served.password)
    person.press("Go on")
    person.page.get_by_label("One-time code").fill(code)
    person.press("Go on")
    return came_in(person, "Hello, alice.")


def checking_portal(person: Person, code: str) -> bool:
    """The same at the portal that has no store."""
    person.sign_in(code=code, at=applications.PORTAL)
    return came_in(person, "Your code was right")


def came_in(person: Person, welcome: str) -> bool:
    """Whether the page is the one behind both steps; if not, that it says why is checked on the way."""
    inside = person.page.get_by_text(welcome, exact=True).count() == 1
    assert inside or "refused;" in person.page.get_by_role("alert").inner_text().lower()
    return inside


def test_a_token_of_the_portals_logs_in_over_ssh_and_a_code_used_anywhere_is_refused_everywhere(
    people: People, shared: Machine, sshd: Sshd, tmp_path: Path
) -> None:
    def over_ssh(code: str) -> bool:
        return is_in(sshd.ssh("alice", "NumberOfPasswordPrompts=1").asks("One-time code: ").says(code))

    alice = people()
    alice.sign_in()
    mine = alice.add_phone(tmp_path / "qr.png")
    alice.fill(**{"The code that the app shows": mine.code()})
    alice.press("Add phone")
    alice.press("Sign out")

    first, second, third, fourth = (mine.code() for _ in range(4))
    assert over_ssh(first)
    for application in (django, flask, checking_portal):
        assert not application(people(), first), application.__name__
    alice.sign_in(code=first)
    assert (alice.heading, alice.error[:8]) == ("Your code", "Refused;")

    assert django(people(), second)
    assert not over_ssh(second)
    assert flask(people(), third)
    assert not django(people(), third)
    checked = people()
    assert checking_portal(checked, fourth)
    assert not over_ssh(fourth)
    checked.page.goto(f"{applications.PORTAL}/add-phone")
    assert checked.page.get_by_text("There is no such page.").is_visible(), "what has no store changes nothing"

    for service, times in (("web", 3), ("sshd", 2), ("pam_totp-portal", 2)):
        said = [line for line in shared.log.ours() if f"({service}:auth): refused user=alice" in line]
        assert len(said) == times
        assert all("reason=replayed" in line for line in said), "for being used, and for nothing else"
