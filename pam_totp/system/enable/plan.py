"""From a service's name to the changes that bring the second factor to it."""

from __future__ import annotations

from collections.abc import Sequence

from pam_totp.core.settings import SettingsError, settings
from pam_totp.system import sshd
from pam_totp.system.enable.changes import Change, read
from pam_totp.system.machine import SERVICE_NAME, SHARED, Machine
from pam_totp.system.pamd import edit
from pam_totp.system.pamd.edit import First
from pam_totp.system.pamd.stack import StackError

# Asking for one without the other would leave the other as a way around it.
COVERS = {"sudo": ("sudo", "sudo-i"), "su": ("su", "su-l")}


class EnablingError(Exception):
    """No change that would be in order; the text says why."""


def covered(service: str) -> Sequence[str]:
    """The services that are changed together."""
    return COVERS.get(service, (service,))


def plan(machine: Machine, service: str, first: First, arguments: Sequence[str]) -> tuple[Change, ...]:
    """The changes for `service`, the service's own file first. Raises EnablingError."""
    if SHARED.fullmatch(service):
        raise EnablingError(f"{service} is part of every service; enable the services one by one")
    if not SERVICE_NAME.fullmatch(service):
        raise EnablingError(f"{service!r} is no name of a service: lower-case letters, digits, . _ -")
    if first == "key" and service != "sshd":
        raise EnablingError("a key comes first with sshd alone")
    try:
        settings(service, arguments)
        changes = list(_service_files(machine, service, first, arguments))
    except SettingsError as e:
        raise EnablingError(f"{e} (see pam_totp(8))") from None
    except StackError as e:
        raise EnablingError(str(e)) from None
    if service == "sshd":
        path = machine.path(sshd.DROP_IN)
        before = read(path)
        if before is not None:
            raise EnablingError(f"{path} is there already; look at it, and remove it")
        text = sshd.drop_in(first)
        changes.append(Change(path, None, text, text))
    return tuple(changes)


def texts(changes: Sequence[Change], machine: Machine) -> dict[str, str]:
    """The service files as they will be, by name."""
    folder = machine.path("/etc/pam.d/")
    return {c.path.removeprefix(folder): c.after for c in changes if c.path.startswith(folder)}


def _service_files(machine: Machine, service: str, first: First, arguments: Sequence[str]) -> list[Change]:
    found: list[Change] = []
    for name in covered(service):
        path = machine.service_path(name)
        before = read(path)
        if before is None:
            if name != service:
                continue  # su-l and sudo-i are not everywhere
            hint = f"; copy {name}'s to /etc/pam.d first" if machine.service(name) is not None else ""
            raise EnablingError(f"{path} is not there{hint}")
        so_far = machine.after(texts(found, machine))
        if found and any(h.rule.ours for h in so_far.stack(name)):
            continue  # includes a file that has our line by now
        ours = edit.lines(service, first, arguments)
        found.append(Change(path, before, edit.inserted(before, name, ours, so_far.service, first), ours))
    return found
