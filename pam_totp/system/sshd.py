"""sshd: its settings for a user, the configuration file that pam_totp adds, and a reload.

Rules:
- The settings come from the real sshd (`sshd -T -C`). The files of sshd are read only for their Match blocks,
  and for the position of the added file.
- `bypasses` reports every setting in the output of `sshd -T -C` that lets a user log in without PAM.
- `enable` rolls back a configuration that `sshd -t` rejects.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping

from pam_totp.system.pamd.edit import FirstFactor
from pam_totp.system.sshd_files import why_without_effect
from pam_totp.system.sshd_match import LOCAL, Place

PROGRAM = "/usr/sbin/sshd"
# sshd uses the first value of a setting, so the name of this file sorts before other names.
DROP_IN = "/etc/ssh/sshd_config.d/00-pam_totp.conf"
SYSTEMD = "/run/systemd/system"  # sd_booted(3)
METHODS: dict[FirstFactor, str] = {
    "password": "keyboard-interactive:pam",
    "key": "publickey,keyboard-interactive:pam",
    "key-or-password": "publickey,keyboard-interactive:pam keyboard-interactive:pam",
}
_PAM_METHODS = ("keyboard-interactive", "keyboard-interactive:pam", "password")
_OTHER_METHODS = ("pubkeyauthentication", "gssapiauthentication", "hostbasedauthentication")
# `_error` adds a remedy to this error of sshd. The start of sshd's unit creates the directory.
_MISSING_DIRECTORY = re.compile(r"Missing privilege separation directory: (\S+)$")
_TIMEOUT = 10  # seconds; sshd normally takes 10 ms

Settings = Mapping[str, str]


class SshdError(Exception):
    """sshd is missing, or its configuration is invalid. The message gives the reason."""


def drop_in(first: FirstFactor) -> str:
    """Return the text of the sshd configuration file that `enable sshd` writes."""
    return (
        "# added by 'pam-totp enable sshd'; 'pam-totp disable sshd' removes it\n"
        "UsePAM yes\n"
        "KbdInteractiveAuthentication yes\n"
        f"AuthenticationMethods {METHODS[first]}\n"
    )


def why_drop_in_has_no_effect() -> str | None:
    """Return the reason why sshd would not use the file that `enable sshd` writes, or None."""
    return why_without_effect(DROP_IN, {"usepam": "yes", "kbdinteractiveauthentication": "yes"})


def configuration_error() -> str | None:
    """Return the error that `sshd -t` reports, or None. Raise SshdError if sshd is missing."""
    done = _run("-t")
    return None if done.returncode == 0 else _error(done)


def settings(user: str, place: Place = LOCAL) -> Settings:
    """Return the settings for a login of `user` from `place` (sshd -T -C), by lower-case name. Raise SshdError."""
    where = f"host={place.host},addr={place.address},laddr={place.local_address},lport={place.local_port}"
    done = _run("-T", "-C", f"user={user},{where}")
    if done.returncode != 0:
        raise SshdError(f"sshd -T: {_error(done)}")
    pairs = (line.partition(" ") for line in done.stdout.splitlines())
    return {name: value for name, _, value in pairs}


def bypasses(in_force: Settings) -> Iterator[str]:
    """Yield a description of each setting that allows a login without a prompt of PAM."""
    if in_force.get("usepam") != "yes":
        yield "UsePAM is no"
    if in_force.get("kbdinteractiveauthentication") != "yes":
        yield "KbdInteractiveAuthentication is no"
    if not _methods(in_force):
        ways = [name.removesuffix("authentication") for name in _OTHER_METHODS if in_force.get(name) == "yes"]
        if ways:
            yield f"AuthenticationMethods is any, so {' or '.join(ways)} is sufficient"
        return
    for method in _methods(in_force):
        if not set(method.split(",")) & set(_PAM_METHODS):
            yield f"AuthenticationMethods allows {method}"


def accepts_passwords(in_force: Settings) -> bool:
    """Return True if sshd accepts passwords by any method."""
    return "yes" in (in_force.get("passwordauthentication"), in_force.get("kbdinteractiveauthentication"))


def requires_pam(in_force: Settings) -> bool:
    """Return True if every login needs an answer to PAM."""
    return "authenticationmethods" in in_force and not any(True for _ in bypasses(in_force))


def requires_key(in_force: Settings) -> bool:
    """Return True if every login needs a key."""
    return all("publickey" in method.split(",") for method in _methods(in_force)) and bool(_methods(in_force))


def requires_other_method(in_force: Settings) -> bool:
    """Return True if every login needs a method that does not ask PAM, such as a key."""
    methods = _methods(in_force)
    return bool(methods) and all(set(method.split(",")) - set(_PAM_METHODS) for method in methods)


def requires_password(in_force: Settings) -> bool:
    """Return True if every login needs the method `password`."""
    return all("password" in method.split(",") for method in _methods(in_force)) and bool(_methods(in_force))


def sends_password(in_force: Settings) -> bool:
    """Return True if a client can log in by the method `password`: sshd then answers every prompt with the password."""
    methods = _methods(in_force)
    is_allowed = not methods or any("password" in method.split(",") for method in methods)
    return in_force.get("passwordauthentication") == "yes" and is_allowed


def _methods(in_force: Settings) -> list[str]:
    """Return the lists of methods in AuthenticationMethods, or an empty list if any method is enough."""
    methods = in_force.get("authenticationmethods", "any")
    return [] if methods == "any" else methods.split()


def reload() -> bool:
    """Make a running sshd read its configuration again. Return False if no sshd was reloaded."""
    if os.path.isdir(SYSTEMD):
        for unit in ("ssh.service", "sshd.service"):
            if _systemctl("is-active", "--quiet", unit) and _systemctl("reload", unit):
                return True
    try:
        path = settings("root").get("pidfile", "none")
        with open(path, encoding="ascii") as file:
            pid = int(file.read())
        if os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith("sshd"):
            os.kill(pid, signal.SIGHUP)
            return True
    except (OSError, ValueError, SshdError):
        pass
    return False


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise SshdError(f"{PROGRAM}: {e}") from None


def _systemctl(*arguments: str) -> bool:
    try:
        done = subprocess.run(["/usr/bin/systemctl", *arguments], capture_output=True, timeout=30, check=False)
        return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _error(done: subprocess.CompletedProcess[str]) -> str:
    error = "; ".join(done.stderr.split("\n")).strip("; ") or f"{PROGRAM} exited with status {done.returncode}"
    missing = _MISSING_DIRECTORY.search(error)
    return error if missing is None else f"{error} (start sshd once, or run 'mkdir {missing[1]}')"
