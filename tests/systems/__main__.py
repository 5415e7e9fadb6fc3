"""`make systems`, for root: a run of the README's commands in a bare root of each system that the README names."""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from tests.systems import journey
from tests.systems.host import NoMirror
from tests.systems.report import Row, failed_and_skipped, line, table
from tests.systems.roots import FOLDER, SYSTEMS, Unusable, bare_clone, base, remove_base, require_namespaces

OK, FAILED, UNAVAILABLE, INTERRUPTED = 0, 1, 3, 130  # exit statuses
LOGS = FOLDER / "logs"
USERS = ("root", journey.USER)
_TAIL = 25  # lines of a failed step's output to print
_HELP = """\
Each system is a bare root that debootstrap creates once, in build/systems. All changes are in a scratch folder, which
is removed at the end. This machine does not change. The steps use a clone of the committed HEAD, not the work tree.

steps:
  demo      git clone, then make demo; root runs the apt-get line that make prints for a user
  again     make demo a second time
  offline   make build, then make demo; the distribution's archive is the only package index that can be reached
  test      make test, then make test-setup

examples:
  make systems                                                   all systems, users and steps: an hour on two cores
  make systems ARGS="--systems trixie --users root --steps demo"
  make systems ARGS="--steps test --tests tests/install"         some of the tests
  make systems ARGS="--rebuild --steps demo"                     build new base roots

The mirror is the archive that apt uses here, or another archive on the same server. To use another mirror, set
SYSTEMS_DEBIAN_MIRROR, SYSTEMS_DEBIAN_SECURITY_MIRROR, SYSTEMS_UBUNTU_MIRROR or SYSTEMS_UBUNTU_SECURITY_MIRROR.
Exit status: 0 all steps passed, 1 a step failed, 2 wrong usage, 3 this machine cannot create a root.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="make systems", description=__doc__, epilog=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="the systems (default: all)")
    made.add_argument("--users", nargs="+", choices=USERS, default=list(USERS), help="the users (default: both)")
    made.add_argument(
        "--steps", nargs="+", choices=journey.STEPS, default=list(journey.STEPS), help="the steps (default: all)"
    )
    made.add_argument(
        "--tests", default="", metavar="ARGUMENTS", help="pytest's arguments in the step test (default: all tests)"
    )
    made.add_argument("--rebuild", action="store_true", help="build new base roots")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    wished = parser().parse_args(arguments)
    wish = journey.Wish(tuple(wished.steps), wished.tests)
    rows: list[Row] = []
    try:
        require_namespaces()
        if wished.rebuild:
            for name in wished.systems:
                remove_base(SYSTEMS[name])
        for name in wished.systems:
            base(SYSTEMS[name], say)
        visit(wished.systems, wished.users, wish, rows)
    except (Unusable, NoMirror) as why:
        print(f"make systems: {why}", file=sys.stderr)
        return UNAVAILABLE
    except KeyboardInterrupt:
        print("\nmake systems: interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        if rows:
            print("\n".join(filter(None, ("", table(rows), failed_and_skipped(rows), f"logs: {LOGS}"))))
    return OK if all(row.is_good for row in rows) else FAILED


def visit(systems: Sequence[str], users: Sequence[str], wish: journey.Wish, rows: list[Row]) -> None:
    """Run the chosen steps on each system as each user, and add the results to `rows`."""

    def report(row: Row, output: str) -> None:
        rows.append(row)
        say(line(row))
        if not row.is_good:
            print(textwrap.indent("\n".join(output.splitlines()[-_TAIL:]), "    "), flush=True)

    LOGS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pam_totp-systems-") as folder:
        repository = bare_clone(Path(folder))
        for name, user in itertools.product(systems, users):
            say(f"{SYSTEMS[name].title}, as {user}")
            with (LOGS / f"{name}-{user}.log").open("w") as log:
                journey.travel(SYSTEMS[name], user, wish, repository=repository, log=log, out=journey.Out(say, report))


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up after SIGTERM as after Ctrl-C
    sys.exit(main())
