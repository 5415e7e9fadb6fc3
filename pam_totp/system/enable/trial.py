"""A change on trial: recorded first, then made, then kept or taken back.

The law: before the first byte of a change there is a durable record of what was there, and a process of its own that
will put it back; keeping is one rename, taking back starts with one, and of the two exactly one happens.

In FOLDER, for each service: NAME.trial while it is on trial, NAME.json once it is kept, NAME.back while it is taken
back, NAME.watch locked by the process that waits. A trial that nobody waits for (a crash, a reboot) is taken back by
whoever finds it: the next command, or pam_totp-takeback.service.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import syslog
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from pam_totp.system import sshd
from pam_totp.system.enable.changes import Change, ChangeError, apply, undo
from pam_totp.system.enable.process_origin import now_ticks, terminal

FOLDER = "/var/lib/pam_totp_enabled"
TRIAL, KEPT, BACK = "trial", "json", "back"
READY_WITHIN = 10.0  # seconds, for an interpreter to start
PAUSE = 0.1  # seconds between two looks
WATCHDOG = os.path.join(os.path.dirname(os.path.abspath(__file__)), "watchdog.py")
INTERPRETER = "/usr/bin/python3"
_NULL = subprocess.DEVNULL


class TrialError(Exception):
    """There is no such trial, or it could not be begun or ended; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Record:
    """What was changed for a service, and when: ticks since boot, as /proc counts them."""

    service: str
    changes: tuple[Change, ...]
    keep_within: int  # seconds
    began: int = 0
    terminal: int = 0  # device number

    def text(self) -> str:
        return json.dumps({"version": 1, **asdict(self)}, indent=1) + "\n"


def load(service: str, state: str) -> Record | None:
    """The record in that state, or None. Raises TrialError for one that cannot be read."""
    try:
        with open(_path(service, state), encoding="utf-8") as file:
            found = json.load(file)
        if found.pop("version") != 1:
            raise ValueError
        changes = tuple(Change(**c) for c in found.pop("changes"))
        return Record(changes=changes, **found)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise TrialError(f"{_path(service, state)}: {e.strerror}") from e
    except (ValueError, TypeError, KeyError):
        raise TrialError(f"{_path(service, state)}: not a record of ours; undo by hand what it should tell") from None


def records() -> list[tuple[str, str]]:
    """Service and state of all records."""
    try:
        names = sorted(os.listdir(FOLDER))
    except OSError:
        return []
    parts = (name.rpartition(".") for name in names)
    return [(service, state) for service, _, state in parts if service and state in (TRIAL, KEPT, BACK)]


def begin(record: Record) -> None:
    """Record, have somebody wait, change. Raises TrialError or ChangeError, and then nothing has changed."""
    record = Record(record.service, record.changes, record.keep_within, now_ticks(), terminal())
    try:
        os.makedirs(FOLDER, 0o700, exist_ok=True)
        with open(_path(record.service, "watch"), "a", encoding="ascii"):
            pass
        _write(record)
    except OSError as e:
        raise TrialError(f"{FOLDER}: {e.strerror}; nothing was changed") from e
    try:
        _start_watchdog(record.service)
        with _alone():
            if not os.path.exists(_path(record.service, TRIAL)):
                raise TrialError("taken back before it began; nothing was changed")
            for change in record.changes:
                apply(change)
        log(f"enable {record.service}: on trial for {record.keep_within} s")
    except BaseException:
        take_back(record.service)
        raise


def keep(service: str) -> None:
    """End the trial: the change stays. Raises TrialError where there is none any more."""
    with _alone():
        try:
            os.rename(_path(service, TRIAL), _path(service, KEPT))
        except FileNotFoundError:
            raise TrialError(f"{service} is not on trial (any more); see 'pam-totp enable {service}'") from None
    log(f"enable {service}: confirmed")


