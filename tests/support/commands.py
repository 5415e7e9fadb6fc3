"""Runs of `pam-totp` with a fast start: forks of a process that has already imported slow modules.

Rules:
- A command has its own process, standard streams, umask and exit status. The command imports the modules of pam_totp in
  its own order, as in a new interpreter.
- The process that forks has one thread, and exits when the test process exits.
- A command runs in a new interpreter if the environment differs from that of the first command.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import NoReturn

TREE = Path(__file__).resolve().parent.parent.parent
# The slowest imports of pam_totp.
_IMPORTS = (
    *("argparse", "bz2", "dataclasses", "email.message", "hmac", "json", "lzma", "psycopg", "random", "secrets"),
    *("segno", "shutil", "ssl", "subprocess", "tempfile", "textwrap", "tomllib", "typing", "urllib.parse"),
)
_MOST = 1 << 17  # maximum bytes of a request


def run(words: Sequence[str], stdin: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run `pam-totp` with the arguments `words` and the input `stdin` in this tree, and return the result.

    Raise TimeoutExpired after `timeout` seconds.
    """
    if _environment() != _first_environment():
        command = [sys.executable, "-m", "pam_totp.cli", *words]
        return subprocess.run(
            command, cwd=TREE, input=stdin, text=True, capture_output=True, check=False, timeout=timeout
        )
    pipes = [os.pipe() for _ in range(4)]  # standard input, output and error, and the pid with the exit status
    (theirs, send), *others = pipes
    ends = [theirs, *(write for _, write in others)]
    request = json.dumps([_umask(), *words]).encode()
    assert len(request) < _MOST
    socket.send_fds(_forker(), [request], ends)
    for end in ends:
        os.close(end)
    with ThreadPoolExecutor(3) as threads:
        threads.submit(_write, send, stdin)
        output, errors = (threads.submit(_read, read) for read, _ in others[:2])
        with open(others[2][0], encoding="ascii") as result:
            pid = int(result.readline())
            ended = threads.submit(result.readline)
            try:
                status = int(ended.result(timeout))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(["pam-totp", *words], timeout) from None
    return subprocess.CompletedProcess(["pam-totp", *words], status, output.result(), errors.result())


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


@cache
def _first_environment() -> dict[str, str]:
    return _environment()


def _umask() -> int:
    """Return the umask. umask(2) would also change the umask of other threads."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("Umask:")[1].split()[0], 8)


@cache
def _forker() -> socket.socket:
    """Start the process that forks, and return a socket to it. The process exits when the caller closes the socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.support.commands", str(theirs.fileno())]
    subprocess.Popen(command, cwd=TREE, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    return ours


def _write(end: int, text: str) -> None:
    with suppress(BrokenPipeError), open(end, "w", encoding="utf-8") as stream:
        stream.write(text)


def _read(end: int) -> str:
    with open(end, encoding="utf-8") as stream:
        return stream.read()


# ---- in the process that forks


def _serve(channel: socket.socket) -> None:
    for name in _IMPORTS:
        importlib.import_module(name)
    gc.freeze()  # otherwise each command would copy the memory that its garbage collections examine
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the children
    while True:
        request, ends, _, _ = socket.recv_fds(channel, _MOST, 4)
        if not ends:
            return
        _fork(partial(_supervise, request, ends, channel))
        for end in ends:
            os.close(end)


def _fork(work: Callable[[], object]) -> int:
    """Call `work` in a new process. Return the pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    return pid


def _supervise(request: bytes, ends: Sequence[int], channel: socket.socket) -> None:
    """Start the command. Write its pid and then its exit status, in the form of subprocess, to the last of `ends`."""
    channel.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, result = ends
    pid = _fork(partial(_command, request, streams, result))
    for stream in streams:
        os.close(stream)
    os.write(result, f"{pid}\n".encode())
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(result, f"{status}\n".encode())


def _command(request: bytes, streams: Sequence[int], result: int) -> NoReturn:
    os.close(result)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    umask, *words = json.loads(request)
    os.umask(umask)
    sys.argv = ["pam-totp", *words]
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0)), errors="surrogateescape")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w")), errors="surrogateescape")
    errors = io.BufferedWriter(io.FileIO(2, "w"))
    sys.stderr = io.TextIOWrapper(errors, errors="backslashreplace", line_buffering=True)
    status: object = 1
    try:
        from pam_totp.cli import main

        status = main()
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
