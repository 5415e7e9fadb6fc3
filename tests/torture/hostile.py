"""A hostile caller that prepares its process for ATTACK, and then executes PROGRAM.

/usr/bin/python3 -I hostile.py ATTACK PROGRAM [ARGUMENT...]

This program imports no other module of the tests, because it runs under another account.
"""

import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial

TRAP = "/home/alice/trap"  # a folder of files that a program loads if the caller can set the search path
VARIABLES = (
    *("PATH", "HOME", "TMPDIR", "PWD", "SHELL", "IFS", "ENV", "BASH_ENV"),
    *("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "LD_DEBUG_OUTPUT", "LD_PROFILE_OUTPUT", "LD_ORIGIN_PATH"),
    *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "PYTHONPYCACHEPREFIX", "PYTHONPLATLIBDIR"),
    *("PYTHONEXECUTABLE", "PYTHONCASEOK", "PYTHONINSPECT", "PYTHONBREAKPOINT", "PYTHONWARNINGS"),
    *("OPENSSL_CONF", "OPENSSL_MODULES", "OPENSSL_ENGINES", "SSL_CERT_FILE", "GCONV_PATH", "LOCPATH", "NLSPATH"),
    *("LANGUAGE", "TZDIR", "HOSTALIASES", "RESOLV_HOST_CONF", "NIS_PATH", "MALLOC_TRACE", "GETCONF_DIR"),
    *("XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "PAM_CONFDIR", "SUDO_ASKPASS"),
)


def limit(what: int, value: int) -> None:
    resource.setrlimit(what, (value, value))


def environment() -> None:
    os.chdir(TRAP)
    os.environ.update(dict.fromkeys(VARIABLES, TRAP))
    os.environ.update(
        LANG="../../../../home/alice/trap",
        LC_ALL="../../../../home/alice/trap",
        LD_PRELOAD=f"{TRAP}/x.so",
        LD_AUDIT=f"{TRAP}/x.so",
        OPENSSL_CONF=f"{TRAP}/openssl.cnf",
        TZ=f":{TRAP}/tz",
        PYTHONSTARTUP=f"{TRAP}/sitecustomize.py",
        PYTHONBREAKPOINT="sitecustomize.x",
    )


def much_environment() -> None:
    os.environ["A"] = "x" * (128 * 1024 - 3)  # MAX_ARG_STRLEN
    os.environ.update({f"A{n}": "%s%n" * 1000 for n in range(100)})


def all_signals(how: int) -> None:
    every = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    if how == signal.SIG_BLOCK:
        signal.pthread_sigmask(signal.SIG_BLOCK, every)
        return
    for number in every:
        signal.signal(number, signal.SIG_IGN)


def deleted_folder() -> None:
    folder = tempfile.mkdtemp(dir="/home/alice")
    os.chdir(folder)
    os.rmdir(folder)


def close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def many_descriptors() -> None:
    """Open inheritable descriptors until only 20 descriptors are free below the limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(most, 1024)
    limit(resource.RLIMIT_NOFILE, most)
    for descriptor in range(3, most - 20):
        os.dup2(2, descriptor)


def no_memory_for_locks_and_queues() -> None:
    limit(resource.RLIMIT_MEMLOCK, 0)
    limit(resource.RLIMIT_MSGQUEUE, 0)


def write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


ATTACKS: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "environment": environment,
    "128 KiB of environment": much_environment,
    "umask 0": lambda: os.umask(0),
    "umask 0777": lambda: os.umask(0o777),
    "a deleted folder": deleted_folder,
    "signals ignored": lambda: all_signals(signal.SIG_IGN),
    "signals blocked": lambda: all_signals(signal.SIG_BLOCK),
    "many descriptors": many_descriptors,
    **{f"{fds} closed": partial(close, *fds) for fds in ((0,), (1,), (2,), (1, 2), (0, 1, 2))},
    **{f"{n} descriptors": partial(limit, resource.RLIMIT_NOFILE, n) for n in (3, 4, 5, 6, 8, 12, 16)},
    **{f"{n} bytes per file": partial(limit, resource.RLIMIT_FSIZE, n) for n in (0, 1, 600, 810)},
    **{f"{n} MiB of memory": partial(limit, resource.RLIMIT_AS, n << 20) for n in (1, 4, 8, 12, 16, 24, 64)},
    **{f"{n} KiB of stack": partial(limit, resource.RLIMIT_STACK, n << 10) for n in (16, 128, 512)},
    "no data": lambda: limit(resource.RLIMIT_DATA, 1 << 18),
    "no time": lambda: limit(resource.RLIMIT_CPU, 0),
    "one process": lambda: limit(resource.RLIMIT_NPROC, 1),
    "no memory for locks and queues": no_memory_for_locks_and_queues,
    "no signals queued": lambda: limit(resource.RLIMIT_SIGPENDING, 0),
    "low priority": lambda: os.nice(19),
    "idle priority": lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)),
    "one processor": lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    "killed first": partial(write, "/proc/self/oom_score_adj", "1000"),
    "late timers": partial(write, "/proc/self/timerslack_ns", "10000000000"),
}


if __name__ == "__main__":
    ATTACKS[sys.argv[1]]()
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606
