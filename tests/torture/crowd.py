"""Many at the prompt of real libpam at once: each waits there until all others have come, then all answer."""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.pamconf import Result, Shown, login
from tests.site import ME, PATIENCE, Site


def in_processes(site: Site, answers: Sequence[str], services: Sequence[str] = ("demo",)) -> Counter[Result]:
    """What becomes of `answers`, each given by a process of its own; the services are taken in turn."""
    fork = multiprocessing.get_context("fork")
    together, results = fork.Barrier(len(answers)), fork.Queue()
    jobs = enumerate(answers)
    everybody = [
        fork.Process(target=_log_in, args=(site, services[i % len(services)], answer, together, results))
        for i, answer in jobs
    ]
    return _counted(everybody, results)


def in_threads(site: Site, answers: Sequence[str], services: Sequence[str] = ("demo",)) -> Counter[Result]:
    """The same with threads of this process: one host, many logins."""
    together, results = threading.Barrier(len(answers)), queue.Queue[int]()
    jobs = enumerate(answers)
    everybody = [
        threading.Thread(target=_log_in, args=(site, services[i % len(services)], answer, together, results))
        for i, answer in jobs
    ]
    return _counted(everybody, results)


def _log_in(site: Site, service: str, answer: str, together: Any, results: Any) -> None:
    def at_the_prompt(_: Shown) -> str:
        together.wait(3 * PATIENCE)
        return answer

    try:
        result: int = login(service, ME, at_the_prompt, site.confdir).result
    except threading.BrokenBarrierError:
        result = Result.CONV_ERR  # somebody never came to the prompt
    results.put(result)


def _counted(everybody: Sequence[Any], results: Any) -> Counter[Result]:
    for one in everybody:
        one.start()
    counted = Counter(Result(results.get(timeout=5 * PATIENCE)) for _ in everybody)
    for one in everybody:
        one.join()
    return counted
