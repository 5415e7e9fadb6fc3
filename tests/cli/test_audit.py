"""Tests of the audit log of commands: the account of the caller, the limits, and a missing log daemon."""

from __future__ import annotations

import os
import pwd
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pam_totp.cli.store_access import update
from pam_totp.core.record import UserRecord
from pam_totp.operations import audit_log
from pam_totp.store import StoreError
from pam_totp.store.file import FileStore
from pam_totp.system import audit
from pam_totp.system.audit import Audit
from tests.conftest import as_root
from tests.support.site import ME, PATIENCE, TREE, Site, codes, fob

if TYPE_CHECKING:
    from pam_totp.store import R


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Simulate a log daemon that runs. Return the list to which each later line of this process is added."""
    written: list[str] = []
    monkeypatch.setattr(audit_log, "to_syslog", lambda _, line: written.append(line))
    monkeypatch.setattr(audit_log, "fault", lambda: None)
    return written


@pytest.fixture
def login_uid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that this process reads in place of /proc/self/loginuid."""
    path = tmp_path / "loginuid"
    monkeypatch.setattr(audit, "_LOGIN_UID", str(path))
    return path


def caller() -> dict[str, str | int | None]:
    """Return the fields by which the log names the caller of a command."""
    return dict(Audit()._who)


