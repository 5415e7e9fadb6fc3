"""Many concurrent logins through real libpam. Each waits at its prompt for all others, then all answer at once."""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.support.pamconf import Result, Shown, login
from tests.support.site import ME, PATIENCE, Site


def in_processes(site: Site, answers: Sequence[str], services: Sequence[str] = ("demo",)) -> Counter[Result]:
    """Return the results of `answers`. A separate process gives each answer. The services are used in turn."""
    fork = multiprocessing.get_context("fork")
    together, results = fork.Barrier(len(answers)), fork.Queue()
    jobs = enumerate(answers)
    workers = [
        fork.Process(target=_log_in, args=(site, services[i % len(services)], answer, together, results))
        for i, answer in jobs
    ]
    return _counted(workers, results)


def in_threads(site: Site, answers: Sequence[str], services: Sequence[str] = ("demo",)) -> Counter[Result]:
    """Return the results of `answers`. A thread of this process gives each answer, as in a host with many logins."""
    together, results = threading.Barrier(len(answers)), queue.Queue[int]()
    jobs = enumerate(answers)
    workers = [
        threading.Thread(target=_log_in, args=(site, services[i % len(services)], answer, together, results))
        for i, answer in jobs
    ]
    return _counted(workers, results)


def _log_in(site: Site, service: str, answer: str, together: Any, results: Any) -> None:
    def at_the_prompt(_: Shown) -> str:
        together.wait(3 * PATIENCE)
        return answer

    try:
        result: int = login(service, ME, at_the_prompt, site.confdir).result
    except threading.BrokenBarrierError:
        result = Result.CONV_ERR  # a login never reached its prompt
    results.put(result)


def _counted(workers: Sequence[Any], results: Any) -> Counter[Result]:
    for worker in workers:
        worker.start()
    counted = Counter(Result(results.get(timeout=5 * PATIENCE)) for _ in workers)
    for worker in workers:
        worker.join()
    return counted