def take_back(service: str, state: str = TRIAL, only: int | None = None) -> list[str]:
    """Put back what was there; returns what was done. `only`: nothing but the trial that began at these ticks.

    Raises ChangeError with all that could not be put back, after the rest was, and TrialError where there is nothing.
    """
    with _alone():
        try:
            found = load(service, state)
            if only is not None and (found is None or found.began != only):
                raise TrialError(f"{service}: another trial")
            os.rename(_path(service, state), _path(service, BACK))
        except FileNotFoundError:
            if not os.path.exists(_path(service, BACK)):
                raise TrialError(f"{service} is not {'on trial' if state == TRIAL else 'enabled'}") from None
        record = load(service, BACK)
        done, left = [], []
        for change in record.changes if record is not None else ():
            try:
                done.append(undo(change))
            except ChangeError as e:
                left.append(str(e))
        if record is not None and any(c.path == sshd.DROP_IN for c in record.changes):
            sshd.reload()
        if left:
            raise ChangeError("; ".join(left))
        os.unlink(_path(service, BACK))
        with suppress(FileNotFoundError):
            os.unlink(_path(service, "watch"))
    return done


def take_back_left_over() -> list[str]:
    """Take back what nobody waits for any more; returns the services."""
    found = [s for s, state in records() if state in (TRIAL, BACK) and not watched(s)]
    for service in found:
        try:
            take_back(service)
            log(f"enable {service}: taken back, nobody had confirmed it before this machine or its watchdog stopped")
        except (ChangeError, TrialError) as e:
            log(f"enable {service}: could not be taken back: {e}", syslog.LOG_ERR)
    return found


def watch(service: str, told: Sequence[object]) -> None:
    """Wait until the trial was ended or its time is over, then take it back. `told` becomes non-empty when it is time
    to end early (SIGTERM)."""
    with open(_path(service, "watch"), "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = load(service, TRIAL)
        if record is None:
            return
        deadline = time.clock_gettime(time.CLOCK_BOOTTIME) + record.keep_within
        while time.clock_gettime(time.CLOCK_BOOTTIME) < deadline and not told:
            if not os.path.exists(_path(service, TRIAL)):
                return
            time.sleep(PAUSE)
        try:
            take_back(service, only=record.began)
            log(f"enable {service}: taken back, nobody confirmed it within {record.keep_within} s")
        except TrialError:
            return  # kept, or taken back, a moment ago
        except ChangeError as e:
            log(f"enable {service}: could not be taken back: {e}", syslog.LOG_ERR)


def watched(service: str) -> bool:
    """Whether a process waits for the end of this trial."""
    try:
        with open(_path(service, "watch"), encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def log(text: str, priority: int = syslog.LOG_NOTICE) -> None:
    """A line to authpriv."""
    syslog.openlog("pam-totp", syslog.LOG_PID, syslog.LOG_AUTHPRIV)
    syslog.syslog(priority, text)


def _start_watchdog(service: str) -> None:
    """A process that neither the terminal, nor the session, nor its end can reach; ready when this returns."""
    command = [INTERPRETER, "-I", "-S", WATCHDOG, service]
    unit = ["/usr/bin/systemd-run", "--quiet", "--collect", f"--unit=pam_totp-trial-{service}", "--", *command]
    started = False
    if os.path.isdir(sshd.SYSTEMD):  # outside the session's control group, which logind may clear
        with suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(unit, stdin=_NULL, capture_output=True, timeout=READY_WITHIN, cwd="/", check=False)
            started = done.returncode == 0
    if not started:
        subprocess.Popen(command, stdin=_NULL, stdout=_NULL, stderr=_NULL, cwd="/", start_new_session=True)
    give_up = time.monotonic() + READY_WITHIN
    while not watched(service):
        if time.monotonic() > give_up:
            raise TrialError(f"the process that would take the change back does not start: {' '.join(command)}")
        time.sleep(PAUSE / 5)


@contextmanager
def _alone() -> Iterator[None]:
    """One change, keeping or taking back at a time, on the whole machine."""
    os.makedirs(FOLDER, 0o700, exist_ok=True)
    folder = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(record: Record) -> None:
    path = _path(record.service, TRIAL)
    aside = path + ".new"
    try:
        with open(aside, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(record.text())
            file.flush()
            os.fsync(file.fileno())
        os.rename(aside, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(aside)
        raise


def _path(service: str, state: str) -> str:
    return os.path.join(FOLDER, f"{service}.{state}")
