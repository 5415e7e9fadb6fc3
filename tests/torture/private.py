"""A piece of a test in a process of its own: with mounts that nobody else sees, or limits that nobody else feels."""

from __future__ import annotations

import ctypes
import os
import subprocess
import traceback
from collections.abc import Callable

CLONE_NEWNS = 0x00020000


def in_child(work: Callable[[], None]) -> None:
    """Run `work` in a forked process; what it raises is raised here, as text."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            work()
        except BaseException:
            os.write(write, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8", errors="replace") as pipe:
        failed = pipe.read()
    os.waitpid(child, 0)
    if failed:
        raise AssertionError(failed)


def in_mount_namespace(work: Callable[[], None]) -> None:
    """The same, as root, with a mount namespace of its own. Its mounts are private, as the suite's are."""

    def unshared() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        work()

    in_child(unshared)


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)
