"""Functions that start the same work in many processes or threads at the same moment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress


def in_processes(many: int, work: Callable[[int], str]) -> list[str]:
    """Run `work(0)` … `work(many - 1)` at the same moment, each in its own process, and return the results."""
    go_read, go_write = os.pipe()
    results_read, results_write = os.pipe()
    children: list[int] = []
    try:
        for number in range(many):
            child = os.fork()
            if child == 0:
                _run_in_child(number, work, go_read, go_write, results_write)
            children.append(child)
        os.close(go_write)
        os.close(results_write)
        with open(results_read, encoding="utf-8") as lines:
            results = lines.read().splitlines()
    finally:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(go_read)
    assert len(results) == many, results
    return results


def _run_in_child(number: int, work: Callable[[int], str], go_read: int, go_write: int, output: int) -> None:
    """Wait in this child process until the parent closes the pipe, call `work`, and write the result as one line."""
    try:
        os.close(go_write)
        os.read(go_read, 1)
        try:
            line = work(number)
        except BaseException as e:
            line = f"{type(e).__name__}: {e}"
        os.write(output, f"{line.splitlines()[0]}\n".encode())  # a write of at most PIPE_BUF bytes is atomic
    finally:
        os._exit(0)


def in_threads(many: int, work: Callable[[int], str]) -> list[str]:
    """Run `work(0)` … `work(many - 1)` at the same moment, each in its own thread. Return the results in any order."""
    together = threading.Barrier(many)
    results: list[str] = []

    def run(number: int) -> None:
        together.wait()
        try:
            results.append(work(number))
        except Exception as e:
            results.append(f"{type(e).__name__}: {e}")

    threads = [threading.Thread(target=run, args=(n,)) for n in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == many
    return results
