"""Processes that hold connections to the service under many uids. One user can have thousands of uids (newuidmap(1)).

Rules:
- Each process connects under its uids in turn, repeatedly, as fast as the service accepts connections.
- A process keeps its latest connections open, and sends nothing. The service can close any of these connections.
- The processes run until the end of the `with` block.
"""

from __future__ import annotations

import itertools
import mmap
import os
import resource
import signal
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROCESSES = 4
HELD = 4000  # open connections of one process
FIRST_UID = 100_000  # as in subuid(5)


class ManyUids:
    """The number of connections that each process has opened. Each process writes its own number."""

    def __init__(self, uids: int) -> None:
        self.uids = uids
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._counters = memoryview(self._memory).cast("Q")

    @property
    def connections(self) -> int:
        return sum(self._counters[:PROCESSES])

    @property
    def all_took_part(self) -> bool:
        """Return True if every uid was connected to the service at least once."""
        return min(self._counters[:PROCESSES]) >= -(-self.uids // PROCESSES)

    def connect(self, number: int, folder: Path) -> None:
        os.chdir(folder)  # other accounts might have no access to a parent folder
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        held: deque[socket.socket] = deque(maxlen=HELD)  # the oldest connection is closed
        for uid in itertools.cycle(range(FIRST_UID + number, FIRST_UID + self.uids, PROCESSES)):
            os.seteuid(uid)
            client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            client.connect("socket")  # waits while the queue of the socket is full
            os.seteuid(0)
            held.append(client)
            self._counters[number] += 1


@contextmanager
def many_uids(folder: Path, uids: int) -> Iterator[ManyUids]:
    """Hold connections to the socket in `folder` under `uids` different uids, until the end of the `with` block."""
    crowd = ManyUids(uids)
    children = []
    try:
        for number in range(PROCESSES):
            child = os.fork()
            if child == 0:
                try:
                    crowd.connect(number, folder)
                finally:
                    os._exit(1)
            children.append(child)
        yield crowd
        assert all(os.waitpid(child, os.WNOHANG) == (0, 0) for child in children), "every process is still connecting"
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
