"""Messages about changes for the program of the site: `on_change` in `[hooks]` of the site file.

Rules:
1. A change is complete and logged before the program gets it. The program cannot delay or prevent a change.
2. Each process starts one runner (`system.hook`) at its first change, and sends it every change. The runner starts the
   program with a time limit. The runner ends after the last change when this process has ended.
3. A message has the fields of the log line, which never contain a code or a key.
4. The runner starts only if the site file contains the word `on_change`. Only the runner parses and checks the file.
5. This process never waits for the runner. A change that the socket cannot take is counted in a memfd.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pam_totp
from pam_totp.core.settings import SITE_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

COUNT_BYTES = 8  # the size of the count in the memfd, big-endian
_MAX_SITE_FILE = 1 << 20  # bytes
_START = "import sys; sys.path.append(sys.argv[1]); from pam_totp.system.hook import main; main()"
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


class Runner:
    """The runner of this process. The runner is started at the first change, and again if it has ended."""

    def __init__(self, site_file: str = SITE_FILE) -> None:
        self._site_file = site_file
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self._memory = -1  # the descriptor of the memfd with the count
        self._unsent = 0
        self._process = 0  # the pid of the runner, or 0
        self._owner = 0  # the pid of this process: after a fork, the child starts its own runner

    def tell(self, service: str, fields: Mapping[str, str | int | None]) -> None:
        """Send a change to the runner. Raise OSError if the runner cannot be started."""
        with self._lock:
            if not self._has_program():
                return
            known = {name: value for name, value in fields.items() if value is not None}
            data = json.dumps({"service": service, "now": int(time.time()), "fields": known}).encode()
            if self._channel is None or self._owner != os.getpid() or not self._sent(data):
                self._start()
                self._sent(data)

    def _has_program(self) -> bool:
        try:
            with open(self._site_file, "rb") as file:
                return b"on_change" in file.read(_MAX_SITE_FILE)
        except OSError:  # no site file; after any other error, every login of this host fails and reports the error
            return False

    def _sent(self, data: bytes) -> bool:
        """Send `data`, or count it. Return False if the runner has ended."""
        assert self._channel is not None
        try:
            self._channel.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self._unsent += 1
            os.pwrite(self._memory, self._unsent.to_bytes(COUNT_BYTES, "big"), 0)
        except ConnectionError:
            return False
        return True

    def _forget(self) -> None:
        """Close the descriptors of a runner that has ended, once, and reap the runner."""
        if self._channel is None:
            return
        channel, memory, process = self._channel, self._memory, self._process
        self._channel, self._memory, self._process = None, -1, 0
        channel.close()
        os.close(memory)
        if process:  # waitpid(0) would reap any child in this process group
            with suppress(ChildProcessError):
                os.waitpid(process, os.WNOHANG)

    def _start(self) -> None:
        self._forget()
        memory = os.memfd_create("pam_totp changes")
        try:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            os.close(memory)
            raise
        self._channel, self._memory, self._owner, self._unsent = near, memory, os.getpid(), 0
        with far:
            null = os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_RDWR, 0
            actions = (
                (os.POSIX_SPAWN_DUP2, far.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, self._memory, 1),
                null,
                (os.POSIX_SPAWN_DUP2, 2, 3),  # the channel of a helper, which a child must not keep
            )
            arguments = [sys.executable, "-I", "-S", "-c", _START, _folder()]
            self._process = os.posix_spawn(
                sys.executable,
                arguments,
                _ENVIRONMENT,
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            )


def _folder() -> str:
    """Return the folder with the package."""
    return os.path.dirname(os.path.dirname(os.path.abspath(pam_totp.__file__)))


_runner = Runner()


def tell(service: str, fields: Mapping[str, str | int | None]) -> None:
    """Pass a change to the program of the site, if the site has one. Raise OSError if the runner cannot be started."""
    _runner.tell(service, fields)
