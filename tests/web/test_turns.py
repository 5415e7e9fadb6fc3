"""Places in the order of asking."""

from __future__ import annotations

import threading

from pam_totp.system.fair_semaphore import Turns
from tests.site import until

LONG = 60.0  # seconds: never waited for to the end


def test_nobody_passes_those_who_wait_not_even_who_has_just_given_back() -> None:
    turns, order = Turns(1), []

    def serve(name: str) -> None:
        assert turns.take(LONG)
        order.append(name)
        turns.give_back()

    def queue(name: str) -> threading.Thread:
        thread = threading.Thread(target=serve, args=(name,))
        before = turns.waiting
        thread.start()
        until(lambda: turns.waiting > before, f"{name} waits")
        return thread

    assert turns.take(0)
    threads = [queue(name) for name in "abcde"]
    turns.give_back()
    serve("the same again")
    for thread in threads:
        thread.join()
    assert order == [*"abcde", "the same again"]


def test_who_gave_up_is_passed_over_and_no_place_is_lost() -> None:
    turns = Turns(2)
    assert turns.take(0)
    assert turns.take(0)
    assert not turns.take(0.01)
    assert turns.waiting == 0
    turns.give_back()
    turns.give_back()
    assert turns.take(0)
    assert turns.take(0)
    assert not turns.take(0)


def test_however_many_ask_there_are_never_more_inside_than_places_and_all_are_served() -> None:
    turns, lock = Turns(3), threading.Lock()
    inside, most, served = 0, 0, 0

    def serve() -> None:
        nonlocal inside, most, served
        for _ in range(200):
            assert turns.take(LONG)
            with lock:
                inside += 1
                most = max(most, inside)
            with lock:
                inside -= 1
                served += 1
            turns.give_back()

    threads = [threading.Thread(target=serve) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most <= 3, served) == (True, 3200)
