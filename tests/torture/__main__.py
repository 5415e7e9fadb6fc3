"""`make torture`: a run of the torture tests for an hour, or for the given number of minutes.

python -m tests.torture MINUTES [PYTEST ARGUMENT...]

Rules:
- Each test file is a stage. The last stage fuzzes the parsers with atheris, for 5 minutes per hour. The run continues
  after a failed stage.
- The summary has a line for each stage, with the results of that stage below it. The exit status is 0 if all stages
  passed, else 1.
- SIGINT, SIGTERM or SIGHUP interrupts the running stage. The run waits until the stage has cleaned up, at most
  OVERTIME. The run then prints the summary so far, and exits with 130.
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
NOTHING_SELECTED = 5  # pytest's exit status if its arguments select no test
PARSERS = "parsers"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OVERTIME = 120  # time limit for a stage to exit after an interrupt, in seconds


class Stage(NamedTuple):
    """A stage of the run: its name in the summary, and its command."""

    name: str
    command: Sequence[str]


class Outcome(NamedTuple):
    """The end of a stage. `results` are lines of text."""

    name: str
    status: int
    seconds: float
    results: Sequence[str]


def stages(minutes: float, arguments: Sequence[str]) -> list[Stage]:
    """Return all stages in order. Omit the stage of the parsers if there are pytest arguments."""
    python = (sys.executable, "-m")
    tests = [
        Stage(path.stem.removeprefix("test_"), (*python, "pytest", "-s", "-v", *arguments, str(path)))
        for path in sorted(HERE.glob("test_*.py"))
    ]
    seconds = max(1, round(300 * minutes / 60))
    return tests if arguments else [*tests, Stage(PARSERS, (*python, "tests.fuzz", str(seconds)))]


def run(stage: Stage, minutes: float) -> Outcome:
    """Run a stage, show its output, and return its outcome.

    On KeyboardInterrupt, interrupt the stage, wait for its end, and raise again.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pam_totp-torture-") as folder:
        results = Path(folder, "results")
        results.touch()
        environment = {**os.environ, "TORTURE_MINUTES": str(minutes), "TORTURE_RESULTS": str(results)}
        # Delay signals that arrive while the stage starts, until the stage can be interrupted.
        kept: list[int] = []
        handlers = {number: signal.signal(number, lambda received, _: kept.append(received)) for number in ENDING}
        # A stage in the same session would receive Ctrl-C twice: from the terminal and from this process.
        with subprocess.Popen(stage.command, env=environment, start_new_session=True) as process:
            try:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
                if kept:
                    raise KeyboardInterrupt
                status = process.wait()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(OVERTIME)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        return Outcome(stage.name, status, time.monotonic() - begun, results.read_text("utf-8").splitlines())


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return a line for each stage, followed by its results."""
    lines = []
    for done in outcomes:
        end = "passed" if done.status == 0 else f"FAILED ({done.status})"
        lines.append(f"{done.name:<16} {end:<12} {done.seconds:6.0f} s")
        lines += [f"    {result}" for result in done.results]
    return "\n".join(lines)


def torture(minutes: float, to_run: Sequence[Stage]) -> int:
    """Run the stages and return the exit status."""
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
        print(f"interrupted: {len(to_run) - len(outcomes)} of {len(to_run)} stages were not completed")
        return 130
    print(f"{len(outcomes) - len(failed)} stages passed, {len(failed)} failed{': ' * bool(failed)}{', '.join(failed)}")
    return 1 if failed or not outcomes else 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def interrupt_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt."""
    for number in ENDING:
        signal.signal(number, _interrupt)


if __name__ == "__main__":
    interrupt_on_signals()
    if len(sys.argv) < 2 or not re.fullmatch(r"\d+(\.\d+)?", sys.argv[1]) or float(sys.argv[1]) == 0:
        sys.exit("usage: python -m tests.torture MINUTES [PYTEST ARGUMENT...]")
    sys.exit(torture(float(sys.argv[1]), stages(float(sys.argv[1]), sys.argv[2:])))
