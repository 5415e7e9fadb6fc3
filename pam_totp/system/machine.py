"""A machine's PAM service files, its PAM modules, and the files that name pam_totp.so.

Rules:
- This module only reads files.
- A `Machine` with `replacements` describes the machine as it would be after a change.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pam_totp.system.pamd.stack import MODULE, PHASES, Handler, StackError, flatten

SERVICE_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
# Files that other service files include. An edit of these files would change every service, and conflict with
# pam-auth-update.
SHARED = re.compile(r"common-.*|other|system-auth.*|password-auth.*|postlogin")
_PAM_FOLDERS = ("etc/pam.d", "usr/lib/pam.d")  # in the order in which libpam searches them
_NAMES_MODULE = re.compile(r"^[^#\n]*\bpam_totp(\.so|\s|$)", re.MULTILINE)
_MODULE_FOLDERS = ("usr/lib/*/security", "usr/lib64/security", "usr/lib/security", "lib/*/security")


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine with its files below `root`. `replacements` has new texts for some service files, by name."""

    root: str = "/"
    replacements: Mapping[str, str] = field(default_factory=dict)

    def path(self, absolute: str) -> str:
        """Return the path below `root` for an absolute path of the machine."""
        return os.path.join(self.root, absolute.lstrip("/"))

    def after(self, texts: Mapping[str, str]) -> Machine:
        """Return a copy of this machine in which `texts` replace the service files of the same names."""
        return replace(self, replacements={**self.replacements, **texts})

    def service_path(self, service: str) -> str:
        """Return the path of the file to edit for a service."""
        return self.path(f"/etc/pam.d/{service}")

    def service(self, name: str) -> str | None:
        """Return the text of a service file by its name or absolute path, or None if it does not exist.

        Bytes that are not UTF-8 become surrogates. Raise StackError if the file cannot be read.
        """
        if name.startswith("/"):
            candidates = [self.path(name)]
            name = os.path.relpath(name, "/etc/pam.d")
        else:
            candidates = [self.path(f"/{folder}/{name}") for folder in _PAM_FOLDERS]
        if name in self.replacements:
            return self.replacements[name]
        for path in candidates:
            try:
                return _read(path)
            except FileNotFoundError:
                continue
            except OSError as e:
                raise StackError(f"{path}: {e.strerror}") from e
        return None

    def stack(self, service: str, phase: str = "auth") -> tuple[Handler, ...]:
        """Return the flat stack of a service. Raise StackError."""
        return flatten(service, self.service, phase)

    def services(self) -> list[str]:
        """Return the sorted names of the service files in /etc/pam.d. Skip hidden files and editors' backup files."""
        try:
            names = os.listdir(self.path("/etc/pam.d"))
        except OSError:
            names = []
        return sorted({n for n in (*names, *self.replacements) if SERVICE_NAME.fullmatch(n)})

    def services_with_module(self) -> list[str]:
        """Return the services that run pam_totp.so in any phase.

        Include a service with an unreadable stack if the service's own file names the module.
        """
        names = []
        for name in self.services():
            try:
                if any(h.rule.is_pam_totp for h in self.stack(name)) or self.misplaced(name):
                    names.append(name)
            except StackError:
                if MODULE in (self.service(name) or ""):
                    names.append(name)
        return names

    def files_with_module(self, replacements: Mapping[str, str]) -> list[str]:
        """Return the paths of the PAM files that name pam_totp.so in any phase, and of unreadable PAM files.

        `replacements` has new texts for some files, by path.
        """
        folders = (self.path(f"/{folder}/[!.]*") for folder in _PAM_FOLDERS)
        files = [path for folder in folders for path in sorted(glob.glob(folder))]
        named = []
        for path in (*files, self.path("/etc/pam.conf")):
            try:
                text = replacements[path] if path in replacements else _read(path)
            except (FileNotFoundError, IsADirectoryError):
                continue
            except OSError:
                named.append(path)
            else:
                named += [path] if _NAMES_MODULE.search(text) else []
        return named

    def wrong_phases(self, service: str) -> list[str]:
        """Return the phases other than auth in which a service runs pam_totp.so."""
        return sorted({handler.rule.phase for handler in self.misplaced(service)})

    def misplaced(self, service: str) -> list[Handler]:
        """Return the pam_totp.so lines in phases other than auth, including the lines of included files."""
        found = []
        for phase in PHASES[1:]:
            try:
                found += [h for h in self.stack(service, phase) if h.rule.is_pam_totp]
            except StackError:
                continue  # another check reports an invalid stack
        return found

    def module_folder(self) -> str | None:
        """Return the folder of libpam's modules for the architecture of this Python, or None."""
        same = architecture(os.path.realpath(sys.executable))
        folders = (f for pattern in _MODULE_FOLDERS for f in sorted(glob.glob(self.path("/" + pattern))))
        return next((f for f in folders if architecture(os.path.join(f, "pam_permit.so")) == same is not None), None)

    def module(self) -> str | None:
        """Return the path at which pam_totp.so is installed, or None if the folder of modules is missing."""
        folder = self.module_folder()
        return None if folder is None else os.path.join(folder, MODULE)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return file.read()


def architecture(path: str) -> bytes | None:
    """Return the architecture of an ELF file as bytes to compare, or None for an unreadable file or another kind of
    file.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError:
        return None
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    return head[4:6] + head[18:20]  # class, byte order, machine: elf(5)
