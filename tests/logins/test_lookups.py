"""Tests of lookups of accounts in a slow name service: one account's lookups leave threads for others."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from pam_totp.pam import lookups
from pam_totp.pam.login_session import LookUp
from pam_totp.pam.lookups import MAX_FOR_ONE, Lookups
from pam_totp.pam.loop import Loop
from tests.support.site import PATIENCE, until

MANY, OTHER = 1001, 1002  # uids


def test_lookups_of_one_account_leave_threads_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "MAX_FOR_OTHERS", MAX_FOR_ONE + 1)
    bugs: list[Exception] = []
    loop = Loop(bugs.append)
    looking = Lookups(loop)
    thread = threading.Thread(target=loop.run)
    thread.start()
    answers, asked = threading.Event(), threading.Semaphore(0)
    done: list[str] = []

    def slow() -> None:
        asked.release()
        assert answers.wait(PATIENCE)

    def look_up(uid: int, name: str, job: object = slow) -> None:
        assert callable(job)
        wait = LookUp(job)
        loop.call_from_thread(partial(looking.look_up, uid, wait, lambda *_: done.append(name)))

    for number in range(3 * MAX_FOR_ONE):
        look_up(MANY, f"remote{number}")
    for _ in range(MAX_FOR_ONE):
        assert asked.acquire(timeout=PATIENCE)
    look_up(OTHER, "other", lambda: None)
    until(lambda: done == ["other"], "another account's lookup has a thread")
    assert not asked.acquire(blocking=False), "the other lookups of the first account wait"
    answers.set()
    until(lambda: len(done) == 3 * MAX_FOR_ONE + 1, "all lookups are made")
    loop.call_from_thread(loop.stop)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert bugs == []
