"""Checks of the parts: module, helper, socket, store, site file, clock."""

from __future__ import annotations

import ctypes
import os
import pwd
import stat
from collections.abc import Iterator

from pam_totp.core.settings import DEFAULT_STORE, SettingsError, settings
from pam_totp.pam.login_session import read_site
from pam_totp.system import probe
from pam_totp.system.doctor.context import ACCOUNT, Case
from pam_totp.system.machine import architecture
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Finding
from pam_totp.system.trust import distrust, distrust_around

_INSTALL = "run 'make install' as root, again if need be"
_ROOM = 64 * 1024  # bytes: a login writes a few KiB before it answers
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX = 512  # bytes, more than struct timex has anywhere


def module(case: Case) -> Iterator[Finding]:
    """The module is where libpam looks, of libpam's architecture, and root's alone."""
    if case.machine.module_folder() is None:
        yield Finding(ERROR, "module", "libpam's folder of modules is not to be found", "install libpam-modules")
        return
    permit = os.path.join(case.machine.module_folder() or "", "pam_permit.so")
    for path in case.modules():
        if not os.path.exists(path):
            yield Finding(ERROR, "module", f"{path} is not there", _INSTALL)
        elif architecture(path) != architecture(permit):
            yield Finding(ERROR, "module", f"{path} is not of libpam's architecture", "build it on this machine")
        elif (why := distrust(path, _builders())) is not None:
            yield Finding(ERROR, "module", f"{path}: {why}", "chown root and chmod go-w what is named")


def helper(case: Case) -> Iterator[Finding]:
    """What the relay would start belongs to root, with all that it imports of ours, and starts."""
    for path, interpreter in case.helpers().items():
        for each in (interpreter, path):
            if (why := distrust(each, _builders())) is not None:
                remedy = "chown root and chmod go-w what is named" if os.path.exists(each) else _INSTALL
                yield Finding(ERROR, "helper", f"the relay would not start {each}: {why}", remedy)
                break
        else:
            if (why := distrust_around(path, _builders())) is not None:
                # The relay does not look at these: it would, at every login, for a hundred files.
                text = f"the helper may run what root did not write: {why}"
                yield Finding(ERROR, "helper", text, "chown -R root and chmod -R go-w the folder of the package")
            if (wrong := probe.helper(interpreter, path)) is not None:
                yield Finding(ERROR, "helper", f"{path} {wrong}", _INSTALL)


def sockets(case: Case) -> Iterator[Finding]:
    """Where there is a socket, somebody answers, and the relay trusts the way to it."""
    for path in case.sockets():
        try:
            wrong = distrust(path, _builders() | _account()) if os.path.exists(path) else None
            if wrong is None:
                wrong = probe.service(path)
        except FileNotFoundError:
            continue  # no service: every login starts a helper, which is how most hosts are set up
        if wrong is not None:
            remedy = "systemctl restart pam_totp.socket (or stop it: then every login starts a helper)"
            # A stale socket costs nothing, the relay starts a helper; one that accepts and is silent denies.
            silent = "answer" in wrong or "hangs up" in wrong
            yield Finding(ERROR if silent else WARNING, "socket", f"{path}: {wrong}", remedy)


def store(case: Case) -> Iterator[Finding]:
    """The store can be read and written by its owner alone, and has room."""
    for folder in sorted({s.store for _, s in case.settings() if s.secret is None} or {DEFAULT_STORE}):
        try:
            status = os.stat(folder)
        except OSError as e:
            text = f"{folder}: {(e.strerror or str(e)).lower()}: nobody can log in with a code"
            yield Finding(ERROR, "store", text, _INSTALL if folder == DEFAULT_STORE else "make the folder, mode 0700")
            continue
        if not stat.S_ISDIR(status.st_mode) or stat.S_IMODE(status.st_mode) & 0o777 != 0o700:
            yield Finding(ERROR, "store", f"{folder}: not a folder of mode 0700", f"chmod 0700 {folder}")
        if status.st_uid == 0:
            text = f"{folder} belongs to root, so the helper stays root at a login"
            yield Finding(WARNING, "store", text, f"chown -R {ACCOUNT}: {folder}, as 'make install' does")
        room = os.statvfs(folder)
        if room.f_bavail * room.f_frsize < _ROOM or (room.f_files and room.f_favail < 8):
            text = f"{folder}: the disk is full, and a code whose use cannot be recorded is refused"
            yield Finding(ERROR, "store", text, "make room there")
        if os.geteuid() not in (0, status.st_uid):
            yield Finding(NOTE, "store", f"{folder}: who is enrolled was not looked at", "run this as root")
            continue
        for problem in case.enrolled(folder).broken:
            yield Finding(ERROR, "store", f"{folder}: {problem}", "restore that file, or enrol the user anew")


def site(case: Case) -> Iterator[Finding]:
    """The site file can be read, and every line's arguments are good."""
    path = case.machine.path("/etc/pam_totp.toml")
    try:
        found = read_site(path)
    except SettingsError as e:
        yield Finding(ERROR, "settings", f"{e}; every login with a code is refused", f"mend {path}, or remove it")
        return
    for service, handler in case.lines():
        try:
            settings(service, handler.rule.arguments, found)
        except SettingsError as e:
            place = f"{handler.file}:{handler.rule.first + 1}"
            yield Finding(ERROR, "settings", f"{service}: {place}: {e}; every login is refused", "mend that line")


def clock(case: Case) -> Iterator[Finding]:
    """The clock is kept right by somebody: codes by time depend on it."""
    if _clock_state() == _TIME_ERROR:
        text = "the clock is not synchronised; codes by time (TOTP) are refused once it is more than a step off"
        yield Finding(WARNING, "clock", text, "install chrony, or systemctl enable --now systemd-timesyncd")


def _clock_state() -> int:
    """What adjtimex(2) returns when it is only asked."""
    return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX)))


def _builders() -> set[int]:
    """Whom the relay trusts: root, and in a built tree whoever runs this there."""
    own = os.stat(__file__).st_uid
    return {0, own, os.geteuid()} if own != 0 or os.geteuid() != 0 else {0}


def _account() -> set[int]:
    try:
        return {pwd.getpwnam(ACCOUNT).pw_uid}
    except KeyError:
        return set()
