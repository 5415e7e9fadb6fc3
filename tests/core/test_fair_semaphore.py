"""Tests of the fair semaphore: the order of its waiters, timeouts, and the limit under load."""

from __future__ import annotations

import threading

from pam_totp.store.fair_semaphore import FairSemaphore
from tests.support.site import until

LONG = 60.0  # seconds: a time limit that no wait reaches


def test_a_later_request_never_overtakes_an_earlier_one() -> None:
    semaphore, order = FairSemaphore(1), []

    def use_permit(name: str) -> None:
        assert semaphore.acquire(LONG)
        order.append(name)
        semaphore.release()

    def start_waiter(name: str) -> threading.Thread:
        thread = threading.Thread(target=use_permit, args=(name,))
        before = semaphore.waiting
        thread.start()
        until(lambda: semaphore.waiting > before, f"thread {name} waits for the permit")
        return thread

    assert semaphore.acquire(0)
    threads = [start_waiter(name) for name in "abcde"]
    semaphore.release()
    use_permit("last")  # this thread has just released a permit, but must wait behind the other threads
    for thread in threads:
        thread.join()
    assert order == [*"abcde", "last"]


def test_a_waiter_that_timed_out_takes_no_permit() -> None:
    semaphore = FairSemaphore(2)
    assert semaphore.acquire(0)
    assert semaphore.acquire(0)
    assert not semaphore.acquire(0.01)
    assert semaphore.waiting == 0
    semaphore.release()
    semaphore.release()
    assert semaphore.acquire(0)
    assert semaphore.acquire(0)
    assert not semaphore.acquire(0)


def test_the_limit_holds_under_load_and_every_request_is_served() -> None:
    semaphore, lock = FairSemaphore(3), threading.Lock()
    running, most, served = 0, 0, 0

    def work() -> None:
        nonlocal running, most, served
        for _ in range(200):
            assert semaphore.acquire(LONG)
            with lock:
                running += 1
                most = max(most, running)
            with lock:
                running -= 1
                served += 1
            semaphore.release()

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most <= 3, served) == (True, 3200)
