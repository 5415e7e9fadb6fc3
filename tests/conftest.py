"""Set-up and fixtures of all tests. Tests do not change the host, and end every process that they start."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import isolation, pamlog
from tests.support.cluster import Server, emptied, servers
from tests.support.fleet import Fleet, running
from tests.support.huge_pages import use_huge_pages
from tests.support.relay_kit import Setup
from tests.support.site import Site

# Background jobs of a shell ignore SIGINT and SIGQUIT, and programs started by nohup ignore SIGHUP. Processes that the
# tests start would inherit these settings.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The objects of collected tests are permanent. Garbage collections among them would take 6 s in each worker.
gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Isolate this process. Child processes inherit the isolation."""
    if not isolation.OWN_SYSTEMS.keys().isdisjoint(os.environ):
        return
    home = tempfile.TemporaryDirectory(prefix="pam_totp-home-")
    session.config.add_cleanup(home.cleanup)
    try:
        if hasattr(session.config, "workerinput"):  # in a worker of xdist
            isolation.isolate_worker(Path(home.name))
        else:
            isolation.isolate(Path(home.name), has_workers=session.config.getoption("dist", "no") != "no")
    except isolation.IsolationError as error:
        raise pytest.UsageError(f"the tests cannot run here: {error}") from error


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
    use_huge_pages()


def pytest_report_header() -> str:
    return f"skipped here: {', '.join(isolation.left_out()) or 'nothing'}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print each reason for skipped tests once, because hundreds of tests are skipped for an ordinary user."""
    reports = terminalreporter.stats.get("skipped", ())
    for reason, count in Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports).most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


@pytest.fixture
def site() -> Iterator[Site]:
    """Yield a store with a folder of PAM services. The test can start the service on a socket.

    Other accounts can enter this folder, because it is outside pytest's temporary folder.
    """
    with tempfile.TemporaryDirectory(prefix="pam_totp-test-") as folder:
        made = Site(Path(folder))
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture(params=["spawn", "socket"])
def way(request: pytest.FixtureRequest, site: Site) -> str:
    """Configure the PAM service `demo`. Return its verifier: `spawn` (a new helper) or `socket` (the service)."""
    way: str = request.param
    if way == "socket":
        site.start()
    site.configure("demo", way=way)
    return way


@pytest.fixture
def obeyed_way(way: str) -> str:
    """Return `way`. Skip the test if the service would ignore the module's arguments."""
    if way == "socket" and os.geteuid() != 0:
        pytest.skip("requires root: the service accepts the module's arguments only from root")
    return way


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """Return a `Setup` for logins with scripted services and helpers."""
    return Setup(tmp_path)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """Yield a PostgreSQL server without a standby. Mark the test with `tests.support.cluster.with_postgresql`."""
    with servers() as server:
        yield server


@pytest.fixture
def database(postgresql: Server) -> str:
    """Return the URL of an empty store that requires no standby. Mark the test with `with_postgresql`."""
    return emptied(postgresql)


@pytest.fixture(scope="session")
def fleet(postgresql: Server) -> Iterator[Fleet]:
    """Yield a fleet with two authorities, which all tests share. Mark the test with `with_postgresql`."""
    with running(postgresql) as made:
        yield made


@pytest.fixture
def log() -> Iterator[Callable[[], list[str]]]:
    """Yield a function that returns the log lines of PAM modules in this process, which do not reach the host's log."""
    with pamlog.capture() as lines:
        yield lines


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="requires root: the test uses other accounts")
with_mounts = pytest.mark.skipif(not isolation.MAY_MOUNT, reason="requires root, and permission to mount")
