"""What the checks of `doctor` look at: a machine, the services with our line, and what their lines say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pam_totp.core.settings import Settings, SettingsError, Site, parse_arguments, settings
from pam_totp.pam.login_session import read_site
from pam_totp.system.enrolled import Enrolled, enrolled
from pam_totp.system.machine import Machine
from pam_totp.system.pamd.stack import Handler, StackError
from pam_totp.system.people import people

ACCOUNT = "pam_totp"
SOCKET = "/run/pam_totp/socket"
_HELPER = re.compile(rb"(/[ -~]+/pam/helper\.py)\0")
_INTERPRETER = re.compile(rb"(/[ -~]*/python3[0-9.]*)\0")


@dataclass(frozen=True, slots=True)
class Case:
    """A machine and the services to look at; `user` is who a change would be rehearsed with."""

    machine: Machine
    services: Sequence[str]
    user: str | None = None
    first_by_key: bool = False  # sshd has asked for a key before PAM is asked
    _known: dict[str, Enrolled] = field(default_factory=dict, compare=False, repr=False)
    _people: list[str] = field(default_factory=list, compare=False, repr=False)

    @property
    def people(self) -> Sequence[str]:
        """The accounts of people, by name; looked up once."""
        if not self._people:
            self._people.extend(people())
        return self._people

    def enrolled(self, store: str) -> Enrolled:
        """Who of them is enrolled there; a store is gone through once, however many services and checks ask."""
        if store not in self._known:
            self._known[store] = enrolled(store, frozenset(self.people))
        return self._known[store]

    def lines(self) -> Iterator[tuple[str, Handler]]:
        """Our lines in the services' stacks, with the service; a stack that cannot be read has none."""
        for service in self.services:
            try:
                yield from ((service, h) for h in self.machine.stack(service) if h.rule.ours)
            except StackError:
                continue

    def site(self) -> Site:
        """The site file; no settings where it is bad, which is another check's to say."""
        try:
            return read_site(self.machine.path("/etc/pam_totp.toml"))
        except SettingsError:
            return Site.NONE

    def settings(self) -> Iterator[tuple[str, Settings]]:
        """What is in force for each of our lines; a line that is malformed is another check's to say."""
        for service, handler in self.lines():
            try:
                yield service, settings(service, handler.rule.arguments, self.site())
            except SettingsError:
                continue

    def modules(self) -> list[str]:
        """The files of our module that the lines name, or the installed one where there is no line."""
        folder = self.machine.module_folder() or "/usr/lib/security"
        targets = {h.rule.target for _, h in self.lines()} or {ACCOUNT + ".so"}
        return sorted(os.path.join(folder, t) for t in targets)

    def helpers(self) -> dict[str, str]:
        """The helpers that logins would start, by path, each with its interpreter."""
        found: dict[str, str] = {}
        interpreter = "/usr/bin/python3"
        for module in self.modules():
            try:
                with open(module, "rb") as file:
                    binary = file.read()
            except OSError:
                continue
            for known in _INTERPRETER.findall(binary)[:1]:
                interpreter = os.fsdecode(known)
            for known in _HELPER.findall(binary)[:1]:
                found[os.fsdecode(known)] = interpreter
        found |= {str(h): interpreter for _, h in self._argument("helper")}
        return found

    def sockets(self) -> list[str]:
        """The sockets that logins would try first."""
        given = {service: str(path) for service, path in self._argument("socket")}
        used = {given.get(service, SOCKET) for service, _ in self.lines()} or {SOCKET}
        return sorted(used - {"none"})

    def _argument(self, name: str) -> Iterator[tuple[str, object]]:
        for service, handler in self.lines():
            try:
                parsed = parse_arguments(handler.rule.arguments)
            except SettingsError:
                continue
            if name in parsed:
                yield service, parsed[name]
