"""A FUSE file system that answers no request after its mount, implemented directly on /dev/fuse.

Rules:
- The file system answers the kernel's first request, so the folder is mounted. Later requests get no answer.
- A process that waits for an answer cannot be killed. The process continues when the file system ends.
- The mount is visible in the current mount namespace only (tests/support/isolation.py).
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.isolation import MAY_MOUNT

_REQUEST = struct.Struct("=IIQQIIII")  # fuse_in_header: length, opcode, unique, nodeid, uid, gid, pid, padding
_INIT, _WITHOUT_ANSWER = 26, (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET
_MAX_REQUEST = 1 << 20  # bytes
_VERSION, _PARALLEL_LOOKUPS = (7, 31), 1 << 18  # linux/fuse.h

needs_fuse = pytest.mark.skipif(
    not MAY_MOUNT or not os.path.exists("/dev/fuse"), reason="requires permission to mount, and /dev/fuse"
)


class SilentFuse:
    """A mounted file system in the existing `folder`. `requests` counts the requests without an answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests = threading.Semaphore(0)
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        options = f"fd={self._device},rootmode=40755,user_id=0,group_id=0,allow_other"
        command: list[str | Path] = ["mount", "-i", "-t", "fuse", "-o", options, "silent", folder]
        subprocess.run(command, pass_fds=[self._device], check=True, capture_output=True)
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """End the file system. Every waiting request fails."""
        if self._thread.is_alive():
            os.close(self._stop_write)
            self._thread.join()
            os.close(self._stop_read)
            os.close(self._device)
            subprocess.run(["umount", "--lazy", self.folder], check=True, capture_output=True)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        poll.register(self._stop_read, 0)
        while not any(fd == self._stop_read for fd, _ in poll.poll()):
            _, opcode, unique, *_ = _REQUEST.unpack_from(os.read(self._device, _MAX_REQUEST))
            if opcode == _INIT:
                out = struct.pack("=IIII48x", *_VERSION, 0, _PARALLEL_LOOKUPS)
                os.write(self._device, struct.pack("=IiQ", 16 + len(out), 0, unique) + out)
            elif opcode not in _WITHOUT_ANSWER:
                self.requests.release()
