"""The plan of the changes that enable the second factor for a service."""

from __future__ import annotations

from collections.abc import Sequence

from pam_totp.core.settings import SettingsError, settings
from pam_totp.system import sshd
from pam_totp.system.enable.changes import Change, read, require_changeable
from pam_totp.system.machine import SERVICE_NAME, SHARED, Machine
from pam_totp.system.pamd import edit, peers
from pam_totp.system.pamd.edit import FirstFactor
from pam_totp.system.pamd.stack import StackError

# Services that are enabled together: otherwise users could use the other service without a code.
COVERS = {"sudo": ("sudo", "sudo-i"), "su": ("su", "su-l")}


class EnablingError(Exception):
    """The error for a service that cannot be enabled. The message gives the reason."""


class OtherCodeModule(EnablingError):
    """The error for another module that asks for a code, if `replace` is False. `what` names that module."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what} ({remedy})")
        self.what = what


def services_for(service: str) -> Sequence[str]:
    """Return all services that `enable` changes together with `service`."""
    return COVERS.get(service, (service,))


def plan(
    machine: Machine, service: str, first: FirstFactor, arguments: Sequence[str], *, replace: bool = False
) -> tuple[Change, ...]:
    """Return the changes for `service`, its own file first. Raise EnablingError, or ChangeError about a file.

    With `replace`, the new line replaces the lines of other modules that ask for a code.
    """
    if SHARED.fullmatch(service):
        raise EnablingError(f"{service} cannot be enabled: other services include it (enable each of them instead)")
    if not SERVICE_NAME.fullmatch(service):
        required = "lower-case letters, digits and . _ -, and begin with a letter or a digit"
        raise EnablingError(f"{service!r}: a service name must consist of {required}")
    if first != "password" and service != "sshd":
        raise EnablingError(f"--first-factor {first} requires the service sshd")
    try:
        settings(service, arguments)
        changes = list(_service_files(machine, service, first, arguments, replace=replace))
    except SettingsError as e:
        raise EnablingError(f"{e} (see pam_totp(8))") from None
    except StackError as e:
        raise EnablingError(str(e)) from None
    if service == "sshd":
        path = machine.path(sshd.DROP_IN)
        before = read(path)
        if before is not None:
            raise EnablingError(f"{path} already exists (check it, then delete it)")
        if (why := sshd.why_drop_in_has_no_effect()) is not None:
            raise EnablingError(why)
        text = sshd.drop_in(first)
        changes.append(Change(path, None, text, text))
    for change in changes:
        require_changeable(change)
    return tuple(changes)


def texts(changes: Sequence[Change], machine: Machine) -> dict[str, str]:
    """Return the new texts of the service files, by name."""
    folder = machine.path("/etc/pam.d/")
    return {c.path.removeprefix(folder): c.after for c in changes if c.path.startswith(folder)}


def _service_files(
    machine: Machine, service: str, first: FirstFactor, arguments: Sequence[str], *, replace: bool
) -> list[Change]:
    changes: list[Change] = []
    for name in services_for(service):
        path = machine.service_path(name)
        before = read(path)
        if before is None:
            if name != service:
                continue  # not every system has su-l and sudo-i
            hint = " (copy the vendor's file to /etc/pam.d first)" if machine.service(name) is not None else ""
            raise EnablingError(f"{path} not found{hint}")
        so_far = machine.after(texts(changes, machine))
        if changes and any(h.rule.is_pam_totp for h in so_far.stack(name)):
            continue  # the service includes a file that is already in `changes`
        added = edit.new_lines(service, first, arguments)
        others = peers.lines(name, so_far.stack(name))
        if others and not replace:
            what = f"{name} already asks for a code, by {others[0].rule.module} ({name}:{others[0].rule.first + 1})"
            remedy = f"add --replace to replace that line; 'pam-totp disable {service}' restores it"
            raise OtherCodeModule(what, remedy)
        if others:
            after, replaced = peers.replace(before, name, added, so_far.service, first)
        else:
            after, replaced = edit.insert(before, name, added, so_far.service, first), ""
        changes.append(Change(path, before, after, added, replaced))
    return changes
