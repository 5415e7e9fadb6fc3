"""Tests of SECURITY.md, which cites an existing test for each promise, and of the results of `make torture`."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest

from tests.support.site import PATIENCE, TREE
from tests.torture.__main__ import Stage, torture

NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (TREE / "SECURITY.md").read_text())


@pytest.mark.parametrize(("path", "test"), NAMED)
def test_the_test_of_a_promise_exists(path: str, test: str) -> None:
    text = (TREE / path).read_text()
    assert f"def {test or 'test_'}" in text or (test == "" and "TestCase" in text)


@pytest.mark.parametrize(("begins", "at_least"), [("Promises", 12), ("The portal, by OWASP's lists", 25)])
def test_every_promise_names_a_test(begins: str, at_least: int) -> None:
    (promised,) = (part for part in (TREE / "SECURITY.md").read_text().split("\n## ") if part.startswith(f"{begins}\n"))
    promises = re.findall(r"^\| (?!promise|concern|---)(.*) \|$", promised, re.MULTILINE)
    assert len(promises) >= at_least
    assert all(re.search(r"`tests/[\w/]+\.py", promise) for promise in promises)


def stage(name: str, script: str) -> Stage:
    return Stage(name, (sys.executable, "-c", f"import os, signal, sys\n{script}"))


def test_the_torture_run_continues_after_a_failed_stage_and_then_fails(capsys: pytest.CaptureFixture[str]) -> None:
    tried = "open(os.environ['TORTURE_RESULTS'], 'a').write('7 tried, nothing found\\n')"
    stages = [stage("first", "sys.exit(1)"), stage("nothing", "sys.exit(5)"), stage("last", tried)]
    assert torture(6, stages) == 1
    said = re.sub(r" +", " ", capsys.readouterr().out)
    assert re.search(r"\nfirst FAILED \(1\) \d+ s\nlast passed \d+ s\n 7 tried, nothing found\n", said)
    assert said.endswith("1 stages passed, 1 failed: first\n")
    assert torture(6, stages[1:]) == 0
    assert torture(6, stages[1:2]) == 1, "a run must complete at least one stage"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_torture_run_ends_on_a_signal_after_its_stage_cleaned_up(number: signal.Signals) -> None:
    running = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); print('running', flush=True)\n"
    running += "signal.sigwait([signal.SIGINT]); print('put away')"
    script = "import sys; from tests.torture import __main__ as t; t.interrupt_on_signals(); "
    script += f"sys.exit(t.torture(1, 2 * [t.Stage('one', (sys.executable, '-c', {running!r}))]))"
    with subprocess.Popen([sys.executable, "-c", script], cwd=TREE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "running\n":
                break
        process.send_signal(number)
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert out.startswith("put away\n")
    assert out.endswith("interrupted: 2 of 2 stages were not completed\n")
