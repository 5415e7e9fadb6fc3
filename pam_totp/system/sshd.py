"""sshd: what is in force for whom, our drop-in, and a reload. Asks the real sshd, never reads its configuration.

The law: no way of logging in leads around PAM, for anybody whom `sshd -T -C` knows of; what sshd itself would not
start with is never left in place.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from pam_totp.system.pamd.edit import First

PROGRAM = "/usr/sbin/sshd"
# The first value counts, so it comes before what others have put there.
DROP_IN = "/etc/ssh/sshd_config.d/00-pam_totp.conf"
SYSTEMD = "/run/systemd/system"  # sd_booted(3)
METHODS: dict[First, str] = {
    "password": "keyboard-interactive:pam",
    "key": "publickey,keyboard-interactive:pam",
}
_BY_PAM = ("keyboard-interactive", "keyboard-interactive:pam", "password")
_OTHER_WAYS = ("pubkeyauthentication", "gssapiauthentication", "hostbasedauthentication")
_MATCH = re.compile(r"^\s*match\s+(.+?)\s*$", re.I | re.M)
_NEVER_RAN = re.compile(r"Missing privilege separation directory: (\S+)$")  # its unit makes it, at boot
_LIMIT = 10  # seconds: sshd answers in 10 ms

Settings = Mapping[str, str]


class SshdError(Exception):
    """sshd is not there, or does not like its configuration; the text is its own."""


def drop_in(first: First) -> str:
    """The text of our drop-in."""
    return (
        "# put here by 'pam-totp enable sshd'; 'pam-totp disable sshd' takes it away\n"
        "UsePAM yes\n"
        "KbdInteractiveAuthentication yes\n"
        f"AuthenticationMethods {METHODS[first]}\n"
    )


def wrong() -> str | None:
    """What `sshd -t` says of the configuration; None where it is good. Raises SshdError where there is no sshd."""
    done = _run("-t")
    return None if done.returncode == 0 else _said(done)


def settings(user: str, host: str = "localhost", address: str = "127.0.0.1") -> Settings:
    """What is in force for a login of `user` (sshd -T -C), by lower-case name. Raises SshdError."""
    done = _run("-T", "-C", f"user={user},host={host},addr={address}")
    if done.returncode != 0:
        raise SshdError(f"sshd -T: {_said(done)}")
    pairs = (line.partition(" ") for line in done.stdout.splitlines())
    return {name: value for name, _, value in pairs}


def around_pam(found: Settings) -> Iterator[str]:
    """The ways in that do not go through PAM's questions, and what keeps PAM from asking at all."""
    if found.get("usepam") != "yes":
        yield "UsePAM is no"
    if found.get("kbdinteractiveauthentication") != "yes":
        yield "KbdInteractiveAuthentication is no"
    methods = found.get("authenticationmethods", "any")
    if methods == "any":
        ways = [name.removesuffix("authentication") for name in _OTHER_WAYS if found.get(name) == "yes"]
        if ways:
            yield f"AuthenticationMethods is any, so {' or '.join(ways)} is enough"
        return
    for one in methods.split():
        if not set(one.split(",")) & set(_BY_PAM):
            yield f"AuthenticationMethods has {one}"


def passwords_allowed(found: Settings) -> bool:
    """Whether sshd asks for passwords, by whatever method."""
    return "yes" in (found.get("passwordauthentication"), found.get("kbdinteractiveauthentication"))


def matches(texts: Sequence[str]) -> list[tuple[str, str, str]]:
    """A user, host and address for each Match block of sshd's files, as far as such a one can be told."""
    found = []
    for criteria in (m for text in texts for m in _MATCH.findall(text)):
        words = re.findall(r"(\w+)[ \t=]+\"?([^\s\"]+)", criteria)
        said = {k.lower(): v.split(",")[0].partition("/")[0] for k, v in words}
        if not any(set("*?!") & set(v) for v in said.values()):
            found.append((said.get("user", "root"), said.get("host", "localhost"), said.get("address", "127.0.0.1")))
    return found


def files(root: str = "/") -> list[str]:
    """The texts of sshd's configuration files, for their Match blocks."""
    folder = os.path.join(root, "etc/ssh/sshd_config.d")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    paths = [os.path.join(root, "etc/ssh/sshd_config"), *(os.path.join(folder, n) for n in names)]
    texts = []
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                texts.append(file.read())
        except OSError:
            continue
    return texts


def reload() -> bool:
    """Make a running sshd read its configuration again; False where none is running, or none needs to."""
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
        return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=_LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise SshdError(f"{PROGRAM}: {e}") from None


def _systemctl(*arguments: str) -> bool:
    try:
        done = subprocess.run(["/usr/bin/systemctl", *arguments], capture_output=True, timeout=30, check=False)
        return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _said(done: subprocess.CompletedProcess[str]) -> str:
    said = "; ".join(done.stderr.split("\n")).strip("; ") or f"{PROGRAM} ended with {done.returncode}"
    missing = _NEVER_RAN.search(said)
    return said if missing is None else f"{said} (start sshd once, or mkdir {missing[1]})"