@pytest.mark.parametrize("login", ["", "4294967295", "-1", "no number", "1\x00", "99999999999999999999"])
def test_an_unset_login_uid_is_not_logged(login_uid: Path, login: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_UID", raising=False)
    login_uid.write_text(login)
    assert caller() == {"by": ME, "login": None}
    login_uid.unlink()
    assert caller() == {"by": ME, "login": None}


def test_a_different_login_account_is_logged_too(login_uid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_UID", raising=False)
    login_uid.write_text("1\n")
    assert caller() == {"by": ME, "login": pwd.getpwuid(1).pw_name}
    login_uid.write_text("3999999999\n")
    assert caller() == {"by": ME, "login": "3999999999"}, "a uid without an account"
    login_uid.write_text(str(os.getuid()))
    assert caller() == {"by": ME, "login": None}


@as_root
@pytest.mark.parametrize("forged", ["", "x", "-1", "1 ", "\u0661", "4294967295", "1" * 5000])
def test_an_invalid_sudo_uid_is_ignored(login_uid: Path, forged: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "daemon")
    monkeypatch.setenv("SUDO_UID", forged)
    assert caller()["by"] == ("daemon" if forged.strip() == "1" else "root")


def test_a_large_change_logs_a_bounded_number_of_lines(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_LINES", 3)
    monkeypatch.delenv("SUDO_UID", raising=False)
    Audit().changed_many("import", ({"user": f"u{n}"} for n in range(10)), format="pskc")
    said = [line.partition("auth): ")[2].partition(" at=")[0] for line in lines]
    assert said == [*(f"changed user=u{n} what=import format=pskc" for n in range(3)),
                    "changed what=import omitted=7 format=pskc"]  # fmt: skip


def test_a_missing_log_daemon_is_reported_once_and_rolls_nothing_back(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit_log, "to_syslog", lambda *_: None)
    monkeypatch.setattr(audit_log, "DEVICE", str(tmp_path / "log"))
    log = Audit()
    for _ in range(2):
        log.changed("unlock", ME)
    said = (
        f"pam-totp: warning: not in the audit log: {tmp_path}/log: no such file or directory (start the log daemon)\n"
    )
    assert capfd.readouterr() == ("", said)


class Interrupted:
    """A store that interrupts the process during the write."""

    def __init__(self, store: FileStore) -> None:
        self._store = store

    def read(self, user: str) -> UserRecord:
        return self._store.read(user)

    def update(
        self,
        user: str,
        change: Callable[[UserRecord], tuple[UserRecord | None, R]],
        *,
        create: bool = False,
        decoy: bool = False,
    ) -> R:
        def change_and_interrupt(record: UserRecord) -> tuple[UserRecord | None, R]:
            changed = change(record)
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # a test process has more threads than a command
            return changed

        return self._store.update(user, change_and_interrupt, create=create, decoy=decoy)

    def update_decoy(self, user: str, search: Callable[[], object]) -> None:
        self._store.update_decoy(user, search)

    def users(self) -> Iterator[str]:
        return self._store.users()

    def owner_of_serial(self, serial: str) -> str | None:
        return None


def test_ctrl_c_during_a_change_waits_for_the_line(site: Site) -> None:
    site.enrol(failures=3, failures_at=0)
    logged: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        update(Interrupted(FileStore(str(site.store))), ME, lambda r: (r.unlocked(), r.failures), logged.append)
    assert (logged, site.record().failures) == ([3], 0)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


ENDINGS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, *audit.FAULTS})


def test_no_signal_is_delivered_before_the_line_of_a_change(site: Site) -> None:
    """A process can block all signals except SIGKILL, SIGSTOP, and the signals of a fault in its own instruction."""
    site.enrol(failures=3, failures_at=0)
    held: list[set[int]] = []
    update(
        FileStore(str(site.store)),
        ME,
        lambda r: (r.unlocked(), None),
        lambda _: held.append({int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}),
    )
    assert set(ENDINGS) <= held[0]
    assert {signal.SIGQUIT, signal.SIGTSTP, signal.SIGXCPU, signal.SIGALRM, signal.SIGUSR1} <= held[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize(("code", "outcome"), [(codes(0), "accepted"), ("000000", "refused")])
def test_a_signal_during_verify_waits_for_its_line(site: Site, number: int, code: str, outcome: str) -> None:
    site.enrol(fob())
    script = f"""
import os, sys
from pam_totp import cli
from pam_totp.operations import audit_log
from pam_totp.store.file import FileStore
update = FileStore.update
def interrupted(*args, **more):
    result = update(*args, **more)
    os.kill(os.getpid(), {int(number)})
    return result
FileStore.update = interrupted
audit_log.to_syslog = lambda _, line: print(line, flush=True)
sys.exit(cli.main(["verify", "--store", {str(site.store)!r}, {ME!r}, {code!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=TREE, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert f"pam_totp(pam-totp:auth): {outcome} user={ME}" in done.stdout, done
    assert done.returncode == (128 + signal.SIGINT if number == signal.SIGINT else -number)


def test_the_callers_name_is_looked_up_before_a_change(site: Site) -> None:
    """A slow name service must not delay the log line of a change."""
    site.enrol(failures=3, failures_at=0)
    script = f"""
import sys
from pam_totp import cli
from pam_totp.store.file import FileStore
from pam_totp.system import audit
name, update = audit._name, FileStore.update
audit._name = lambda uid: print("name") or name(uid)
FileStore.update = lambda *args, **more: print("change") or update(*args, **more)
sys.exit(cli.main(["unlock", "--store", {str(site.store)!r}, {ME!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=TREE, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line in ("name", "change")]
    assert (lines[0], lines[-1], done.returncode) == ("name", "change", 0), done


@pytest.mark.parametrize("hard", [resource.RLIM_INFINITY, 0])
def test_a_command_writes_no_core_dump(hard: int) -> None:
    """The limit of core dumps is 1 byte: at 0, the kernel would still start a program that core_pattern names."""
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_CORE, ({hard}, {hard}))
from pam_totp import cli
cli.main(["policy", "sshd"])
print(resource.getrlimit(resource.RLIMIT_CORE))
"""
    if hard == resource.RLIM_INFINITY and resource.getrlimit(resource.RLIMIT_CORE)[1] == 0 and os.geteuid() != 0:
        pytest.skip("this account cannot raise the limit")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=TREE, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    possible = [(1, hard)] if hard else [(1, 1), (0, 0)]  # (0, 0) without CAP_SYS_RESOURCE
    assert done.stdout.splitlines()[-1] in map(str, possible), done


def test_a_change_that_fails_is_not_logged(site: Site) -> None:
    site.enrol(fob())
    site.path().write_text("damaged")
    logged: list[None] = []
    with pytest.raises(StoreError):
        update(FileStore(str(site.store)), ME, lambda r: (r.unlocked(), None), logged.append)
    assert logged == []
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
