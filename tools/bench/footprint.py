"""The work of the service for one login, measured without a clock: `make bench-footprint`.

Rules:
1. Cachegrind simulates a last-level cache of 2 MiB. The client empties this cache before each login, as the
   processor's cache is empty after a pause. A cache line that is missing is therefore memory that the login uses.
2. A result is the difference between a run with more logins and a run with fewer, divided by the number of logins. Both
   runs empty the cache equally often. The client is a thread of the same process, so its system calls are included.
3. The results depend on the type of the processor, because libc has functions for each type. Other programs have no
   effect.
"""

from __future__ import annotations

import argparse
import math
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from types import CodeType, FrameType

from pam_totp.core.oath import hotp
from pam_totp.core.record import HotpToken
from pam_totp.pam import store_queue
from pam_totp.pam.service import Service
from pam_totp.store.file import FileStore

TREE = Path(__file__).parents[2]
CACHE = 2 << 20  # bytes: cachegrind requires a power of two
RESULTS = {"I refs": "instructions", "LLi misses": "cache lines of code", "LLd misses": "cache lines of data"}
FEWER = 10  # logins of the first run
FIRST = 20  # logins before the measurement, because the interpreter optimises functions after a few calls
KEY = b"12345678901234567890"  # RFC 4226, appendix D
HELLO = b"H" + b"\0".join([b"version=1", b"service=bench", b"user=root", b"flags=0"])


class Profile:
    """The calls of functions in this tree, by function. Install it by `sys.setprofile`."""

    def __init__(self) -> None:
        self.calls: Counter[CodeType] = Counter()

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(f"{TREE}/pam_totp/"):
            self.calls[frame.f_code] += 1

    def __str__(self) -> str:
        size = sum(len(code.co_code) for code in self.calls)
        return f"{len(self.calls)} functions of pam_totp ({size} bytes), {self.calls.total()} calls"


def serve_logins(count: int, flushes: int, profile: Profile) -> None:
    """Log in FIRST times, then `count` times with an empty cache. Fill `profile` with one more login.

    Empty the cache `flushes` times in total.
    """
    store_queue.MEMORY = store_queue.SLOW_DISK = math.inf  # make all decisions in one thread
    with tempfile.TemporaryDirectory(prefix="pam_totp-bench-") as folder:
        store = FileStore(folder)
        store.prepare()
        fob = HotpToken(name="fob", secret=KEY, created=0)
        store.update("root", lambda record: (record.with_token(fob), None), create=True)
        path = f"{folder}/.socket"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen()
            service = Service(listener, folder, f"{folder}/.no-site-file", lambda priority, line: None)
            client = threading.Thread(target=_log_in, args=(service, path, count, flushes, profile))
            client.start()
            service.run()
            client.join()


def _log_in(service: Service, path: str, count: int, flushes: int, profile: Profile) -> None:
    answers = [b"A" + hotp(KEY, counter).encode() for counter in range(FIRST + count + 1)]
    memory, zeros = bytearray(4 * CACHE), bytes(4 * CACHE)
    try:
        for i, answer in enumerate(answers):
            if FIRST <= i < FIRST + count:
                memory[:] = zeros
            if i == FIRST + count:
                service.loop.call_from_thread(partial(sys.setprofile, profile))
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
                channel.connect(path)
                channel.send(HELLO)
                channel.recv(4096)
                channel.send(answer)
                if (result := channel.recv(4096)) != b"r0":
                    raise RuntimeError(f"the login was refused: {result!r}")
        service.loop.call_from_thread(partial(sys.setprofile, None))
        for _ in range(flushes - count):
            memory[:] = zeros
    finally:
        service.stop()


def measure(count: int, flushes: int) -> dict[str, int]:
    """Return the results of cachegrind for a process with `count` logins that empties the cache `flushes` times."""
    cachegrind = ["valgrind", "--tool=cachegrind", "--cache-sim=yes", f"--LL={CACHE},16,64"]
    program = [sys.executable, "-m", "tools.bench.footprint", "--inside", str(count), str(flushes)]
    command = [*cachegrind, "--cachegrind-out-file=/dev/null", *program]
    done = subprocess.run(command, cwd=TREE, stderr=subprocess.PIPE, text=True, check=True)
    return {name: int(found[1].replace(",", "")) for name in RESULTS if (found := _line(name, done.stderr))}


def _line(name: str, text: str) -> re.Match[str] | None:
    return re.search(rf"{name.replace(' ', ' +')}: +([\d,]+)", text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-footprint", description=__doc__, allow_abbrev=False)
    parser.add_argument("--logins", type=int, default=50, help="logins to measure (%(default)s)")
    parser.add_argument("--inside", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    profile = Profile()
    if args.inside is not None:
        count, flushes = args.inside
        serve_logins(count, flushes, profile)
        return 0
    serve_logins(0, 0, profile)
    print(f"one login: {profile}", flush=True)
    fewer, more = (measure(logins, FEWER + args.logins) for logins in (FEWER, FEWER + args.logins))
    for name, meaning in RESULTS.items():
        print(f"   {(more[name] - fewer[name]) / args.logins:>12,.0f} {meaning}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
