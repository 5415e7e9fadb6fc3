"""Questions to the user, on the terminal or through standard input.

Rules:
- A command asks all questions before it makes a change.
- Prompts go to standard error, so that standard output has only the results.
- A prompt without echo restores the terminal, also when a signal ends the process.
"""

from __future__ import annotations

import argparse
import getpass
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pam_totp.cli.command_line import INTERRUPTED, WRONG_USAGE, CommandError

MAX_LINE = 4096  # characters, as on a terminal
NO_ANSWER = "missing answer; nothing was changed"


@contextmanager
def ending_signals_raise() -> Iterator[None]:
    """Raise SystemExit on SIGTERM and SIGHUP, so that the process cleans up before it exits."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    for number, handler in handlers.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def ask(prompt: str, *, hidden: bool = False, missing: str = NO_ANSWER) -> str:
    """Return a line from the terminal, or from standard input if standard input is not a terminal.

    Raise CommandError on Ctrl-C, and at the end of input with the message `missing` (on a terminal, NO_ANSWER).
    """
    try:
        if hidden and sys.stdin.isatty():
            with ending_signals_raise():
                return getpass.getpass(prompt)
        if sys.stdin.isatty():
            print(prompt, end="", file=sys.stderr, flush=True)
            _wait_for_key()
        line = read_line()
    except KeyboardInterrupt:
        end_prompt_line()
        raise CommandError(INTERRUPTED, 128 + signal.SIGINT) from None
    except EOFError:  # getpass raises EOFError on Ctrl-D
        line = ""
    if not line:
        end_prompt_line()
        raise CommandError(NO_ANSWER if sys.stdin.isatty() else missing)
    return line.rstrip("\r\n")


def _wait_for_key() -> None:
    """Wait for a line of the terminal, or raise KeyboardInterrupt on Ctrl-C.

    Python sees a signal that arrives just before read(2) only after the next line. The descriptor for wake-ups becomes
    readable at every signal.
    """
    woken, waking = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    earlier = signal.set_wakeup_fd(waking)
    try:
        select.select([0, woken], [], [])
    finally:
        signal.set_wakeup_fd(earlier)
        os.close(woken)
        os.close(waking)


def read_line() -> str:
    """Return the next line of standard input. Raise CommandError for a line that is longer than MAX_LINE characters."""
    line = sys.stdin.readline(MAX_LINE + 1)
    if len(line) > MAX_LINE:
        raise CommandError(f"an input line must be at most {MAX_LINE} characters", WRONG_USAGE)
    return line


def end_prompt_line() -> None:
    """End the line of a prompt on the terminal, so that the next message has its own line."""
    if sys.stdin.isatty():
        print(file=sys.stderr)


def confirm(question: str, args: argparse.Namespace) -> None:
    """Ask for a confirmation unless `args.yes` is set. Raise CommandError if the answer is not yes."""
    if args.yes:
        return
    answer = ask(f"{question} [y/N] ", missing=f"{NO_ANSWER} (without a terminal, give --yes)")
    if answer.strip().lower() not in ("y", "yes"):
        raise CommandError("cancelled; nothing was changed")


def answer_pam(style: int, text: str) -> bytes | None:
    """Return the answer to one message of a PAM conversation, from the terminal or from standard input.

    `style` is libpam's message style. Return None if the message needs no answer, or if the input has ended.
    """
    from pam_totp.system.libpam import PROMPT_ECHO_OFF, PROMPTS  # imported here: few commands need this module

    shown = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    if style not in PROMPTS:
        print(shown, file=sys.stderr)
        return None
    if style == PROMPT_ECHO_OFF and os.isatty(0):
        try:
            return getpass.getpass(shown, stream=sys.stderr).encode("utf-8", "surrogateescape")
        except EOFError:
            print(file=sys.stderr)
            return None
    print(shown, end="" if os.isatty(0) else "\n", file=sys.stderr, flush=True)
    if os.isatty(0):
        _wait_for_key()
    return _read_line()


def _read_line() -> bytes | None:
    """Return the next line of standard input, or None at the end of the input.

    Do not read ahead, because the next login reads the rest.
    """
    line = b""
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return line if line or byte else None
