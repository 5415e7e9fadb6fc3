"""Tests of the threads of the portal's server: pages and other networks during many checks of passwords."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from pam_totp.web.dispatcher import PASSWORD_THREADS, Turns
from pam_totp.web.server import THREADS
from tests.support.site import PATIENCE, Site, until
from tests.web.kit import PASSWORD, Portal
from tests.web.over_http import HttpBrowser, served


class SlowPasswords:
    """A first factor. Each release of `finish` ends one check. `users` lists the user of each check."""

    def __init__(self) -> None:
        self.users: list[str] = []
        self.finish = threading.Semaphore(0)

    def verify(self, user: str, password: str, delay: Callable[[float], None]) -> bool:
        self.users.append(user)
        assert self.finish.acquire(timeout=PATIENCE)
        return password == PASSWORD


class Task:
    def __init__(self, network: str, number: int) -> None:
        self.network, self.number = network, number


def test_networks_take_turns_and_each_keeps_its_order() -> None:
    turns: Turns[Any] = Turns()
    for number in range(4):
        turns.append(Task("crowd", number))
    turns.append(Task("home", 0))
    turns.append(Task("office", 0))
    turns.append(Task("office", 1))
    assert len(turns) == 7
    served = [turns.popleft() for _ in range(7)]
    order = [("crowd", 0), ("home", 0), ("office", 0), ("crowd", 1), ("office", 1), ("crowd", 2), ("crowd", 3)]
    assert [(task.network, task.number) for task in served] == order
    assert not turns


@pytest.mark.parametrize("path", ["/sign-in", "//sign-in", "/sign%2din?x"])
def test_a_crowd_of_checks_delays_no_page_and_no_other_network(site: Site, path: str) -> None:
    passwords = SlowPasswords()
    portal = Portal(site, passwords=passwords)
    with served(portal.app) as port:
        form = HttpBrowser(port, "198.51.100.1")
        fields = form.form("/sign-in")
        crowd = [form.another(port, f"198.51.100.{i}") for i in range(2 * THREADS)]
        try:
            for number, browser in enumerate(crowd):
                browser.send("POST", path, fields | {"user": f"crowd{number}", "password": "wrong"})
            until(lambda: len(passwords.users) == PASSWORD_THREADS, "the threads for passwords are busy")
            page = HttpBrowser(port, "192.0.2.7")
            owner = page.form("/sign-in") | {"user": "alice", "password": PASSWORD}
            page.send("POST", "/sign-in", owner)
            assert HttpBrowser(port, "192.0.2.8").ask("GET", "/sign-in")[0] == 200
            assert len(passwords.users) == PASSWORD_THREADS, "no other thread checks passwords"
            while "alice" not in passwords.users:
                before = len(passwords.users)
                assert before < len(crowd) / 2, "the owner does not wait for the whole crowd"
                passwords.finish.release()
                until(lambda: len(passwords.users) > before, "one more password is checked")  # noqa: B023
            passwords.finish.release(len(crowd))
            assert page.answer()[0] == 303
            until(lambda: len(passwords.users) == len(crowd) + 1, "all passwords are checked")
        finally:
            passwords.finish.release(len(crowd))
            for browser in crowd:
                browser.close()
