"""Tests of the order of the logins that use the store, and of the threads in which these logins run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pam_totp.operations.verifier import UseStore
from pam_totp.pam import store_queue
from pam_totp.pam.loop import Loop, Pool
from pam_totp.pam.store_queue import MAX_SEARCHES, SLOW_DISK, StoreQueue
from pam_totp.store import LockBusy
from tests.support.site import PATIENCE, until

RECORD = ("/store", "alice")


class Running:
    """A queue whose loop runs in a thread. `done` lists the names of completed uses of the store, the oldest first."""

    def __init__(self) -> None:
        self.bugs: list[Exception] = []
        self.loop = Loop(self.bugs.append)
        self.queue = StoreQueue(self.loop, Pool(10))
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()
        self.done: list[str] = []
        self.errors: list[Exception] = []
        self.go_on, self.began = threading.Event(), threading.Event()

    def use(
        self,
        asker: str,
        name: str,
        job: Callable[[], object] = lambda: None,
        *,
        is_slow: bool = False,
        is_remote: bool = False,
        user: str = "alice",
    ) -> None:
        def on_result(_: object, error: Exception | None) -> None:
            self.done.append(name)
            if error is not None:
                self.errors.append(error)

        wait = UseStore(lambda _: job(), is_slow=is_slow, is_remote=is_remote, record=(RECORD[0], user))
        self.loop.call_from_thread(lambda: self.queue.use(asker, wait, on_result))

    def block(self) -> None:
        """Begin a use of the store that lasts until `go_on` is set."""

        def job() -> None:
            self.began.set()
            assert self.go_on.wait(PATIENCE)

        self.use("first", "first", job, is_slow=True)
        assert self.began.wait(PATIENCE)


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.go_on.set()
    made.loop.call_from_thread(made.loop.stop)
    made.thread.join(PATIENCE)
    assert not made.thread.is_alive()
    assert made.bugs == []


def test_logins_for_one_record_take_turns(running: Running) -> None:
    """A caller with many answers must not delay the answers of another caller for the same record."""
    running.block()
    for number in range(4):
        running.use("many", f"many {number}")
    running.use("one", "one 0")
    running.go_on.set()
    until(lambda: len(running.done) == 6, "all results arrive")
    assert running.done == ["first", "many 0", "one 0", "many 1", "many 2", "many 3"]


def test_a_use_that_cannot_begin_in_time_does_not_run(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running.block()
    monkeypatch.setattr(store_queue, "LOCK_WAIT", 0.0)
    ran = threading.Event()
    for _ in range(2):
        running.use("late", "late", ran.set)
    running.go_on.set()
    until(lambda: running.done == ["first", "late", "late"], "all results arrive")
    assert [type(error) for error in running.errors] == [LockBusy, LockBusy]
    assert not ran.is_set()
    running.use("late", "next", ran.set)
    assert ran.wait(PATIENCE), "the record is unlocked"


def test_after_a_slow_use_the_loop_is_not_blocked(running: Running) -> None:
    """A hanging disk can delay the logins that wait for the disk, but not the prompts of other logins."""
    threads = []

    def slow() -> None:
        threads.append(threading.get_ident())
        time.sleep(2 * SLOW_DISK)

    for name in ("1", "2"):
        running.use("asker", name, slow)
        until(lambda name=name: name in running.done, "the result arrives")  # type: ignore[misc]
    assert threads[0] == running.thread.ident
    assert threads[1] != running.thread.ident


def test_an_answer_waits_for_its_search_before_it_locks(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record would otherwise be locked during searches for other records, so its single codes would wait."""
    turns = running.queue.search_turns
    for _ in range(MAX_SEARCHES):
        assert turns.begin(0.0)
    monkeypatch.setattr(store_queue, "LOCK_WAIT", 0.0)
    ran = threading.Event()
    running.use("asker", "late", ran.set, is_slow=True)
    until(lambda: running.done == ["late"], "the use fails")
    assert [type(error) for error in running.errors] == [LockBusy]
    assert not ran.is_set(), "the use waited for a search turn, and acquired no lock"
    turns.end()
    monkeypatch.undo()
    running.use("asker", "next", ran.set, is_slow=True)
    assert ran.wait(PATIENCE), "a search turn is available"


def test_uses_of_a_database_do_not_stop_the_loop_and_need_no_search_turn(running: Running) -> None:
    """The waiting uses outnumber the permitted searches. A use without a delay is completed meanwhile."""
    waiting = threading.Semaphore(0)

    def job() -> None:
        waiting.release()
        assert running.go_on.wait(PATIENCE)

    for number in range(MAX_SEARCHES + 2):
        running.use("asker", f"remote {number}", job, is_remote=True, user=f"user{number}")
    for _ in range(MAX_SEARCHES + 2):
        assert waiting.acquire(timeout=PATIENCE)
    running.use("asker", "local", user="bob")
    until(lambda: running.done == ["local"], "the loop runs")
    running.go_on.set()
    until(lambda: len(running.done) == MAX_SEARCHES + 3, "all uses are done")
    assert not running.errors
