"""Concurrent logins through the real libpam: each waits at its prompt for all others, then all answer at once."""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.support.pamconf import Result, Shown, login
from tests.support.site import ME, PATIENCE, Site


def in_processes(site: Site, answers: Sequence[str], services: Sequence[str] = ("demo",)) -> Counter[Result]:
    """Log in once with each answer, in a process for each login, at `services` in turn. Return the counted results."""
    fork = multiprocessing.get_context("fork")
    together, results = fork.Barrier(len(answers)), fork.Queue()
    jobs = enumerate(answers)
    workers = [
        fork.Process(target=_log_in, args=(site, services[i % len(services)], answer, together, results))
        for i, answer in jobs
    ]
    return _counted(workers, results)


def in_threads(site: Site, answers: Sequence[str], services: Sequence[str] = ("demo",)) -> Counter[Result]:
    """Do the same as `in_processes` with a thread of this process for each login, as in a multi-threaded host."""
    together, results = threading.Barrier(len(answers)), queue.Queue[int]()
    jobs = enumerate(answers)
    workers = [
        threading.Thread(target=_log_in, args=(site, services[i % len(services)], answer, together, results))
        for i, answer in jobs
    ]
    return _counted(workers, results)


class Refusal(NamedTuple):
    """The outcome of one login: result, messages, and the seconds from the answer to the result."""

    result: Result
    messages: tuple[str, ...]
    seconds: float


def refusals(site: Site, user: str, number: int) -> list[Refusal]:
    """Log `user` in with a wrong code, `number` times at once, each in its own process. Return the refusals."""
    fork = multiprocessing.get_context("fork")
    together, results = fork.Barrier(number), fork.Queue()
    workers = [fork.Process(target=_be_refused, args=(site, user, together, results)) for _ in range(number)]
    for worker in workers:
        worker.start()
    seen = [Refusal(*results.get(timeout=5 * PATIENCE)) for _ in workers]
    for worker in workers:
        worker.join()
    return seen


def _be_refused(site: Site, user: str, together: Any, results: Any) -> None:
    answered = 0.0

    def at_the_prompt(_: Shown) -> str:
        nonlocal answered
        together.wait(3 * PATIENCE)
        answered = time.monotonic()
        return "000000"

    done = login("demo", user, [at_the_prompt], site.confdir)
    results.put((done.result, tuple(m.text for m in done.messages), time.monotonic() - answered))


def _log_in(site: Site, service: str, answer: str, together: Any, results: Any) -> None:
    def at_the_prompt(_: Shown) -> str:
        together.wait(3 * PATIENCE)
        return answer

    try:
        result: int = login(service, ME, [at_the_prompt], site.confdir).result
    except threading.BrokenBarrierError:
        result = Result.CONV_ERR  # another login did not reach its prompt
    results.put(result)


def _counted(workers: Sequence[Any], results: Any) -> Counter[Result]:
    for worker in workers:
        worker.start()
    counted = Counter(Result(results.get(timeout=5 * PATIENCE)) for _ in workers)
    for worker in workers:
        worker.join()
    return counted
