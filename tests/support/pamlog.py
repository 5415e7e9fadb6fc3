"""Capture of the log lines of PAM modules in this process. The host's log receives none of these lines.

The process loads a small library whose pam_syslog takes precedence over that of libpam. Modules that libpam loads
afterwards use this pam_syslog until the process ends. The library drops all lines outside of `capture`.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_SOURCE = r"""
#include <stdarg.h>
#include <stdio.h>
#include <security/pam_ext.h>

int log_to = -1;

void pam_vsyslog(const pam_handle_t *pamh, int priority, const char *format, va_list values)
{
    char line[8192];
    (void)pamh, (void)priority;
    if (log_to < 0)
        return;
    vsnprintf(line, sizeof line, format, values);
    dprintf(log_to, "%s\n", line);
}

void pam_syslog(const pam_handle_t *pamh, int priority, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    pam_vsyslog(pamh, priority, format, values);
    va_end(values);
}
"""


@functools.cache
def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "pamlog.so")
        command: list[str | Path] = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", target, "-lpam"]
        subprocess.run(command, input=_SOURCE, text=True, check=True)
        return ctypes.CDLL(str(target), mode=os.RTLD_GLOBAL)


@contextmanager
def capture() -> Iterator[Callable[[], list[str]]]:
    """Yield a function that returns all lines logged so far, by all threads."""
    log_to = ctypes.c_int.in_dll(_library(), "log_to")
    with tempfile.TemporaryFile("a+", errors="surrogateescape") as file:

        def lines() -> list[str]:
            file.seek(0)
            return file.read().splitlines()

        log_to.value = file.fileno()
        try:
            yield lines
        finally:
            log_to.value = -1
