"""Where things are on a machine: PAM's service files and modules, sshd's, and our record of what we changed.

The law: reading changes nothing; a `Machine` with `instead` is the machine as it would be after a change.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pam_totp.system.pamd.stack import MODULE, Handler, StackError, flat, rules

SERVICE_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
# Not services but parts of them: an edit there would change every service on the machine, and pam-auth-update's work.
SHARED = re.compile(r"common-.*|other|system-auth.*|password-auth.*|postlogin")
_PAM_FOLDERS = ("etc/pam.d", "usr/lib/pam.d")  # as libpam looks for a service
_MODULE_FOLDERS = ("usr/lib/*/security", "usr/lib64/security", "usr/lib/security", "lib/*/security")


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine below `root`; `instead` has other texts for some service files, by name."""

    root: str = "/"
    instead: Mapping[str, str] = field(default_factory=dict)

    def path(self, absolute: str) -> str:
        """Where an absolute path is."""
        return os.path.join(self.root, absolute.lstrip("/"))

    def after(self, texts: Mapping[str, str]) -> Machine:
        """The machine with these service files in place of its own."""
        return replace(self, instead={**self.instead, **texts})

    def service_path(self, service: str) -> str:
        """The file of a service that an edit would be made to."""
        return self.path(f"/etc/pam.d/{service}")

    def service(self, name: str) -> str | None:
        """The text of a service file by its name or absolute path; None where there is none. Bytes that are not
        UTF-8 survive as surrogates. Raises StackError where it cannot be read."""
        if name.startswith("/"):
            inside = os.path.relpath(name, "/etc/pam.d")
            candidates = [self.path(name)]
            name = inside
        else:
            candidates = [self.path(f"/{folder}/{name}") for folder in _PAM_FOLDERS]
        if name in self.instead:
            return self.instead[name]
        for path in candidates:
            try:
                with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                    return file.read()
            except FileNotFoundError:
                continue
            except OSError as e:
                raise StackError(f"{path}: {e.strerror}") from e
        return None

    def stack(self, service: str, phase: str = "auth") -> tuple[Handler, ...]:
        """The flat stack of a service. Raises StackError."""
        return flat(service, self.service, phase)

    def services(self) -> list[str]:
        """The names in /etc/pam.d, sorted; links, hidden files and editors' leavings are not among them."""
        try:
            names = os.listdir(self.path("/etc/pam.d"))
        except OSError:
            names = []
        return sorted({n for n in (*names, *self.instead) if SERVICE_NAME.fullmatch(n)})

    def ours(self) -> list[str]:
        """The services whose auth stack has our line, in their own file or through another that is no common-*."""
        found = []
        for name in self.services():
            try:
                if any(h.rule.ours for h in self.stack(name)):
                    found.append(name)
            except StackError:
                if MODULE in (self.service(name) or ""):
                    found.append(name)
        return found

    def misplaced(self, service: str) -> list[str]:
        """The phases other than auth under which a service's own file names our module."""
        try:
            own = rules(self.service(service) or "", service)
        except StackError:
            return []
        return sorted({r.phase for r in own if r.ours and r.phase != "auth"})

    def module_folder(self) -> str | None:
        """The folder of libpam's modules for this Python's architecture, which is libpam's, or None."""
        same = architecture(os.path.realpath(sys.executable))
        found = (f for pattern in _MODULE_FOLDERS for f in sorted(glob.glob(self.path("/" + pattern))))
        return next((f for f in found if architecture(os.path.join(f, "pam_permit.so")) == same is not None), None)

    def module(self) -> str | None:
        """Where our module should be installed."""
        folder = self.module_folder()
        return None if folder is None else os.path.join(folder, MODULE)


def architecture(path: str) -> bytes | None:
    """What must be the same for two ELF files to be loaded together; None where it is none that can be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError:
        return None
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    return head[4:6] + head[18:20]  # class, byte order, machine: elf(5)
