"""Tests of the service's event loop: jobs that block, threads, timers, descriptors, and bugs of handlers."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from pam_totp.pam.loop import MAX_IDLE, Loop, Pool
from tests.support.site import PATIENCE, until


class Running:
    """A loop that runs in its own thread. `bugs` lists the exceptions of its handlers."""

    def __init__(self) -> None:
        self.bugs: list[Exception] = []
        self.loop, self.pool = Loop(self.bugs.append), Pool(100)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def do(self, handler: Callable[[], None]) -> None:
        """Call `handler` in the loop, and wait until `handler` has returned."""
        done = threading.Event()

        def call() -> None:
            try:
                handler()
            finally:
                done.set()

        self.loop.call_from_thread(call)
        assert done.wait(PATIENCE), "the loop is blocked"


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.loop.call_from_thread(made.loop.stop)
    made.thread.join(PATIENCE)
    assert not made.thread.is_alive()


class Blocked:
    """A job that blocks until `go_on` is set. `results` lists the results, and `threads` the handling threads."""

    def __init__(self) -> None:
        self.go_on, self.began = threading.Event(), threading.Semaphore(0)
        self.results: list[object] = []
        self.threads: set[int] = set()

    def job(self) -> object:
        self.began.release()
        assert self.go_on.wait(PATIENCE)
        return "done"

    def on_result(self, result: object, error: Exception | None) -> None:
        self.results.append(error or result)
        self.threads.add(threading.get_ident())


def test_a_job_that_blocks_does_not_block_the_loop(running: Running) -> None:
    blocked = Blocked()
    running.loop.call_from_thread(lambda: running.loop.run_in_thread(running.pool, blocked.job, blocked.on_result))
    assert blocked.began.acquire(timeout=PATIENCE)
    seen: set[int] = set()
    running.do(lambda: seen.add(threading.get_ident()))
    assert blocked.results == []
    blocked.go_on.set()
    until(lambda: blocked.results == ["done"], "the result arrives")
    running.do(lambda: seen.add(threading.get_ident()))
    assert blocked.threads == seen, "the loop's thread handles the result"
    assert len(seen) == 1


def test_many_blocked_jobs_do_not_delay_other_jobs(running: Running) -> None:
    blocked, free = Blocked(), Blocked()
    free.go_on.set()
    for _ in range(3 * MAX_IDLE):
        running.loop.call_from_thread(lambda: running.loop.run_in_thread(running.pool, blocked.job, blocked.on_result))
    for _ in range(3 * MAX_IDLE):
        assert blocked.began.acquire(timeout=PATIENCE)
    running.loop.call_from_thread(lambda: running.loop.run_in_thread(running.pool, free.job, free.on_result))
    until(lambda: free.results == ["done"], "a later job is done")
    assert blocked.results == []
    blocked.go_on.set()
    until(lambda: len(blocked.results) == 3 * MAX_IDLE, "all jobs are done")


def test_few_threads_remain_after_the_jobs(running: Running) -> None:
    blocked = Blocked()
    before = set(threading.enumerate())
    for _ in range(3 * MAX_IDLE):
        running.loop.call_from_thread(lambda: running.loop.run_in_thread(running.pool, blocked.job, blocked.on_result))
    for _ in range(3 * MAX_IDLE):
        assert blocked.began.acquire(timeout=PATIENCE)
    blocked.go_on.set()
    until(lambda: len(set(threading.enumerate()) - before) <= MAX_IDLE, "the other threads have ended")
    assert all(thread.daemon for thread in set(threading.enumerate()) - before), "no thread delays the exit"


def test_jobs_beyond_the_limit_of_threads_wait_for_a_thread(running: Running) -> None:
    running.pool = Pool(2)
    blocked = Blocked()
    for _ in range(4):
        running.loop.call_from_thread(lambda: running.loop.run_in_thread(running.pool, blocked.job, blocked.on_result))
    for _ in range(2):
        assert blocked.began.acquire(timeout=PATIENCE)
    running.do(lambda: None)
    assert not blocked.began.acquire(blocking=False)
    blocked.go_on.set()
    until(lambda: len(blocked.results) == 4, "all jobs are done")


def test_if_no_thread_can_be_started_a_job_waits(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked, later = Blocked(), Blocked()
    later.go_on.set()
    running.loop.call_from_thread(lambda: running.loop.run_in_thread(running.pool, blocked.job, blocked.on_result))
    assert blocked.began.acquire(timeout=PATIENCE)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    running.do(lambda: running.loop.run_in_thread(running.pool, later.job, later.on_result))
    blocked.go_on.set()
    until(lambda: later.results == ["done"], "the thread of the first job runs the second job")


def test_the_exception_of_a_job_is_its_result(running: Running) -> None:
    got = Blocked()
    error = OSError("broken")

    def fails() -> object:
        raise error

    running.do(lambda: running.loop.run_in_thread(running.pool, fails, got.on_result))
    until(lambda: got.results == [error], "the error arrives")
    assert running.bugs == []


def test_a_bug_in_a_handler_is_logged_and_the_loop_continues(running: Running) -> None:
    running.do([].pop)
    running.do(lambda: None)
    assert [type(bug) for bug in running.bugs] == [IndexError]


def test_timers_are_called_in_the_order_of_their_times(running: Running) -> None:
    called: list[float] = []

    def begin() -> None:
        for seconds in (-100.0, -300.0, 0.0, -200.0):
            running.loop.call_later(seconds, partial(called.append, seconds))

    running.do(begin)
    until(lambda: len(called) == 4, "all are called")
    assert called == [-300.0, -200.0, -100.0, 0.0]


def test_a_descriptor_is_watched_once_or_always(running: Running) -> None:
    reading, writing = os.pipe()
    again, write_again = os.pipe()
    calls = {"once": 0, "always": 0}

    def called(name: str, descriptor: int) -> None:
        calls[name] += 1
        if calls[name] == 3:
            running.loop.unwatch(descriptor)

    os.write(writing, b"x")
    os.write(write_again, b"x")
    running.do(lambda: running.loop.watch(reading, lambda: called("once", reading)))
    running.do(lambda: running.loop.watch(again, lambda: called("always", again), always=True))
    until(lambda: calls == {"once": 1, "always": 3}, "both handlers are called")
    running.do(lambda: running.loop.watch(reading, lambda: called("once", reading)))
    until(lambda: calls["once"] == 2, "the descriptor is watched again")
    running.do(lambda: running.loop.unwatch(reading))
    for descriptor in (reading, writing, again, write_again):
        os.close(descriptor)


def test_descriptors_of_one_poll_have_one_time(running: Running) -> None:
    """A slow handler does not change the time of the event at the next descriptor."""
    pipes = [os.pipe() for _ in range(3)]
    times: list[float] = []

    def handle() -> None:
        times.append(running.loop.poll_time)
        begun = time.monotonic()
        until(lambda: time.monotonic() > begun, "the clock advances")

    def begin() -> None:
        for reading, writing in pipes:
            os.write(writing, b"x")
            running.loop.watch(reading, handle)

    before = time.monotonic()
    running.do(begin)
    until(lambda: len(times) == 3, "all are called")
    assert len(set(times)) == 1
    assert before <= times[0] <= time.monotonic()
    for reading, writing in pipes:
        running.do(partial(running.loop.unwatch, reading))
        os.close(reading)
        os.close(writing)


def test_handlers_that_queue_each_other_do_not_delay_descriptors(running: Running) -> None:
    reading, writing = os.pipe()
    readable, rounds = threading.Event(), 0

    def again() -> None:
        nonlocal rounds
        rounds += 1
        if not readable.is_set():
            running.loop.call_next(again)

    def begin() -> None:
        running.loop.watch(reading, readable.set)
        running.loop.call_next(again)
        os.write(writing, b"x")

    running.do(begin)
    assert readable.wait(PATIENCE), "the loop polls between the handlers"
    assert rounds >= 1
    os.close(reading)
    os.close(writing)


def test_a_timer_is_not_late_by_the_rounding_of_epoll(running: Running) -> None:
    """epoll waits for whole milliseconds. A rounded wait would reveal the duration of the work before the delay."""
    waits: list[float | None] = []
    running.do(lambda: waits.append(Loop(lambda _: None)._seconds()))
    loop = Loop(lambda _: None)
    for milliseconds in (0.2, 0.999, 1.5, 99.9):
        loop._timers[:] = [(time.monotonic() + milliseconds / 1000, 0, lambda: None)]
        seconds = loop._seconds()
        assert seconds is not None
        assert -(-seconds * 1000 // 1) <= milliseconds, "the wait, rounded up, ends before the timer"
    assert waits == [None]


def test_the_loop_sleeps_until_a_timer_is_due(running: Running) -> None:
    """A wait of less than a millisecond, for which epoll is too coarse, must not be a busy loop."""
    rounds: list[float] = []

    class Counting:
        def __init__(self, epoll: object) -> None:
            self._epoll = epoll

        def __getattr__(self, name: str) -> object:
            if name == "poll":
                rounds.append(time.monotonic())
            return getattr(self._epoll, name)

    loop, count = running.loop, 30
    running.do(lambda: setattr(loop, "_epoll", Counting(loop._epoll)))
    for _ in range(count):
        called = threading.Event()
        running.do(partial(loop.call_later, 0.0019, called.set))
        assert called.wait(PATIENCE)
    assert len(rounds) <= 6 * count, "two calls, the milliseconds, the rest, the timer and the next wait poll once each"


def test_a_loop_with_a_high_descriptor_calls_its_timers(running: Running) -> None:
    """select(2) supports only descriptors up to 1023."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(2048, limits[0]), limits[1]))
    loop, called = running.loop, threading.Event()
    try:
        high = fcntl.fcntl(loop._epoll.fileno(), fcntl.F_DUPFD_CLOEXEC, 1024)
        running.do(lambda: setattr(loop, "_epoll", select.epoll.fromfd(high)))
        running.do(lambda: loop.call_later(0.0019, called.set))
        assert called.wait(PATIENCE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
