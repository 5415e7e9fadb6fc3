"""A hostile caller that starts PROGRAM, types ANSWER, and signals the program and its children.

/usr/bin/python3 -I signals.py SEED ANSWER PROGRAM [ARGUMENT...]

This program imports no other module of the tests, because it runs under another account.
"""

import os
import random
import signal
import subprocess
import sys
import time

GENTLE = (
    signal.SIGSTOP,
    signal.SIGCONT,
    signal.SIGTSTP,
    signal.SIGCHLD,
    signal.SIGALRM,
    signal.SIGWINCH,
    signal.SIGPIPE,
)
HARSH = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGSEGV, signal.SIGQUIT, signal.SIGXCPU)
FOR = 1.5  # seconds of random signals


def children_of(pid: int) -> list[int]:
    """Return `pid` and all its descendants, parents first."""
    found = [pid]
    for one in found:
        try:
            with open(f"/proc/{one}/task/{one}/children") as children:
                found.extend(map(int, children.read().split()))
        except OSError:
            continue
    return found


def main(seed: int, answer: str, program: list[str]) -> None:
    chance = random.Random(seed)
    signals = GENTLE + (HARSH if seed % 2 else ())
    process = subprocess.Popen(program, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(answer.encode() + b"\n")
    process.stdin.close()
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < FOR:
        for pid in children_of(process.pid):
            try:
                os.kill(pid, chance.choice(signals))
            except OSError:
                continue  # permission denied, or the process has exited
        time.sleep(chance.random() / 500)
    while process.poll() is None:  # continue stopped processes, so that they can exit
        for pid in children_of(process.pid):
            try:
                os.kill(pid, signal.SIGCONT)
            except OSError:
                continue
        time.sleep(0.01)


main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
