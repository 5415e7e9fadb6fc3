"""Child processes that run a part of a test, with private mounts or private limits."""

from __future__ import annotations

import ctypes
import os
import subprocess
import traceback
from collections.abc import Callable

CLONE_NEWNS = 0x00020000


def in_child(work: Callable[[], None]) -> None:
    """Run `work` in a forked process. Raise AssertionError with the traceback if `work` raises an exception."""
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
    """Run `work` in a forked process with a new mount namespace. The caller must be root."""

    def unshared() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        work()

    in_child(unshared)


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)
