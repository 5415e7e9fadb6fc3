"""Logins through FreeRADIUS under load, while authorities are killed."""

from __future__ import annotations

import signal
import threading

from pam_totp.core.oath import hotp
from tests.support.fleet import Fleet
from tests.support.radius import FreeRadius
from tests.support.site import KEY, until

CLIENTS = 8


def log_in_under_load(fleet: Fleet, radius: FreeRadius, *, logins: int, kills: int) -> None:
    """Make `logins` logins by CLIENTS users in parallel. Fail if a code is refused or a final counter is wrong.

    Meanwhile, kill and restart an authority `kills` times.
    """
    users = [fleet.user() for _ in range(CLIENTS)]
    accepted = dict.fromkeys(users, 0)
    problems: list[BaseException] = []
    share = logins // CLIENTS

    def log_in(user: str) -> None:
        try:
            with radius.nas() as nas:
                for number in range(share):
                    reply = nas.ask(user, hotp(KEY, number))
                    assert reply.kind == "accept", f"{user} {number}: {reply.kind}"
                    accepted[user] += 1
        except BaseException as e:
            problems.append(e)

    threads = [threading.Thread(target=log_in, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    try:
        for number in range(kills):
            wanted = share * CLIENTS * (number + 1) // (kills + 1)
            until(lambda wanted=wanted: sum(accepted.values()) >= wanted or problems, "logins")  # type: ignore[misc]
            fleet.authorities[number % 2].end(signal.SIGKILL)
            fleet.authorities[number % 2].start()
    finally:
        for thread in threads:
            thread.join()
    assert problems == []
    assert {user: fleet.store.read(user).tokens[0].next_factor for user in users} == dict.fromkeys(users, share)
