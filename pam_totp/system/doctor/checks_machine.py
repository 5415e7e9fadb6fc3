"""Checks of the installation: module, helper, socket, store, site file, clock."""

from __future__ import annotations

import ctypes
import os
import pwd
import stat
from collections.abc import Iterator

from pam_totp.core.settings import DEFAULT_STORE, SettingsError, is_database, settings
from pam_totp.pam.login_session import read_site
from pam_totp.system import desk_accounts, hook, probe, seal_files
from pam_totp.system.database import copied
from pam_totp.system.doctor import store_use
from pam_totp.system.doctor.checks_database import database
from pam_totp.system.doctor.context import ACCOUNT, Context
from pam_totp.system.machine import architecture
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding
from pam_totp.system.store_probe import mount_point
from pam_totp.system.trust import distrust, distrust_around
from pam_totp.system.upkeep import find_defects

_INSTALL = "install pam_totp again: run 'make install' as root, or 'apt-get install --reinstall libpam-totp'"
_OWNERSHIP = "run 'chown root' and 'chmod go-w' on that path"
_RESTART = "run 'systemctl restart pam_totp.socket' (or stop it, so that every login starts a helper)"
_MIN_FREE = 64 * 1024  # bytes: the file of a new user has 8 KiB or more
_MIN_FREE_FILES = 8  # free inodes of the file system
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX = 512  # bytes: more than the size of struct timex on any architecture


def module(context: Context) -> Iterator[Finding]:
    """Check that the module exists, has libpam's architecture, and is writable by root only."""
    folder = context.machine.module_folder()
    if folder is None:
        what = "libpam's module folder not found"
        yield Finding(ERROR, "module", Code.MODULE_FOLDER_NOT_FOUND, what, "install libpam-modules")
        return
    permit = os.path.join(folder, "pam_permit.so")
    for path in context.modules():
        if not os.path.exists(path):
            yield Finding(ERROR, "module", Code.MODULE_NOT_FOUND, f"{path}: not found", _INSTALL)
        elif architecture(path) != architecture(permit):
            what = f"{path}: must be built for libpam's architecture"
            yield Finding(ERROR, "module", Code.MODULE_ARCHITECTURE, what, "build and install pam_totp on this machine")
        elif (reason := distrust(path, _builders())) is not None:
            yield Finding(ERROR, "module", Code.MODULE_UNTRUSTED, f"{path}: {reason}", _OWNERSHIP)


def helper(context: Context) -> Iterator[Finding]:
    """Check that the helper starts, and that only root can change the helper and its package."""
    for path, interpreter in context.helpers().items():
        for program in (interpreter, path):
            if (reason := distrust(program, _builders())) is not None:
                what = f"the relay would not start {program}: {reason}"
                remedy = _OWNERSHIP if os.path.exists(program) else _INSTALL
                yield Finding(ERROR, "helper", Code.HELPER_UNTRUSTED, what, remedy)
                break
        else:
            if (reason := distrust_around(path, _builders())) is not None:
                # The relay checks only the helper itself, because the package has a hundred files.
                what = f"other users can change code that the helper runs: {reason}"
                remedy = "run 'chown -R root' and 'chmod -R go-w' on the folder of the package"
                yield Finding(ERROR, "helper", Code.PACKAGE_UNTRUSTED, what, remedy)
            if (problem := probe.helper(interpreter, path)) is not None:
                yield Finding(ERROR, "helper", Code.HELPER_FAILS, f"{path}: {problem.text}", _INSTALL)


def sockets(context: Context) -> Iterator[Finding]:
    """Check that a service answers on every socket that exists, and that the relay trusts the socket's path."""
    for path in context.sockets():
        try:
            if os.path.exists(path) and (reason := distrust(path, _builders() | _account())) is not None:
                yield Finding(WARNING, "socket", Code.SOCKET_UNTRUSTED, f"{path}: {reason}", _RESTART)
                continue
            problem = probe.service(path)
        except FileNotFoundError:
            continue  # no service is running: every login starts a helper, as on most hosts
        if problem is None:
            continue
        # The relay starts a helper if no process listens. The relay denies the login if the process does not answer.
        if problem.code is probe.Code.NOT_LISTENING:
            yield Finding(WARNING, "socket", Code.SERVICE_NOT_LISTENING, f"{path}: {problem.text}", _RESTART)
        else:
            yield Finding(ERROR, "socket", Code.SERVICE_NOT_ANSWERING, f"{path}: {problem.text}", _RESTART)


