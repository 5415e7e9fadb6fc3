"""The trial of a change, from its start until the change is kept or rolled back.

Rules:
- A durable copy of the old texts exists, and a watchdog process waits to restore them, before a file is changed.
- One rename keeps a change. A roll-back starts with a rename of the same file, so only one of the two succeeds.
- FOLDER has a trial file for each service: NAME.trial (on trial), NAME.json (kept), or NAME.back (roll-back in
  progress). The watchdog locks NAME.watch.
- The next command or pam_totp-takeback.service rolls back a trial that has lost its watchdog in a crash or a reboot.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pam_totp.system import sshd
from pam_totp.system.audit import Audit
from pam_totp.system.enable.changes import Change, ChangeError, apply, read, undo
from pam_totp.system.enable.process_origin import now_ticks, terminal

if TYPE_CHECKING:
    from pam_totp.system.machine import Machine

FOLDER = "/var/lib/pam_totp_enabled"
TRIAL, KEPT, BACK = "trial", "json", "back"
READY_WITHIN = 10.0  # seconds for the watchdog to start
PAUSE = 0.1  # seconds between two checks
WATCHDOG = os.path.join(os.path.dirname(os.path.abspath(__file__)), "watchdog.py")
INTERPRETER = "/usr/bin/python3"
_NULL = subprocess.DEVNULL
# The field of a `Change` -> its key in a trial file, so that this version reads the files of earlier versions.
_KEYS = {"added_lines": "ours", "commented_lines": "replaced"}


class TrialError(Exception):
    """The error for a trial that is missing, or that failed to start or to end. The message gives the reason."""


@dataclass(frozen=True, slots=True)
class Record:
    """The content of a trial file: the changes for a service. `began` is in ticks since boot, as in proc(5)."""

    service: str
    changes: tuple[Change, ...]
    keep_within: int  # seconds
    began: int = 0
    terminal: int = 0  # device number

    def text(self) -> str:
        changes = [{_KEYS.get(field, field): value for field, value in asdict(c).items()} for c in self.changes]
        return json.dumps({"version": 1, **asdict(self), "changes": changes}, indent=1) + "\n"


def load(service: str, state: str) -> Record | None:
    """Return the content of the trial file, or None if it does not exist. Raise TrialError if it cannot be read."""
    try:
        with open(_path(service, state), encoding="utf-8") as file:
            document = json.load(file)
        if document.pop("version") != 1:
            raise ValueError
        fields = {key: field for field, key in _KEYS.items()}
        changes = tuple(Change(**{fields.get(k, k): v for k, v in c.items()}) for c in document.pop("changes"))
        return Record(changes=changes, **document)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise TrialError(f"{_path(service, state)}: {e.strerror}") from e
    except (ValueError, TypeError, KeyError):
        raise TrialError(
            f"{_path(service, state)}: must be a trial file of 'enable' (roll back its changes of {service} by hand)"
        ) from None


def records() -> list[tuple[str, str]]:
    """Return the service and state of every trial file."""
    try:
        names = sorted(os.listdir(FOLDER))
    except OSError:
        return []
    parts = (name.rpartition(".") for name in names)
    return [(service, state) for service, _, state in parts if service and state in (TRIAL, KEPT, BACK)]


def begin(record: Record) -> None:
    """Write the trial file, start a watchdog, and apply the changes. Restore every file after an exception."""
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
        with _lock():
            if not os.path.exists(_path(record.service, TRIAL)):
                raise TrialError("the trial was rolled back before it started; nothing was changed")
            for change in record.changes:
                apply(change)
        log("enable", record.service, state="trial", seconds=record.keep_within)
    except BaseException:
        with suppress(TrialError):  # another process has rolled back the trial
            roll_back(record.service)
        raise


def keep(service: str) -> None:
    """End the trial and keep the change. Raise TrialError if there is no trial."""
    with _lock():
        try:
            os.rename(_path(service, TRIAL), _path(service, KEPT))
        except FileNotFoundError:
            raise TrialError(f"{service} is not on trial (see 'pam-totp enable {service}')") from None
    log("enable", service, state="kept")


def roll_back(service: str, state: str = TRIAL, only: int | None = None) -> list[str]:
    """Restore the old files, and return a report.

    Raise TrialError if the trial does not exist, or if `only` is given and the trial began at other ticks than `only`.
    Raise ChangeError with a message for each file that cannot be restored, after the other files are restored.
    """
    with _lock():
        return _roll_back(service, state, only)


def roll_back_all(machine: Machine) -> list[str]:
    """Restore the old files of all services, or change no file. Return a report.

    Hold the lock, so that no trial can end meanwhile. Raise TrialError with all obstacles, before the first change, if
    a file cannot be restored. Restore the other files after a later error, then raise TrialError with the failed and
    the restored files.
    """
    if not records():
        _without_obstacles(machine)
        return []
    done, failed, services = [], [], []
    with _lock():
        for service, state in _without_obstacles(machine):
            try:
                done += _roll_back(service, state)
                services.append(service)
            except (ChangeError, TrialError) as e:
                failed.append(str(e))
    for service in services:
        log("disable", service)
    if failed:
        raise TrialError(f"{'; '.join(failed)} (correct this, then run the command again); done: {'; '.join(done)}")
    return done


def _roll_back(service: str, state: str, only: int | None = None) -> list[str]:
    try:
        current = load(service, state)
        if only is not None and (current is None or current.began != only):
            raise TrialError(f"{service}: another trial has started")
        os.rename(_path(service, state), _path(service, BACK))
    except FileNotFoundError:
        if not os.path.exists(_path(service, BACK)):
            raise TrialError(f"{service} is not {'on trial' if state == TRIAL else 'enabled'}") from None
    record = load(service, BACK)
    done, failed = [], []
    for change in record.changes if record is not None else ():
        try:
            done.append(undo(change))
        except ChangeError as e:
            failed.append(str(e))
    if record is not None and any(c.path == sshd.DROP_IN for c in record.changes):
        sshd.reload()
    if failed:
        raise ChangeError("; ".join(failed))
    os.unlink(_path(service, BACK))
    with suppress(FileNotFoundError):
        os.unlink(_path(service, "watch"))
    return done


def dry_roll_back(service: str, state: str) -> list[str]:
    """Return the report of a `roll_back`, but restore no file. Raise ChangeError or TrialError if `roll_back` would."""
    record = load(service, state)
    return [undo(change, dry_run=True) for change in record.changes] if record is not None else []


def dry_roll_back_all(machine: Machine) -> list[str]:
    """Return the report of a `roll_back_all`, but restore no file. Raise TrialError with every obstacle."""
    return [line for service, state in _without_obstacles(machine) for line in dry_roll_back(service, state)]


def _without_obstacles(machine: Machine) -> list[tuple[str, str]]:
    """Return the service and state of every trial file. Raise TrialError if a roll-back has an obstacle.

    Obstacles are invalid trial files, changed files that were edited or cannot be written, and files that would still
    name pam_totp.so after the roll-back.
    """
    every, obstacles, after = records(), [], {}
    for service, state in every:
        try:
            record = load(service, state)
        except TrialError as e:
            obstacles.append(str(e))
            continue
        for change in record.changes if record is not None else ():
            after[change.path] = change.before or ""
            if read(change.path) not in (change.before, change.after):
                obstacles.append(f"{change.path}: edited since 'enable' (run 'pam-totp disable {service}' first)")
                continue
            try:
                undo(change, dry_run=True)
            except ChangeError as e:
                obstacles.append(str(e))
    by_hand = "names pam_totp.so in a line that 'enable' did not add (remove that line by hand first)"
    obstacles += [f"{path}: {by_hand}" for path in machine.files_with_module(after)]
    if obstacles:
        raise TrialError("nothing was changed: " + "; ".join(obstacles))
    return every


def roll_back_left_over() -> list[str]:
    """Roll back every trial that has no watchdog. Return the services."""
    services = [s for s, state in records() if state in (TRIAL, BACK) and not has_watchdog(s)]
    for service in services:
        try:
            roll_back(service)
            log("roll-back", service, why="not confirmed before the machine or the watchdog stopped")
        except (ChangeError, TrialError) as e:
            log_failure(service, e)
    return services


def watch(service: str, stop: Sequence[object]) -> None:
    """Wait until the trial ends. Roll back after `keep_within` seconds, or when `stop` gets a signal (SIGTERM)."""
    with open(_path(service, "watch"), "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = load(service, TRIAL)
        if record is None:
            return
        deadline = time.clock_gettime(time.CLOCK_BOOTTIME) + record.keep_within
        while time.clock_gettime(time.CLOCK_BOOTTIME) < deadline and not stop:
            if not os.path.exists(_path(service, TRIAL)):
                return
            time.sleep(PAUSE)
        try:
            roll_back(service, only=record.began)
            log("roll-back", service, why=f"not confirmed within {record.keep_within} s")
        except TrialError:
            return  # another process has kept or rolled back the trial
        except ChangeError as e:
            log_failure(service, e)


def has_watchdog(service: str) -> bool:
    """Return True if a watchdog waits for the end of the service's trial."""
    try:
        with open(_path(service, "watch"), encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def log(what: str, service: str, **fields: str | int) -> None:
    """Log a change of the service, with the account that runs this process."""
    Audit().changed(what, service=service, **fields)


def log_failure(service: str, error: Exception) -> None:
    """Log that the change of the service could not be rolled back."""
    Audit().failed(f"{service}: the roll-back failed: {error}")


def _start_watchdog(service: str) -> None:
    """Start the watchdog so that it survives the end of the terminal and the session. Wait for the watchdog's lock."""
    command = [INTERPRETER, "-I", "-S", WATCHDOG, service]
    unit = ["/usr/bin/systemd-run", "--quiet", "--collect", f"--unit=pam_totp-trial-{service}"]
    unit += ["--property=KillMode=process", "--", *command]  # a program of [hooks] may outlive the watchdog
    started = False
    if os.path.isdir(sshd.SYSTEMD):  # run outside the session's control group, which logind may kill
        with suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(unit, stdin=_NULL, capture_output=True, timeout=READY_WITHIN, cwd="/", check=False)
            started = done.returncode == 0
    if not started:
        subprocess.Popen(command, stdin=_NULL, stdout=_NULL, stderr=_NULL, cwd="/", start_new_session=True)
    give_up = time.monotonic() + READY_WITHIN
    while not has_watchdog(service):
        if time.monotonic() > give_up:
            call = " ".join(command)
            raise TrialError(f"the watchdog did not start within {READY_WITHIN:g} s (check that '{call}' can run)")
        time.sleep(PAUSE / 5)


@contextmanager
def _lock() -> Iterator[None]:
    """Hold the lock that allows one change, confirmation or roll-back at a time on the whole machine."""
    os.makedirs(FOLDER, 0o700, exist_ok=True)
    folder = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(record: Record) -> None:
    path = _path(record.service, TRIAL)
    temporary = path + ".new"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(record.text())
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _path(service: str, state: str) -> str:
    return os.path.join(FOLDER, f"{service}.{state}")
