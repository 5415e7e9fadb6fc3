"""`make torture`: everything that is promised under attack, for an hour or as many minutes as are said.

python -m tests.torture MINUTES [PYTEST ARGUMENT...]

The law:
- each file of tests is a stage, and the parsers under atheris are the last (5 of 60 minutes); a stage that fails stops
  none after it;
- at the end stands a line for each stage, what it tried and found below it. Exit status 0 if all held, else 1;
- told to end (Ctrl-C, the end of the terminal, SIGTERM) it ends the stage that runs, once, waits for it to put away
  what is its own, says how far it came, and exits with 130.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
NOTHING_SELECTED = 5  # pytest's status where its arguments leave no test
PARSERS = "parsers"
OVERTIME = 120  # seconds that a stage may take to end once it is told to


class Stage(NamedTuple):
    """A command, and by what name its result is given."""

    name: str
    command: Sequence[str]


class Outcome(NamedTuple):
    """What became of a stage; `figures` are lines."""

    name: str
    status: int
    seconds: float
    figures: Sequence[str]


def stages(minutes: float, arguments: Sequence[str]) -> list[Stage]:
    """All of them, in order; pytest's arguments are for the tests alone, and leave the parsers out."""
    python = (sys.executable, "-m")
    tests = [
        Stage(path.stem.removeprefix("test_"), (*python, "pytest", "-s", "-v", *arguments, str(path)))
        for path in sorted(HERE.glob("test_*.py"))
    ]
    seconds = max(1, round(300 * minutes / 60))
    return tests if arguments else [*tests, Stage(PARSERS, (*python, "tests.fuzz", str(seconds)))]


def run(stage: Stage, minutes: float) -> Outcome:
    """Run one, with all it says. A KeyboardInterrupt is passed on to it, and raised when it has ended."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pam_totp-torture-") as folder:
        figures = Path(folder, "figures")
        figures.touch()
        environment = {**os.environ, "TORTURE_MINUTES": str(minutes), "TORTURE_FIGURES": str(figures)}
        # In a session of its own, so that it is told once, and not by the terminal too.
        with subprocess.Popen(stage.command, env=environment, start_new_session=True) as process:
            try:
                status = process.wait()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(OVERTIME)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        return Outcome(stage.name, status, time.monotonic() - begun, figures.read_text("utf-8").splitlines())


def summary(outcomes: Sequence[Outcome]) -> str:
    """A line for each stage, and its figures below it."""
    lines = []
    for done in outcomes:
        held = "held" if done.status == 0 else f"FAILED ({done.status})"
        lines.append(f"{done.name:<16} {held:<12} {done.seconds:6.0f} s")
        lines += [f"    {figure}" for figure in done.figures]
    return "\n".join(lines)


def torture(minutes: float, to_run: Sequence[Stage]) -> int:
    """Run them all; the exit status."""
    outcomes: list[Outcome] = []
    interrupted = False
    try:
        for stage in to_run:
            print(f"\n==== {stage.name}", flush=True)
            outcome = run(stage, minutes)
            if outcome.status != NOTHING_SELECTED:
                outcomes.append(outcome)
    except KeyboardInterrupt:
        interrupted = True
    failed = [outcome.name for outcome in outcomes if outcome.status != 0]
    print(f"\n==== torture, {minutes:g} minutes\n{summary(outcomes)}")
    if interrupted:
        print(f"interrupted: {len(to_run) - len(outcomes)} of {len(to_run)} stages did not come to their end")
        return 130
    print(f"{len(outcomes) - len(failed)} stages held, {len(failed)} failed{': ' * bool(failed)}{', '.join(failed)}")
    return 1 if failed or not outcomes else 0


def _told_to_end(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def end_when_told() -> None:
    """Have each signal that asks for an end raise KeyboardInterrupt."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _told_to_end)


if __name__ == "__main__":
    end_when_told()
    if len(sys.argv) < 2 or not re.fullmatch(r"\d+(\.\d+)?", sys.argv[1]) or float(sys.argv[1]) == 0:
        sys.exit("usage: python -m tests.torture MINUTES [PYTEST ARGUMENT...]")
    sys.exit(torture(float(sys.argv[1]), stages(float(sys.argv[1]), sys.argv[2:])))