def store(context: Context) -> Iterator[Finding]:
    """Check that each store is private to its owner, has free space, and that every record can be read."""
    for folder in context.stores():
        if is_database(folder):
            yield from database(context, folder)
            continue
        try:
            status = os.stat(folder)
        except OSError as e:
            what = f"no user can log in with a code: {folder}: {(e.strerror or str(e)).lower()}"
            remedy = _INSTALL if folder == DEFAULT_STORE else "create the folder with mode 0700"
            yield Finding(ERROR, "store", Code.STORE_UNREACHABLE, what, remedy)
            continue
        if (text := copied(folder)) is not None:
            what = f"no user can log in with a code: {folder}: {text[0].lower()}{text[1:]}"
            remedy = "set url to that database in [store] of /etc/pam_totp.toml, or run 'pam-totp join'"
            yield Finding(ERROR, "store", Code.STORE_UNREACHABLE, what, remedy)
            continue
        yield from _store_folder(folder, status)
        use = store_use.examine(folder, status, has_service=_has_service(context))
        yield from use.findings
        if not use.is_usable:
            continue  # the other checks would report each record
        if os.geteuid() not in (0, status.st_uid):
            what = f"{folder}: the check of the records requires root or the owner of the store"
            yield Finding(NOTE, "store", Code.STORE_NOT_CHECKED, what, "run this command as root")
            continue
        if stat.S_IMODE(status.st_mode) & 0o777 != 0o700:
            continue  # the other checks cannot read such a folder
        defects = find_defects(folder)
        # The check "seal" reports a missing key once. This check therefore omits the records that the key seals.
        broken = set() if seal_files.lacks_key(folder) else set(context.enrolled(folder).broken)
        reported = tuple(f"{name}: " for name in use.file_names)
        for problem in sorted(broken - set(defects.repairable)):
            if problem.startswith(reported):
                continue
            remedy = "restore that file from a backup, or delete it with 'rm' and enrol the user again"
            if folder in seal_files.note().stores:
                remedy = f"if a key is missing, see 'pam-totp seal status'; otherwise {remedy}"
            yield Finding(ERROR, "store", Code.RECORD_UNREADABLE, f"{folder}: {problem}", remedy)
        for what in defects.repairable:
            if what.startswith(reported):
                continue
            severity = ERROR if what in broken else WARNING
            yield Finding(severity, "store", Code.STORE_DEFECT, f"{folder}: {what}", "run 'pam-totp doctor --repair'")
        for what in defects.others:
            remedy = f"on btrfs, run 'chattr +C {folder}' and 'pam-totp doctor --repair', and take no snapshots"
            yield Finding(WARNING, "store", Code.STORE_NOT_IN_PLACE, f"{folder}: {what}", remedy)
        if defects.put_back:
            number = f"{defects.put_back} record{'s' if defects.put_back > 1 else ''}"
            what = f"{folder}: used codes can be accepted again, because another program wrote {number} there"
            remedy = "run 'pam-totp restored' after a restored backup; the next login of each user ends this finding"
            yield Finding(WARNING, "store", Code.STORE_RESTORED, what, remedy)


def site(context: Context) -> Iterator[Finding]:
    """Check that the site file and the arguments of every pam_totp.so line are valid."""
    path = context.machine.path("/etc/pam_totp.toml")
    try:
        defaults = read_site(path)
    except SettingsError as e:
        what = f"every login with a code is refused: {e}"
        yield Finding(ERROR, "settings", Code.SITE_FILE_INVALID, what, f"correct {path}, or delete it")
        return
    for service, handler in context.lines():
        try:
            settings(service, handler.rule.arguments, defaults)
        except SettingsError as e:
            what = f"{service}: every login is refused: {handler.file}:{handler.rule.first + 1}: {e}"
            yield Finding(ERROR, "settings", Code.ARGUMENTS_INVALID, what, "correct that line")
    try:
        told = hook.program(defaults)
        reason = None if told is None else hook.defect(context.machine.path(told))
    except SettingsError as e:
        reason = str(e)
    if reason is not None:
        what = f"the program of [hooks] receives no changes: {reason}"
        yield Finding(WARNING, "settings", Code.HOOK_INVALID, what, f"correct [hooks] of {path}, or the program's file")
    if (reason := desk_accounts.defect(defaults)) is not None:
        what = f"no desk member can help users: {reason}"
        yield Finding(WARNING, "settings", Code.DESK_INVALID, what, f"correct [desk] of {path}")


def clock(context: Context) -> Iterator[Finding]:
    """Check that the clock is synchronised: TOTP codes, or the certificates of a member, depend on the clock."""
    if _clock_state() == _TIME_ERROR:
        what = "the clock is not synchronised; TOTP codes are refused after an error of more than a step"
        if context.site().member is not None:
            what = "the clock is not synchronised; certificates are refused after an error of more than a day"
        remedy = "install chrony, or run 'systemctl enable --now systemd-timesyncd'"
        yield Finding(WARNING, "clock", Code.CLOCK_NOT_SYNCHRONISED, what, remedy)


def _store_folder(folder: str, status: os.stat_result) -> Iterator[Finding]:
    if not stat.S_ISDIR(status.st_mode) or stat.S_IMODE(status.st_mode) & 0o777 != 0o700:
        what = f"{folder}: must be a folder of mode 0700"
        yield Finding(ERROR, "store", Code.STORE_MODE, what, f"run 'chmod 0700 {folder}'")
    free = os.statvfs(folder)
    if free.f_flag & os.ST_RDONLY:
        what = f"{folder}: every code is refused, because the file system is read-only"
        remedy = f"run 'mount -o remount,rw {mount_point(folder)}'"
        yield Finding(ERROR, "store", Code.STORE_READ_ONLY, what, remedy)
    if free.f_bavail * free.f_frsize < _MIN_FREE or (free.f_files and free.f_favail < _MIN_FREE_FILES):
        what = f"{folder}: the disk is full: logins work, but new users cannot be enrolled"
        yield Finding(WARNING, "store", Code.STORE_FULL, what, "delete files on that disk (see 'df' and 'df -i')")


def _has_service(context: Context) -> bool:
    """Return True if a service answers on a socket that a line uses."""
    for path in context.sockets():
        try:
            if probe.service(path) is None:
                return True
        except FileNotFoundError:
            continue
    return False


def _clock_state() -> int:
    """Return the state of the clock from adjtimex(2), and leave the clock unchanged."""
    return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX)))


def _builders() -> set[int]:
    """Return the uids that the relay trusts: root and, in a build tree, the owner of the tree and the caller."""
    owner = os.stat(__file__).st_uid
    return {0, owner, os.geteuid()} if owner != 0 or os.geteuid() != 0 else {0}


def _account() -> set[int]:
    try:
        return {pwd.getpwnam(ACCOUNT).pw_uid}
    except KeyError:
        return set()
