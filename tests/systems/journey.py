"""The steps that run in a bare root: the README's commands for a fresh clone, as root and as an ordinary user.

Rules:
- A journey starts in a new root with a clone of the committed HEAD. A failed step is not retried. The step `again` runs
  only if `demo` succeeded.
- For an ordinary user, make prints one apt-get line and installs no package. Root then runs that line without sudo,
  which a bare system lacks.
- In the step `offline`, the distribution's archive is the only package index that can be reached.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, NamedTuple

from tests.systems.host import KNOWN_HOSTS_ONLY
from tests.systems.report import Results, Row, read_junit
from tests.systems.roots import Network, Root, System

USER = "newcomer"
LIMIT = 3600  # seconds for a step
STEPS = ("demo", "again", "offline", "test")
_APT_LINE = re.compile(r"^ *(sudo apt-get [^\n]+)$", re.MULTILINE)
_JUNIT = "/tmp/junit.xml"  # noqa: S108  # in the root's own /tmp


class Wish(NamedTuple):
    """The steps to run, and the arguments of pytest in the step `test`."""

    steps: tuple[str, ...] = STEPS
    tests: str = ""  # empty: all tests


class Run(NamedTuple):
    """The result of one or more commands in the root."""

    status: int
    output: str
    seconds: float
    packages: int  # number of packages that the commands installed

    @property
    def is_good(self) -> bool:
        return self.status == 0


class Out(NamedTuple):
    """The functions that print progress and results."""

    say: Callable[[str], None]  # print a line of progress
    report: Callable[[Row, str], None]  # print the result and the output of a step


def apt_line(output: str) -> str | None:
    """Return the apt-get command in make's output for an ordinary user, with sudo removed, or None."""
    found = _APT_LINE.findall(output)
    return found[-1].replace("sudo apt-get", "apt-get") if found else None


class Journey:
    """The steps of one user in one root, with all output in a log file."""

    def __init__(self, root: Root, user: str, log: IO[str], out: Out, label: str = "") -> None:
        self._root, self._user, self._log, self._out, self._label = root, user, log, out, label
        self._tree = ""

    def begin(self, repository: Path) -> None:
        if self._user != "root":
            self._root.add_account(self._user)
        self._tree = self._root.clone(repository, self._user)

    def demo(self, title: str = "make demo") -> bool:
        return self._row(title, self._make("demo"))

    def build(self) -> None:
        self._row("make build", self._make("build"))

    def test(self, arguments: str) -> None:
        """Run `make test ARGS=arguments`. Without arguments, run all tests."""
        for words in [("test", f"ARGS={arguments}")] if arguments else [("test",), ("test-setup",)]:
            results = self._root.path(_JUNIT)
            results.unlink(missing_ok=True)
            done = self._make(*words, env={"PYTEST_ADDOPTS": f"--junitxml={_JUNIT} -rfEXs"})
            self._row(f"make {words[0]}", done, tests=read_junit(results) if results.exists() else None)

    def show_no_index(self) -> None:
        """Check that the root can reach the distribution's archive as its only package index."""
        # The root looks up host names in /etc/hosts alone, which lists the archive's hosts (host.copy_settings).
        reached = f"cat /etc/hosts; grep -x '{KNOWN_HOSTS_ONLY.strip()}' /etc/nsswitch.conf && apt-get update"
        self._row("no package index", self._run(("sh", "-c", f"{reached} && rm -r /var/lib/apt/lists"), user="root"))

    def _make(self, *words: str, env: Mapping[str, str] | None = None) -> Run:
        """Run make as the user. Run the apt-get line that make prints, if any, as root, then run make again."""
        self._out.say(f"  {self._label}make {words[0]} ...")
        done = self._run(("make", *words), env=env)
        line = apt_line(done.output) if self._user != "root" else None
        if line is None:
            return done
        self._row(f"make {words[0]}: needs root", done, is_good=done.status != 0 and done.packages == 0)
        by_root = self._run(("sh", "-c", line), user="root")
        return self._run(("make", *words), env=env) if self._row("apt-get, as root", by_root) else by_root

    def _run(self, words: tuple[str, ...], user: str | None = None, env: Mapping[str, str] | None = None) -> Run:
        user = user or self._user
        self._log.write(f"\n=== {self._root.system.title}, {user}: {self._label}{' '.join(words)}\n")
        self._log.flush()
        file = Path(self._log.name)
        start = file.stat().st_size
        before = self._root.installed()
        begun = time.monotonic()
        limited = ("timeout", "--kill-after=10", str(LIMIT), *words)
        status = self._root.run(*limited, user=user, cwd=self._tree, env=env, log=self._log).returncode
        seconds = time.monotonic() - begun
        output = file.read_bytes()[start:].decode(errors="replace")
        return Run(status, output, seconds, len(self._root.installed() - before))

    def _row(self, title: str, done: Run, *, is_good: bool | None = None, tests: Results | None = None) -> bool:
        """Report the step. Return True if the step succeeded."""
        good = done.is_good if is_good is None else is_good
        step = self._label + title
        system = self._root.system.title
        row = Row(system, self._user, step, good, done.status, done.seconds, done.packages, tests)
        self._out.report(row, done.output)
        return good


def travel(system: System, user: str, wish: Wish, *, repository: Path, log: IO[str], out: Out) -> None:
    """Run the chosen steps on one system as one user."""
    if {"demo", "again", "test"} & set(wish.steps):
        with Root(system, say=out.say) as root:
            journey = Journey(root, user, log, out)
            journey.begin(repository)
            if {"demo", "again"} & set(wish.steps) and journey.demo() and "again" in wish.steps:
                journey.demo("make demo, again")
            if "test" in wish.steps:
                journey.test(wish.tests)
    if "offline" in wish.steps:
        with Root(system, network=Network.ARCHIVE, say=out.say) as root:
            journey = Journey(root, user, log, out, label="offline: ")
            journey.begin(repository)
            journey.show_no_index()
            journey.build()
            journey.demo()
